package router

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh/inference"
)

func TestAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, func(int) *engine { return &engine{pace: 10 * time.Millisecond} })
		defer w.close()
		for range 3 {
			w.keeper.list = nil
			got, err := w.collect(t.Context(), ask(50), nil)
			if err != nil {
				t.Fatal(err)
			}
			w.check(t, ask(50), 0, got[0])
			if got[0].finish != inference.FinishLength || got[0].usage.Segments != 1 || got[0].usage.Price != 13*2+50*3 {
				t.Errorf("finish %s, usage %+v", got[0].finish, got[0].usage)
			}
		}
	})
}

// TestKill ends the speaking host before it says token n, like a killed process: all
// of its connections break.
func TestKill(t *testing.T) {
	for _, n := range []int{0, 1, 10, 50, 199} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var w *world
				var killed atomic.Bool
				w = newWorld(t, 4, func(i int) *engine {
					return &engine{pace: 5 * time.Millisecond, prefill: 20 * time.Millisecond, at: func(_ context.Context, pos int) error {
						if pos == n && killed.CompareAndSwap(false, true) {
							time.Sleep(time.Millisecond) // what was said is on its way
							w.order[i].kill()
						}
						return nil
					}}
				})
				defer w.close()
				got, err := w.collect(t.Context(), ask(200), nil)
				if err != nil {
					t.Fatal(err)
				}
				w.check(t, ask(200), 0, got[0])
				if got[0].gap > 100*time.Millisecond {
					t.Errorf("gap of %s", got[0].gap)
				}
				if want := min(n, 1) + 1; len(got[0].hosts) != want || got[0].usage.Segments != want {
					t.Errorf("%d hosts spoke, %d segments, want %d", len(got[0].hosts), got[0].usage.Segments, want)
				}
			})
		})
	}
}

// TestBlackHole makes the speaking host swallow all bytes: nothing breaks.
func TestBlackHole(t *testing.T) {
	for _, n := range []int{0, 1, 30} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const delay = 20 * time.Millisecond
				var w *world
				var gone atomic.Bool
				w = newWorld(t, 4, func(i int) *engine {
					return &engine{pace: 10 * time.Millisecond, at: func(_ context.Context, pos int) error {
						if pos == n && gone.CompareAndSwap(false, true) {
							w.order[i].swallow()
						}
						return nil
					}}
				})
				w.delay = delay
				defer w.close()
				got, err := w.collect(t.Context(), ask(60), nil)
				if err != nil {
					t.Fatal(err)
				}
				w.check(t, ask(60), 0, got[0])
				if limit := w.router.cfg.InterToken + 2*delay; got[0].gap > limit || got[0].first > limit {
					t.Errorf("gap %s, first token after %s, at most %s", got[0].gap, got[0].first, limit)
				}
			})
		})
	}
}

// TestHang stops the engine of the speaking host, while its heartbeats go on.
func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hung atomic.Bool
		w := newWorld(t, 2, func(int) *engine {
			return &engine{pace: 10 * time.Millisecond, at: func(ctx context.Context, pos int) error {
				if pos == 20 && hung.CompareAndSwap(false, true) {
					<-ctx.Done()
				}
				return nil
			}}
		})
		defer w.close()
		got, err := w.collect(t.Context(), ask(60), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, ask(60), 0, got[0])
		if got[0].gap < 1900*time.Millisecond || got[0].gap > 2100*time.Millisecond {
			t.Errorf("gap of %s, want the inter-token timeout", got[0].gap)
		}
	})
}

// TestSlowStream checks that a stream at a slow pace of its own is not taken for hung.
func TestSlowStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, func(int) *engine {
			return &engine{prefill: 25 * time.Second, at: func(ctx context.Context, pos int) error {
				return sleep(ctx, time.Second+time.Duration(pos)*200*time.Millisecond)
			}}
		})
		defer w.close()
		got, err := w.collect(t.Context(), ask(20), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, ask(20), 0, got[0])
		if got[0].usage.Segments != 1 {
			t.Errorf("%d segments: an honest slow host was given up", got[0].usage.Segments)
		}
	})
}

func TestTwoInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		var mu sync.Mutex
		killed, lost := 0, make(map[int]bool)
		w = newWorld(t, 4, func(i int) *engine {
			return &engine{pace: 5 * time.Millisecond, at: func(_ context.Context, pos int) error {
				mu.Lock()
				// One that was swallowed goes on in its hole.
				due := !lost[i] && killed < 3 && pos == []int{10, 11, 40}[killed]
				if due {
					lost[i] = true
					killed++
				}
				hole := killed == 2
				mu.Unlock()
				if !due {
					return nil
				}
				time.Sleep(time.Millisecond)
				if hole {
					w.order[i].swallow()
				} else {
					w.order[i].kill()
				}
				return nil
			}}
		})
		defer w.close()
		got, err := w.collect(t.Context(), ask(100), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, ask(100), 0, got[0])
		mu.Lock()
		defer mu.Unlock()
		if killed != 3 || len(got[0].hosts) != 4 {
			t.Errorf("%d were lost and %d spoke", killed, len(got[0].hosts))
		}
	})
}

