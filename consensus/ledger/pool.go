package ledger

import (
	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// Nobody has paid for a transaction that waits, so it must cost little: a look at its head,
// one decoding, one signature, and the cheap part of its action, once; no more than a note of
// some hundred bytes is kept of it.

// PoolTxs and PoolBytes are more than a Pool lets wait in all, whatever comes.
const (
	PoolTxs   = 20_000
	PoolBytes = 32 << 20
)

// amount is a number of transactions and their bytes.
type amount struct{ txs, bytes int }

func (a *amount) add(bytes int)              { a.txs++; a.bytes += bytes }
func (a *amount) take(bytes int)             { a.txs--; a.bytes -= bytes }
func (a amount) holds(b int, in amount) bool { return a.txs < in.txs && a.bytes+b <= in.bytes }

// What may wait in a pool.
var (
	room       = amount{16_000, 22 << 20}
	roomUrgent = amount{18_000, 27 << 20} // with what is urgent
	// Before its turn. Peers hand transactions on in any order, so some of a sender's are
	// taken on trust before those that they follow on. Whoever has a coin could fill the pool
	// with such for nothing: they wait for patience blocks, and who let them wait in vain has
	// none for penance blocks.
	roomAhead       = amount{1_000, 4 << 20}
	roomAheadSender = amount{ahead, MaxTxBytes}
)

const (
	ahead    = 64 // numbers
	feeBytes = 9  // that a fee in a transaction may grow by
	patience = 16
	penance  = 256
)

// Pool checks transactions that wait for a block, on top of a committed state. It is
// made anew after each block.
type Pool struct {
	m       *Machine
	o       *overlay
	b       *blockState
	senders map[mesh.Address]*queue
	used    amount // by those in their turn
	before  amount // by those before it
	now     map[mesh.Hash]waiting
	old     map[mesh.Hash]waiting        // of the pool before, until they are rechecked
	vain    map[mesh.Address]mesh.Height // when a sender's waited in vain
}

// waiting is what is known of a transaction that was checked, by the hash of its bytes.
type waiting struct {
	since mesh.Height
	cost  uint64 // to its sender, at most
}

// queue is what one sender has waiting.
type queue struct {
	first, next uint64 // numbers: of the state, and after those that wait in their turn
	left        uint64 // of the balance, after them
	ahead       map[uint64]follower
	before      amount // the sum of ahead
}

// follower is a transaction that came before its turn.
type follower struct {
	key  mesh.Hash
	fee  uint64
	size int
}

// NewPool returns the checks for the block after the state.
func (m *Machine) NewPool(base Reader) (*Pool, error) {
	o := newOverlay(base)
	params, ok := load[ledgerpb.Params](o, key(tableParams))
	if !ok {
		return nil, &damage{"it has no parameters"}
	}
	epoch, _ := load[ledgerpb.EpochState](o, miscKey(miscEpoch))
	height, err := heightOf(o)
	if err != nil {
		return nil, err
	}
	return &Pool{
		m: m, o: o, b: &blockState{height: height + 1, epoch: epoch, params: params, trial: true},
		senders: make(map[mesh.Address]*queue), now: make(map[mesh.Hash]waiting), vain: make(map[mesh.Address]mesh.Height),
	}, *o.err
}

// Next returns the pool for the block after a later state. What waited in this one is
// known to it.
func (p *Pool) Next(base Reader) (*Pool, error) {
	next, err := p.m.NewPool(base)
	if err != nil {
		return nil, err
	}
	next.old = p.now
	for sender, at := range p.vain {
		if next.b.height-at < penance {
			next.vain[sender] = at
		}
	}
	return next, nil
}

// Check says why a transaction would be refused now, or nil. The dear part of its action
// is not looked at, and nothing of one that follows on others of its sender: what is wrong
// there costs the fee in a block.
func (p *Pool) Check(raw []byte) error {
	if len(raw) > MaxTxBytes {
		_, err := ParseTx(p.m.cfg.Network, raw)
		return err
	}
	h, err := peek(raw)
	if err != nil {
		return err
	}
	key, q := mesh.HashOf(raw), p.queue(h.sender)
	if f, ok := q.ahead[h.nonce]; ok && f.key == key {
		return nil
	}
	if err := h.pays(p.b.params, q.next, q.left); err != nil {
		return err
	}
	if err := p.admits(h, q); err != nil {
		return err
	}
	tx, err := ParseTx(p.m.cfg.Network, raw)
	switch {
	case err != nil:
		return err
	case !p.m.cfg.Verify(tx):
		return malformed("the signature is not the sender's")
	}
	w := waiting{since: p.b.height, cost: h.fee}
	if h.nonce == q.next {
		if w.cost, err = p.try(tx, q); err != nil && q.next == q.first {
			return err
		}
	}
	p.keep(h, key, q, w)
	return *p.o.err
}

// Recheck is Check for a transaction that waited in the pool before: form, signature and
// action are as they were found then.
func (p *Pool) Recheck(raw []byte) error {
	key := mesh.HashOf(raw)
	w, ok := p.old[key]
	if !ok {
		return p.Check(raw)
	}
	h, err := peek(raw)
	if err != nil {
		return err
	}
	q := p.queue(h.sender)
	if err := h.pays(p.b.params, q.next, q.left); err != nil {
		return err
	}
	if h.nonce > q.next {
		if p.b.height-w.since >= patience {
			p.vain[h.sender] = p.b.height
			return refuse("nonce %d, and those from %d on have not come for %d blocks", h.nonce, q.next, patience)
		}
		if err := p.follows(h, q); err != nil {
			return err
		}
	}
	p.keep(h, key, q, w)
	return *p.o.err
}

// queue returns what a sender has waiting.
func (p *Pool) queue(sender mesh.Address) *queue {
	q := p.senders[sender]
	if q == nil {
		account := p.o.account(sender)
		q = &queue{first: account.GetNonce(), next: account.GetNonce(), left: account.GetBalance()}
	}
	return q
}

// admits refuses what there is no room for.
func (p *Pool) admits(h head, q *queue) error {
	most, least := room, uint64(h.size)*p.b.params.GetFeePerByte()*p.floor()
	if h.nonce == q.first && q.next == q.first && p.m.urgent(p.o, p.b, h) {
		most, least = roomUrgent, 0
	}
	switch {
	case !p.used.holds(h.size, most):
		return noRoom("too many transactions wait for a block; try again later")
	case h.fee < least:
		// The number of a higher fee may be some bytes longer.
		enough := mesh.Amount(least + feeBytes*p.b.params.GetFeePerByte()*p.floor())
		return noRoom("%d transactions wait for a block, and a fee of %s is needed now: pay it with --fee, or try again later", p.used.txs, enough)
	case h.nonce == q.next:
		return nil
	}
	if at, ok := p.vain[h.sender]; ok {
		return noRoom("nonce %d is ahead of the sender's next, %d, and such waited in vain at height %d", h.nonce, q.next, at)
	}
	return p.follows(h, q)
}

// floor is the multiple of the least fee that is asked for now: what is cheap cannot fill
// more than half of the room, so that there is some for who pays more.
func (p *Pool) floor() uint64 {
	eighths := max(8*p.used.txs/room.txs, 8*p.used.bytes/room.bytes)
	if eighths < 4 {
		return 1
	}
	return 2 << (eighths - 4)
}

// follows refuses what is too far ahead of its turn.
func (p *Pool) follows(h head, q *queue) error {
	_, other := q.ahead[h.nonce]
	switch {
	case other:
		return refuse("another transaction of the sender with nonce %d waits", h.nonce)
	case h.nonce-q.next > ahead, !q.before.holds(h.size, roomAheadSender):
		return noRoom("nonce %d is too far ahead, the sender's next is %d", h.nonce, q.next)
	case !p.before.holds(h.size, roomAhead):
		return noRoom("nonce %d is ahead of the sender's next, %d, and too many wait so", h.nonce, q.next)
	}
	return nil
}

// try carries out the cheap part of an action for what it costs the sender, and throws
// the rest of its effect away.
func (p *Pool) try(tx *Tx, q *queue) (cost uint64, err error) {
	o, b := p.o.layer(), *p.b
	result := p.m.execute(o, &b, tx, &ledgerpb.Account{Balance: q.left, Nonce: q.next})
	cost = tx.Pb.GetFee()
	if left := o.account(tx.Sender).GetBalance(); left < q.left {
		cost = max(cost, q.left-left)
	}
	return cost, result.Err
}

// keep notes a transaction, and those of its sender whose turn comes with it.
func (p *Pool) keep(h head, key mesh.Hash, q *queue, w waiting) {
	p.now[key], p.senders[h.sender] = w, q
	if h.nonce > q.next {
		if q.ahead == nil {
			q.ahead = make(map[uint64]follower)
		}
		q.ahead[h.nonce] = follower{key, w.cost, h.size}
		q.before.add(h.size)
		p.before.add(h.size)
		return
	}
	for f := (follower{key, w.cost, h.size}); ; {
		p.used.add(f.size)
		q.next++
		q.left -= min(q.left, f.fee)
		next, ok := q.ahead[q.next]
		if !ok || q.left < next.fee {
			return
		}
		f = next
		delete(q.ahead, q.next)
		q.before.take(f.size)
		p.before.take(f.size)
	}
}
