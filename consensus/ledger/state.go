package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
)

// Reader is a state to read from.
type Reader interface {
	// Get returns the value of a key, nil where there is none. The caller neither
	// keeps nor changes it.
	Get(key []byte) []byte
	// Iterate calls fn for the keys with a prefix, ascending, until it returns false.
	Iterate(prefix []byte, fn func(key, value []byte) bool)
}

// Change is one write of a block. A nil value deletes the key.
type Change struct {
	Key, Value []byte
}

// Tables of the state: the first byte of a key. Records of upper-case tables can be
// proven to light peers.
const (
	tableAccount    = 'A' // address → Account
	tableEpoch      = 'E' // epoch → EpochResult
	tableEscrow     = 'X' // escrow → Escrow
	tableHost       = 'H' // address → Host
	tableLane       = 'L' // escrow, host → LaneState
	tableMisc       = 'O' // name → one record each, see below
	tableModel      = 'M' // model → Model
	tableParams     = 'P' // → Params
	tableProposal   = 'G' // id → Proposal
	tableRewards    = 'W' // epoch → Rewards
	tableRun        = 'R' // run → Run
	tableSettlement = 'S' // epoch, host → Settlement
	tableUnbonding  = 'B' // epoch, host → Unbonding
	tableUpgrade    = 'U' // → Upgrade that is planned; name → Upgrade that was carried out
	tableVesting    = 'V' // address → Vesting

	tableBallot     = 'b' // proposal, host → Ballot
	tableCommitted  = 'c' // epoch, host → CommitWork
	tableDelegation = 'd' // host, model → Delegation
	tableEnding     = 'g' // height → numbers of the proposals whose vote ends there, be64 each
	tableKey        = 'k' // consensus address → ConsensusKey
	tableDue        = 'q' // epoch, kind, name → what is paid back at that epoch, see due.go
	tableLines      = 'e' // epoch, host, lines before → Settle, until the epoch is settled
	tableMember     = 'm' // run, address → Member
	tablePending    = 'p' // → Params of the next epoch
	tableRotation   = 'r' // host → RegisterHost, whose keys count from the next epoch on
	tableSet        = 'h' // epoch → addresses of the epoch's hosts, one after the other
	tableSigning    = 'n' // host → Signing
	tableSettling   = 's' // epoch, host → Settling, until the epoch is settled
	tableSweep      = 'z' // prefix of records that nobody needs any more, see due.go
	tableTally      = 'y' // run, round, hash → members who posted it, be64
	tableTrace      = 't' // run, round, address → CommitTrace
	tableWork       = 'w' // host → CommitWork of the genesis file
)

// Names in tableMisc.
const (
	miscEpoch    = "epoch"    // EpochState
	miscTotals   = "totals"   // Totals
	miscPaid     = "paid"     // last epoch whose settlements were paid, be64
	miscProposal = "proposal" // next number, be64
	miscHeight   = "height"   // be64
	miscSet      = "set"      // Validators, as consensus was told last
	miscChosen   = "chosen"   // Validators, as the last epoch that was closed chose them
	miscEnded    = "ended"    // EpochResult of the epoch that ended and is not closed
	miscEmission = "emission" // reward of the next epoch to be closed, be64
	miscUpgrade  = "upgrade"  // name of the last upgrade that was carried out
)

// Proven reports whether a key's record can be proven to light peers.
func Proven(key []byte) bool { return len(key) > 0 && key[0] >= 'A' && key[0] <= 'Z' }

// key builds a key from a table and its parts.
func key(table byte, parts ...[]byte) []byte {
	return append([]byte{table}, bytes.Join(parts, nil)...)
}

// miscKey returns the key of a record of tableMisc.
func miscKey(name string) []byte { return key(tableMisc, []byte(name)) }

func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// overlay is a state with writes that its base has not seen yet.
type overlay struct {
	base   Reader
	writes map[string][]byte // nil deletes
	err    *error            // the first record that did not decode, shared by all layers
	// migrated is the base after an upgrade changed it; nil in a block without one.
	migrated Reader
}

func newOverlay(base Reader) *overlay {
	return &overlay{base: base, writes: make(map[string][]byte), err: new(error)}
}

// layer returns an overlay over this one: the changes of one transaction.
func (o *overlay) layer() *overlay {
	return &overlay{base: o, writes: make(map[string][]byte), err: o.err}
}

// fold takes the changes of a layer over.
func (o *overlay) fold(layer *overlay) {
	maps.Copy(o.writes, layer.writes)
}

