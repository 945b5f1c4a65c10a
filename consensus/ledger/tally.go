package ledger

import (
	"math"
	"math/bits"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// electorate is who votes with what weight: the hosts of the last epoch that was
// closed, by the work they proved in it. Hosts in jail do not count.
type electorate struct {
	m       *Machine
	o       *overlay
	epoch   mesh.Epoch // whose work it is
	weights []Weight
	total   uint64
	handed  [][]handed // of each weight, once it is asked for: the same for all votes
}

// handed is a part of a host's weight that another host votes.
type handed struct {
	to     mesh.Address
	weight uint64
}

// electorate finds the voters. An epoch is closed some blocks after the next has
// begun; before the first is closed, the weights are those with which the network
// began.
func (m *Machine) electorate(o *overlay, b *blockState) *electorate {
	e := &electorate{m: m, o: o}
	now := b.epoch.GetEpoch()
	found := false
	for back := uint64(1); back <= 2 && back <= now && !found; back++ {
		var rewards *ledgerpb.Rewards
		if rewards, found = load[ledgerpb.Rewards](o, rewardsKey(now-back)); found {
			e.epoch = mesh.Epoch(now - back)
			for _, r := range rewards.GetRewards() {
				e.add(mesh.AddressOf(r.GetHost()), r.GetWeight())
			}
		}
	}
	if !found {
		for _, w := range m.cfg.Work.Weights(o, 0) {
			e.add(w.Host, w.Weight)
		}
	}
	return e
}

func (e *electorate) add(host mesh.Address, weight uint64) {
	if weight > 0 && e.o.standing(host) == nil {
		e.weights = append(e.weights, Weight{host, weight})
		e.total = saturate(e.total, weight)
	}
}

// count counts the ballots of a proposal into it. Who voted has voted with all its
// weight; of one who did not, the part that comes from a model is voted by whom it
// delegated that to, one step and no further. What is neither is not cast.
func (e *electorate) count(p *ledgerpb.Proposal) {
	sums := map[ledgerpb.Option]*uint64{
		ledgerpb.Option_YES: &p.Yes, ledgerpb.Option_NO: &p.No,
		ledgerpb.Option_ABSTAIN: &p.Abstain, ledgerpb.Option_VETO: &p.Veto,
	}
	cast := func(option ledgerpb.Option, weight uint64) {
		if sum := sums[option]; sum != nil {
			*sum = saturate(*sum, weight)
		}
	}
	p.Yes, p.No, p.Abstain, p.Veto, p.Weight = 0, 0, 0, 0, e.total
	for i, w := range e.weights {
		if option := e.ballot(p.GetId(), w.Host); option != ledgerpb.Option_NONE {
			cast(option, w.Weight)
			continue
		}
		for _, part := range e.delegated(i) {
			cast(e.ballot(p.GetId(), part.to), part.weight)
		}
	}
}

// delegated returns what others vote of a host's weight. Delegates in jail vote nothing.
func (e *electorate) delegated(i int) []handed {
	if e.handed == nil {
		e.handed = make([][]handed, len(e.weights))
	}
	if e.handed[i] == nil {
		e.handed[i] = []handed{}
		for _, part := range e.parts(e.weights[i]) {
			to, ok := e.o.delegateOf(e.weights[i].Host, part.Model)
			if ok && e.o.standing(to) == nil {
				e.handed[i] = append(e.handed[i], handed{to, part.Weight})
			}
		}
	}
	return e.handed[i]
}

func (e *electorate) ballot(id uint64, host mesh.Address) ledgerpb.Option {
	ballot, _ := load[ledgerpb.Ballot](e.o, ballotKey(id, host))
	return ballot.GetOption()
}

// parts divides a host's weight among the models that it comes from. The weight that
// counts may be less than the work (collateral, confirmation), so the work only gives
// the proportions; what rounding leaves is handed on to the next model.
func (e *electorate) parts(w Weight) []ModelWeight {
	work := e.m.cfg.Work.ByModel(e.o, e.epoch, w.Host)
	var sum uint64
	for _, part := range work {
		sum = saturate(sum, part.Weight)
	}
	if sum == 0 {
		return []ModelWeight{{Weight: w.Weight}} // of no model that is known
	}
	parts := make([]ModelWeight, 0, len(work))
	var upTo, given uint64
	for _, part := range work {
		upTo = saturate(upTo, part.Weight)
		share := mulDiv(w.Weight, upTo, sum)
		parts = append(parts, ModelWeight{part.Model, share - given})
		given = share
	}
	return parts
}

// saturate adds weights. They are measured, not money: a sum that no network reaches
// may stop at the largest number.
func saturate(a, b uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	if carry != 0 {
		return math.MaxUint64
	}
	return sum
}

// mulDiv returns a·b/c, for b of at most c, and a where both are 0.
func mulDiv(a, b, c uint64) uint64 {
	if b == c {
		return a
	}
	q, _ := mulDivRest(a, b, c)
	return q
}

// mulDivRest returns a·b/c and the rest, for b of at most c, which is not 0.
func mulDivRest(a, b, c uint64) (quotient, rest uint64) {
	hi, lo := bits.Mul64(a, b)
	return bits.Div64(hi, lo, c) // hi < c, as b <= c
}

// reaches reports whether part is at least bp basis points of whole.
func reaches(part, bp, whole uint64) bool {
	aHi, aLo := bits.Mul64(part, 10000)
	bHi, bLo := bits.Mul64(whole, bp)
	return aHi > bHi || aHi == bHi && aLo >= bLo
}
