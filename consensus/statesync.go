package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	cmtstate "github.com/cometbft/cometbft/proto/tendermint/state"
	"github.com/cometbft/cometbft/proxy"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/types"
	"github.com/cometbft/cometbft/version"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/light"
)

// StateSync configures the fetching of a snapshot.
type StateSync struct {
	Trusted Trusted
	// Wanted is asked where nothing is here yet: whether a snapshot is fetched, or else all
	// blocks. It may wait for peers to know. nil: one is.
	Wanted func(ctx context.Context) (bool, error)
	// Discovery is how long peers are asked for snapshots before one is taken; default 5 s.
	Discovery time.Duration
	// Patience is how long the chain goes on without a part of a snapshot that can be used
	// before it ends with ErrNoSnapshot; default 2 minutes. A young network has none.
	Patience time.Duration
	// MaxBytes is the largest snapshot that is fetched; default 64 GiB.
	MaxBytes int64

	chunkPatience time.Duration // of tests: until another peer is asked for a chunk too
}

// ErrNoSnapshot ends a chain that got no snapshot: start again, with it or without.
var ErrNoSnapshot = errors.New("no peer gave a snapshot of the ledger that can be used")

// Trusted gives verified facts of the ledger: a light client does, from a height and
// hash that its owner trusts.
type Trusted interface {
	// Head returns the newest verified header.
	Head(ctx context.Context) (light.Head, error)
	// LightBlock returns the verified header of a block with its signatures and
	// validators. Their turns as proposers are in no hash: a wrong one makes this node
	// misjudge whose turn it is, until the set changes, but accept nothing false.
	LightBlock(ctx context.Context, h mesh.Height) (*types.LightBlock, error)
}

// trustedTimeout is for the headers of one snapshot: a client that trusts a later one
// follows parents back to them, one by one.
const trustedTimeout = 3 * time.Minute

// syncState fetches a snapshot and goes on with blocks from there.
func (c *Chain) syncState(p *parts) {
	if err := c.fetchState(p); err != nil && p.ctx.Err() == nil {
		c.fail(fmt.Errorf("fetch a snapshot of the ledger: %w", err))
	}
}

func (c *Chain) fetchState(p *parts) error {
	f := newFetch(c, p)
	p.snaps.begin(f)
	synced, err := f.run(p.ctx)
	p.snaps.begin(nil)
	if err != nil {
		return err
	}
	p.access.RLock()
	defer p.access.RUnlock()
	if p.closed {
		return ErrNotRunning
	}
	// The application has its state since the last chunk. Until Bootstrap is done CometBFT
	// has none, and a node that is started then drops that state and fetches again (freshen).
	height := synced.state.LastBlockHeight
	c.step("restored")
	if err := p.blocks.SaveSeenCommit(height, synced.commit); err != nil {
		return fmt.Errorf("keep the commit of block %d: %w", height, err)
	}
	if err := p.states.SetOfflineStateSyncHeight(height); err != nil {
		return fmt.Errorf("keep the height of the snapshot: %w", err)
	}
	c.step("committed")
	if err := p.states.Bootstrap(synced.state); err != nil {
		return fmt.Errorf("keep the state of block %d: %w", height, err)
	}
	c.step("bootstrapped")
	c.log.Info("ledger: snapshot restored", "height", height)
	c.doing.say("")
	if err := p.sync.Enable(synced.state); err != nil {
		return fmt.Errorf("go on with blocks from %d: %w", height, err)
	}
	return nil
}

// step tells a test how far the fetching of a snapshot is.
func (c *Chain) step(name string) {
	if c.cfg.step != nil {
		c.cfg.step(name)
	}
}

// freshen makes the application begin where CometBFT does, at nothing: the process may
// have ended between the last chunk of a snapshot and what CometBFT keeps of it, or a
// snapshot may have been given up in the middle.
func (c *Chain) freshen(p *parts, state sm.State) error {
	app, ok := c.cfg.App.(interface{ Reset() error })
	if state.LastBlockHeight > 0 || p.blocks.Height() > 0 || !ok {
		return nil
	}
	info, err := c.cfg.App.Info(p.ctx, proxy.RequestInfo)
	if err != nil {
		return fmt.Errorf("ask the application for its height: %w", err)
	}
	if info.LastBlockHeight > 0 {
		c.log.Warn("ledger: a snapshot was taken in and not gone on from; it is dropped", "height", info.LastBlockHeight)
	}
	return app.Reset()
}

