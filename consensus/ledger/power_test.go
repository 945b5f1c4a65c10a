package ledger

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// setOfTest chooses sets one after the other, as chooseSet does.
type setOfTest struct {
	most    int
	percent uint64
	set     map[mesh.Address]uint64
}

// voter is a host before an election.
type voter struct {
	host   mesh.Address
	weight uint64
	out    bool
}

func hostOf(kind string, n int) mesh.Address {
	return mesh.Address(mesh.HashOf([]byte(kind), be64(uint64(n))))
}

// elect chooses the next set and returns what went over to others, and of that by force.
// It checks what holds of every set.
func (e *setOfTest) elect(t testing.TB, voters []voter) (moved, forced uint64, ok bool) {
	t.Helper()
	byHost := make(map[mesh.Address]*member)
	for a, power := range e.set {
		byHost[a] = &member{host: a, old: power}
	}
	for _, v := range voters {
		m := byHost[v.host]
		if m == nil {
			m = &member{host: v.host}
			byHost[v.host] = m
		}
		m.weight, m.out = v.weight, v.out
	}
	members := slices.SortedFunc(maps.Values(byHost), func(a, b *member) int { return bytes.Compare(a.host[:], b.host[:]) })
	before := e.set
	if !choose(members, e.most, e.percent) {
		return 0, 0, false
	}
	e.set = make(map[mesh.Address]uint64)
	total, highest := uint64(0), uint64(0)
	for _, m := range members {
		if m.out && m.power > 0 {
			t.Fatalf("%s must go and has %d", m.host.Short(), m.power)
		}
		if m.out {
			forced += m.old
		}
		moved += m.old - min(m.old, m.power)
		if m.power > 0 {
			e.set[m.host] = m.power
			total += m.power
			highest = max(highest, m.old)
		}
	}
	if total != totalPower {
		t.Fatalf("the power is %d in all", total)
	}
	if len(before) > 0 && moved > max(totalPower/3, forced) {
		t.Fatalf("%d changed hands, %d by force", moved, forced)
	}
	for _, m := range members {
		if limit := powerCap(e.percent, len(e.set)); m.power > max(limit, m.old) {
			t.Fatalf("%s has %d of %d validators, it had %d; the cap is %d", m.host.Short(), m.power, len(e.set), m.old, limit)
		}
	}
	return moved, forced, true
}

// TestHundredValidatorsThatChange is bar 10: sets of up to 100 over 300 epochs, with
// weights, hosts and punishments drawn anew for each. elect checks each of them.
func TestHundredValidatorsThatChange(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 10))
		pool := 100 + 30*int(seed)
		e := &setOfTest{most: 100, percent: 10}
		var most, moves uint64
		for epoch := range 300 {
			var voters []voter
			for n := range pool {
				v := voter{host: hostOf("host", n), out: rng.IntN(50) == 0}
				if rng.IntN(4) > 0 {
					v.weight = 1 + rng.Uint64N(1000)
				}
				switch rng.IntN(40) {
				case 0:
					v.weight *= 1_000_000
				case 1:
					v.weight = 1 + rng.Uint64()>>1
				}
				voters = append(voters, v)
			}
			moved, _, _ := e.elect(t, voters)
			if len(e.set) > 100 || len(e.set) < 50 {
				t.Fatalf("seed %d, epoch %d: %d validators", seed, epoch, len(e.set))
			}
			for a, power := range e.set {
				if power > totalPower/10 {
					t.Fatalf("seed %d, epoch %d: %s has %d", seed, epoch, a.Short(), power)
				}
			}
			if epoch > 0 {
				most, moves = max(most, moved), moves+moved
			}
		}
		t.Logf("%d hosts: at most %.1f %% change hands, %.1f %% on average", pool, float64(most)/totalPower*100, float64(moves)/299/totalPower*100)
	}
}

// TestSmallSetsThatChange is the same with few validators and caps that bind.
func TestSmallSetsThatChange(t *testing.T) {
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 11))
		e := &setOfTest{most: 1 + rng.IntN(8), percent: 1 + rng.Uint64N(100)}
		for range 60 {
			if rng.IntN(10) == 0 {
				e.most = 1 + rng.IntN(8) // by vote
			}
			var voters []voter
			for n := range rng.IntN(12) {
				voters = append(voters, voter{hostOf("host", n), rng.Uint64N(1 << rng.IntN(40)), rng.IntN(8) == 0})
			}
			if _, _, ok := e.elect(t, voters); ok && len(e.set) == 0 {
				t.Fatalf("seed %d: nobody is left", seed)
			}
		}
	}
}

