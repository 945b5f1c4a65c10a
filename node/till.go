package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/receipts"
	"github.com/gonka-mesh/mesh/node/api"
)

// till takes payment for this host's answers: it serves up to what the payer's escrow
// holds for this host, keeps the payers' vouchers, and settles each epoch that ended.
// What is due and the vouchers are on disk, so that a restart loses none of it.
type till struct {
	tillConfig
	meter *tillMeter

	mu      sync.Mutex
	open    map[account]*tab              // of epochs that are not settled; guarded by mu
	lent    map[mesh.Address]mesh.Amount  // to payers without an escrow; guarded by mu
	lentIn  mesh.Epoch                    // guarded by mu
	trust   map[mesh.Hash]int64           // by escrow, of sealed epochs, as in the store; guarded by mu
	provers map[mesh.Epoch]*ledger.Prover // of settled epochs, nil where nothing was due; guarded by mu
	closed  mesh.Epoch                    // answers of epochs before this one are taken no more; guarded by mu
	settled mesh.Epoch                    // epochs before this one are settled, or had nothing; guarded by mu
	failed  int                           // settlements of the epoch that a block had and refused; run alone uses it

	proving sync.Mutex // held while a proof is made: all of them take no more than one processor
}

// tillConfig is what a till needs of its node.
type tillConfig struct {
	network mesh.NetworkID
	self    mesh.Address
	store   *receipts.Store
	credit  mesh.Amount   // for each payer without an escrow, in an epoch
	block   time.Duration // from one to the next
	atOnce  int           // lines of a transaction; 0: as many as the ledger takes
	log     *slog.Logger
	epoch   func() mesh.Epoch
	read    func(context.Context) (*reading, error)
	act     func(context.Context, *ledgerpb.Tx) (api.Submitted, error)
}

// tab is what one payer's answers of an epoch came to.
type tab struct {
	owner    mesh.Address           // of the escrow
	implicit mesh.Amount            // this host's part of the escrow's pool of the epoch
	explicit mesh.Amount            // what is left in its lane, for this epoch and the one before
	looked   time.Time              // when these were read; zero: not yet
	served   mesh.Amount            // by final receipts
	dearest  mesh.Amount            // of them
	parts    map[receipts.Part]bool // that are due: one receipt for each; true: whole
	whole    uint64                 // of them
	reserved mesh.Amount            // by answers that run
	running  uint64                 // answers
	acked    mesh.Amount            // by the vouchers that a settlement can use
	acks     uint64
	ahead    map[uint64]mesh.Amount // what other vouchers are for, by their receipts: more than are due
	metered  mesh.Amount            // of acked
	sealed   bool                   // what it left unpaid is in the trust
}

// beyond is what a tab takes of the lane: its part of the pool is used up first.
func (at *tab) beyond() mesh.Amount {
	taken := at.served + at.reserved
	return taken - min(taken, at.implicit)
}

// owes is how many answers its payer owes its word on, by number or by amount, whichever
// is more.
func (at *tab) owes() uint64 {
	count := at.whole - min(at.whole, at.acks)
	if at.dearest == 0 {
		return count
	}
	return max(count, uint64((at.served-min(at.served, at.acked))/at.dearest))
}

// paid is how many answers its payer gave its word on.
func (at *tab) paid() uint64 { return at.whole - min(at.whole, at.owes()) }

const (
	lookAgain = 2 * time.Second // lanes only grow while an epoch runs
	// A payer may owe its word on firstOwed answers, those that run included, and on one
	// more for each two that it paid for, up to mostOwed. What it has left unpaid when an
	// epoch is settled takes unpaidCosts paid ones to make good.
	firstOwed   = 16
	mostOwed    = 96 // more than a peer may have running, and vouchers under way
	mostTrust   = 2 * (mostOwed - firstOwed)
	leastTrust  = -1000
	unpaidCosts = 4
	owedWait    = 500 * time.Millisecond // for vouchers under way
	keptEpochs  = 8                      // of vouchers and provers
	// maxBorrowers is how many payers without an escrow get something in an epoch: who
	// gives credit gives it to anyone, and addresses cost nothing.
	maxBorrowers = 10_000
	// lateBlocks is for how many blocks of an epoch requests of the one before are taken:
	// a light payer hears of its end some blocks later than this host, and an answer that
	// lost its host goes on under its old epoch.
	lateBlocks = 60
	// maxFailed is how often a settlement is tried that a block had and refused: each costs its fee.
	maxFailed = 3
)

