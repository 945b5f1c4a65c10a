package ledger

import (
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// TestReleasedAt compares with exact fractions: an even part by each epoch, rounded down,
// all at the end, and never less than before.
func TestReleasedAt(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 30))
	for range 2000 {
		start := rng.Uint64N(1000)
		e := &ledgerpb.VestingEntry{Start: start, End: start + 1 + rng.Uint64N(10_000), Total: 1 + rng.Uint64N(uint64(mesh.MaxSupply))}
		if rng.IntN(20) == 0 {
			e.Total, e.End = uint64(mesh.MaxSupply), 1<<64-1
		}
		for range 8 {
			epoch := rng.Uint64N(e.GetEnd() - start/2 + 5)
			want := new(big.Int).SetUint64(e.GetTotal())
			switch {
			case epoch <= start:
				want.SetUint64(0)
			case epoch < e.GetEnd():
				want.Mul(want, new(big.Int).SetUint64(epoch-start)).Quo(want, new(big.Int).SetUint64(e.GetEnd()-start))
			}
			got := releasedAt(e, epoch)
			if got != want.Uint64() {
				t.Fatalf("%v at %d: %d, want %s", e, epoch, got, want)
			}
			if next := releasedAt(e, epoch+1); next < got || next > e.GetTotal() {
				t.Fatalf("%v at %d: %d after %d", e, epoch, next, got)
			}
		}
	}
}

// TestVestingPaysAll: whatever is put in, the same comes out, each epoch what is free, and
// an account has an entry for each epoch that vests at most.
func TestVestingPaysAll(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 30))
	o, m := newOverlay(empty{}), testMachine()
	a := hostOf("owner", 1)
	given, longest := uint64(0), uint64(0)
	for epoch := uint64(1); epoch < 600; epoch++ {
		if epoch < 400 {
			for range 3 { // hosts of one owner
				n := 1 + rng.Uint64N(1000e9)
				o.vest(a, &ledgerpb.VestingEntry{Start: epoch, End: epoch + 180, Total: n})
				given += n
			}
			o.vest(a, &ledgerpb.VestingEntry{Start: epoch, End: epoch + 180})
		}
		m.releaseVesting(o, epoch)
		v, _ := load[ledgerpb.Vesting](o, vestingKey(a))
		longest = max(longest, uint64(len(v.GetEntries())))
		var left uint64
		for _, e := range v.GetEntries() {
			left += e.GetTotal() - e.GetReleased()
		}
		totals, _ := load[ledgerpb.Totals](o, miscKey(miscTotals))
		if left != totals.GetVesting() || o.account(a).GetBalance()+left != given {
			t.Fatalf("epoch %d: %d vest, the sum says %d, %d paid of %d", epoch, left, totals.GetVesting(), o.account(a).GetBalance(), given)
		}
		again := newOverlay(o)
		m.releaseVesting(again, epoch)
		if again.account(a).GetBalance() != o.account(a).GetBalance() {
			t.Fatalf("epoch %d pays twice", epoch)
		}
	}
	if o.account(a).GetBalance() != given || o.Get(vestingKey(a)) != nil {
		t.Errorf("%d paid of %d", o.account(a).GetBalance(), given)
	}
	if longest != 180 {
		t.Errorf("%d entries, want 180", longest)
	}
	if *o.err != nil {
		t.Error(*o.err)
	}
}

// TestTeamVests: what the genesis gives over time is locked until it begins, and is paid
// in even parts from then on.
func TestTeamVests(t *testing.T) {
	rest := func(group string, less mesh.Amount) Allocation {
		return Allocation{Address: hostOf("treasury", 0), Amount: (Share(group) - less).String(), Group: group}
	}
	team := hostOf("team", 0)
	m := New(Config{Network: testNetwork})
	o := newOverlay(empty{})
	if err := allocate(o, []Allocation{
		{Address: team, Amount: Share(GroupTeam).String(), Group: GroupTeam, VestStart: 3, VestEpochs: 7},
		rest(GroupEarly, 0), rest(GroupLiquidity, 0),
	}); err != nil {
		t.Fatal(err)
	}
	for epoch := uint64(1); epoch <= 12; epoch++ {
		m.releaseVesting(o, epoch)
		want := new(big.Int).SetUint64(uint64(Share(GroupTeam)))
		want.Mul(want, new(big.Int).SetUint64(min(7, max(3, epoch)-3))).Quo(want, big.NewInt(7))
		if got := o.account(team).GetBalance(); got != want.Uint64() {
			t.Errorf("epoch %d: %d, want %s", epoch, got, want)
		}
	}
	if *o.err != nil {
		t.Error(*o.err)
	}
	if err := allocate(newOverlay(empty{}), []Allocation{{Address: team, Amount: "1", Group: GroupTeam, VestStart: 1<<64 - 1, VestEpochs: 1}}); err == nil {
		t.Error("vesting without an end is taken")
	}
}

