package router

import (
	"context"
	"crypto/ed25519"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// locked locks all, and returns what unlocks them.
func locked(list ...*sync.Mutex) (unlock func()) {
	for _, m := range list {
		m.Lock()
	}
	return func() {
		for _, m := range list {
			m.Unlock()
		}
	}
}

// TestUnpaidLies has a host alone that lies for money: nothing is acknowledged to it.
func TestUnpaidLies(t *testing.T) {
	const huge = 4_000_000_000
	nothing := func(f *inference.Frame, r *inferencepb.Receipt) {
		f.Tokens, f.Text, f.Finish = nil, "", inference.FinishCancelled
		r.End, r.OutputTokens, r.ChainAfter, r.Finish = r.First, 0, r.ChainBefore, "cancelled"
	}
	for _, tt := range []struct {
		name  string
		own   int // prompt tokens as this node counts them, which takes it a while
		bend  func(f *inference.Frame, r *inferencepb.Receipt)
		liar  bool
		price mesh.Amount // acknowledged in the end
	}{
		{"honest", 13, func(_ *inference.Frame, r *inferencepb.Receipt) {
			if r.Finish != "" {
				r.Price += 13 * 2
			}
		}, false, 13*2 + 5*3},
		{"cancelled before the first token", 0, func(f *inference.Frame, r *inferencepb.Receipt) {
			nothing(f, r)
			r.Price = 13 * 2
		}, true, 0},
		{"cancelled after one", 0, func(f *inference.Frame, r *inferencepb.Receipt) {
			f.Finish, r.Finish = inference.FinishCancelled, "cancelled"
			r.Price += 13 * 2
		}, true, 0},
		{"a huge prompt", 0, func(_ *inference.Frame, r *inferencepb.Receipt) {
			r.PromptTokens = huge
			if r.Finish != "" {
				r.Price += 2 * huge
			}
		}, true, 0},
		{"a prompt of a token more than this node counts", 13, func(_ *inference.Frame, r *inferencepb.Receipt) {
			r.PromptTokens = 14
			if r.Finish != "" {
				r.Price += 2 * 14
			}
		}, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, purse, _ := payWorld(t, 0, nil)
				defer w.close()
				w.router.cfg.Count = func(mesh.ModelID, *inferencepb.Question) int {
					time.Sleep(100 * time.Millisecond) // the whole answer is here before
					return tt.own
				}
				host := w.addImpostor(50, &impostor{tokens: []int32{'a', 'b', 'c', 'd', 'e'},
					bend: func(_ int, f *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
						r.Price = 3 * uint64(r.OutputTokens)
						tt.bend(f, r)
						return ""
					}})
				w.dir.hosts = []Candidate{{Peer: host.addr}}
				w.router.hosts.offered(hostKey{host.addr, modelID}, w.funds(), &inferencepb.Offer{Accept: true, Capability: &inferencepb.Capability{
					Model: modelID[:], Name: "model", Context: 1<<32 - 1, Slots: 4, PricePrompt: 2, PriceOutput: 3}})
				_, err := w.collect(t.Context(), ask(5), nil)
				time.Sleep(time.Minute)
				defer locked(&purse.mu, &w.mu)()
				if (err != nil) != tt.liar || tt.liar && !errors.Is(err, inference.ErrNoHost) {
					t.Errorf("error %v", err)
				}
				if got := purse.said[host.addr].Amount; got != tt.price {
					t.Errorf("%d acknowledged, want %d", got, tt.price)
				}
				if _, caught := w.liars[host.addr]; caught != tt.liar {
					t.Errorf("penalised: %v", w.liars)
				}
			})
		})
	}
}

// TestLieAfterCancel has a host that lies when the client is gone.
func TestLieAfterCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, purse, _ := payWorld(t, 1, func(int) *engine { return new(engine) })
		defer w.close()
		tokens, _ := want(t, w.order[0].engine, ask(500), 0)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		liar := w.addImpostor(50, &impostor{tokens: tokens, bend: func(_ int, f *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			if r.Price = 3 * uint64(r.OutputTokens); ctx.Err() != nil {
				f.Finish, r.Finish = inference.FinishCancelled, "cancelled"
				r.Price += 14 * 2
			}
			return ""
		}})
		w.dir.hosts = []Candidate{{Peer: liar.addr}}
		w.avoidOffers(liar.addr)
		n := 0
		_, err := w.collect(ctx, ask(500), func(inference.Event) error {
			if n++; n == 10 {
				cancel()
			}
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		defer locked(&purse.mu, &w.mu)()
		if len(purse.said) > 0 || len(w.liars) != 1 {
			t.Errorf("acknowledged %v, penalised %v", purse.said, w.liars)
		}
	})
}

// TestCapAfterLoss: to go on costs what there is of the answer once more, and the cap
// holds for that too. No host is to blame.
func TestCapAfterLoss(t *testing.T) {
	for _, tt := range []struct {
		cap  mesh.Amount
		want error
	}{{13*2 + 60*3 + 20*2, nil}, {13*2 + 60*3 + 20*2 - 1, inference.ErrNoHost}} {
		synctest.Test(t, func(t *testing.T) {
			var w *world
			var killed atomic.Bool
			w = newWorld(t, 2, func(i int) *engine {
				return &engine{pace: 5 * time.Millisecond, at: func(_ context.Context, pos int) error {
					if pos == 20 && killed.CompareAndSwap(false, true) {
						time.Sleep(time.Millisecond)
						w.order[i].kill()
					}
					return nil
				}}
			})
			defer w.close()
			a := ask(60)
			a.PriceCap = tt.cap
			got, err := w.collect(t.Context(), a, nil)
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), "the cap") {
				t.Errorf("cap %d: %v", tt.cap, err)
			}
			if err == nil && got[0].usage.Price != tt.cap {
				t.Errorf("it cost %d, want %d", got[0].usage.Price, tt.cap)
			}
			if runs := w.order[0].engine.runs + w.order[1].engine.runs; runs == 2 != (err == nil) {
				t.Errorf("cap %d: computed %d times", tt.cap, runs)
			}
			if len(w.liars) > 0 {
				t.Errorf("penalised: %v", w.liars)
			}
		})
	}
}