// late is the same where epochs are short: no more than half of the time for settling,
// of which the last block is too late to send in.
func late(settle uint64) uint64 { return min(lateBlocks, settle/2, settle-min(settle, 2)) }

// openTill counts what a run before this one left.
func openTill(cfg tillConfig) (*till, error) {
	setDefault(&cfg.atOnce, ledger.MaxSettleLines)
	t := &till{tillConfig: cfg, meter: newTillMeter(), open: make(map[account]*tab),
		lent: make(map[mesh.Address]mesh.Amount), provers: make(map[mesh.Epoch]*ledger.Prover)}
	sealed, err := t.store.Sealed(t.self)
	if err != nil {
		return nil, err
	}
	for epoch := range sealed {
		t.closed, t.settled = max(t.closed, epoch+1), max(t.settled, epoch)
	}
	if t.trust, err = t.trusted(); err != nil {
		return nil, err
	}
	err = t.store.AllDue(func(d receipts.Due) {
		// What is sealed is only sent and proven; of the last one nobody knows here whether it was sent.
		if d.Host == t.self && (!sealed[d.Epoch] || d.Epoch+1 == t.closed) {
			at := t.tab(account{d.Escrow, d.Host, d.Epoch})
			at.sealed = sealed[d.Epoch]
			at.add(d.Part, d.Price, d.Whole)
		}
	})
	if err != nil {
		return nil, err
	}
	err = t.store.Vouchers(func(v inference.SignedVoucher) {
		if at := t.open[account{v.Escrow, v.Host, v.Epoch}]; at != nil && v.Host == t.self {
			at.promise(v.Amount, v.Receipts)
		}
	})
	for _, at := range t.open {
		at.unmetered() // the run before has counted it
	}
	return t, err
}

// trusted reads what payers are trusted with. The store forgets it after some epochs.
func (t *till) trusted() (map[mesh.Hash]int64, error) {
	out := make(map[mesh.Hash]int64)
	return out, t.store.Trust(func(escrow mesh.Hash, n int64) { out[escrow] = n })
}

// promise counts a voucher once a settlement can use it: when as many receipts are due.
// Until then the ones before it count.
func (at *tab) promise(amount mesh.Amount, receipts uint64) {
	maps.DeleteFunc(at.ahead, func(r uint64, a mesh.Amount) bool { return r >= receipts && a <= amount }) // as on the disk
	if receipts > at.receipts() {
		if at.ahead == nil {
			at.ahead = make(map[uint64]mesh.Amount)
		}
		at.ahead[receipts] = max(at.ahead[receipts], amount)
		return
	}
	at.acked, at.acks = max(at.acked, amount), max(at.acks, receipts)
}

// unmetered returns what of the payer's word on what was served was not asked for yet.
func (at *tab) unmetered() mesh.Amount {
	before := at.metered
	at.metered = max(before, min(at.acked, at.served))
	return at.metered - before
}

// add counts a receipt. One for what was paid for already is not due: it only takes up
// room, so that nobody has the same answer made for nothing again and again.
func (at *tab) add(part receipts.Part, price mesh.Amount, whole bool) {
	at.served += price
	at.dearest = max(at.dearest, price)
	if whole && !at.parts[part] {
		at.whole++
	}
	at.parts[part] = at.parts[part] || whole
	for receipts, amount := range at.ahead {
		if receipts <= at.receipts() {
			at.promise(amount, receipts)
		}
	}
}

