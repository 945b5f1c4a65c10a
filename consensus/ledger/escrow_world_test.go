package ledger

import (
	"bytes"
	"crypto/ed25519"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
)

const escrowNetwork = mesh.NetworkID("dev0a1b2c3d")

// escrowState is a state in memory.
type escrowState struct {
	records map[string][]byte
	sorted  []string // its keys; nil: to be made
}

func (s *escrowState) Get(k []byte) []byte { return s.records[string(k)] }

func (s *escrowState) Iterate(prefix []byte, fn func(k, v []byte) bool) {
	if s.sorted == nil {
		s.sorted = slices.Sorted(maps.Keys(s.records))
	}
	from, _ := slices.BinarySearch(s.sorted, string(prefix))
	for _, k := range s.sorted[from:] {
		if !strings.HasPrefix(k, string(prefix)) || !fn([]byte(k), s.records[k]) {
			return
		}
	}
}

func (s *escrowState) write(changes []Change) {
	s.sorted = nil
	for _, c := range changes {
		if c.Value == nil {
			delete(s.records, string(c.Key))
		} else {
			s.records[string(c.Key)] = c.Value
		}
	}
}

// escrowWorld is a chain with what escrows need, and nothing else: the rules of epochs,
// hosts and governance are not asked, so that tests hold whatever these become.
type escrowWorld struct {
	t      testing.TB
	m      *Machine
	state  *escrowState
	o      *overlay
	b      *blockState
	money  uint64 // in all
	keys   map[string]ed25519.PrivateKey
	names  []string
	hosts  []mesh.Address // ascending
	lastID mesh.Hash      // of the last transaction's escrow or run
}

func newEscrowWorld(t testing.TB, cfg Config) *escrowWorld {
	cfg.Network = escrowNetwork
	params := DefaultParams()
	params.EpochBlocks, params.SettleBlocks, params.FeePerByte, params.EscrowMin = 20, 6, 0, 1
	w := &escrowWorld{
		t: t, m: New(cfg), state: &escrowState{records: make(map[string][]byte)}, keys: make(map[string]ed25519.PrivateKey),
		b: &blockState{height: 1, epoch: &ledgerpb.EpochState{Start: 1}, params: params},
	}
	w.o = newOverlay(w.state)
	w.o.save(key(tableParams), params)
	w.begin()
	return w
}

// begin writes what an epoch begins with.
func (w *escrowWorld) begin() {
	set := []byte{}
	for _, h := range w.hosts {
		set = append(set, h[:]...)
	}
	w.o.set(key(tableSet, be64(w.b.epoch.GetEpoch())), set)
	w.commit()
}

// commit ends a block.
func (w *escrowWorld) commit() {
	w.o.save(miscKey(miscEpoch), w.b.epoch)
	w.o.set(miscKey(miscHeight), be64(uint64(w.b.height)))
	w.state.write(w.o.changes())
	w.o = newOverlay(w.state)
	w.b.height++
}

func (w *escrowWorld) key(name string) ed25519.PrivateKey {
	if k, ok := w.keys[name]; ok {
		return k
	}
	seed := mesh.HashOf([]byte(name))
	w.keys[name] = ed25519.NewKeyFromSeed(seed[:])
	w.names = append(w.names, name)
	return w.keys[name]
}

func (w *escrowWorld) address(name string) mesh.Address {
	return mesh.AddressOf(w.key(name).Public().(ed25519.PublicKey))
}

func (w *escrowWorld) fund(name string, amount uint64) {
	w.o.credit(w.address(name), amount)
	w.money += amount
}

// host registers a host, of the owner if there is one, from the next epoch on.
func (w *escrowWorld) host(name, owner string) mesh.Address {
	a := w.address(name)
	record := &ledgerpb.Host{Owner: a[:]}
	if owner != "" {
		o := w.address(owner)
		record.Owner = o[:]
	}
	w.o.save(hostKey(a), record)
	w.hosts = append(w.hosts, a)
	slices.SortFunc(w.hosts, func(a, b mesh.Address) int { return bytes.Compare(a[:], b[:]) })
	return a
}

// turn begins the next epoch; pay closes the one before.
func (w *escrowWorld) turn() {
	w.b.epoch = &ledgerpb.EpochState{Epoch: w.b.epoch.GetEpoch() + 1, Start: uint64(w.b.height)}
	w.begin()
}

func (w *escrowWorld) pay() payout {
	w.commit()
	w.b.height = mesh.Height(w.b.epoch.GetStart() + w.b.params.GetSettleBlocks())
	p := w.m.payEpoch(w.o, w.b.epoch.GetEpoch()-1)
	w.commit()
	return p
}

// do carries out a transaction.
func (w *escrowWorld) do(name string, tx *ledgerpb.Tx) error {
	sender := w.address(name)
	tx.Nonce = w.o.account(sender).GetNonce()
	fee, err := FeeOf(w.b.params, tx)
	if err != nil {
		w.t.Fatal(err)
	}
	tx.Fee = uint64(fee)
	raw, err := SignTx(escrowNetwork, w.key(name), tx)
	if err != nil {
		w.t.Fatal(err)
	}
	w.lastID = EscrowID(escrowNetwork, sender, tx.Nonce)
	if tx.GetOpenRun() != nil {
		w.lastID = RunID(escrowNetwork, sender, tx.Nonce)
	}
	r := w.m.apply(w.o, w.b, raw)
	if r.idle {
		w.t.Fatalf("%s: the transaction has no effect: %v", name, r.Err)
	}
	return r.Err
}

