package ledger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/big"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// CheckInvariants says what contradicts itself in a state, by reading all of it. It is
// for tests: no command runs it.
func CheckInvariants(r Reader) error {
	a := &audit{o: newOverlay(r)}
	a.height, a.err = heightOf(a.o)
	a.params()
	a.money()
	a.hosts()
	a.proposals()
	if a.err == nil {
		a.err = *a.o.err
	}
	if a.err != nil {
		return fmt.Errorf("invariants at height %d: %w", a.height, a.err)
	}
	return nil
}

// audit keeps the first contradiction.
type audit struct {
	o      *overlay
	height mesh.Height
	p      *ledgerpb.Params
	now    uint64 // epoch
	err    error
}

func (a *audit) want(ok bool, format string, args ...any) {
	if !ok && a.err == nil {
		a.err = fmt.Errorf(format, args...)
	}
}

// each reads the records of a table one after the other.
func each[T any, P message[T]](a *audit, table byte, fn func(key []byte, record P)) {
	a.o.Iterate(key(table), func(k, v []byte) bool {
		record := P(new(T))
		err := proto.Unmarshal(v, record)
		a.want(err == nil, "record %.80q does not decode: %v", k, err)
		fn(k, record)
		return a.err == nil
	})
}

func (a *audit) params() {
	p, ok := load[ledgerpb.Params](a.o, key(tableParams))
	a.want(ok, "there are no parameters")
	a.p = p
	for _, k := range [][]byte{key(tableParams), key(tablePending)} {
		p, ok := load[ledgerpb.Params](a.o, k)
		if !ok {
			continue
		}
		err := checkParams(p)
		fields := p.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			value, bound := p.ProtoReflect().Get(f).Uint(), bounds[string(f.Name())]
			a.want(value >= bound.least && value <= bound.most, "parameter %s is %d", f.Name(), value)
		}
		a.want(err == nil, "parameters: %v", err)
	}
	epoch, ok := load[ledgerpb.EpochState](a.o, miscKey(miscEpoch))
	a.now = epoch.GetEpoch()
	a.want(ok, "there is no epoch")
	a.want(epoch.GetStart() <= uint64(a.height)+1, "epoch %d starts at height %d", a.now, epoch.GetStart())
}

// sum adds without an end.
type sum struct{ big.Int }

func (s *sum) add(amounts ...uint64) {
	for _, n := range amounts {
		s.Add(&s.Int, new(big.Int).SetUint64(n))
	}
}

func (s *sum) is(n uint64) bool { return s.IsUint64() && s.Uint64() == n }

// money adds up every coin, and what lies in each of the sums.
func (a *audit) money() {
	t, ok := load[ledgerpb.Totals](a.o, miscKey(miscTotals))
	a.want(ok, "there are no totals")
	var all, collateral, vesting, deposits sum
	each(a, tableAccount, func(k []byte, r *ledgerpb.Account) {
		a.want(len(k) == 33, "account %x", k)
		all.add(r.GetBalance())
	})
	all.add(t.GetUnemitted(), t.GetCommunity(), t.GetCollateral(), t.GetEscrow(), t.GetVesting(), t.GetDeposits(), t.GetRuns())
	a.want(all.is(uint64(mesh.MaxSupply)), "there are %s ngonka in all, want %d", all.String(), uint64(mesh.MaxSupply))

	each(a, tableHost, func(_ []byte, r *ledgerpb.Host) { collateral.add(r.GetCollateral()) })
	each(a, tableUnbonding, func(k []byte, r *ledgerpb.Unbonding) {
		a.want(r.GetAmount() > 0, "nothing unbonds in %x", k)
		collateral.add(r.GetAmount())
	})
	a.want(collateral.is(t.GetCollateral()), "collateral is %s, the sum says %d", collateral.String(), t.GetCollateral())

	a.escrows(t.GetEscrow())
	a.runs(t.GetRuns())

	each(a, tableVesting, func(k []byte, r *ledgerpb.Vesting) {
		for _, e := range r.GetEntries() {
			a.want(e.GetReleased() <= e.GetTotal() && e.GetStart() <= e.GetEnd(), "vesting %x: %v", k, e)
			vesting.add(e.GetTotal() - min(e.GetReleased(), e.GetTotal()))
		}
	})
	a.want(vesting.is(t.GetVesting()), "%s vest, the sum says %d", vesting.String(), t.GetVesting())

	each(a, tableProposal, func(_ []byte, r *ledgerpb.Proposal) {
		if r.GetStatus() == StatusVoting {
			deposits.add(r.GetBody().GetDeposit())
		}
	})
	a.want(deposits.is(t.GetDeposits()), "deposits are %s, the sum says %d", deposits.String(), t.GetDeposits())
}

