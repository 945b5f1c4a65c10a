package ledger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// What may become of a proposal.
const (
	StatusVoting   = "voting"
	StatusPassed   = "passed"   // and its change was made
	StatusRejected = "rejected" // not enough votes, or not enough for it
	StatusVetoed   = "vetoed"
	StatusFailed   = "failed" // passed, but its change cannot be made any more
)

// reasonQuorum is what the record of a proposal says for which too few voted.
const reasonQuorum = "no quorum"

// Bounds of what a proposal says. maxEnding bounds the votes that are counted in one
// block.
const (
	maxTitle  = 128
	maxText   = 4096
	maxEnding = 8
)

func proposalKey(id uint64) []byte    { return key(tableProposal, be64(id)) }
func endingKey(height uint64) []byte  { return key(tableEnding, be64(height)) }
func ballotsOf(id uint64) []byte      { return key(tableBallot, be64(id)) }
func modelKey(id mesh.ModelID) []byte { return key(tableModel, id[:]) }

func ballotKey(id uint64, host mesh.Address) []byte {
	return key(tableBallot, be64(id), host[:])
}

// propose opens a vote. Anyone may who puts the deposit down. The change is tried
// out now and thrown away, so that nobody votes on what cannot be done; whether it
// can still be done is seen again when the vote has ended. Quorum and thresholds are
// those of now.
func (c *call) propose(t *ledgerpb.Propose) error {
	p := c.b.params
	if err := checkWords("title", t.GetTitle(), 1, maxTitle, ""); err != nil {
		return err
	}
	if err := checkWords("text", t.GetText(), 0, maxText, "\n\t"); err != nil {
		return err
	}
	if t.GetDeposit() < p.GetDepositMin() {
		return refuse("deposit of %s, at least %s", mesh.Amount(t.GetDeposit()), mesh.Amount(p.GetDepositMin()))
	}
	ends := uint64(c.b.height) + p.GetVoteBlocks()
	ending := c.Get(endingKey(ends))
	if len(ending) >= 8*maxEnding {
		return refuse("%d votes begin in this block already, propose again in the next", maxEnding)
	}
	if err := c.m.enact(c.overlay.layer(), c.b, t, ends); err != nil {
		return err
	}
	if err := c.debit(c.sender, t.GetDeposit()); err != nil {
		return err
	}
	c.totals(func(sums *ledgerpb.Totals) { sums.Deposits = c.plus(sums.GetDeposits(), t.GetDeposit()) })
	id := c.nextProposal()
	c.save(proposalKey(id), &ledgerpb.Proposal{
		Id: id, Proposer: c.sender[:], Body: t, Opened: uint64(c.b.height), Ends: ends,
		QuorumBp: p.GetQuorumBp(), ThresholdBp: p.GetThresholdBp(), VetoBp: p.GetVetoBp(),
		Status: StatusVoting,
	})
	c.set(endingKey(ends), append(bytes.Clone(ending), be64(id)...))
	c.b.emit("proposal", "id", strconv.FormatUint(id, 10), "status", StatusVoting, "ends", strconv.FormatUint(ends, 10))
	return nil
}

// nextProposal numbers proposals from 1.
func (o *overlay) nextProposal() uint64 {
	k, id := miscKey(miscProposal), uint64(1)
	if b := o.Get(k); len(b) == 8 {
		id = binary.BigEndian.Uint64(b)
	}
	o.set(k, be64(id+1))
	return id
}

// checkWords bounds what people read. It does not ask Unicode tables, which differ
// between builds: control characters, and those that turn the direction of text, are
// refused, whatever else is UTF-8 is not.
func checkWords(what, s string, least, most int, also string) error {
	if len(s) < least || len(s) > most {
		return refuse("%s of %d bytes, want %d to %d", what, len(s), least, most)
	}
	if !utf8.ValidString(s) {
		return refuse("%s is not UTF-8", what)
	}
	for _, r := range s {
		switch {
		case strings.ContainsRune(also, r):
		case r < 0x20, r >= 0x7f && r <= 0x9f, r == 0x61c, r == 0x200e, r == 0x200f, r >= 0x2028 && r <= 0x202e,
			r >= 0x2066 && r <= 0x2069, r == 0xfeff, r >= 0xfff0 && r <= 0xfffb, r >= 0xe0000 && r <= 0xe007f:
			return refuse("%s has the character %U, which cannot be printed", what, r)
		}
	}
	return nil
}

// noProposal is why a vote is refused that comes before its proposal.
const noProposal = "there is no proposal %d"

// Early reports whether that is why a vote was refused: the block of the proposal may be a
// moment away where it was asked.
func Early(vote *ledgerpb.Vote, refusal string) bool {
	return vote != nil && strings.Contains(refusal, fmt.Sprintf(noProposal, vote.GetProposal()))
}

