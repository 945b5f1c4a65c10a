package consensus

import (
	"bytes"
	"fmt"
	"log/slog"
	"testing"

	abci "github.com/cometbft/cometbft/abci/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/state"
)

// snapshotApp is an application over a state in memory.
func snapshotApp(t *testing.T) *App {
	t.Helper()
	store, err := state.Open(state.Config{Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return NewApp(AppConfig{Network: "test0", Store: store, Log: slog.New(slog.DiscardHandler)})
}

// TestSnapshots hands a snapshot from one application to another, with the lies that a
// peer may tell on the way.
func TestSnapshots(t *testing.T) {
	from, ctx := snapshotApp(t), t.Context()
	var changes []ledger.Change
	for i := range 100 {
		changes = append(changes, ledger.Change{Key: fmt.Appendf(nil, "A%03d", i), Value: []byte("value")})
	}
	hash, err := from.cfg.Store.Stage(1, changes)
	if err != nil {
		t.Fatal(err)
	}
	if err := from.cfg.Store.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := from.cfg.Store.TakeSnapshot(); err != nil {
		t.Fatal(err)
	}
	list, err := from.ListSnapshots(ctx, &abci.RequestListSnapshots{})
	if err != nil || len(list.Snapshots) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	good := list.Snapshots[0]
	if c, err := from.LoadSnapshotChunk(ctx, &abci.RequestLoadSnapshotChunk{Height: 7, Format: good.Format}); err != nil || len(c.Chunk) != 0 {
		t.Errorf("a chunk of a snapshot that is not there: %v, %v", c, err)
	}
	chunk, err := from.LoadSnapshotChunk(ctx, &abci.RequestLoadSnapshotChunk{Height: good.Height, Format: good.Format})
	if err != nil || len(chunk.Chunk) == 0 {
		t.Fatalf("%v, %v", chunk, err)
	}

	to := snapshotApp(t)
	if res, err := to.ApplySnapshotChunk(ctx, &abci.RequestApplySnapshotChunk{Chunk: chunk.Chunk}); err != nil || res.Result != abci.ResponseApplySnapshotChunk_REJECT_SNAPSHOT {
		t.Errorf("a chunk that nobody asked for: %v, %v", res, err)
	}
	offer := func(hash []byte, change func(s *abci.Snapshot)) abci.ResponseOfferSnapshot_Result {
		t.Helper()
		s := *good
		if change != nil {
			change(&s)
		}
		res, err := to.OfferSnapshot(ctx, &abci.RequestOfferSnapshot{Snapshot: &s, AppHash: hash})
		if err != nil {
			t.Fatal(err)
		}
		return res.Result
	}
	resum := func(s *abci.Snapshot) {
		h := mesh.HashOf(s.Metadata)
		s.Hash = h[:]
	}
	for name, c := range map[string]struct {
		change func(s *abci.Snapshot)
		want   abci.ResponseOfferSnapshot_Result
	}{
		"unknown format":   {func(s *abci.Snapshot) { s.Format = 9 }, abci.ResponseOfferSnapshot_REJECT_FORMAT},
		"another hash":     {func(s *abci.Snapshot) { s.Hash = make([]byte, 32) }, abci.ResponseOfferSnapshot_REJECT_SENDER},
		"half a hash":      {func(s *abci.Snapshot) { s.Hash = s.Hash[:16] }, abci.ResponseOfferSnapshot_REJECT_SENDER},
		"no metadata":      {func(s *abci.Snapshot) { s.Metadata = nil; resum(s) }, abci.ResponseOfferSnapshot_REJECT_SENDER},
		"half the hashes":  {func(s *abci.Snapshot) { s.Metadata = s.Metadata[:20]; resum(s) }, abci.ResponseOfferSnapshot_REJECT_SENDER},
		"of other heights": {func(s *abci.Snapshot) { s.Height++ }, abci.ResponseOfferSnapshot_REJECT_SENDER},
		"a chunk more":     {func(s *abci.Snapshot) { s.Chunks++ }, abci.ResponseOfferSnapshot_REJECT_SENDER},
		"a chunk less":     {func(s *abci.Snapshot) { s.Metadata = append(s.Metadata, make([]byte, 32)...); resum(s) }, abci.ResponseOfferSnapshot_REJECT_SENDER},
	} {
		if got := offer(hash[:], c.change); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	apply := func(b []byte) *abci.ResponseApplySnapshotChunk {
		t.Helper()
		res, err := to.ApplySnapshotChunk(ctx, &abci.RequestApplySnapshotChunk{Chunk: b, Sender: "peer"})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	// A snapshot that is whole, and not the ledger's.
	if got := offer(make([]byte, 32), nil); got != abci.ResponseOfferSnapshot_ACCEPT {
		t.Fatal(got)
	}
	if res := apply(chunk.Chunk); res.Result != abci.ResponseApplySnapshotChunk_REJECT_SNAPSHOT || to.cfg.Store.Height() != 0 {
		t.Errorf("a snapshot of another ledger: %+v, height %d", res, to.cfg.Store.Height())
	}
	if got := offer(hash[:], nil); got != abci.ResponseOfferSnapshot_ACCEPT {
		t.Fatal(got)
	}
	if res := apply(bytes.Repeat([]byte{1}, 50)); res.Result != abci.ResponseApplySnapshotChunk_RETRY || len(res.RejectSenders) != 1 || len(res.RefetchChunks) != 1 {
		t.Errorf("a garbled chunk: %+v", res)
	}
	if res := apply(chunk.Chunk); res.Result != abci.ResponseApplySnapshotChunk_ACCEPT {
		t.Errorf("the right chunk: %+v", res)
	}
	info, err := to.Info(ctx, &abci.RequestInfo{})
	if err != nil || info.LastBlockHeight != 1 || !bytes.Equal(info.LastBlockAppHash, hash[:]) {
		t.Errorf("after the last chunk: %+v, %v", info, err)
	}
	// Consensus never took it over: it is dropped, and taken again.
	if err := to.Reset(); err != nil {
		t.Fatal(err)
	}
	if info, err := to.Info(ctx, &abci.RequestInfo{}); err != nil || info.LastBlockHeight != 0 || to.cfg.Store.Get([]byte("A001")) != nil {
		t.Errorf("after a reset: %+v, %v", info, err)
	}
	if got := offer(hash[:], nil); got != abci.ResponseOfferSnapshot_ACCEPT {
		t.Fatal(got)
	}
	if res := apply(chunk.Chunk); res.Result != abci.ResponseApplySnapshotChunk_ACCEPT || to.cfg.Store.AppHash() != hash {
		t.Errorf("again: %+v, %s", res, to.cfg.Store.AppHash())
	}
}
