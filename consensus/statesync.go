package consensus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	cmtstate "github.com/cometbft/cometbft/proto/tendermint/state"
	"github.com/cometbft/cometbft/proxy"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/types"
	"github.com/cometbft/cometbft/version"

	"github.com/gonka-mesh/mesh"
)

// StateSync configures the fetching of a snapshot.
type StateSync struct {
	Trusted Trusted
	// Discovery is how long peers are asked for snapshots before the best is taken;
	// default and least 5 s.
	Discovery time.Duration
	// Patience is how long the chain waits for a snapshot that can be used before it
	// ends with ErrNoSnapshot; default 2 minutes. A young network has none.
	Patience time.Duration
}

// ErrNoSnapshot ends a chain whose peers offered no snapshot: start without StateSync.
var ErrNoSnapshot = errors.New("no peer offered a snapshot of the ledger")

// Trusted gives verified facts of the ledger: a light client does, from a height and
// hash that its owner trusts.
type Trusted interface {
	// LightBlock returns the verified header of a block with its signatures and
	// validators. Their turns as proposers are in no hash: a wrong one makes this node
	// misjudge whose turn it is, until the set changes, but accept nothing false.
	LightBlock(ctx context.Context, h mesh.Height) (*types.LightBlock, error)
	// Params returns the consensus parameters that hold for a block. They are checked
	// against the header as far as that goes.
	Params(ctx context.Context, h mesh.Height) (types.ConsensusParams, error)
}

const trustedTimeout = 30 * time.Second // for one question, which may wait for the next blocks

// syncState fetches a snapshot and goes on with blocks from there.
func (c *Chain) syncState(p *parts) {
	patience := time.AfterFunc(orDefault(c.cfg.StateSync.Patience, 2*time.Minute), func() {
		if p.ctx.Err() == nil && !p.offered.Load() {
			c.fail(ErrNoSnapshot)
		}
	})
	defer patience.Stop()
	if err := c.fetchState(p); err != nil && p.ctx.Err() == nil {
		c.fail(fmt.Errorf("fetch a snapshot of the ledger: %w", err))
	}
}

func (c *Chain) fetchState(p *parts) error {
	if err := os.MkdirAll(p.cfg.StateSync.TempDir, 0o700); err != nil {
		return err
	}
	discovery := max(c.cfg.StateSync.Discovery, 5*time.Second)
	state, commit, err := p.snaps.Sync(&provider{ctx: p.ctx, c: c, trusted: c.cfg.StateSync.Trusted}, discovery)
	if err != nil {
		return err
	}
	p.access.RLock()
	defer p.access.RUnlock()
	if p.closed {
		return ErrNotRunning
	}
	// In this order a crash between any two steps leaves either a node that fetches
	// the snapshot again, or one that goes on from it.
	if err := p.blocks.SaveSeenCommit(state.LastBlockHeight, commit); err != nil {
		return fmt.Errorf("keep the commit of block %d: %w", state.LastBlockHeight, err)
	}
	if err := p.states.SetOfflineStateSyncHeight(state.LastBlockHeight); err != nil {
		return fmt.Errorf("keep the height of the snapshot: %w", err)
	}
	if err := p.states.Bootstrap(state); err != nil {
		return fmt.Errorf("keep the state of block %d: %w", state.LastBlockHeight, err)
	}
	c.log.Info("ledger: snapshot restored", "height", state.LastBlockHeight)
	if err := p.sync.Enable(state); err != nil {
		return fmt.Errorf("go on with blocks from %d: %w", state.LastBlockHeight, err)
	}
	return nil
}

// provider is the state provider of CometBFT's state sync over verified light blocks.
type provider struct {
	ctx     context.Context
	c       *Chain
	trusted Trusted
}

// block waits for a verified light block: those after the snapshot's may be yet to come.
func (p *provider) block(ctx context.Context, h uint64) (*types.LightBlock, error) {
	ctx, cancel := context.WithTimeout(ctx, trustedTimeout)
	defer cancel()
	stop := context.AfterFunc(p.ctx, cancel)
	defer stop()
	for {
		b, err := p.trusted.LightBlock(ctx, mesh.Height(h))
		if err == nil {
			if b.Height != int64(h) {
				return nil, fmt.Errorf("asked for block %d, got %d", h, b.Height)
			}
			return b, b.ValidateBasic(p.c.cfg.Genesis.ChainID)
		}
		if !errors.Is(err, ErrNoBlock) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// AppHash returns the state's hash after a block, which the next header has.
func (p *provider) AppHash(ctx context.Context, h uint64) ([]byte, error) {
	b, err := p.block(ctx, h+1)
	if err != nil {
		return nil, err
	}
	// State asks for it after the chunks came; a snapshot too young for that is
	// refused before they are fetched.
	if _, err := p.block(ctx, h+2); err != nil {
		return nil, err
	}
	return b.AppHash, nil
}

// Commit returns the signatures of a block.
func (p *provider) Commit(ctx context.Context, h uint64) (*types.Commit, error) {
	b, err := p.block(ctx, h)
	if err != nil {
		return nil, err
	}
	return b.Commit, nil
}

// State returns the state after a block. The validators of the block after the next
// are in it, because a change at block h takes effect at h+2.
func (p *provider) State(ctx context.Context, h uint64) (sm.State, error) {
	var b [3]*types.LightBlock
	for i := range b {
		var err error
		if b[i], err = p.block(ctx, h+uint64(i)); err != nil {
			return sm.State{}, err
		}
	}
	last, next, after := b[0], b[1], b[2]
	params, err := p.trusted.Params(ctx, mesh.Height(next.Height))
	if err != nil {
		return sm.State{}, err
	}
	if string(params.Hash()) != string(next.ConsensusHash) {
		return sm.State{}, fmt.Errorf("the consensus parameters given for block %d are not those of its header", next.Height)
	}
	return sm.State{
		Version:                          cmtstate.Version{Consensus: next.Version, Software: version.TMCoreSemVer},
		ChainID:                          p.c.cfg.Genesis.ChainID,
		InitialHeight:                    p.c.cfg.Genesis.InitialHeight,
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
		LastHeightConsensusParamsChanged: next.Height,
	}, nil
}

// snapshots notes when the application was offered a snapshot.
type snapshots struct {
	proxy.AppConnSnapshot
	p *parts
}

func (s snapshots) OfferSnapshot(ctx context.Context, r *abci.RequestOfferSnapshot) (*abci.ResponseOfferSnapshot, error) {
	s.p.offered.Store(true)
	return s.AppConnSnapshot.OfferSnapshot(ctx, r)
}
