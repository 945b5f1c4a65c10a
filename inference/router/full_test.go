package router

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// fullTill takes so many answers at a time, as a host does of a payer who is new to it.
type fullTill struct {
	testTill
	most   int
	waitMs int64
	mu     sync.Mutex
	runs   int // guarded by mu
	busy   int // answers that were refused; guarded by mu
}

func (f *fullTill) Admit(*inference.Request, mesh.Amount) (func(*inferencepb.Signed), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.runs >= f.most {
		f.busy++
		return nil, &inference.Refusal{Code: inference.CodeBusy, WaitMs: f.waitMs, Message: "too many are not acknowledged"}
	}
	f.runs++
	return func(*inferencepb.Signed) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.runs--
	}, nil
}

func (f *fullTill) refused() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.busy
}

// fullWorld is a world of one host.
func fullWorld(t *testing.T, till *fullTill) *world {
	return newWorld(t, 1, func(int) *engine { return &engine{pace: 50 * time.Millisecond, slots: 64} }, func(h *hostConfig, _ *Config) {
		if h != nil {
			h.Till = till
		}
	})
}

// TestBurst: of a burst that is more than the only host takes at once, all are answered.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		till := &fullTill{most: 16, waitMs: 500}
		w := fullWorld(t, till)
		defer w.close()
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				a := ask(20) // a second
				a.Seed = seed(uint64(i))
				if got, err := w.collect(t.Context(), a, nil); err != nil {
					t.Error(err)
				} else if tokens, _ := want(t, w.order[0].engine, a, 0); !slices.Equal(got[0].tokens, tokens) {
					t.Errorf("answer %d is %v, want %v", i, got[0].tokens, tokens)
				}
			})
		}
		wg.Wait()
		if n := till.refused(); n < 84 || n > 3000 {
			t.Errorf("%d calls were refused", n)
		}
	})
}

// TestAlwaysFull: a host that has no room is called again as it says, and given up in the
// end; at once where it says that it has none for longer, or is gone.
func TestAlwaysFull(t *testing.T) {
	for _, tt := range []struct {
		name        string
		waitMs      int64
		gone        bool
		least, most time.Duration
		calls       int // at most
	}{
		{"half a second", 500, false, 25 * time.Second, 30 * time.Second, 40},
		{"it does not say", 0, false, 25 * time.Second, 30 * time.Second, 40},
		{"ten minutes", 600_000, false, 0, 10 * time.Second, 2},
		{"it is gone", 2000, true, 0, 10 * time.Second, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				till := &fullTill{waitMs: tt.waitMs}
				w := fullWorld(t, till)
				defer w.close()
				if tt.gone {
					go func() {
						time.Sleep(time.Second)
						w.order[0].kill()
					}()
				}
				start := time.Now()
				_, err := w.collect(t.Context(), ask(20), nil)
				if took := time.Since(start); !errors.Is(err, inference.ErrNoHost) || took < tt.least || took > tt.most {
					t.Errorf("%v after %s", err, took)
				}
				if n := till.refused(); n < 1 || n > tt.calls {
					t.Errorf("%d calls", n)
				}
			})
		})
	}
}
