package ledger

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// Who validates, and with what power, follows from proven work that collateral covers:
//
//	weight = min(work, collateral / collateral_per_weight)
//
// Those with the most weight, max_validators of them, share all power in proportion to
// it. No identity has more than max(cap_percent %, 150 % / N). From one closed epoch to
// the next at most a third of the power changes hands, so that a light client that
// trusts the old set finds enough of it in the new one; hosts that must leave at once
// (jailed, caught signing twice, or without collateral) do so, and use up that third
// first. Where a third is not enough to come below a cap that fell (a young network grew,
// or a vote lowered it), the next epochs go on. Splitting oneself into many hosts gets
// around the cap, and not around the collateral.

const (
	// totalPower is that of all validators when a set is chosen. What one loses between
	// is missing until the next set.
	totalPower = 1_000_000_000
	// maxWeight bounds what a weight counts for power, so that sums fit.
	maxWeight = 1 << 55
)

// member is a host that is, or could be, a validator.
type member struct {
	host   mesh.Address
	weight uint64 // 0: it cannot be one
	old    uint64 // power in the set chosen last
	out    bool   // it must go: jailed, or nothing at stake
	gone   uint64 // power in the set chosen last, which it lost since; it may come back
	power  uint64 // in the next set
}

// chooseSet picks the validators of the coming epochs from the weights of one that is
// closed, and gives them their power. With nobody left to choose, the set stays.
func (m *Machine) chooseSet(o *overlay, b *blockState, weights []Weight) {
	members := o.candidates(b.params, weights)
	if !choose(members, int(b.params.GetMaxValidators()), b.params.GetCapPercent()) {
		b.emit("validators", "kept", "nobody has both work and collateral")
		return
	}
	record, powers := new(ledgerpb.Validators), make(map[mesh.Address]uint64)
	for _, v := range members {
		if v.power > 0 {
			record.Validators = append(record.Validators, &ledgerpb.Validator{Host: bytes.Clone(v.host[:]), Power: v.power})
		}
		if v.gone == 0 {
			powers[v.host] = v.power
		}
	}
	before, _ := load[ledgerpb.Validators](o, miscKey(miscChosen))
	for _, v := range before.GetValidators() {
		record.Moved += v.GetPower() - min(v.GetPower(), powers[mesh.AddressOf(v.GetHost())])
	}
	o.givePower(record)
	o.save(miscKey(miscChosen), record)
	b.reset = true
}

// candidates are the hosts with work that collateral covers, and those chosen last,
// ascending by host.
func (o *overlay) candidates(p *ledgerpb.Params, weights []Weight) (out []*member) {
	record, _ := load[ledgerpb.Validators](o, miscKey(miscChosen))
	old := record.GetValidators()
	add := func(a mesh.Address, work, power uint64) {
		h, ok := load[ledgerpb.Host](o, hostKey(a))
		v := &member{host: a, weight: work, old: power}
		v.out = !ok || h.GetTombstoned() || h.GetJailedUntil() > 0
		if per := p.GetCollateralPerWeight(); per > 0 {
			covered := h.GetCollateral() / per
			v.weight, v.out = min(work, covered), v.out || covered == 0
		}
		if h.GetPower() == 0 { // it was jailed, and is not any more
			v.old, v.gone = 0, power
		}
		out = append(out, v)
	}
	for _, w := range weights {
		for len(old) > 0 && bytes.Compare(old[0].GetHost(), w.Host[:]) < 0 {
			add(mesh.AddressOf(old[0].GetHost()), 0, old[0].GetPower())
			old = old[1:]
		}
		power := uint64(0)
		if len(old) > 0 && bytes.Equal(old[0].GetHost(), w.Host[:]) {
			power, old = old[0].GetPower(), old[1:]
		}
		add(w.Host, w.Weight, power)
	}
	for _, v := range old {
		add(mesh.AddressOf(v.GetHost()), 0, v.GetPower())
	}
	return out
}

// powerCap is the most that one of n validators has: a percentage of all, and at least
// half more than an equal part, so that all can be given out.
func powerCap(percent uint64, n int) uint64 {
	return min(totalPower, max(totalPower*percent/100, totalPower*3/(2*uint64(max(n, 1)))))
}

