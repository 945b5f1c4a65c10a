package router

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/host"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// TestTokenCap: who asks for more than a token may cost is not asked, however fast he is, and
// where nobody asks for less the client hears so.
func TestTokenCap(t *testing.T) {
	million := host.Prices{Prompt: 1e6, Output: 1e6}
	for _, tt := range []struct {
		name      string
		prices    []host.Prices
		node, ask mesh.Amount // caps
		used      []int       // hosts that may answer; nil: none
		says      string
	}{
		{"an outlier", []host.Prices{{Prompt: 2, Output: 3}, {Prompt: 1, Output: 3}, {Prompt: 2, Output: 4}, million}, 0, 0, []int{0, 1, 2}, ""},
		{"one and an outlier", []host.Prices{{Prompt: 2, Output: 3}, million}, 0, 0, []int{0}, ""},
		{"an outlier for prompts", []host.Prices{{Prompt: 2, Output: 3}, {Prompt: 2, Output: 3}, {Prompt: 1e6, Output: 3}}, 0, 0, []int{0, 1}, ""},
		{"an outlier beside free ones", []host.Prices{{}, {}, million}, 0, 0, []int{0, 1}, ""},
		{"free beside the usual", []host.Prices{{}, {Prompt: 2, Output: 3}}, 0, 0, []int{0, 1}, ""},
		{"five times the usual", []host.Prices{{Output: 3}, {Output: 3}, {Output: 15}}, 0, 0, []int{0, 1, 2}, ""},
		{"more than that", []host.Prices{{Output: 3}, {Output: 3}, {Output: 16}}, 0, 0, []int{0, 1}, ""},
		{"one alone is the usual", []host.Prices{million}, 0, 0, []int{0}, ""},
		{"the node caps", []host.Prices{{Prompt: 2, Output: 3}, {Prompt: 2, Output: 4}}, 3, 0, []int{0}, ""},
		{"the node lets more", []host.Prices{{Output: 3}, {Output: 3}, million}, 1e6, 0, []int{0, 1, 2}, ""},
		{"the ask caps", []host.Prices{{Prompt: 2, Output: 3}, {Prompt: 2, Output: 4}}, 0, 3, []int{0}, ""},
		{"the ask caps lower", []host.Prices{{Output: 3}, {Output: 5}}, 10, 4, []int{0}, ""},
		{"the ask does not cap higher", []host.Prices{{Output: 3}, {Output: 5}}, 4, 10, []int{0}, ""},
		{"nobody at the node's cap", []host.Prices{{Prompt: 2, Output: 3}, {Prompt: 2, Output: 4}}, 2, 0, nil, "ask 3 ngonka and more, and the cap is 2, as was set"},
		{"nobody at the ask's", []host.Prices{{Prompt: 2, Output: 3}}, 0, 1, nil, "mesh_price_cap"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, len(tt.prices), func(i int) *engine {
					e := &engine{price: &tt.prices[i], pace: 10 * time.Millisecond}
					if i == len(tt.prices)-1 {
						e.pace = time.Microsecond // the last is by far the fastest
					}
					return e
				}, func(_ *hostConfig, c *Config) {
					if c != nil {
						c.TokenCap = tt.node
					}
				})
				defer w.close()
				w.router.cfg.Publish = w.gossip
				for i := range 20 {
					a := ask(10)
					*a.Seed, a.TokenCap = uint64(i), tt.ask
					_, err := w.collect(t.Context(), a, nil)
					if tt.used == nil {
						if !errors.Is(err, inference.ErrTooDear) || !strings.Contains(err.Error(), tt.says) {
							t.Fatalf("%v", err)
						}
						break
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				may := make(map[int]bool)
				for _, i := range tt.used {
					may[i] = true
				}
				for i, p := range w.order {
					if p.engine.runs > 0 && !may[i] {
						t.Errorf("host %d was asked %d times", i, p.engine.runs)
					}
				}
				if len(tt.used) < 2 {
					return
				}
				last := len(w.order) - 1
				for _, p := range w.order[:last] {
					p.kill()
				}
				_, err := w.collect(t.Context(), ask(10), nil) // of an ask without a cap
				if answered := err == nil; answered != may[last] {
					t.Errorf("the last one alone: %v", err)
				}
			})
		})
	}
}

