package ledger

import (
	"encoding/binary"
	"math/bits"

	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// Emission: the reward of epoch 0 is emission_first, and each next one is
// floor(reward * emission_decay / 2^64), whatever was paid of it, as long as coins are
// left to emit. With the default parameters that is 190,000 GNK decaying by
// exp(-0.000475) an epoch. Source: the reward formula of the reference network.

// nextReward decays a reward.
func nextReward(reward, decay uint64) uint64 {
	hi, _ := bits.Mul64(reward, decay)
	return hi
}

// takeReward returns the reward of the epoch that is closed and moves on to the next.
func (o *overlay) takeReward(p *ledgerpb.Params) uint64 {
	k := miscKey(miscEmission)
	reward := p.GetEmissionFirst()
	if b := o.Get(k); len(b) == 8 {
		reward = binary.BigEndian.Uint64(b)
	}
	o.set(k, be64(nextReward(reward, p.GetEmissionDecay())))
	t, _ := load[ledgerpb.Totals](o, miscKey(miscTotals))
	return min(reward, t.GetUnemitted())
}

// part returns floor(all * share / whole), for a share of at most the whole, and nothing
// of nothing.
func part(all, share, whole uint64) uint64 {
	if whole == 0 {
		return 0
	}
	return mulDiv(all, share, whole)
}
