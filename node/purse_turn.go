package node

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/receipts"
)

// resendEvery is how long vouchers that no host took are let lie. At the start and when an
// epoch has ended, of which the hosts will soon take none, they are not.
const resendEvery = time.Minute

// untaken returns the vouchers of the epoch and the one before that their hosts did not
// take yet, when it is time to send them again.
func (p *purse) untaken() (out []*inference.SignedVoucher, err error) {
	p.mu.Lock()
	if !p.resent.IsZero() && time.Since(p.resent) < resendEvery {
		p.mu.Unlock()
		return nil, nil
	}
	p.resent = time.Now()
	type unsigned struct {
		inference.Voucher
		covers []receipts.Part
	}
	var lack []unsigned // an answer, and its voucher was not signed or found no room on the disk
	for a, at := range p.paid {
		switch {
		case a.epoch+1 < p.epoch || at.settled || at.taken >= at.Amount:
		case at.signed.Amount < at.Amount:
			lack = append(lack, unsigned{at.Voucher, slices.Clone(at.pending)})
		default:
			v := at.signed
			out = append(out, &v)
		}
	}
	p.mu.Unlock()
	var errs []error
	for _, v := range lack {
		signed, err := p.sign(v.Voucher, v.covers)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, signed)
	}
	return out, errors.Join(errs...)
}

// turn follows the ledger: the epoch, and the escrow that has most left. It returns how
// many blocks are left of the epoch.
func (p *purse) turn(ctx context.Context, read func(context.Context) (*reading, error)) (uint64, error) {
	r, err := read(ctx)
	if err != nil {
		return 0, err
	}
	now, err := r.Epoch()
	params, err2 := r.Params()
	var own map[mesh.Hash]mesh.Amount
	var settled []mesh.Address
	var missing map[mesh.Hash]bool
	if err = errors.Join(err, err2); err == nil {
		own, err = p.mayDraw(r)
	}
	if err == nil {
		settled, err = p.settlements(r, mesh.Epoch(now.GetEpoch()))
	}
	prune := err == nil && now.GetEpoch() >= p.pruned
	if prune {
		missing, err = p.missing(r)
	}
	height, ended := r.end()
	if errors.Join(ended, err) != nil {
		return 0, errors.Join(ended, err)
	}
	p.settle(mesh.Epoch(now.GetEpoch()), uint64(height) >= now.GetStart()+params.GetSettleBlocks(), settled)
	next, epoch := now.GetStart()+params.GetEpochBlocks(), mesh.Epoch(now.GetEpoch())
	// A light node reads the state before the newest block, which may have begun an epoch.
	if r.proven && uint64(height)+1 >= next {
		epoch, next = epoch+1, next+params.GetEpochBlocks()
	}
	err = p.enter(epoch, own)
	if prune {
		p.pruned = now.GetEpoch() + 1
		err = errors.Join(err, p.prune(missing, epoch))
	}
	return next - min(next, uint64(height)), err
}

// mayDraw returns the escrows that requests can draw on, with what is in them.
func (p *purse) mayDraw(r *reading) (map[mesh.Hash]mesh.Amount, error) {
	out, self := make(map[mesh.Hash]mesh.Amount), p.self()
	for _, id := range p.escrows(self) {
		e, _, err := r.Escrow(id)
		if err != nil {
			return nil, err
		}
		if e != nil && e.GetClosing() == 0 && string(e.GetOwner()) == string(self[:]) {
			out[id] = mesh.Amount(e.GetAmount())
		}
	}
	return out, nil
}

// missing returns the noted escrows that are not on the ledger.
func (p *purse) missing(r *reading) (map[mesh.Hash]bool, error) {
	p.mu.Lock()
	all := slices.Clone(p.opened)
	p.mu.Unlock()
	out := make(map[mesh.Hash]bool)
	for _, n := range all {
		e, _, err := r.Escrow(n.Escrow)
		if err != nil {
			return nil, err
		}
		out[n.Escrow] = e == nil
	}
	return out, nil
}

