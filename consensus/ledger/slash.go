package ledger

import (
	"bytes"
	"fmt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// forgetMissed begins to count anew, under a window of another length.
func (o *overlay) forgetMissed() {
	for _, k := range keysOf(o, []byte{tableSigning}, perEpoch) { // one for a validator at most
		o.remove(k)
	}
}

// countSigners counts the blocks that each validator missed, in a window that rolls. A
// block that all signed writes nothing.
func (m *Machine) countSigners(o *overlay, b *blockState, block Block) {
	window := b.params.GetDowntimeWindow()
	at := uint64(block.Height) % window
	for _, v := range block.Signed {
		if host, h := o.validator(v); h != nil {
			m.mark(o, b, host, h, at, window, false)
		}
	}
	for _, v := range block.Missed {
		if host, h := o.validator(v); h != nil {
			m.mark(o, b, host, h, at, window, true)
		}
	}
}

// validator returns the host of a consensus address if it is in the set now.
func (o *overlay) validator(v ConsensusAddress) (mesh.Address, *ledgerpb.Host) {
	host, h := o.hostByConsensus(v)
	if h.GetPower() == 0 {
		return host, nil
	}
	return host, h
}

func (o *overlay) hostByConsensus(v ConsensusAddress) (mesh.Address, *ledgerpb.Host) {
	index, ok := load[ledgerpb.ConsensusKey](o, consensusIndex(v))
	if !ok {
		return mesh.Address{}, nil
	}
	host := mesh.AddressOf(index.GetHost())
	h, ok := load[ledgerpb.Host](o, hostKey(host))
	if !ok {
		return host, nil
	}
	return host, h
}

func signingKey(host mesh.Address) []byte { return key(tableSigning, host[:]) }

// mark notes whether a validator missed the block before, and jails one that missed
// too many of the window.
func (m *Machine) mark(o *overlay, b *blockState, host mesh.Address, h *ledgerpb.Host, at, window uint64, missed bool) {
	s, known := load[ledgerpb.Signing](o, signingKey(host))
	if !known && !missed {
		return
	}
	if size := int(window+7) / 8; len(s.GetBits()) != size {
		s = &ledgerpb.Signing{Bits: make([]byte, size)}
	}
	field := bytes.Clone(s.GetBits())
	mask := byte(1) << (at % 8)
	was := field[at/8]&mask != 0
	if was == missed {
		return
	}
	field[at/8] ^= mask
	s.Bits = field
	if missed {
		s.Missed++
	} else {
		s.Missed = o.minus(s.GetMissed(), 1)
	}
	if s.GetMissed() == 0 {
		o.remove(signingKey(host))
		return
	}
	o.save(signingKey(host), s)
	if s.GetMissed() <= b.params.GetDowntimeMaxMissed() || !o.leaveSet(b, host, h) {
		return
	}
	h.JailedUntil = b.epoch.GetEpoch() + b.params.GetJailEpochs()
	o.save(hostKey(host), h)
	lost := o.slash(b, host, b.params.GetSlashDowntimeBp())
	o.toCommunity(lost)
	b.emit("jail", "host", host.String(), "cause", "downtime", "until", fmt.Sprint(h.GetJailedUntil()), "slashed", fmt.Sprint(lost))
}

// leaveSet takes a host's power, unless it is the last validator: a chain without one
// cannot go on.
func (o *overlay) leaveSet(b *blockState, host mesh.Address, h *ledgerpb.Host) bool {
	if h.GetPower() > 0 && o.lastValidator(host) {
		return false
	}
	o.remove(signingKey(host))
	if h.GetPower() > 0 {
		h.Power = 0
		b.reset = true
	}
	return true
}

// lastValidator reports whether no other host has power.
func (o *overlay) lastValidator(host mesh.Address) bool {
	for _, v := range o.validators() {
		if v.Address != host {
			return false
		}
	}
	return true
}

// validators returns the hosts that have power, ascending: all are of the set that was
// chosen last.
func (o *overlay) validators() (out []NamedHost) {
	chosen, _ := load[ledgerpb.Validators](o, miscKey(miscChosen))
	for _, v := range chosen.GetValidators() {
		a := mesh.AddressOf(v.GetHost())
		if h, _ := load[ledgerpb.Host](o, hostKey(a)); h.GetPower() > 0 {
			out = append(out, NamedHost{a, h})
		}
	}
	return out
}

// punishEquivocation takes a part of the collateral of who signed two blocks of one
// height, and its place for good. Evidence of a key that was replaced counts too.
func (m *Machine) punishEquivocation(o *overlay, b *blockState, e Evidence) {
	host, h := o.hostByConsensus(e.Validator)
	if h == nil || h.GetTombstoned() {
		return
	}
	o.leaveSet(b, host, h)
	h.Tombstoned = true
	o.save(hostKey(host), h)
	lost := o.slash(b, host, b.params.GetSlashEquivocationBp())
	o.toCommunity(lost)
	b.emit("slash", "host", host.String(), "cause", "equivocation", "height", fmt.Sprint(e.Height), "slashed", fmt.Sprint(lost))
}

// slash takes a part of a host's collateral, in basis points, and of what unbonds. The
// caller says who gets it.
func (o *overlay) slash(b *blockState, host mesh.Address, bp uint64) (lost uint64) {
	if h, ok := load[ledgerpb.Host](o, hostKey(host)); ok {
		cut := part(h.GetCollateral(), min(bp, 10_000), 10_000)
		h.Collateral -= cut
		lost += cut
		o.save(hostKey(host), h)
	}
	// Whatever unbonding_epochs was before, what is unbonding is paid within its bound. To
	// look there is less than to go through what all hosts unbond.
	for ahead := range bounds["unbonding_epochs"].most + 1 {
		k := unbondingKey(b.epoch.GetEpoch()+ahead, host)
		u, ok := load[ledgerpb.Unbonding](o, k)
		if !ok {
			continue
		}
		cut := part(u.GetAmount(), min(bp, 10_000), 10_000)
		u.Amount -= cut
		lost += cut
		if o.save(k, u); u.GetAmount() == 0 {
			o.remove(k)
		}
	}
	o.totals(func(t *ledgerpb.Totals) { t.Collateral = o.minus(t.GetCollateral(), lost) })
	return lost
}

func (o *overlay) toCommunity(amount uint64) {
	if amount > 0 {
		o.totals(func(t *ledgerpb.Totals) { t.Community = o.plus(t.GetCommunity(), amount) })
	}
}

// Missed returns how many blocks of the window a validator missed.
func (v View) Missed(host mesh.Address) (uint64, error) {
	s, err := read[ledgerpb.Signing](v, signingKey(host))
	return s.GetMissed(), err
}
