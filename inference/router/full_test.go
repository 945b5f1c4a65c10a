package router

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/p2p"
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
		gone, late  bool
		least, most time.Duration
		calls       int // at most
		want        error
	}{
		{"half a second", 500, false, false, 25 * time.Second, 30 * time.Second, 40, inference.ErrBusy},
		{"it was late once before", 500, false, true, 25 * time.Second, 30 * time.Second, 40, inference.ErrBusy},
		{"it does not say", 0, false, false, 25 * time.Second, 30 * time.Second, 40, inference.ErrBusy},
		{"ten minutes", 600_000, false, false, 0, 10 * time.Second, 2, inference.ErrBusy},
		{"it is gone", 2000, true, false, 0, 10 * time.Second, 1, inference.ErrNoHost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				till := &fullTill{waitMs: tt.waitMs}
				w := fullWorld(t, till)
				defer w.close()
				if tt.late {
					w.router.hosts.failed(hostKey{w.order[0].addr, modelID}, false)
				}
				if tt.gone {
					go func() {
						time.Sleep(time.Second)
						w.order[0].kill()
					}()
				}
				start := time.Now()
				_, err := w.collect(t.Context(), ask(20), nil)
				if took := time.Since(start); !errors.Is(err, tt.want) || took < tt.least || took > tt.most {
					t.Errorf("%v after %s", err, took)
				}
				var refusal *inference.Refusal
				if busy := errors.Is(tt.want, inference.ErrBusy); errors.As(err, &refusal) != busy {
					t.Errorf("error %v", err)
				} else if busy && (!strings.Contains(err.Error(), "too many are not acknowledged") || tt.waitMs > 60_000 && refusal.WaitMs < tt.waitMs/2) {
					t.Errorf("%v, wait %d", err, refusal.WaitMs)
				}
				if n := till.refused(); n < 1 || n > tt.calls {
					t.Errorf("%d calls", n)
				}
			})
		})
	}
}

// TestNoTaskWhereBusy: hosts that are known and only busy are waited for. A burst of
// questions to them announces nothing, and nobody is told that there is no host.
func TestNoTaskWhereBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, func(int) *engine { return new(engine) }, func(h *hostConfig, c *Config) {
			if h != nil {
				h.Till = &fullTill{waitMs: 500}
			} else {
				c.FirstToken = 6 * time.Second
			}
		})
		defer w.close()
		w.router.cfg.Publish = w.gossip
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				if _, err := w.collect(t.Context(), ask(10), nil); !errors.Is(err, inference.ErrBusy) {
					t.Errorf("error %v", err)
				}
			})
		}
		wg.Wait()
		if w.announced > 0 {
			t.Errorf("%d tasks were announced", w.announced)
		}
	})
}

// TestCrowd: of one host there are no more streams than it takes of one peer, and a burst
// of more answers is answered all the same.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return &engine{pace: 10 * time.Millisecond, slots: 1024} })
		defer w.close()
		w.delay = 20 * time.Millisecond
		var wg sync.WaitGroup
		for range 400 {
			wg.Go(func() {
				if _, err := w.collect(t.Context(), ask(20), nil); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		p := w.order[0]
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.dialled > 256 {
			t.Errorf("%d streams were opened", p.dialled)
		}
	})
}

// TestQueuesFull: a host that says with its offer that its queue is full is waited for, too.
func TestQueuesFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, func(int) *engine { return &engine{pace: 100 * time.Millisecond, slots: 1} }, func(h *hostConfig, _ *Config) {
			if h != nil {
				h.Queue = 1
			}
		})
		defer w.close()
		w.router.cfg.Publish = w.gossip
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if _, err := w.collect(t.Context(), ask(100), nil); err != nil { // ten seconds
					t.Error(err)
				}
			})
			time.Sleep(2 * offerFresh)
		}
		start := time.Now()
		got, err := w.collect(t.Context(), ask(10), nil)
		if err != nil {
			t.Fatal(err)
		}
		if tokens, _ := want(t, w.order[0].engine, ask(10), 0); !slices.Equal(got[0].tokens, tokens) {
			t.Errorf("the answer is %v, want %v", got[0].tokens, tokens)
		}
		if took := time.Since(start); took < time.Second {
			t.Errorf("it took %s, and the queues were full for longer", took)
		}
		wg.Wait()
		if w.announced > 0 {
			t.Errorf("%d tasks were announced", w.announced)
		}
	})
}

// TestExhausted: that nobody pays, or pays enough, is said where hosts said so, and all did.
func TestExhausted(t *testing.T) {
	for _, tt := range []struct {
		hosts, unpaid, dear int
		want                error
	}{
		{0, 0, 0, inference.ErrNoHost}, {2, 0, 0, inference.ErrNoHost}, {2, 1, 1, inference.ErrNoHost},
		{2, 2, 0, inference.ErrUnpaid}, {2, 0, 2, inference.ErrTooDear},
	} {
		c := &choice{q: new(question), hosts: tt.hosts, unpaid: tt.unpaid, dear: tt.dear, last: errors.New("no")}
		if err := c.exhausted(); !errors.Is(err, tt.want) {
			t.Errorf("of %d hosts %d are unpaid and %d dear: %v, want %v", tt.hosts, tt.unpaid, tt.dear, err, tt.want)
		}
	}
}

// TestFullAndGone: a host whose queue is full and which is no good any more while others wait
// for it, dead or caught at a lie, asked nobody for money.
func TestFullAndGone(t *testing.T) {
	for name, end := range map[string]func(*world){
		"dead":   func(w *world) { w.order[0].kill() },
		"caught": func(w *world) { w.router.caught(hostKey{w.order[0].addr, modelID}, errors.New("a lie")) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, func(int) *engine { return &engine{pace: 100 * time.Millisecond, slots: 1} }, func(h *hostConfig, _ *Config) {
					if h != nil {
						h.Queue = 1
					}
				})
				defer w.close()
				run := func() error {
					_, err := w.collect(t.Context(), ask(100), nil)
					return err
				}
				var wg sync.WaitGroup
				for range 2 {
					wg.Go(func() { _ = run() }) // one has the slot, one the queue
					time.Sleep(2 * offerFresh)
				}
				wg.Go(func() {
					if err := run(); !errors.Is(err, inference.ErrNoHost) || errors.Is(err, inference.ErrUnpaid) {
						t.Errorf("error %v", err)
					}
				})
				time.Sleep(2 * offerFresh)
				end(w)
				wg.Wait()
			})
		})
	}
}

// TestTooManyTasks: what may not be announced was not found, and whether a model is known
// to nobody is then not known.
func TestTooManyTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return new(engine) })
		defer w.close()
		w.dir.hosts = nil
		w.router.cfg.Publish = func(context.Context, *inferencepb.Signed) error { return fmt.Errorf("publish: %w", p2p.ErrRate) }
		if _, err := w.collect(t.Context(), ask(10), nil); !errors.Is(err, inference.ErrNoHost) {
			t.Errorf("error %v", err)
		}
		w.dir.names = nil
		if _, err := w.collect(t.Context(), ask(10), nil); !errors.Is(err, inference.ErrBusy) || errors.Is(err, inference.ErrUnknownModel) {
			t.Errorf("error %v", err)
		}
	})
}
