package node

import (
	"crypto/ed25519"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// burst begins answers of a payer until one is refused, and ends them as the host does.
func (s *shop) burst(payer ed25519.PrivateKey, escrow mesh.Hash, price mesh.Amount) (all []*inference.Receipt) {
	s.c.t.Helper()
	var ends []func()
	for len(ends) <= 2*mostOwed {
		req := s.c.request(payer, escrow, s.c.epoch())
		done, err := s.Admit(req, price)
		if err != nil {
			refusedAs(s.c.t, err, inference.CodeBusy) // never as unpaid: vouchers may be under way
			break
		}
		r := s.c.receipt(req, price)
		all = append(all, r)
		ends = append(ends, func() {
			if err := s.store.Put(req.Hash, r.Signed); err != nil {
				s.c.t.Fatal(err)
			}
			done(r.Signed)
		})
	}
	for _, end := range ends {
		end()
	}
	return all
}

// TestOwed: answers that run count, and the window grows with those that are paid for. What
// a payer leaves unpaid is held against it in the epochs after, and after a restart.
func TestOwed(t *testing.T) {
	c := newMoneyChain(t)
	good, bad := c.payers[0], c.payers[1]
	own, theirs := c.escrow(good, 100*mesh.GNK, 0), c.escrow(bad, 100*mesh.GNK, 0)
	s, p := c.shop(), c.client(good, filepath.Join(t.TempDir(), "receipts.db"))
	next := func() {
		t.Helper()
		c.turn(5)
		s.settles()
		s.restart()
	}
	for epoch, want := range []int{firstOwed, 1, 1, 1} { // never pays
		if got := len(s.burst(bad, theirs, 1000)); got != want {
			t.Errorf("epoch %d: %d answers for nothing, want %d", epoch, got, want)
		}
		next()
	}
	// Its own word makes it good, at four answers for one.
	liar := c.client(bad, filepath.Join(t.TempDir(), "receipts.db"))
	for range unpaidCosts * (firstOwed + 3) {
		s.pay(liar, s.serve(c.request(bad, theirs, c.epoch()), 1000))
	}
	if got := len(s.burst(bad, theirs, 1000)); got != firstOwed {
		t.Errorf("%d answers for one who made it good, want %d", got, firstOwed)
	}
	next()

	want := firstOwed
	for round := range 6 {
		all := s.burst(good, own, 1000)
		if len(all) != want {
			t.Errorf("round %d: %d answers at once, want %d", round, len(all), want)
		}
		for _, r := range all {
			s.pay(p, r)
		}
		want = min(want+len(all)/2, mostOwed)
		if round == 3 {
			next()
		}
	}
	if want != mostOwed {
		t.Errorf("at last %d answers, want %d", want, mostOwed)
	}
	// The epoch turns, and the one before is not settled: nobody has a second window.
	if got := len(s.burst(good, own, 1000)); got != mostOwed {
		t.Errorf("%d answers at once, want %d", got, mostOwed)
	}
	c.turn(0)
	if got := len(s.burst(good, own, 1000)); got != 0 {
		t.Errorf("%d more in the next epoch", got)
	}
}

// voucher brings one that the purse of an honest payer would not sign.
func (s *shop) voucher(payer ed25519.PrivateKey, escrow mesh.Hash, amount mesh.Amount, receipts uint64) error {
	s.c.t.Helper()
	v := &inference.Voucher{Escrow: escrow, Host: s.self, Epoch: s.c.epoch(), Amount: amount, Receipts: receipts}
	signed, err := inference.SignVoucher(s.c.genesis.Network(), payer, v)
	if err != nil {
		s.c.t.Fatal(err)
	}
	return s.Voucher(signed)
}

// metered is what the meter of acknowledged answers shows.
func (s *shop) metered() float64 {
	s.c.t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(s.meter.acknowledged)
	families, err := reg.Gather()
	if err != nil {
		s.c.t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetCounter().GetValue()
}

// begins starts answers, and returns what ends them without a receipt.
func (s *shop) begins(payer ed25519.PrivateKey, escrow mesh.Hash, n int) (cancel func()) {
	s.c.t.Helper()
	var ends []func(*inferencepb.Signed)
	for range n {
		done, err := s.Admit(s.c.request(payer, escrow, s.c.epoch()), 1000)
		if err != nil {
			s.c.t.Fatal(err)
		}
		ends = append(ends, done)
	}
	return func() {
		for _, end := range ends {
			end(nil)
		}
	}
}

// TestVoucherAhead: a voucher that no settlement can use gets its payer nothing, however it
// came to be ahead. It is held against the payer when the epoch is settled.
func TestVoucherAhead(t *testing.T) {
	for _, test := range []struct {
		name    string
		running int // answers that are cancelled after the first voucher
	}{
		{"of nothing that runs", 0},
		{"of answers that are cancelled", firstOwed - 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newMoneyChain(t)
			payer := c.payers[1]
			escrow := c.escrow(payer, 100*mesh.GNK, 0)
			s := c.shop()
			for i, want := range []int{firstOwed, 1, 1, 1} {
				epoch, most := c.epoch(), 2*firstOwed
				s.serve(c.request(payer, escrow, epoch), 1000)
				if i == 0 && test.running > 0 {
					cancel := s.begins(payer, escrow, test.running)
					if err := s.voucher(payer, escrow, mesh.GNK, uint64(test.running+1)); err != nil {
						t.Errorf("a voucher for answers that run: %v", err)
					}
					cancel()
					most = test.running // with one more it would be good
					want = most
				} else {
					err := s.voucher(payer, escrow, mesh.GNK, uint64(most+1))
					var refusal *inference.Refusal
					if !errors.As(err, &refusal) || refusal.Receipts == nil || *refusal.Receipts != 1 {
						t.Errorf("a voucher for what is not there: %v, want how many there are", err)
					}
				}
				if at, got := s.open[account{escrow, s.self, epoch}], s.metered(); at.owes() != 1 || got != 0 {
					t.Errorf("epoch %d: it owes %d answers, want 1, and acknowledged %v", i, at.owes(), got)
				}
				s.restart()
				served := 1
				for ; served < most; served++ {
					req := c.request(payer, escrow, epoch)
					done, err := s.Admit(req, 1000)
					if err != nil {
						refusedAs(t, err, inference.CodeBusy)
						break
					}
					r := c.receipt(req, 1000)
					if err := s.store.Put(req.Hash, r.Signed); err != nil {
						t.Fatal(err)
					}
					done(r.Signed)
				}
				if served != want {
					t.Errorf("epoch %d: %d answers for nothing, want %d", i, served, want)
				}
				c.turn(5)
				s.settles()
				if got := s.trust[escrow]; got >= 0 {
					t.Errorf("epoch %d: trust is %d", i, got)
				}
				if record, err := c.view().Settlement(epoch, s.self); err != nil || record != nil {
					t.Errorf("settled: %v, %v", record, err)
				}
			}
		})
	}
}

// TestVouchersDriveOut: vouchers for answers that run, and are cancelled, do not take the
// place of the one that pays for the epoch.
func TestVouchersDriveOut(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 0)
	s, p := c.shop(), c.client(payer, filepath.Join(t.TempDir(), "receipts.db"))
	for range mostTrust {
		s.pay(p, s.serve(c.request(payer, escrow, c.epoch()), 1000))
	}
	cancel := s.begins(payer, escrow, mostOwed)
	for i := range uint64(mostOwed) {
		if err := s.voucher(payer, escrow, mesh.GNK+mesh.Amount(i), mostTrust+1+i); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	c.turn(5)
	s.settles()
	record, err := c.view().Settlement(c.epoch()-1, s.self)
	if err != nil || record.GetDue() != mostTrust*1000 || s.trust[escrow] != mostTrust {
		t.Errorf("settlement: %v, %v; trust %d", record, err, s.trust[escrow])
	}
}

// TestPaysAtOnce: vouchers that come before the host is done with their answers count when it
// is, in any order.
func TestPaysAtOnce(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 0)
	s, p := c.shop(), c.client(payer, filepath.Join(t.TempDir(), "receipts.db"))
	const atOnce = 64
	for range mostTrust {
		s.pay(p, s.serve(c.request(payer, escrow, c.epoch()), 1000))
	}
	for range 5 {
		var ends []func()
		for range atOnce {
			req := c.request(payer, escrow, c.epoch())
			done, err := s.Admit(req, 1000)
			if err != nil {
				t.Fatal(err)
			}
			r := c.receipt(req, 1000)
			s.pay(p, r)
			ends = append(ends, func() {
				if err := s.store.Put(req.Hash, r.Signed); err != nil {
					t.Fatal(err)
				}
				done(r.Signed)
			})
		}
		for _, i := range rand.Perm(len(ends)) {
			ends[i]()
		}
	}
	at := s.open[account{escrow, s.self, c.epoch()}]
	if at.owes() != 0 || at.acks != mostTrust+5*atOnce || len(at.ahead) != 0 {
		t.Errorf("it owes %d answers; %d are acknowledged, %d vouchers are ahead", at.owes(), at.acks, len(at.ahead))
	}
	c.turn(5)
	s.settles()
	record, err := c.view().Settlement(c.epoch()-1, s.self)
	if err != nil || record.GetDue() != (mostTrust+5*atOnce)*1000 || s.trust[escrow] != mostTrust {
		t.Errorf("settlement: %v, %v; trust %d", record, err, s.trust[escrow])
	}
}

