package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// crowd is a state with many accounts that have money, and a host.
func crowd(t *testing.T, n int) (*Machine, *memState, []sender) {
	t.Helper()
	var all []sender
	var accounts []mesh.Address
	for i := range n {
		a := mesh.AddressOf(bytes.Repeat([]byte{byte(i), byte(i >> 8), 7, 7}, 8))
		accounts, all = append(accounts, a), append(all, sender{t, a})
	}
	host := hostOfTest{address: addressOf(testKey(0))}
	return testMachine(), prepare(t, quickParams(), []hostOfTest{host}, accounts), all
}

func (s sender) act(nonce, fee uint64, tx *ledgerpb.Tx) []byte {
	tx.Sender, tx.Nonce, tx.Fee = s.from[:], nonce, fee
	return fakeSign(s.t, tx)
}

// cheap is a transfer for so many times the least fee.
func (s sender) cheap(nonce uint64, memo string, times uint64) []byte {
	fee := uint64(0)
	for range 3 { // the fee has a length itself
		fee = uint64(len(s.transfer(nonce, fee, memo))) * 10 * times
	}
	return s.transfer(nonce, fee, memo)
}

func emptyLines(n int) *ledgerpb.Tx {
	settle := &ledgerpb.Settle{Lines: make([]*ledgerpb.SettleLine, n)}
	for i := range settle.Lines {
		settle.Lines[i] = new(ledgerpb.SettleLine)
	}
	return &ledgerpb.Tx{Action: &ledgerpb.Tx_Settle{Settle: settle}}
}

func live() uint64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// TestPoolMemory: what waits before its turn is bounded for all senders together, and no
// more than a note is kept of it.
func TestPoolMemory(t *testing.T) {
	m, s, senders := crowd(t, 100)
	p := newPool(t, m, s)
	before, taken, count := live(), 0, 0
	for _, a := range senders {
		// As large in memory as it gets: the most lines, without anything in them.
		for n := range uint64(3) {
			raw := a.act(n+1, 1e9, emptyLines(MaxSettleLines))
			if p.Check(raw) == nil {
				taken, count = taken+len(raw), count+1
			}
		}
		for n := range uint64(20) {
			raw := a.act(n+4, 1e9, &ledgerpb.Tx{Action: &ledgerpb.Tx_Propose{Propose: &ledgerpb.Propose{Text: strings.Repeat("x", 10<<10)}}})
			if p.Check(raw) == nil {
				taken, count = taken+len(raw), count+1
			}
		}
	}
	grown := int64(live()) - int64(before)
	runtime.KeepAlive(p)
	t.Logf("%d taken with %d bytes, %d bytes kept", count, taken, grown)
	if taken > roomAhead.bytes || taken < roomAhead.bytes/2 || count > roomAhead.txs {
		t.Errorf("%d with %d bytes wait before their turn, want at most %v", count, taken, roomAhead)
	}
	if grown > 1<<20 {
		t.Errorf("%d bytes are kept for %d", grown, count)
	}
	more := &ledgerpb.Tx{Action: &ledgerpb.Tx_Propose{Propose: &ledgerpb.Propose{Text: strings.Repeat("x", 10<<10)}}}
	refusedWith(t, p.Check(senders[99].act(2, 1e9, more)), "too many wait so")
	refusedWith(t, p.Check(senders[0].transfer(0, 1e6, "")), "") // in its turn
	refusedWith(t, p.Check(senders[99].act(2, 1e9, more)), "")   // those that followed have left room
}

