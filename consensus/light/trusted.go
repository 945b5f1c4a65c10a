package light

import (
	"context"
	"fmt"
	"time"

	cmtlight "github.com/cometbft/cometbft/light"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
)

const (
	// maxBack is how many headers are followed back one by one.
	maxBack = 1000
	// backPace is between two of them, so that a peer does not take it for an attack.
	backPace = 25 * time.Millisecond
)

// LightBlock returns a verified header with its signatures and validators: what state
// sync trusts. ErrNoBlock says that peers do not have it, or not yet.
func (c *Client) LightBlock(ctx context.Context, height mesh.Height) (*types.LightBlock, error) {
	h := int64(height)
	if h <= 0 {
		return nil, fmt.Errorf("block %d: %w", height, ErrNoBlock)
	}
	if b, _, _ := c.store.around(h); b != nil {
		return b, nil
	}
	head, err := c.Head(ctx)
	if err == nil && head.Height < height {
		c.outdate()
		head, err = c.Head(ctx)
	}
	if err != nil {
		return nil, err
	}
	if head.Height < height {
		return nil, fmt.Errorf("block %d, and the newest that was verified is %d: %w", height, head.Height, ErrNoBlock)
	}
	b, before, after := c.store.around(h)
	if b != nil {
		return b, nil
	}
	peers := c.peers()
	if before == nil || c.expired(before) {
		if r := c.cfg.Root; r.Height <= height {
			if before, err = c.root(ctx, peers); err != nil {
				c.cfg.Log.Debug("the root of trust cannot be had", "err", err)
			}
		}
	}
	if before != nil && before.Height < h && !c.expired(before) {
		return first(ctx, c, peers, func(ctx context.Context, peer mesh.Address) (*types.LightBlock, error) {
			b, err := c.block(ctx, peer, h)
			if err != nil {
				return nil, err
			}
			trace, err := c.skip(before, b, twoThirds, func(h int64) (*types.LightBlock, error) { return c.block(ctx, peer, h) })
			if err == nil {
				c.store.save(trace[1:]...)
			}
			return b, err
		})
	}
	if after == nil || after.Height-h > maxBack {
		return nil, fmt.Errorf("block %d is too far from every header that this node trusts", height)
	}
	return first(ctx, c, peers, func(ctx context.Context, peer mesh.Address) (*types.LightBlock, error) {
		return c.back(ctx, peer, after, h)
	})
}

// back follows the hashes of parents from a trusted header.
func (c *Client) back(ctx context.Context, peer mesh.Address, b *types.LightBlock, height int64) (*types.LightBlock, error) {
	for steps := 0; b.Height > height; steps++ {
		if steps > 100 {
			select {
			case <-time.After(backPace):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		parent, err := c.block(ctx, peer, b.Height-1)
		if err != nil {
			return nil, err
		}
		if err := cmtlight.VerifyBackwards(parent.Header, b.Header); err != nil {
			return nil, &lie{fmt.Errorf("a header that is not the parent of the next: %w", err)}
		}
		b = parent
	}
	if err := c.signed(b); err != nil {
		return nil, err
	}
	c.store.save(b)
	return b, nil
}
