package ledger

import (
	"bytes"
	"encoding/binary"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// An escrow's amount has four parts:
//
//	amount = lanes + pool + (previous - claimed) + free
//
// lanes is what lanes may still pay. pool is what the implicit lanes of the epoch may
// pay in all, and previous the pool of the epoch before, of which settlements claim
// their part until it is paid out. As no part is counted twice, and settlements take
// from lanes and previous alone, a payer cannot promise more than there is.
//
// When an epoch begins, its pool becomes previous, and half of what is in neither lanes
// nor previous becomes the new pool. A pool never shrinks within its epoch. This is
// worked out when an escrow is touched, see roll.

func escrowKey(id mesh.Hash) []byte { return key(tableEscrow, id[:]) }

func laneKey(escrow mesh.Hash, host mesh.Address) []byte { return key(tableLane, escrow[:], host[:]) }

// EscrowID returns the name of the escrow that a transaction with this nonce opens.
func EscrowID(network mesh.NetworkID, owner mesh.Address, nonce uint64) mesh.Hash {
	return domainEscrow.Hash(network, append(owner[:], be64(nonce)...))
}

// escrow reads an escrow as it is in epoch now.
func (o *overlay) escrow(id mesh.Hash, now uint64) (*ledgerpb.Escrow, bool) {
	e, ok := load[ledgerpb.Escrow](o, escrowKey(id))
	if !ok {
		return e, false
	}
	if now < e.GetEpoch() {
		o.damaged("an escrow is of an epoch to come")
		return e, true
	}
	o.roll(e, now)
	if paid, ok := o.paidUpTo(); ok && paid+1 == now {
		e.Previous, e.Claimed = 0, 0
	}
	return e, true
}

// rolls is after how many epochs without a change pools of an escrow repeat with a
// period of one or two. The distance of a pool to a third of what is open halves at
// each epoch, so that 64 would do.
const rolls = 128

// roll brings an escrow from its epoch to a later one.
func (o *overlay) roll(e *ledgerpb.Escrow, now uint64) {
	n := now - e.GetEpoch()
	if n > rolls {
		n = rolls + n%2
	}
	for range n {
		e.Previous, e.Claimed = e.GetPool(), 0
		e.Pool = o.minus(e.GetAmount(), o.plus(e.GetLanes(), e.GetPrevious())) / 2
	}
	e.Epoch = now
}

// free returns what is in no lane and no pool.
func (o *overlay) free(e *ledgerpb.Escrow) uint64 {
	held := o.plus(e.GetLanes(), o.plus(e.GetPool(), o.minus(e.GetPrevious(), e.GetClaimed())))
	return o.minus(e.GetAmount(), held)
}

// paidUpTo returns the last epoch whose settlements were paid out.
func (o *overlay) paidUpTo() (uint64, bool) {
	b := o.Get(miscKey(miscPaid))
	if len(b) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(b), true
}

// trialLanes is how many lanes are looked at before anybody pays: each is a record.
const trialLanes = 16

func (c *call) openEscrow(t *ledgerpb.OpenEscrow) error {
	if t.GetAmount() == 0 || t.GetAmount() < c.b.params.GetEscrowMin() {
		return refuse("an escrow of %s, at least %s", mesh.Amount(t.GetAmount()), mesh.Amount(max(c.b.params.GetEscrowMin(), 1)))
	}
	if err := c.debit(c.sender, t.GetAmount()); err != nil {
		return err
	}
	if c.b.trial && len(t.GetLanes()) > trialLanes {
		return nil
	}
	id := EscrowID(c.m.cfg.Network, c.sender, c.tx.Pb.GetNonce())
	lanes, before := uint64(0), []byte(nil)
	for _, lane := range t.GetLanes() {
		host, err := c.host(lane.GetHost())
		switch {
		case err != nil:
			return err
		case before != nil && bytes.Compare(before, host[:]) >= 0:
			return refuse("lanes are not in the order of their hosts, each once")
		case lane.GetCap() == 0:
			return refuse("the lane of host %s has no cap", host.Short())
		case lane.GetCap() > t.GetAmount()-lanes:
			return refuse("the lanes are for more than the escrow, %s", mesh.Amount(t.GetAmount()))
		}
		before = lane.GetHost()
		lanes += lane.GetCap()
		c.save(laneKey(id, host), &ledgerpb.LaneState{Cap: lane.GetCap()})
	}
	c.totals(func(s *ledgerpb.Totals) { s.Escrow = c.plus(s.GetEscrow(), t.GetAmount()) })
	epoch := c.b.epoch.GetEpoch()
	c.save(escrowKey(id), &ledgerpb.Escrow{
		Owner: c.sender[:], Amount: t.GetAmount(), Lanes: lanes, Epoch: epoch, Opened: epoch,
		Pool: (t.GetAmount() - lanes) / 2,
	})
	return nil
}

// host reads the address of a registered host.
func (c *call) host(b []byte) (mesh.Address, error) {
	host, err := addressFrom("host", b)
	if err != nil {
		return host, err
	}
	if c.Get(hostKey(host)) == nil {
		return host, refuse("%s is not a registered host", host.Short())
	}
	return host, nil
}

// openOne reads an escrow that is not closing.
func (c *call) openOne(b []byte) (mesh.Hash, *ledgerpb.Escrow, error) {
	id, e, err := c.known(b)
	if err == nil && e.GetClosing() != 0 {
		err = refuse("escrow %s is closing", id.Short())
	}
	return id, e, err
}

func (c *call) known(b []byte) (mesh.Hash, *ledgerpb.Escrow, error) {
	id, err := hashFrom("escrow", b)
	if err != nil {
		return id, nil, err
	}
	e, ok := c.escrow(id, c.b.epoch.GetEpoch())
	if !ok {
		return id, nil, refuse("there is no escrow %s", id.Short())
	}
	return id, e, nil
}

// topEscrow pays into an escrow, whoever it belongs to. A half goes to the pool of
// the epoch, so that an empty escrow serves again at once.
func (c *call) topEscrow(t *ledgerpb.TopEscrow) error {
	id, e, err := c.openOne(t.GetEscrow())
	switch {
	case err != nil:
		return err
	case t.GetAmount() == 0:
		return refuse("nothing to pay in")
	}
	if err := c.debit(c.sender, t.GetAmount()); err != nil {
		return err
	}
	c.totals(func(s *ledgerpb.Totals) { s.Escrow = c.plus(s.GetEscrow(), t.GetAmount()) })
	e.Amount = c.plus(e.GetAmount(), t.GetAmount())
	e.Pool = c.plus(e.GetPool(), t.GetAmount()/2)
	c.save(escrowKey(id), e)
	return nil
}

// setLane raises the cap of a lane. A cap never falls: its host may have served for it.
func (c *call) setLane(t *ledgerpb.SetLane) error {
	id, e, err := c.openOne(t.GetEscrow())
	if err != nil {
		return err
	}
	if !bytes.Equal(e.GetOwner(), c.sender[:]) {
		return refuse("escrow %s is not the sender's", id.Short())
	}
	host, err := c.host(t.GetLane().GetHost())
	if err != nil {
		return err
	}
	lane, _ := load[ledgerpb.LaneState](c.overlay, laneKey(id, host))
	free := c.free(e)
	switch up := t.GetLane().GetCap(); {
	case up <= lane.GetCap():
		return refuse("a cap of %s for host %s, it can only be raised above %s", mesh.Amount(up), host.Short(), mesh.Amount(lane.GetCap()))
	case up-lane.GetCap() > free:
		return refuse("%s more for host %s, %s are free in escrow %s", mesh.Amount(up-lane.GetCap()), host.Short(), mesh.Amount(free), id.Short())
	default:
		e.Lanes = c.plus(e.GetLanes(), up-lane.GetCap())
		lane.Cap = up
	}
	c.save(laneKey(id, host), lane)
	c.save(escrowKey(id), e)
	return nil
}

// closeEscrow ends an escrow. Receipts of this epoch are still paid from it, later ones
// are not, and at least two epochs later what is left goes back to its owner: at the
// latest when the epoch before is settled, or when the owner sends this once more.
func (c *call) closeEscrow(t *ledgerpb.CloseEscrow) error {
	id, e, err := c.known(t.GetEscrow())
	if err != nil {
		return err
	}
	now := c.b.epoch.GetEpoch()
	switch {
	case !bytes.Equal(e.GetOwner(), c.sender[:]):
		return refuse("escrow %s is not the sender's", id.Short())
	case e.GetClosing() == 0:
		e.Closed, e.Closing = now, c.plus(now, c.b.params.GetCloseEpochs())
		c.save(escrowKey(id), e)
		c.owe(e.GetClosing(), dueEscrow, id[:])
	case now < e.GetClosing():
		return refuse("escrow %s is closing and is paid back in epoch %d", id.Short(), e.GetClosing())
	default:
		c.payEscrow(id)
	}
	return nil
}

// payEscrow pays a closed escrow back.
func (o *overlay) payEscrow(id mesh.Hash) {
	e, ok := load[ledgerpb.Escrow](o, escrowKey(id))
	if !ok {
		return // its owner was here before
	}
	o.credit(mesh.AddressOf(e.GetOwner()), e.GetAmount())
	o.totals(func(s *ledgerpb.Totals) { s.Escrow = o.minus(s.GetEscrow(), e.GetAmount()) })
	o.remove(escrowKey(id))
	o.sweepLater(key(tableLane, id[:]))
}

// Escrow returns an escrow as it is now, and what of it is in no lane and no pool.
func (v View) Escrow(id mesh.Hash) (e *ledgerpb.Escrow, free mesh.Amount, err error) {
	now, err := v.Epoch()
	if err != nil {
		return nil, 0, err
	}
	o := newOverlay(v.r)
	e, ok := o.escrow(id, now.GetEpoch())
	if !ok {
		return nil, 0, *o.err
	}
	free = mesh.Amount(o.free(e))
	return e, free, *o.err
}
