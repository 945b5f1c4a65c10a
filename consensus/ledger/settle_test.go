package ledger

import (
	"crypto/ed25519"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
)

// settleWorld has an escrow of ann with a lane of 400 for host1, of which epoch 0 is
// over: in it host1 and host2, who share the pool, could be paid 150 from it each.
func settleWorld(t testing.TB) (w *escrowWorld, a, b mesh.Hash) {
	w = newEscrowWorld(t, Config{})
	w.fund("ann", 10_000)
	w.fund("bob", 10_000)
	h1 := w.host("host1", "olga")
	w.host("host2", "")
	w.begin()
	a = w.open("ann", 1000, &ledgerpb.Lane{Host: h1[:], Cap: 400})
	b = w.open("bob", 1000)
	w.turn()
	return w, a, b
}

func TestSettleRefused(t *testing.T) {
	type world struct {
		*escrowWorld
		ann, bob mesh.Hash
	}
	line := func(w world, amount uint64) *ledgerpb.SettleLine { return w.line("ann", "host1", w.ann, 0, amount) }
	one := func(change func(w world, l *ledgerpb.SettleLine)) func(w world) *ledgerpb.Tx {
		return func(w world) *ledgerpb.Tx {
			l := line(w, 100)
			change(w, l)
			return settleTx(0, l)
		}
	}
	tests := []struct {
		name, want string // no want: taken
		tx         func(w world) *ledgerpb.Tx
	}{
		{"all that is left", "", func(w world) *ledgerpb.Tx { return settleTx(0, line(w, 550)) }},
		{"one more", "550 ngonka", func(w world) *ledgerpb.Tx { return settleTx(0, line(w, 551)) }},
		{"less than the voucher", "", one(func(_ world, l *ledgerpb.SettleLine) { l.Amount = 99 })},
		{"less than the receipts", "", one(func(_ world, l *ledgerpb.SettleLine) { l.Total = 120 })},
		{"more than the voucher", "the voucher is for 0.0000001", one(func(_ world, l *ledgerpb.SettleLine) { l.Amount, l.Total = 101, 101 })},
		{"more than the receipts", "the receipts are for 0.000000099", one(func(_ world, l *ledgerpb.SettleLine) { l.Total = 99 })},
		{"receipts without a voucher", "", one(func(_ world, l *ledgerpb.SettleLine) { l.Amount, l.Voucher, l.Acknowledged, l.Signature = 0, 0, 0, nil })},
		{"an amount without a voucher", "the voucher is for 0 GNK", one(func(_ world, l *ledgerpb.SettleLine) { l.Voucher, l.Acknowledged, l.Signature = 0, 0, nil })},
		{"a voucher of nothing, not signed", "not signed", one(func(_ world, l *ledgerpb.SettleLine) { l.Amount, l.Voucher = 0, 0 })},
		{"more acknowledged than committed", "2 receipts of escrow", one(func(_ world, l *ledgerpb.SettleLine) { l.Acknowledged, l.Receipts = 3, 2 })},
		{"no receipts", "0 receipts", one(func(_ world, l *ledgerpb.SettleLine) { l.Receipts = 0 })},
		{"too many receipts", "want 1 to 4294967296", one(func(_ world, l *ledgerpb.SettleLine) { l.Receipts = 1<<32 + 1 })},
		{"short root", "root of 31 bytes", one(func(_ world, l *ledgerpb.SettleLine) { l.Root = l.Root[1:] })},
		{"short escrow", "escrow of 31 bytes", one(func(_ world, l *ledgerpb.SettleLine) { l.Escrow = l.Escrow[1:] })},
		{"signature of another", "not signed by the owner", one(func(w world, l *ledgerpb.SettleLine) {
			l.Signature = w.line("bob", "host1", w.ann, 0, 100).Signature
		})},
		{"voucher for another host", "not signed by the owner", one(func(w world, l *ledgerpb.SettleLine) {
			l.Signature = w.line("ann", "host2", w.ann, 0, 100).Signature
		})},
		{"voucher of another epoch", "not signed by the owner", one(func(w world, l *ledgerpb.SettleLine) {
			l.Signature = w.line("ann", "host1", w.ann, 1, 100).Signature
		})},
		{"voucher of another escrow", "not signed by the owner", one(func(w world, l *ledgerpb.SettleLine) {
			l.Signature = w.line("ann", "host1", w.bob, 0, 100).Signature
		})},
		{"unknown escrow", "there is no escrow", one(func(_ world, l *ledgerpb.SettleLine) { l.Escrow = l.Root })},
		{"the same escrow twice", "out of order", func(w world) *ledgerpb.Tx { return settleTx(0, line(w, 1), line(w, 1)) }},
		{"descending", "line 2: escrow", func(w world) *ledgerpb.Tx {
			l := []*ledgerpb.SettleLine{line(w, 100), w.line("bob", "host1", w.bob, 0, 100)}
			if string(w.ann[:]) < string(w.bob[:]) {
				l[0], l[1] = l[1], l[0]
			}
			return settleTx(0, l...)
		}},
		{"totals that overflow", "64 bits", func(w world) *ledgerpb.Tx {
			l := []*ledgerpb.SettleLine{line(w, 100), w.line("bob", "host1", w.bob, 0, 100)}
			l[0].Total, l[1].Total = math.MaxUint64, math.MaxUint64
			if string(w.ann[:]) > string(w.bob[:]) {
				l[0], l[1] = l[1], l[0]
			}
			return settleTx(0, l...)
		}},
		{"no lines", "without lines", func(world) *ledgerpb.Tx { return settleTx(0) }},
		{"this epoch", "epoch 1 is not over", func(w world) *ledgerpb.Tx { return settleTx(1, w.line("ann", "host1", w.ann, 1, 100)) }},
		{"the last epoch of all", "is not over", func(w world) *ledgerpb.Tx { return settleTx(math.MaxUint64, line(w, 100)) }},
		{"before the window", "from height 4 to 8, this is 3", func(w world) *ledgerpb.Tx {
			w.b.height = 3
			return settleTx(0, line(w, 100))
		}},
		{"the window's last block", "", func(w world) *ledgerpb.Tx {
			w.b.height = 8
			return settleTx(0, line(w, 100))
		}},
		{"after the window", "from height 4 to 8, this is 9", func(w world) *ledgerpb.Tx {
			w.b.height = 9
			return settleTx(0, line(w, 100))
		}},
		{"when it was paid", "epoch 0 is settled", func(w world) *ledgerpb.Tx {
			w.pay()
			return settleTx(0, line(w, 100))
		}},
		{"an epoch later", "epoch 0 is settled, it is epoch 2", func(w world) *ledgerpb.Tx {
			w.pay()
			w.turn()
			return settleTx(0, line(w, 100))
		}},
		{"opened later", "was opened in epoch 1", func(w world) *ledgerpb.Tx {
			id := w.open("ann", 500)
			return settleTx(0, w.line("ann", "host1", id, 0, 1))
		}},
		{"closed since", "", func(w world) *ledgerpb.Tx {
			w.must("ann", &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: w.ann[:]}}})
			return settleTx(0, line(w, 550))
		}},
		{"of an epoch after it was closed", "was closed in epoch 1 and pays nothing of epoch 2", func(w world) *ledgerpb.Tx {
			w.must("ann", &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: w.ann[:]}}})
			w.pay()
			w.turn()
			w.pay()
			w.turn()
			return settleTx(2, w.line("ann", "host1", w.ann, 2, 1))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inner, a, b := settleWorld(t)
			w := world{inner, a, b}
			err := w.do("host1", tt.tx(w))
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "0.00000055 GNK", "550 ngonka"), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
			w.check()
			if s, _ := NewView(w.o).Settlement(0, w.address("host1")); (s == nil) != (tt.want != "") {
				t.Errorf("settlement %v", s)
			}
		})
	}
	t.Run("not a host", func(t *testing.T) {
		w, a, _ := settleWorld(t)
		if err := w.do("bob", settleTx(0, w.line("ann", "bob", a, 0, 1))); err == nil || !strings.Contains(err.Error(), "not a registered host") {
			t.Errorf("got %v", err)
		}
	})
}

