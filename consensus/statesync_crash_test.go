package consensus

import (
	"context"
	"encoding/json"
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
	b, err := os.ReadFile(filepath.Join(home, "network.json"))
	if err != nil {
		return err
	}
	n := new(crashNetwork)
	if err := json.Unmarshal(b, n); err != nil {
		return err
	}
	g, err := ledger.ParseGenesis(n.Ledger)
	if err != nil {
		return err
	}
	quiet := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	store, err := state.Open(state.Config{Dir: filepath.Join(home, "ledger"), Log: quiet})
	if err != nil {
		return err
	}
	defer store.Close()
	net, err := p2p.New(p2p.Config{Network: n.network(), Genesis: n.hash(), Key: toyKey(9), Role: p2p.RoleHost, Listen: []string{"127.0.0.1:0"}, Log: quiet})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := net.Start(ctx); err != nil {
		return err
	}
	defer net.Close()
	validator, err := net.Connect(ctx, os.Getenv(crashJoin))
	if err != nil {
		return err
	}
	root, err := FirstValidators(n.network(), g)
	if err != nil {
		return err
	}
	trusted, err := light.New(light.Config{Network: n.network(), Root: light.Root{Validators: root, Time: n.Created}, Period: time.Hour,
		Dialer: net, Peers: func() []mesh.Address { return []mesh.Address{validator} }, Fresh: 50 * time.Millisecond, Log: quiet})
	if err != nil {
		return err
	}
	app := NewApp(AppConfig{Network: n.network(), Store: store, Log: quiet})
	cfg := n.crashConfig(home, app, store)
	cfg.Net, cfg.Log = net, quiet
	cfg.StateSync = &StateSync{Trusted: trusted, Discovery: 100 * time.Millisecond}
	cfg.step = func(name string) {
		if name == os.Getenv(crashStep) {
			os.Exit(crashExit)
		}
	}
	if height := store.Height(); height > 0 {
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
