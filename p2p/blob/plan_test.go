package blob

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestPlanOrder(t *testing.T) {
	p := newPlan(5, []bool{false, true, false, false, false})
	now := time.Unix(0, 0)
	take := func(source, want int) {
		t.Helper()
		if got, _, ok := p.take(source, now); !ok || got != want {
			t.Errorf("source %d takes %d, %v; want %d", source, got, ok, want)
		}
	}
	take(1, 0)
	take(2, 2)
	take(1, 3)
	p.drop(1) // gives 0 and 3 back
	take(2, 0)
	take(3, 3)
	p.giveBack(1)
	take(3, 1)
	take(3, 4)
	// All are under way: a source repeats what another has held for too long, the
	// oldest first, and nothing of its own.
	if _, again, ok := p.take(2, now); ok || again != p.patience() {
		t.Errorf("taken before its time: %v, again in %s", ok, again)
	}
	now = now.Add(p.patience())
	take(2, 3)
	take(2, 1)
	take(3, 2)
	take(2, 4)
	take(3, 0)
	if got, again, ok := p.take(1, now); ok || again != 0 {
		t.Errorf("chunk %d is under way a third time, again in %s", got, again)
	}
	if !p.settle(3, now) || p.settle(3, now) || p.left != 4 {
		t.Errorf("settled twice, or %d left", p.left)
	}
	p.drop(2)
	p.drop(3)
	if slices.Contains(p.todo, 3) || len(p.todo) != 4 || len(p.holds) != 0 {
		t.Errorf("after all left: todo %v, holds %v", p.todo, p.holds)
	}
}

// Whatever sources do, no chunk is lost, and each ends done exactly once.
func TestPlanRandom(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		n := 1 + rng.IntN(40)
		checking := make([]bool, n)
		var onDisk []int
		for i := range checking {
			if checking[i] = rng.IntN(4) == 0; checking[i] {
				onDisk = append(onDisk, i)
			}
		}
		p, now, news := newPlan(n, checking), time.Unix(0, 0), 0
		held := make(map[int][]int)
		for steps := 0; p.left > 0; steps++ {
			if steps > 1e5 {
				t.Fatalf("seed %d: %d of %d chunks left: todo %v, holds %v", seed, p.left, n, p.todo, p.holds)
			}
			now = now.Add(time.Duration(rng.IntN(400)) * time.Millisecond)
			source := rng.IntN(4)
			switch rng.IntN(6) {
			case 0:
				p.drop(source)
				held[source] = nil
			case 1:
				if len(onDisk) > 0 {
					if rng.IntN(2) == 0 {
						p.giveBack(onDisk[0])
					} else {
						p.confirm(onDisk[0])
						news++
					}
					onDisk = onDisk[1:]
				}
			case 2, 3:
				if chunk, _, ok := p.take(source, now); ok {
					if p.done[chunk] || slices.Contains(held[source], chunk) {
						t.Fatalf("seed %d: chunk %d given to %d for nothing", seed, chunk, source)
					}
					held[source] = append(held[source], chunk)
				}
			default:
				if len(held[source]) > 0 {
					if p.settle(held[source][0], now) {
						news++
					}
					held[source] = held[source][1:]
				}
			}
		}
		if news != n || slices.Contains(p.done, false) {
			t.Fatalf("seed %d: %d of %d chunks settled", seed, news, n)
		}
	}
}