// TestCountedBeforeDecoding: what is repeated too often is refused before it is decoded,
// whatever can be repeated.
func TestCountedBeforeDecoding(t *testing.T) {
	_, _, senders := crowd(t, 1)
	raw := senders[0].act(0, 1e9, emptyLines(130_000))
	_, err := ParseTx(testNetwork, raw)
	refusedWith(t, err, "more than 500 lines")
	if n := testing.AllocsPerRun(5, func() { ParseTx(testNetwork, raw) }); n > 100 {
		t.Errorf("%d bytes of empty lines take %.0f allocations", len(raw), n)
	}
	// The same inside of what is let pass: a field that is not repeated, many times.
	body := protowire.AppendTag(nil, actionSettle, protowire.BytesType)
	body = protowire.AppendBytes(body, bytes.Repeat([]byte{0x08, 0x01}, 100_000))
	raw = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), body)
	_, err = ParseTx(testNetwork, raw)
	refusedWith(t, err, "one of them twice")
	if !errors.Is(err, ErrMalformed) {
		t.Error("that could be a transaction")
	}

	var look func(d protoreflect.MessageDescriptor)
	found := 0
	look = func(d protoreflect.MessageDescriptor) {
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			if f.IsMap() {
				t.Errorf("%s is a map, whose entries have no order", f.FullName())
			}
			if f.IsList() {
				found++
				if most[f.FullName()] == 0 {
					t.Errorf("%s has no bound", f.FullName())
				}
			}
			if f.Kind() == protoreflect.MessageKind {
				look(f.Message())
			}
		}
	}
	look((*ledgerpb.Tx)(nil).ProtoReflect().Descriptor())
	if found != len(most) {
		t.Errorf("%d repeated fields, %d bounds", found, len(most))
	}
}

// TestPeek: the head of a transaction is what is decoded of it.
func TestPeek(t *testing.T) {
	for _, raw := range seedTxs(t) {
		tx, err := ParseTx(testNetwork, raw)
		if err != nil {
			t.Fatal(err)
		}
		h, err := peek(raw)
		if err != nil || h.sender != tx.Sender || h.nonce != tx.Pb.GetNonce() || h.fee != tx.Pb.GetFee() || h.size != len(raw) {
			t.Errorf("%s: %+v, %v", tx.Kind(), h, err)
		}
		field := tx.Pb.ProtoReflect().Descriptor().Fields().ByNumber(h.action)
		if field == nil || string(field.Name()) != tx.Kind() {
			t.Errorf("%s: action %d", tx.Kind(), h.action)
		}
	}
}

// TestSpam: who fills the pool for the least fee leaves room for others, who come into
// the next block for more; and what is urgent comes in for the least.
func TestSpam(t *testing.T) {
	m, s, senders := crowd(t, 200)
	p := newPool(t, m, s)
	var waiting [][]byte
	spam := func(times uint64) (taken int) {
		for _, a := range senders[1:] {
			for {
				q := p.queue(a.from)
				raw := a.cheap(q.next, strings.Repeat("x", maxMemo), times)
				if len(waiting) == 20_000 || p.Check(raw) != nil {
					break
				}
				waiting = append(waiting, raw)
				taken++
				if q.next%100 == 99 {
					break
				}
			}
		}
		return taken
	}
	for _, times := range []uint64{1, 2, 4, 8, 16, 32} {
		taken := spam(times)
		t.Logf("%d times the least fee: %d", times, taken)
		if times == 1 && taken != room.txs/2 {
			t.Errorf("%d wait for the least fee, want half of %d", taken, room.txs)
		}
		if times == 4 { // what pays a little more finds room all the same
			refusedWith(t, p.Check(senders[0].cheap(0, "", 4)), "is needed now")
			other := senders[0].cheap(0, "", 8)
			refusedWith(t, p.Check(other), "")
			waiting = append(waiting, other)
			proposer := addressOf(testKey(0))
			b := Block{Height: 1, Proposer: ConsensusAddressOf(consensusKeyOf(proposer)), Txs: [][]byte{beaconTx(t, 1, proposer)}}
			picked, err := m.Pick(s, b, waiting, 5_000)
			if err != nil || len(picked) < 3 || !bytes.Equal(picked[1], other) {
				t.Errorf("%d picked, and what pays most is not the first: %v", len(picked), err)
			}
		}
	}
	if p.used.txs > room.txs || p.used.txs < room.txs*7/8 {
		t.Errorf("%d wait, at most %d", p.used.txs, room.txs)
	}
	for _, full := range []amount{room, roomUrgent, roomAhead} {
		if full.txs > PoolTxs || full.bytes > PoolBytes {
			t.Errorf("room for %v is more than there is", full)
		}
	}
	// With all that one sender can have ahead released at once.
	if roomUrgent.txs+roomAhead.txs+ahead > PoolTxs || roomUrgent.bytes+roomAhead.bytes+2*MaxTxBytes > PoolBytes {
		t.Error("the pool can get larger than it says")
	}
}