// vote casts the sender's vote, or changes it while the vote is open. Hosts vote; what
// a vote weighs is seen at the end (tally.go). NONE takes it back.
func (c *call) vote(t *ledgerpb.Vote) error {
	id := t.GetProposal()
	proposal, ok := load[ledgerpb.Proposal](c.overlay, proposalKey(id))
	if !ok {
		return refuse(noProposal, id)
	}
	if proposal.GetStatus() != StatusVoting {
		return refuse("the vote on proposal %d has ended: %s", id, proposal.GetStatus())
	}
	if err := c.standing(c.sender); err != nil {
		return err
	}
	k := ballotKey(id, c.sender)
	switch t.GetOption() {
	case ledgerpb.Option_NONE:
		if c.Get(k) == nil {
			return refuse("there is no vote on proposal %d to take back: want yes, no, abstain or veto", id)
		}
		c.remove(k)
	case ledgerpb.Option_YES, ledgerpb.Option_NO, ledgerpb.Option_ABSTAIN, ledgerpb.Option_VETO:
		c.save(k, &ledgerpb.Ballot{Option: t.GetOption()})
	default:
		return refuse("unknown option %d, want yes, no, abstain or veto", t.GetOption())
	}
	return nil
}

// standing refuses a voter that is no host, or in jail.
func (o *overlay) standing(a mesh.Address) error {
	host, ok := load[ledgerpb.Host](o, hostKey(a))
	switch {
	case !ok:
		return refuse("%s is not a host, and only hosts vote", a.Short())
	case host.GetTombstoned():
		return refuse("%s signed two blocks of a height and votes no more", a.Short())
	case host.GetJailedUntil() != 0:
		return refuse("%s is in jail until epoch %d, its vote does not count", a.Short(), host.GetJailedUntil())
	}
	return nil
}

// closeProposals ends the votes whose last block this is.
func (m *Machine) closeProposals(o *overlay, b *blockState) {
	k := endingKey(uint64(b.height))
	ending := bytes.Clone(o.Get(k))
	if ending == nil {
		return
	}
	voters := m.electorate(o, b)
	for ; len(ending) >= 8; ending = ending[8:] {
		m.closeProposal(o, b, voters, binary.BigEndian.Uint64(ending))
	}
	o.remove(k)
}

// closeProposal counts and does what was decided. A change that cannot be made any
// more fails as a whole. The deposit goes back, or to the community pool when the
// proposal was vetoed or too few cared.
func (m *Machine) closeProposal(o *overlay, b *blockState, voters *electorate, id uint64) {
	p, ok := load[ledgerpb.Proposal](o, proposalKey(id))
	if !ok {
		o.damaged("a proposal is missing whose vote ends")
		return
	}
	voters.count(p)
	var forfeit bool
	p.Status, p.Reason, forfeit = decide(p)
	why := p.GetReason()
	if p.GetStatus() == StatusPassed {
		layer := o.layer()
		if err := m.enact(layer, b, p.GetBody(), p.GetEnds()); err != nil {
			p.Status, p.Reason, why = StatusFailed, reasonFailed(p.GetBody()), err.Error()
		} else {
			o.fold(layer)
		}
	}
	deposit := p.GetBody().GetDeposit()
	o.totals(func(t *ledgerpb.Totals) {
		t.Deposits = o.minus(t.GetDeposits(), deposit)
		if forfeit {
			t.Community = o.plus(t.GetCommunity(), deposit)
		}
	})
	if !forfeit {
		o.credit(mesh.AddressOf(p.GetProposer()), deposit)
	}
	o.save(proposalKey(id), p)
	b.emit("proposal", "id", strconv.FormatUint(id, 10), "status", p.GetStatus(), "reason", why)
}

// reasonFailed is what the record says of a change that failed. It is part of the
// state, so it does not change with the words of a refusal; those are in the event.
func reasonFailed(body *ledgerpb.Propose) string {
	switch body.GetChange().(type) {
	case *ledgerpb.Propose_Params:
		return "the parameters do not fit together any more"
	case *ledgerpb.Propose_Model:
		return "the model has changed since"
	case *ledgerpb.Propose_Upgrade:
		return "the planned upgrades have changed since"
	case *ledgerpb.Propose_Spend:
		return "the community pool has too little"
	}
	return ""
}

// decide says what came of a counted vote, why, and whether the deposit is lost.
// Quorum is a part of all weight, the veto of what was cast, the threshold of what
// took sides; beyond the threshold there must be more for it than against it.
func decide(p *ledgerpb.Proposal) (status, reason string, forfeit bool) {
	against := saturate(p.GetNo(), p.GetVeto())
	cast := saturate(saturate(p.GetYes(), p.GetAbstain()), against)
	switch {
	case cast == 0 || !reaches(cast, p.GetQuorumBp(), p.GetWeight()):
		return StatusRejected, reasonQuorum, true
	case p.GetVeto() > 0 && reaches(p.GetVeto(), p.GetVetoBp(), cast):
		return StatusVetoed, "", true
	case p.GetYes() > against && reaches(p.GetYes(), p.GetThresholdBp(), saturate(p.GetYes(), against)):
		return StatusPassed, "", false
	}
	return StatusRejected, "", false
}
