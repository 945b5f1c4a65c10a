package node

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
)

// TestPurse: it draws on the escrow of its own that has most left, and after a stop between
// an answer and its voucher the next voucher is for both.
func TestPurse(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	small, large := c.escrow(payer, mesh.GNK, 0), c.escrow(payer, 2*mesh.GNK, 0)
	others := c.escrow(c.payers[1], 9*mesh.GNK, 0)
	dir := t.TempDir()
	path := filepath.Join(dir, "receipts.db")
	p := c.client(payer, path)
	for _, id := range []mesh.Hash{small, large, others, mesh.HashOf([]byte("not opened"))} {
		if fresh, err := p.remember(p.self(), id); err != nil || !fresh {
			t.Fatal(err)
		}
	}
	if err := p.forget(p.self(), mesh.HashOf([]byte("not opened"))); err != nil {
		t.Fatal(err)
	}
	if fresh, err := p.remember(p.self(), large); err != nil || fresh {
		t.Errorf("noted twice: %v, %v", fresh, err)
	}
	draws := func(want mesh.Hash) {
		t.Helper()
		if _, err := p.turn(t.Context(), c.read); err != nil {
			t.Fatal(err)
		}
		if got, epoch := p.Escrow(); string(got) != string(want[:]) || epoch != c.epoch() {
			t.Errorf("draws on %x in epoch %d", got, epoch)
		}
	}
	draws(large)
	first := c.receipt(c.request(payer, large, c.epoch()), 3*mesh.GNK/2)
	if err := p.store.Put(first.Request, first.Signed); err != nil {
		t.Fatal(err)
	}
	if err := p.store.Close(); err != nil { // before it is acknowledged
		t.Fatal(err)
	}
	p = c.client(payer, path)
	draws(small)
	second := c.receipt(c.request(payer, large, c.epoch()), 1)
	signed, err := p.Acknowledge(second)
	if err != nil {
		t.Fatal(err)
	}
	v, err := inference.ParseVoucher(c.genesis.Network(), p.self(), signed.Signed)
	if err != nil || v.Amount != 3*mesh.GNK/2+1 || v.Receipts != 2 {
		t.Errorf("voucher %+v, %v", v, err)
	}
	if len(p.escrows(p.self())) != 3 {
		t.Errorf("escrows after a restart: %v", p.escrows(p.self()))
	}
	c.must(payer, &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: small[:]}}})
	c.must(payer, &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: large[:]}}})
	if _, err := p.turn(t.Context(), c.read); err != nil {
		t.Fatal(err)
	}
	if got, _ := p.Escrow(); got != nil {
		t.Errorf("draws on %x, which is closing", got)
	}
}

// TestPurseSettled: what a settlement took from an escrow is not taken off once more.
func TestPurseSettled(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 100*mesh.GNK)
	s, p := c.shop(), c.client(payer, filepath.Join(t.TempDir(), "receipts.db"))
	if _, err := p.remember(p.self(), escrow); err != nil {
		t.Fatal(err)
	}
	check := func(when string, draws bool, spent mesh.Amount) {
		t.Helper()
		if _, err := p.turn(t.Context(), c.read); err != nil {
			t.Fatal(err)
		}
		if id, _ := p.Escrow(); (id != nil) != draws || p.spent(escrow) != spent {
			t.Errorf("%s: draws on %x, spent %s, want %s", when, id, p.spent(escrow), spent)
		}
	}
	check("at first", true, 0)
	for range 6 {
		s.pay(p, s.serve(c.request(payer, escrow, c.epoch()), 10*mesh.GNK))
	}
	check("served", true, 60*mesh.GNK)
	c.turn(5)
	check("not settled yet", true, 60*mesh.GNK)
	s.settles()
	check("settled", true, 0)
	s.pay(p, s.serve(c.request(payer, escrow, c.epoch()), 35*mesh.GNK))
	check("served more", true, 35*mesh.GNK)
	c.turn(9)
	check("nobody settled, and the epoch is closed", true, 0)
}