// receipts is how many receipts are due.
func (at *tab) receipts() uint64 { return uint64(len(at.parts)) }

// tab returns the tab of an account. mu is held, or nobody else has t.
func (t *till) tab(a account) *tab {
	at := t.open[a]
	if at == nil {
		at = &tab{parts: make(map[receipts.Part]bool)}
		t.open[a] = at
	}
	return at
}

func unpaid(format string, args ...any) error {
	return &inference.Refusal{Code: inference.CodeUnpaid, Message: fmt.Sprintf(format, args...)}
}

// soon refuses what may be right a block later: this host is behind, or the payer ahead.
func (t *till) soon(format string, args ...any) error {
	return &inference.Refusal{Code: inference.CodeBusy, WaitMs: t.block.Milliseconds(), Message: fmt.Sprintf(format, args...)}
}

// Admit implements host.Till.
func (t *till) Admit(req *inference.Request, most mesh.Amount) (func(*inferencepb.Signed), error) {
	if len(req.Pb.GetEscrow()) == 0 {
		if done := t.lend(req.Payer, most); done != nil {
			return done, nil
		}
		return nil, unpaid("this host asks up to %s for this, and the request draws on no escrow: open one with `mesh wallet escrow AMOUNT`", most)
	}
	id, err := mesh.HashFromBytes(req.Pb.GetEscrow())
	if err != nil {
		return nil, unpaid("escrow: %v", err)
	}
	a := account{id, t.self, mesh.Epoch(req.Pb.GetEpoch())}
	if !t.fresh(a, req.Payer) {
		if err := t.look(a, req.Payer); err != nil {
			return nil, err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.open[a]
	if a.epoch < t.closed || at == nil {
		return nil, unpaid("the request is of epoch %d, which is being settled", a.epoch)
	}
	if owed, may := t.owed(a); owed >= may {
		return nil, &inference.Refusal{Code: inference.CodeBusy, WaitMs: owedWait.Milliseconds(), Message: fmt.Sprintf(
			"%d answers under escrow %s run here or are not acknowledged by a voucher, and %d may be: this grows with those that are", owed, id.Short(), may)}
	}
	if room := t.room(a, at); most > room {
		return nil, unpaid("this may cost %s, and escrow %s holds %s more for this host in epoch %d: add to it with `mesh wallet escrow top`, or ask for fewer tokens",
			most, id.Short(), room, a.epoch)
	}
	at.reserved += most
	at.running++
	return func(receipt *inferencepb.Signed) { t.done(at, most, receipt) }, nil
}

// owed is how many answers an escrow's payer owes its word on, those that run included,
// and how many it may: in the epochs that are not sealed, however they turn. mu is held.
func (t *till) owed(a account) (owed, may uint64) {
	trust := t.trust[a.escrow]
	for _, epoch := range []mesh.Epoch{a.epoch - 1, a.epoch, a.epoch + 1} {
		if at := t.open[account{a.escrow, a.host, epoch}]; at != nil && !at.sealed {
			owed += at.running + at.owes()
			trust += int64(at.paid())
		}
	}
	return owed, uint64(max(1, firstOwed+min(trust, mostTrust)/2))
}

// trusts is what payers are trusted with once an epoch is sealed, judged by the vouchers
// that it is settled with.
func (t *till) trusts(epoch mesh.Epoch, promised map[mesh.Hash]inference.SignedVoucher) map[mesh.Hash]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[mesh.Hash]int64)
	for a, at := range t.open {
		if a.epoch == epoch && !at.sealed {
			settled := *at
			settled.acked, settled.acks = promised[a.escrow].Amount, promised[a.escrow].Receipts
			n := t.trust[a.escrow] + int64(settled.paid()) - unpaidCosts*int64(settled.owes())
			out[a.escrow] = min(max(n, leastTrust), mostTrust)
		}
	}
	return out
}

