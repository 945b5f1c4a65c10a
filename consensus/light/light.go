// Package light follows the ledger without computing it: it verifies headers by the
// signatures of the validators, compares what several peers say, and reads records of
// the state by proofs against those headers. Nothing is believed but the genesis, or a
// checkpoint that the user gives.
//
// A Client asks full nodes on streams light (headers, proofs) and tx. Whatever they do,
// no header gets past it that two thirds of the validators it knew did not sign; a third
// is enough where several peers have the header and none that answers has not.
package light

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	cmtlight "github.com/cometbft/cometbft/light"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
)

// Dialer opens a stream to a peer by the protocol's short name.
type Dialer interface {
	Dial(ctx context.Context, peer mesh.Address, protocol string) (net.Conn, error)
}

// Root is what a client believes to begin with: the height and hash of a header, or
// the validators that the genesis names and when it was made.
type Root struct {
	Height mesh.Height
	Hash   mesh.Hash

	Validators *types.ValidatorSet
	Time       time.Time
}

// Config describes a client. The zero value of a field is its default.
type Config struct {
	Network mesh.NetworkID
	Root    Root
	// Period is for how long the signatures of a validator set are believed: less than
	// collateral takes to unbond.
	Period time.Duration
	Dialer Dialer
	// Peers returns full nodes that can be asked.
	Peers func() []mesh.Address
	// Penalise is told of peers that lied.
	Penalise func(peer mesh.Address, reason string, points int)
	// File keeps the newest verified header; "" keeps none on disk.
	File string
	// Fresh is how old the newest header may be before a read asks for a newer one;
	// default 2 s.
	Fresh time.Duration
	Log   *slog.Logger

	now     func() time.Time                 // tests have their own
	shuffle func(n int, swap func(i, j int)) // as does this
}

const (
	// updateTimeout bounds one attempt to get a newer header, askTimeout one question.
	updateTimeout = 30 * time.Second
	askTimeout    = 10 * time.Second
	// drift is how far ahead of this machine's clock a header may be.
	drift = 10 * time.Second
)

// What faults cost a peer: a proven lie cuts it off.
const pointsLie = 100

// Errors for errors.Is.
var (
	// ErrNoPeers is returned while too few full nodes are connected.
	ErrNoPeers = errors.New("no full node of the ledger is connected yet")
	// ErrNoBlock is returned for a height that peers do not have: too new, or pruned.
	ErrNoBlock = errors.New("no such block here")
	// ErrFork is returned while peers show two headers of one height, each signed by
	// more than two thirds of the validators.
	ErrFork = errors.New("two peers have different headers, each signed by more than two thirds of the validators")
)

// Client is a light peer's view of the ledger. Its methods are safe for concurrent use.
type Client struct {
	cfg   Config
	store *store
	bench bench
	// patience is how long Submit waits for the block that shows a transaction.
	patience time.Duration

	mu     sync.Mutex
	head   Head      // newest verified; guarded by mu
	seen   time.Time // when it was asked for; guarded by mu
	flight *flight   // the attempt that runs; guarded by mu

	accused time.Time // when evidence was reported last; of the flight
}

// flight is an attempt to get a newer header that all who want one wait for.
type flight struct {
	done chan struct{}
	head Head // set before done is closed, as is err
	err  error
}

// New returns a client. It asks nobody before the first read.
func New(cfg Config) (*Client, error) {
	switch {
	case cfg.Dialer == nil || cfg.Peers == nil:
		return nil, errors.New("light client: no peers to ask")
	case cfg.Root.Hash.IsZero() == cfg.Root.Validators.IsNilOrEmpty(), !cfg.Root.Hash.IsZero() && cfg.Root.Height == 0:
		return nil, errors.New("light client: nothing to trust: want a checkpoint or the first validators")
	case cfg.Period <= 0:
		return nil, errors.New("light client: no trusting period")
	}
	if cfg.Penalise == nil {
		cfg.Penalise = func(mesh.Address, string, int) {}
	}
	if cfg.Fresh <= 0 {
		cfg.Fresh = 2 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.shuffle == nil {
		cfg.shuffle = rand.Shuffle
	}
	s, err := openStore(cfg.File, string(cfg.Network))
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, store: s, patience: max(showTimeout, 10*cfg.Fresh), bench: bench{until: make(map[mesh.Address]time.Time)}}
	// A checkpoint that the user gives now counts more than what an earlier run kept.
	if !cfg.Root.Hash.IsZero() {
		s.begin(cfg.Root.Hash)
	}
	return c, nil
}