// TestSettleInParts: a settlement in several transactions is the same as in one, and
// one that is refused leaves nothing.
func TestSettleInParts(t *testing.T) {
	build := func(sizes ...int) *ledgerpb.Settlement {
		w := newEscrowWorld(t, Config{})
		w.b.params.SettleBlocks = 15
		w.fund("ann", 100_000)
		w.host("host1", "olga")
		w.begin()
		var escrows []mesh.Hash
		for range 11 {
			escrows = append(escrows, w.open("ann", 1000))
		}
		w.turn()
		escrows = sortedHashes(escrows)
		var lines []*ledgerpb.SettleLine
		for i, id := range escrows {
			lines = append(lines, w.line("ann", "host1", id, 0, uint64(10+i)))
		}
		rest := lines
		for _, n := range sizes {
			w.must("host1", settleTx(0, rest[:n]...))
			if err := w.do("host1", settleTx(0, lines[0])); err == nil {
				t.Error("a line was taken twice")
			}
			if n < len(rest) {
				bad := clonePb(rest[n])
				bad.Amount++
				if err := w.do("host1", settleTx(0, bad)); err == nil {
					t.Error("a wrong line was taken")
				}
			}
			rest = rest[n:]
			w.check()
			w.commit()
		}
		view := NewView(w.o)
		kept, err := view.SettledLines(0, w.address("host1"))
		if err != nil || len(kept) != len(lines) || kept[10].GetAmount() != 20 || len(kept[10].GetSignature()) != 0 {
			t.Errorf("lines kept: %v, %v", kept, err)
		}
		s, err := view.Settlement(0, w.address("host1"))
		if err != nil || s.GetDue() != 165 || s.GetPaid() != 0 {
			t.Errorf("before it is paid: %v, %v", s, err)
		}
		p := w.pay()
		w.check()
		if p.settlements != 1 || p.receipts != 11 || p.paid != 165 || p.byHost[w.address("host1")] != 165 {
			t.Errorf("payout %+v", p)
		}
		if got := w.o.account(w.address("olga")).GetBalance(); got != 165 {
			t.Errorf("the host's owner has %d", got)
		}
		if got := w.used(); strings.ContainsAny(got, "esqz") {
			t.Errorf("records are left in tables %s", got)
		}
		if s, err = NewView(w.o).Settlement(0, w.address("host1")); err != nil {
			t.Fatal(err)
		}
		w.m.pruneSettlements(w.o, 0)
		if strings.Contains(w.used(), "S") {
			t.Error("pruning leaves settlements")
		}
		return s
	}
	one := build(11)
	if one.GetLines() != 11 || one.GetPaid() != 165 || one.GetDue() != 0 || one.GetTotal() != 165 {
		t.Errorf("settlement: %v", one)
	}
	for _, sizes := range [][]int{{1, 10}, {4, 4, 3}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {8, 3}} {
		if got := build(sizes...); got.String() != one.String() {
			t.Errorf("in parts of %v: %v, want %v", sizes, got, one)
		}
	}
}

