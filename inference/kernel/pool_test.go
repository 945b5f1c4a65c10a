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

// TestPoolWorksTogether holds each piece until a second thread is inside: a pool that works alone would not end.
func TestPoolWorksTogether(t *testing.T) {
	p := NewPool(2)
	defer p.Close()
	for range 20 {
		var inside atomic.Int32
		both := make(chan struct{})
		p.Run(2, 1, func(lo, hi int) {
			for range hi - lo {
				if inside.Add(1) == 2 {
					close(both)
				}
			}
			<-both
		})
		time.Sleep(time.Millisecond)
	}
}