// escrows checks what escrows hold, with what settlements took from them for hosts that
// are not paid yet, and what of it is set aside.
func (a *audit) escrows(total uint64) {
	var all sum
	lanes := make(map[string]*sum) // by escrow
	each(a, tableLane, func(k []byte, r *ledgerpb.LaneState) {
		a.want(len(k) == 65 && r.GetPaid() <= r.GetCap(), "lane %x paid %d of %d", k, r.GetPaid(), r.GetCap())
		id := string(k[1:min(33, len(k))])
		if lanes[id] == nil {
			lanes[id] = new(sum)
		}
		lanes[id].add(r.GetCap() - min(r.GetPaid(), r.GetCap()))
	})
	each(a, tableEscrow, func(k []byte, r *ledgerpb.Escrow) {
		var parts sum
		parts.add(r.GetLanes(), r.GetPool(), r.GetPrevious()-min(r.GetClaimed(), r.GetPrevious()))
		a.want(r.GetClaimed() <= r.GetPrevious() && parts.Cmp(new(big.Int).SetUint64(r.GetAmount())) <= 0, "escrow %x has %d, of which %s are set aside", k, r.GetAmount(), parts.String())
		own := lanes[string(k[1:])]
		a.want(own == nil && r.GetLanes() == 0 || own != nil && own.is(r.GetLanes()), "escrow %x sets %d aside for lanes that have another sum", k, r.GetLanes())
		all.add(r.GetAmount())
	})
	each(a, tableSettlement, func(_ []byte, r *ledgerpb.Settlement) { all.add(r.GetDue()) })
	a.want(all.is(total), "escrows hold %s, the sum says %d", all.String(), total)
}

// runs checks the bonds and rewards of training runs, and their members.
func (a *audit) runs(total uint64) {
	var held sum
	members, leaving := make(map[string]uint32), make(map[string]uint32) // by run
	each(a, tableMember, func(k []byte, r *ledgerpb.Member) {
		a.want(len(k) == 65, "member %x", k)
		id := string(k[1:min(33, len(k))])
		members[id]++
		if r.GetLeft() != 0 {
			leaving[id]++
		}
		held.add(r.GetBond())
	})
	each(a, tableRun, func(k []byte, r *ledgerpb.Run) {
		all, gone := members[string(k[1:])], leaving[string(k[1:])]
		a.want(all == r.GetMembers() && gone == r.GetLeaving() && all <= r.GetMembersMax(),
			"run %x of %d members, %d leaving, has %d and %d", k, r.GetMembers(), r.GetLeaving(), all, gone)
		held.add(r.GetReward())
	})
	a.want(held.is(total), "runs hold %s, the sum says %d", held.String(), total)
}

// hosts checks the validator set and who owns which key.
func (a *audit) hosts() {
	var power sum
	validators, away := uint64(0), uint64(0)
	each(a, tableHost, func(k []byte, r *ledgerpb.Host) {
		a.want(len(k) == 33 && len(r.GetConsensusKey()) == 32 && len(r.GetOwner()) == 32, "host %x with consensus key %x and owner %x", k, r.GetConsensusKey(), r.GetOwner())
		for _, index := range [][]byte{consensusIndex(ConsensusAddressOf(r.GetConsensusKey())), blsIndex(r.GetBlsKey())} {
			of, ok := load[ledgerpb.ConsensusKey](a.o, index)
			a.want(ok && bytes.Equal(of.GetHost(), k[1:]), "a key of host %x belongs to %x", k, of.GetHost())
			a.want(len(of.GetBlsKey()) == 0 || bytes.Equal(of.GetBlsKey(), r.GetBlsKey()), "host %x proposes with another BLS key than it registered last", k)
		}
		power.add(r.GetPower())
		if r.GetPower() > 0 {
			validators++
			if r.GetTombstoned() || r.GetJailedUntil() != 0 {
				away++
			}
		}
	})
	each(a, tableKey, func(k []byte, r *ledgerpb.ConsensusKey) {
		a.want((len(k) == 21 || len(k) == 49) && a.o.Get(key(tableHost, r.GetHost())) != nil, "key %x belongs to %x, which is no host", k, r.GetHost())
	})
	each(a, tableRotation, func(k []byte, r *ledgerpb.RegisterHost) {
		for _, index := range [][]byte{consensusIndex(ConsensusAddressOf(r.GetConsensusKey())), blsIndex(r.GetBlsKey())} {
			of, ok := load[ledgerpb.ConsensusKey](a.o, index)
			a.want(ok && len(k) == 33 && bytes.Equal(of.GetHost(), k[1:]), "a key that host %x will have belongs to %x", k, of.GetHost())
		}
	})
	// A chain keeps its last validator, whatever it did.
	a.want(away == 0 || validators == 1, "%d of %d validators are in jail", away, validators)
	// CometBFT stops at an eighth of what 63 bits hold.
	a.want(power.IsUint64() && power.Uint64() <= 1<<60-1, "the validators' power is %s", power.String())
	a.want(validators <= bounds["max_validators"].most, "there are %d validators", validators)
	a.caps()
	a.want(validators == uint64(len(a.o.validators())), "of %d validators only %d were chosen", validators, len(a.o.validators()))
}