// TestTakeOver: others take every place from those who are in. However few places there
// are, they have them in the end, and no epoch moves more than a third.
func TestTakeOver(t *testing.T) {
	for _, most := range []int{1, 2, 3, 4, 10, 100, 150} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			var first, second []voter
			for n := range most {
				first = append(first, voter{host: hostOf("first", n), weight: uint64(1000 + n)})
				second = append(second, voter{host: hostOf("second", n), weight: uint64(2000 + n)})
			}
			e := &setOfTest{most: most, percent: 10}
			e.elect(t, first)
			if len(e.set) != most {
				t.Fatalf("%d validators at first", len(e.set))
			}
			epochs := 0
			for left := most; left > 0; epochs++ {
				if epochs == 50 {
					t.Fatalf("%d of the first are in after %d epochs", left, epochs)
				}
				e.elect(t, append(second, first[:most/2]...)) // half of them work less than the others now, half not at all
				if len(e.set) > most+1 {
					t.Fatalf("%d validators", len(e.set))
				}
				left = 0
				for _, v := range first {
					if e.set[v.host] > 0 {
						left++
					}
				}
			}
			t.Logf("taken over in %d epochs", epochs)
		})
	}
}

func TestChoose(t *testing.T) {
	const M = 1_000_000
	for _, test := range []struct {
		name    string
		most    int
		percent uint64
		members []member // by address
		want    []uint64
	}{
		{"one has all", 100, 10, []member{{weight: 5}}, []uint64{1000 * M}},
		{"two have at most three quarters", 100, 10, []member{{weight: 1}, {weight: 1000}}, []uint64{250 * M, 750 * M}},
		{"in proportion", 100, 40, []member{{weight: 10}, {weight: 20}, {weight: 30}, {weight: 30}, {weight: 10}}, []uint64{100 * M, 200 * M, 300 * M, 300 * M, 100 * M}},
		{"what the cap cuts off goes to the others", 100, 30, []member{{weight: 10}, {weight: 10}, {weight: 20}, {weight: 60}, {weight: 60}}, []uint64{100 * M, 100 * M, 200 * M, 300 * M, 300 * M}},
		{"the largest, and of equals the lower address", 2, 50, []member{{weight: 7}, {weight: 7}, {weight: 7}, {weight: 9}}, []uint64{437500000, 0, 0, 562500000}},
		{"nobody is rounded down to nothing", 100, 100, []member{{weight: 1}, {weight: 1 << 60}}, []uint64{1, 1000*M - 1}},
		{"a third moves", 100, 100, []member{{weight: 0, old: 500 * M}, {weight: 1, old: 500 * M}, {weight: 1}}, []uint64{500*M - 333333333, 500*M + 0, 333333333}},
		{"who must go goes, and uses the third up", 100, 50, []member{{weight: 9, old: 400 * M, out: true}, {weight: 1, old: 300 * M}, {weight: 1, old: 300 * M}, {weight: 1000}}, []uint64{0, 300 * M, 300 * M, 400 * M}},
		{"nobody works: those who are there go on", 100, 50, []member{{old: 400 * M}, {old: 200 * M}, {old: 400 * M, out: true}}, []uint64{666666667, 333333333, 0}},
		{"a set of another total", 100, 50, []member{{weight: 1, old: 10}, {weight: 1, old: 30}}, []uint64{500 * M, 500 * M}},
		{"more than all", 100, 75, []member{{weight: 1, old: 2000 * M}, {weight: 1, old: 2000 * M}}, []uint64{500 * M, 500 * M}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var members []*member
			for i := range test.members {
				m := test.members[i]
				m.host[0] = byte(i + 1)
				members = append(members, &m)
			}
			if !choose(members, test.most, test.percent) {
				t.Fatal("nobody is chosen")
			}
			for i, m := range members {
				if d := int64(m.power) - int64(test.want[i]); d < -3 || d > 3 {
					t.Errorf("member %d has %d, want %d", i, m.power, test.want[i])
				}
			}
		})
	}
	if choose([]*member{{old: 5, out: true}, {}}, 100, 10) || choose(nil, 100, 10) {
		t.Error("a set of nobody is chosen")
	}
}

// TestWaterfill compares with the definition: no part above the cap, and all parts below
// it in one proportion to their weights, to a unit.
func TestWaterfill(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 12))
	for range 3000 {
		weights := make([]uint64, 1+rng.IntN(12))
		for i := range weights {
			weights[i] = 1 + rng.Uint64N(1<<(1+rng.IntN(54)))
		}
		total := 1 + rng.Uint64N(totalPower)
		most := 1 + rng.Uint64N(totalPower)
		parts, rest := waterfill(total, most, weights)
		sum, free, freeWeight := rest, uint64(0), uint64(0)
		for i, p := range parts {
			sum += p
			if p > most {
				t.Fatalf("%d of %v at most %d: %v", total, weights, most, parts)
			}
			if p < most {
				free, freeWeight = free+p, freeWeight+weights[i]
			}
		}
		if sum != total || rest > 0 && free > 0 {
			t.Fatalf("%d of %v at most %d: %v, rest %d", total, weights, most, parts, rest)
		}
		for i, p := range parts {
			switch {
			case p < most: // free is off by less than a unit for each that is at the cap
				share := mulDiv(free, weights[i], freeWeight)
				if p+13 < share || share+13 < p {
					t.Fatalf("%d of %v at most %d: part %d is %d, want about %d", total, weights, most, i, p, share)
				}
			case freeWeight > 0:
				if share, _ := mulDivRest(free, min(weights[i], freeWeight), freeWeight); weights[i] <= freeWeight && share+13 < most {
					t.Fatalf("%d of %v at most %d: part %d is cut to the cap, its share is %d", total, weights, most, i, share)
				}
			}
		}
	}
}

