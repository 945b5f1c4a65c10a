package ledger

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// setWorld is the part of a state that validators are chosen from.
type setWorld struct {
	t   testing.TB
	m   *Machine
	o   *overlay
	b   *blockState
	set cometSet
	all []mesh.Address // ascending
}

func newSetWorld(t testing.TB, hosts int, params *ledgerpb.Params) *setWorld {
	w := &setWorld{t: t, m: New(Config{Network: testNetwork}), o: newOverlay(empty{}), set: cometSet{}}
	w.b = &blockState{params: params, epoch: &ledgerpb.EpochState{}}
	for n := range hosts {
		w.all = append(w.all, hostOf("host", n))
	}
	slices.SortFunc(w.all, func(a, b mesh.Address) int { return bytes.Compare(a[:], b[:]) })
	for _, a := range w.all {
		w.o.save(hostKey(a), &ledgerpb.Host{Owner: a[:], ConsensusKey: consensusKeyOf(a), Collateral: 1000e9})
	}
	w.o.totals(func(t *ledgerpb.Totals) { t.Collateral = uint64(hosts) * 1000e9 })
	return w
}

func (w *setWorld) host(a mesh.Address) *ledgerpb.Host {
	h, _ := load[ledgerpb.Host](w.o, hostKey(a))
	return h
}

// tell hands on what consensus is told, as the end of a block does.
func (w *setWorld) tell() {
	w.t.Helper()
	w.b.updates = nil
	w.m.tellSet(w.o, w.b)
	w.b.reset = false
	var err error
	if w.set, err = w.set.update(w.b.updates); err != nil {
		w.t.Fatalf("CometBFT stops: %v", err)
	}
	if *w.o.err != nil {
		w.t.Fatal(*w.o.err)
	}
}

func (w *setWorld) jail(a mesh.Address) bool {
	h := w.host(a)
	if !w.o.leaveSet(w.b, a, h) {
		return false
	}
	h.JailedUntil = 1
	w.o.save(hostKey(a), h)
	return true
}

func (s cometSet) total() (sum float64) {
	for _, power := range s {
		sum += float64(power)
	}
	return sum
}

// common is how much of the power two sets have in common, as parts of all: of each
// validator the lesser of what it has in the two. A light client that trusts the old set
// takes a commit of the new one if signers with a third of the old power are in it. More
// than two thirds of the new power signs, so with two thirds in common it always does,
// whoever of the new set is missing.
func common(old, next cometSet) (sum, present float64) {
	for k, power := range old {
		sum += min(float64(power)/old.total(), float64(next[k])/next.total())
		if next[k] > 0 {
			present += float64(power) / old.total()
		}
	}
	return sum, present
}

// TestChurnForLightClients has hosts jailed and back within an epoch, or for long, while
// work changes wildly. A light client that trusts any set of one epoch finds enough of it
// in the next set that is chosen, unless more than a third was jailed.
func TestChurnForLightClients(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 20))
		params := DefaultParams()
		params.CollateralPerWeight = 1e9
		w := newSetWorld(t, 100+rng.IntN(51), params)
		least, leastPresent, exempt := 1.0, 1.0, 0
		weights := make([]Weight, len(w.all))
		for i, a := range w.all {
			weights[i] = Weight{a, 1 + rng.Uint64N(1000)}
		}
		w.m.chooseSet(w.o, w.b, weights)
		w.tell()
		for range 300 {
			seen := []cometSet{w.set}
			first := w.set.total()
			mood := rng.IntN(40) // of the epoch: how many fall asleep
			for _, a := range w.all {
				switch h := w.host(a); {
				case h.GetPower() > 0 && rng.IntN(100) < mood/2:
					w.jail(a)
				case h.GetJailedUntil() > 0 && rng.IntN(2) == 0:
					h.JailedUntil = 0
					w.o.save(hostKey(a), h)
				}
			}
			w.tell()
			for _, a := range w.all { // some come back before the set is chosen
				if h := w.host(a); h.GetJailedUntil() > 0 && rng.IntN(3) == 0 {
					h.JailedUntil = 0
					w.o.save(hostKey(a), h)
				}
			}
			seen = append(seen, w.set)
			lost := (first - w.set.total()) / first
			for i := range weights {
				switch rng.IntN(8) {
				case 0:
					weights[i].Weight = 0
				case 1:
					weights[i].Weight = 1 + rng.Uint64N(1_000_000)
				}
			}
			now := slices.DeleteFunc(slices.Clone(weights), func(w Weight) bool { return w.Weight == 0 })
			w.m.chooseSet(w.o, w.b, now)
			w.tell()
			if n := len(w.set); n > int(params.GetMaxValidators()) || n == 0 {
				t.Fatalf("seed %d: %d validators", seed, n)
			}
			for k, power := range w.set {
				if float64(power)/w.set.total() > 0.1000001 {
					t.Fatalf("seed %d: %x has %d of %.0f", seed, k, power, w.set.total())
				}
			}
			if lost > 1.0/3 {
				exempt++
				continue
			}
			for _, old := range seen {
				sum, present := common(old, w.set)
				least, leastPresent = min(least, sum), min(leastPresent, present)
				if sum < 2.0/3-1e-6 {
					t.Fatalf("seed %d: %.4f of the power is common to two sets, of which one lost %.4f", seed, sum, lost)
				}
			}
		}
		t.Logf("seed %d, %d hosts: at least %.4f of the power in common, %.4f still there; in %d epochs more than a third was jailed", seed, len(w.all), least, leastPresent, exempt)
		if exempt > 100 {
			t.Errorf("only %d epochs say something", 300-exempt)
		}
	}
}

// TestSetNeverEmpty punishes all validators of small sets, in any order.
func TestSetNeverEmpty(t *testing.T) {
	for n := 1; n <= 5; n++ {
		w := newSetWorld(t, n, DefaultParams())
		var weights []Weight
		for _, a := range w.all {
			weights = append(weights, Weight{a, 10})
		}
		w.m.chooseSet(w.o, w.b, weights)
		w.tell()
		left := n
		for i, a := range w.all {
			consensus := ConsensusAddressOf(consensusKeyOf(a))
			w.o.save(consensusIndex(consensus), &ledgerpb.ConsensusKey{Host: a[:]})
			if i%2 == 0 {
				w.m.punishEquivocation(w.o, w.b, Evidence{Validator: consensus})
			} else if !w.jail(a) && left > 1 {
				t.Errorf("%d validators: number %d is not taken out", n, i)
			}
			left--
			if i%3 == 0 {
				w.tell()
			}
		}
		w.tell()
		if len(w.set) != 1 {
			t.Errorf("%d validators, all punished: %d are left, want the last", n, len(w.set))
		}
		// Nobody can be chosen: the last stays, again and again.
		for range 3 {
			w.m.chooseSet(w.o, w.b, weights[:1])
			w.tell()
		}
		// One who can takes over at once, unless the last only slept.
		h := w.host(w.all[0])
		h.Tombstoned, h.JailedUntil = false, 0
		w.o.save(hostKey(w.all[0]), h)
		w.m.chooseSet(w.o, w.b, weights)
		w.tell()
		if got := slices.Collect(maps.Keys(w.set)); len(got) != 2-n%2 || w.set[string(consensusKeyOf(w.all[0]))] == 0 {
			t.Errorf("%d validators: %x are the set", n, got)
		}
	}
}