// choose sets the power of each member. It reports false when nobody would be left, and
// sets nothing.
func choose(members []*member, most int, percent uint64) bool {
	var old, chosen, leaving []*member
	forced := uint64(0)
	for _, m := range members {
		forced += m.gone
		switch m.weight = min(m.weight, maxWeight); {
		case m.out:
			forced += m.old
			continue
		case m.weight > 0:
			chosen = append(chosen, m)
		case m.old > 0:
			leaving = append(leaving, m)
		}
		if m.old > 0 {
			old = append(old, m)
		}
	}
	if len(old)+len(chosen) == 0 {
		return false
	}
	slices.SortFunc(chosen, func(a, b *member) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), bytes.Compare(a.host[:], b.host[:]))
	})
	for len(chosen) > most {
		if last := chosen[len(chosen)-1]; last.old > 0 {
			leaving = append(leaving, last)
		}
		chosen = chosen[:len(chosen)-1]
	}
	if len(old) == 0 {
		target(chosen, nil, percent)
		return true
	}
	fit(old)
	budget := totalPower/3 - min(totalPower/3, forced)
	if len(chosen) > 0 {
		target(chosen, nil, percent)
		if lost(old) <= budget {
			return true
		}
		rest := dismiss(leaving, budget)
		budget -= sumOld(leaving) - sumOld(rest)
		leaving = rest
	}
	chosen = admit(chosen, leaving, most)
	target(chosen, leaving, percent)
	blend(append(slices.Clone(chosen), leaving...), budget)
	return true
}

func sumOld(members []*member) (sum uint64) {
	for _, m := range members {
		sum += m.old
	}
	return sum
}

// lost is how much power goes from these members to others.
func lost(members []*member) (sum uint64) {
	for _, m := range members {
		sum += m.old - min(m.old, m.power)
	}
	return sum
}

// fit scales power that is more than all, which no set chosen here has.
func fit(old []*member) {
	if sumOld(old) <= totalPower {
		return
	}
	weights := make([]uint64, len(old))
	for i, m := range old {
		weights[i] = m.old
	}
	for i, n := range apportion(totalPower, weights) {
		old[i].old = n
	}
}

// dismiss lets those who leave go, the weakest first, as far as the budget reaches. Were
// all of them to shrink instead, no place in a full set would ever become free. Of three
// or more, the weakest has at most a third, so one can always go. It returns the others.
func dismiss(leaving []*member, budget uint64) []*member {
	order := slices.Clone(leaving)
	slices.SortFunc(order, func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.old, b.old), bytes.Compare(b.host[:], a.host[:]))
	})
	for len(order) > 0 && order[0].old <= budget {
		budget -= order[0].old
		order = order[1:]
	}
	return order
}

// admit leaves out the newcomers for whom those who have not left yet take the place,
// the ones with the least weight. Where nobody else stays, one comes in all the same:
// nobody could ever take over from one or two validators.
func admit(chosen, leaving []*member, most int) (in []*member) {
	places := most - len(leaving)
	for _, m := range chosen {
		if m.old > 0 {
			places--
		}
	}
	for i, m := range chosen {
		switch {
		case m.old > 0:
			in = append(in, m)
		case places > 0, i == len(chosen)-1 && len(in) == 0:
			in = append(in, m)
			places--
		default:
			m.power = 0
		}
	}
	return in
}

// target gives all power to the chosen, in proportion to weight and capped; what they
// cannot hold stays with those who leave.
func target(chosen, leaving []*member, percent uint64) {
	most := powerCap(percent, len(chosen)+len(leaving))
	weights := make([]uint64, len(chosen))
	for i, m := range chosen {
		weights[i] = m.weight
	}
	// One of the units is for each, so that nobody is rounded down to nothing.
	n := uint64(len(chosen))
	powers, rest := waterfill(totalPower-n, most-1, weights)
	for i, m := range chosen {
		m.power = powers[i] + 1
	}
	if n == 0 {
		rest = totalPower
	}
	weights = weights[:0]
	for _, m := range leaving {
		weights = append(weights, m.old)
	}
	powers, _ = waterfill(rest, most, weights)
	for i, m := range leaving {
		m.power = powers[i]
	}
}