// atOnce is how many settlements are looked up for each block: a light node's are proofs.
const atOnce = 8

// settlements returns hosts that have settled the epoch before now, of those that this
// node owes something for it.
func (p *purse) settlements(r *reading, now mesh.Epoch) (out []mesh.Address, err error) {
	hosts := make(map[mesh.Address]bool)
	p.mu.Lock()
	for a, at := range p.paid {
		if a.epoch+1 == now && !at.settled && len(hosts) < atOnce {
			hosts[a.host] = true
		}
	}
	p.mu.Unlock()
	for host := range hosts {
		s, err := r.Settlement(now-1, host)
		if err != nil {
			return nil, err
		}
		if s != nil {
			out = append(out, host)
		}
	}
	return out, nil
}

// settle notes what settlements took from the escrows: of the epoch before now that of
// these hosts, or, once it is closed, all that there will be.
func (p *purse) settle(now mesh.Epoch, closed bool, hosts []mesh.Address) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, at := range p.paid {
		if a.epoch+1 < now || a.epoch+1 == now && (closed || slices.Contains(hosts, a.host)) {
			at.settled = true
		}
	}
}

// enter notes the epoch, chooses the escrow that has most left, and forgets what is long settled.
func (p *purse) enter(epoch mesh.Epoch, own map[mesh.Hash]mesh.Amount) error {
	var draw mesh.Hash
	var most mesh.Amount
	for id, amount := range own {
		left := amount - min(amount, p.spent(id))
		if left > most || left == most && left > 0 && bytes.Compare(id[:], draw[:]) < 0 {
			draw, most = id, left
		}
	}
	p.mu.Lock()
	turned := epoch > p.epoch
	p.draw, p.epoch = draw, epoch
	if turned {
		p.resent = time.Time{}
	}
	for a := range p.paid {
		if a.epoch+2 < epoch {
			delete(p.paid, a)
		}
	}
	p.mu.Unlock()
	if !turned || epoch <= keptEpochs+1 {
		return nil
	}
	return p.store.Forget(epoch - keptEpochs - 1)
}

// Where a light node has nothing to ask, it looks at the ledger once in so many blocks,
// and when the epoch should end: each look costs its peers proofs.
const (
	idleBlocks = 10
	idleAfter  = time.Minute
)

// follow keeps the purse at the ledger's epoch, and sends what its hosts did not take.
func (n *Node) follow(ctx context.Context, every time.Duration) {
	for {
		left, err := n.purse.turn(ctx, n.read)
		if err != nil && ctx.Err() == nil {
			n.log.Debug("the ledger could not be read", "err", err)
		}
		if err == nil {
			n.resend(ctx)
		}
		if err := n.purse.flush(); err != nil {
			n.log.Warn("it could not be noted which vouchers were taken", "err", err)
		}
		wait := every
		if n.cfg.Light && err == nil && n.purse.idle() {
			wait = every * time.Duration(max(1, min(left, idleBlocks)))
		}
		select {
		case <-ctx.Done():
			return
		case <-n.purse.kick:
		case <-time.After(wait):
		}
	}
}

// resend sends the vouchers that hosts did not take, without waiting for the hosts.
func (n *Node) resend(ctx context.Context) {
	all, err := n.purse.untaken()
	if err != nil {
		n.log.Warn("answers are not acknowledged", "err", err)
	}
	if len(all) == 0 {
		return
	}
	n.chain.tasks.Go(func() {
		var group errgroup.Group
		group.SetLimit(atOnce)
		for _, v := range all {
			group.Go(func() error {
				if err := n.core.Router.Deliver(ctx, v); err != nil && ctx.Err() == nil {
					n.log.Debug("a host did not take its voucher", "host", v.Host.Short(), "epoch", uint64(v.Epoch), "err", err)
				}
				return nil
			})
		}
		_ = group.Wait()
	})
}

// idle reports whether no request drew on it lately.
func (p *purse) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.asked) > idleAfter
}
