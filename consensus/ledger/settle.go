package ledger

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// A settlement takes what it wants from escrows at once and keeps it as due until the
// epoch is settled, so that nothing in between, neither another host nor the payer, can
// take it away, and paying an epoch out costs one step per host. Until then the lines
// stay in the state, which says what came from which escrow: for disputes, which there
// are none of yet.

// MaxSettleLines is how many lines a transaction may have. A host with more payers
// sends several: each goes on where the one before ended.
const MaxSettleLines = 500

// maxLineReceipts bounds the receipts of a line, so that no count overflows.
const maxLineReceipts = 1 << 32

func settlementKey(epoch uint64, host mesh.Address) []byte {
	return key(tableSettlement, be64(epoch), host[:])
}

func settlingKey(epoch uint64, host mesh.Address) []byte {
	return key(tableSettling, be64(epoch), host[:])
}

// settling is a settlement that a transaction makes or goes on with.
type settling struct {
	epoch  uint64
	record *ledgerpb.Settlement
	tree   *merkle.SumBuilder
	last   []byte // escrow of the line before
	hosts  hostSet
}

func (c *call) settle(t *ledgerpb.Settle) error {
	if err := c.settleable(t.GetEpoch()); err != nil {
		return err
	}
	switch {
	case c.Get(hostKey(c.sender)) == nil:
		return refuse("%s is not a registered host", c.sender.Short())
	case len(t.GetLines()) == 0:
		return refuse("a settlement without lines")
	}
	if c.b.trial { // a signature for each line
		return nil
	}
	s := c.resume(t.GetEpoch())
	kept := &ledgerpb.Settle{Epoch: t.GetEpoch()}
	first := s.record.GetLines()
	for i, line := range t.GetLines() {
		if err := c.settleLine(s, line); err != nil {
			return refuse("line %d: %v", i+1, err)
		}
		kept.Lines = append(kept.Lines, &ledgerpb.SettleLine{
			Escrow: line.GetEscrow(), Amount: line.GetAmount(),
			Receipts: line.GetReceipts(), Total: line.GetTotal(), Root: line.GetRoot(),
		})
	}
	root := s.tree.Root()
	s.record.Root, s.record.Total, s.record.Lines = root.Hash[:], root.Sum, s.tree.Len()
	c.save(settlementKey(s.epoch, c.sender), s.record)
	c.save(key(tableLines, be64(s.epoch), c.sender[:], be64(first)), kept)
	c.save(settlingKey(s.epoch, c.sender), &ledgerpb.Settling{Peaks: packSums(s.tree.Peaks()), Last: s.last})
	return nil
}

// settleable refuses an epoch that cannot be settled at this height. The heights from
// first to last are open to it.
func (c *call) settleable(epoch uint64) error {
	now, start := c.b.epoch.GetEpoch(), c.b.epoch.GetStart()
	if epoch >= now {
		return refuse("epoch %d is not over, it is epoch %d", epoch, now)
	}
	paid, some := c.paidUpTo()
	if epoch+1 != now || (some && epoch <= paid) {
		return refuse("epoch %d is settled, it is epoch %d", epoch, now)
	}
	first, last := start+1, start+c.b.params.GetSettleBlocks()-1
	if h := uint64(c.b.height); h < first || h > last {
		return refuse("epoch %d can be settled from height %d to %d, this is %d", epoch, first, last, h)
	}
	return nil
}

// resume returns the sender's settlement as far as it got.
func (c *call) resume(epoch uint64) *settling {
	s := &settling{epoch: epoch, hosts: c.hostSet(epoch)}
	s.record, _ = load[ledgerpb.Settlement](c.overlay, settlementKey(epoch, c.sender))
	rest, _ := load[ledgerpb.Settling](c.overlay, settlingKey(epoch, c.sender))
	var err error
	if s.tree, err = merkle.ResumeSum(s.record.GetLines(), unpackSums(rest.GetPeaks())); err != nil {
		c.damaged("the peaks of a settlement do not fit its lines")
		s.tree = new(merkle.SumBuilder)
	}
	s.last = rest.GetLast()
	return s
}

