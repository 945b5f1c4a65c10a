package router

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/host"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

const network = mesh.NetworkID("dev00000000")

type (
	hostConfig = host.Config
	modelHash  = mesh.ModelID
)

var modelID = mesh.HashOf([]byte("a model"))

func testKey(n int) ed25519.PrivateKey {
	seed := make([]byte, 32)
	binary.BigEndian.PutUint32(seed, uint32(n))
	return ed25519.NewKeyFromSeed(seed)
}

func addressOf(n int) mesh.Address { return mesh.AddressOf(testKey(n).Public().(ed25519.PublicKey)) }

// world is a router and some hosts on a network of pipes.
type world struct {
	t         *testing.T
	router    *Router
	peers     map[mesh.Address]*peer
	order     []*peer
	delay     time.Duration // one way
	keeper    *keeper
	dir       *directory
	mu        sync.Mutex
	liars     map[mesh.Address]string // penalised, and why; guarded by mu
	announced int                     // tasks; guarded by mu
	closing   []func()
}

// peer is a host that can be killed.
type peer struct {
	w       *world
	addr    mesh.Address
	host    *host.Host
	engine  *engine
	kept    *keeper
	accept  chan net.Conn
	done    chan struct{}
	mu      sync.Mutex
	dead    bool       // guarded by mu
	hole    bool       // swallows all bytes; guarded by mu
	conns   []net.Conn // guarded by mu
	dialled int        // infer streams; guarded by mu
}

type keeper struct {
	mu   sync.Mutex
	list []*inference.Receipt // guarded by mu
	fail error                // what Put returns
}

func (k *keeper) Put(request mesh.Hash, s *inferencepb.Signed) error {
	r, err := inference.ParseReceipt(network, s)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list = append(k.list, r)
	return k.fail
}

func (k *keeper) all() []*inference.Receipt {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.list
}

func (k *keeper) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list = nil
}

type directory struct {
	mu    sync.Mutex
	names map[string]mesh.ModelID
	hosts []Candidate
	turns [][]Candidate // what Hosts returns first, one after the other
}

func (d *directory) Resolve(_ context.Context, name string) (mesh.ModelID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if id, ok := d.names[name]; ok {
		return id, nil
	}
	return mesh.ModelID{}, fmt.Errorf("%w: %s", inference.ErrUnknownModel, name)
}

func (d *directory) Hosts(context.Context, mesh.ModelID) ([]Candidate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.turns) > 0 {
		out := d.turns[0]
		d.turns = d.turns[1:]
		return out, nil
	}
	return slices.Clone(d.hosts), nil
}

func (d *directory) Models(context.Context) ([]inference.ModelInfo, error) { return nil, nil }

type option func(*host.Config, *Config)

// newWorld starts n hosts, one engine each made by mk, and a router that knows them.
func newWorld(t *testing.T, n int, mk func(i int) *engine, options ...option) *world {
	t.Helper()
	w := &world{
		t: t, peers: make(map[mesh.Address]*peer), keeper: new(keeper), liars: make(map[mesh.Address]string),
		dir: &directory{names: map[string]mesh.ModelID{"model": modelID}},
	}
	cfg := Config{
		Network: network, Key: testKey(1000), Dialer: dialFrom{w, addressOf(1000)}, Directory: w.dir, Receipts: w.keeper,
		Penalise: func(a mesh.Address, reason string, _ int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.liars[a] = reason
		},
	}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	for i := range n {
		w.addPeer(i, mk(i), options...)
	}
	for _, o := range options {
		o(nil, &cfg)
	}
	var err error
	if w.router, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	for _, p := range w.order {
		w.dir.hosts = append(w.dir.hosts, Candidate{Peer: p.addr, Capability: p.host.Capabilities()[0]})
	}
	return w
}