// TestPruneSettlements leaves what is younger, also when keep_epochs was lowered.
func TestPruneSettlements(t *testing.T) {
	w := newEscrowWorld(t, Config{})
	for epoch := range uint64(10) {
		w.o.save(settlementKey(epoch, w.address("h")), &ledgerpb.Settlement{Lines: epoch + 1})
	}
	w.m.pruneSettlements(w.o, 6)
	w.commit()
	var left []uint64
	scan(w.o, []byte{tableSettlement}, func(_ []byte, s *ledgerpb.Settlement) { left = append(left, s.GetLines()-1) })
	if fmt.Sprint(left) != "[7 8 9]" {
		t.Errorf("left: %v", left)
	}
}

// TestMillionReceipts settles a million receipts of 100 hosts and 5,000 pairs of payer
// and host, with vouchers that are signed and checked.
func TestMillionReceipts(t *testing.T) {
	if testing.Short() {
		t.Skip("signs 5,000 vouchers; make test runs it, -short does not")
	}
	const hosts, perHost, receipts = 100, 50, 200
	w := newEscrowWorld(t, Config{})
	w.b.params.FeePerByte = 100
	for i := range hosts {
		name := fmt.Sprint("host", i)
		w.host(name, "")
		w.fund(name, 1e9)
	}
	w.begin()
	owner := make(map[mesh.Hash]string)
	var escrows []mesh.Hash
	for i := range 500 { // each with ten hosts that have a lane
		name := fmt.Sprint("payer", i)
		w.fund(name, 1e9+1e8)
		var lanes []*ledgerpb.Lane
		for j := range 10 {
			h := w.hosts[(i+10*j)%hosts]
			lanes = append(lanes, &ledgerpb.Lane{Host: h[:], Cap: 1e7})
		}
		sortLanes(lanes)
		id := w.open(name, 1e9, lanes...)
		escrows, owner[id] = append(escrows, id), name
	}
	byHost := make(map[mesh.Address][]EscrowReceipts)
	n := uint64(0)
	for i, id := range escrows {
		for j := range 10 {
			h := w.hosts[(i+10*j)%hosts]
			e := EscrowReceipts{Escrow: id}
			for range receipts {
				n++
				e.Receipts = append(e.Receipts, ReceiptEntry{mesh.HashOf(be64(n)), mesh.Amount(1000 + n%1000)})
			}
			byHost[h] = append(byHost[h], e)
		}
	}
	w.turn()

	var building, applying time.Duration
	var txs, size int
	var example *ledgerpb.ReceiptProof
	for _, h := range w.hosts {
		start := time.Now()
		lines, prover, err := BuildSettlement(byHost[h])
		if err != nil {
			t.Fatal(err)
		}
		building += time.Since(start)
		for _, l := range lines {
			payer := w.key(owner[mesh.Hash(l.GetEscrow())])
			v := inference.Voucher{Escrow: mesh.Hash(l.GetEscrow()), Host: h, Amount: mesh.Amount(l.GetTotal()), Receipts: l.GetReceipts()}
			s, err := inference.SignVoucher(escrowNetwork, payer, &v)
			if err != nil {
				t.Fatal(err)
			}
			l.Amount, l.Voucher, l.Acknowledged, l.Signature = l.GetTotal(), l.GetTotal(), l.GetReceipts(), s.Signature
		}
		name := w.nameOf(h)
		tx := settleTx(0, lines...)
		fee, err := FeeOf(w.b.params, tx)
		if err != nil {
			t.Fatal(err)
		}
		tx.Fee = uint64(fee)
		raw, err := SignTx(escrowNetwork, w.key(name), tx)
		if err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if r := w.m.apply(w.o, w.b, raw); r.Err != nil {
			t.Fatal(r.Err)
		}
		applying += time.Since(start)
		txs, size = txs+1, size+len(raw)
		if example == nil {
			e := byHost[h][7]
			if example, err = prover.Prove(e.Escrow, e.Receipts[100].Hash); err != nil {
				t.Fatal(err)
			}
			s, err := NewView(w.o).Settlement(0, h)
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyReceipt(s, example); err != nil {
				t.Fatal(err)
			}
			b, err := encode(example)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("proof of a receipt: %d bytes", len(b))
		}
	}
	start := time.Now()
	p := w.pay()
	paying := time.Since(start)
	w.check()
	t.Logf("%d receipts, %d lines in %d transactions of %d bytes, %.2f bytes a receipt", n, hosts*perHost, txs, size, float64(size)/float64(n))
	t.Logf("trees %v, applied in %v (%v a transaction), paid out in %v", building, applying, applying/time.Duration(txs), paying)
	if n != 1_000_000 || p.receipts != n || p.settlements != hosts || p.paid == 0 {
		t.Errorf("%d receipts; payout of %d settlements, %d receipts, %d ngonka", n, p.settlements, p.receipts, p.paid)
	}
	if txs > 300 || size > 2*int(n) {
		t.Errorf("%d transactions of %d bytes, want at most 300 of 2 bytes a receipt", txs, size)
	}
}

