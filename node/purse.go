package node

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/receipts"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
)

// purse pays for this node's answers: it knows the escrows that were opened here,
// which one requests draw on, and what was acknowledged to whom. Vouchers are
// cumulative within an epoch, so they outlive a restart in the receipts' store.
type purse struct {
	network mesh.NetworkID
	key     ed25519.PrivateKey
	store   *receipts.Store
	file    string

	kick   chan struct{} // of one place: there may be news on the ledger
	signed prometheus.Counter

	noting sync.Mutex // held while the file is written

	mu     sync.Mutex
	opened []noted                       // guarded by mu
	draw   mesh.Hash                     // what requests draw on; zero: nothing; guarded by mu
	epoch  mesh.Epoch                    // of the ledger; guarded by mu
	asked  time.Time                     // when a request last drew on it; guarded by mu
	paid   map[account]inference.Voucher // guarded by mu
}

// noted is an escrow that was opened through this node.
type noted struct {
	Owner  mesh.Address `json:"owner"`
	Escrow mesh.Hash    `json:"escrow"`
}

// account is what one voucher is for.
type account struct {
	escrow mesh.Hash
	host   mesh.Address
	epoch  mesh.Epoch
}

const maxNoted = 1 << 20 // bytes of the file

func openPurse(network mesh.NetworkID, key ed25519.PrivateKey, store *receipts.Store, file string) (*purse, error) {
	p := &purse{
		network: network, key: key, store: store, file: file, kick: make(chan struct{}, 1), paid: make(map[account]inference.Voucher),
		signed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_purse_acknowledged_ngonka_total", Help: "What this node signed vouchers for."}),
	}
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("open the list of escrows: %w", err)
	case len(b) > maxNoted:
		return nil, fmt.Errorf("the list of escrows %s has %d bytes", file, len(b))
	default:
		if err := json.Unmarshal(b, &p.opened); err != nil {
			return nil, fmt.Errorf("the list of escrows %s is damaged: %w; move it away; `mesh wallet escrow top ESCROW AMOUNT` makes this node draw on an escrow again", file, err)
		}
	}
	self := p.self()
	err = store.Vouchers(func(v receipts.Voucher) {
		if v.Host != self {
			p.paid[account{v.Escrow, v.Host, v.Epoch}] = v.Voucher // the last has most
		}
	})
	if err != nil {
		return nil, err
	}
	// A stop between an answer and its voucher: the next voucher is for both.
	due := make(map[account]inference.Voucher)
	err = store.AllDue(func(d receipts.Due) {
		at := account{d.Escrow, d.Host, d.Epoch}
		v := due[at]
		v.Amount += d.Price
		v.Receipts++
		due[at] = v
	})
	for at, v := range due {
		if was := p.paid[at]; at.host != self {
			p.paid[at] = inference.Voucher{Escrow: at.escrow, Host: at.host, Epoch: at.epoch,
				Amount: max(was.Amount, v.Amount), Receipts: max(was.Receipts, v.Receipts)}
		}
	}
	return p, err
}

func (p *purse) self() mesh.Address { return mesh.AddressOf(p.key.Public().(ed25519.PublicKey)) }

// remember notes an escrow, and reports whether it was not noted before. Requests draw on
// it once it is on the ledger.
func (p *purse) remember(owner mesh.Address, escrow mesh.Hash) (fresh bool, err error) {
	return p.note(func(all []noted) []noted {
		if entry := (noted{owner, escrow}); !slices.Contains(all, entry) {
			return append(all, entry)
		}
		return all
	})
}

// forget drops an escrow that was not opened.
func (p *purse) forget(owner mesh.Address, escrow mesh.Hash) error {
	_, err := p.note(func(all []noted) []noted {
		return slices.DeleteFunc(all, func(n noted) bool { return n == noted{owner, escrow} })
	})
	return err
}

// note changes the list of escrows and writes it, without anybody waiting for the disk.
func (p *purse) note(change func([]noted) []noted) (changed bool, err error) {
	p.noting.Lock()
	defer p.noting.Unlock()
	p.mu.Lock()
	before := len(p.opened)
	p.opened = change(slices.Clone(p.opened))
	all := slices.Clone(p.opened)
	p.mu.Unlock()
	if len(all) == before {
		return false, nil
	}
	b, err := json.Marshal(all)
	if err != nil {
		return true, err
	}
	return true, atomicfile.Write(p.file, b, 0o600)
}

