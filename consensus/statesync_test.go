package consensus

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/light"
	"github.com/gonka-mesh/mesh/consensus/state"
)

// trustedChain is a node that another one trusts.
type trustedChain struct{ *Chain }

func (c trustedChain) Head(context.Context) (light.Head, error) {
	s, err := c.Status()
	return light.Head{Height: s.Height}, err
}

// TestStateSync: a new node takes a snapshot from its peers, checks it against what it
// trusts, and goes on with blocks; and it starts again from there.
func TestStateSync(t *testing.T) {
	n := newToyNet(t, 2, 0, nil)
	for _, node := range n.nodes {
		node.app.snapEvery = 5
	}
	n.start()
	n.reach(12, n.nodes...)
	late := n.addNode(5)
	n.tune = func(i int, cfg *Config) {
		cfg.StateSync = &StateSync{Trusted: trustedChain{n.nodes[0].Chain}, Discovery: 300 * time.Millisecond}
	}
	n.startHost(late)
	n.startChain(late)
	var s Status
	eventually(t, "the node has blocks after the snapshot", func() bool {
		s, _ = late.Status()
		return s.Oldest > 0
	})
	if s.Oldest < 6 {
		t.Errorf("oldest block %d: it fetched blocks from the start", s.Oldest)
	}
	n.reach(s.Oldest, n.nodes...)
	n.agree(s.Oldest, n.nodes...)
	late.Stop()
	n.startChain(late)
	n.reach(s.Oldest+3, late)
}

// TestNoSnapshot: a network without snapshots is reported.
func TestNoSnapshot(t *testing.T) {
	n := newToyNet(t, 1, 0, nil)
	n.start()
	late := n.addNode(5)
	n.tune = func(i int, cfg *Config) {
		cfg.Log = nil
		cfg.StateSync = &StateSync{Trusted: trustedChain{n.nodes[0].Chain}, Discovery: 50 * time.Millisecond, Patience: 100 * time.Millisecond}
	}
	n.startHost(late)
	n.startChain(late)
	select {
	case err := <-late.Err():
		if !errors.Is(err, ErrNoSnapshot) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("waits for ever")
	}
	late.Stop()
	n.tune = nil
	n.startChain(late)
	n.reach(3, late)
}

// liar is the application of a peer that lies about snapshots.
type liar struct {
	*App
	list  func(head uint64, honest []*abci.Snapshot) []*abci.Snapshot
	chunk func(honest []byte) []byte
	shown atomic.Int32 // how often it told of its snapshots
}

func (l *liar) ListSnapshots(ctx context.Context, r *abci.RequestListSnapshots) (*abci.ResponseListSnapshots, error) {
	l.shown.Add(1)
	res, err := l.App.ListSnapshots(ctx, r)
	if err == nil && l.list != nil {
		res.Snapshots = l.list(uint64(l.cfg.Store.Height()), res.Snapshots)
	}
	return res, err
}

func (l *liar) LoadSnapshotChunk(ctx context.Context, r *abci.RequestLoadSnapshotChunk) (*abci.ResponseLoadSnapshotChunk, error) {
	res, err := l.App.LoadSnapshotChunk(ctx, r)
	if err == nil && l.chunk != nil {
		res.Chunk = l.chunk(res.Chunk)
	}
	return res, err
}

// forge makes a snapshot in order whose chunks are these.
func forge(height uint64, chunks ...[]byte) *abci.Snapshot {
	meta := make([]byte, 8)
	for i := range 8 {
		meta[i] = byte(height >> (56 - 8*i))
	}
	for _, c := range chunks {
		h := mesh.HashOf(c)
		meta = append(meta, h[:]...)
	}
	h := mesh.HashOf(meta)
	return &abci.Snapshot{Height: height, Format: state.SnapshotFormat, Chunks: uint32(len(chunks)), Hash: h[:], Metadata: meta}
}