// TestAllLost loses every host: the client is told, after the last.
func TestAllLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		var killed atomic.Int32
		w = newWorld(t, 2, func(i int) *engine {
			return &engine{pace: time.Millisecond, at: func(_ context.Context, pos int) error {
				if pos == 5 && killed.CompareAndSwap(0, 1) || pos == 7 && killed.CompareAndSwap(1, 2) {
					time.Sleep(time.Millisecond)
					w.order[i].kill()
				}
				return nil
			}}
		})
		defer w.close()
		got, err := w.collect(t.Context(), ask(50), nil)
		if !errors.Is(err, inference.ErrNoHost) {
			t.Errorf("error %v", err)
		}
		if len(got[0].tokens) != 7 || got[0].finish != "" {
			t.Errorf("%d tokens, finish %q", len(got[0].tokens), got[0].finish)
		}
	})
}

// TestSeams kills the host at every position of texts where the seam falls into a
// stop string, into a character, or next to the end.
func TestSeams(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		stop         []string
		text         string
		finish       inference.FinishReason
	}{
		{"stop", "one, two STOP three", []string{"STOP"}, "one, two ", inference.FinishStop},
		{"stop after partial match", "aSTOSTOSTOPb", []string{"STOP"}, "aSTOSTO", inference.FinishStop},
		{"two stops", "x<|end|>y", []string{"<|end|>", "<|e"}, "x", inference.FinishStop},
		{"partial stop at the end", "abcSTO", []string{"STOP"}, "abcSTO", inference.FinishEOS},
		{"characters", "é世界🌍!", nil, "é世界🌍!", inference.FinishEOS},
		{"character within stop", "a世界b", []string{"界"}, "a世", inference.FinishStop},
		{"broken character", "ab\xe4\xb8", nil, "ab\uFFFD", inference.FinishEOS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for n := range len(tt.script) + 1 {
				synctest.Test(t, func(t *testing.T) {
					var w *world
					var killed atomic.Bool
					w = newWorld(t, 3, func(i int) *engine {
						return &engine{script: tt.script, pace: time.Millisecond, at: func(_ context.Context, pos int) error {
							if pos == n && killed.CompareAndSwap(false, true) {
								w.order[i].kill()
							}
							return nil
						}}
					}, func(_ *hostConfig, c *Config) {
						if c != nil {
							c.Text = func(modelHash) inference.Detokenizer { return new(byteText) }
						}
					})
					defer w.close()
					a := ask(100)
					a.Stop = tt.stop
					got, err := w.collect(t.Context(), a, nil)
					if err != nil {
						t.Fatal(err)
					}
					w.check(t, a, 0, got[0])
					if got[0].text != tt.text || got[0].finish != tt.finish {
						t.Errorf("killed at %d: %q %s, want %q %s", n, got[0].text, got[0].finish, tt.text, tt.finish)
					}
				})
			}
		})
	}
}

func TestChoices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		var killed atomic.Bool
		w = newWorld(t, 3, func(i int) *engine {
			return &engine{pace: 5 * time.Millisecond, at: func(_ context.Context, pos int) error {
				if pos == 12 && killed.CompareAndSwap(false, true) {
					w.order[i].kill()
				}
				return nil
			}}
		})
		defer w.close()
		a := ask(40)
		a.Choices = 5
		inside := false
		got, err := w.collect(t.Context(), a, func(inference.Event) error {
			if inside {
				t.Error("emit is called twice at once")
			}
			inside = true
			time.Sleep(time.Millisecond)
			inside = false
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			w.check(t, a, i, got[i])
		}
		if got[0].text == got[1].text {
			t.Error("two choices are equal")
		}
	})
}

// TestSecondTry loses the only host for a moment: it is tried again, once.
func TestSecondTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		var broken atomic.Bool
		w = newWorld(t, 1, func(i int) *engine {
			return &engine{pace: 5 * time.Millisecond, at: func(_ context.Context, pos int) error {
				if pos == 10 && broken.CompareAndSwap(false, true) {
					time.Sleep(time.Millisecond)
					w.order[i].disturb()
				}
				return nil
			}}
		})
		defer w.close()
		got, err := w.collect(t.Context(), ask(30), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, ask(30), 0, got[0])
		if got[0].usage.Segments != 2 || got[0].gap > 200*time.Millisecond {
			t.Errorf("%d segments, gap %s", got[0].usage.Segments, got[0].gap)
		}
	})
}