// TestAheadPaysTheFloor: before its turn is no way around the fee that is asked for.
func TestAheadPaysTheFloor(t *testing.T) {
	m, s, senders := crowd(t, 2)
	p := newPool(t, m, s)
	p.used.txs = room.txs / 2
	refusedWith(t, p.Check(senders[0].cheap(1, "", 1)), "is needed now")
	refusedWith(t, p.Check(senders[0].cheap(1, "", 2)), "")
}

// TestNamedFee: the fee that a refusal names is enough, though its own number is longer.
func TestNamedFee(t *testing.T) {
	m, s, senders := crowd(t, 1)
	for eighth := 4; eighth < 8; eighth++ {
		p := newPool(t, m, s)
		p.used.txs = room.txs * eighth / 8
		err := p.Check(senders[0].cheap(0, "", 1))
		refusedWith(t, err, "is needed now")
		_, rest, _ := strings.Cut(err.Error(), "a fee of ")
		named, _, _ := strings.Cut(rest, " is needed now")
		enough, err := mesh.ParseAmount(named)
		if err != nil {
			t.Fatal(err)
		}
		refusedWith(t, p.Check(senders[0].transfer(0, uint64(enough), "")), "")
		if most := mesh.Amount(mostFees * 10 * len(senders[0].cheap(0, "", 1))); enough > most {
			t.Errorf("%s is needed, and more than %s is taken for a slip", enough, most)
		}
	}
}

// TestPickByFee: the highest fee for a byte first, of each sender by number.
func TestPickByFee(t *testing.T) {
	m, s, senders := crowd(t, 3)
	a, b, c := senders[0], senders[1], senders[2]
	waiting := [][]byte{
		a.cheap(0, "a0", 2), a.cheap(1, "a1", 9), b.cheap(1, "b1", 5), c.cheap(0, "c0", 1), b.cheap(0, "b0", 3), a.cheap(3, "a3", 99), c.cheap(0, "second", 8),
	}
	block := Block{Height: 1, Proposer: ConsensusAddressOf(consensusKeyOf(addressOf(testKey(0)))), Txs: [][]byte{beaconTx(t, 1, addressOf(testKey(0)))}}
	picked, err := m.Pick(s, block, waiting, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, raw := range picked[1:] {
		tx, err := ParseTx(testNetwork, raw)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, tx.Pb.GetTransfer().GetMemo())
	}
	if want := "b0 b1 a0 a1 c0"; strings.Join(got, " ") != want {
		t.Errorf("picked %v, want %s", got, want)
	}
	block.Txs = picked
	if _, err := m.Accepts(s, block); err != nil {
		t.Error(err)
	}
}

