// Package chaintest makes blocks of the ledger by hand, for tests: one validator, no
// network and no clock.
package chaintest

import (
	"context"

	abci "github.com/cometbft/cometbft/abci/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
)

// Begin makes the first state of a network from the ledger's part of its genesis.
func Begin(ctx context.Context, app *consensus.App, network mesh.NetworkID, ledger []byte) error {
	_, err := app.InitChain(ctx, &abci.RequestInitChain{ChainId: string(network), AppStateBytes: ledger})
	return err
}

// Block makes the block of a height, proposed by the validator with this key, of those
// of the transactions that have an effect. refused is what the first one met that is
// not in it or whose action was refused.
func Block(ctx context.Context, app *consensus.App, key *consensus.Key, height mesh.Height, txs ...[]byte) (refused, err error) {
	pub, err := key.Signer().GetPubKey()
	if err != nil {
		return nil, err
	}
	picked, err := app.PrepareProposal(ctx, &abci.RequestPrepareProposal{Height: int64(height), Txs: txs, MaxTxBytes: 1 << 20, ProposerAddress: pub.Address()})
	if err != nil {
		return nil, err
	}
	done, err := app.FinalizeBlock(ctx, &abci.RequestFinalizeBlock{Height: int64(height), Txs: picked.Txs, ProposerAddress: pub.Address()})
	if err != nil {
		return nil, err
	}
	if _, err := app.Commit(ctx, &abci.RequestCommit{}); err != nil {
		return nil, err
	}
	if len(picked.Txs) != 1+len(txs) {
		return &consensus.Refused{Log: "it is in no block"}, nil
	}
	for _, r := range done.TxResults[1:] {
		if r.IsErr() {
			return &consensus.Refused{Height: height, Code: r.Code, Log: r.Log}, nil
		}
	}
	return nil, nil
}
