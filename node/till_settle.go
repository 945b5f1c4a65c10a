package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/node/api"
)

// run settles epochs as they end.
func (t *till) run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := t.settle(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			t.log.Warn("the last epoch is not settled yet", "err", err)
		}
	}
}

// settle sends this host's lines for the epoch before, once.
func (t *till) settle(ctx context.Context) error {
	r, err := t.read(ctx)
	if err != nil {
		return nil //nolint:nilerr // the chain is not there yet, which others say
	}
	now, err := r.Epoch()
	params, err2 := r.Params()
	var done *ledgerpb.Settlement
	var epoch mesh.Epoch
	var missed map[mesh.Epoch]uint64
	if err == nil && now.GetEpoch() > 0 {
		epoch = mesh.Epoch(now.GetEpoch() - 1)
		done, err = r.Settlement(epoch, t.self)
		if err == nil {
			missed, err = t.missed(r, epoch, params.GetKeepEpochs())
		}
	}
	height, ended := r.end()
	if err := errors.Join(ended, err, err2); err != nil {
		return err
	}
	since, limit := uint64(height)-now.GetStart(), params.GetSettleBlocks()
	if now.GetEpoch() == 0 || !t.over(epoch, since, limit, done != nil) {
		return nil
	}
	if err := t.send(ctx, epoch, done.GetLines(), since+2 <= limit); err != nil {
		return err
	}
	t.failed = 0
	for e, sent := range missed {
		if err := t.send(ctx, e, sent, false); err != nil {
			return err
		}
	}
	trust, err := t.trusted() // less what the store forgot
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled, t.trust = epoch+1, trust
	for a, at := range t.open {
		if a.epoch < t.settled {
			delete(t.open, a)
		} else {
			at.looked = time.Time{} // lanes have paid
		}
	}
	for e := range t.provers {
		if e+keptEpochs < t.settled {
			delete(t.provers, e)
		}
	}
	return nil
}

// missed returns the epochs before the last one in which this host served, as it was down
// or cut off while they could be settled, with how many lines of each the ledger has. It
// keeps no settlement for longer than keep epochs: of one that was sealed it cannot say then.
func (t *till) missed(r *reading, last mesh.Epoch, keep uint64) (map[mesh.Epoch]uint64, error) {
	t.mu.Lock()
	sent := make(map[mesh.Epoch]uint64)
	for a, at := range t.open {
		if a.epoch < last && !(at.sealed && uint64(last-a.epoch)+1 >= keep) {
			sent[a.epoch] = 0
		}
	}
	t.mu.Unlock()
	for epoch := range sent {
		record, err := r.Settlement(epoch, t.self)
		if err != nil {
			return nil, err
		}
		sent[epoch] = record.GetLines()
	}
	return sent, nil
}

// over reports whether an epoch that ended so many blocks ago is to be settled now: when
// nobody asks in it any more and the last answers are given, but in time for its blocks.
// From then on answers of it are refused, as they would not be paid.
func (t *till) over(epoch mesh.Epoch, since, settle uint64, done bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if epoch < t.settled || since < late(settle) && !done {
		return false
	}
	for a, at := range t.open {
		if a.epoch == epoch && at.reserved > 0 && since < settle*3/4 && !done {
			return false
		}
	}
	t.closed = max(t.closed, epoch+1)
	return true
}