func (w *escrowWorld) must(name string, tx *ledgerpb.Tx) {
	w.t.Helper()
	if err := w.do(name, tx); err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
}

func (w *escrowWorld) open(name string, amount uint64, lanes ...*ledgerpb.Lane) mesh.Hash {
	w.t.Helper()
	w.must(name, &ledgerpb.Tx{Action: &ledgerpb.Tx_OpenEscrow{OpenEscrow: &ledgerpb.OpenEscrow{Amount: amount, Lanes: lanes}}})
	return w.lastID
}

func settleTx(epoch uint64, lines ...*ledgerpb.SettleLine) *ledgerpb.Tx {
	return &ledgerpb.Tx{Action: &ledgerpb.Tx_Settle{Settle: &ledgerpb.Settle{Epoch: epoch, Lines: lines}}}
}

// line is one that wants all of a voucher by payer.
func (w *escrowWorld) line(payer, host string, escrow mesh.Hash, epoch, amount uint64) *ledgerpb.SettleLine {
	root := mesh.HashOf(escrow[:])
	s, err := inference.SignVoucher(escrowNetwork, w.key(payer), &inference.Voucher{
		Escrow: escrow, Host: w.address(host), Epoch: mesh.Epoch(epoch), Amount: mesh.Amount(amount), Receipts: 1,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return &ledgerpb.SettleLine{
		Escrow: escrow[:], Amount: amount, Receipts: 1, Total: amount, Root: root[:],
		Voucher: amount, Acknowledged: 1, Signature: s.Signature,
	}
}

// left is what a host may still serve for.
func (w *escrowWorld) left(host string, escrow mesh.Hash, epoch uint64) (Lane, error) {
	return LaneOf(escrowNetwork, NewView(w.o), escrow, w.address(host), mesh.Epoch(epoch))
}

// check tests all that must hold at any time.
func (w *escrowWorld) check() {
	w.t.Helper()
	if *w.o.err != nil {
		w.t.Fatal(*w.o.err)
	}
	var accounts, escrows, lanes, runs uint64
	now := w.b.epoch.GetEpoch()
	scan(w.o, []byte{tableAccount}, func(_ []byte, a *ledgerpb.Account) { accounts += a.GetBalance() })
	scan(w.o, []byte{tableEscrow}, func(k []byte, _ *ledgerpb.Escrow) {
		e, _ := w.o.escrow(mesh.Hash(k[1:]), now)
		escrows += e.GetAmount()
		lanes += e.GetLanes()
		w.o.free(e) // damaged if it is below zero
	})
	scan(w.o, []byte{tableLane}, func(k []byte, l *ledgerpb.LaneState) {
		if w.o.Get(escrowKey(mesh.Hash(k[1:]))) != nil {
			lanes -= w.o.minus(l.GetCap(), l.GetPaid())
		}
	})
	scan(w.o, []byte{tableSettlement}, func(_ []byte, s *ledgerpb.Settlement) { escrows += s.GetDue() })
	members := make(map[string]uint32)
	scan(w.o, []byte{tableMember}, func(k []byte, m *ledgerpb.Member) {
		runs += m.GetBond()
		members[string(k[1:33])]++
	})
	scan(w.o, []byte{tableRun}, func(k []byte, r *ledgerpb.Run) {
		runs += r.GetReward()
		if members[string(k[1:])] != r.GetMembers() {
			w.t.Fatalf("run of %d members has %d records", r.GetMembers(), members[string(k[1:])])
		}
	})
	totals, _ := load[ledgerpb.Totals](w.o, miscKey(miscTotals))
	switch {
	case *w.o.err != nil:
		w.t.Fatal(*w.o.err)
	case totals.GetEscrow() != escrows:
		w.t.Fatalf("escrows hold %d, the totals say %d", escrows, totals.GetEscrow())
	case lanes != 0:
		w.t.Fatalf("escrows set aside %d more for lanes than lanes have", int64(lanes))
	case totals.GetRuns() != runs:
		w.t.Fatalf("runs hold %d, the totals say %d", runs, totals.GetRuns())
	case accounts+totals.GetEscrow()+totals.GetRuns()+w.b.fees != w.money:
		w.t.Fatalf("money: %d in accounts, %d and %d held, %d fees; want %d", accounts, escrows, runs, w.b.fees, w.money)
	}
}

// used returns the tables that have records.
func (w *escrowWorld) used() string {
	w.commit()
	seen := make(map[byte]bool)
	for k := range w.state.records {
		seen[k[0]] = true
	}
	return string(slices.Sorted(maps.Keys(seen)))
}

func clonePb[T proto.Message](m T) T { return proto.Clone(m).(T) }

func sortedHashes(all []mesh.Hash) []mesh.Hash {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b mesh.Hash) int { return bytes.Compare(a[:], b[:]) })
	return all
}

func sortLanes(lanes []*ledgerpb.Lane) {
	slices.SortFunc(lanes, func(a, b *ledgerpb.Lane) int { return bytes.Compare(a.GetHost(), b.GetHost()) })
}
