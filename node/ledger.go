package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/light"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p"
)

// Blocks that a full node keeps, and how often it makes a snapshot for those who join.
const (
	keepBlocks    = 100_000
	snapshotEvery = 500
)

func (c *Config) snapshots() int64 { return cmp.Or(c.snapshotEvery, snapshotEvery) }

// syncFrom is how far behind a new node fetches a snapshot instead of all blocks.
func (c *Config) syncFrom() int64 { return 2 * c.snapshots() }

// syncPatience is for how long a new node goes on in one way, with snapshots or with blocks
// from the first on, without anything that it can use.
const syncPatience = 2 * time.Minute

func (c *Config) patience() time.Duration { return cmp.Or(c.syncPatience, syncPatience) }

// beginWait is how long a validator of the genesis waits for a peer with blocks before it
// takes part in making the first.
const beginWait = 10 * time.Second

// chain is a node's part in the ledger: a full node computes it, a light one verifies.
type chain struct {
	n        *Node
	believed light.Root    // to begin with
	light    *light.Client // of every node: the light ones' only view, and what a snapshot is checked with

	// Of full nodes.
	key   *consensus.Key
	store *state.Store
	app   *consensus.App

	mu     sync.Mutex
	full   *consensus.Chain // nil before it runs; guarded by mu
	failed error            // why it ended; guarded by mu
	doing  string           // what it waits for, in words; guarded by mu
	tasks  sync.WaitGroup
	cancel context.CancelFunc // set by start
}

// buildLedger makes the parts; nil on a network without a ledger.
func (n *Node) buildLedger() (*chain, error) {
	if n.genesis.Ledger == nil {
		return nil, nil
	}
	c := &chain{n: n}
	var err error
	if c.believed, err = c.root(); err != nil {
		return nil, err
	}
	c.light, err = light.New(light.Config{
		Network: n.genesis.Network(), Root: c.believed, Period: n.genesis.trust(),
		Dialer: n.core.Net, Peers: c.fullPeers, Penalise: n.core.Net.Penalise,
		File: n.home.Path("header"), Fresh: time.Duration(n.genesis.BlockMS) * time.Millisecond, Log: n.log,
	})
	if err != nil || n.cfg.Light {
		return c, err
	}
	if c.key, err = consensus.LoadKey(n.home.Dir, n.cfg.Passphrase); err != nil {
		return nil, err
	}
	if c.store, err = state.Open(state.Config{Dir: n.home.Path("ledger"), Log: n.log, SnapshotEvery: uint64(n.cfg.snapshots())}); err != nil {
		return nil, c.remedied(err)
	}
	c.app = consensus.NewApp(consensus.AppConfig{
		Network: n.genesis.Network(), Store: c.store, Log: n.log, Upgrades: upgrades, Keep: keepBlocks,
		Beacon: c.key.Beacon(n.genesis.Network(), n.core.Net.Address()), Trust: n.genesis.trustBlocks(),
	})
	return c, nil
}

// root is what this node believes: a checkpoint of the configuration, or the validators
// of the genesis.
func (c *chain) root() (light.Root, error) {
	if c.n.cfg.Trust == "" {
		validators, err := consensus.FirstValidators(c.n.genesis.Network(), c.n.genesis.Ledger)
		return light.Root{Validators: validators, Time: c.n.genesis.Created}, err
	}
	height, hash, err := c.n.cfg.checkpoint()
	return light.Root{Height: height, Hash: hash}, err
}

// fullPeers lists the connected nodes that follow the ledger.
func (c *chain) fullPeers() []mesh.Address {
	var out []mesh.Address
	for _, p := range c.n.core.Net.Peers() {
		if p.Role != p2p.RoleLight {
			out = append(out, p.Address)
		}
	}
	return out
}

// start begins to follow the ledger in the background: the API answers meanwhile.
func (c *chain) start(ctx context.Context) {
	ctx, c.cancel = context.WithCancel(ctx)
	every := time.Duration(c.n.genesis.BlockMS) * time.Millisecond
	c.tasks.Go(func() { c.n.follow(ctx, every) })
	if c.store == nil {
		return
	}
	c.tasks.Go(func() { c.n.till.run(ctx, every) })
	desk := &consensus.Desk{Chain: c.running, Store: c.store, Penalise: c.n.core.Net.Penalise}
	c.n.core.Net.Handle("light", consensus.LightLimits, desk.ServeLight)
	c.n.core.Net.Handle("tx", consensus.TxLimits, desk.ServeTx)
	c.tasks.Go(func() {
		if err := c.run(ctx); err != nil && ctx.Err() == nil {
			err = c.remedied(err)
			c.mu.Lock()
			c.failed, c.doing = err, ""
			c.mu.Unlock()
			c.n.log.Error("the ledger has stopped; this node serves on without it", "err", err)
		}
	})
}