func (w *world) addPeer(i int, e *engine, options ...option) *peer {
	if e.id.IsZero() {
		e.id, e.name = modelID, "model"
	}
	if e.slots == 0 {
		e.slots = 8
	}
	p := &peer{w: w, addr: addressOf(i), engine: e, kept: new(keeper), accept: make(chan net.Conn), done: make(chan struct{})}
	cfg := host.Config{
		Network: network, Key: testKey(i), Receipts: p.kept, Dialer: dialFrom{w, p.addr},
		RemotePeer: func(c net.Conn) (mesh.Address, bool) { a, ok := c.(*endpoint); return a.remote, ok },
	}
	for _, o := range options {
		o(&cfg, nil)
	}
	var err error
	if p.host, err = host.New(cfg); err != nil {
		w.t.Fatal(err)
	}
	prices := host.Prices{Prompt: 2, Output: 3}
	if e.price != nil {
		prices = *e.price
	}
	if err := p.host.Add(e, prices); err != nil {
		w.t.Fatal(err)
	}
	w.peers[p.addr] = p
	w.order = append(w.order, p)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := p.host.Serve(p); err != nil && !errors.Is(err, net.ErrClosed) {
			w.t.Error(err)
		}
	}()
	w.closing = append(w.closing, func() {
		p.kill()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p.host.Shutdown(ctx)
		<-ended
	})
	return p
}

func (w *world) close() {
	if err := w.router.Close(); err != nil {
		w.t.Error(err)
	}
	for _, f := range w.closing {
		f()
	}
}

// Accept, Close and Addr make a peer the listener of its host.
func (p *peer) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *peer) Close() error   { p.kill(); return nil }
func (p *peer) Addr() net.Addr { return &net.TCPAddr{} }

// kill breaks all connections and refuses new ones.
func (p *peer) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.dead {
		p.dead = true
		close(p.done)
	}
	for _, c := range p.conns {
		c.Close()
	}
}

// disturb breaks all connections, and lets new ones be made.
func (p *peer) disturb() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// swallow makes a black hole of the peer: nothing is refused, nothing arrives.
func (p *peer) swallow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hole = true
}

func (p *peer) swallowed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hole
}

type dialFrom struct {
	w    *world
	from mesh.Address
}

// endpoint is a connection that knows its other end.
type endpoint struct {
	net.Conn
	remote mesh.Address
}

func (d dialFrom) Dial(ctx context.Context, to mesh.Address, protocol string) (net.Conn, error) {
	if to == addressOf(1000) { // the router, for offers to tasks
		near, far := net.Pipe()
		go func() {
			light, err := host.New(host.Config{Network: network, Key: testKey(1000), TakeOffer: d.w.router.TakeOffer})
			if err != nil {
				panic(err)
			}
			light.ServeOffer(context.Background(), d.from, far)
		}()
		return near, nil
	}
	p := d.w.peers[to]
	if p == nil {
		return nil, errors.New("no such peer")
	}
	p.mu.Lock()
	dead := p.dead
	if protocol == "infer" {
		p.dialled++
	}
	p.mu.Unlock()
	if dead {
		return nil, errors.New("connection refused")
	}
	near, far := p.link()
	switch protocol {
	case "infer":
		select {
		case p.accept <- &endpoint{far, d.from}:
		case <-p.done:
			return nil, errors.New("connection refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	case "offer":
		if p.host == nil {
			near.Close()
			far.Close()
			return nil, errors.New("no such protocol")
		}
		go p.host.ServeOffer(context.Background(), d.from, far)
	}
	return near, nil
}

// link returns the two ends of a connection that the network can delay, break and
// swallow.
func (p *peer) link() (net.Conn, net.Conn) {
	near, a := net.Pipe()
	b, far := net.Pipe()
	p.mu.Lock()
	p.conns = append(p.conns, a, b)
	p.mu.Unlock()
	go p.carry(b, a)
	go p.carry(a, b)
	return near, far
}

func (p *peer) carry(to, from net.Conn) {
	type parcel struct {
		at   time.Time
		data []byte
	}
	way := make(chan parcel, 16)
	go func() {
		defer to.Close()
		for x := range way {
			time.Sleep(time.Until(x.at))
			if p.swallowed() {
				continue
			}
			if _, err := to.Write(x.data); err != nil {
				from.Close()
				for range way {
				}
				return
			}
		}
	}()
	defer close(way)
	for {
		buf := make([]byte, 4096)
		n, err := from.Read(buf)
		if n > 0 {
			way <- parcel{time.Now().Add(p.w.delay), buf[:n]}
		}
		if err != nil {
			return
		}
	}
}