// done ends a reservation.
func (t *till) done(at *tab, most mesh.Amount, receipt *inferencepb.Signed) {
	r := t.priced(receipt)
	t.mu.Lock()
	defer t.mu.Unlock()
	at.reserved -= min(at.reserved, most)
	at.running--
	if r != nil {
		at.add(receipts.PartOf(r), mesh.Amount(r.Pb.GetPrice()), r.Whole())
		t.meter.acknowledged.Add(float64(at.unmetered()))
	}
}

// priced returns a receipt that has a price; nil for others and none.
func (t *till) priced(receipt *inferencepb.Signed) *inference.Receipt {
	if receipt == nil {
		return nil
	}
	r, err := inference.ParseReceipt(t.network, receipt)
	if err != nil || r.Pb.GetPrice() == 0 {
		return nil
	}
	t.meter.served.Add(float64(r.Pb.GetPrice()))
	return r
}

// room is how much more may be served on a tab: what is left of the pool, and of the
// lane, which the epochs before and after may use too. mu is held.
func (t *till) room(a account, at *tab) mesh.Amount {
	taken := at.served + at.reserved
	lane := at.beyond()
	for _, epoch := range []mesh.Epoch{a.epoch - 1, a.epoch + 1} {
		if other := t.open[account{a.escrow, a.host, epoch}]; other != nil && epoch >= t.settled {
			lane += other.beyond()
		}
	}
	return at.implicit - min(at.implicit, taken) + at.explicit - min(at.explicit, lane)
}

// lend lets a payer without an escrow have something, so that a newcomer can start at
// once. It counts by payer and epoch, and is not paid back. Nil: no more.
func (t *till) lend(payer mesh.Address, most mesh.Amount) func(*inferencepb.Signed) {
	now := t.epoch() // whatever the request says
	t.mu.Lock()
	defer t.mu.Unlock()
	if now != t.lentIn {
		clear(t.lent)
		t.lentIn = now
	}
	has := t.lent[payer]
	if most > t.credit-min(has, t.credit) || has == 0 && len(t.lent) >= maxBorrowers {
		return nil
	}
	t.lent[payer] = has + most
	return func(receipt *inferencepb.Signed) {
		price := mesh.Amount(0)
		if r := t.priced(receipt); r != nil {
			price = min(mesh.Amount(r.Pb.GetPrice()), most)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.lentIn != now {
			return
		}
		if t.lent[payer] -= most - price; t.lent[payer] == 0 {
			delete(t.lent, payer)
		}
	}
}

// lends refuses a payer without an escrow that would not be lent so much.
func (t *till) lends(payer mesh.Address, least mesh.Amount) error {
	now := t.epoch()
	t.mu.Lock()
	defer t.mu.Unlock()
	has, borrowers := t.lent[payer], len(t.lent)
	if now != t.lentIn {
		has, borrowers = 0, 0
	}
	if least > t.credit-min(has, t.credit) || has == 0 && borrowers >= maxBorrowers {
		return unpaid("this host asks %s or more for this, and the request draws on no escrow: open one with `mesh wallet escrow AMOUNT`", least)
	}
	return nil
}

// fresh reports whether an account was looked at lately, for the same payer.
func (t *till) fresh(a account, payer mesh.Address) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.open[a]
	return at != nil && at.owner == payer && time.Since(at.looked) < lookAgain
}

// look reads from the ledger what an escrow holds for this host.
func (t *till) look(a account, payer mesh.Address) error {
	for {
		t.mu.Lock()
		settled := t.settled
		t.mu.Unlock()
		lane, err := t.lane(a, payer)
		if err != nil {
			return err
		}
		t.mu.Lock()
		if t.settled == settled {
			if a.epoch >= t.closed {
				at := t.tab(a)
				at.owner = payer // lane has checked
				at.implicit, at.explicit, at.looked = max(at.implicit, lane.Implicit), lane.Explicit, time.Now()
			}
			t.mu.Unlock()
			return nil
		}
		// Settled meanwhile: what was read may be of before, when the lane held more.
		t.mu.Unlock()
	}
}