// remedied says of a damaged database what to do about it.
func (c *chain) remedied(err error) error {
	if known := (*consensus.DamagedError)(nil); errors.As(err, &known) || !state.Damaged(err) {
		return err
	}
	return &consensus.DamagedError{Home: c.n.home.Path("ledger"), Err: err}
}

// run follows the ledger until ctx ends or it fails. A new node that gets no snapshot tries
// the blocks from the first on, where their validators still answer for them, and one that
// gets no block tries snapshots again: peers come and go, and some lie.
func (c *chain) run(ctx context.Context) error {
	g := c.n.genesis
	app, err := json.Marshal(g.Ledger)
	if err != nil {
		return fmt.Errorf("encode the ledger's genesis: %w", err)
	}
	every := time.Duration(g.BlockMS) * time.Millisecond
	cfg := consensus.Config{
		Home: c.n.home.Path("ledger"), Genesis: consensus.NewGenesis(g.Network(), g.Created, app, g.trust(), every),
		App: c.app, Signer: c.key.Signer(), Net: c.n.core.Net, Open: consensus.Databases(c.store), Log: c.n.log, Metrics: c.n.metrics,
		Commit: every, Propose: patienceOf(g.BlockMS), Vote: patienceOf(g.BlockMS) / 2, Period: g.trust(),
	}
	if !c.believed.Hash.IsZero() {
		cfg.Checkpoint = &consensus.Checkpoint{Height: c.believed.Height, Hash: c.believed.Hash}
	}
	if c.n.cfg.CometListen != "" {
		cfg.Transport = consensus.TransportComet
		cfg.Comet = &consensus.Comet{Listen: c.n.cfg.CometListen, Peers: c.n.cfg.CometPeers, Key: c.n.key}
	}
	if err := c.app.Ready(); err != nil {
		return err
	}
	for way := c.farBehind; ; {
		cfg.StateSync = &consensus.StateSync{Trusted: c.light, Wanted: way, Patience: c.n.cfg.patience(), MaxBytes: c.n.cfg.SnapshotMB << 20}
		err := c.once(ctx, cfg)
		switch {
		case errors.Is(err, consensus.ErrNoSnapshot):
			if way = c.farBehind; time.Since(g.Created) < g.trust() {
				way = func(context.Context) (bool, error) { return false, nil }
			}
		case errors.Is(err, errNoBlocks):
			way = c.farBehind
		default:
			return err
		}
		c.n.log.Warn("the ledger is not here yet; another way is tried", "err", err)
	}
}

// once follows the ledger until ctx ends, it fails, or nothing of it can be had.
func (c *chain) once(ctx context.Context, cfg consensus.Config) error {
	full, err := consensus.New(cfg)
	if err != nil {
		return err
	}
	if err := full.Start(ctx); err != nil {
		return err
	}
	defer full.Stop()
	c.mu.Lock()
	c.full = full
	c.mu.Unlock()
	c.say("")
	defer func() {
		c.mu.Lock()
		c.full = nil
		c.mu.Unlock()
	}()
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	nothing := make(chan error, 1)
	c.tasks.Go(func() { nothing <- c.watch(watch, full) })
	select {
	case <-ctx.Done():
		return nil
	case err := <-c.app.Failed():
		return err
	case err := <-nothing:
		return err
	case err := <-full.Err():
		// The application's own words say more than consensus does about it.
		select {
		case said := <-c.app.Failed():
			return said
		case <-time.After(100 * time.Millisecond):
			return err
		}
	}
}

// errNoBlocks ends an attempt to fetch all blocks.
var errNoBlocks = errors.New("no peer has the first blocks of the ledger any more")

// watch tells of a node that fetches blocks and gets none, though the ledger is verified to
// be ahead: one that is new has another way, one that was away for long needs a person.
func (c *chain) watch(ctx context.Context, full *consensus.Chain) error {
	patience := c.n.cfg.patience()
	tick := time.NewTicker(min(patience/4, 10*time.Second))
	defer tick.Stop()
	last, since := mesh.Height(0), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s, err := full.Status()
		if err != nil || s.Height > last || s.Doing != "" {
			c.say("")
			last, since = s.Height, time.Now()
			continue
		}
		if time.Since(since) < patience {
			continue
		}
		head, err := c.light.Head(ctx)
		switch {
		case err != nil || head.Height <= s.Height+mesh.Height(c.n.cfg.syncFrom()):
		case s.Height == 0:
			return errNoBlocks
		default:
			c.say(fmt.Sprintf("no peer gives block %d, and the ledger is at %d: it may be that nobody keeps that block any more; if this stays, "+
				"stop the node, move %s/db away and start it: it then fetches a snapshot", s.Height+1, head.Height, c.n.home.Path("ledger")))
		}
	}
}