// TestUntaken: what a host did not take is sent again at the start and when the epoch has
// turned, also what was not signed before the process was killed; what it took is not.
func TestUntaken(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 0)
	s, home := c.shop(), filepath.Join(t.TempDir(), "receipts.db")
	p := c.client(payer, home)
	restart := func() {
		t.Helper()
		if err := errors.Join(p.flush(), p.store.Close()); err != nil {
			t.Fatal(err)
		}
		p = c.client(payer, home)
	}
	sends := func(when string, want mesh.Amount, receipts uint64) {
		t.Helper()
		if _, err := p.turn(t.Context(), c.read); err != nil {
			t.Fatal(err)
		}
		all, err := p.untaken()
		if err != nil {
			t.Fatal(err)
		}
		got := mesh.Amount(0)
		for _, v := range all {
			got = v.Amount
			if v.Receipts != receipts {
				t.Errorf("%s: for %d receipts, want %d", when, v.Receipts, receipts)
			}
			if err := s.Voucher(v.Signed); err != nil {
				t.Fatal(err)
			}
			p.Taken(v)
		}
		if len(all) > 1 || got != want {
			t.Errorf("%s: %d vouchers, for %d; want %d", when, len(all), got, want)
		}
	}
	sends("nothing served", 0, 0)
	s.pay(p, s.serve(c.request(payer, escrow, c.epoch()), 1000))
	open := c.bent(c.receipt(c.request(payer, escrow, c.epoch()), 7), inference.FinishOpen)
	if _, err := p.Acknowledge(open); err != nil { // the host is away
		t.Fatal(err)
	}
	sends("too soon", 0, 0)
	restart()
	sends("at the start", 1007, 1)
	restart()
	sends("taken", 0, 0)
	for range 2 { // and no voucher: killed before
		r := s.serve(c.request(payer, escrow, c.epoch()), 100)
		if err := p.store.Put(r.Request, r.Signed); err != nil {
			t.Fatal(err)
		}
	}
	restart()
	sends("killed before a voucher", 1207, 3)
	restart()
	sends("taken too", 0, 0)
	if _, err := p.Acknowledge(s.serve(c.request(payer, escrow, c.epoch()), 5)); err != nil {
		t.Fatal(err)
	}
	sends("too soon again", 0, 0)
	c.turn(0)
	sends("the epoch turned", 1212, 4)
	c.turn(5)
	s.settles()
	if _, err := p.Acknowledge(c.receipt(c.request(payer, escrow, c.epoch()-2), 5)); err != nil {
		t.Fatal(err)
	}
	p.resent = time.Time{}
	sends("nobody takes it any more", 0, 0)
}

// TestPrune: escrows that were paid back are not asked for for ever; one that may yet come
// into a block is, and the list has an end.
func TestPrune(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 0)
	home := filepath.Join(t.TempDir(), "receipts.db")
	p := c.client(payer, home)
	never := mesh.HashOf([]byte("never in a block"))
	for _, n := range []noted{{p.self(), escrow, 0}, {p.self(), never, 0}, {addressOfKey(c.payers[1]), never, 0}} {
		if _, err := p.remember(n.Owner, n.Escrow); err != nil {
			t.Fatal(err)
		}
	}
	counts := func(when string, own, others int) {
		t.Helper()
		if _, err := p.turn(t.Context(), c.read); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, got2 := len(p.escrows(p.self())), len(p.escrows(addressOfKey(c.payers[1]))); got != own || got2 != others {
				t.Errorf("%s: %d and %d are noted, want %d and %d", when, got, got2, own, others)
			}
			if err := p.store.Close(); err != nil {
				t.Fatal(err)
			}
			p = c.client(payer, home) // the same from the disk
		}
	}
	c.turn(0)
	counts("at first", 2, 1)
	c.turn(0)
	c.turn(0)
	counts("it may yet come", 2, 1)
	c.turn(0)
	counts("it will not", 1, 0)
	c.must(payer, &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: escrow[:]}}})
	counts("closing", 1, 0)
	for e, _, _ := c.view().Escrow(escrow); e != nil; e, _, _ = c.view().Escrow(escrow) {
		c.turn(0)
	}
	counts("paid back", 0, 0)

	for i := range maxNoted / 100 {
		p.opened = append(p.opened, noted{p.self(), mesh.HashOf([]byte{byte(i), byte(i >> 8), byte(i >> 16)}), 1})
	}
	if _, err := p.remember(p.self(), never); err == nil {
		t.Error("the list has no end: the next start would refuse it")
	}
}