// TestHostileSnapshots: whatever one peer says about snapshots, a node that joins gets the
// ledger from the other one, and a peer that is proven to have lied is cut off.
func TestHostileSnapshots(t *testing.T) {
	t.Parallel()
	empty := []byte{state.SnapshotFormat}
	for name, c := range map[string]struct {
		list  func(head uint64, honest []*abci.Snapshot) []*abci.Snapshot
		chunk func(honest []byte) []byte
		cut   bool
	}{
		"fewer chunks than the metadata": {cut: true, list: func(head uint64, _ []*abci.Snapshot) []*abci.Snapshot {
			s := forge(head-3, empty, empty)
			s.Chunks = 1
			return []*abci.Snapshot{s}
		}, chunk: func([]byte) []byte { return empty }},
		"one chunk more": {cut: true, list: func(_ uint64, honest []*abci.Snapshot) []*abci.Snapshot {
			for _, s := range honest {
				s.Chunks++
			}
			return honest
		}},
		"false, in order": {cut: true, list: func(head uint64, _ []*abci.Snapshot) []*abci.Snapshot {
			return []*abci.Snapshot{forge(head-3, empty)}
		}, chunk: func([]byte) []byte { return empty }},
		"heights that are not there": {list: func(uint64, []*abci.Snapshot) (out []*abci.Snapshot) {
			for i := range uint64(10) {
				out = append(out, forge(1<<40-i, empty))
			}
			return out
		}},
		"far back": {list: func(uint64, []*abci.Snapshot) []*abci.Snapshot {
			return []*abci.Snapshot{forge(1, empty), forge(2, empty)}
		},
			chunk: func([]byte) []byte { return nil }},
		"false chunks":         {chunk: func(b []byte) []byte { return append(b, 0) }},
		"no chunks":            {chunk: func([]byte) []byte { return nil }},
		"chunks after an hour": {chunk: func(b []byte) []byte { time.Sleep(2 * time.Second); return b }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSyncNet(t)
			var lies *liar
			bad := s.node(t.TempDir(), 1, func(a *App) abci.Application {
				lies = &liar{App: a, list: c.list, chunk: c.chunk}
				return lies
			}, nil, s.first)
			s.reach(bad, s.first.height()+1)
			// At first only the liar has something to say.
			s.mute.Store(true)
			late := s.node(t.TempDir(), 2, nil, s.fetching, bad, s.first)
			if c.cut {
				eventually(t, "the liar is cut off", func() bool { return !late.host.Connected(bad.host.Address()) })
			} else {
				// Who is only slow may be good enough on a busy machine.
				eventually(t, "the liar was heard", func() bool { return lies.shown.Load() > 3 || late.height() > 0 })
			}
			s.mute.Store(false)
			s.joined(late)
		})
	}
}

// TestNobodyElse: where no peer has a snapshot, a node that joins ends with an error that has
// the cause, and follows when it is started again and one is there.
func TestNobodyElse(t *testing.T) {
	t.Parallel()
	s := newSyncNet(t)
	s.mute.Store(true)
	late, app := s.open(t.TempDir(), 2, s.first)
	s.start(late, app, nil, func(cfg *Config) {
		s.fetching(cfg)
		cfg.StateSync.Patience = time.Second
	})
	select {
	case err := <-late.Err():
		if !errors.Is(err, ErrNoSnapshot) || !strings.Contains(err.Error(), "none was offered") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("waits for ever")
	}
	if now, err := late.Status(); err != nil || !strings.Contains(now.Doing, "asking peers for a snapshot") || !now.CatchingUp {
		t.Errorf("status %+v, %v", now, err)
	}
	late.Stop()
	s.mute.Store(false)
	s.start(late, app, nil, s.fetching)
	s.joined(late)
}

// TestSnapshotTooLarge: a user's bound is kept, and is what the error says.
func TestSnapshotTooLarge(t *testing.T) {
	t.Parallel()
	s := newSyncNet(t)
	s.mute.Store(true)
	bad := s.node(t.TempDir(), 1, func(a *App) abci.Application {
		return &liar{App: a, list: func(head uint64, _ []*abci.Snapshot) []*abci.Snapshot {
			return []*abci.Snapshot{forge(head-3, []byte{1}, []byte{1})}
		}}
	}, nil, s.first)
	s.reach(bad, s.first.height()+1)
	late := s.node(t.TempDir(), 2, nil, func(cfg *Config) {
		s.fetching(cfg)
		cfg.StateSync.MaxBytes, cfg.StateSync.Patience = state.MaxChunk, 3*time.Second
	}, bad)
	select {
	case err := <-late.Err():
		if !errors.Is(err, ErrNoSnapshot) || !strings.Contains(err.Error(), "8 MiB") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("waits for ever")
	}
}

// TestParamsOfGenesis: consensus parameters come from the genesis document; a header that
// has others ends the attempt.
func TestParamsOfGenesis(t *testing.T) {
	t.Parallel()
	s := newSyncNet(t)
	late := s.node(t.TempDir(), 2, nil, s.fetching, s.first)
	s.joined(late)
	now, err := late.parts.states.Load()
	if err != nil || !reflect.DeepEqual(now.ConsensusParams, *late.cfg.Genesis.ConsensusParams) {
		t.Errorf("parameters %+v, want %+v (%v)", now.ConsensusParams, late.cfg.Genesis.ConsensusParams, err)
	}
	other := s.node(t.TempDir(), 3, nil, func(cfg *Config) {
		s.fetching(cfg)
		g := *cfg.Genesis
		p := *g.ConsensusParams
		p.Block.MaxBytes--
		g.ConsensusParams = &p
		cfg.Genesis, cfg.StateSync.Patience = &g, 3*time.Second
	}, s.first)
	select {
	case err := <-other.Err():
		if !errors.Is(err, ErrNoSnapshot) || !strings.Contains(err.Error(), "other consensus parameters than the genesis") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("waits for ever")
	}
}
