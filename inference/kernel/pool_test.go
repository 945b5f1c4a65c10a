package kernel

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestPoolCoversEveryItemOnce(t *testing.T) {
	for _, threads := range []int{1, 2, 3, 8} {
		p := NewPool(threads)
		r := newRand(t)
		for round := range 400 {
			n, grain := r.IntN(200), r.IntN(20)
			seen := make([]atomic.Int32, n)
			p.Run(n, grain, func(lo, hi int) {
				for i := lo; i < hi; i++ {
					seen[i].Add(1)
				}
			})
			for i := range seen {
				if c := seen[i].Load(); c != 1 {
					t.Fatalf("%d threads, %d items by %d: item %d was done %d times", threads, n, grain, i, c)
				}
			}
			if round%100 == 0 {
				time.Sleep(2 * time.Millisecond) // long enough for the workers to sleep
			}
		}
		p.Close()
		p.Close()
	}
}

func TestPoolSharedByGoroutines(t *testing.T) {
	p := NewPool(3)
	defer p.Close()
	var total atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				p.Run(50, 1, func(lo, hi int) { total.Add(int64(hi - lo)) })
			}
		})
	}
	wg.Wait()
	if got := total.Load(); got != 4*200*50 {
		t.Errorf("%d items done, want %d", got, 4*200*50)
	}
}

// TestPoolWorksTogether makes work that is long enough to wake a worker for, until one has come. Each piece waits a
// moment for company, so that a worker that was woken finds some of it left.
func TestPoolWorksTogether(t *testing.T) {
	p := NewPool(2)
	defer p.Close()
	for range 20 {
		var inside, together atomic.Int32
		for end := time.Now().Add(10 * time.Second); together.Load() == 0; {
			if time.Now().After(end) {
				t.Fatal("a pool of two threads worked alone for 10 s")
			}
			p.Run(16, 1, func(lo, hi int) {
				if inside.Add(1) == 2 {
					together.Store(1)
				}
				time.Sleep(wakeCost)
				inside.Add(-1)
			})
		}
		time.Sleep(time.Millisecond) // long enough for the worker to sleep
	}
}

// TestPoolShortWorkWakesNobody: waking costs more than an operation of a small model.
func TestPoolShortWorkWakesNobody(t *testing.T) {
	p := NewPool(2)
	defer p.Close()
	rest := func() {
		for p.asleep.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	rest()
	p.Run(2, 1, func(lo, hi int) {})
	if len(p.wake) > 0 || p.alone == 0 {
		t.Errorf("after short work alone: %d workers called, %s counted", len(p.wake), p.alone)
	}
	// Many of them together are worth it.
	p.alone = wakeCost
	p.Run(2, 1, func(lo, hi int) {})
	if p.alone != 0 {
		t.Errorf("%s were spent alone, and no worker was woken", p.alone)
	}
	rest()
}