// packSums and unpackSums are the form of nodes in Settling.
func packSums(nodes []merkle.SumNode) (b []byte) {
	for _, n := range nodes {
		b = binary.BigEndian.AppendUint64(append(b, n.Hash[:]...), n.Sum)
	}
	return b
}

func unpackSums(b []byte) (nodes []merkle.SumNode) {
	for ; len(b) >= 40; b = b[40:] {
		nodes = append(nodes, merkle.SumNode{Hash: mesh.Hash(b[:32]), Sum: binary.BigEndian.Uint64(b[32:])})
	}
	return nodes
}

// settleLine checks one line and takes its amount out of the escrow.
func (c *call) settleLine(s *settling, line *ledgerpb.SettleLine) error {
	id, err := hashFrom("escrow", line.GetEscrow())
	if err != nil {
		return err
	}
	if s.last != nil && bytes.Compare(s.last, id[:]) >= 0 {
		return refuse("escrow %s is out of order: the escrows of an epoch's lines ascend, and each is there once", id.Short())
	}
	s.last = line.GetEscrow()
	if _, err := hashFrom("root", line.GetRoot()); err != nil {
		return err
	}
	if n := line.GetReceipts(); n == 0 || n > maxLineReceipts {
		return refuse("%d receipts, want 1 to %d", n, uint64(maxLineReceipts))
	}
	e, ok := c.escrow(id, c.b.epoch.GetEpoch())
	if !ok {
		return refuse("there is no escrow %s", id.Short())
	}
	if err := c.pays(id, e, s.epoch); err != nil {
		return err
	}
	if err := c.checkVoucher(s.epoch, id, e, line); err != nil {
		return err
	}
	receipts, carry := bits.Add64(s.record.GetReceipts(), line.GetReceipts(), 0)
	if carry != 0 {
		return refuse("too many receipts")
	}
	s.record.Receipts = receipts
	if err := s.tree.Append(lineLeaf(line)); err != nil {
		return refuse("the totals of the lines are more than 64 bits hold")
	}
	return c.take(s, id, e, line.GetAmount())
}

// checkVoucher refuses a line that wants more than the payer signed for, or than the
// receipts say. A line without a voucher wants nothing: it commits to receipts that the
// payer did not acknowledge.
func (c *call) checkVoucher(epoch uint64, id mesh.Hash, e *ledgerpb.Escrow, line *ledgerpb.SettleLine) error {
	amount := line.GetAmount()
	switch {
	case amount > line.GetTotal():
		return refuse("%s are wanted of escrow %s, the receipts are for %s", mesh.Amount(amount), id.Short(), mesh.Amount(line.GetTotal()))
	case amount > line.GetVoucher():
		return refuse("%s are wanted of escrow %s, the voucher is for %s", mesh.Amount(amount), id.Short(), mesh.Amount(line.GetVoucher()))
	case line.GetAcknowledged() > line.GetReceipts():
		return refuse("%d receipts of escrow %s, the voucher acknowledges %d", line.GetReceipts(), id.Short(), line.GetAcknowledged())
	case line.GetVoucher() == 0 && line.GetAcknowledged() == 0 && len(line.GetSignature()) == 0:
		return nil
	}
	v := inference.Voucher{
		Escrow: id, Host: c.sender, Epoch: mesh.Epoch(epoch),
		Amount: mesh.Amount(line.GetVoucher()), Receipts: line.GetAcknowledged(),
	}
	seen := mesh.HashOf([]byte("voucher\x00"), e.GetOwner(), id[:], c.sender[:], be64(epoch),
		be64(line.GetVoucher()), be64(line.GetAcknowledged()), line.GetSignature())
	if !c.m.cfg.Recall(seen, func() bool {
		return v.Verify(c.m.cfg.Network, mesh.AddressOf(e.GetOwner()), line.GetSignature())
	}) {
		return refuse("the voucher is not signed by the owner of escrow %s", id.Short())
	}
	return nil
}

