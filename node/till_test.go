package node

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/node/api"
)

// TestTillOver: an epoch is settled when late requests have come and the answers that run
// are given, and in any case while blocks for it are left.
func TestTillOver(t *testing.T) {
	for _, c := range []struct {
		name          string
		epoch         mesh.Epoch
		since, settle uint64
		reserved      mesh.Amount
		done, over    bool
	}{
		{"just ended", 7, 0, 720, 0, false, false},
		{"payers have heard of it", 7, 60, 720, 0, false, true},
		{"an answer runs", 7, 100, 720, 5, false, false},
		{"an answer runs, and time is short", 7, 540, 720, 5, false, true},
		{"short epochs", 7, 4, 8, 0, false, true},
		{"the shortest epochs", 7, 0, 2, 0, false, true},
		{"short epochs, just ended", 7, 3, 8, 0, false, false},
		{"sent by a run before", 7, 0, 720, 0, true, true},
		{"settled", 6, 100, 720, 0, false, false},
	} {
		till := &till{open: map[account]*tab{{epoch: 7}: {reserved: c.reserved}}, settled: 7}
		if over := till.over(c.epoch, c.since, c.settle, c.done); over != c.over || (till.closed > c.epoch) != over {
			t.Errorf("%s: %v, closed up to %d", c.name, over, till.closed)
		}
	}
}

// TestRoom: the epoch's part of a pool is used up before the lane, which two epochs share.
func TestRoom(t *testing.T) {
	var e mesh.Hash
	at := func(epoch mesh.Epoch) account { return account{escrow: e, epoch: epoch} }
	for _, c := range []struct {
		name               string
		now, before        tab
		settled            mesh.Epoch
		want, wantOfBefore mesh.Amount
	}{
		{"nothing served", tab{implicit: 10, explicit: 20}, tab{implicit: 10, explicit: 20}, 6, 30, 30},
		{"of the pool", tab{implicit: 10, explicit: 20, served: 4, reserved: 5}, tab{implicit: 10, explicit: 20}, 6, 21, 30},
		{"of the lane", tab{implicit: 10, explicit: 20, served: 15}, tab{implicit: 10, explicit: 20, served: 12, reserved: 1}, 6, 12, 12},
		{"the lane is used up", tab{implicit: 10, explicit: 20}, tab{implicit: 10, explicit: 20, served: 40}, 6, 10, 0},
		{"the epoch before is settled", tab{implicit: 10, explicit: 20}, tab{implicit: 10, explicit: 20, served: 40}, 7, 30, 0},
		{"not looked at since the start", tab{implicit: 10, explicit: 20}, tab{served: 5}, 6, 25, 0},
	} {
		before, now := c.before, c.now
		till := &till{open: map[account]*tab{at(6): &before, at(7): &now}, settled: c.settled}
		if got := till.room(at(7), &now); got != c.want {
			t.Errorf("%s: room for %d, want %d", c.name, got, c.want)
		}
		if got := till.room(at(6), &before); got != c.wantOfBefore {
			t.Errorf("%s: in the epoch before room for %d, want %d", c.name, got, c.wantOfBefore)
		}
	}
}

