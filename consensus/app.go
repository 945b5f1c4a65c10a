package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/state"
)

// Codes of a transaction's result.
const (
	CodeDone      = 0
	CodeRefused   = 1
	CodeMalformed = 2 // and no honest node hands it on
	CodeUnable    = 3 // this node does not take it now; another may
)

// AppConfig describes the ledger's side of consensus.
type AppConfig struct {
	Network mesh.NetworkID
	Store   *state.Store
	Log     *slog.Logger
	// Beacon makes the first transaction of a block that this node proposes; nil for a
	// node that never does.
	Beacon func(height mesh.Height) ([]byte, error)
	// Upgrades are those that this software carries out.
	Upgrades map[string]ledger.Migration
	// Trust is for how many blocks light nodes believe a header.
	Trust uint64
	// Keep is for how many blocks other nodes can fetch them here; 0 keeps all.
	Keep int64
}

// App drives the ledger by CometBFT's ABCI++. CometBFT calls it on several connections
// at once, one call at a time on each: blocks on one, transactions to check on another.
// Proposals are executed when they are judged, and the outcome serves again when
// the block is decided; nothing is written before Commit.
type App struct {
	abci.BaseApplication
	cfg     AppConfig
	machine *ledger.Machine
	memory  *memory        // of signatures
	proofs  *memory        // of keys and vouchers
	judged  judgement      // the last proposal; the connection of blocks alone uses it
	restore *state.Restore // the snapshot that is taken in; that of snapshots alone uses it
	failed  chan error

	mu    sync.Mutex
	pool  *ledger.Pool // nil before the first check; guarded by mu
	stale bool         // a block was committed since pool was made; guarded by mu
}

// judgement is what executing a proposal gave.
type judgement struct {
	hash    string // of the block
	outcome *ledger.Outcome
}

// NewApp returns the application.
func NewApp(cfg AppConfig) *App {
	a := &App{cfg: cfg, memory: newMemory(), proofs: newMemory(), failed: make(chan error, 1)}
	a.machine = ledger.New(ledger.Config{
		Network: cfg.Network, Upgrades: cfg.Upgrades, Trust: cfg.Trust, Recall: a.proofs.recall,
		Verify: func(tx *ledger.Tx) bool {
			return a.memory.recall(tx.Key(), func() bool { return tx.Verify(cfg.Network) })
		},
		VerifyBeacon: func(blsKey, signature []byte, height mesh.Height) bool {
			key := mesh.HashOf([]byte("beacon\x00"), blsKey, signature, binary.BigEndian.AppendUint64(nil, uint64(height)))
			return a.memory.recall(key, func() bool { return ledger.VerifyBeacon(cfg.Network, blsKey, signature, height) })
		},
	})
	return a
}

// Failed delivers the error after which this node cannot go on: a damaged state, a
// disk that does not write, an upgrade that this software does not know.
func (a *App) Failed() <-chan error { return a.failed }

// Ready says whether this software can apply the next block: nil, or the upgrade that
// it does not know.
func (a *App) Ready() error {
	if a.cfg.Store.Height() == 0 {
		return nil
	}
	return a.machine.Ready(a.cfg.Store)
}

// fail reports an error once and hands it on to CometBFT, whose consensus then ends.
func (a *App) fail(doing string, err error) error {
	err = fmt.Errorf("%s: %w", doing, err)
	select {
	case a.failed <- err:
	default:
	}
	return err
}

// Info tells CometBFT where the state stands, so that it replays what is missing.
func (a *App) Info(context.Context, *abci.RequestInfo) (*abci.ResponseInfo, error) {
	info := &abci.ResponseInfo{Version: mesh.Version, AppVersion: AppVersion, LastBlockHeight: int64(a.cfg.Store.Height())}
	if info.LastBlockHeight > 0 {
		hash := a.cfg.Store.AppHash()
		info.LastBlockAppHash = hash[:]
	}
	return info, nil
}

// AppVersion stands in the header of the first block, and in all until a block changes the
// consensus parameters. It stays what it is: a node that replays old blocks, with any
// version of this software, has to find it there. An upgrade that is to show in headers
// answers FinalizeBlock of its height with ConsensusParamUpdates.Version, and Info from
// then on with that of the state: docs/ledger.md.
const AppVersion = 1