func (o *overlay) Get(key []byte) []byte {
	if v, ok := o.writes[string(key)]; ok {
		return v
	}
	return o.base.Get(key)
}

func (o *overlay) set(key, value []byte) { o.writes[string(key)] = value }

func (o *overlay) remove(key []byte) {
	o.writes[string(key)] = nil
}

// Iterate merges the writes with the base.
func (o *overlay) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	var own []string
	for k := range o.writes {
		if bytes.HasPrefix([]byte(k), prefix) {
			own = append(own, k)
		}
	}
	slices.Sort(own)
	stopped := false
	emit := func(k string) bool {
		if v := o.writes[k]; v != nil && !fn([]byte(k), v) {
			stopped = true
		}
		return !stopped
	}
	o.base.Iterate(prefix, func(k, v []byte) bool {
		for len(own) > 0 && own[0] < string(k) {
			next := own[0]
			own = own[1:]
			if !emit(next) {
				return false
			}
		}
		if len(own) > 0 && own[0] == string(k) {
			own = own[1:]
			return emit(string(k))
		}
		if !fn(k, v) {
			stopped = true
		}
		return !stopped
	})
	for _, k := range own {
		if stopped || !emit(k) {
			return
		}
	}
}

// changes returns the writes, ascending by key.
func (o *overlay) changes() []Change {
	out := make([]Change, 0, len(o.writes))
	for _, k := range slices.Sorted(maps.Keys(o.writes)) {
		out = append(out, Change{[]byte(k), o.writes[k]})
	}
	return out
}

// message is a pointer to a record.
type message[T any] interface {
	*T
	proto.Message
}

// load reads a record; it reports false, and returns an empty one, where there is none.
// A record that does not decode is a damaged state: it is kept in o.err, and whoever
// applies a block gives up before anything is written.
func load[T any, P message[T]](o *overlay, key []byte) (P, bool) {
	record := P(new(T))
	b := o.Get(key)
	if b == nil {
		return record, false
	}
	if err := proto.Unmarshal(b, record); err != nil && *o.err == nil {
		*o.err = fmt.Errorf("record %.80q of the state is damaged: %w", key, err)
	}
	return record, true
}

// save writes a record. In tables that are proven an empty one is no record: an account
// without anything is one that nobody ever used. In others it is one, like a member of
// a run without bond that joined in epoch 0.
func (o *overlay) save(key []byte, record proto.Message) {
	b, err := encode(record)
	if err != nil && *o.err == nil {
		*o.err = fmt.Errorf("encode record %.80q: %w", key, err)
	}
	switch {
	case len(b) > 0:
	case Proven(key):
		b = nil
	default:
		b = []byte{}
	}
	o.set(key, b)
}

// scan reads all records of a prefix, ascending by key, before it calls fn, which may
// write.
func scan[T any, P message[T]](o *overlay, prefix []byte, fn func(key []byte, record P)) {
	type pair struct {
		key    []byte
		record P
	}
	var all []pair
	o.Iterate(prefix, func(k, v []byte) bool {
		record := P(new(T))
		if err := proto.Unmarshal(v, record); err != nil && *o.err == nil {
			*o.err = fmt.Errorf("record %.80q of the state is damaged: %w", k, err)
		}
		all = append(all, pair{bytes.Clone(k), record})
		return true
	})
	for _, p := range all {
		fn(p.key, p.record)
	}
}

// encode is the one encoding of a record or transaction.
func encode(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// decode refuses bytes that do not encode back to themselves. Fields that this
// version does not know are dropped first, so whoever sends one is refused: a later
// version would heed it, and the two would disagree.
func decode(b []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return err
	}
	again, err := encode(m)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, again) {
		return errors.New("not in canonical encoding, or with fields that this version does not know")
	}
	return nil
}

// addressFrom reads an address of a transaction.
func addressFrom(what string, b []byte) (mesh.Address, error) {
	if len(b) != len(mesh.Address{}) {
		return mesh.Address{}, refuse("%s of %d bytes, want 32", what, len(b))
	}
	a := mesh.AddressOf(b)
	if nobodys(a) {
		return mesh.Address{}, refuse("%s %x is nobody's: anyone can sign for that key", what, a[:])
	}
	return a, nil
}

// hashFrom reads a hash of a transaction.
func hashFrom(what string, b []byte) (mesh.Hash, error) {
	h, err := mesh.HashFromBytes(b)
	if err != nil {
		return h, refuse("%s of %d bytes, want 32", what, len(b))
	}
	return h, nil
}
