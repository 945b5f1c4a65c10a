package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh"
)

// TestFourValidators runs the ledger over the mesh's host: blocks come, all nodes have
// the same ones, and what Submit returns is on every node.
func TestFourValidators(t *testing.T) {
	n := newToyNet(t, 4, 1, nil)
	n.start()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n.reach(2, n.nodes...)
	follower := n.nodes[4]
	eventually(t, "the follower has caught up", func() bool {
		s, err := follower.Status()
		return err == nil && !s.CatchingUp
	})
	tx := []byte("tx of the follower")
	res, err := follower.Submit(ctx, tx)
	if err != nil {
		t.Fatal(err)
	}
	if res.Hash != mesh.HashOf(tx) || res.Height == 0 || string(res.Data) != "tx o" {
		t.Errorf("result %+v", res)
	}
	n.reach(max(5, res.Height+1), n.nodes...)
	n.agree(res.Height, n.nodes...)
	n.agree(res.Height+1, n.nodes...)
	b, err := n.nodes[0].Block(res.Height)
	if err != nil || len(b.Txs) <= res.Index || string(b.Txs[res.Index]) != string(tx) {
		t.Errorf("block %d of node 0 has not the transaction at %d (%v)", res.Height, res.Index, err)
	}
	for i, node := range n.nodes {
		s, err := node.Status()
		if err != nil || s.Validator != (i < 4) || s.Peers != 4 || s.CatchingUp || s.Problem != "" || s.Total != 40 {
			t.Errorf("status of node %d: %+v, %v", i, s, err)
		}
	}

	if _, err := follower.Submit(ctx, tx); !errors.Is(err, ErrDuplicate) {
		t.Errorf("submitted twice: %v", err)
	}
	var refused *Refused
	if _, err := follower.Submit(ctx, []byte("bad one")); !errors.As(err, &refused) || refused.Height != 0 || refused.Log != "bad transactions are not taken" {
		t.Errorf("bad transaction: %v", err)
	}
	if res, err := follower.Submit(ctx, []byte("fail one")); !errors.As(err, &refused) || refused.Height == 0 || refused.Height != res.Height {
		t.Errorf("failing transaction: %+v, %v", res, err)
	}
	if _, err := follower.Submit(ctx, make([]byte, 2<<20)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("2 MiB transaction: %v", err)
	}
	soon, cancel2 := context.WithTimeout(ctx, time.Microsecond)
	defer cancel2()
	if _, err := follower.Submit(soon, []byte("in no time")); !errors.Is(err, ErrNotInTime) {
		t.Errorf("no time to wait: %v", err)
	}

	for h := range mesh.Height(4) {
		lb, err := follower.LightBlock(ctx, h+1)
		if err != nil {
			t.Fatal(err)
		}
		if err := lb.ValidateBasic(n.genesis.ChainID); err != nil {
			t.Error(err)
		}
		if err := lb.ValidatorSet.VerifyCommitLight(n.genesis.ChainID, lb.Commit.BlockID, lb.Height, lb.Commit); err != nil {
			t.Error(err)
		}
	}
	if _, err := follower.Block(1000); !errors.Is(err, ErrNoBlock) {
		t.Errorf("block 1000: %v", err)
	}
}

// TestRestart stops one of four under way: the others go on, and it comes back, catches
// up and votes.
func TestRestart(t *testing.T) {
	n := newToyNet(t, 4, 0, nil)
	n.start()
	n.reach(3, n.nodes...)
	last := n.nodes[3]
	if err := last.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := last.Submit(t.Context(), []byte("x")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("submit to a stopped node: %v", err)
	}
	at := n.nodes[0].height()
	n.reach(at+3, n.nodes[:3]...)
	n.startChain(last)
	n.reach(at+4, last)
	signed := func() bool {
		h := n.nodes[0].height()
		lb, err := n.nodes[0].Commit(h - 1)
		if err != nil {
			return false
		}
		for _, s := range lb.Signatures {
			if string(s.ValidatorAddress) == string(last.self) {
				return true
			}
		}
		return false
	}
	eventually(t, "the node votes again", signed)
	h := n.nodes[0].height()
	n.reach(h, n.nodes...)
	n.agree(h, n.nodes...)
}

func TestOneValidatorAlone(t *testing.T) {
	reg := prometheus.NewRegistry()
	n := newToyNet(t, 1, 0, func(_ int, cfg *Config) { cfg.Metrics = reg })
	n.start()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 3 {
		if _, err := n.nodes[0].Submit(ctx, fmt.Appendf(nil, "tx %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	figures := make(map[string]float64)
	for _, f := range families {
		figures[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
	}
	if figures["mesh_ledger_height"] < 3 || figures["mesh_ledger_validator"] != 1 || figures["mesh_ledger_unfit"] != 0 {
		t.Errorf("metrics: %v", figures)
	}
	// A second process on the same folder is refused.
	cfg := n.config(n.nodes[0])
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err == nil {
		t.Error("two chains run in one folder")
		c.Stop()
	}
}

// TestStopInTheMiddle stops a chain while it waits for its genesis and while it runs, from
// several sides, with readers about.
func TestStopInTheMiddle(t *testing.T) {
	n := newToyNet(t, 1, 0, func(_ int, cfg *Config) { cfg.Commit = 10 * time.Millisecond })
	n.genesis.GenesisTime = time.Now().Add(time.Hour)
	n.startHost(n.nodes[0])
	early, err := New(n.config(n.nodes[0]))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := early.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("an hour before genesis: %v", err)
	}
	n.genesis.GenesisTime = time.Now().Add(-time.Hour)
	n.startChain(n.nodes[0])
	n.reach(2, n.nodes[0])
	node := n.nodes[0]
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for {
				if _, err := node.Status(); err != nil {
					return
				}
				if _, err := node.LightBlock(t.Context(), 1); err != nil && !errors.Is(err, ErrNotRunning) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			if _, err := node.Submit(t.Context(), fmt.Appendf(nil, "transaction %d", i)); err != nil && !errors.Is(err, ErrNotRunning) {
				t.Error(err)
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			if err := node.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := node.Start(t.Context()); err == nil {
		t.Error("a chain that was stopped starts again")
	}
}