// caps checks the powers that were chosen last, if that was under the parameters of now.
func (a *audit) caps() {
	chosen, ok := load[ledgerpb.Validators](a.o, miscKey(miscChosen))
	if _, open := load[ledgerpb.EpochResult](a.o, miscKey(miscEnded)); !ok || open {
		return
	}
	n := uint64(len(chosen.GetValidators()))
	most := powerCap(a.p.GetCapPercent(), int(n))
	// A set that moved all that may move in an epoch can be on its way to a lower cap.
	limited := chosen.GetMoved()+n >= totalPower/3
	total := uint64(0)
	for _, v := range chosen.GetValidators() {
		total += v.GetPower()
		a.want(v.GetPower() <= most || limited, "validator %x has power %d, at most %d", v.GetHost(), v.GetPower(), most)
	}
	a.want(total == totalPower, "the validators' power was %d when they were chosen, want %d", total, uint64(totalPower))
}

// proposals checks that every open vote has an end and every ballot a vote.
func (a *audit) proposals() {
	next := uint64(1)
	if b := a.o.Get(miscKey(miscProposal)); len(b) == 8 {
		next = binary.BigEndian.Uint64(b)
	}
	open, ending := 0, 0
	each(a, tableProposal, func(k []byte, r *ledgerpb.Proposal) {
		a.want(bytes.Equal(k, proposalKey(r.GetId())) && r.GetId() >= 1 && r.GetId() < next, "proposal %d lies at %x", r.GetId(), k)
		switch r.GetStatus() {
		case StatusVoting:
			open++
			a.want(r.GetEnds() > uint64(a.height), "the vote on proposal %d is open past its end", r.GetId())
		case StatusPassed, StatusRejected, StatusVetoed, StatusFailed:
			a.want(r.GetEnds() <= uint64(a.height), "the vote on proposal %d ended before its end", r.GetId())
		default:
			a.want(false, "proposal %d is %q", r.GetId(), r.GetStatus())
		}
	})
	a.o.Iterate(key(tableEnding), func(k, ids []byte) bool {
		a.want(len(k) == 9 && len(ids)%8 == 0 && len(ids) <= 8*maxEnding, "the votes that end at %x are %x", k, ids)
		for ; len(ids) >= 8; ids = ids[8:] {
			p, ok := load[ledgerpb.Proposal](a.o, proposalKey(binary.BigEndian.Uint64(ids)))
			a.want(ok && p.GetStatus() == StatusVoting && bytes.Equal(k, endingKey(p.GetEnds())), "proposal %x does not end at %x", ids[:8], k)
			ending++
		}
		return a.err == nil
	})
	a.want(open == ending, "%d votes are open, %d have an end", open, ending)
	each(a, tableBallot, func(k []byte, r *ledgerpb.Ballot) {
		a.want(len(k) == 41 && a.o.Get(key(tableProposal, k[1:min(9, len(k))])) != nil, "ballot %x is of no proposal", k)
		a.want(r.GetOption() >= ledgerpb.Option_YES && r.GetOption() <= ledgerpb.Option_VETO, "ballot %x is %d", k, r.GetOption())
	})
	each(a, tableDelegation, func(k []byte, r *ledgerpb.Delegation) {
		a.want(len(k) == 65 && !bytes.Equal(k[1:33], r.GetTo()) && a.o.Get(key(tableHost, r.GetTo())) != nil, "delegation %x to %x", k, r.GetTo())
	})
	each(a, tableModel, func(k []byte, r *ledgerpb.Model) {
		a.want((r.GetCoefficient() == 0) == (r.GetRetired() != 0) && r.GetCoefficient() <= maxCoefficient, "model %x has coefficient %d, retired in %d", k, r.GetCoefficient(), r.GetRetired())
		a.want(coefficientAt(r, 1<<63) == r.GetCoefficient(), "model %x has coefficient %d, its steps say %d", k, r.GetCoefficient(), coefficientAt(r, 1<<63))
	})
	a.o.Iterate(upgradeKey(), func(k, v []byte) bool {
		u := new(ledgerpb.Upgrade)
		err := proto.Unmarshal(v, u)
		planned := len(k) == len(upgradeKey())
		a.want(err == nil && planned == (u.GetHeight() > uint64(a.height)), "upgrade %q at %d", u.GetName(), u.GetHeight())
		a.want(planned || bytes.Equal(k, upgradedKey(u.GetName())), "upgrade %q lies at %x", u.GetName(), k)
		return a.err == nil
	})
}