// stateValue is what the state takes as a value, MaxValue of package proof.
const stateValue = 1 << 20

// TestRecordsFit: however many hosts there are and whatever they earn, what an epoch
// writes in one record fits into the state. Were it not so, the chain would end there.
func TestRecordsFit(t *testing.T) {
	const hosts = maxListed + 500
	w := newSetWorld(t, hosts, DefaultParams())
	var rewards []*ledgerpb.Reward
	for i, a := range w.all {
		h := w.host(a)
		h.Collateral = uint64(1 + i)
		w.o.save(hostKey(a), h)
		rewards = append(rewards, &ledgerpb.Reward{Host: a[:], Weight: 1<<64 - 1 - uint64(i), Power: totalPower, Reward: 1 << 60, Paid: 1<<60 + uint64(i)})
	}
	for i, j := 0, len(rewards)-1; i < j; i, j = i+1, j-1 {
		rewards[i], rewards[j] = rewards[j], rewards[i]
	}
	kept := listed(rewards)
	b, err := encode(&ledgerpb.Rewards{Rewards: kept})
	if err != nil || len(kept) != maxListed || len(b) > stateValue {
		t.Errorf("%d rewards of %d bytes: %v", len(kept), len(b), err)
	}
	for i, r := range kept {
		if i > 0 && string(kept[i-1].GetHost()) >= string(r.GetHost()) {
			t.Fatal("rewards are not ascending")
		}
		if 1<<64-1-r.GetWeight() >= maxListed {
			t.Fatal("one of the smallest weights is kept")
		}
	}
	w.o.recordHosts(5, new(ledgerpb.Params))
	set := w.o.hostSet(5)
	if set.len() != maxListed || len(set) > stateValue {
		t.Fatalf("%d hosts in %d bytes", set.len(), len(set))
	}
	for i := range set.len() {
		if i > 0 && string(set.at(i-1)) >= string(set.at(i)) {
			t.Fatal("hosts are not ascending")
		}
		if w.host(mesh.Address(set.at(i))).GetCollateral() <= hosts-maxListed {
			t.Fatal("one with the least collateral is in it")
		}
	}
	longest := new(ledgerpb.Vesting)
	for n := range bounds["vesting_epochs"].most {
		longest.Entries = append(longest.Entries, &ledgerpb.VestingEntry{Start: 1<<32 + n, End: 1<<32 + n + 10_000, Total: 1 << 60, Released: 1 << 59})
	}
	if n := proto.Size(longest); n > stateValue {
		t.Errorf("vesting over as many epochs as may be has %d bytes", n)
	}
}

// TestLeastCollateral: implicit lanes go to hosts with host_collateral and more.
func TestLeastCollateral(t *testing.T) {
	params := worldParams()
	params["host_collateral"] = 10e9
	w := newWorld(t, params, []string{"ann", "bob"}, "dan", "eve")
	for name, amount := range map[string]uint64{"dan": 10e9 - 1, "eve": 10e9} {
		a := w.address(name)
		w.block(w.tx(name, nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: w.registration(testNetwork, w.newKeys(name, 0))}}))
		w.done()
		w.block(w.tx(name, nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_Stake{Stake: &ledgerpb.Stake{Host: a[:], Amount: amount}}}))
		w.done()
	}
	w.blocks(6)
	set := newOverlay(w.state).hostSet(w.epoch().GetEpoch())
	var got []string
	for i := range set.len() {
		for name, a := range w.hosts {
			if a == mesh.Address(set.at(i)) {
				got = append(got, name)
			}
		}
	}
	slices.Sort(got)
	if want := []string{"ann", "bob", "eve"}; !slices.Equal(got, want) {
		t.Errorf("the epoch's hosts are %v, want %v", got, want)
	}
}

// TestWeightsBeyondSums: weights as large as a vote can make them do not end the chain,
// and share out no more than there is.
func TestWeightsBeyondSums(t *testing.T) {
	params := worldParams()
	params["collateral_per_weight"] = 0 // so that all of it counts
	w := newWorld(t, params, []string{"ann", "bob", "cat"})
	for _, name := range []string{"ann", "bob"} {
		w.work[w.address(name)] = 1<<64 - 1
	}
	w.closed()
	w.closed()
	r, err := NewView(w.state).Rewards(1)
	if err != nil || len(r.GetRewards()) != 3 {
		t.Fatalf("%v: %v", r, err)
	}
	first := uint64(190_000e9)
	reward, _ := new(big.Int).SetString("18437983950968399159", 10)
	reward.Mul(reward, new(big.Int).SetUint64(first)).Rsh(reward, 64)
	var sum uint64
	for _, one := range r.GetRewards() {
		sum += one.GetReward()
	}
	if want := reward.Uint64(); sum > want || sum+3 < want {
		t.Errorf("%d emitted, want %d", sum, want)
	}
}