// TestAcknowledgedMeter: a word for more than was served is no more than what was served.
func TestAcknowledgedMeter(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[1]
	escrow := c.escrow(payer, 100*mesh.GNK, 0)
	s := c.shop()
	for n := range 3 {
		s.serve(c.request(payer, escrow, c.epoch()), 1000)
		if n == 0 {
			if err := s.voucher(payer, escrow, math.MaxUint64, 1); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := s.metered(), float64(1000*(n+1)); got != want {
			t.Errorf("acknowledged %v, want %v", got, want)
		}
	}
}

// bent is a receipt of the same answer with another finish.
func (c *moneyChain) bent(r *inference.Receipt, finish inference.FinishReason) *inference.Receipt {
	c.t.Helper()
	pb := proto.Clone(r.Pb).(*inferencepb.Receipt)
	pb.Finish = string(finish)
	signed, err := inference.SignReceipt(c.genesis.Network(), c.host, pb)
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := inference.ParseReceipt(c.genesis.Network(), signed)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// TestBrokenStreams: answers that lost their stream or were cancelled are paid for, by what
// the payer has of them, and do not lock it out, after a restart either.
func TestBrokenStreams(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 0)
	s, p := c.shop(), c.client(payer, filepath.Join(t.TempDir(), "receipts.db"))
	for i := range 150 {
		req := c.request(payer, escrow, c.epoch())
		done, err := s.Admit(req, 1000)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		whole := c.receipt(req, 1000)
		his, theirs := whole, whole
		switch i % 3 {
		case 1:
			his, theirs = c.bent(whole, inference.FinishAborted), c.bent(whole, inference.FinishOpen)
		case 2: // its last frame came too late
			his, theirs = c.bent(whole, inference.FinishCancelled), c.bent(whole, inference.FinishOpen)
		}
		if err := s.store.Put(req.Hash, his.Signed); err != nil {
			t.Fatal(err)
		}
		done(his.Signed)
		s.pay(p, theirs)
		if i == 100 {
			s.restart()
		}
	}
	at := s.open[account{escrow, s.self, c.epoch()}]
	if at.served != 150_000 || at.acked != at.served || at.whole != 50 || at.acks != 50 || at.receipts() != 150 {
		t.Errorf("served %d, acknowledged %d; whole %d, acknowledged %d; receipts %d", at.served, at.acked, at.whole, at.acks, at.receipts())
	}
	c.turn(5)
	s.settles()
	record, err := c.view().Settlement(c.epoch()-1, s.self)
	if err != nil || record.GetDue() != 150_000 || record.GetReceipts() != 150 {
		t.Errorf("settlement: %v, %v", record, err)
	}
}

// TestLostReceipts: a host that lost receipts says how many it has, and is paid for these
// and all that come: the payer's voucher is for all the money and no more receipts.
func TestLostReceipts(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 0)
	s, home := c.shop(), filepath.Join(t.TempDir(), "receipts.db")
	p := c.client(payer, home)
	for range 100 { // that were held in memory when the process was killed
		req := c.request(payer, escrow, c.epoch())
		done, err := s.Admit(req, 1000)
		if err != nil {
			t.Fatal(err)
		}
		r := c.receipt(req, 1000)
		done(r.Signed)
		s.pay(p, r)
	}
	s.restart()
	recounted := 0
	for range 100 {
		r := s.serve(c.request(payer, escrow, c.epoch()), 1000)
		if err := p.store.Put(r.Request, r.Signed); err != nil {
			t.Fatal(err)
		}
		v, err := p.Acknowledge(r)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Voucher(v.Signed)
		var refusal *inference.Refusal
		if errors.As(err, &refusal) && refusal.Receipts != nil {
			recounted++
			if v, err = p.Recount(v, *refusal.Receipts); err == nil {
				err = s.Voucher(v.Signed)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if recounted != 1 {
		t.Errorf("recounted %d times, want once", recounted)
	}
	if err := p.store.Close(); err != nil {
		t.Fatal(err)
	}
	p = c.client(payer, home)
	if at := p.paid[account{escrow, s.self, c.epoch()}]; at.Amount != 200_000 || at.Receipts != 100 {
		t.Errorf("after a restart the payer says %d for %d", at.Amount, at.Receipts)
	}
	c.turn(5)
	s.settles()
	record, err := c.view().Settlement(c.epoch()-1, s.self)
	if err != nil || record.GetDue() != 100_000 {
		t.Errorf("settlement: %v, %v", record, err)
	}
}

// TestFullDiskServes: a host whose disk is full takes vouchers for as long as it lives, has
// them sent again, and goes on serving who pays.
func TestFullDiskServes(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 0)
	s, p := c.shop(), c.client(payer, filepath.Join(t.TempDir(), "receipts.db"))
	var last *inference.SignedVoucher
	for i := range 3 * mostOwed {
		req := c.request(payer, escrow, c.epoch())
		done, err := s.Admit(req, 1000)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		r := c.receipt(req, 1000)
		v, err := p.Acknowledge(r)
		if err != nil {
			t.Fatal(err)
		}
		last = v
		func() {
			defer limitFiles(t, 1)()
			if err := s.store.Put(req.Hash, r.Signed); !errors.Is(err, inference.ErrHeld) {
				t.Fatalf("a receipt on a full disk: %v", err)
			}
			done(r.Signed)
			refusedAs(t, s.Voucher(v.Signed), inference.CodeBusy)
		}()
	}
	if err := s.Voucher(last.Signed); err != nil {
		t.Errorf("with room again: %v", err)
	}
	s.restart()
	if at := s.open[account{escrow, s.self, c.epoch()}]; at.acked != 3*mostOwed*1000 || at.served != at.acked {
		t.Errorf("after a restart %d are served, %d acknowledged", at.served, at.acked)
	}
}

// TestProveAfterRestart: the epochs before the last one are proven at once.
func TestProveAfterRestart(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 0)
	s, p := c.shop(), c.client(payer, filepath.Join(t.TempDir(), "receipts.db"))
	first := s.serve(c.request(payer, escrow, c.epoch()), 1000)
	s.pay(p, first)
	for range 2 {
		c.turn(5)
		s.settles()
	}
	s.restart()
	if _, err := s.Proof(ledger.HashReceipt(first.Signed)); err != nil {
		t.Error(err)
	}
}
