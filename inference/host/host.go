// Package host serves inference requests that arrive on streams: it admits and
// queues calls, runs them on an Engine, streams signed frames, and signs and keeps
// receipts. Infer streams carry pooled HTTP/1.1 (infer.go), offer streams one
// message each way (offer.go). The caller is the authenticated peer and has to be
// the payer of the request.
package host

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// Receipts keeps what was signed.
type Receipts interface {
	Put(request mesh.Hash, receipt *inferencepb.Signed) error
}

// Dialer opens a stream to a peer by the protocol's short name.
type Dialer interface {
	Dial(ctx context.Context, peer mesh.Address, protocol string) (net.Conn, error)
}

// Till takes payment. Amounts are of one host, this one.
type Till interface {
	// Admit reserves what an answer may cost, or refuses in words for the payer. done ends
	// the reservation, once; receipt is the answer's last one, nil where there is nothing to pay.
	Admit(req *inference.Request, most mesh.Amount) (done func(receipt *inferencepb.Signed), err error)
	// Affords refuses a request that cannot pay so much, as Admit would, and reserves nothing.
	Affords(req *inference.Request, least mesh.Amount) error
	// Pays refuses, as CodeUnpaid, an escrow that has less than so much for this host in an
	// epoch. Another error says that it cannot be told now.
	Pays(payer mesh.Address, escrow mesh.Hash, epoch mesh.Epoch, least mesh.Amount) error
	// Voucher takes a payer's acknowledgement.
	Voucher(signed *inferencepb.Signed) error
	// Proof returns the encoded proof that a receipt is in this host's settlement.
	Proof(receipt mesh.Hash) ([]byte, error)
}

// Config describes a host. The zero value of a field is its default.
type Config struct {
	Network mesh.NetworkID
	Key     ed25519.PrivateKey // of the node; it signs receipts

	// RemotePeer returns who is at the other end of a connection that Serve gets.
	RemotePeer func(net.Conn) (mesh.Address, bool)
	Receipts   Receipts // nil keeps none
	Dialer     Dialer   // to answer tasks; nil answers none
	Till       Till     // nil: answers cost nothing, whatever the prices
	// TakeOffer gets offers that hosts send for this node's own tasks, and reports
	// whether they were waited for. Nil refuses them.
	TakeOffer func(from mesh.Address, o *inferencepb.Offer) bool
	// Penalise is told of peers that break the rules; nil lets them off.
	Penalise func(peer mesh.Address, reason string, points int)

	Queue        int           // calls that wait per model; default 64
	PerPeer      int           // calls of one peer, running and waiting; default 64
	Memory       int64         // bytes of requests held at once; default 128 MiB, half of it for one peer
	Heartbeat    time.Duration // between frames while nothing is said; default 200 ms
	WriteTimeout time.Duration // for a reader that does not read; default 5 s
	Pace         time.Duration // at least, between two tokens of an answer, for people who watch; default none
	Log          *slog.Logger
	Metrics      prometheus.Registerer // nil registers nothing
}

func (c *Config) complete() error {
	if len(c.Key) != ed25519.PrivateKeySize {
		return errors.New("inference host: no key")
	}
	if c.RemotePeer == nil {
		c.RemotePeer = func(net.Conn) (mesh.Address, bool) { return mesh.Address{}, false }
	}
	if c.TakeOffer == nil {
		c.TakeOffer = func(mesh.Address, *inferencepb.Offer) bool { return false }
	}
	if c.Penalise == nil {
		c.Penalise = func(mesh.Address, string, int) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Queue = cmp.Or(c.Queue, 64)
	c.PerPeer = cmp.Or(c.PerPeer, 64)
	c.Memory = cmp.Or(c.Memory, 128<<20)
	c.Heartbeat = cmp.Or(c.Heartbeat, 200*time.Millisecond)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 5*time.Second)
	return nil
}

// Prices are what a host asks, in ngonka per token.
type Prices struct {
	Prompt, Output mesh.Amount
}

// Host serves the models that were added to it.
type Host struct {
	cfg       Config
	self      mesh.Address
	server    *http.Server
	local     *pipeListener
	meter     *meter
	tasks     sync.WaitGroup // entered with mu held, while not draining or while calls run
	dialling  chan struct{}  // one place per task being answered
	preparing chan struct{}  // one place: see alone
	ctx       context.Context
	stop      context.CancelCauseFunc // aborts everything that runs
	wires     sync.Map                // net.Conn to *wire, of the server

	mu       sync.Mutex
	lanes    map[mesh.ModelID]*lane         // guarded by mu, as is all within a lane
	running  map[runKey]*answer             // guarded by mu
	peers    map[mesh.Address]*usage        // guarded by mu
	patience map[mesh.Address]*patience     // guarded by mu
	rates    map[mesh.Address]*rate.Limiter // guarded by mu
	held     int64                          // bytes of requests; guarded by mu
	draining bool                           // guarded by mu
	idle     chan struct{}                  // closed when draining and nothing runs; guarded by mu
}

