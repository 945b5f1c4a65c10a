package ledger

import (
	"bytes"
	"encoding/binary"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// maxMembers bounds the members of a run, and so the work of ending one.
const maxMembers = 1000

func runKey(run mesh.Hash) []byte { return key(tableRun, run[:]) }

func memberKey(run mesh.Hash, a mesh.Address) []byte { return key(tableMember, run[:], a[:]) }

// RunID returns the name of the run that a transaction with this nonce opens.
func RunID(network mesh.NetworkID, owner mesh.Address, nonce uint64) mesh.Hash {
	return domainRun.Hash(network, append(owner[:], be64(nonce)...))
}

func (c *call) openRun(t *ledgerpb.OpenRun) error {
	if _, err := hashFrom("descriptor", t.GetDescriptor_()); err != nil {
		return err
	}
	if n := t.GetMembersMax(); n == 0 || n > maxMembers {
		return refuse("a run of at most %d members, want 1 to %d", n, maxMembers)
	}
	if err := c.debit(c.sender, t.GetReward()); err != nil {
		return err
	}
	c.totals(func(s *ledgerpb.Totals) { s.Runs = c.plus(s.GetRuns(), t.GetReward()) })
	c.save(runKey(RunID(c.m.cfg.Network, c.sender, c.tx.Pb.GetNonce())), &ledgerpb.Run{
		Owner: c.sender[:], Descriptor_: t.GetDescriptor_(), Bond: t.GetBond(), MembersMax: t.GetMembersMax(),
		Reward: t.GetReward(), Opened: c.b.epoch.GetEpoch(),
	})
	return nil
}

func (c *call) run(b []byte) (mesh.Hash, *ledgerpb.Run, error) {
	id, err := hashFrom("run", b)
	if err != nil {
		return id, nil, err
	}
	run, ok := load[ledgerpb.Run](c.overlay, runKey(id))
	if !ok {
		return id, nil, refuse("there is no run %s", id.Short())
	}
	return id, run, nil
}

func (c *call) openedRun(b []byte) (mesh.Hash, *ledgerpb.Run, error) {
	id, run, err := c.run(b)
	if err == nil && run.GetClosed() != 0 {
		err = refuse("run %s is closed", id.Short())
	}
	return id, run, err
}

func (c *call) joinRun(t *ledgerpb.JoinRun) error {
	id, run, err := c.openedRun(t.GetRun())
	if err != nil {
		return err
	}
	member, ok := load[ledgerpb.Member](c.overlay, memberKey(id, c.sender))
	switch {
	case ok && member.GetLeft() != 0:
		return refuse("the sender left run %s, its bond is paid back in epoch %d", id.Short(), member.GetLeft())
	case ok:
		return refuse("the sender is a member of run %s", id.Short())
	case run.GetMembers() >= run.GetMembersMax():
		return refuse("run %s has its %d members, counting those who wait for their bond", id.Short(), run.GetMembersMax())
	}
	if err := c.debit(c.sender, run.GetBond()); err != nil {
		return err
	}
	c.totals(func(s *ledgerpb.Totals) { s.Runs = c.plus(s.GetRuns(), run.GetBond()) })
	run.Members++
	c.save(runKey(id), run)
	c.save(memberKey(id, c.sender), &ledgerpb.Member{Bond: run.GetBond(), Joined: c.b.epoch.GetEpoch()})
	return nil
}

// leaveRun ends the sender's membership. The bond is paid back in the next epoch: by
// itself when the epoch is settled, or earlier when the member sends this once more.
func (c *call) leaveRun(t *ledgerpb.LeaveRun) error {
	id, run, err := c.run(t.GetRun())
	if err != nil {
		return err
	}
	member, ok := load[ledgerpb.Member](c.overlay, memberKey(id, c.sender))
	if !ok {
		return refuse("the sender is not a member of run %s", id.Short())
	}
	due, now := member.GetLeft(), c.b.epoch.GetEpoch()
	if due == 0 {
		due = run.GetClosed()
	}
	if due != 0 {
		if now < due {
			return refuse("the bond is paid back in epoch %d", due)
		}
		c.payMember(id, c.sender)
		c.remove(dueKey(member.GetLeft(), dueMember, id[:], c.sender[:])) // it may join again before that is worked off
		return nil
	}
	if member.GetPosted() != nil && member.GetPostedRound() == run.GetRound()+1 {
		c.tally(id, member, -1)
	}
	member.Left = c.plus(now, 1)
	run.Leaving++
	c.save(memberKey(id, c.sender), member)
	c.save(runKey(id), run)
	c.owe(member.GetLeft(), dueMember, id[:], c.sender[:])
	return nil
}

// payMember pays a member's bond back.
func (o *overlay) payMember(id mesh.Hash, a mesh.Address) {
	member, ok := load[ledgerpb.Member](o, memberKey(id, a))
	if !ok {
		return // paid before
	}
	run, _ := load[ledgerpb.Run](o, runKey(id))
	run.Members--
	if member.GetLeft() != 0 {
		run.Leaving--
	}
	o.save(runKey(id), run)
	o.remove(memberKey(id, a))
	o.credit(a, member.GetBond())
	o.totals(func(s *ledgerpb.Totals) { s.Runs = o.minus(s.GetRuns(), member.GetBond()) })
}

// payMembers pays all bonds of a closed run back and returns how many there were.
func (o *overlay) payMembers(id mesh.Hash) int {
	members := keysOf(o.committed(), key(tableMember, id[:]), maxMembers)
	for _, k := range members {
		o.payMember(id, mesh.AddressOf(k[33:]))
	}
	o.sweepLater(key(tableTrace, id[:]))
	o.sweepLater(key(tableTally, id[:]))
	return len(members) + 1
}

// activeMember reads an open run of which the sender is a member who did not leave.
func (c *call) activeMember(b []byte) (mesh.Hash, *ledgerpb.Run, *ledgerpb.Member, error) {
	id, run, err := c.openedRun(b)
	if err != nil {
		return id, nil, nil, err
	}
	member, ok := load[ledgerpb.Member](c.overlay, memberKey(id, c.sender))
	if !ok || member.GetLeft() != 0 {
		return id, nil, nil, refuse("the sender is not a member of run %s", id.Short())
	}
	return id, run, member, nil
}

// commitTrace keeps a member's commitment to its work in a round: the one after the last
// checkpoint, or late that of the checkpoint itself.
func (c *call) commitTrace(t *ledgerpb.CommitTrace) error {
	id, run, member, err := c.activeMember(t.GetRun())
	if err != nil {
		return err
	}
	if _, err := hashFrom("root", t.GetRoot()); err != nil {
		return err
	}
	trace := key(tableTrace, id[:], be64(t.GetRound()), c.sender[:])
	switch round, last := t.GetRound(), run.GetRound(); {
	case round == 0 || (round != last && round != last+1):
		return refuse("a trace of round %d, the next of run %s is %d", round, id.Short(), last+1)
	case round < member.GetRound() || c.Get(trace) != nil: // the latter also of an earlier membership
		return refuse("the sender committed to its work in round %d", max(round, member.GetRound()))
	}
	member.Round = t.GetRound()
	c.save(memberKey(id, c.sender), member)
	c.save(trace, t)
	return nil
}

// postCheckpoint takes a member's word for the state after the next round. It stands
// when more than half of the members say the same; until then a member may change its
// word, so that a run cannot get stuck between two.
func (c *call) postCheckpoint(t *ledgerpb.PostCheckpoint) error {
	id, run, member, err := c.activeMember(t.GetRun())
	if err != nil {
		return err
	}
	if _, err := hashFrom("checkpoint", t.GetHash()); err != nil {
		return err
	}
	next := run.GetRound() + 1
	switch {
	case t.GetRound() != next:
		return refuse("a checkpoint of round %d, the next of run %s is %d", t.GetRound(), id.Short(), next)
	case member.GetPostedRound() != next:
	case bytes.Equal(member.GetPosted(), t.GetHash()) && !c.stands(id, run, member):
		return refuse("the sender posted this checkpoint")
	default:
		c.tally(id, member, -1)
	}
	member.PostedRound, member.Posted = next, t.GetHash()
	c.tally(id, member, 1)
	c.save(memberKey(id, c.sender), member)
	if c.stands(id, run, member) {
		run.Round, run.Checkpoint = next, t.GetHash()
		c.save(runKey(id), run)
	}
	return nil
}

func tallyKey(run mesh.Hash, member *ledgerpb.Member) []byte {
	return key(tableTally, run[:], be64(member.GetPostedRound()), member.GetPosted())
}

func (o *overlay) tallied(run mesh.Hash, member *ledgerpb.Member) uint64 {
	b := o.Get(tallyKey(run, member))
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// tally counts a member's checkpoint in or out.
func (o *overlay) tally(run mesh.Hash, member *ledgerpb.Member, by int64) {
	o.set(tallyKey(run, member), be64(o.tallied(run, member)+uint64(by)))
}

// stands reports whether a member's checkpoint has more than half of the members. When
// others left, it may have them without a new word: the member posts once more.
func (o *overlay) stands(id mesh.Hash, run *ledgerpb.Run, member *ledgerpb.Member) bool {
	return 2*o.tallied(id, member) > uint64(run.GetMembers()-run.GetLeaving())
}

// closeRun ends a run. The reward goes back to its owner at once, all of it, as nothing
// pays members yet, and the bonds to the members when the epoch is settled.
func (c *call) closeRun(t *ledgerpb.CloseRun) error {
	id, run, err := c.openedRun(t.GetRun())
	switch {
	case err != nil:
		return err
	case !bytes.Equal(run.GetOwner(), c.sender[:]):
		return refuse("run %s is not the sender's", id.Short())
	}
	c.credit(c.sender, run.GetReward())
	c.totals(func(s *ledgerpb.Totals) { s.Runs = c.minus(s.GetRuns(), run.GetReward()) })
	run.Reward, run.Closed = 0, c.plus(c.b.epoch.GetEpoch(), 1)
	c.save(runKey(id), run)
	c.owe(run.GetClosed(), dueRun, id[:])
	return nil
}

// Run returns a training run.
func (v View) Run(run mesh.Hash) (*ledgerpb.Run, error) {
	return read[ledgerpb.Run](v, runKey(run))
}

// Traces returns what members committed to in a round, ascending by member.
func (v View) Traces(run mesh.Hash, round uint64, fn func(a mesh.Address, root mesh.Hash)) error {
	return list(v, key(tableTrace, run[:], be64(round)), func(k []byte, t *ledgerpb.CommitTrace) {
		fn(mesh.AddressOf(k[41:]), mesh.Hash(t.GetRoot()))
	})
}
