package light

import (
	"context"
	"errors"

	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
)

// expose deals with peers whose header is not the one that two thirds of the
// validators signed. Where a third signed it nevertheless, those validators attacked:
// the honest peers get the evidence.
func (c *Client) expose(ctx context.Context, from, truth *types.LightBlock, honest []mesh.Address, others []claim) {
	ctx, cancel := context.WithTimeout(ctx, exposeTime)
	defer cancel()
	for _, k := range others {
		c.accuse(ctx, from, truth, honest, k.peers[0], truth.Height, k.hash)
		for _, p := range k.peers {
			c.caught(p, &lie{errors.New("a header that contradicts the one that the validators signed")})
		}
	}
}

// accuse reports a peer's header to those who have another one, if there is evidence.
func (c *Client) accuse(ctx context.Context, from, truth *types.LightBlock, honest []mesh.Address, liar mesh.Address, height int64, hash mesh.Hash) {
	trace, err := c.follow(ctx, liar, from, height, hash, third)
	if err != nil {
		c.cfg.Log.Debug("a false header has too few signatures to be evidence", "err", err)
		return
	}
	for i, b := range trace[1:] {
		other := truth
		if b.Height != truth.Height {
			if other, err = c.block(ctx, honest[0], b.Height); err != nil {
				c.cfg.Log.Debug("fetch what evidence is measured by", "err", err)
				return
			}
		}
		if string(other.Hash()) == string(b.Hash()) {
			continue
		}
		ev := evidence(b, other, trace[i])
		if ev == nil {
			return
		}
		c.cfg.Log.Error("validators signed two headers", "height", b.Height)
		for _, p := range honest {
			if err := c.report(ctx, p, ev); err != nil {
				c.cfg.Log.Debug("report evidence", "err", err)
			}
		}
		return
	}
}

// evidence says that validators of common signed a header beside the true one; nil
// where the ledger has no header that it could be checked against.
func evidence(conflicting, truth, common *types.LightBlock) *types.LightClientAttackEvidence {
	ev := &types.LightClientAttackEvidence{ConflictingBlock: conflicting}
	if ev.ConflictingHeaderIsInvalid(truth.Header) { // made up, so judged by the last common validators
		if common.Height == 0 {
			return nil
		}
		ev.CommonHeight, ev.Timestamp, ev.TotalVotingPower = common.Height, common.Time, common.ValidatorSet.TotalVotingPower()
	} else {
		ev.CommonHeight, ev.Timestamp, ev.TotalVotingPower = truth.Height, truth.Time, truth.ValidatorSet.TotalVotingPower()
	}
	ev.ByzantineValidators = ev.GetByzantineValidators(common.ValidatorSet, truth.SignedHeader)
	return ev
}