// TestPaySettleProve: what is served is acknowledged, settled, paid once and proven, with
// a restart of everybody between all steps.
func TestPaySettleProve(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 10*mesh.GNK)
	s, home := c.shop(), filepath.Join(t.TempDir(), "receipts.db")
	p := c.client(payer, home)
	epoch := c.epoch()
	room := func() mesh.Amount {
		a := account{escrow, s.self, epoch}
		if err := s.look(a, addressOfKey(payer)); err != nil {
			t.Fatal(err)
		}
		return s.room(a, s.open[a])
	}
	if got := room(); got != 55*mesh.GNK {
		t.Fatalf("room for %s", got)
	}
	var all []*inference.Receipt
	for range 5 { // more than the store of receipts holds
		r := s.serve(c.request(payer, escrow, epoch), mesh.GNK)
		s.pay(p, r)
		all = append(all, r)
		s.restart()
		if err := p.store.Close(); err != nil {
			t.Fatal(err)
		}
		p = c.client(payer, home)
	}
	if got := room(); got != 50*mesh.GNK {
		t.Errorf("after restarts there is room for %s, want 50 GNK", got)
	}
	_, err := s.Admit(c.request(payer, escrow, epoch), 50*mesh.GNK+1)
	refusedAs(t, err, inference.CodeUnpaid)

	c.turn(0)
	late := s.serve(c.request(payer, escrow, epoch), mesh.GNK) // of the epoch before
	s.pay(p, late)
	all = append(all, late)
	s.settles()
	if c.blocks != 0 {
		t.Fatal("settled while requests of the epoch may come")
	}
	for range 5 {
		if err := c.block(); err != nil {
			t.Fatal(err)
		}
	}
	before := c.balance(c.host)
	act := s.act
	s.act = func(ctx context.Context, tx *ledgerpb.Tx) (api.Submitted, error) { // sent, and the answer is lost
		if _, err := act(ctx, tx); err != nil {
			t.Error(err)
		}
		return api.Submitted{}, consensus.ErrNotInTime
	}
	if err := s.settle(t.Context()); !errors.Is(err, consensus.ErrNotInTime) {
		t.Fatal(err)
	}
	_, err = s.Admit(c.request(payer, escrow, epoch), 1)
	refusedAs(t, err, inference.CodeUnpaid)
	s.restart()
	s.settles()
	s.settles()
	if c.blocks != 1 {
		t.Errorf("%d settlements were sent, want 1", c.blocks)
	}
	c.turn(9)
	record, err := c.view().Settlement(epoch, s.self)
	if err != nil || record.GetPaid() != uint64(6*mesh.GNK) || record.GetReceipts() != 6 {
		t.Fatalf("settlement: %v, %v", record, err)
	}
	if got := c.balance(c.host); got < before+5*mesh.GNK {
		t.Errorf("the host has %s, and had %s", got, before)
	}
	s.restart()
	s.settles()
	for _, r := range all {
		raw, err := s.Proof(ledger.HashReceipt(r.Signed))
		if err != nil {
			t.Fatal(err)
		}
		proof, err := ledger.DecodeProof(raw)
		if err == nil {
			err = ledger.VerifySignedReceipt(c.genesis.Network(), s.self, epoch, record, r.Signed, proof)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Proof(mesh.HashOf([]byte("no receipt"))); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("a receipt that nobody gave: %v", err)
	}
}

