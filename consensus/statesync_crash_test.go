package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/light"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/p2p"
)

// joinRun is a process that joins the network of a validator by a snapshot, as a whole node
// does. It ends after a step, or when it follows the ledger.
func joinRun(home string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	n, err := openCrashNode(ctx, home, toyKey(9), p2p.RoleHost)
	if err != nil {
		return err
	}
	defer n.close()
	g, err := ledger.ParseGenesis(n.Ledger)
	if err != nil {
		return err
	}
	validator, err := n.net.Connect(ctx, os.Getenv(crashJoin))
	if err != nil {
		return err
	}
	root, err := FirstValidators(n.network(), g)
	if err != nil {
		return err
	}
	trusted, err := light.New(light.Config{Network: n.network(), Root: light.Root{Validators: root, Time: n.Created}, Period: time.Hour,
		Dialer: n.net, Peers: func() []mesh.Address { return []mesh.Address{validator} }, Fresh: 50 * time.Millisecond, Log: n.log})
	if err != nil {
		return err
	}
	app := NewApp(AppConfig{Network: n.network(), Store: n.store, Log: n.log})
	cfg := n.crashConfig(home, app, n.store)
	cfg.Net, cfg.Log = n.net, n.log
	cfg.StateSync = &StateSync{Trusted: trusted, Discovery: 100 * time.Millisecond}
	cfg.step = func(name string) {
		if name == os.Getenv(crashStep) {
			os.Exit(crashExit)
		}
	}
	if height := n.store.Height(); height > 0 {
		fmt.Fprintln(os.Stderr, "begins with a state of height", height)
	}
	chain, err := New(cfg)
	if err != nil {
		return err
	}
	if err := chain.Start(ctx); err != nil {
		return err
	}
	defer chain.Stop()
	for {
		s, err := chain.Status()
		if err != nil {
			return err
		}
		if s.Blocks > 2 {
			if s.Oldest <= syncEvery {
				return fmt.Errorf("its oldest block is %d: it fetched blocks from the start", s.Oldest)
			}
			return nil
		}
		select {
		case err := <-chain.Err():
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestCrashInStateSync ends a node that joins after each step from the last chunk of a
// snapshot on, until CometBFT has its state: it starts again, and follows the ledger.
func TestCrashInStateSync(t *testing.T) {
	t.Parallel()
	s := newSyncNet(t)
	b, err := os.ReadFile(filepath.Join(s.first.home, "network.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"restored", "committed", "bootstrapped"} {
		home := t.TempDir()
		if err := os.WriteFile(filepath.Join(home, "network.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		join := crashJoin + "=" + s.first.host.Addrs()[0]
		if code := crash(t, home, join, crashStep+"="+step); code != crashExit {
			t.Fatalf("%s: exit code %d: the step was not reached", step, code)
		}
		store, err := state.Open(state.Config{Dir: filepath.Join(home, "ledger"), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if store.Height() == 0 {
			t.Errorf("%s: the snapshot was not taken in before the end", step)
		}
		store.Close()
		if code := crash(t, home, join); code != 0 {
			t.Errorf("%s: the node that starts again ends with exit code %d", step, code)
		}
	}
}