// escrows lists those of an owner that were opened here.
func (p *purse) escrows(owner mesh.Address) []mesh.Hash {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []mesh.Hash
	for _, n := range p.opened {
		if n.Owner == owner {
			out = append(out, n.Escrow)
		}
	}
	return out
}

// spent is what this node acknowledged of an escrow in this epoch and the one before.
func (p *purse) spent(escrow mesh.Hash) mesh.Amount {
	p.mu.Lock()
	defer p.mu.Unlock()
	var sum mesh.Amount
	for a, v := range p.paid {
		if a.escrow == escrow && a.epoch+1 >= p.epoch {
			sum += v.Amount
		}
	}
	return sum
}

// Escrow implements router.Purse.
func (p *purse) Escrow() ([]byte, mesh.Epoch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = time.Now()
	if p.draw.IsZero() {
		return nil, p.epoch
	}
	return slices.Clone(p.draw[:]), p.epoch
}

// now returns the ledger's epoch, as far as it is known.
func (p *purse) now() mesh.Epoch {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.epoch
}

// wake has the ledger looked at soon.
func (p *purse) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Acknowledge implements router.Purse.
func (p *purse) Acknowledge(r *inference.Receipt) (*inferencepb.Signed, error) {
	escrow, err := mesh.HashFromBytes(r.Pb.GetEscrow())
	if err != nil || r.Host == p.self() {
		return nil, err
	}
	v, err := p.owe(account{escrow, r.Host, mesh.Epoch(r.Pb.GetEpoch())}, r)
	if err != nil {
		return nil, err
	}
	signed, err := inference.SignVoucher(p.network, p.key, &v)
	if err != nil {
		return nil, err
	}
	// On disk before it leaves: after a restart the next one must not say less.
	if err := p.store.PutVoucher(&v, signed); err != nil {
		return nil, err
	}
	p.signed.Add(float64(r.Pb.GetPrice()))
	return signed, nil
}

// owe adds a receipt to what its host may have.
func (p *purse) owe(at account, r *inference.Receipt) (inference.Voucher, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.paid[at], error(nil)
	v.Escrow, v.Host, v.Epoch = at.escrow, at.host, at.epoch
	if v.Amount, err = v.Amount.Add(mesh.Amount(r.Pb.GetPrice())); err != nil {
		return v, fmt.Errorf("acknowledge an answer: %w", err)
	}
	if r.Finish != inference.FinishOpen {
		v.Receipts++
	}
	p.paid[at] = v
	return v, nil
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
	var best mesh.Hash
	var most mesh.Amount
	if err = errors.Join(err, err2); err == nil {
		self := p.self()
		for _, id := range p.escrows(self) {
			e, _, failed := r.Escrow(id)
			if err = failed; err != nil {
				break
			}
			amount := mesh.Amount(e.GetAmount())
			if left := amount - min(amount, p.spent(id)); e.GetClosing() == 0 && left > most && string(e.GetOwner()) == string(self[:]) {
				best, most = id, left
			}
		}
	}
	height, ended := r.end()
	if errors.Join(ended, err) != nil {
		return 0, errors.Join(ended, err)
	}
	next, epoch := now.GetStart()+params.GetEpochBlocks(), mesh.Epoch(now.GetEpoch())
	// A light node reads the state before the newest block, which may have begun an epoch.
	if r.proven && uint64(height)+1 >= next {
		epoch, next = epoch+1, next+params.GetEpochBlocks()
	}
	return next - min(next, uint64(height)), p.enter(epoch, best)
}

// enter notes epoch and escrow, and forgets what is long settled.
func (p *purse) enter(epoch mesh.Epoch, draw mesh.Hash) error {
	p.mu.Lock()
	turned := epoch > p.epoch
	p.draw, p.epoch = draw, epoch
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

// follow keeps the purse at the ledger's epoch.
func (n *Node) follow(ctx context.Context, every time.Duration) {
	for {
		left, err := n.purse.turn(ctx, n.read)
		if err != nil && ctx.Err() == nil {
			n.log.Debug("the ledger could not be read", "err", err)
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

// idle reports whether no request drew on it lately.
func (p *purse) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.asked) > idleAfter
}
