package light

import (
	"context"
	"errors"
	"fmt"

	cmtlight "github.com/cometbft/cometbft/light"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
)

// maxBack is how many headers are followed back one by one.
const maxBack = 1000

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
	for b.Height > height {
		parent, err := c.block(ctx, peer, b.Height-1)
		if err != nil {
			return nil, err
		}
		if err := cmtlight.VerifyBackwards(parent.Header, b.Header); err != nil {
			return nil, &lie{fmt.Errorf("a header that is not the parent of the next: %w", err)}
		}
		b = parent
	}
	return b, c.signed(b)
}

// Params returns the consensus parameters that hold for a block; its header has their
// hash.
func (c *Client) Params(ctx context.Context, height mesh.Height) (types.ConsensusParams, error) {
	b, err := c.LightBlock(ctx, height)
	if err != nil {
		return types.ConsensusParams{}, err
	}
	return first(ctx, c, c.peers(), func(ctx context.Context, peer mesh.Address) (types.ConsensusParams, error) {
		answer, err := c.ask(ctx, peer, &lightpb.Ask{Want: &lightpb.Ask_Params{Params: uint64(height)}})
		if err != nil {
			return types.ConsensusParams{}, err
		}
		params, err := decodeParams(answer.GetParams())
		if err == nil && string(params.Hash()) != string(b.ConsensusHash) {
			err = errors.New("they are not those of the header")
		}
		if err != nil {
			return params, &lie{fmt.Errorf("false consensus parameters: %w", err)}
		}
		return params, nil
	})
}

func decodeParams(raw []byte) (types.ConsensusParams, error) {
	pb := new(cmtproto.ConsensusParams)
	if err := pb.Unmarshal(raw); err != nil {
		return types.ConsensusParams{}, err
	}
	if pb.Block == nil || pb.Evidence == nil || pb.Validator == nil || pb.Version == nil || pb.Abci == nil {
		return types.ConsensusParams{}, errors.New("a part is missing")
	}
	params := types.ConsensusParamsFromProto(*pb)
	return params, params.ValidateBasic()
}
