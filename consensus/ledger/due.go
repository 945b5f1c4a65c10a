package ledger

import (
	"bytes"
	"encoding/binary"

	"github.com/gonka-mesh/mesh"
)

// What is paid back at a later epoch waits in tableDue, in the order of epochs, so that
// nobody looks through all escrows and runs. Records that nobody needs any more are
// named in tableSweep by their prefix. Both are worked off when an epoch is settled, a
// bounded part each time; who cannot wait collects with a transaction of his own.

// Kinds in tableDue.
const (
	dueEscrow = 'X' // escrow
	dueMember = 'm' // run, address
	dueRun    = 'R' // run: the bonds of its members
)

// perEpoch bounds the payments of an epoch, and the records that are swept.
const perEpoch = 10_000

func dueKey(epoch uint64, kind byte, name ...[]byte) []byte {
	return key(tableDue, be64(epoch), []byte{kind}, bytes.Join(name, nil))
}

func (o *overlay) owe(epoch uint64, kind byte, name ...[]byte) {
	o.set(dueKey(epoch, kind, name...), []byte{1})
}

func (o *overlay) sweepLater(prefix []byte) { o.set(key(tableSweep, prefix), []byte{1}) }

// payDue pays back what is due at an epoch, and sweeps.
func (o *overlay) payDue(epoch uint64) {
	budget, entries := perEpoch, keysOf(o, []byte{tableDue}, perEpoch)
	for _, k := range entries {
		if budget <= 0 || binary.BigEndian.Uint64(k[1:]) > epoch {
			break
		}
		kind, name := k[9], k[10:]
		switch kind {
		case dueEscrow:
			o.payEscrow(mesh.Hash(name))
			budget--
		case dueMember:
			o.payMember(mesh.Hash(name), mesh.AddressOf(name[32:]))
			budget--
		case dueRun:
			budget -= o.payMembers(mesh.Hash(name))
		}
		o.remove(k)
	}
	budget = perEpoch
	for _, k := range keysOf(o, []byte{tableSweep}, perEpoch) {
		gone := keysOf(o.committed(), k[1:], budget)
		for _, g := range gone {
			o.remove(g)
		}
		if budget -= len(gone) + 1; budget <= 0 {
			return // some may be left under this prefix
		}
		o.remove(k)
	}
}

// keysOf returns the first keys with a prefix, at most max.
func keysOf(r Reader, prefix []byte, max int) (keys [][]byte) {
	r.Iterate(prefix, func(k, _ []byte) bool {
		if len(keys) == max {
			return false
		}
		keys = append(keys, bytes.Clone(k))
		return true
	})
	return keys
}

// keysUpTo returns the keys of a table by epoch, up to this one, at most max.
func keysUpTo(r Reader, table byte, epoch uint64, max int) (keys [][]byte) {
	r.Iterate([]byte{table}, func(k, _ []byte) bool {
		if len(keys) == max || binary.BigEndian.Uint64(k[1:]) > epoch {
			return false
		}
		keys = append(keys, bytes.Clone(k))
		return true
	})
	return keys
}

// committed returns the state before the block, or after its upgrade. What is swept and
// paid back has not changed since, and to iterate over it costs nothing for other writes
// of the block.
func (o *overlay) committed() Reader {
	for {
		if o.migrated != nil {
			return o.migrated
		}
		layer, ok := o.base.(*overlay)
		if !ok {
			return o.base
		}
		o = layer
	}
}
