package consensus

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/cometbft/cometbft/blocksync"
	cmtcfg "github.com/cometbft/cometbft/config"
	cs "github.com/cometbft/cometbft/consensus"
	"github.com/cometbft/cometbft/evidence"
	cmtlog "github.com/cometbft/cometbft/libs/log"
	"github.com/cometbft/cometbft/mempool"
	cp2p "github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/proxy"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh/consensus/ledger"
)

// parts are the pieces of a running chain, in the order in which they are built.
type parts struct {
	cfg    *cmtcfg.Config
	log    cmtlog.Logger
	blocks *store.BlockStore
	states sm.Store
	turns  *turns
	// The databases of both as they were opened, for what CometBFT does not delete.
	blocksDB, statesDB dbm.DB
	app                proxy.AppConns
	events             *types.EventBus
	pool               *mempool.CListMempool
	forged             *forged
	// evidenceDB is closed by the pool once there is one.
	evidenceDB dbm.DB
	evidence   *evidence.Pool
	exec       *sm.BlockExecutor
	sync       *blocksync.Reactor
	state      *cs.State
	reactor    *cs.Reactor
	snaps      *snapshotReactor
	sw         cp2p.Switcher
	comet      *cp2p.MultiplexTransport // nil with the mesh's transport
	fetch      bool                     // a snapshot is fetched first
	tasks      sync.WaitGroup           // that call the application or read the stores
	started    bool
	clock      net.Listener
	watched    chan struct{} // closed when watchBlocks ended; nil when it did not begin
	ctx        context.Context
	cancel     context.CancelFunc

	ended  atomic.Bool  // it is being closed
	access sync.RWMutex // held for reading by those who read the stores
	closed bool         // the stores are; guarded by access
}

// idleGossip is the pause of a gossip loop that has nothing to send.
const idleGossip = 10 * time.Millisecond

// cometConfig is what CometBFT's parts read of their configuration.
func (c *Chain) cometConfig() *cmtcfg.Config {
	cfg := cmtcfg.DefaultConfig()
	cfg.SetRoot(c.cfg.Home)
	cfg.Consensus.SetWalFile(c.wal())
	cfg.Consensus.TimeoutCommit = c.cfg.Commit
	cfg.Consensus.TimeoutPropose = c.cfg.Propose
	cfg.Consensus.TimeoutPrevote = c.cfg.Vote
	cfg.Consensus.TimeoutPrecommit = c.cfg.Vote
	cfg.Consensus.PeerGossipSleepDuration = idleGossip
	cfg.Consensus.BlockTimeTolerance = 2 * c.cfg.clockSkew()
	cfg.Mempool.MaxTxBytes = ledger.MaxTxBytes
	cfg.Mempool.Size = c.cfg.poolTxs
	cfg.Mempool.MaxTxsBytes = ledger.PoolBytes
	cfg.Mempool.CacheSize = 4 * c.cfg.poolTxs
	// All peers count as persistent ones. Beyond these, a node hands its transactions to
	// nobody, or a network of 150 would send each 150 times over.
	cfg.Mempool.ExperimentalMaxGossipConnectionsToPersistentPeers = 32
	cfg.BlockSync.AdaptiveSync = false // it can make a validator that catches up vote twice
	return cfg
}

// build assembles a chain; what it opened is closed again where it fails. CometBFT's
// constructors panic over stores that contradict themselves.
func (c *Chain) build(ctx context.Context) (p *parts, err error) {
	p = &parts{cfg: c.cometConfig()}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.log = newLogger(p.ctx, c.log)
	defer func() {
		if r := recover(); r != nil {
			err = &DamagedError{c.cfg.Home, fmt.Errorf("%v", r)}
		}
		if err != nil {
			p.close(c)
			p = nil
		}
	}()
	if err = c.openStores(p); err != nil {
		return p, err
	}
	state, err := p.states.LoadFromDBOrGenesisDoc(c.cfg.Genesis)
	if err != nil {
		return p, &DamagedError{c.cfg.Home, fmt.Errorf("read the state: %w", err)}
	}
	if state.ChainID != c.cfg.Genesis.ChainID {
		return p, fmt.Errorf("the ledger in %s is that of network %s, this node is of %s", c.cfg.Home, state.ChainID, c.cfg.Genesis.ChainID)
	}
	if err = c.checkStores(p, state); err != nil {
		return p, err
	}
	if err = c.skew.atStart(state); err != nil {
		return p, err
	}
	if err = c.compareCheckpoint(p); err != nil {
		return p, err
	}
	if err = c.fresh(state); err != nil {
		return p, err
	}
	if err = c.freshen(p, state); err != nil {
		return p, err
	}
	if err = c.startApp(p); err != nil {
		return p, err
	}
	if p.fetch, err = c.wanted(ctx, p, state); err != nil {
		return p, err
	}
	if !p.fetch {
		if state, err = c.handshake(ctx, p, state); err != nil {
			return p, err
		}
	}
	if err = c.buildReactors(p, state); err != nil {
		return p, err
	}
	return p, c.buildSwitch(p, state)
}