// blend takes only so much from those who lose that it stays within the budget, and
// gives the others as much less.
func blend(members []*member, budget uint64) {
	change := lost(members)
	if change <= budget {
		return
	}
	gain := uint64(totalPower)
	gains := make([]uint64, len(members))
	for i, m := range members {
		if m.power < m.old {
			cut := mulDiv(m.old-m.power, budget, change)
			m.power = m.old - cut
			gain -= m.power
		} else {
			gains[i] = m.power - m.old
			gain -= m.old
		}
	}
	for i, n := range apportion(gain, gains) {
		if gains[i] > 0 {
			members[i].power = members[i].old + n
		}
	}
}

// waterfill divides a total in proportion to weights so that none gets more than a cap:
// min(cap, λ·weight) for the λ that fits. The rest is what all of them together cannot
// hold.
func waterfill(total, most uint64, weights []uint64) (parts []uint64, rest uint64) {
	parts = make([]uint64, len(weights))
	order := make([]int, len(weights))
	whole := uint64(0)
	for i, w := range weights {
		order[i] = i
		whole += w
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(weights[b], weights[a]) })
	for len(order) > 0 {
		first := order[0]
		if share, part := mulDivRest(total, weights[first], whole); share < most || share == most && part == 0 {
			break
		}
		parts[first] = most
		total -= most
		whole -= weights[first]
		order = order[1:]
	}
	if len(order) == 0 {
		return parts, total
	}
	left := make([]uint64, len(order))
	for i, n := range order {
		left[i] = weights[n]
	}
	for i, n := range apportion(total, left) {
		parts[order[i]] = n
	}
	return parts, 0
}

// apportion divides a total in proportion to weights by the largest remainder, the first
// of equal ones.
func apportion(total uint64, weights []uint64) []uint64 {
	parts, rests := make([]uint64, len(weights)), make([]uint64, len(weights))
	order := make([]int, len(weights))
	whole, left := uint64(0), total
	for i, w := range weights {
		order[i] = i
		whole += w
	}
	if whole == 0 {
		return parts
	}
	for i, w := range weights {
		parts[i], rests[i] = mulDivRest(total, w, whole)
		left -= parts[i]
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rests[b], rests[a]) })
	for _, i := range order[:left] {
		parts[i]++
	}
	return parts
}

// givePower writes the powers of a set into the hosts' records.
func (o *overlay) givePower(set *ledgerpb.Validators) {
	powers := make(map[mesh.Address]uint64)
	for _, v := range set.GetValidators() {
		powers[mesh.AddressOf(v.GetHost())] = v.GetPower()
	}
	scan(o, []byte{tableHost}, func(k []byte, h *ledgerpb.Host) {
		a := mesh.AddressOf(k[1:])
		if h.GetPower() == powers[a] {
			return
		}
		if h.GetPower() == 0 || powers[a] == 0 {
			o.remove(signingKey(a)) // blocks are counted from the day of joining
		}
		h.Power = powers[a]
		o.save(k, h)
	})
}

// tellSet tells consensus what changed in the set since it was told last. Changes of a
// block go out together: a key that was replaced twice appears once.
func (m *Machine) tellSet(o *overlay, b *blockState) {
	if !b.reset {
		return
	}
	k := miscKey(miscSet)
	told, _ := load[ledgerpb.Validators](o, k)
	now := new(ledgerpb.Validators)
	for _, v := range o.validators() {
		now.Validators = append(now.Validators, &ledgerpb.Validator{
			Host: bytes.Clone(v.Address[:]), ConsensusKey: v.Record.GetConsensusKey(), Power: v.Record.GetPower(),
		})
	}
	powers := make(map[string]uint64)
	for _, v := range now.GetValidators() {
		powers[string(v.GetConsensusKey())] = v.GetPower()
	}
	was := make(map[string]uint64)
	for _, v := range told.GetValidators() {
		was[string(v.GetConsensusKey())] = v.GetPower()
		if powers[string(v.GetConsensusKey())] == 0 {
			b.updates = append(b.updates, ValidatorUpdate{ConsensusKey: v.GetConsensusKey()})
		}
	}
	for _, v := range now.GetValidators() {
		if was[string(v.GetConsensusKey())] != v.GetPower() {
			b.updates = append(b.updates, ValidatorUpdate{ConsensusKey: v.GetConsensusKey(), Power: int64(v.GetPower())})
		}
	}
	o.save(k, now)
}