// say keeps what this node waits for.
func (c *chain) say(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doing = text
}

func (c *chain) said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doing
}

// patienceOf is how long a proposal is waited for: every block whose proposer is gone
// takes as much longer, and rounds that come to nothing wait longer by themselves.
func patienceOf(blockMS int64) time.Duration {
	return min(max(time.Duration(blockMS)*time.Millisecond, time.Second), 3*time.Second)
}

// farBehind reports whether a new node should fetch a snapshot. It waits until a peer shows
// how far the ledger is: blocks from the first on are fetched only where they are few. A
// validator of the genesis does not wait for long: it may be that nobody has begun.
func (c *chain) farBehind(ctx context.Context) (bool, error) {
	g := c.n.genesis
	if time.Since(g.Created) < time.Duration(c.n.cfg.syncFrom()*g.BlockMS)*time.Millisecond {
		return false, nil // so young that all blocks are few
	}
	first, alone, err := c.ofGenesis()
	if err != nil || alone {
		return false, err
	}
	if err := c.light.Stale(); err != nil {
		return false, c.stale(err)
	}
	c.say("waiting for a peer that shows how far the ledger is")
	for begun := time.Now(); ; {
		head, err := c.light.Head(ctx)
		switch {
		case err == nil:
			return head.Height > mesh.Height(c.n.cfg.syncFrom()), nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case light.Expired(err):
			return false, c.stale(err)
		case first && time.Since(begun) > beginWait:
			return false, nil
		}
		if !errors.Is(err, light.ErrNoPeers) {
			c.say(fmt.Sprintf("waiting for a peer that shows how far the ledger is: %v", err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// stale says what a new node needs that joins an old network.
func (c *chain) stale(err error) error {
	return fmt.Errorf("this node has no block yet, and the first validators, of %s, answer for what they sign for %s only: "+
		"anyone with their old keys could show it another ledger: %w", c.n.genesis.Created.Format(time.DateOnly), c.n.genesis.trust(), err)
}

// ofGenesis reports whether this node is one of the first validators, and the only one.
func (c *chain) ofGenesis() (first, alone bool, err error) {
	all, err := consensus.FirstValidators(c.n.genesis.Network(), c.n.genesis.Ledger)
	if err != nil {
		return false, false, err
	}
	key, err := c.key.Signer().GetPubKey()
	if err != nil {
		return false, false, fmt.Errorf("read the consensus key: %w", err)
	}
	first = all.HasAddress(key.Address())
	return first, first && all.Size() == 1, nil
}

// running returns the chain, or why there is none.
func (c *chain) running() (*consensus.Chain, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.failed != nil:
		return nil, fmt.Errorf("the ledger has stopped here: %w", c.failed)
	case c.full == nil && c.doing != "":
		return nil, fmt.Errorf("the ledger is still starting here: %s", c.doing)
	case c.full == nil:
		return nil, errors.New("the ledger is still starting here")
	}
	return c.full, nil
}

// close ends everything; ctx of start has ended.
func (c *chain) close() error {
	if c == nil {
		return nil
	}
	if c.cancel != nil {
		c.cancel()
	}
	c.tasks.Wait()
	if c.store != nil {
		return c.store.Close()
	}
	return nil
}

// reading is a view of the ledger at one moment.
type reading struct {
	ledger.View
	proven bool
	end    func() (mesh.Height, error)
}

// read opens a view; end it before its records are believed.
func (n *Node) read(ctx context.Context) (*reading, error) {
	switch {
	case n.chain == nil:
		return nil, api.ErrNoLedger
	case n.chain.store == nil:
		r := n.chain.light.Reader(ctx)
		return &reading{ledger.NewView(r), true, func() (mesh.Height, error) { return r.Height(), r.Err() }}, nil
	case n.chain.store.Height() == 0:
		if _, err := n.chain.running(); err != nil {
			return nil, err
		}
		return nil, errors.New("the ledger has no block here yet; try again in a second")
	}
	v := n.chain.store.View()
	return &reading{ledger.NewView(v), false, func() (mesh.Height, error) {
		return v.Height(), errors.Join(v.Err(), v.Close())
	}}, nil
}