// usage is what one peer takes of the host now.
type usage struct {
	calls     int
	held      int64
	preparing chan struct{} // one place: as the host's
}

var (
	errDraining = errors.New("the host is stopping")
	errGone     = errors.New("the caller is gone")
)

// New builds a host without models. It opens no socket.
func New(cfg Config) (*Host, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	h := &Host{
		cfg:       cfg,
		self:      mesh.AddressOf(cfg.Key.Public().(ed25519.PublicKey)),
		local:     newPipeListener(),
		lanes:     make(map[mesh.ModelID]*lane),
		running:   make(map[runKey]*answer),
		peers:     make(map[mesh.Address]*usage),
		patience:  make(map[mesh.Address]*patience),
		rates:     make(map[mesh.Address]*rate.Limiter),
		idle:      make(chan struct{}),
		dialling:  make(chan struct{}, maxTasks),
		preparing: make(chan struct{}, 1),
	}
	h.ctx, h.stop = context.WithCancelCause(context.Background())
	h.meter = newMeter(h)
	if err := h.meter.register(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("register metrics of the inference host: %w", err)
	}
	h.server = h.newServer()
	return h, nil
}

// Add serves a model from now on. The caller closes the engine, after Shutdown or
// Remove.
func (h *Host) Add(e inference.Engine, p Prices) error {
	info := e.Info()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lanes[info.ID] != nil {
		return fmt.Errorf("serve %s: this model is served already", info.Name)
	}
	h.lanes[info.ID] = &lane{
		engine: e,
		info:   info,
		slots:  max(1, info.Slots),
		load:   make(map[mesh.Address]int),
		turns:  make(map[mesh.Address]int),
		capability: &inferencepb.Capability{
			Model: info.ID[:], Name: info.Name, Fingerprint: info.Fingerprint,
			Context: uint32(info.Context), ModelContext: uint32(max(info.Context, info.ModelContext)),
			PricePrompt: uint64(p.Prompt), PriceOutput: uint64(p.Output), Slots: uint32(max(1, info.Slots)),
			Embed: widthOf(e),
		},
	}
	return nil
}

// Remove serves a model no longer, and aborts what runs on it.
func (h *Host) Remove(model mesh.ModelID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.lanes, model)
	for _, a := range h.running {
		if a.lane.info.ID == model {
			a.cancel(errDraining)
		}
	}
}

// Capabilities returns what adverts say of this host, by name.
func (h *Host) Capabilities() []*inferencepb.Capability {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*inferencepb.Capability
	for _, l := range h.lanes {
		out = append(out, l.capability)
	}
	slices.SortFunc(out, func(a, b *inferencepb.Capability) int {
		if a.Name < b.Name || a.Name == b.Name && slices.Compare(a.Model, b.Model) < 0 {
			return -1
		}
		return 1
	})
	return out
}

// Load returns how many calls run and wait, over all models.
func (h *Host) Load() inference.Load {
	h.mu.Lock()
	defer h.mu.Unlock()
	var sum inference.Load
	for _, l := range h.lanes {
		sum.Active += l.active
		sum.Queued += len(l.waiting)
	}
	return sum
}

// Shutdown admits nothing more, lets answers end until ctx is done, aborts the rest,
// and returns when nothing runs. Aborted callers continue on other hosts.
func (h *Host) Shutdown(ctx context.Context) {
	h.mu.Lock()
	h.draining = true
	for _, l := range h.lanes {
		for _, t := range l.waiting {
			t.refused = true
			close(t.ready)
		}
		l.waiting = nil
	}
	h.checkIdle()
	h.mu.Unlock()
	select {
	case <-h.idle:
	case <-ctx.Done():
	}
	h.stop(errDraining)
	<-h.idle
	h.local.Close()
	h.server.Close()
	h.tasks.Wait()
	h.meter.unregister(h.cfg.Metrics)
}

// background runs f, which has to heed h.ctx, unless the host is stopping.
func (h *Host) background(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.draining {
		h.tasks.Go(f)
	}
	return !h.draining
}

// checkIdle is called with mu held.
func (h *Host) checkIdle() {
	if !h.draining || len(h.peers) > 0 {
		return
	}
	select {
	case <-h.idle:
	default:
		close(h.idle)
	}
}
