// Package ledger is the state machine of the chain, pure: what a block does to a
// state follows from the two alone. It has no clock, no I/O, no goroutine, no
// float and no iteration in random order, so that every node computes the same.
//
// A state is anything that a Reader reads. Apply returns the changes of a block as
// a sorted list and writes nothing. Transactions that are refused are data; an
// error of Apply means that this node's state is damaged.
//
// Money is in accounts or in one of the sums of Totals; all of it together is
// always mesh.MaxSupply (CheckInvariants).
package ledger

import (
	"cmp"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// Config describes a machine.
type Config struct {
	Network mesh.NetworkID
	// Work weighs the hosts of an epoch; nil takes the weights of the genesis file.
	Work Work
	// Recall returns what verify does, for proofs that are dear: of a host's keys, and the
	// payers' vouchers. It is for a memory of what was verified before, by key; nil verifies each time.
	Recall func(key mesh.Hash, verify func() bool) bool
	// Verify reports whether a transaction's signature is good; nil does the
	// arithmetic each time. It is for a memory of what was verified before.
	Verify func(tx *Tx) bool
	// VerifyBeacon is the same for the proposer's signature: blsKey's over network and height.
	VerifyBeacon func(blsKey, signature []byte, height mesh.Height) bool
	// Trust is for how many blocks light nodes believe a header: trust_seconds of the
	// genesis document, in blocks. No vote lets collateral unbond faster; 0 bounds nothing.
	Trust uint64
	// Upgrades are the names of upgrades that this software carries out, with what each
	// changes in the state, which may be nil.
	Upgrades map[string]Migration
}

// Machine applies blocks.
type Machine struct {
	cfg Config
}

// New returns a machine.
func New(cfg Config) *Machine {
	m := &Machine{cfg: cfg}
	if m.cfg.Verify == nil {
		m.cfg.Verify = func(tx *Tx) bool { return tx.Verify(cfg.Network) }
	}
	if m.cfg.VerifyBeacon == nil {
		m.cfg.VerifyBeacon = func(blsKey, signature []byte, height mesh.Height) bool {
			return VerifyBeacon(cfg.Network, blsKey, signature, height)
		}
	}
	if m.cfg.Recall == nil {
		m.cfg.Recall = func(_ mesh.Hash, verify func() bool) bool { return verify() }
	}
	if m.cfg.Work == nil {
		m.cfg.Work = genesisWork{}
	}
	return m
}

// ConsensusAddress is the first 20 bytes of the SHA-256 of a consensus key.
type ConsensusAddress [20]byte

// ConsensusAddressOf returns the address of an ed25519 consensus key.
func ConsensusAddressOf(key []byte) (a ConsensusAddress) {
	h := mesh.HashOf(key)
	copy(a[:], h[:])
	return a
}

// Block is what consensus decided.
type Block struct {
	Height   mesh.Height
	Proposer ConsensusAddress
	Txs      [][]byte           // the beacon first
	Signed   []ConsensusAddress // validators whose signature is in the last commit
	Missed   []ConsensusAddress // validators whose signature is not
	Evidence []Evidence
}

// Evidence is a proof of CometBFT that a validator signed two things.
type Evidence struct {
	Validator ConsensusAddress
	Height    mesh.Height
}

// Result is what became of one transaction. The beacon has one too.
type Result struct {
	ID   mesh.Hash
	Kind string // name of the action
	Err  error  // nil: carried out
	idle bool   // refused without any effect
}

// ValidatorUpdate is a change of the validator set; power 0 removes.
type ValidatorUpdate struct {
	ConsensusKey []byte // ed25519, 32 bytes
	Power        int64
}

// Event tells people and programs what happened.
type Event struct {
	Kind  string // epoch, params, validators, slash, jail, proposal, upgrade
	Attrs [][2]string
}

// Outcome is what a block does.
type Outcome struct {
	Changes    []Change // ascending by key
	Results    []Result // one for each transaction
	Validators []ValidatorUpdate
	Events     []Event
}

// call is the execution of one transaction in a block.
type call struct {
	*overlay // of this transaction alone
	m        *Machine
	b        *blockState
	tx       *Tx
	sender   mesh.Address
}

// blockState is what all transactions of a block share.
type blockState struct {
	height  mesh.Height
	epoch   *ledgerpb.EpochState
	params  *ledgerpb.Params
	fees    uint64
	events  []Event
	updates []ValidatorUpdate
	reset   bool // the validator set may have changed: consensus is told at the end
	trial   bool // nobody pays: what is dear to find out, or to write, is left out
}

func (b *blockState) emit(kind string, attrs ...string) {
	e := Event{Kind: kind}
	for i := 0; i+1 < len(attrs); i += 2 {
		e.Attrs = append(e.Attrs, [2]string{attrs[i], attrs[i+1]})
	}
	b.events = append(b.events, e)
}

// Apply carries out a block. A transaction without effect (not in form, not signed,
// out of order, without means for its fee) is refused and changes nothing; one whose
// action is refused pays its fee and counts.
func (m *Machine) Apply(base Reader, block Block) (*Outcome, error) {
	return m.run(base, block, func(int, Result) error { return nil })
}

// run carries out a block, as long as accept agrees to each result.
func (m *Machine) run(base Reader, block Block, accept func(n int, r Result) error) (*Outcome, error) {
	o := newOverlay(base)
	b, err := m.begin(o, block)
	if err != nil {
		return nil, err
	}
	out := &Outcome{Results: make([]Result, 0, len(block.Txs))}
	for i, raw := range block.Txs {
		if i == 0 && isBeacon(raw) {
			out.Results = append(out.Results, Result{ID: mesh.HashOf(raw), Kind: "beacon"})
			continue
		}
		r := m.apply(o, b, raw)
		if err := accept(i, r); err != nil {
			return nil, cmp.Or(*o.err, err)
		}
		out.Results = append(out.Results, r)
	}
	m.end(o, b)
	out.Changes, out.Events, out.Validators = o.changes(), b.events, b.updates
	return out, *o.err
}

// apply carries out one transaction.
func (m *Machine) apply(o *overlay, b *blockState, raw []byte) Result {
	tx, err := ParseTx(m.cfg.Network, raw)
	if err != nil {
		return Result{ID: mesh.HashOf(raw), Err: err, idle: true}
	}
	account, err := m.admit(o, b.params, tx)
	if err == nil && account.GetNonce() != tx.Pb.GetNonce() {
		err = refuse("nonce %d, the sender's next is %d", tx.Pb.GetNonce(), account.GetNonce())
	}
	if err != nil {
		return Result{ID: tx.ID, Kind: kindOf(tx.Pb), Err: err, idle: true}
	}
	return m.execute(o, b, tx, account)
}

// execute carries out a transaction that was admitted and is its sender's next. What
// a refused action did to the state or to the block's events is undone; to the set of
// validators no action does anything.
func (m *Machine) execute(o *overlay, b *blockState, tx *Tx, account *ledgerpb.Account) Result {
	result := Result{ID: tx.ID, Kind: kindOf(tx.Pb)}
	account.Balance -= tx.Pb.GetFee()
	account.Nonce++
	o.save(accountKey(tx.Sender), account)
	b.fees = o.plus(b.fees, tx.Pb.GetFee())
	c := &call{overlay: o.layer(), m: m, b: b, tx: tx, sender: tx.Sender}
	events := len(b.events)
	if result.Err = c.act(); result.Err == nil {
		o.fold(c.overlay)
	} else {
		b.events = b.events[:events]
	}
	return result
}

// admit checks what a transaction must have to enter a block, but for its place in
// the order of its sender's.
func (m *Machine) admit(o *overlay, p *ledgerpb.Params, tx *Tx) (*ledgerpb.Account, error) {
	account := o.account(tx.Sender)
	h := head{sender: tx.Sender, nonce: tx.Pb.GetNonce(), fee: tx.Pb.GetFee(), size: tx.size}
	if err := h.pays(p, account.GetNonce(), account.GetBalance()); err != nil {
		return nil, err
	}
	if !m.cfg.Verify(tx) {
		return nil, malformed("the signature is not the sender's")
	}
	return account, nil
}

// pays refuses what has no effect for its number or its fee: next is the sender's number,
// and balance what it has.
func (h head) pays(p *ledgerpb.Params, next, balance uint64) error {
	least := uint64(h.size) * p.GetFeePerByte()
	switch {
	case h.nonce < next:
		return refuse("nonce %d was used, the sender's next is %d", h.nonce, next)
	case h.fee < least:
		return refuse(feeTooLow, h.fee, least, h.size)
	case balance < h.fee:
		return refuse("%s has %s and cannot pay the fee", h.sender.Short(), mesh.Amount(balance))
	}
	return nil
}

// act carries out the action.
func (c *call) act() error {
	switch a := c.tx.Pb.GetAction().(type) {
	case *ledgerpb.Tx_Transfer:
		return c.transfer(a.Transfer)
	case *ledgerpb.Tx_RegisterHost:
		return c.registerHost(a.RegisterHost)
	case *ledgerpb.Tx_Stake:
		return c.stake(a.Stake)
	case *ledgerpb.Tx_Unstake:
		return c.unstake(a.Unstake)
	case *ledgerpb.Tx_Unjail:
		return c.unjail()
	case *ledgerpb.Tx_OpenEscrow:
		return c.openEscrow(a.OpenEscrow)
	case *ledgerpb.Tx_TopEscrow:
		return c.topEscrow(a.TopEscrow)
	case *ledgerpb.Tx_SetLane:
		return c.setLane(a.SetLane)
	case *ledgerpb.Tx_CloseEscrow:
		return c.closeEscrow(a.CloseEscrow)
	case *ledgerpb.Tx_Settle:
		return c.settle(a.Settle)
	case *ledgerpb.Tx_CommitWork:
		return c.commitWork(a.CommitWork)
	case *ledgerpb.Tx_Propose:
		return c.propose(a.Propose)
	case *ledgerpb.Tx_Vote:
		return c.vote(a.Vote)
	case *ledgerpb.Tx_Delegate:
		return c.delegate(a.Delegate)
	case *ledgerpb.Tx_OpenRun:
		return c.openRun(a.OpenRun)
	case *ledgerpb.Tx_JoinRun:
		return c.joinRun(a.JoinRun)
	case *ledgerpb.Tx_LeaveRun:
		return c.leaveRun(a.LeaveRun)
	case *ledgerpb.Tx_CommitTrace:
		return c.commitTrace(a.CommitTrace)
	case *ledgerpb.Tx_PostCheckpoint:
		return c.postCheckpoint(a.PostCheckpoint)
	case *ledgerpb.Tx_CloseRun:
		return c.closeRun(a.CloseRun)
	}
	return refuse("unknown action")
}

// kindOf names the action of a transaction, as the field in ledger.proto is named.
func kindOf(tx *ledgerpb.Tx) string {
	m := tx.ProtoReflect()
	if f := m.WhichOneof(m.Descriptor().Oneofs().ByName("action")); f != nil {
		return string(f.Name())
	}
	return ""
}

// begin does what happens before the transactions of a block.
func (m *Machine) begin(o *overlay, block Block) (*blockState, error) {
	b := &blockState{height: block.Height}
	if err := m.upgrade(o, b); err != nil { // before anything is read that it may change
		return nil, err
	}
	params, ok := load[ledgerpb.Params](o, key(tableParams))
	if !ok {
		return nil, &damage{"it has no parameters"}
	}
	b.params = params
	b.epoch, _ = load[ledgerpb.EpochState](o, miscKey(miscEpoch))
	m.mixRand(o, b, block)
	m.countSigners(o, b, block)
	for _, e := range block.Evidence {
		m.punishEquivocation(o, b, e)
	}
	m.turnEpoch(o, b)
	return b, *o.err
}

// end does what happens after the transactions of a block.
func (m *Machine) end(o *overlay, b *blockState) {
	m.closeProposals(o, b)
	m.tellSet(o, b)
	if b.fees > 0 {
		o.totals(func(t *ledgerpb.Totals) { t.Community = o.plus(t.GetCommunity(), b.fees) })
	}
	o.save(miscKey(miscEpoch), b.epoch)
	o.set(miscKey(miscHeight), be64(uint64(b.height)))
}
