// Package router answers a question with hosts of the mesh: it finds and picks
// them, streams and verifies what they say, hands an answer that lost its host to
// the next one, and keeps the receipts of all.
//
// An answer continues by its tokens: the next host is given prompt, tokens so far,
// seed and the last receipt. In the exact class it draws the very tokens that the
// lost host would have drawn. In the other classes it continues the same prefix
// with the same random numbers, and the rest may differ from what would have come.
package router

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// Dialer opens a stream to a peer by the protocol's short name.
type Dialer interface {
	Dial(ctx context.Context, peer mesh.Address, protocol string) (net.Conn, error)
}

// Directory knows models and who serves them.
type Directory interface {
	// Resolve returns the ID of a model by name or ID; an empty name is the node's
	// default. It fails with ErrUnknownModel.
	Resolve(ctx context.Context, name string) (mesh.ModelID, error)
	// Hosts returns who is said to serve a model. It answers from memory when it can.
	Hosts(ctx context.Context, model mesh.ModelID) ([]Candidate, error)
	// Models lists the models that somebody serves.
	Models(ctx context.Context) ([]inference.ModelInfo, error)
}

// Candidate is a peer that may serve a model.
type Candidate struct {
	Peer       mesh.Address
	Capability *inferencepb.Capability // nil where only the DHT names the peer
}

// Receipts keeps the receipts of answers.
type Receipts interface {
	Put(request mesh.Hash, receipt *inferencepb.Signed) error
}

// Purse pays for answers.
type Purse interface {
	// Escrow returns what requests draw on now, nil for nothing, and the ledger's epoch.
	Escrow() (id []byte, epoch mesh.Epoch)
	// Acknowledge returns the voucher for a receipt that was verified, nil where there is
	// nothing to pay. One that is not whole is paid for, and not counted.
	Acknowledge(r *inference.Receipt) (*inference.SignedVoucher, error)
	// Recount returns the last voucher of an account anew, for no more receipts than there
	// are by the host that refused this one.
	Recount(refused *inference.SignedVoucher, receipts uint64) (*inference.SignedVoucher, error)
	// Taken is told of vouchers that their hosts took.
	Taken(v *inference.SignedVoucher)
	// Likely returns those hosts that most likely have a part of an escrow in an epoch.
	Likely(escrow mesh.Hash, epoch mesh.Epoch, hosts []mesh.Address) []mesh.Address
}

// Config describes a router. The zero value of a field is its default.
type Config struct {
	Network   mesh.NetworkID
	Key       ed25519.PrivateKey // of the node, the payer of its requests
	Dialer    Dialer
	Local     Dialer // reaches this node's own host within the process; nil: it has none
	Directory Directory
	// Publish announces a signed task by gossip; nil announces none.
	Publish  func(ctx context.Context, task *inferencepb.Signed) error
	Addrs    func() []string // where hosts reach this node, for tasks
	Receipts Receipts        // nil keeps none
	Purse    Purse           // nil pays nothing
	Epoch    func() mesh.Epoch
	// Connected reports whether a peer is connected now; nil: all are.
	Connected func(peer mesh.Address) bool
	// Penalise is told of hosts that signed what is not so; nil lets them off.
	Penalise func(peer mesh.Address, reason string, points int)
	// Text returns a detokenizer of a model that this node has, to verify the text
	// of hosts; nil, or a nil answer, believes them.
	Text func(mesh.ModelID) inference.Detokenizer
	// Count returns the prompt tokens of a question, of a model that this node has; 0
	// where it cannot tell. Nil counts none.
	Count func(mesh.ModelID, *inferencepb.Question) int

	FirstToken time.Duration // without progress before the first token, or for room on hosts that are busy; default 30 s
	InterToken time.Duration // without a token after it; default 2 s, or 4 times the stream's own pace
	Silence    time.Duration // without a byte, heartbeats included; default 800 ms, four of them
	Connect    time.Duration // until the call is sent; default 2 s
	Prefill    time.Duration // until the first token, whatever the progress; default 5 min
	OfferWait  time.Duration // for offers of candidates; default 250 ms
	TaskWait   time.Duration // for offers to a task, the search before it included (but a third is left); default 3 s
	MaxHosts   int           // tried per choice; default 8

	// TokenCap is what a host may ask for a token, of prompt or answer; default 5 times the
	// median of the adverts. An ask can lower it, and set one where there is none.
	TokenCap mesh.Amount

	Log     *slog.Logger
	Metrics prometheus.Registerer // nil registers nothing
}

