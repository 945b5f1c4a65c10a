package consensus

import (
	"context"
	"errors"
	"fmt"

	abci "github.com/cometbft/cometbft/abci/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/state"
)

// The application's side of state sync: the store makes and takes the snapshots. A
// snapshot that is offered names nothing that is believed: chunks are checked by its
// metadata, and what they make by the app hash that the light client verified.

// ListSnapshots tells which snapshots this node has.
func (a *App) ListSnapshots(context.Context, *abci.RequestListSnapshots) (*abci.ResponseListSnapshots, error) {
	all, err := a.cfg.Store.Snapshots()
	if err != nil {
		return nil, err
	}
	res := &abci.ResponseListSnapshots{}
	for _, s := range all {
		res.Snapshots = append(res.Snapshots, &abci.Snapshot{
			Height: uint64(s.Height), Format: s.Format, Chunks: s.Chunks, Hash: s.Hash[:], Metadata: s.Metadata})
	}
	return res, nil
}

// LoadSnapshotChunk gives a chunk to a node that joins; nothing where it is not kept any more.
func (a *App) LoadSnapshotChunk(_ context.Context, req *abci.RequestLoadSnapshotChunk) (*abci.ResponseLoadSnapshotChunk, error) {
	chunk, err := a.cfg.Store.LoadChunk(mesh.Height(req.Height), req.Format, req.Chunk)
	if err != nil {
		a.cfg.Log.Debug("a peer asks for a snapshot that is not here", "err", err)
		return &abci.ResponseLoadSnapshotChunk{}, nil
	}
	return &abci.ResponseLoadSnapshotChunk{Chunk: chunk}, nil
}

// OfferSnapshot begins to take a snapshot in.
func (a *App) OfferSnapshot(_ context.Context, req *abci.RequestOfferSnapshot) (*abci.ResponseOfferSnapshot, error) {
	answer := func(r abci.ResponseOfferSnapshot_Result) (*abci.ResponseOfferSnapshot, error) {
		return &abci.ResponseOfferSnapshot{Result: r}, nil
	}
	s := req.Snapshot
	switch {
	case s == nil || len(req.AppHash) != len(mesh.Hash{}):
		return answer(abci.ResponseOfferSnapshot_REJECT)
	case s.Format != state.SnapshotFormat:
		return answer(abci.ResponseOfferSnapshot_REJECT_FORMAT)
	}
	hash, err := mesh.HashFromBytes(s.Hash)
	if err == nil {
		err = state.Snapshot{Height: mesh.Height(s.Height), Format: s.Format, Chunks: s.Chunks, Hash: hash, Metadata: s.Metadata}.Check()
	}
	if err != nil {
		a.cfg.Log.Warn("a snapshot that was offered contradicts itself", "height", s.Height, "err", err)
		return answer(abci.ResponseOfferSnapshot_REJECT_SENDER)
	}
	restore, err := a.cfg.Store.Restore(mesh.Height(s.Height), s.Metadata, mesh.Hash(req.AppHash))
	if bad := a.cfg.Store.Err(); bad != nil {
		return nil, a.fail("take a snapshot in", bad)
	}
	if err != nil {
		a.cfg.Log.Warn("a snapshot that was offered cannot be taken", "height", s.Height, "err", err)
		return answer(abci.ResponseOfferSnapshot_REJECT)
	}
	a.restore = restore
	return answer(abci.ResponseOfferSnapshot_ACCEPT)
}

// ApplySnapshotChunk takes the next chunk of it in.
func (a *App) ApplySnapshotChunk(_ context.Context, req *abci.RequestApplySnapshotChunk) (*abci.ResponseApplySnapshotChunk, error) {
	if a.restore == nil { // nothing is lost by that, so consensus goes on
		a.cfg.Log.Warn("a chunk came and no snapshot is taken in", "chunk", req.Index)
		return &abci.ResponseApplySnapshotChunk{Result: abci.ResponseApplySnapshotChunk_REJECT_SNAPSHOT}, nil
	}
	a.mu.Lock()
	a.pool = nil // it is of the state before
	done, err := a.restore.Apply(req.Index, req.Chunk)
	a.mu.Unlock()
	if bad := a.cfg.Store.Err(); bad != nil {
		return nil, a.fail(fmt.Sprintf("take chunk %d of a snapshot in", req.Index), bad)
	}
	res := &abci.ResponseApplySnapshotChunk{Result: abci.ResponseApplySnapshotChunk_ACCEPT}
	switch {
	case errors.Is(err, state.ErrChunk):
		res.Result, res.RefetchChunks = abci.ResponseApplySnapshotChunk_RETRY, []uint32{req.Index}
		if req.Sender != "" {
			res.RejectSenders = []string{req.Sender}
		}
	case err != nil:
		a.cfg.Log.Warn("a snapshot is not what the ledger has", "err", err)
		res.Result = abci.ResponseApplySnapshotChunk_REJECT_SNAPSHOT
	}
	if done || res.Result == abci.ResponseApplySnapshotChunk_REJECT_SNAPSHOT {
		a.restore = nil
	}
	return res, nil
}

// Reset drops a state that consensus knows nothing of: a snapshot was taken in, and the
// process ended before consensus took it over.
func (a *App) Reset() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pool, a.stale, a.restore, a.judged = nil, false, nil, judgement{}
	if err := a.cfg.Store.Reset(); err != nil {
		return a.fail("drop a snapshot that was not taken over", err)
	}
	return nil
}