// TestUrgent: settlements come first while their epoch is open, one of a host, in half of
// the block, and into a pool that is full for others; only those of hosts.
func TestUrgent(t *testing.T) {
	m, s, senders := crowd(t, 40)
	host := addressOf(testKey(0))
	at := func(epoch, start, height uint64) {
		o := newOverlay(s)
		state, _ := load[ledgerpb.EpochState](o, miscKey(miscEpoch))
		state.Epoch, state.Start = epoch, start
		o.save(miscKey(miscEpoch), state)
		o.set(miscKey(miscHeight), be64(height))
		s.write(t, o.changes())
	}
	block := func() Block {
		height, err := heightOf(newOverlay(s))
		if err != nil {
			t.Fatal(err)
		}
		return Block{Height: height + 1, Proposer: ConsensusAddressOf(consensusKeyOf(host)), Txs: [][]byte{beaconTx(t, height+1, host)}}
	}
	settle := func(a sender, nonce uint64) []byte {
		tx := emptyLines(100)
		fee := uint64(len(a.act(nonce, 5000, tx))) * 10
		return a.act(nonce, fee, tx)
	}
	own := sender{t, host}
	var waiting [][]byte
	for _, a := range senders[1:] {
		waiting = append(waiting, a.cheap(0, strings.Repeat("x", maxMemo), 3))
	}
	first, second, foreign := settle(own, 0), settle(own, 1), settle(senders[0], 0)
	waiting = append(waiting, first, second, foreign)
	where := func(max int64) (at [3]int) {
		picked, err := m.Pick(s, block(), waiting, max)
		if err != nil {
			t.Fatal(err)
		}
		for i, raw := range [][]byte{first, second, foreign} {
			at[i] = slices.IndexFunc(picked, func(b []byte) bool { return bytes.Equal(b, raw) })
		}
		return at
	}
	all := 1 + len(waiting)
	at(1, 21, 21) // epoch 0 is open from height 22 on
	if got := where(1 << 20); got[0] != 1 || got[1] < all-3 || got[2] < all-3 {
		t.Errorf("settlements of the host at %d and %d, of somebody at %d, of %d", got[0], got[1], got[2], all)
	}
	if got := where(int64(len(first)) + 250); got[0] >= 0 {
		t.Error("a settlement takes more than half of the block")
	}
	p := newPool(t, m, s)
	p.used = room
	refusedWith(t, p.Check(foreign), "too many transactions wait")
	refusedWith(t, p.Check(first), "")
	refusedWith(t, p.Check(second), "too many transactions wait")
	p.used = roomUrgent
	p.senders = make(map[mesh.Address]*queue)
	refusedWith(t, p.Check(first), "too many transactions wait")

	at(1, 21, 21+8) // and until height 28
	if got := where(1 << 20); got[0] < all-3 {
		t.Errorf("a settlement that comes too late is at %d of %d", got[0], all)
	}
	p = newPool(t, m, s)
	p.used = room
	refusedWith(t, p.Check(first), "too many transactions wait")

	// A host whose jail is over; not while it lasts.
	first, second, foreign = own.act(0, 5000, &ledgerpb.Tx{Action: &ledgerpb.Tx_Unjail{Unjail: &ledgerpb.Unjail{}}}), nil, nil
	waiting[len(waiting)-3] = first
	for until, want := range map[uint64]bool{1: true, 2: false} {
		o := newOverlay(s)
		h, _ := load[ledgerpb.Host](o, hostKey(host))
		h.JailedUntil = until
		o.save(hostKey(host), h)
		s.write(t, o.changes())
		waiting[0] = senders[1].cheap(0, "", 90) // dearer than the host's
		if got := where(1 << 20); (got[0] == 1) != want {
			t.Errorf("jailed until epoch %d, in epoch 1: at %d of %d", until, got[0], all)
		}
	}
}

// TestRechecksAreCheap: to be looked at again costs no signature and no proof, and the
// keys of a host are verified when somebody has paid for it, and once.
func TestRechecksAreCheap(t *testing.T) {
	w := newWorld(t, worldParams(), []string{"ann"}, "dan", "eve", "fay")
	signatures, proofs := 0, make(map[mesh.Hash]int)
	known := make(map[mesh.Hash]bool)
	w.m.cfg.Verify = func(tx *Tx) bool { signatures++; return tx.Verify(testNetwork) }
	w.m.cfg.Recall = func(key mesh.Hash, verify func() bool) bool {
		if !known[key] {
			proofs[key]++
			known[key] = verify()
		}
		return known[key]
	}
	p := newPool(t, w.m, w.state)
	var waiting [][]byte
	for _, name := range []string{"dan", "eve", "fay"} {
		keys := w.registration(testNetwork, w.newKeys(name, 0))
		if name == "fay" {
			keys.BlsProof = bytes.Clone(waiting[0][len(waiting[0])-96:]) // not a proof
		}
		raw := w.tx(name, nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: keys}})
		refusedWith(t, p.Check(raw), "")
		waiting = append(waiting, raw)
	}
	for range 5 {
		var err error
		if p, err = p.Next(w.state); err != nil {
			t.Fatal(err)
		}
		for _, raw := range waiting {
			refusedWith(t, p.Recheck(raw), "")
		}
	}
	if signatures != 3 || len(proofs) != 0 {
		t.Errorf("%d signatures and %d proofs are verified before a block, want 3 and 0", signatures, len(proofs))
	}
	b := w.next()
	before := account(w, "fay")
	var err error
	if b.Txs, err = w.m.Pick(w.state, b, waiting, 1<<20); err != nil || len(b.Txs) != 4 {
		t.Fatalf("%d picked: %v", len(b.Txs), err)
	}
	if _, err = w.m.Accepts(w.state, b); err != nil {
		t.Fatal(err)
	}
	w.apply(b)
	refusedWith(t, w.out.Results[3].Err, "proof of possession")
	if fee := before.GetBalance() - account(w, "fay").GetBalance(); fee == 0 || account(w, "fay").GetNonce() != before.GetNonce()+1 {
		t.Errorf("a bad proof costs %d ngonka", fee)
	}
	for key, times := range proofs { // a bad one is not remembered
		if known[key] && times != 1 {
			t.Errorf("a good proof is verified %d times", times)
		}
	}
	if len(proofs) != 3 {
		t.Errorf("%d proofs are verified for 3 registrations", len(proofs))
	}
}