func (w *escrowWorld) nameOf(a mesh.Address) string {
	for _, name := range w.names {
		if mesh.AddressOf(w.keys[name].Public().(ed25519.PublicKey)) == a {
			return name
		}
	}
	w.t.Fatalf("nobody is %s", a)
	return ""
}

func BenchmarkSettle50(b *testing.B) {
	w := newEscrowWorld(b, Config{})
	for i := range 100 {
		w.host(fmt.Sprint("host", i), "")
	}
	w.fund("ann", 1e15)
	w.begin()
	h := w.address("host0")
	var escrows []mesh.Hash
	for range 50 {
		escrows = append(escrows, w.open("ann", 1e12, &ledgerpb.Lane{Host: h[:], Cap: 1e11}))
	}
	w.turn()
	var lines []*ledgerpb.SettleLine
	for _, id := range sortedHashes(escrows) {
		lines = append(lines, w.line("ann", "host0", id, 0, 1e10))
	}
	raw, err := SignTx(escrowNetwork, w.key("host0"), settleTx(0, lines...))
	if err != nil {
		b.Fatal(err)
	}
	w.commit()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if r := w.m.apply(newOverlay(w.state), w.b, raw); r.Err != nil {
			b.Fatal(r.Err)
		}
	}
}

// BenchmarkShare is what the ranks of a thousand hosts add to a line.
func BenchmarkShare(b *testing.B) {
	w := newEscrowWorld(b, Config{})
	var set hostSet
	for i := range 1000 {
		w.host(fmt.Sprint("host", i), "")
	}
	for _, h := range w.hosts {
		set = append(set, h[:]...)
	}
	escrow := mesh.HashOf(nil)
	first := Rendezvous(escrowNetwork, escrow, 0, w.hosts)[0]
	for b.Loop() {
		if set.share(escrowNetwork, escrow, 0, 1600, first) != 100 {
			b.Fatal("the first by rank has no share")
		}
	}
}
