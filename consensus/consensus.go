// Package consensus is the ledger's node: CometBFT's reactors, assembled from its
// exported constructors and run over the mesh's own host. It orders blocks and keeps
// them; what is in them is the business of an ABCI application (app.go).
//
// There is no second port: messages of the reactors travel on streams of the mesh
// protocol "comet" (switch.go), between full nodes whose hello agreed. CometBFT's own
// transport stays as TransportComet.
package consensus

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/p2p"
)

// Transports.
const (
	TransportMesh  = "mesh"  // streams of the mesh's host
	TransportComet = "comet" // CometBFT's own TCP port
)

// Names of the databases that Config.Open is asked for.
const (
	StoreBlocks   = "blocks"
	StoreState    = "state"
	StoreEvidence = "evidence"
)

// Config describes a chain. The zero value of a field is its default.
type Config struct {
	Home    string // folder for the write-ahead log and a lock; one process holds it
	Genesis *types.GenesisDoc
	// App is called on four connections at once: blocks, transactions to check, queries
	// and snapshots, one call at a time on each.
	App abci.Application
	// Signer votes; nil makes a node that follows. LoadKey reads one from files.
	Signer types.PrivValidator
	Net    *p2p.Host // may be nil with TransportComet
	// Open gives a database by name; the chain closes it at Stop.
	Open    func(name string) (dbm.DB, error)
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil registers nothing

	Transport string // TransportMesh when empty
	Comet     *Comet // for TransportComet

	Commit  time.Duration // pause after a block; default 1 s
	Propose time.Duration // wait for a proposal; default 3 s
	Vote    time.Duration // wait for more votes in a divided round; default 1 s

	// DiskFloor is the free space below which the node stops voting; below half of it
	// the chain stops. Default 256 MiB, a negative value checks nothing.
	DiskFloor int64

	// StateSync fetches a snapshot instead of all blocks where the stores are empty.
	StateSync *StateSync
	// Checkpoint is a block that the ledger has to have; nil names none.
	Checkpoint *Checkpoint
	// Period is for how long the signatures of validators are believed: a node whose last
	// block is older needs a checkpoint. 0: for ever.
	Period time.Duration

	poolTxs    int                              // of tests: transactions that wait for a block
	step       func(name string)                // of tests: called between the steps of a state sync
	sweepEvery time.Duration                    // of tests: between two looks at what pruned blocks left
	now        func() time.Time                 // of tests: a clock that is off
	free       func(dir string) (uint64, error) // of tests: a disk that is full
}

// Comet configures CometBFT's own transport.
type Comet struct {
	Listen string             // IP:PORT
	Peers  []string           // ID@IP:PORT of the others
	Key    ed25519.PrivateKey // identity on this transport; CometID tells its ID
}

// clockSkew is how far the clock may be off before the node stops voting. A last block of
// four times Commit ago is no sign yet.
func (c *Config) clockSkew() time.Duration { return max(30*time.Second, 4*c.Commit) }

func (c *Config) complete() error {
	switch {
	case c.Home == "":
		return errors.New("consensus: no home folder")
	case c.Genesis == nil:
		return errors.New("consensus: no genesis document")
	case c.App == nil:
		return errors.New("consensus: no application")
	case c.Open == nil:
		return errors.New("consensus: no databases")
	}
	switch c.Transport {
	case "":
		c.Transport = TransportMesh
	case TransportMesh, TransportComet:
	default:
		return fmt.Errorf("consensus: transport %q: want %s or %s", c.Transport, TransportMesh, TransportComet)
	}
	if c.Transport == TransportMesh && c.Net == nil {
		return errors.New("consensus: no mesh host")
	}
	if c.Transport == TransportComet && c.Comet == nil {
		return errors.New("consensus: transport comet: no listen address")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Commit = orDefault(c.Commit, time.Second)
	c.Propose = orDefault(c.Propose, 3*time.Second)
	c.Vote = orDefault(c.Vote, time.Second)
	c.poolTxs = orDefault(c.poolTxs, ledger.PoolTxs)
	if c.DiskFloor == 0 {
		c.DiskFloor = 256 << 20
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.free == nil {
		c.free = freeSpace
	}
	genesis := *c.Genesis
	if err := genesis.ValidateAndComplete(); err != nil {
		return fmt.Errorf("consensus: genesis document: %w", err)
	}
	c.Genesis = &genesis
	return nil
}

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// Chain is one node of the ledger.
type Chain struct {
	cfg     Config
	log     *slog.Logger
	self    []byte // address of the signer's key; nil without one
	guard   *guard // nil without a signer
	pool    *waiters
	skew    *skew
	problem problem

	seen    seen
	doing   doing
	metrics []prometheus.Collector // registered; set by Start and Stop

	fatal chan error // one error that ended the chain

	mu       sync.Mutex
	parts    *parts    // guarded by mu; nil before Start and after Stop
	lock     *homeLock // guarded by mu
	dead     bool      // Stop was called; guarded by mu
	starting bool      // guarded by mu
}

// New checks the configuration. It opens no socket and no database; Start does.
func New(cfg Config) (*Chain, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	c := &Chain{cfg: cfg, log: cfg.Log, fatal: make(chan error, 1), pool: newWaiters()}
	c.skew = newSkew(c)
	if cfg.Signer != nil {
		key, err := cfg.Signer.GetPubKey()
		if err != nil {
			return nil, fmt.Errorf("consensus: read the signer's public key: %w", err)
		}
		c.self = key.Address()
		c.guard = &guard{inner: cfg.Signer, chain: c}
	}
	return c, nil
}

// Err gives the error that ended the chain while the process lives: a failure of
// consensus, a full disk, a state sync that failed. Nothing comes after a plain Stop.
func (c *Chain) Err() <-chan error { return c.fatal }

// fail reports the end of the chain; the first reason holds.
func (c *Chain) fail(err error) {
	select {
	case c.fatal <- err:
		if !errors.Is(err, ErrNoSnapshot) { // whoever started it has another way
			c.log.Error("the ledger stopped", "err", err)
		}
	default:
	}
}

// wal is where consensus keeps its write-ahead log.
func (c *Chain) wal() string { return filepath.Join(c.cfg.Home, "wal", "wal") }

func (c *Chain) openHome() error {
	if err := os.MkdirAll(c.cfg.Home, 0o700); err != nil {
		return fmt.Errorf("open the ledger's folder: %w", err)
	}
	lock, err := lockHome(filepath.Join(c.cfg.Home, "ledger.lock"))
	if err != nil {
		return err
	}
	c.lock = lock
	return nil
}