// take moves an amount from an escrow to what is due to the sender: first from its part
// of the epoch's pool, then from its own lane.
func (c *call) take(s *settling, id mesh.Hash, e *ledgerpb.Escrow, amount uint64) error {
	if amount == 0 {
		return nil
	}
	lane, _ := load[ledgerpb.LaneState](c.overlay, laneKey(id, c.sender))
	implicit := s.hosts.share(c.m.cfg.Network, id, s.epoch, e.GetPrevious(), c.sender)
	explicit := c.minus(lane.GetCap(), lane.GetPaid())
	if amount > implicit && amount-implicit > explicit {
		return refuse("%s are wanted of escrow %s, %s are left in the lane", mesh.Amount(amount), id.Short(), mesh.Amount(c.plus(implicit, explicit)))
	}
	pool := min(amount, implicit)
	e.Claimed = c.plus(e.GetClaimed(), pool)
	if e.GetClaimed() > e.GetPrevious() {
		c.damaged("more was claimed of a pool than is in it")
	}
	e.Amount = c.minus(e.GetAmount(), amount)
	if own := amount - pool; own > 0 {
		e.Lanes = c.minus(e.GetLanes(), own)
		lane.Paid = c.plus(lane.GetPaid(), own)
		c.save(laneKey(id, c.sender), lane)
	}
	c.save(escrowKey(id), e)
	s.record.Due = c.plus(s.record.GetDue(), amount)
	return nil
}

// payout is what settling an epoch moved.
type payout struct {
	settlements, receipts, paid uint64
	byHost                      map[mesh.Address]uint64
}

// payEpoch pays what is due by the settlements of an epoch to the owners of the hosts;
// called once, when the epoch is closed. What else is due by then is paid back.
func (m *Machine) payEpoch(o *overlay, epoch uint64) payout {
	p := payout{byHost: make(map[mesh.Address]uint64)}
	scan(o, key(tableSettlement, be64(epoch)), func(k []byte, s *ledgerpb.Settlement) {
		host, due := mesh.AddressOf(k[9:]), s.GetDue()
		record, _ := load[ledgerpb.Host](o, hostKey(host))
		owner := host
		if len(record.GetOwner()) == len(owner) {
			owner = mesh.AddressOf(record.GetOwner())
		}
		o.credit(owner, due)
		s.Paid, s.Due = due, 0
		o.save(k, s)
		p.settlements++
		p.receipts += s.GetReceipts() // at most 2^32 a line: no chain has 2^32 lines
		p.paid = o.plus(p.paid, due)
		p.byHost[host] = due
		o.remove(settlingKey(epoch, host))
	})
	if p.paid > 0 {
		o.totals(func(t *ledgerpb.Totals) { t.Escrow = o.minus(t.GetEscrow(), p.paid) })
	}
	if p.settlements > 0 {
		o.sweepLater(key(tableLines, be64(epoch)))
	}
	o.set(miscKey(miscPaid), be64(epoch))
	o.payDue(epoch + 1)
	return p
}

// pruneSettlements removes the settlements of an epoch and of those before it; called
// once per epoch.
func (m *Machine) pruneSettlements(o *overlay, epoch uint64) {
	for _, k := range keysUpTo(o, tableSettlement, epoch, math.MaxInt) {
		o.remove(k)
	}
}

// Settlement returns a host's settlement of an epoch.
func (v View) Settlement(epoch mesh.Epoch, host mesh.Address) (*ledgerpb.Settlement, error) {
	return read[ledgerpb.Settlement](v, settlementKey(uint64(epoch), host))
}

// SettledLines returns the lines of a settlement, without vouchers, until its epoch is
// paid out.
func (v View) SettledLines(epoch mesh.Epoch, host mesh.Address) (lines []*ledgerpb.SettleLine, err error) {
	err = list(v, key(tableLines, be64(uint64(epoch)), host[:]), func(_ []byte, s *ledgerpb.Settle) {
		lines = append(lines, s.GetLines()...)
	})
	return lines, err
}