// InitChain makes the first state. After a crash before the first block CometBFT
// calls it again.
func (a *App) InitChain(_ context.Context, req *abci.RequestInitChain) (*abci.ResponseInitChain, error) {
	if req.ChainId != string(a.cfg.Network) {
		return nil, a.fail("begin the chain", fmt.Errorf("it is %q, this node's network is %q", req.ChainId, a.cfg.Network))
	}
	genesis, err := ledger.ParseGenesis(req.AppStateBytes)
	if err != nil {
		return nil, a.fail("begin the chain", err)
	}
	first, err := a.machine.Genesis(genesis)
	if err != nil {
		return nil, a.fail("begin the chain", err)
	}
	hash, err := a.cfg.Store.Stage(0, first.Changes)
	if err == nil {
		err = a.commit()
	}
	if err != nil {
		return nil, a.fail("write the first state", err)
	}
	return &abci.ResponseInitChain{Validators: updates(first.Validators), AppHash: hash[:]}, nil
}

// checks returns the checks on the committed state. mu is held.
func (a *App) checks() (pool *ledger.Pool, err error) {
	switch {
	case a.pool == nil:
		pool, err = a.machine.NewPool(a.cfg.Store)
	case a.stale:
		pool, err = a.pool.Next(a.cfg.Store)
	default:
		return a.pool, nil
	}
	if err = errors.Join(err, a.cfg.Store.Err()); err != nil {
		return nil, a.fail("read the state", err)
	}
	a.pool, a.stale = pool, false
	return pool, nil
}

// commit makes what is staged the state, while no transaction is checked: no check sees
// a part of one state and a part of the next.
func (a *App) commit() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stale = true
	return a.cfg.Store.Commit()
}

// CheckTx says whether a transaction may wait for a block. It returns no error: CometBFT
// panics over one, outside of what recovers, and a node whose ledger ended serves on.
func (a *App) CheckTx(_ context.Context, req *abci.RequestCheckTx) (*abci.ResponseCheckTx, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	pool, err := a.checks()
	unable := err != nil
	switch {
	case unable:
	case req.Type == abci.CheckTxType_Recheck:
		err = pool.Recheck(req.Tx)
	default:
		err = pool.Check(req.Tx)
	}
	res := &abci.ResponseCheckTx{}
	switch {
	case err == nil:
		return res, nil
	case errors.Is(err, ledger.ErrMalformed):
		res.Code = CodeMalformed
	case unable, errors.Is(err, ledger.ErrNoRoom):
		res.Code = CodeUnable
	default:
		res.Code = CodeRefused
	}
	res.Log = err.Error()
	return res, nil
}

// PrepareProposal picks the transactions of a block.
func (a *App) PrepareProposal(_ context.Context, req *abci.RequestPrepareProposal) (*abci.ResponsePrepareProposal, error) {
	if a.cfg.Beacon == nil {
		return nil, errors.New("this node has no key to propose blocks with")
	}
	beacon, err := a.cfg.Beacon(mesh.Height(req.Height))
	if err != nil {
		return nil, fmt.Errorf("sign the beacon: %w", err)
	}
	block := ledger.Block{
		Height: mesh.Height(req.Height), Txs: [][]byte{beacon}, Evidence: evidenceOf(req.Misbehavior),
	}
	copy(block.Proposer[:], req.ProposerAddress)
	for _, v := range req.LocalLastCommit.Votes {
		block.Signed, block.Missed = sortVote(block.Signed, block.Missed, v.Validator.Address, v.BlockIdFlag)
	}
	txs, err := a.machine.Pick(a.cfg.Store, block, req.Txs, req.MaxTxBytes)
	if err = errors.Join(err, a.cfg.Store.Err()); err != nil {
		return nil, a.fail("prepare a block", err)
	}
	return &abci.ResponsePrepareProposal{Txs: txs}, nil
}

// ProcessProposal executes a proposed block and says whether an honest proposer
// would make it.
func (a *App) ProcessProposal(_ context.Context, req *abci.RequestProcessProposal) (*abci.ResponseProcessProposal, error) {
	block := blockOf(req.Height, req.ProposerAddress, req.Txs, req.ProposedLastCommit, req.Misbehavior)
	outcome, err := a.machine.Accepts(a.cfg.Store, block)
	if bad := a.cfg.Store.Err(); bad != nil {
		return nil, a.fail("judge a block", bad)
	}
	switch {
	case errors.Is(err, ledger.ErrRefused):
		a.cfg.Log.Warn("a proposed block is refused", "height", req.Height, "reason", err)
		return &abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_REJECT}, nil
	case err != nil:
		return nil, a.fail("judge a block", err)
	}
	a.judged = judgement{string(req.Hash), outcome}
	return &abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_ACCEPT}, nil
}