func account(w *world, name string) *ledgerpb.Account {
	return newOverlay(w.state).account(w.address(name))
}

// TestIdleRegistration: a registration that changes nothing is refused, before and in a
// block.
func TestIdleRegistration(t *testing.T) {
	w := newWorld(t, worldParams(), []string{"ann"}, "dan")
	a, dan := w.address("ann"), w.address("dan")
	same := w.registration(testNetwork, w.newKeys("ann", 0))
	owned := w.registration(testNetwork, w.newKeys("ann", 0))
	owned.Owner = a[:]
	for _, r := range []*ledgerpb.RegisterHost{same, owned, {Host: a[:], Owner: a[:]}} {
		raw := w.tx("ann", nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: r}})
		words := "has these keys and this owner"
		if len(r.GetHost()) > 0 {
			words = "owns host"
		}
		refusedWith(t, newPool(t, w.m, w.state).Check(raw), words)
		w.block(raw)
		refusedWith(t, w.out.Results[1].Err, words)
	}
	w.block(w.tx("ann", nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: &ledgerpb.RegisterHost{Host: a[:], Owner: dan[:]}}}))
	w.done()
}

// TestTrust: of what follows on others of its sender only the fee is looked at, and the
// fees of all that wait are there.
func TestTrust(t *testing.T) {
	m, s, senders := crowd(t, 1)
	a := senders[0]
	p := newPool(t, m, s)
	none := &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: make([]byte, 32)}}}
	refusedWith(t, p.Check(a.act(0, 1e6, none)), "there is no escrow")
	refusedWith(t, p.Check(a.transfer(0, 600_000e9, "")), "")
	refusedWith(t, p.Check(a.act(1, 1e6, none)), "")
	refusedWith(t, p.Check(a.transfer(2, 400_000e9, "")), "cannot pay the fee")
	// Of more than 16 lanes none is looked at.
	p = newPool(t, m, s)
	open := func(lanes int) []byte {
		open := &ledgerpb.OpenEscrow{Amount: 1e9}
		for i := range lanes {
			open.Lanes = append(open.Lanes, &ledgerpb.Lane{Host: bytes.Repeat([]byte{byte(i + 7)}, 32), Cap: 1})
		}
		return a.act(0, 1e6, &ledgerpb.Tx{Action: &ledgerpb.Tx_OpenEscrow{OpenEscrow: open}})
	}
	refusedWith(t, p.Check(open(trialLanes)), "is not a registered host")
	refusedWith(t, p.Check(open(trialLanes+1)), "")
	// What an action takes counts as well, also when it is looked at again.
	to := mesh.Address{7}
	p = newPool(t, m, s)
	all := a.act(0, 1e6, &ledgerpb.Tx{Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 999_999e9}}})
	refusedWith(t, p.Check(all), "")
	refusedWith(t, p.Check(a.transfer(1, 2e9, "")), "cannot pay the fee")
	p = nextPool(t, m, s, p)
	refusedWith(t, p.Recheck(all), "")
	refusedWith(t, p.Check(a.transfer(1, 2e9, "")), "cannot pay the fee")
	refusedWith(t, p.Recheck(all), fmt.Sprintf("nonce %d was used", 0))
}
