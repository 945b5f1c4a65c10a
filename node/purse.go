package node

import (
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
	pruned uint64     // the list was gone through in the epochs before this one; turn alone uses it

	mu     sync.Mutex
	opened []noted           // as in the file; guarded by mu, and changed by note alone
	draw   mesh.Hash         // what requests draw on; zero: nothing; guarded by mu
	epoch  mesh.Epoch        // of the ledger; guarded by mu
	asked  time.Time         // when a request last drew on it; guarded by mu
	resent time.Time         // when vouchers that no host took were last sent; zero: send them now; guarded by mu
	paid   map[account]*paid // guarded by mu
}

// noted is an escrow that was opened through this node.
type noted struct {
	Owner  mesh.Address `json:"owner"`
	Escrow mesh.Hash    `json:"escrow"`
	Epoch  mesh.Epoch   `json:"epoch,omitempty"` // when it was noted; 0: not known
}

func (n noted) is(owner mesh.Address, escrow mesh.Hash) bool {
	return n.Owner == owner && n.Escrow == escrow
}

// paid is what a host may have of an escrow in an epoch.
type paid struct {
	inference.Voucher                         // for everything so far
	pending           []receipts.Part         // that no voucher on the disk is for
	signed            inference.SignedVoucher // the last on the disk
	taken             mesh.Amount             // by the host
	noted             mesh.Amount             // of that, on the disk
	settled           bool                    // it was taken from the escrow, or cannot be any more
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
		network: network, key: key, store: store, file: file, kick: make(chan struct{}, 1), paid: make(map[account]*paid),
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
	return p, p.load()
}

// load reads what a run before this one acknowledged.
func (p *purse) load() error {
	self := p.self()
	err := p.store.Vouchers(func(v inference.SignedVoucher) {
		if v.Host != self {
			at := p.at(account{v.Escrow, v.Host, v.Epoch})
			at.Voucher, at.signed = v.Voucher, v // the last has most
		}
	})
	if err != nil {
		return err
	}
	// A stop between an answer and its voucher: the next voucher is for both.
	err = p.store.AllDue(func(d receipts.Due) {
		if d.Host != self {
			at := p.at(account{d.Escrow, d.Host, d.Epoch})
			at.Amount += d.Price
			if d.Whole {
				at.Receipts++
			}
			at.pending = append(at.pending, d.Part)
		}
	})
	if err != nil {
		return err
	}
	return p.store.Taken(func(v inference.Voucher) {
		if at := p.paid[account{v.Escrow, v.Host, v.Epoch}]; at != nil {
			at.taken, at.noted = v.Amount, v.Amount
		}
	})
}

// at returns what there is of an account. mu is held, or nobody else has p.
func (p *purse) at(a account) *paid {
	at := p.paid[a]
	if at == nil {
		at = &paid{Voucher: inference.Voucher{Escrow: a.escrow, Host: a.host, Epoch: a.epoch}}
		p.paid[a] = at
	}
	return at
}

func (p *purse) self() mesh.Address { return mesh.AddressOf(p.key.Public().(ed25519.PublicKey)) }

// remember notes an escrow, and reports whether it was not noted before. Requests draw on
// it once it is on the ledger.
func (p *purse) remember(owner mesh.Address, escrow mesh.Hash) (fresh bool, err error) {
	return p.note(func(all []noted) []noted {
		if slices.ContainsFunc(all, func(n noted) bool { return n.is(owner, escrow) }) {
			return all
		}
		return append(all, noted{owner, escrow, p.epoch})
	})
}

// forget drops an escrow that was not opened.
func (p *purse) forget(owner mesh.Address, escrow mesh.Hash) error {
	_, err := p.note(func(all []noted) []noted {
		return slices.DeleteFunc(all, func(n noted) bool { return n.is(owner, escrow) })
	})
	return err
}

// goneAfter is for how many epochs an escrow is looked for that is not on the ledger: it
// may have been sent, and a node that follows may be behind.
const goneAfter = 2

// prune drops escrows that were paid back, or never opened.
func (p *purse) prune(missing map[mesh.Hash]bool, epoch mesh.Epoch) error {
	_, err := p.note(func(all []noted) []noted {
		for i := range all {
			if all[i].Epoch == 0 {
				all[i].Epoch = epoch
			}
		}
		return slices.DeleteFunc(all, func(n noted) bool { return missing[n.Escrow] && n.Epoch+goneAfter < epoch })
	})
	return err
}

