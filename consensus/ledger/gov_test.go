package ledger

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

func TestDecide(t *testing.T) {
	for _, test := range []struct {
		name                         string
		yes, no, abstain, veto, all  uint64
		quorum, threshold, vetoShare uint64
		status                       string
		forfeit                      bool
	}{
		{"nobody", 0, 0, 0, 0, 100, 1, 5000, 3334, StatusRejected, true},
		{"nobody of nobody", 0, 0, 0, 0, 0, 1, 5000, 3334, StatusRejected, true},
		{"below the quorum", 33, 0, 0, 0, 100, 3334, 5000, 3334, StatusRejected, true},
		{"at the quorum", 3334, 0, 0, 0, 10000, 3334, 5000, 3334, StatusPassed, false},
		{"half", 50, 50, 0, 0, 100, 3334, 5000, 3334, StatusRejected, false},
		{"one more than half", 51, 50, 0, 0, 101, 3334, 5000, 3334, StatusPassed, false},
		{"below two thirds", 66, 34, 0, 0, 100, 1, 6667, 3334, StatusRejected, false},
		{"two thirds", 6667, 3333, 0, 0, 10000, 1, 6667, 3334, StatusPassed, false},
		{"all", 10, 0, 5, 0, 100, 1, 10000, 3334, StatusPassed, false},
		{"not all", 1000, 1, 0, 0, 1001, 1, 10000, 3334, StatusRejected, false},
		{"abstentions alone", 0, 0, 90, 0, 100, 3334, 5000, 3334, StatusRejected, false},
		{"abstentions do not hinder", 2, 1, 90, 0, 100, 3334, 5000, 3334, StatusPassed, false},
		{"veto counts against", 50, 30, 0, 30, 110, 3334, 5000, 3334, StatusRejected, false},
		{"a veto below its share", 67, 0, 0, 33, 100, 3334, 5000, 3334, StatusPassed, false},
		{"a veto at its share", 6666, 0, 0, 3334, 10000, 3334, 5000, 3334, StatusVetoed, true},
		{"a veto without a quorum", 0, 0, 0, 10, 100, 3334, 5000, 3334, StatusRejected, true},
		{"sums without end", math.MaxUint64, math.MaxUint64, math.MaxUint64, 0, math.MaxUint64, 10000, 5000, 3334, StatusRejected, false},
		{"large numbers", math.MaxUint64 / 2, math.MaxUint64/2 - 1, 0, 0, math.MaxUint64, 9999, 5000, 3334, StatusPassed, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, _, forfeit := decide(&ledgerpb.Proposal{
				Yes: test.yes, No: test.no, Abstain: test.abstain, Veto: test.veto, Weight: test.all,
				QuorumBp: test.quorum, ThresholdBp: test.threshold, VetoBp: test.vetoShare,
			})
			if status != test.status || forfeit != test.forfeit {
				t.Errorf("%s, deposit lost: %t; want %s, %t", status, forfeit, test.status, test.forfeit)
			}
		})
	}
}

// splitWork is one host's work, whatever the state says.
type splitWork struct {
	genesisWork
	parts []ModelWeight
}

func (w splitWork) ByModel(Reader, mesh.Epoch, mesh.Address) []ModelWeight { return w.parts }

