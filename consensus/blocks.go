package consensus

import (
	"context"
	"fmt"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/light"
)

// ErrNoBlock is returned for a height that is not kept or not reached.
var ErrNoBlock = light.ErrNoBlock

func noBlock(h mesh.Height) error { return fmt.Errorf("block %d: %w", h, ErrNoBlock) }

// Block returns a block.
func (c *Chain) Block(h mesh.Height) (*types.Block, error) {
	p, done, err := c.hold()
	if err != nil {
		return nil, err
	}
	defer done()
	b := p.blocks.LoadBlock(int64(h))
	if b == nil {
		return nil, noBlock(h)
	}
	return b, nil
}

// Results returns what the transactions of a block did.
func (c *Chain) Results(h mesh.Height) (*abci.ResponseFinalizeBlock, error) {
	p, done, err := c.hold()
	if err != nil {
		return nil, err
	}
	defer done()
	r, err := p.states.LoadFinalizeBlockResponse(int64(h))
	if err != nil {
		return nil, fmt.Errorf("results of block %d: %w: %w", h, ErrNoBlock, err)
	}
	return r, nil
}

// Commit returns the signatures of a block: those that this node saw for the last
// one, and for others those that the next block fixed.
func (c *Chain) Commit(h mesh.Height) (*types.Commit, error) {
	p, done, err := c.hold()
	if err != nil {
		return nil, err
	}
	defer done()
	return p.commit(h)
}

func (p *parts) commit(h mesh.Height) (*types.Commit, error) {
	commit := p.blocks.LoadBlockCommit(int64(h))
	if commit == nil {
		commit = p.blocks.LoadSeenCommit(int64(h))
	}
	if commit == nil {
		return nil, noBlock(h)
	}
	return commit, nil
}

// validators returns the validators of a block with their turns as proposers. Those of
// the next block are known too. For checking signatures, signers is enough.
func (p *parts) validators(h mesh.Height) (*types.ValidatorSet, error) {
	v, err := p.turns.at(p.states, int64(h))
	if err != nil {
		return nil, fmt.Errorf("validators of block %d: %w: %w", h, ErrNoBlock, err)
	}
	return v, nil
}

// signers returns the validators of a block without their turns as proposers.
func (p *parts) signers(h mesh.Height) (*types.ValidatorSet, error) {
	fast, ok := p.states.(interface {
		LoadValidatorsFast(height int64) (*types.ValidatorSet, error)
	})
	if !ok {
		return p.validators(h)
	}
	v, err := fast.LoadValidatorsFast(int64(h))
	if err != nil {
		return nil, fmt.Errorf("validators of block %d: %w: %w", h, ErrNoBlock, err)
	}
	return v, nil
}

// Header returns a header with its signatures.
func (c *Chain) Header(h mesh.Height) (*types.SignedHeader, error) {
	p, done, err := c.hold()
	if err != nil {
		return nil, err
	}
	defer done()
	return p.header(h)
}

func (p *parts) header(h mesh.Height) (*types.SignedHeader, error) {
	meta := p.blocks.LoadBlockMeta(int64(h))
	if meta == nil {
		return nil, noBlock(h)
	}
	commit, err := p.commit(h)
	if err != nil {
		return nil, err
	}
	return &types.SignedHeader{Header: &meta.Header, Commit: commit}, nil
}

// LightBlock returns a header with its signatures, and its validators with their turns:
// what a node needs that syncs to the state of that block.
func (c *Chain) LightBlock(_ context.Context, h mesh.Height) (*types.LightBlock, error) {
	p, done, err := c.hold()
	if err != nil {
		return nil, err
	}
	defer done()
	header, err := p.header(h)
	if err != nil {
		return nil, err
	}
	vals, err := p.validators(h)
	if err != nil {
		return nil, err
	}
	return &types.LightBlock{SignedHeader: header, ValidatorSet: vals}, nil
}

// AddEvidence takes a proof of misbehaviour from a light peer.
func (c *Chain) AddEvidence(ev types.Evidence) error {
	p, done, err := c.hold()
	if err != nil {
		return err
	}
	defer done()
	return p.evidence.AddEvidence(ev)
}