// send submits what of the settlement is not on the ledger yet: sent lines are, by this
// run or one before. Nothing served is nothing to send.
func (t *till) send(ctx context.Context, epoch mesh.Epoch, sent uint64, inTime bool) error {
	if inTime {
		if err := t.seal(ctx, epoch); err != nil {
			return err
		}
	}
	_, lines, err := t.prover(epoch)
	if err != nil || uint64(len(lines)) <= sent {
		return err
	}
	if !inTime {
		if err := t.store.Seal(t.self, epoch, func(mesh.Hash) bool { return sent > 0 }, nil); err != nil {
			return err
		}
		t.log.Error("an epoch was not settled in time, and its answers are not paid", "epoch", uint64(epoch), "payers", uint64(len(lines))-sent)
		return nil
	}
	lines = lines[sent:]
	if err := t.claim(ctx, epoch, lines); err != nil {
		return err
	}
	for len(lines) > 0 {
		n := min(len(lines), t.atOnce)
		err := t.submit(ctx, &ledgerpb.Settle{Epoch: uint64(epoch), Lines: lines[:n]})
		var refused *consensus.Refused
		if errors.As(err, &refused) && refused.Height > 0 {
			if t.failed++; t.failed >= maxFailed {
				t.log.Error("the ledger refuses to settle an epoch, and its answers are not paid", "epoch", uint64(epoch), "err", err)
				return nil
			}
		}
		if err != nil {
			return fmt.Errorf("settle epoch %d: %w", epoch, err)
		}
		lines = lines[n:]
	}
	return nil
}

func (t *till) submit(ctx context.Context, s *ledgerpb.Settle) error {
	// One that does not come into a block must not hold up this node's account for good.
	ctx, cancel := context.WithTimeout(ctx, submitWait)
	defer cancel()
	done, err := t.act(ctx, &ledgerpb.Tx{Action: &ledgerpb.Tx_Settle{Settle: s}})
	if err != nil {
		return err
	}
	sum := uint64(0)
	for _, line := range s.GetLines() {
		sum += line.GetAmount()
	}
	t.meter.settled.Add(float64(sum))
	t.log.Info("epoch settled", "epoch", s.GetEpoch(), "payers", len(s.GetLines()), "amount", mesh.Amount(sum).String(), "height", uint64(done.Height))
	return nil
}

// promises returns the vouchers of an epoch that a settlement can use, by escrow: of each
// the last one that acknowledges no more receipts than there are.
func (t *till) promises(epoch mesh.Epoch, count map[mesh.Hash]uint64) (map[mesh.Hash]inference.SignedVoucher, error) {
	out := make(map[mesh.Hash]inference.SignedVoucher)
	err := t.store.VouchersFor(t.self, epoch, func(v inference.SignedVoucher) {
		if v.Receipts <= count[v.Escrow] && v.Amount > 0 {
			out[v.Escrow] = v
		}
	})
	return out, err
}

// seal fixes the lines of an epoch, so that this run and one after a crash send the same
// ones, and prove by them: the escrows with a voucher that the ledger takes. A payer that
// gave none pays nothing.
func (t *till) seal(ctx context.Context, epoch mesh.Epoch) error {
	due, err := t.store.Due(t.self, epoch)
	if err != nil {
		return err
	}
	count := make(map[mesh.Hash]uint64)
	for _, d := range due {
		count[d.Escrow]++
	}
	promised, err := t.promises(epoch, count)
	if err != nil {
		return err
	}
	trust := t.trusts(epoch, promised)
	if len(promised) > 0 {
		r, err := t.read(ctx)
		if err != nil {
			return err
		}
		for escrow := range promised {
			if _, err := ledger.LaneOf(t.network, r.View, escrow, t.self, epoch); err != nil {
				t.log.Warn("answers are not paid", "escrow", escrow.Short(), "epoch", uint64(epoch), "err", err)
				delete(promised, escrow)
			}
		}
		if _, err := r.end(); err != nil {
			return err
		}
	}
	err = t.store.Seal(t.self, epoch, func(escrow mesh.Hash) bool {
		_, ok := promised[escrow]
		return ok
	}, trust)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for escrow, n := range trust {
		t.trust[escrow] = n
		t.open[account{escrow, t.self, epoch}].sealed = true
	}
	return nil
}