// TestPowerGrab shows what one identity with many keys gets: the cap does not hold it,
// collateral does. Honest hosts have 90 % of all work.
func TestPowerGrab(t *testing.T) {
	const per = 10 // of collateral, a unit of weight
	for _, test := range []struct {
		keys       int
		work       uint64 // in all, where the honest have 900
		collateral uint64 // in all
		least, max float64
	}{
		{1, 600_000, 6_000_000, 9.9, 10},     // two fifths of the work under one key: the cap
		{10, 600_000, 6_000_000, 39.9, 40.1}, // under ten: all of it, paid with collateral
		{40, 600_000, 6_000_000, 39.9, 40.1}, // more keys bring nothing
		{40, 600_000, 1_000_000, 9.9, 10.1},  // what is not covered does not count,
		{40, 99_000_000, 1_000_000, 9.9, 10.1},
		{40, 99_000_000, 10_000, 0.1, 0.12}, // however much work is claimed
	} {
		e := &setOfTest{most: 100, percent: 10}
		var voters []voter
		for n := range 60 {
			voters = append(voters, voter{host: hostOf("honest", n), weight: 900_000 / 60})
		}
		for n := range test.keys {
			k := uint64(test.keys)
			voters = append(voters, voter{host: hostOf("grab", n), weight: min(test.work/k, test.collateral/k/per)})
		}
		for range 20 { // until churn has nothing to do
			e.elect(t, voters)
		}
		var grabbed uint64
		for n := range test.keys {
			grabbed += e.set[hostOf("grab", n)]
		}
		share := float64(grabbed) / totalPower * 100
		t.Logf("%2d keys, work %d, collateral for %d: %.2f %% of the power", test.keys, test.work, test.collateral/per, share)
		if share < test.least || share > test.max {
			t.Errorf("%d keys have %.2f %%, want %.1f to %.1f", test.keys, share, test.least, test.max)
		}
	}
}

func BenchmarkChoose(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 13))
	for b.Loop() {
		var members []*member
		for n := range 1000 {
			m := &member{host: mesh.Address{byte(n >> 8), byte(n)}, weight: rng.Uint64N(1 << 30)}
			if n < 100 {
				m.old = totalPower / 100
			}
			members = append(members, m)
		}
		choose(members, 100, 10)
	}
}

// TestYoungNetworkGrows: when 40 hosts join four, a third an epoch goes over to them, and
// only then do the four come below the cap of 44. CheckInvariants knows of it.
func TestYoungNetworkGrows(t *testing.T) {
	var hosts []hostOfTest
	for n := range 44 {
		hosts = append(hosts, hostOfTest{address: addressOf(testKey(n))})
	}
	s, m := prepare(t, quickParams(), hosts, nil), testMachine()
	o := newOverlay(s) // nobody was chosen yet
	o.remove(miscKey(miscChosen))
	o.givePower(new(ledgerpb.Validators))
	s.write(t, o.changes())
	weights := func(n int) (all []Weight) {
		for _, h := range hosts[:n] {
			all = append(all, Weight{h.address, 1000})
		}
		slices.SortFunc(all, func(a, b Weight) int { return bytes.Compare(a.Host[:], b.Host[:]) })
		return all
	}
	choose := func(n int) (highest, moved uint64) {
		o := newOverlay(s)
		b := &blockState{params: quickParams(), epoch: new(ledgerpb.EpochState)}
		m.chooseSet(o, b, weights(n))
		if *o.err != nil {
			t.Fatal(*o.err)
		}
		s.write(t, o.changes())
		if err := CheckInvariants(s); err != nil {
			t.Fatal(err)
		}
		record, _ := load[ledgerpb.Validators](newOverlay(s), miscKey(miscChosen))
		for _, v := range record.GetValidators() {
			highest = max(highest, v.GetPower())
		}
		return highest, record.GetMoved()
	}
	if highest, moved := choose(4); highest != totalPower/4 || moved != 0 {
		t.Fatalf("of four one has %d, %d moved", highest, moved)
	}
	for epoch, want := range []uint64{166666667, 83333333, totalPower / 44} {
		highest, moved := choose(44)
		t.Logf("epoch %d: the highest has %.1f %%, %.1f %% moved", epoch+1, float64(highest)/totalPower*100, float64(moved)/totalPower*100)
		if d := int64(highest) - int64(want); d < -2 || d > 2 {
			t.Errorf("epoch %d: the highest has %d, want %d", epoch+1, highest, want)
		}
	}
}