func (c *Chain) openStores(p *parts) error {
	open := func(name string) (dbm.DB, error) {
		db, err := c.cfg.Open(name)
		if err != nil {
			return nil, &DamagedError{c.cfg.Home, fmt.Errorf("open database %s: %w", name, err)}
		}
		return db, nil
	}
	written := func(db dbm.DB) dbm.DB { return writtenDB{endedDB{db, &p.ended}, c, p} }
	db, err := open(StoreBlocks)
	if err != nil {
		return err
	}
	// NewBlockStore panics over a database that it cannot read.
	blocks, err := try(func() *store.BlockStore { return store.NewBlockStore(written(db)) })
	if err != nil {
		db.Close()
		return &DamagedError{c.cfg.Home, fmt.Errorf("read the blocks: %w", err)}
	}
	p.blocks, p.blocksDB = blocks, db
	if db, err = open(StoreState); err != nil {
		return err
	}
	p.states, p.turns, p.statesDB = sm.NewStore(stateDB{written(db)}, sm.StoreOptions{}), newTurns(db), db
	if db, err = open(StoreEvidence); err != nil {
		return err
	}
	p.evidenceDB = endedDB{db, &p.ended}
	return nil
}

// try runs a constructor that panics where others return an error.
func try[T any](f func() T) (v T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return f(), nil
}

// checkStores reads what the last block left and compares it, so that a damaged
// database shows now and not in the middle of a vote.
func (c *Chain) checkStores(p *parts, state sm.State) error {
	bad := func(format string, a ...any) error {
		return &DamagedError{c.cfg.Home, fmt.Errorf(format, a...)}
	}
	h := p.blocks.Height()
	if h == 0 {
		return nil
	}
	if h != state.LastBlockHeight && h != state.LastBlockHeight+1 {
		return bad("the last block is %d, the last state is that of block %d", h, state.LastBlockHeight)
	}
	meta, block := p.blocks.LoadBlockMeta(h), p.blocks.LoadBlock(h)
	if meta == nil || block == nil {
		return bad("block %d is missing", h)
	}
	if string(block.Hash()) != string(meta.BlockID.Hash) {
		return bad("block %d has another hash than it should", h)
	}
	if h == state.LastBlockHeight && !meta.BlockID.Equals(state.LastBlockID) {
		return bad("block %d is not the one that the state follows", h)
	}
	if p.blocks.LoadSeenCommit(h) == nil {
		return bad("the commit of block %d is missing", h)
	}
	if _, err := p.states.LoadValidators(state.LastBlockHeight + 1); err != nil {
		return bad("read the validators of block %d: %w", state.LastBlockHeight+1, err)
	}
	return nil
}

func (c *Chain) startApp(p *parts) error {
	p.forged = newForged(c.cfg.App)
	p.app = proxy.NewAppConns(proxy.NewConnSyncLocalClientCreator(p.forged), proxy.NopMetrics())
	p.app.SetLogger(p.log)
	if err := p.app.Start(); err != nil {
		return fmt.Errorf("connect the application: %w", err)
	}
	p.events = types.NewEventBusWithBufferCapacity(256)
	p.events.SetLogger(p.log)
	if err := p.events.Start(); err != nil {
		return fmt.Errorf("start the event bus: %w", err)
	}
	return nil
}

// wanted reports whether a snapshot is fetched.
func (c *Chain) wanted(ctx context.Context, p *parts, state sm.State) (bool, error) {
	cfg := c.cfg.StateSync
	if cfg == nil || state.LastBlockHeight > 0 || p.blocks.Height() > 0 || c.alone(state) {
		return false, nil
	}
	if cfg.Wanted == nil {
		return true, nil
	}
	return cfg.Wanted(ctx)
}

// alone reports whether this node is the only validator, so that nobody is ahead of it.
func (c *Chain) alone(state sm.State) bool {
	return c.self != nil && state.Validators.Size() == 1 && state.Validators.HasAddress(c.self)
}

// handshake brings the application to the height of the blocks, and gives the state
// after it.
func (c *Chain) handshake(ctx context.Context, p *parts, state sm.State) (sm.State, error) {
	hs := cs.NewHandshaker(p.states, state, p.blocks, c.cfg.Genesis)
	hs.SetLogger(p.log)
	hs.SetEventBus(p.events)
	if err := hs.HandshakeWithContext(ctx, p.app); err != nil {
		return state, fmt.Errorf("bring the application to the height of the ledger: %w", err)
	}
	state, err := p.states.Load()
	if err != nil {
		return state, &DamagedError{c.cfg.Home, fmt.Errorf("read the state: %w", err)}
	}
	return state, nil
}