func (t *till) lane(a account, payer mesh.Address) (lane ledger.Lane, err error) {
	r, err := t.read(context.Background())
	if err != nil {
		return lane, t.soon("this host cannot look at the ledger now: %v", err)
	}
	e, _, err := r.Escrow(a.escrow)
	now, err2 := r.Epoch()
	params, err3 := r.Params()
	var refused error
	if errors.Join(err, err2, err3) == nil && e != nil {
		lane, refused = ledger.LaneOf(t.network, r.View, a.escrow, t.self, a.epoch)
	}
	height, ended := r.end()
	before := uint64(a.epoch)+1 == now.GetEpoch() && uint64(height) < now.GetStart()+late(params.GetSettleBlocks())
	switch err := errors.Join(ended, err, err2, err3); {
	case err != nil:
		return lane, t.soon("this host cannot look at the ledger now: %v", err)
	case e == nil:
		return lane, t.soon("the ledger has no escrow %s yet", a.escrow.Short())
	case string(e.GetOwner()) != string(payer[:]):
		return lane, unpaid("escrow %s is not the payer's", a.escrow.Short())
	case mesh.Epoch(now.GetEpoch()) < a.epoch:
		return lane, t.soon("the request is of epoch %d, it is epoch %d here", a.epoch, now.GetEpoch())
	case mesh.Epoch(now.GetEpoch()) > a.epoch && !before:
		return lane, unpaid("the request is of epoch %d, it is epoch %d", a.epoch, now.GetEpoch())
	case refused != nil:
		return lane, unpaid("%v", refused)
	}
	return lane, nil
}

// Voucher implements host.Till.
func (t *till) Voucher(signed *inferencepb.Signed) error {
	owner, err := t.ownerOf(signed)
	if err != nil {
		return err
	}
	v, err := inference.ParseVoucher(t.network, owner, signed)
	if err != nil {
		return err
	}
	if v.Host != t.self {
		return fmt.Errorf("the voucher is for %s", v.Host.Short())
	}
	t.mu.Lock()
	at := t.open[account{v.Escrow, v.Host, v.Epoch}]
	most := uint64(0)
	if at != nil {
		most = at.receipts() + at.running // some of these have ended, and are on their way to the disk
	}
	t.mu.Unlock()
	switch {
	case at == nil:
		return errors.New("nothing was served under this escrow in this epoch, or it is settled")
	case v.Receipts > most:
		return &inference.Refusal{Code: inference.CodeInvalid, Receipts: &most,
			Message: fmt.Sprintf("the voucher acknowledges %d answers, there are %d, those that run included: sign it for no more", v.Receipts, most)}
	}
	err = t.store.PutVoucher(v, signed)
	held := errors.Is(err, inference.ErrHeld)
	if err != nil && !held {
		return err
	}
	t.mu.Lock()
	at.promise(v.Amount, v.Receipts)
	t.meter.acknowledged.Add(float64(at.unmetered()))
	t.mu.Unlock()
	if held { // it counts as long as this process lives; the payer sends it again until it is on the disk
		t.log.Warn("a voucher waits in memory", "escrow", v.Escrow.Short(), "err", err)
		return t.soon("this host has the voucher in memory, as its disk takes nothing now; send it again")
	}
	return nil
}

// ownerOf asks the ledger whose signature a voucher needs.
func (t *till) ownerOf(signed *inferencepb.Signed) (mesh.Address, error) {
	id, err := inference.VoucherEscrow(signed)
	if err != nil {
		return mesh.Address{}, err
	}
	r, err := t.read(context.Background())
	if err != nil {
		return mesh.Address{}, err
	}
	e, _, err := r.Escrow(id)
	if _, ended := r.end(); errors.Join(ended, err) != nil {
		return mesh.Address{}, errors.Join(ended, err)
	}
	if e == nil {
		return mesh.Address{}, fmt.Errorf("the ledger has no escrow %s", id.Short())
	}
	return mesh.AddressOf(e.GetOwner()), nil
}