// note changes the list of escrows and writes it, without anybody waiting for the disk.
// change is called with mu held.
func (p *purse) note(change func([]noted) []noted) (changed bool, err error) {
	p.noting.Lock()
	defer p.noting.Unlock()
	p.mu.Lock()
	before := p.opened
	all := change(slices.Clone(before))
	p.mu.Unlock()
	if slices.Equal(all, before) {
		return false, nil
	}
	b, err := json.Marshal(all)
	if err == nil && len(b) > maxNoted && len(all) > len(before) {
		err = fmt.Errorf("the list of escrows %s is full: it has %d", p.file, len(before))
	}
	if err == nil {
		err = atomicfile.Write(p.file, b, 0o600)
	}
	if err != nil {
		return false, err // and nothing is noted, so that a second try writes too
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opened = all
	return true, nil
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

// spent is what this node acknowledged of an escrow, and no settlement took from it yet.
func (p *purse) spent(escrow mesh.Hash) mesh.Amount {
	p.mu.Lock()
	defer p.mu.Unlock()
	var sum mesh.Amount
	for a, at := range p.paid {
		if a.escrow == escrow && a.epoch+1 >= p.epoch && !at.settled {
			sum += at.Amount
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

// draws reports whether there is an escrow that requests draw on.
func (p *purse) draws() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.draw.IsZero()
}

// Pays reports whether an escrow of this node is open that its requests draw on.
func (n *Node) Pays() bool { return n.purse.draws() }

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
func (p *purse) Acknowledge(r *inference.Receipt) (*inference.SignedVoucher, error) {
	escrow, err := mesh.HashFromBytes(r.Pb.GetEscrow())
	if err != nil || r.Host == p.self() {
		return nil, err
	}
	v, covers, err := p.owe(account{escrow, r.Host, mesh.Epoch(r.Pb.GetEpoch())}, r)
	if err != nil {
		return nil, err
	}
	signed, err := p.sign(v, covers)
	if err != nil {
		return nil, err
	}
	p.signed.Add(float64(r.Pb.GetPrice()))
	return signed, nil
}

// owe adds a receipt to what its host may have.
func (p *purse) owe(a account, r *inference.Receipt) (inference.Voucher, []receipts.Part, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.at(a)
	sum, err := at.Amount.Add(mesh.Amount(r.Pb.GetPrice()))
	if err != nil {
		return at.Voucher, nil, fmt.Errorf("acknowledge an answer: %w", err)
	}
	at.Amount = sum
	if r.Whole() {
		at.Receipts++
	}
	if r.Finish != inference.FinishOpen {
		at.pending = append(at.pending, receipts.PartOf(r))
	}
	return at.Voucher, slices.Clone(at.pending), nil
}

// sign makes a voucher that covers these receipts, and what was covered before.
func (p *purse) sign(v inference.Voucher, covers []receipts.Part) (*inference.SignedVoucher, error) {
	signed, err := inference.SignVoucher(p.network, p.key, &v)
	if err != nil {
		return nil, err
	}
	// On disk before it leaves: after a restart the next one must not say less.
	if err := p.store.PutVoucher(&v, signed, covers...); err != nil {
		return nil, err
	}
	out := inference.SignedVoucher{Voucher: v, Signed: signed}
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.at(account{v.Escrow, v.Host, v.Epoch})
	at.pending = slices.DeleteFunc(at.pending, func(part receipts.Part) bool { return slices.Contains(covers, part) })
	if v.Amount >= at.signed.Amount {
		at.signed = out
	}
	return &out, nil
}

// Recount implements router.Purse.
func (p *purse) Recount(refused *inference.SignedVoucher, there uint64) (*inference.SignedVoucher, error) {
	p.mu.Lock()
	at := p.at(account{refused.Escrow, refused.Host, refused.Epoch})
	if at.Receipts >= refused.Receipts { // else it was recounted for another voucher meanwhile
		at.Receipts -= refused.Receipts - min(there, refused.Receipts)
	}
	v, covers := at.Voucher, slices.Clone(at.pending)
	p.mu.Unlock()
	return p.sign(v, covers)
}

// Taken implements router.Purse.
func (p *purse) Taken(v *inference.SignedVoucher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at := p.paid[account{v.Escrow, v.Host, v.Epoch}]; at != nil {
		at.taken = max(at.taken, v.Amount)
	}
}

// flush notes on the disk which vouchers were taken. What a stop keeps from being noted
// is only sent once more.
func (p *purse) flush() error {
	p.mu.Lock()
	var all []inference.Voucher
	for _, at := range p.paid {
		if at.taken > at.noted {
			at.noted = at.taken
			v := at.Voucher
			v.Amount = at.taken
			all = append(all, v)
		}
	}
	p.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	return p.store.PutTaken(all)
}