// Stale returns why this client can verify nothing: neither what it kept nor its root is so
// young that the validators still answer for what they sign. nil: it can.
func (c *Client) Stale() error {
	if b := c.store.newest(); b != nil && !c.expired(b) || !c.cfg.Root.Hash.IsZero() {
		return nil
	}
	if end := c.cfg.Root.Time.Add(c.cfg.Period); !end.After(c.cfg.now()) {
		return explain(cmtlight.ErrOldHeaderExpired{At: end, Now: c.cfg.now()})
	}
	return nil
}

// Expired reports whether an error says that what a client trusts is too old.
func Expired(err error) bool { return errors.As(err, new(cmtlight.ErrOldHeaderExpired)) }

// Head is a verified header.
type Head struct {
	Height     mesh.Height
	Time       time.Time
	Hash       mesh.Hash
	AppHash    []byte // of the state before this block
	Validators int
	// Witnessed says that a second peer gave the same header.
	Witnessed bool
}

func headOf(b *types.LightBlock, witnessed bool) Head {
	h := Head{Height: mesh.Height(b.Height), Time: b.Time, AppHash: b.AppHash, Validators: b.ValidatorSet.Size(), Witnessed: witnessed}
	copy(h.Hash[:], b.Hash())
	return h
}

// Head returns the newest header, verified now if the last one is not fresh. How old it
// is says its Time: a network that stands still, or peers that all hide what is new,
// look the same from here.
func (c *Client) Head(ctx context.Context) (Head, error) {
	c.mu.Lock()
	if !c.seen.IsZero() && c.cfg.now().Sub(c.seen) < c.cfg.Fresh {
		defer c.mu.Unlock()
		return c.head, nil
	}
	f := c.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		c.flight = f
		// Who asked first may go away; the others still wait.
		go c.fly(context.WithoutCancel(ctx), f)
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.head, f.err
	case <-ctx.Done():
		return Head{}, fmt.Errorf("verify the ledger's headers: %w", ctx.Err())
	}
}

// fly gets a newer header for everybody who waits.
func (c *Client) fly(ctx context.Context, f *flight) {
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	now := c.cfg.now()
	b, witnessed, err := c.advance(ctx)
	if err == nil {
		f.head = headOf(b, witnessed)
	}
	if err := c.store.keep(); err != nil {
		c.cfg.Log.Warn("the verified header could not be written", "err", err)
	}
	f.err = explain(err)
	c.mu.Lock()
	c.flight = nil
	if err == nil {
		c.head, c.seen = f.head, now
	}
	c.mu.Unlock()
	close(f.done)
}

// outdate makes the next read ask for a newer header.
func (c *Client) outdate() {
	c.mu.Lock()
	c.seen = time.Time{}
	c.mu.Unlock()
}

// explain turns errors into words for people.
func explain(err error) error {
	var expired cmtlight.ErrOldHeaderExpired
	switch {
	case err == nil || errors.Is(err, ErrNoPeers):
		return err
	case errors.As(err, &expired):
		return fmt.Errorf("what this node trusts is too old: %w; give a newer checkpoint with --trust HEIGHT:HASH", err)
	case errors.Is(err, ErrFork):
		return fmt.Errorf("%w; do not trust this network until its operators explain", err)
	}
	return fmt.Errorf("verify the ledger's headers: %w", err)
}