// synced is what a node that took a snapshot goes on from.
type synced struct {
	state   sm.State
	commit  *types.Commit
	appHash []byte // of the state after the snapshot's block, which the next header has
}

// verified makes that from headers that are trusted. The validators of the block after the
// next are in it, because a change at block h takes effect at h+2. Consensus parameters are
// the genesis document's: the ledger never changes them but for the version, which a header
// has, and a header has the hash of some of them alone.
func (c *Chain) verified(ctx context.Context, trusted Trusted, h uint64) (*synced, error) {
	ctx, cancel := context.WithTimeout(ctx, trustedTimeout)
	defer cancel()
	var b [3]*types.LightBlock
	for i := len(b) - 1; i >= 0; i-- { // the last first: the others are its parents
		height := h + uint64(i)
		var err error
		if b[i], err = trusted.LightBlock(ctx, mesh.Height(height)); err != nil {
			return nil, fmt.Errorf("verify header %d: %w", height, err)
		}
		if b[i].Height != int64(height) {
			return nil, fmt.Errorf("asked for header %d, got %d", height, b[i].Height)
		}
		if err := b[i].ValidateBasic(c.cfg.Genesis.ChainID); err != nil {
			return nil, fmt.Errorf("verify header %d: %w", height, err)
		}
	}
	last, next, after := b[0], b[1], b[2]
	params := *c.cfg.Genesis.ConsensusParams
	params.Version.App = next.Version.App // of an upgrade, if there was one
	if string(params.Hash()) != string(next.ConsensusHash) {
		return nil, fmt.Errorf("block %d has other consensus parameters than the genesis: this software is not that of the network", next.Height)
	}
	return &synced{appHash: next.AppHash, commit: last.Commit, state: sm.State{
		Version:                          cmtstate.Version{Consensus: next.Version, Software: version.TMCoreSemVer},
		ChainID:                          c.cfg.Genesis.ChainID,
		InitialHeight:                    c.cfg.Genesis.InitialHeight,
		LastBlockHeight:                  last.Height,
		LastBlockTime:                    last.Time,
		LastBlockID:                      last.Commit.BlockID,
		AppHash:                          next.AppHash,
		LastResultsHash:                  next.LastResultsHash,
		LastValidators:                   last.ValidatorSet,
		Validators:                       next.ValidatorSet,
		NextValidators:                   after.ValidatorSet,
		LastHeightValidatorsChanged:      after.Height,
		ConsensusParams:                  params,
		LastHeightConsensusParamsChanged: c.cfg.Genesis.InitialHeight,
	}}, nil
}

// taken checks that the application is where the headers say, and that this software has
// the rules of the block that is next.
func (c *Chain) taken(ctx context.Context, p *parts, s *synced) error {
	info, err := p.app.Query().Info(ctx, proxy.RequestInfo)
	if err != nil {
		return fmt.Errorf("ask the application for its state: %w", err)
	}
	if info.LastBlockHeight != s.state.LastBlockHeight || string(info.LastBlockAppHash) != string(s.appHash) {
		return fmt.Errorf("%w: the state is that of block %d with hash %X, want block %d with %X", errFalse,
			info.LastBlockHeight, info.LastBlockAppHash, s.state.LastBlockHeight, s.appHash)
	}
	if want := s.state.Version.Consensus.App; info.AppVersion != want {
		return fmt.Errorf("%w: block %d is of version %d of the ledger's rules, this software has version %d: install the one of the network",
			errEnd, s.state.LastBlockHeight+1, want, info.AppVersion)
	}
	return nil
}

// answerOf names what an application says to a snapshot.
func answerOf(r abci.ResponseOfferSnapshot_Result) error {
	switch r {
	case abci.ResponseOfferSnapshot_ACCEPT:
		return nil
	case abci.ResponseOfferSnapshot_REJECT_SENDER:
		return errFalse
	case abci.ResponseOfferSnapshot_REJECT, abci.ResponseOfferSnapshot_REJECT_FORMAT:
		return errRefused
	}
	return fmt.Errorf("%w: the application answers a snapshot with %s", errEnd, r)
}