func TestParts(t *testing.T) {
	for _, test := range []struct {
		name   string
		weight uint64
		work   []uint64
		want   []uint64
	}{
		{"no model", 7, nil, []uint64{7}},
		{"one", 7, []uint64{3}, []uint64{7}},
		{"rounded", 10, []uint64{1, 1, 1}, []uint64{3, 3, 4}},
		{"nothing left for some", 1, []uint64{5, 5}, []uint64{0, 1}},
		{"large", math.MaxUint64, []uint64{math.MaxUint64 / 2, math.MaxUint64 / 2}, []uint64{math.MaxUint64 / 2, math.MaxUint64/2 + 1}},
		{"without end", 10, []uint64{math.MaxUint64, math.MaxUint64}, []uint64{10, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var w splitWork
			for n, weight := range test.work {
				w.parts = append(w.parts, ModelWeight{testModel(n), weight})
			}
			e := &electorate{m: New(Config{Work: w}), o: newOverlay(empty{})}
			var got []uint64
			for _, part := range e.parts(Weight{Weight: test.weight}) {
				got = append(got, part.Weight)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 { // no weight is lost, none is made
		var w splitWork
		for n := range 1 + rng.IntN(6) {
			w.parts = append(w.parts, ModelWeight{testModel(n), rng.Uint64() >> rng.IntN(64)})
		}
		weight, sum := rng.Uint64()>>rng.IntN(64), uint64(0)
		for _, part := range (&electorate{m: New(Config{Work: w}), o: newOverlay(empty{})}).parts(Weight{Weight: weight}) {
			sum += part.Weight
		}
		if sum != weight {
			t.Fatalf("%v of %d are %d", w.parts, weight, sum)
		}
	}
}

func TestGenesisWorkByModel(t *testing.T) {
	a := addressOf(testKey(0))
	s := prepare(t, quickParams(), []hostOfTest{{a, []GenesisWork{{testModel(0), 2500}, {testModel(9), 100}, {testModel(1), math.MaxUint64}}}}, nil)
	got := genesisWork{}.ByModel(s, 0, a)
	// Model 1 weighs 500 for 1000; a model that is not approved weighs nothing.
	want := []ModelWeight{{testModel(0), 2500}, {testModel(1), math.MaxUint64 / 2}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCoefficientAt(t *testing.T) {
	m := &ledgerpb.Model{Coefficient: 100, Since: 2}
	want := func(epoch, coefficient uint64) {
		t.Helper()
		if got := coefficientAt(m, epoch); got != coefficient {
			t.Errorf("in epoch %d it is %d, want %d", epoch, got, coefficient)
		}
	}
	want(1, 0)
	want(2, 100)
	setCoefficient(m, 5, 110)
	setCoefficient(m, 5, 120) // the last of an epoch counts
	want(1, 0)
	want(4, 100)
	want(5, 120)
	for epoch := uint64(6); epoch < 20; epoch++ {
		setCoefficient(m, epoch, epoch*10)
		for back := range uint64(keptSteps - 1) {
			if epoch-back >= 6 {
				want(epoch-back, (epoch-back)*10)
			}
		}
	}
	if len(m.GetSteps()) != keptSteps || m.GetCoefficient() != 190 {
		t.Errorf("%d steps, coefficient %d", len(m.GetSteps()), m.GetCoefficient())
	}
}

func TestCheckWords(t *testing.T) {
	for _, test := range []struct {
		text, words string
	}{
		{"", "want 1 to 20"},
		{"plain", ""},
		{"größer 模型 👍", ""},
		{strings.Repeat("x", 21), "want 1 to 20"},
		{"two\nlines", "U+000A"},
		{"bell\a", "U+0007"},
		{"del\x7f", "U+007F"},
		{"turn\u202egnp", "U+202E"},
		{"turn\u2067gnp", "U+2067"},
		{"bom\ufeff", "U+FEFF"},
		{"c1\u0085", "U+0085"},
		{"bad\xff", "not UTF-8"},
		{"surrogate\xed\xa0\x80", "not UTF-8"},
	} {
		refusedWith(t, checkWords("title", test.text, 1, 20, ""), test.words)
	}
	refusedWith(t, checkWords("text", "two\n\tlines", 0, 20, "\n\t"), "")
}

// TestManyVotesEnd shows that only so many votes can end in a block, and that they all
// are counted then.
func TestManyVotesEnd(t *testing.T) {
	a := addressOf(testKey(0))
	s := prepare(t, quickParams(), []hostOfTest{{a, []GenesisWork{{testModel(0), 100}}}}, nil)
	m := testMachine()
	b := Block{Height: 1, Txs: [][]byte{beaconTx(t, 1, a)}}
	for n := range uint64(maxEnding + 2) {
		b.Txs = append(b.Txs, fakeSign(t, &ledgerpb.Tx{Sender: a[:], Nonce: n, Fee: 10_000, Action: &ledgerpb.Tx_Propose{
			Propose: &ledgerpb.Propose{Title: "words", Deposit: 10e9},
		}}))
	}
	out, err := m.Apply(s, b)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, out.Changes)
	for i, r := range out.Results[1:] {
		want := ""
		if i >= maxEnding {
			want = "8 votes begin in this block already"
		}
		refusedWith(t, r.Err, want)
	}
	if len(out.Events) != maxEnding {
		t.Errorf("%d events, want one for each proposal that was opened", len(out.Events))
	}
	for height := mesh.Height(2); height <= 1+12; height++ {
		if out, err = m.Apply(s, Block{Height: height, Txs: [][]byte{beaconTx(t, height, a)}}); err != nil {
			t.Fatal(err)
		}
		s.write(t, out.Changes)
	}
	if err := CheckInvariants(s); err != nil {
		t.Error(err)
	}
	all, err := NewView(s).Proposals()
	if err != nil || len(all) != maxEnding {
		t.Fatalf("%d proposals, %v", len(all), err)
	}
	for _, p := range all {
		if p.GetStatus() != StatusRejected {
			t.Errorf("proposal %d is %s", p.GetId(), p.GetStatus())
		}
	}
}

// TestLastRewardsVote shows whose weights a vote takes: those of the last epoch that
// was closed, and not the work of the genesis file once there is one.
func TestLastRewardsVote(t *testing.T) {
	a, b := addressOf(testKey(0)), addressOf(testKey(1))
	s := prepare(t, quickParams(), []hostOfTest{{a, []GenesisWork{{testModel(0), 100}}}, {b, nil}}, nil)
	for _, test := range []struct {
		rewards uint64 // of which epoch there are some
		epoch   uint64 // it is
		want    uint64
	}{{99, 0, 100}, {99, 1, 100}, {0, 1, 77}, {0, 2, 77}, {4, 5, 77}, {3, 5, 77}, {2, 5, 100}} {
		o := newOverlay(s)
		o.save(rewardsKey(test.rewards), &ledgerpb.Rewards{Rewards: []*ledgerpb.Reward{{Host: b[:], Weight: 77}, {Host: a[:]}}})
		e := testMachine().electorate(o, &blockState{epoch: &ledgerpb.EpochState{Epoch: test.epoch}})
		if e.total != test.want || len(e.weights) != 1 {
			t.Errorf("rewards of epoch %d, in epoch %d: %v, want %d", test.rewards, test.epoch, e.weights, test.want)
		}
	}
}

// TestMigrationFails shows that a migration that finds a damaged state stops the node.
func TestMigrationFails(t *testing.T) {
	a := addressOf(testKey(0))
	s := prepare(t, quickParams(), []hostOfTest{{address: a}}, nil)
	o := newOverlay(s)
	o.save(upgradeKey(), &ledgerpb.Upgrade{Name: "v1", Height: 1})
	s.write(t, o.changes())
	want := errors.New("no such record")
	m := New(Config{Upgrades: map[string]Migration{"v1": func(st Store) error {
		st.Set([]byte("tx"), nil)
		st.Delete([]byte("ty"))
		if b := st.Get([]byte("tx")); b == nil || st.Get([]byte("ty")) != nil {
			t.Error("a migration does not see what it wrote")
		}
		return want
	}}})
	if _, err := m.Apply(s, Block{Height: 1}); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

// TestUnbondingOutlastsTrust: neither a proposal nor a vote that ends later lets
// collateral be gone while light nodes believe what it stands behind.
func TestUnbondingOutlastsTrust(t *testing.T) {
	run := func(s *govStory, text string) string {
		s.said = nil
		s.run(strings.Fields(text))
		return strings.Join(s.said, "; ")
	}
	trusting := func(blocks uint64) *govStory {
		s := newGovStory(t) // unbonding_epochs 2, epoch_blocks 100, settle_blocks 50: slashable for 50 blocks
		s.m.cfg.Trust = blocks
		return s
	}
	const why = "light nodes trust"
	s := trusting(40)
	for _, refused := range []string{"unbonding_epochs=1", "settle_blocks=60", "epoch_blocks=90", "epoch_blocks=60 unbonding_epochs=4", "settle_blocks=61 unbonding_epochs=4"} {
		if said := run(s, "joe propose params "+refused); !strings.Contains(said, why) {
			t.Errorf("%s: %q", refused, said)
		}
	}
	for _, passes := range []string{"settle_blocks=59", "epoch_blocks=91", "unbonding_epochs=3"} {
		if said := run(s, "joe propose params "+passes); strings.Contains(said, "refused") {
			t.Errorf("%s: %q", passes, said)
		}
	}
	// Each of the first two is well, both together are not: the second fails at its end.
	for _, n := range []string{"1", "2"} {
		run(s, "ann vote "+n+" yes")
	}
	if said := run(s, "to 30"); !strings.Contains(said, "id=1 status=passed") || !strings.Contains(said, "id=2 status=failed") || !strings.Contains(said, why) {
		t.Errorf("two votes that together are too much: %q", said)
	}
	// A network that began with less may change what it likes, but for that.
	s = trusting(1000)
	for change, refused := range map[string]bool{"fee_per_byte=7": false, "unbonding_epochs=3": false, "settle_blocks=40": false, "settle_blocks=51": true, "unbonding_epochs=1": true} {
		if said := run(s, "joe propose params "+change); strings.Contains(said, why) != refused {
			t.Errorf("%s: %q", change, said)
		}
	}
}

// TestEmissionFirst: what the first epoch emits can be voted on while it can still be
// changed.
func TestEmissionFirst(t *testing.T) {
	for epoch, refused := range map[string]bool{"0": false, "1": true} {
		s := newGovStory(t)
		s.run([]string{"epoch", epoch})
		s.run(strings.Fields("joe propose params emission_first=1000"))
		if said := strings.Join(s.said, "; "); strings.Contains(said, "which is over") != refused {
			t.Errorf("in epoch %s: %q", epoch, said)
		}
	}
}

// TestUpgradeMovesKeys: the beacon of the block of an upgrade is judged by what its
// migration leaves, and so is what is swept and paid in that block.
func TestUpgradeMovesKeys(t *testing.T) {
	w := newWorld(t, worldParams(), []string{"ann"})
	w.blocks(2)
	o := newOverlay(w.state)
	o.save(upgradeKey(), &ledgerpb.Upgrade{Name: "v1", Height: 3})
	w.state.write(t, o.changes())
	before, after := w.newKeys("ann", 0), w.newKeys("ann", 1)
	index := consensusIndex(before.address())
	cfg := w.m.cfg
	cfg.Upgrades = map[string]Migration{"v1": func(st Store) error {
		b, err := encode(&ledgerpb.ConsensusKey{Host: addressBytes(w.address("ann")), BlsKey: after.bls.Public().Bytes()})
		st.Set(index, b)
		st.Set([]byte("t-new"), []byte{1})
		return err
	}}
	w.m = New(cfg)
	b := w.next()
	b.Txs[0] = w.beacon(before, 3)
	if _, err := w.m.Accepts(w.state, b); err == nil {
		t.Error("a beacon by the key of before the upgrade is accepted")
	}
	b.Txs[0] = w.beacon(&hostKeys{"ann", before.consensus, after.bls}, 3)
	if _, err := w.m.Accepts(w.state, b); err != nil {
		t.Errorf("the beacon of the key that the upgrade leaves: %v", err)
	}
	o = newOverlay(w.state)
	if err := w.m.upgrade(o, &blockState{height: 3}); err != nil {
		t.Fatal(err)
	}
	o.set([]byte("t-later"), []byte{1})
	if got := keysOf(o.layer().layer().committed(), []byte("t-"), 9); len(got) != 1 || string(got[0]) != "t-new" {
		t.Errorf("the state before the block, after its upgrade, has %q", got)
	}
}

// BenchmarkVotesEnd counts the votes that can end in one block, of 1,000 hosts, each
// with work on two models that it delegates apart.
func BenchmarkVotesEnd(b *testing.B) {
	var hosts []hostOfTest
	for n := range 1000 {
		a := mesh.Address(mesh.HashOf([]byte("host of a benchmark"), be64(uint64(n))))
		hosts = append(hosts, hostOfTest{a, []GenesisWork{{testModel(0), 100}, {testModel(1), 300}}})
	}
	m, o := testMachine(), newOverlay(empty{})
	o.save(key(tableParams), quickParams())
	rewards := new(ledgerpb.Rewards)
	for n, h := range hosts {
		to := hosts[n%100].address
		o.save(hostKey(h.address), &ledgerpb.Host{Owner: h.address[:]})
		o.save(key(tableWork, h.address[:]), &ledgerpb.CommitWork{Work: []*ledgerpb.Work{
			{Model: h.work[0].Model[:], Count: 100}, {Model: h.work[1].Model[:], Count: 300},
		}})
		o.save(delegationKey(h.address, testModel(0)), &ledgerpb.Delegation{To: to[:]})
		o.save(delegationKey(h.address, mesh.ModelID{}), &ledgerpb.Delegation{To: to[:]})
		rewards.Rewards = append(rewards.Rewards, &ledgerpb.Reward{Host: h.address[:], Weight: 400})
	}
	for n := range 2 {
		o.save(modelKey(testModel(n)), &ledgerpb.Model{Name: "model", Coefficient: 1000})
	}
	o.save(rewardsKey(0), rewards)
	for id := range uint64(maxEnding) {
		for _, h := range hosts[:100] {
			o.save(ballotKey(id, h.address), &ledgerpb.Ballot{Option: ledgerpb.Option_YES})
		}
	}
	s := newMemState()
	s.write(b, o.changes())
	for b.Loop() {
		e := m.electorate(newOverlay(s), &blockState{epoch: &ledgerpb.EpochState{Epoch: 1}})
		for id := range uint64(maxEnding) {
			p := &ledgerpb.Proposal{Id: id}
			if e.count(p); p.GetYes() != 400_000 {
				b.Fatalf("%d for it", p.GetYes())
			}
		}
	}
}