func (c *Config) complete() error {
	switch {
	case len(c.Key) != ed25519.PrivateKeySize:
		return errors.New("router: no key")
	case c.Dialer == nil && c.Local == nil:
		return errors.New("router: no dialer")
	case c.Directory == nil:
		return errors.New("router: no directory")
	}
	if c.Addrs == nil {
		c.Addrs = func() []string { return nil }
	}
	if c.Connected == nil {
		c.Connected = func(mesh.Address) bool { return true }
	}
	if c.Epoch == nil {
		c.Epoch = func() mesh.Epoch { return 0 }
	}
	if c.Penalise == nil {
		c.Penalise = func(mesh.Address, string, int) {}
	}
	if c.Text == nil {
		c.Text = func(mesh.ModelID) inference.Detokenizer { return nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.FirstToken = cmp.Or(c.FirstToken, 30*time.Second)
	c.InterToken = cmp.Or(c.InterToken, 2*time.Second)
	c.Silence = cmp.Or(c.Silence, 800*time.Millisecond)
	c.Connect = cmp.Or(c.Connect, 2*time.Second)
	c.Prefill = cmp.Or(c.Prefill, 5*time.Minute)
	c.OfferWait = cmp.Or(c.OfferWait, 250*time.Millisecond)
	c.TaskWait = cmp.Or(c.TaskWait, 3*time.Second)
	c.MaxHosts = cmp.Or(c.MaxHosts, 8)
	return nil
}

// Router is a node's own transfer agent.
type Router struct {
	cfg       Config
	self      mesh.Address
	transport *http.Transport
	hosts     *hosts
	meter     *meter
	owing     owing
	ctx       context.Context // of work in the background; ends with Close
	stop      context.CancelFunc
	closing   chan struct{} // closed when Close begins

	mu     sync.Mutex
	closed bool                           // guarded by mu
	paying int                            // work that leads to vouchers; guarded by mu
	paid   chan struct{}                  // made by Close, closed when paying is 0; guarded by mu
	tasks  sync.WaitGroup                 // entered with mu held, while not closed
	wanted map[mesh.Hash]chan<- taskOffer // offers by task; guarded by mu
	calls  map[mesh.Address]int           // that run, by host; guarded by mu
}

// New builds a router. It touches no network.
func New(cfg Config) (*Router, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	r := &Router{
		cfg:    cfg,
		self:   mesh.AddressOf(cfg.Key.Public().(ed25519.PublicKey)),
		hosts:  newHosts(),
		meter:  newMeter(),
		wanted: make(map[mesh.Hash]chan<- taskOffer),
		calls:  make(map[mesh.Address]int),

		closing: make(chan struct{}),
	}
	r.transport = r.newTransport()
	r.ctx, r.stop = context.WithCancel(context.Background())
	if err := r.meter.register(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("register metrics of the router: %w", err)
	}
	return r, nil
}

// Models lists the models that can be asked.
func (r *Router) Models(ctx context.Context) ([]inference.ModelInfo, error) {
	return r.cfg.Directory.Models(ctx)
}

// closeWait is how long Close waits for vouchers under way.
const closeWait = 3 * time.Second

// Close ends work in the background and all connections, once the vouchers under way were
// sent. Answers have to be ended before, by their contexts.
func (r *Router) Close() error {
	r.mu.Lock()
	if r.paid != nil {
		r.mu.Unlock()
		return nil
	}
	r.paid = make(chan struct{})
	if r.paying == 0 {
		r.closed = true
		close(r.paid)
	}
	close(r.closing)
	r.mu.Unlock()
	limit := time.NewTimer(closeWait)
	defer limit.Stop()
	select {
	case <-r.paid:
	case <-limit.C:
	}
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.stop()
	r.tasks.Wait()
	r.transport.CloseIdleConnections()
	r.meter.unregister(r.cfg.Metrics)
	return nil
}

// pays runs f, which leads to a voucher, as background does: Close waits for it.
func (r *Router) pays(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.paying++
	r.tasks.Go(func() {
		defer func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.paying--; r.paying == 0 && r.paid != nil {
				r.closed = true
				close(r.paid)
			}
		}()
		f()
	})
}

// background runs f, which has to heed r.ctx, unless the router is closed, and says which.
func (r *Router) background(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.tasks.Go(f)
	}
	return !r.closed
}
