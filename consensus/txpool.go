package consensus

import (
	"context"
	"errors"
	"sync/atomic"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/mempool"
	cp2p "github.com/cometbft/cometbft/p2p"
	protomem "github.com/cometbft/cometbft/proto/tendermint/mempool"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
)

// wholePool is CometBFT's mempool, of which a proposer sees everything: the first two
// megabytes of it, as CometBFT has it, are whatever came first, and the application
// chooses by fee. What it returns is held to the bytes of a block all the same.
type wholePool struct{ *mempool.CListMempool }

func (p wholePool) ReapMaxBytesMaxGas(int64, int64) types.Txs { return p.ReapMaxTxs(-1) }

// forged is the application, with a note of the transactions that it found malformed:
// CometBFT's reactor does not look at what the application says of one.
type forged struct {
	abci.Application
	seen  *memory
	count atomic.Int64
}

func newForged(app abci.Application) *forged { return &forged{Application: app, seen: newMemory()} }

func (f *forged) CheckTx(ctx context.Context, req *abci.RequestCheckTx) (*abci.ResponseCheckTx, error) {
	res, err := f.Application.CheckTx(ctx, req)
	if err == nil && res.Code == CodeMalformed {
		f.seen.recall(mesh.Hash(types.Tx(req.Tx).Key()), func() bool { return true })
		f.count.Add(1)
	}
	return res, err
}

// txReactor holds a peer to the transactions that it hands on. Their check costs this node
// a little for nothing, and an honest node has made it before.
type txReactor struct {
	*mempool.Reactor
	forged *forged
}

// Receive is called by several peers at once; each waits until its transactions are checked.
func (r *txReactor) Receive(e cp2p.Envelope) {
	before := r.forged.count.Load()
	r.Reactor.Receive(e)
	msg, ok := e.Message.(*protomem.Txs)
	if !ok || r.forged.count.Load() == before {
		return
	}
	for _, tx := range msg.GetTxs() {
		if r.forged.seen.recall(mesh.Hash(types.Tx(tx).Key()), func() bool { return false }) {
			r.Switch.StopPeerForError(e.Src, &badMessage{errors.New("a transaction that no honest node hands on")})
			return
		}
	}
}
