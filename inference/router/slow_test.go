package router

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// TestSlowOnce: a host that stood still for two seconds has work again within a minute,
// and before that it is not asked much.
func TestSlowOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var still atomic.Bool
		w := newWorld(t, 4, func(i int) *engine {
			return &engine{pace: time.Millisecond, at: func(ctx context.Context, _ int) error {
				if i == 0 && still.Load() {
					return sleep(ctx, 2*time.Second)
				}
				return nil
			}}
		})
		defer w.close()
		runs := func() int {
			e := w.order[0].engine
			e.mu.Lock()
			defer e.mu.Unlock()
			return e.runs
		}
		asked := func(d time.Duration) (all, got int) {
			before := runs()
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if _, err := w.collect(t.Context(), ask(4), nil); err != nil {
					t.Fatal(err)
				}
				all++
			}
			return all, runs() - before
		}
		if _, got := asked(5 * time.Second); got == 0 {
			t.Fatal("the host had no work in the beginning")
		}
		still.Store(true)
		for before := runs(); runs() == before; {
			asked(time.Second)
		}
		still.Store(false)
		if all, got := asked(20 * time.Second); got > all/20 {
			t.Errorf("just after it stood still the host had %d of %d questions", got, all)
		}
		asked(35 * time.Second)
		if all, got := asked(10 * time.Second); got < all/10 {
			t.Errorf("a minute after it stood still the host had %d of %d questions", got, all)
		}
	})
}

// TestAgain: who is dear, or was called lately, is not brought to the front.
func TestAgain(t *testing.T) {
	now := time.Now()
	host := func(i int, price uint64, ago time.Duration) ranked {
		return ranked{peer: addressOf(i), capability: &inferencepb.Capability{PriceOutput: price}, called: now.Add(-ago)}
	}
	first := func(list ...ranked) map[mesh.Address]bool {
		out := make(map[mesh.Address]bool)
		for range 50 * againEvery {
			l := slices.Clone(list)
			again(l, now)
			out[l[0].peer] = true
			for _, k := range list {
				if !slices.ContainsFunc(l, func(o ranked) bool { return o.peer == k.peer }) {
					t.Fatal("a host is gone")
				}
			}
		}
		return out
	}
	if got := first(host(0, 10, 0), host(1, 20, time.Hour), host(2, 10, againAfter)); len(got) != 1 {
		t.Errorf("%d hosts were first", len(got))
	}
	if got := first(host(0, 10, 0), host(1, 20, time.Hour), host(2, 10, time.Minute), host(3, 12, 2*time.Minute)); len(got) != 2 || !got[addressOf(3)] {
		t.Errorf("%d hosts were first, with the one of longest ago: %v", len(got), got[addressOf(3)])
	}
}