// TestHostilePayer: what one payer does costs the host no more than a few of its answers, and
// nothing of what others owe.
func TestHostilePayer(t *testing.T) {
	c := newMoneyChain(t)
	s := c.shop()
	good, bad := c.payers[0], c.payers[1]
	theirs, own := c.escrow(bad, 100*mesh.GNK, 0), c.escrow(good, 100*mesh.GNK, 0)
	epoch, dir := c.epoch(), t.TempDir()
	s.pay(c.client(good, filepath.Join(dir, "good.db")), s.serve(c.request(good, own, epoch), mesh.GNK))

	say := func(amount mesh.Amount, receipts uint64) error {
		v := &inference.Voucher{Escrow: theirs, Host: s.self, Epoch: epoch, Amount: amount, Receipts: receipts}
		signed, err := inference.SignVoucher(c.genesis.Network(), bad, v)
		if err != nil {
			t.Fatal(err)
		}
		return s.Voucher(signed)
	}
	if err := say(1, 1); err == nil {
		t.Error("a voucher for nothing was taken")
	}
	req := c.request(bad, theirs, epoch)
	s.serve(req, 1000)
	if err := say(1000, 1); err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct {
		amount   mesh.Amount
		receipts uint64
	}{{0, 2}, {999, 1000}, {1, 33}} {
		_ = say(v.amount, v.receipts) // takes back, or acknowledges what is not there
	}
	if err := say(1_000_000, 1_000_000); err == nil {
		t.Error("a voucher for a million receipts was taken")
	}
	other, err := inference.SignVoucher(c.genesis.Network(), bad, &inference.Voucher{Escrow: theirs, Host: addressOfKey(bad), Epoch: epoch, Amount: 5, Receipts: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Voucher(other); err == nil {
		t.Error("a voucher for another host was taken")
	}
	// The same answer again and again.
	again := 0
	for ; again < 100; again++ {
		done, err := s.Admit(req, 1000)
		if err != nil {
			break
		}
		r := c.receipt(req, 1000)
		if err := s.store.Put(req.Hash, r.Signed); err != nil {
			t.Fatal(err)
		}
		done(r.Signed)
	}
	if again > firstOwed+1 {
		t.Errorf("the same answer was made %d times", again)
	}
	// Nor does it help to pay less than the price.
	served := 0
	for ; served < 100; served++ {
		next := c.request(bad, theirs, epoch)
		done, err := s.Admit(next, 1000)
		if err != nil {
			break
		}
		r := c.receipt(next, 1000)
		if err := s.store.Put(next.Hash, r.Signed); err != nil {
			t.Fatal(err)
		}
		done(r.Signed)
		_ = say(mesh.Amount(1000+served), uint64(served+2))
	}
	if served > firstOwed+1 {
		t.Errorf("%d answers for too little", served)
	}
	// One who is not the owner draws on nothing, and one without an escrow on the credit.
	_, err = s.Admit(c.request(bad, own, epoch), 1)
	refusedAs(t, err, inference.CodeUnpaid)
	_, err = s.Admit(c.request(bad, mesh.HashOf([]byte("none")), epoch), 1)
	refusedAs(t, err, inference.CodeBusy)
	_, err = s.Admit(c.request(bad, theirs, epoch+1), 1)
	refusedAs(t, err, inference.CodeBusy)

	c.turn(5)
	s.settles()
	record, err := c.view().Settlement(epoch, s.self)
	if err != nil || record.GetLines() != 2 || record.GetDue() < uint64(mesh.GNK)+1000 {
		t.Errorf("settlement: %v, %v", record, err)
	}
}

// TestLend: credit is by payer and epoch, and what is not used comes back.
func TestLend(t *testing.T) {
	c := newMoneyChain(t)
	s := c.shop()
	req := c.request(c.payers[1], mesh.Hash{}, 0)
	done, err := s.Admit(req, 1000)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Admit(req, 1)
	refusedAs(t, err, inference.CodeUnpaid)
	done(c.receipt(req, 300).Signed)
	if done, err = s.Admit(req, 700); err != nil {
		t.Fatal(err)
	}
	c.turn(0)
	renewed, err := s.Admit(req, 1000)
	if err != nil {
		t.Fatal(err)
	}
	done(nil) // of the epoch before
	_, err = s.Admit(req, 1)
	refusedAs(t, err, inference.CodeUnpaid)
	renewed(nil)
	if len(s.lent) != 0 || len(s.open) != 0 {
		t.Errorf("left: %v, %v", s.lent, s.open)
	}
	_, err = s.Admit(req, 1001)
	refusedAs(t, err, inference.CodeUnpaid)
	if len(s.lent) != 0 {
		t.Error("who got nothing is remembered")
	}
	if _, err = s.Admit(req, 1); err != nil {
		t.Fatal(err)
	}
	_, err = s.Admit(req, math.MaxUint64) // with what it has more than a number holds
	refusedAs(t, err, inference.CodeUnpaid)
}

// TestUnpayable: a settlement that the ledger does not take is not sent at each block.
func TestUnpayable(t *testing.T) {
	c := newMoneyChain(t)
	s, p := c.shop(), c.client(c.payers[0], filepath.Join(t.TempDir(), "receipts.db"))
	escrow := c.escrow(c.payers[0], 100*mesh.GNK, 0)
	s.pay(p, s.serve(c.request(c.payers[0], escrow, c.epoch()), mesh.GNK))
	c.turn(5)
	sent := 0
	s.act = func(context.Context, *ledgerpb.Tx) (api.Submitted, error) {
		sent++
		return api.Submitted{}, &consensus.Refused{Height: 9, Log: "no"}
	}
	for range 10 {
		_ = s.settle(t.Context())
	}
	if sent != maxFailed {
		t.Errorf("sent %d times, want %d", sent, maxFailed)
	}
}

// TestSettleGoesOn: of a settlement in several transactions, the ones that a stop kept from
// being sent are sent by the next run, and no other.
func TestSettleGoesOn(t *testing.T) {
	c := newMoneyChain(t)
	s, dir := c.shop(), t.TempDir()
	epoch := c.epoch()
	for i, payer := range c.payers {
		escrow := c.escrow(payer, 100*mesh.GNK, 0)
		s.pay(c.client(payer, filepath.Join(dir, string(rune('a'+i)), "receipts.db")), s.serve(c.request(payer, escrow, epoch), mesh.GNK))
	}
	c.turn(5)
	s.atOnce = 1
	act := s.act
	s.act = func(ctx context.Context, tx *ledgerpb.Tx) (api.Submitted, error) {
		if c.blocks > 0 {
			return api.Submitted{}, errors.New("the node stops")
		}
		return act(ctx, tx)
	}
	if err := s.settle(t.Context()); err == nil {
		t.Fatal("both were sent")
	}
	s.restart()
	s.settles()
	s.settles()
	record, err := c.view().Settlement(epoch, s.self)
	if err != nil || record.GetLines() != 2 || record.GetDue() != uint64(2*mesh.GNK) || c.blocks != 2 {
		t.Errorf("settlement %v in %d transactions, %v", record, c.blocks, err)
	}
}

// TestMissed: of an epoch that passed while the host was down or cut off, it is said once
// that its answers are not paid; of one that was settled, never.
func TestMissed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		restart bool // while it is down
		settled bool // before
		turns   int
		want    int
	}{
		{"cut off", false, false, 3, 1},
		{"down", true, false, 3, 1},
		{"settled, and down for long", true, true, 3, 0},
		{"settled, and down for longer than the ledger keeps it", true, true, 40, 0},
		{"only just", true, false, 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newMoneyChain(t)
			s, dir := c.shop(), t.TempDir()
			for i, payer := range c.payers {
				escrow := c.escrow(payer, 100*mesh.GNK, 0)
				s.pay(c.client(payer, filepath.Join(dir, string(rune('a'+i)), "receipts.db")), s.serve(c.request(payer, escrow, c.epoch()), mesh.GNK))
			}
			c.turn(5)
			if tt.settled {
				s.settles()
			}
			for range tt.turns - 1 {
				c.turn(5)
			}
			var out strings.Builder
			for range 3 {
				if tt.restart {
					s.restart()
				}
				s.log = slog.New(slog.NewTextHandler(&out, nil))
				s.settles()
				s.settles()
				c.turn(5)
			}
			if n := strings.Count(out.String(), "not settled in time"); n != tt.want || strings.Contains(out.String(), "payers=2") != (tt.want > 0 || tt.turns == 1) {
				t.Errorf("said %d times, want %d: %s", n, tt.want, &out)
			}
		})
	}
}

