package ledger

import (
	"cmp"
	"container/heap"
	"math/bits"
	"slices"

	"github.com/gonka-mesh/mesh"
)

// maxRegistrations bounds those of a block. Each has two proofs, which take some
// milliseconds to check: a block full of them would take the validators' time of many.
const maxRegistrations = 64

const kindRegistration = "register_host"

// sizeInBlock is what a transaction takes in a block: its bytes, tag and length.
func sizeInBlock(raw []byte) int { return len(raw) + 11 }

// offer is a transaction that a proposer may take.
type offer struct {
	head
	raw []byte
	at  int // its place among those that wait
}

// compare orders offers: by fee for a byte, the highest first, then as they came.
func (a offer) compare(b offer) int {
	aHigh, aLow := bits.Mul64(a.fee, uint64(b.size))
	bHigh, bLow := bits.Mul64(b.fee, uint64(a.size))
	return cmp.Or(cmp.Compare(bHigh, aHigh), cmp.Compare(bLow, aLow), cmp.Compare(a.at, b.at))
}

// offers are those of each sender, by nonce; a heap by the first of each.
type offers [][]offer

func (o offers) Len() int           { return len(o) }
func (o offers) Less(i, j int) bool { return o[i][0].compare(o[j][0]) < 0 }
func (o offers) Swap(i, j int)      { o[i], o[j] = o[j], o[i] }
func (o *offers) Push(x any)        { *o = append(*o, x.([]offer)) }

func (o *offers) Pop() any {
	last := (*o)[len(*o)-1]
	*o = (*o)[:len(*o)-1]
	return last
}

// sortOffers sorts what waits by sender and nonce. Of two with one nonce the first came
// first.
func sortOffers(waiting [][]byte, max int64) offers {
	at := make(map[mesh.Address]int)
	var all offers
	for i, raw := range waiting {
		h, err := peek(raw)
		if err != nil || int64(sizeInBlock(raw)) > max {
			continue
		}
		n, ok := at[h.sender]
		if !ok {
			n = len(all)
			at[h.sender] = n
			all = append(all, nil)
		}
		all[n] = append(all[n], offer{h, raw, i})
	}
	for _, own := range all {
		slices.SortStableFunc(own, func(a, b offer) int { return cmp.Compare(a.nonce, b.nonce) })
	}
	return all
}

// picker fills a block.
type picker struct {
	m             *Machine
	o             *overlay
	b             *blockState
	txs           [][]byte
	left          int64 // bytes
	registrations int
}

// Pick returns the transactions for a proposal, in an order in which each has an
// effect, of at most max bytes with the beacon before them. proposer's state of the
// block is that of Apply, so what is picked is accepted by Accepts.
//
// Of all that wait it takes what pays the most for a byte, of each sender in the order of
// its numbers. What is urgent comes first, one of a sender, in up to half of the block.
func (m *Machine) Pick(base Reader, block Block, waiting [][]byte, max int64) ([][]byte, error) {
	o := newOverlay(base)
	b, err := m.begin(o, block)
	if err != nil {
		return nil, err
	}
	p := &picker{m: m, o: o, b: b, txs: append([][]byte{}, block.Txs...), left: max}
	for _, raw := range p.txs {
		p.left -= int64(sizeInBlock(raw))
	}
	all := sortOffers(waiting, p.left)
	p.urgent(all)
	heap.Init(&all)
	for len(all) > 0 {
		// Refused is what was taken before, the second of a number, or what leaves a gap
		// before the sender's next ones: then these are refused in turn, for a look at each.
		p.take(all[0][0])
		if all[0] = all[0][1:]; len(all[0]) == 0 {
			heap.Pop(&all)
		} else {
			heap.Fix(&all, 0)
		}
	}
	return p.txs, *o.err
}

// take adds a transaction to the block if it has an effect there.
func (p *picker) take(of offer) bool {
	size, register := int64(sizeInBlock(of.raw)), of.action == actionRegister
	if size > p.left || register && p.registrations == maxRegistrations {
		return false
	}
	account := p.o.account(of.sender)
	if of.nonce != account.GetNonce() || of.pays(p.b.params, of.nonce, account.GetBalance()) != nil {
		return false
	}
	tx, err := ParseTx(p.m.cfg.Network, of.raw)
	if err != nil || !p.m.cfg.Verify(tx) {
		return false
	}
	p.m.execute(p.o, p.b, tx, account)
	p.txs = append(p.txs, of.raw)
	p.left -= size
	if register {
		p.registrations++
	}
	return true
}

// urgent takes what cannot wait until nobody pays more: see Machine.urgent.
func (p *picker) urgent(all offers) {
	var first []offer
	for _, own := range all {
		nonce := p.o.account(own[0].sender).GetNonce()
		for _, of := range own {
			if of.nonce == nonce && p.m.urgent(p.o, p.b, of.head) {
				first = append(first, of)
				break
			}
		}
	}
	slices.SortFunc(first, offer.compare)
	half := p.left / 2
	for _, of := range first {
		if size := int64(sizeInBlock(of.raw)); size <= half && p.take(of) {
			half -= size
		}
	}
}

// urgent reports whether a transaction loses more than time when it waits: a host's
// settlement while the epoch can be settled, after which its answers are not paid, and
// the word of a host that its jail is over. Only hosts have such, so that it is not free
// to be among them: with register_fee, or collateral.
func (m *Machine) urgent(o *overlay, b *blockState, h head) bool {
	if h.action != actionSettle && h.action != actionUnjail {
		return false
	}
	c := &call{overlay: o.layer(), m: m, b: b, sender: h.sender} // thrown away
	if h.action == actionUnjail {
		return c.unjail() == nil
	}
	epoch := b.epoch.GetEpoch()
	return epoch > 0 && c.Get(hostKey(h.sender)) != nil && c.settleable(epoch-1) == nil
}

// Accepts reports whether a proposed block is one that an honest proposer makes: the
// proposer's beacon, then transactions that each have an effect. The outcome serves
// when the block is decided.
func (m *Machine) Accepts(base Reader, block Block) (*Outcome, error) {
	if len(block.Txs) == 0 || !isBeacon(block.Txs[0]) {
		return nil, refuse("a block without the proposer's beacon")
	}
	if err := m.checkBeacon(newOverlay(base), block); err != nil {
		return nil, err
	}
	registrations := 0
	return m.run(base, block, func(n int, r Result) error {
		if r.Kind == kindRegistration {
			registrations++
		}
		switch {
		case registrations > maxRegistrations:
			return refuse("more than %d registrations of hosts", maxRegistrations)
		case r.idle:
			return refuse("transaction %d has no effect: %v", n, r.Err)
		}
		return nil
	})
}
