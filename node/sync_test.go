package node

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node/api"
)

// syncNet is a network of one validator in this process.
type syncNet struct {
	t        *testing.T
	genesis  string
	every    int64         // blocks between snapshots
	patience time.Duration // with one way of joining
	trust    string        // HEIGHT:HASH
}

// run starts a node and returns how to stop it. blockMS is how fast it makes blocks.
func (s *syncNet) run(home string, blockMS int64, bootstrap ...string) (n *Node, ready api.Ready, stop func()) {
	s.t.Helper()
	log := slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	n, err := New(Config{Home: home, Network: s.genesis, Listen: "127.0.0.1:0", API: "127.0.0.1:0", Bootstrap: bootstrap,
		Threads: 1, NoMDNS: true, NoPortMap: true, snapshotEvery: s.every, syncPatience: s.patience, Trust: s.trust}, log)
	if err != nil {
		s.t.Fatal(err)
	}
	n.genesis.BlockMS = blockMS
	ctx, cancel := context.WithCancel(context.Background())
	begun, ended := make(chan api.Ready, 1), make(chan error, 1)
	go func() { ended <- n.Run(ctx, func(r api.Ready) { begun <- r }) }()
	stop = func() {
		if cancel(); ended != nil {
			if err := <-ended; err != nil {
				s.t.Error(err)
			}
			ended = nil
		}
	}
	s.t.Cleanup(stop)
	select {
	case ready = <-begun:
	case err := <-ended:
		ended = nil
		s.t.Fatalf("not ready: %v", err)
	}
	return n, ready, stop
}

// reach waits until a node has a block.
func (s *syncNet) reach(n *Node, h mesh.Height) {
	s.t.Helper()
	last, at := mesh.Height(0), time.Now()
	for {
		now, err := n.LedgerStatus(s.t.Context())
		switch {
		case err == nil && now.Height >= h && !now.CatchingUp:
			return
		case err == nil && now.Error != "" && n.chain.failed != nil:
			s.t.Fatal(now.Error)
		case now.Height > last:
			last, at = now.Height, time.Now()
		case time.Since(at) > 2*time.Minute:
			s.t.Fatalf("no block after %d for two minutes, want %d: %+v, %v", last, h, now, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestJoinBySnapshot: a new node joins a chain that is long by fetching a snapshot and the
// few blocks since, and not all blocks. MESH_LONG makes the chain 10,000 blocks long.
func TestJoinBySnapshot(t *testing.T) {
	blocks := mesh.Height(100)
	s, home := newSyncNet(t, 24*time.Hour)
	if os.Getenv("MESH_LONG") != "" {
		blocks, s.every = 10_000, 0
	}

	fast, _, stop := s.run(home, 5)
	begin := time.Now()
	s.reach(fast, blocks)
	t.Logf("%d blocks in %s", blocks, time.Since(begin).Round(time.Millisecond))
	stop()
	first, ready, _ := s.run(home, 250)
	s.reach(first, blocks+1)

	begin = time.Now()
	joined, _, stop := s.run(t.TempDir(), 250, ready.Addrs...)
	head, err := first.LedgerStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.reach(joined, head.Height)
	took := time.Since(begin)
	full, err := joined.chain.running()
	if err != nil {
		t.Fatal(err)
	}
	now, err := full.Status()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("joined at height %d in %s; its oldest block is %d", head.Height, took.Round(time.Millisecond), now.Oldest)
	if now.Oldest <= 1 {
		t.Error("all blocks were fetched")
	}
	if os.Getenv("MESH_LONG") != "" && took > 30*time.Second {
		t.Errorf("it took %s to join", took)
	}
	mine, err := joined.Epochs(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range mine {
		if theirs, err := first.Epoch(t.Context(), e.Epoch); err != nil || e.Closed && theirs.RewardsRoot != e.RewardsRoot {
			t.Errorf("epoch %d: %+v, and %+v at the first node, %v", e.Epoch, e, theirs, err)
		}
	}
	stop()
}
