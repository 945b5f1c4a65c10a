package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/p2p"
)

// syncNet is a network of one validator with the ledger's own application and state, whose
// snapshots others fetch.
type syncNet struct {
	t     *testing.T
	net   *crashNetwork
	first *syncNode
	mute  atomic.Bool // the validator shows no snapshots
}

type syncNode struct {
	*Chain
	host  *p2p.Host
	store *state.Store
	home  string
}

const syncEvery = 20 // blocks between snapshots: some seconds

func newSyncNet(t *testing.T) *syncNet {
	home := t.TempDir()
	s := &syncNet{t: t, net: crashGenesis(t, home)}
	s.first = s.node(home, 0, func(a *App) abci.Application {
		return &liar{App: a, list: func(_ uint64, honest []*abci.Snapshot) []*abci.Snapshot {
			if s.mute.Load() {
				return nil
			}
			return honest
		}}
	}, func(cfg *Config) { cfg.Commit = 100 * time.Millisecond })
	desk := &Desk{Chain: func() (*Chain, error) { return s.first.Chain, nil }, Store: s.first.store, Penalise: s.first.host.Penalise}
	s.first.host.Handle("light", LightLimits, desk.ServeLight)
	s.reach(s.first, syncEvery+3)
	return s
}

// open makes a node whose host runs; its chain is not started.
func (s *syncNet) open(home string, key int, peers ...*syncNode) (*syncNode, *App) {
	s.t.Helper()
	log := slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("node", key)
	store, err := state.Open(state.Config{Dir: filepath.Join(home, "ledger"), Log: log, SnapshotEvery: syncEvery})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { store.Close() })
	host, err := p2p.New(p2p.Config{Network: s.net.network(), Genesis: s.net.hash(), Key: toyKey(key), Role: p2p.RoleValidator, Listen: []string{"127.0.0.1:0"}, Log: log})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := host.Start(context.Background()); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { host.Close() })
	for _, p := range peers {
		if _, err := host.Connect(context.Background(), p.host.Addrs()[0]); err != nil {
			s.t.Fatal(err)
		}
	}
	consensusKey, err := LoadKey(home, "")
	if err != nil {
		s.t.Fatal(err)
	}
	app := NewApp(AppConfig{Network: s.net.network(), Store: store, Log: log, Beacon: consensusKey.Beacon(s.net.network(), host.Address())})
	return &syncNode{host: host, store: store, home: home}, app
}

// node starts one; wrap puts an application over its own.
func (s *syncNet) node(home string, key int, wrap func(*App) abci.Application, tune func(*Config), peers ...*syncNode) *syncNode {
	s.t.Helper()
	node, app := s.open(home, key, peers...)
	s.start(node, app, wrap, tune)
	return node
}

func (s *syncNet) start(node *syncNode, app *App, wrap func(*App) abci.Application, tune func(*Config)) {
	s.t.Helper()
	cfg := s.net.crashConfig(node.home, app, node.store)
	if wrap != nil {
		cfg.App = wrap(app)
	}
	key, err := LoadKey(node.home, "")
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.Net, cfg.Signer, cfg.Log = node.host, key.Signer(), app.cfg.Log
	if tune != nil {
		tune(&cfg)
	}
	if node.Chain, err = New(cfg); err != nil {
		s.t.Fatal(err)
	}
	if err := node.Start(context.Background()); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { node.Stop() })
}

func (n *syncNode) height() mesh.Height {
	s, err := n.Status()
	if err != nil {
		return 0
	}
	return s.Height
}

func (s *syncNet) reach(n *syncNode, h mesh.Height) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("height %d", h), func() bool { return n.height() >= h })
}

// fetching configures a node that joins.
func (s *syncNet) fetching(cfg *Config) {
	cfg.StateSync = &StateSync{Trusted: trustedChain{s.first.Chain}, Discovery: 300 * time.Millisecond, chunkPatience: 300 * time.Millisecond}
}

// joined checks that a node follows the ledger from a snapshot on.
func (s *syncNet) joined(n *syncNode) {
	s.t.Helper()
	var now Status
	eventually(s.t, "the node has blocks after the snapshot", func() bool {
		now, _ = n.Status()
		return now.Oldest > 0
	})
	s.reach(n, s.first.height()+2)
	if now.Oldest <= syncEvery {
		s.t.Errorf("its oldest block is %d: it fetched blocks from the start", now.Oldest)
	}
	select {
	case err := <-n.Err():
		s.t.Error(err)
	default:
	}
}

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