// FinalizeBlock computes the state after a decided block.
func (a *App) FinalizeBlock(_ context.Context, req *abci.RequestFinalizeBlock) (*abci.ResponseFinalizeBlock, error) {
	outcome := a.judged.outcome
	if outcome == nil || a.judged.hash != string(req.Hash) {
		block := blockOf(req.Height, req.ProposerAddress, req.Txs, req.DecidedLastCommit, req.Misbehavior)
		var err error
		outcome, err = a.machine.Apply(a.cfg.Store, block)
		if err = errors.Join(err, a.cfg.Store.Err()); err != nil {
			return nil, a.fail(fmt.Sprintf("apply block %d", req.Height), err)
		}
	}
	a.judged = judgement{}
	hash, err := a.cfg.Store.Stage(mesh.Height(req.Height), outcome.Changes)
	if err != nil {
		return nil, a.fail(fmt.Sprintf("compute the state of block %d", req.Height), err)
	}
	res := &abci.ResponseFinalizeBlock{AppHash: hash[:], ValidatorUpdates: updates(outcome.Validators)}
	for _, r := range outcome.Results {
		tx := &abci.ExecTxResult{Info: r.Kind}
		if r.Err != nil {
			tx.Code, tx.Log = CodeRefused, r.Err.Error()
		}
		res.TxResults = append(res.TxResults, tx)
	}
	for _, e := range outcome.Events {
		event := abci.Event{Type: e.Kind}
		for _, attr := range e.Attrs {
			event.Attributes = append(event.Attributes, abci.EventAttribute{Key: attr[0], Value: attr[1]})
		}
		res.Events = append(res.Events, event)
	}
	return res, nil
}

// upgradeGrace is how long a node that does not know an upgrade still hands its last
// block on. Nodes that missed it get it from those that go on.
const upgradeGrace = 3 * time.Second

// Commit makes the state durable.
func (a *App) Commit(ctx context.Context, _ *abci.RequestCommit) (*abci.ResponseCommit, error) {
	if err := a.commit(); err != nil {
		return nil, a.fail("write the state", err)
	}
	if err := a.Ready(); err != nil {
		// This block stands. Consensus waits here and its gossip goes on, so that the others
		// get this block too; then whoever listens stops the chain.
		select {
		case <-time.After(upgradeGrace):
		case <-ctx.Done():
		}
		_ = a.fail("the next block", err)
	}
	res := &abci.ResponseCommit{}
	if height := int64(a.cfg.Store.Height()); a.cfg.Keep > 0 && height > a.cfg.Keep {
		res.RetainHeight = height - a.cfg.Keep
	}
	return res, nil
}

// blockOf is the block of a proposal or decision.
func blockOf(height int64, proposer []byte, txs [][]byte, last abci.CommitInfo, bad []abci.Misbehavior) ledger.Block {
	block := ledger.Block{Height: mesh.Height(height), Txs: txs, Evidence: evidenceOf(bad)}
	copy(block.Proposer[:], proposer)
	for _, v := range last.Votes {
		block.Signed, block.Missed = sortVote(block.Signed, block.Missed, v.Validator.Address, v.BlockIdFlag)
	}
	return block
}

// sortVote notes who took part in the last block. A vote for nil takes part.
func sortVote(signed, missed []ledger.ConsensusAddress, addr []byte, flag cmtproto.BlockIDFlag) (s, m []ledger.ConsensusAddress) {
	var a ledger.ConsensusAddress
	copy(a[:], addr)
	if flag == cmtproto.BlockIDFlagAbsent {
		return signed, append(missed, a)
	}
	return append(signed, a), missed
}

func evidenceOf(bad []abci.Misbehavior) (out []ledger.Evidence) {
	for _, b := range bad {
		e := ledger.Evidence{Height: mesh.Height(b.Height)}
		copy(e.Validator[:], b.Validator.Address)
		out = append(out, e)
	}
	return out
}

func updates(all []ledger.ValidatorUpdate) (out []abci.ValidatorUpdate) {
	for _, v := range all {
		out = append(out, abci.Ed25519ValidatorUpdate(v.ConsensusKey, v.Power))
	}
	return out
}