func (c *Chain) buildReactors(p *parts, state sm.State) error {
	block := !p.fetch && !c.alone(state) // fetch blocks before consensus
	wait := p.fetch || block
	p.pool = mempool.NewCListMempool(p.cfg.Mempool, p.app.Mempool(), state.LastBlockHeight,
		mempool.WithPreCheck(sm.TxPreCheck(state)), mempool.WithPostCheck(sm.TxPostCheck(state)))
	p.pool.SetLogger(p.log)
	if p.cfg.Consensus.WaitForTxs() {
		p.pool.EnableTxsAvailable()
	}
	var err error
	if p.evidence, err = evidence.NewPool(p.evidenceDB, p.states, p.blocks); err != nil {
		return &DamagedError{c.cfg.Home, fmt.Errorf("open the evidence: %w", err)}
	}
	p.evidence.SetLogger(p.log)
	p.exec = sm.NewBlockExecutor(p.states, p.log, blockConn{p.app.Consensus(), c, p}, wholePool{p.pool}, p.evidence, p.blocks,
		sm.BlockExecutorWithBlockTimeTolerance(p.cfg.Consensus.BlockTimeTolerance))

	// After a state sync the block store is empty until the next block came.
	var synced int64
	if p.blocks.Height() == 0 {
		h, err := p.states.GetOfflineStateSyncHeight()
		if err == nil && h == state.LastBlockHeight {
			synced = h
		}
	}
	p.sync = blocksync.NewReactor(block, false, state.Copy(), p.exec, p.blocks, c.self, synced, blocksync.NopMetrics())
	p.sync.SetLogger(p.log)
	p.state = cs.NewState(p.cfg.Consensus, state.Copy(), p.exec, p.blocks, p.pool, p.evidence, cs.OfflineStateSyncHeight(synced))
	p.state.SetLogger(p.log)
	if c.guard != nil {
		p.state.SetPrivValidator(c.guard)
	}
	p.reactor = cs.NewReactor(p.state, wait)
	p.reactor.SetLogger(p.log)
	p.reactor.SetEventBus(p.events)
	p.snaps = newSnapshotReactor(p.ctx, p.app.Snapshot(), c.log)
	p.snaps.SetLogger(p.log)
	return nil
}

func (c *Chain) buildSwitch(p *parts, state sm.State) error {
	pool := &txReactor{mempool.NewReactor(p.cfg.Mempool, p.pool, p.reactor.WaitSync()), p.forged}
	pool.SetLogger(p.log)
	ev := evidence.NewReactor(p.evidence)
	ev.SetLogger(p.log)
	// Blocksync finds the mempool and consensus by these names.
	reactors := []namedReactor{{"MEMPOOL", pool}, {"BLOCKSYNC", p.sync}, {"CONSENSUS", &voteReactor{Reactor: p.reactor, c: c}}, {"EVIDENCE", ev}, {"STATESYNC", p.snaps}}
	if c.cfg.Transport == TransportComet {
		return c.buildComet(p, state, reactors)
	}
	sw, err := newMeshSwitch(c.cfg.Net, reactors, c.log, p.log)
	if err != nil {
		return fmt.Errorf("build the ledger's switch: %w", err)
	}
	p.sw = sw
	return nil
}

// close stops what was started and closes what was opened, in the order of node
// shutdown in CometBFT: events, reactors and peers, the application's connections,
// then the stores. The host is not ours.
func (p *parts) close(c *Chain) {
	p.ended.Store(true)
	p.cancel()
	quiet := func(what string, err error) {
		if err != nil {
			c.log.Debug("stop the ledger", "part", what, "err", err)
		}
	}
	if p.clock != nil {
		quiet("clock", p.clock.Close())
	}
	if p.events != nil {
		quiet("events", p.events.Stop())
	}
	if p.watched != nil {
		<-p.watched
	}
	if p.started {
		quiet("switch", p.sw.Stop())
		// The gossip loops of the reactors look up only between two rounds, and a read
		// from a store that is closed would end the process.
		time.Sleep(50*time.Millisecond + 2*idleGossip)
	}
	p.tasks.Wait()
	if p.comet != nil {
		quiet("transport", p.comet.Close())
	}
	if p.app != nil {
		quiet("application", p.app.Stop())
	}
	p.access.Lock()
	defer p.access.Unlock()
	p.closed = true
	if p.blocks != nil {
		quiet("blocks", p.blocks.Close())
	}
	if p.states != nil {
		quiet("state", p.states.Close())
	}
	if p.evidenceDB != nil {
		quiet("evidence", p.evidenceDB.Close())
	}
}
