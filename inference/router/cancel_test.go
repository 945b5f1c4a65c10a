package router

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh/inference"
)

// TestCancel ends an answer by the client's context or by its callback. The host's
// slot is free within a second, and both sides keep the receipt that the payer's
// signature stands for.
func TestCancel(t *testing.T) {
	full := errors.New("the client is full")
	for _, tt := range []struct {
		name string
		each func(n int, cancel context.CancelFunc) error
		want error
	}{
		{"context", func(n int, cancel context.CancelFunc) error {
			if n == 10 {
				cancel()
			}
			return nil
		}, context.Canceled},
		{"callback", func(n int, _ context.CancelFunc) error {
			if n == 10 {
				return full
			}
			return nil
		}, full},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, func(int) *engine { return &engine{pace: 10 * time.Millisecond} })
				w.delay = 20 * time.Millisecond
				defer w.close()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				n := 0
				_, err := w.collect(ctx, ask(500), func(inference.Event) error {
					n++
					return tt.each(n, cancel)
				})
				if !errors.Is(err, tt.want) {
					t.Fatalf("error %v, want %v", err, tt.want)
				}
				time.Sleep(time.Second)
				if load := w.order[0].host.Load(); load.Active != 0 || w.order[0].engine.Load().Active != 0 {
					t.Error("the slot is not free after a second")
				}
				for name, k := range map[string]*keeper{"router": w.keeper, "host": w.order[0].kept} {
					all := k.all()
					if len(all) != 1 || all[0].Finish != inference.FinishCancelled || all[0].After.Next < 10 || all[0].After.Next > 20 {
						t.Errorf("%s keeps %d receipts: %+v", name, len(all), all)
					}
				}
				if a, b := w.keeper.all(), w.order[0].kept.all(); len(a) == 1 && len(b) == 1 && a[0].After != b[0].After {
					t.Error("the two sides keep different receipts")
				}
			})
		})
	}
}

// TestCancelWhileWaiting cancels before the first token.
func TestCancelWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return &engine{prefill: time.Hour} })
		defer w.close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := w.collect(ctx, ask(5), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		time.Sleep(time.Second)
		if w.order[0].engine.Load().Active != 0 {
			t.Error("the slot is not free after a second")
		}
	})
}

// TestHotPath checks that questions in a row use offers and streams in hand, and that
// the load spreads.
func TestHotPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, func(int) *engine { return &engine{pace: time.Millisecond} })
		w.delay = 30 * time.Millisecond
		defer w.close()
		served := make(map[string]int)
		for i := range 60 {
			got, err := w.collect(t.Context(), ask(5), nil)
			if err != nil {
				t.Fatal(err)
			}
			if i > 4 && got[0].first > 2*w.delay+5*time.Millisecond {
				t.Errorf("question %d: first token after %s, with %s there and back", i, got[0].first, 2*w.delay)
			}
			served[got[0].hosts[0].Short()]++
		}
		if len(served) != 4 {
			t.Errorf("served by %v", served)
		}
		dialled := 0
		for _, p := range w.order {
			dialled += p.dialled
		}
		if dialled > 12 {
			t.Errorf("%d streams for 60 questions", dialled)
		}
	})
}

// TestFasterIsPreferred lets one host of three be slow. While it is the only one that was
// measured the others are thought no better, and chance decides. Once one of them was,
// it gets one question, by which it is measured, and no more.
func TestFasterIsPreferred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, func(i int) *engine {
			if i == 1 {
				return &engine{pace: 100 * time.Millisecond}
			}
			return &engine{pace: time.Millisecond}
		})
		defer w.close()
		slow, fast := 0, 0
		for range 40 {
			got, err := w.collect(t.Context(), ask(20), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got[0].hosts[0] != w.order[1].addr {
				fast++
			} else if fast > 0 {
				slow++
			}
		}
		if slow > 1 || fast == 0 {
			t.Errorf("a fast host was known, and the slow one got %d questions more; the fast ones got %d of 40", slow, fast)
		}
	})
}

// TestLocal serves a node by its own host, within the process.
func TestLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return &engine{pace: time.Millisecond} })
		defer w.close()
		own := w.order[0]
		r, err := New(Config{Network: network, Key: testKey(0), Local: own.host, Directory: w.dir, Receipts: w.keeper})
		if err != nil {
			t.Fatal(err)
		}
		outer := w.router
		w.router = r
		for range 3 {
			w.keeper.list = nil
			got, err := w.collect(t.Context(), ask(30), nil)
			if err != nil {
				t.Fatal(err)
			}
			w.check(t, ask(30), 0, got[0])
		}
		if own.dialled != 0 {
			t.Error("a stream was opened to reach this node")
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		w.router = outer
	})
}

// TestLogProbs passes log-probabilities and bytes through.
func TestLogProbs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return new(engine) })
		defer w.close()
		a := ask(5)
		a.LogProbs, a.TopLogProbs = true, 3
		seen := 0
		_, err := w.collect(t.Context(), a, func(e inference.Event) error {
			for _, tok := range e.Tokens {
				seen++
				if string(tok.Bytes) != string(rune(tok.ID)) || tok.LogProb != -0.5 || len(tok.Top) != 3 || tok.Top[2].ID != 2 {
					t.Errorf("token %+v", tok)
				}
			}
			return nil
		})
		if err != nil || seen != 5 {
			t.Errorf("%d tokens, %v", seen, err)
		}
	})
}

// TestPriceCap refuses what may cost more than the cap.
func TestPriceCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, func(int) *engine { return new(engine) })
		defer w.close()
		a := ask(10)
		a.PriceCap = 13*2 + 10*3
		if _, err := w.collect(t.Context(), a, nil); err != nil {
			t.Errorf("at the cap: %v", err)
		}
		a.PriceCap--
		if _, err := w.collect(t.Context(), a, nil); !errors.Is(err, inference.ErrTooDear) {
			t.Errorf("over the cap: %v", err)
		}
	})
}

// TestTooLong checks that the numbers reach the client.
func TestTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, func(int) *engine { return new(engine) })
		defer w.close()
		_, err := w.collect(t.Context(), ask(4090), nil)
		var long *inference.TooLongError
		if !errors.As(err, &long) || long.Prompt != 13 || long.MaxTokens != 4090 || long.Context != 4096 {
			t.Errorf("error %v", err)
		}
		a := ask(0)
		got, err := w.collect(t.Context(), a, nil)
		if err != nil || len(got[0].tokens) != 4096-13 || got[0].finish != inference.FinishLength {
			t.Errorf("as many as fit: %d tokens, %v", len(got[0].tokens), err)
		}
	})
}