// TestTrustForgotten: what the store forgets of payers, a host that runs on forgets too.
func TestTrustForgotten(t *testing.T) {
	c := newMoneyChain(t)
	s := c.shop()
	escrow := c.escrow(c.payers[0], 100*mesh.GNK, 0)
	s.serve(c.request(c.payers[0], escrow, c.epoch()), mesh.GNK)
	c.turn(5)
	s.settles()
	if s.trust[escrow] >= 0 {
		t.Fatalf("who did not pay is trusted with %d", s.trust[escrow])
	}
	if err := s.store.Forget(1000); err != nil {
		t.Fatal(err)
	}
	c.turn(5)
	s.settles()
	if len(s.trust) != 0 {
		t.Errorf("still known: %v", s.trust)
	}
}

// TestVouchersAtOnce: answers that end at the same time are all acknowledged.
func TestVouchersAtOnce(t *testing.T) {
	c := newMoneyChain(t)
	payer := c.payers[0]
	escrow := c.escrow(payer, 100*mesh.GNK, 0)
	s, p := c.shop(), c.client(payer, filepath.Join(t.TempDir(), "receipts.db"))
	var all []*inference.Receipt
	for range firstOwed {
		all = append(all, s.serve(c.request(payer, escrow, c.epoch()), 7))
	}
	var wg sync.WaitGroup
	for _, r := range all {
		wg.Go(func() {
			v, err := p.Acknowledge(r)
			if err == nil {
				err = s.Voucher(v.Signed)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if at := s.open[account{escrow, s.self, c.epoch()}]; at.acked != firstOwed*7 || at.acks != firstOwed {
		t.Errorf("acknowledged: %d for %d", at.acked, at.acks)
	}
}