// claim puts vouchers and amounts to lines: no more than the voucher, the receipts and
// the ledger have, as one line for too much would have all of them refused.
func (t *till) claim(ctx context.Context, epoch mesh.Epoch, lines []*ledgerpb.SettleLine) error {
	count := make(map[mesh.Hash]uint64)
	for _, line := range lines {
		count[mesh.Hash(line.GetEscrow())] = line.GetReceipts()
	}
	promised, err := t.promises(epoch, count)
	if err != nil {
		return err
	}
	r, err := t.read(ctx)
	if err != nil {
		return err
	}
	for _, line := range lines {
		escrow := mesh.Hash(line.GetEscrow())
		v, ok := promised[escrow]
		if !ok {
			continue
		}
		lane, err := ledger.LaneOf(t.network, r.View, escrow, t.self, epoch)
		if err != nil {
			continue // it wants nothing then
		}
		want := min(uint64(v.Amount), line.GetTotal())
		line.Amount = min(want, uint64(lane.Left()))
		line.Voucher, line.Acknowledged, line.Signature = uint64(v.Amount), v.Receipts, v.Signed.GetSignature()
		if line.Amount < want {
			t.log.Warn("an escrow holds less than was served", "escrow", escrow.Short(), "epoch", uint64(epoch),
				"served", mesh.Amount(want).String(), "paid", mesh.Amount(line.Amount).String())
		}
	}
	_, err = r.end()
	return err
}

// prover groups what is due of an epoch by escrow; nil where there is nothing.
func (t *till) prover(epoch mesh.Epoch) (*ledger.Prover, []*ledgerpb.SettleLine, error) {
	due, err := t.store.Due(t.self, epoch)
	if err != nil || len(due) == 0 {
		return nil, nil, err
	}
	at := make(map[mesh.Hash]int)
	var all []ledger.EscrowReceipts
	for _, d := range due {
		i, ok := at[d.Escrow]
		if !ok {
			i = len(all)
			at[d.Escrow] = i
			all = append(all, ledger.EscrowReceipts{Escrow: d.Escrow})
		}
		all[i].Receipts = append(all[i].Receipts, ledger.ReceiptEntry{Hash: d.Hash, Price: d.Price})
	}
	lines, prover, err := ledger.BuildSettlement(all)
	return prover, lines, err
}

// Proof implements host.Till. Anybody may ask for one: one at a time is made.
func (t *till) Proof(receipt mesh.Hash) ([]byte, error) {
	t.proving.Lock()
	defer t.proving.Unlock()
	t.mu.Lock()
	settled := t.settled
	t.mu.Unlock()
	for back := mesh.Epoch(1); back <= min(settled, keptEpochs); back++ {
		prover, err := t.proverOf(settled - back)
		if err != nil {
			return nil, err
		}
		escrow, ok := prover.Escrow(receipt)
		if !ok {
			continue
		}
		proof, err := prover.Prove(escrow, receipt)
		if err != nil {
			return nil, err
		}
		return ledger.EncodeProof(proof)
	}
	return nil, fmt.Errorf("receipt %s is in no settlement that is kept here: %w", receipt.Short(), api.ErrNotFound)
}

// proverOf returns the prover of a settled epoch, whose lines are sealed. proving is held.
func (t *till) proverOf(epoch mesh.Epoch) (*ledger.Prover, error) {
	t.mu.Lock()
	prover, ok := t.provers[epoch]
	t.mu.Unlock()
	if ok {
		return prover, nil
	}
	prover, _, err := t.prover(epoch)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.provers[epoch] = prover
	return prover, nil
}

// tillMeter counts money, in ngonka.
type tillMeter struct {
	served, acknowledged, settled prometheus.Counter
}

func newTillMeter() *tillMeter {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "mesh_till_" + name + "_ngonka_total", Help: help})
	}
	return &tillMeter{
		served:       counter("served", "Price of the answers that this host gave."),
		acknowledged: counter("acknowledged", "Of it, what payers signed vouchers for."),
		settled:      counter("settled", "Of it, what settlements claimed."),
	}
}

func (m *tillMeter) register(r prometheus.Registerer) error {
	return errors.Join(r.Register(m.served), r.Register(m.acknowledged), r.Register(m.settled))
}
