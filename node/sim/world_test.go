// Package sim is the mesh in virtual time: whole nodes of package node, with QUIC,
// TLS, DHT, gossip, hosts and routers, on the simulated links of p2psim. Minutes
// pass in seconds, and hosts hang, vanish and come back at the token that a test
// names. It has tests only; `make sim` runs the large ones.
package sim

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/host"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

const (
	latency = 20 * time.Millisecond // one way
	rtt     = 2 * latency
	// slack is what packets take besides the latency: their time on the line and
	// acknowledgements.
	slack = 10 * time.Millisecond

	modelName = "parrot"
)

var (
	genesis = mesh.HashOf([]byte("simulated"))
	network = mesh.NewNetworkID("sim", genesis)
	prices  = host.Prices{Prompt: 2, Output: 3}
)

func keyOf(i int) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	binary.BigEndian.PutUint32(seed, uint32(i))
	return ed25519.NewKeyFromSeed(seed)
}

func addressOf(i int) mesh.Address { return mesh.AddressOf(keyOf(i).Public().(ed25519.PublicKey)) }

// seedOf is node i as a bootstrap address.
func seedOf(i int) string { return p2psim.Multiaddr(i, addressOf(i)) }

// world is a simulated network and the nodes on it. One goroutine of the test owns
// it, but for what mu guards.
type world struct {
	t       *testing.T
	net     *p2psim.Net
	members []*member
	closing sync.WaitGroup // of killed nodes

	mu     sync.Mutex
	faults []fault // still to come; guarded by mu
}

// member is one node.
type member struct {
	*node.Core
	w      *world
	index  int
	engine *engine // nil: it serves nothing
	kept   *keeper

	gone  bool // killed; owned by the test
	stuck bool // a fault happened to it; guarded by w.mu
}

// fault happens to the host that is about to say the token at a position, before
// anything else of it arrives.
type fault struct {
	at int
	do func(ctx context.Context, m *member)
}

// simulate runs f in a world of its own, in virtual time.
func simulate(t *testing.T, cfg p2psim.Config, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: p2psim.New(cfg)}
		defer w.end()
		f(t, w)
	})
}

// small is a network of eight hosts on equal links, and a light node that has joined
// it by its one bootstrap address.
func small(t *testing.T, mk func(i int) *engine, change func(*node.CoreConfig), f func(t *testing.T, w *world, asker *member)) {
	t.Helper()
	simulate(t, p2psim.Config{Seed: 1, Latency: latency, Bandwidth: 50_000_000}, func(t *testing.T, w *world) {
		for i := range 8 {
			w.start(i, p2p.RoleHost, mk(i), nil)
		}
		asker := w.start(8, p2p.RoleLight, nil, change)
		time.Sleep(3 * time.Second)
		f(t, w, asker)
	})
}

// start brings up node i, which knows node 0 unless change says otherwise.
func (w *world) start(i int, role string, e *engine, change func(*node.CoreConfig)) *member {
	w.t.Helper()
	m := &member{w: w, index: i, engine: e, kept: new(keeper)}
	cfg := node.CoreConfig{Receipts: m.kept, P2P: p2p.Config{
		Network: network, Genesis: genesis, Key: keyOf(i), Role: role,
		Listen: []string{p2psim.Addr(i)}, ListenUDP: w.net.Listen,
	}}
	if i > 0 {
		cfg.P2P.Bootstrap = []string{seedOf(0)}
	}
	if os.Getenv("MESH_SIM_LOG") != "" {
		cfg.P2P.Log = slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", i)
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if m.Core, err = node.NewCore(cfg); err != nil {
		w.t.Fatal(err)
	}
	w.members = append(w.members, m)
	if err := m.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if e != nil {
		e.before = func(ctx context.Context, position int) { w.strike(ctx, m, position) }
		if err := m.Serve(e, prices, mesh.Hash{}); err != nil {
			w.t.Fatal(err)
		}
	}
	return m
}

// strike makes the next fault happen, if it is the turn of this position. Each host
// is struck once: one in a black hole talks on, and nobody hears it.
func (w *world) strike(ctx context.Context, m *member, position int) {
	w.mu.Lock()
	if m.stuck || len(w.faults) == 0 || w.faults[0].at != position {
		w.mu.Unlock()
		return
	}
	f := w.faults[0]
	w.faults = w.faults[1:]
	m.stuck = true
	w.mu.Unlock()
	f.do(ctx, m)
}

// strikes makes each of the positions one at which the speaking host is struck.
func (w *world) strikes(do func(ctx context.Context, m *member), positions ...int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, at := range positions {
		w.faults = append(w.faults, fault{at, do})
	}
}

// left returns how many faults have not happened.
func (w *world) left() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.faults)
}

// cut puts a node into a black hole.
func cut(_ context.Context, m *member) { m.w.net.Cut(m.index) }

// hang stops the engine, and the engine alone.
func hang(ctx context.Context, _ *member) { <-ctx.Done() }

// kill ends a node as kill -9 does: nobody hears of it.
func (w *world) kill(m *member) {
	w.net.Cut(m.index)
	w.leave(m)
}

// leave closes a node.
func (w *world) leave(m *member) {
	m.gone = true
	w.closing.Go(func() {
		if err := m.Close(); err != nil {
			w.t.Errorf("close node %d: %v", m.index, err)
		}
	})
}

// end closes all nodes, then the network: nothing may outlive the bubble.
func (w *world) end() {
	for _, m := range w.members {
		if !m.gone {
			w.leave(m)
		}
	}
	w.closing.Wait()
	w.net.Close()
}

// member returns the node with an address that is still there.
func (w *world) member(a mesh.Address) *member {
	for _, m := range w.members {
		if !m.gone && m.Net.Address() == a {
			return m
		}
	}
	return nil
}

// until waits in virtual time, at most limit, and returns how long it took.
func until(limit time.Duration, cond func() bool) (time.Duration, error) {
	begin := time.Now()
	for !cond() {
		if time.Since(begin) >= limit {
			return limit, errors.New("not within " + limit.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin), nil
}

// keeper is the receipts of one node.
type keeper struct {
	mu   sync.Mutex
	list []*inference.Receipt // guarded by mu
}

func (k *keeper) Put(_ mesh.Hash, s *inferencepb.Signed) error {
	r, err := inference.ParseReceipt(network, s)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list = append(k.list, r)
	return nil
}

// of returns the receipts of a request, in the order in which they came.
func (k *keeper) of(request mesh.Hash) []*inference.Receipt {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*inference.Receipt
	for _, r := range k.list {
		if r.Request == request {
			out = append(out, r)
		}
	}
	return out
}
