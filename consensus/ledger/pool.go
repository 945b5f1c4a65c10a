package ledger

import (
	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// Peers hand transactions on in any order, so some of a sender's are taken on trust
// before those that they follow on: ahead of them, of aheadBytes in all, for patience
// blocks. Without an end to that, whoever has a coin could fill the pool for nothing.
const (
	ahead      = 64
	aheadBytes = MaxTxBytes
	patience   = 16
)

// Pool checks transactions that wait for a block, on top of a committed state. It is
// made anew after each block.
type Pool struct {
	m     *Machine
	o     *overlay
	b     *blockState
	held  map[mesh.Address]*held
	since map[mesh.Hash]mesh.Height // of what is held, and was before: when it came first
	old   map[mesh.Hash]mesh.Height // since of the pool before
}

// held are a sender's transactions that came before their turn, by nonce.
type held struct {
	txs   map[uint64]*Tx
	bytes int
}

// NewPool returns the checks for the block after the state.
func (m *Machine) NewPool(base Reader) (*Pool, error) {
	o := newOverlay(base)
	params, ok := load[ledgerpb.Params](o, key(tableParams))
	if !ok {
		return nil, &damage{"it has no parameters"}
	}
	epoch, _ := load[ledgerpb.EpochState](o, key(tableMisc, []byte(miscEpoch)))
	height, err := heightOf(o)
	if err != nil {
		return nil, err
	}
	b := &blockState{height: height + 1, epoch: epoch, params: params}
	return &Pool{
		m: m, o: o, b: b, held: make(map[mesh.Address]*held), since: make(map[mesh.Hash]mesh.Height),
	}, *o.err
}

// Next returns the pool for the block after a later state. It knows since when
// transactions wait for others, and gives up on them in the end.
func (p *Pool) Next(base Reader) (*Pool, error) {
	next, err := p.m.NewPool(base)
	if err == nil {
		next.old = p.since
	}
	return next, err
}

// Check says why a transaction would be refused now, or nil. One that follows on
// others of its sender that are not here yet is taken on trust, a few at a time.
func (p *Pool) Check(raw []byte) error {
	tx, err := ParseTx(p.m.cfg.Network, raw)
	if err != nil {
		return err
	}
	account, err := p.m.admit(p.o, p.b.params, tx)
	if err != nil {
		return err
	}
	if next := account.GetNonce(); tx.Pb.GetNonce() > next {
		return p.hold(tx, next)
	}
	layer := p.o.layer()
	if err := p.execute(layer, tx, account).Err; err != nil {
		return err
	}
	p.o.fold(layer)
	p.release(tx.Sender)
	return *p.o.err
}

// execute carries a transaction out for its effect on the sender's next ones alone.
func (p *Pool) execute(o *overlay, tx *Tx, account *ledgerpb.Account) Result {
	b := *p.b
	return p.m.execute(o, &b, tx, account)
}

// hold keeps a transaction whose turn has not come.
func (p *Pool) hold(tx *Tx, next uint64) error {
	nonce, h := tx.Pb.GetNonce(), p.held[tx.Sender]
	if h == nil {
		h = &held{txs: make(map[uint64]*Tx)}
		p.held[tx.Sender] = h
	}
	other := h.txs[nonce]
	if other != nil && other.ID == tx.ID {
		return nil
	}
	since, waited := p.old[tx.ID]
	if !waited {
		since = p.b.height
	}
	switch {
	case other != nil:
		return refuse("another transaction of the sender with nonce %d waits", nonce)
	case nonce-next > ahead || h.bytes+tx.size > aheadBytes:
		return refuse("nonce %d is too far ahead, the sender's next is %d", nonce, next)
	case p.b.height-since >= patience:
		return refuse("nonce %d, and those from %d on have not come for %d blocks", nonce, next, patience)
	}
	h.txs[nonce] = tx
	h.bytes += tx.size
	p.since[tx.ID] = since
	return nil
}

// release carries out what waited for a transaction that has come. It was taken on
// trust: one that turns out to be refused in a block pays its fee there.
func (p *Pool) release(sender mesh.Address) {
	h := p.held[sender]
	if h == nil {
		return
	}
	for {
		next := p.o.account(sender).GetNonce()
		tx := h.txs[next]
		if tx == nil {
			return
		}
		account, err := p.m.admit(p.o, p.b.params, tx)
		if err != nil {
			return
		}
		delete(h.txs, next)
		h.bytes -= tx.size
		p.execute(p.o, tx, account)
	}
}

// Pick returns the transactions for a proposal, in an order in which each has an
// effect, of at most max bytes with the beacon before them. proposer's state of the
// block is that of Apply, so what is picked is accepted by Accepts.
func (m *Machine) Pick(base Reader, block Block, waiting [][]byte, max int64) ([][]byte, error) {
	o := newOverlay(base)
	b, err := m.begin(o, block)
	if err != nil {
		return nil, err
	}
	picked := append([][]byte{}, block.Txs...)
	for _, raw := range picked {
		max -= int64(sizeInBlock(raw))
	}
	held := make(map[mesh.Address]map[uint64][]byte) // by sender and nonce: came before its turn
	registrations := 0
	try := func(raw []byte) (follower []byte) {
		tx, err := ParseTx(m.cfg.Network, raw)
		if err != nil || int64(sizeInBlock(raw)) > max {
			return nil
		}
		account, err := m.admit(o, b.params, tx)
		if err != nil {
			return nil
		}
		nonce := tx.Pb.GetNonce()
		if nonce > account.GetNonce() {
			if held[tx.Sender] == nil {
				held[tx.Sender] = make(map[uint64][]byte)
			}
			if held[tx.Sender][nonce] == nil {
				held[tx.Sender][nonce] = raw
			}
			return nil
		}
		if kindOf(tx.Pb) == kindRegistration {
			if registrations == maxRegistrations {
				return nil
			}
			registrations++
		}
		m.execute(o, b, tx, account)
		picked = append(picked, raw)
		max -= int64(sizeInBlock(raw))
		follower = held[tx.Sender][nonce+1]
		delete(held[tx.Sender], nonce+1)
		return follower
	}
	for _, raw := range waiting {
		for raw != nil {
			raw = try(raw)
		}
	}
	return picked, *o.err
}

// maxRegistrations bounds those of a block. Each has two proofs, which take some
// milliseconds to check: a block full of them would take the validators' time of many.
const maxRegistrations = 64

const kindRegistration = "register_host"

// sizeInBlock is what a transaction takes in a block: its bytes, tag and length.
func sizeInBlock(raw []byte) int { return len(raw) + 11 }

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