// TestTokenCapOfTask has hosts that are known from no advert: what they offer counts.
func TestTokenCapOfTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		prices := []host.Prices{{Output: 3}, {Output: 3}, {Output: 1e6}}
		w := newWorld(t, 3, func(i int) *engine { return &engine{price: &prices[i], pace: time.Millisecond} })
		defer w.close()
		w.dir.hosts = nil
		w.router.cfg.Publish = w.gossip
		a := ask(10)
		a.TokenCap = 2
		if _, err := w.collect(t.Context(), a, nil); !errors.Is(err, inference.ErrTooDear) {
			t.Errorf("%v", err)
		}
		_, err := w.collect(t.Context(), ask(100), func(e inference.Event) error {
			for _, p := range w.order[:2] {
				if p.addr == e.Host {
					p.kill()
				}
			}
			return nil
		})
		if w.order[0].engine.runs != 1 || w.order[1].engine.runs != 1 || w.order[2].engine.runs != 0 {
			t.Errorf("the hosts ran %d, %d and %d times: %v", w.order[0].engine.runs, w.order[1].engine.runs, w.order[2].engine.runs, err)
		}
	})
}

// TestTokenCapGoesOn: an answer whose host was lost goes on with none that asks for more than
// the cap, and says that there are such.
func TestTokenCapGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		prices := []host.Prices{{Output: 3}, {Output: 100}}
		w := newWorld(t, 2, func(i int) *engine { return &engine{price: &prices[i], pace: time.Millisecond} })
		defer w.close()
		_, err := w.collect(t.Context(), ask(100), func(e inference.Event) error {
			w.order[0].kill()
			return nil
		})
		if !errors.Is(err, inference.ErrNoHost) || !strings.Contains(err.Error(), "the cap is 15") {
			t.Errorf("%v", err)
		}
		if w.order[1].engine.runs > 0 {
			t.Error("the dear one went on")
		}
	})
}

// TestRequestTooDear: a host for which a request's cap on everything is too low is as good as
// before.
func TestRequestTooDear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return new(engine) })
		defer w.close()
		a := ask(10)
		a.PriceCap = 1
		if _, err := w.collect(t.Context(), a, nil); !errors.Is(err, inference.ErrTooDear) || !strings.Contains(err.Error(), "the cap is") {
			t.Errorf("%v", err)
		}
		w.router.hosts.mu.Lock()
		failures := w.router.hosts.at(hostKey{w.order[0].addr, modelID}).failures
		w.router.hosts.mu.Unlock()
		if failures > 0 {
			t.Error("it is held to have failed")
		}
	})
}

func TestUsualCap(t *testing.T) {
	list := func(prices ...uint64) (out []Candidate) {
		for _, p := range prices {
			out = append(out, Candidate{Capability: &inferencepb.Capability{PriceOutput: p}})
		}
		return append(out, Candidate{}) // of which nothing is known
	}
	for _, tt := range []struct {
		prices []uint64
		most   uint64
		ok     bool
	}{
		{nil, 0, false},
		{[]uint64{0}, 0, true},
		{[]uint64{7}, 35, true},
		{[]uint64{9, 7}, 35, true},
		{[]uint64{9, 1 << 62, 8}, 45, true},
		{[]uint64{0, 7}, 35, true},
		{[]uint64{0, 0, 7}, 0, true},
		{[]uint64{1 << 63}, 1<<64 - 1, true},
	} {
		if most, ok := usualCap(list(tt.prices...)); most != tt.most || ok != tt.ok {
			t.Errorf("%v: %d, %v, want %d, %v", tt.prices, most, ok, tt.most, tt.ok)
		}
	}
}
