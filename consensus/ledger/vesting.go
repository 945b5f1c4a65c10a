package ledger

import (
	"math/bits"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

func vestingKey(a mesh.Address) []byte { return key(tableVesting, a[:]) }

// vest gives an account money over time. What has the same start and end goes
// together, so an account has at most an entry for each epoch that vests.
func (o *overlay) vest(a mesh.Address, entry *ledgerpb.VestingEntry) {
	if entry.GetTotal() == 0 {
		return
	}
	o.totals(func(t *ledgerpb.Totals) { t.Vesting = o.plus(t.GetVesting(), entry.GetTotal()) })
	v, _ := load[ledgerpb.Vesting](o, vestingKey(a))
	for _, e := range v.GetEntries() {
		if e.GetStart() == entry.GetStart() && e.GetEnd() == entry.GetEnd() && e.GetReleased() == 0 {
			e.Total = o.plus(e.GetTotal(), entry.GetTotal())
			o.save(vestingKey(a), v)
			return
		}
	}
	v.Entries = append(v.Entries, entry)
	o.save(vestingKey(a), v)
}

// releasedAt returns what of an entry is free at an epoch: nothing up to its start, all
// from its end on, and even parts between.
func releasedAt(e *ledgerpb.VestingEntry, epoch uint64) uint64 {
	switch {
	case epoch >= e.GetEnd():
		return e.GetTotal()
	case epoch <= e.GetStart():
		return 0
	}
	hi, lo := bits.Mul64(e.GetTotal(), epoch-e.GetStart())
	free, _ := bits.Div64(hi, lo, e.GetEnd()-e.GetStart()) // the quotient is below the total
	return free
}

// releaseVesting pays what an epoch frees.
func (m *Machine) releaseVesting(o *overlay, epoch uint64) {
	scan(o, []byte{tableVesting}, func(k []byte, v *ledgerpb.Vesting) {
		var free uint64
		left := v.GetEntries()[:0]
		for _, e := range v.GetEntries() {
			now := releasedAt(e, epoch)
			free = o.plus(free, o.minus(now, e.GetReleased()))
			e.Released = now
			if now < e.GetTotal() {
				left = append(left, e)
			}
		}
		if free == 0 {
			return
		}
		v.Entries = left
		o.save(k, v)
		o.totals(func(t *ledgerpb.Totals) { t.Vesting = o.minus(t.GetVesting(), free) })
		o.credit(mesh.AddressOf(k[1:]), free)
	})
}

// Vesting returns what an account gets over time, nil for nothing.
func (v View) Vesting(a mesh.Address) (*ledgerpb.Vesting, error) {
	return read[ledgerpb.Vesting](v, vestingKey(a))
}
