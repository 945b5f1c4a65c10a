package router

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// TestSmallHosts has hosts whose memory holds less than the model's context: the length
// of an answer does not depend on who gives it.
func TestSmallHosts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		holds  []int // by host; 0: all of the model's context
		asked  int
		script int // tokens until the model ends
		want   error
		runs   []int
		says   string
	}{
		{"whole ones first", []int{100, 0}, 0, 300, nil, []int{0, 1}, ""},
		{"an explicit length", []int{100, 0}, 200, 300, nil, []int{0, 1}, ""},
		{"small is enough", []int{100}, 0, 50, nil, []int{1}, ""},
		{"explicit and enough", []int{100, 100}, 80, 300, nil, nil, ""},
		{"from small to less small", []int{100, 150, 200}, 0, 180, nil, nil, ""},
		{"nobody has the memory", []int{100, 150}, 0, 300, inference.ErrNoHost, nil, "137"},
		{"nobody for an explicit length", []int{100, 150}, 200, 300, inference.ErrNoHost, []int{0, 0}, "201 tokens"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				script := strings.Repeat("x", tt.script)
				w := newWorld(t, len(tt.holds), func(i int) *engine {
					return &engine{holds: tt.holds[i], script: script, pace: time.Millisecond}
				})
				defer w.close()
				a := ask(tt.asked)
				got, err := w.collect(t.Context(), a, nil)
				if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.says) {
					t.Fatalf("error %v, want %v with %q", err, tt.want, tt.says)
				}
				if err == nil {
					if a.MaxTokens == 0 {
						a.MaxTokens = 4096 - len(a.Prompt)
					}
					w.check(t, a, 0, got[0])
				}
				for i, n := range tt.runs {
					if w.order[i].engine.runs != n {
						t.Errorf("host %d computed %d times, want %d", i, w.order[i].engine.runs, n)
					}
				}
				if len(w.liars) > 0 {
					t.Errorf("penalised: %v", w.liars)
				}
			})
		})
	}
}

// TestStaleContext has a host whose advert says more than its memory holds now.
func TestStaleContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return new(engine) })
		defer w.close()
		for i := range 3 {
			p := w.addRefusing(60+i, &inference.Refusal{Code: inference.CodeTooSmall, Message: "small"})
			w.dir.hosts = append(w.dir.hosts, Candidate{Peer: p.addr})
		}
		w.router.hosts.failed(hostKey{w.order[0].addr, modelID}, false) // it is the last choice
		got, err := w.collect(t.Context(), ask(10), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, ask(10), 0, got[0])
		for i := range 3 {
			if rec := w.router.hosts.at(hostKey{addressOf(60 + i), modelID}); rec.failures > 0 {
				t.Error("a small host is avoided for other questions too")
			}
		}
	})
}

// TestDearerThanAdvertised has a host that asks for more than it says in public.
func TestDearerThanAdvertised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, func(int) *engine { return new(engine) })
		defer w.close()
		cheap := func(c *inferencepb.Capability) *inferencepb.Capability {
			return &inferencepb.Capability{Model: c.Model, Name: c.Name, Context: c.Context, Slots: c.Slots, PricePrompt: 2, PriceOutput: 1}
		}
		w.dir.hosts[0].Capability = cheap(w.dir.hosts[0].Capability)
		bait := w.dir.hosts[0].Peer
		for i := range 10 {
			a := ask(10)
			*a.Seed = uint64(i)
			got, err := w.collect(t.Context(), a, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got[0].hosts[0] == bait {
				t.Fatal("the dearer host was asked")
			}
		}
		w.dir.hosts = w.dir.hosts[:1]
		if _, err := w.collect(t.Context(), ask(10), nil); !errors.Is(err, inference.ErrNoHost) {
			t.Errorf("the dearer host alone: %v", err)
		}
	})
}

// TestDearerThanAdvertisedWithoutOffer has a host that is asked on the strength of its
// advert alone, and charges more.
func TestDearerThanAdvertisedWithoutOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return &engine{pace: time.Millisecond} })
		defer w.close()
		tokens, _ := want(t, w.order[0].engine, ask(20), 0)
		dear := w.addImpostor(50, &impostor{tokens: tokens, bend: func(i int, _ *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			r.Price = uint64(r.OutputTokens) * 4
			return ""
		}})
		honest := w.dir.hosts
		w.dir.hosts = []Candidate{{Peer: dear.addr, Capability: honest[0].Capability}}
		time.AfterFunc(time.Second, func() {
			w.dir.mu.Lock()
			defer w.dir.mu.Unlock()
			w.dir.hosts = honest
		})
		w.router.cfg.Publish = w.gossip
		got, err := w.collect(t.Context(), ask(20), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, ask(20), 0, got[0])
		if got[0].hosts[0] == dear.addr {
			t.Error("tokens of the dear host were passed on")
		}
	})
}

// TestPromptCount has hosts that count the prompt in their own way.
func TestPromptCount(t *testing.T) {
	const real = 13
	for _, tt := range []struct {
		name   string
		counts []uint32 // by impostor, in the order in which they are asked
		own    int      // what this node counts
		spoke  int      // impostors whose tokens were passed on
		liars  int
		count  int // in the end
	}{
		{"all agree", []uint32{real, real}, 0, 2, 0, real},
		{"the second claims more", []uint32{real, 70}, 0, 1, 0, real},
		{"the first claimed more", []uint32{70, real}, 0, 2, 0, real},
		{"the first claimed less", []uint32{5, real}, 0, 1, 0, real},
		{"more than the context", []uint32{4096}, 0, 0, 1, real},
		{"more than the bytes", []uint32{500, real}, 0, 1, 1, real},
		{"this node counts", []uint32{70, real}, real, 1, 1, real},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, func(int) *engine { return &engine{pace: time.Millisecond} }, func(_ *hostConfig, c *Config) {
					if c != nil {
						c.Count = func(mesh.ModelID, *inferencepb.Question) int { return tt.own }
					}
				})
				defer w.close()
				tokens, _ := want(t, w.order[0].engine, ask(60), 0)
				for i, n := range tt.counts {
					p := w.addImpostor(50+i, &impostor{tokens: tokens, bend: func(at int, f *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
						r.PromptTokens = n
						if at == 10*(i+1) { // it is lost here
							return "data: {\"tok\n\n"
						}
						return ""
					}})
					w.dir.turns = append(w.dir.turns, []Candidate{{Peer: p.addr}})
					w.avoidOffers(p.addr)
				}
				spoken := make(map[mesh.Address]bool)
				got, err := w.collect(t.Context(), ask(60), func(e inference.Event) error {
					spoken[e.Host] = true
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				delete(spoken, w.order[0].addr)
				if len(spoken) != tt.spoke || len(w.liars) != tt.liars {
					t.Errorf("%d impostors spoke, penalised %v", len(spoken), w.liars)
				}
				if got[0].usage.PromptTokens != tt.count || len(got[0].tokens) != 60 {
					t.Errorf("%d tokens, usage %+v", len(got[0].tokens), got[0].usage)
				}
			})
		})
	}
}

// TestOwnCount: what this node counts itself stands, however few bytes the question has.
func TestOwnCount(t *testing.T) {
	q := &question{req: new(inference.Request), most: func() int { return 100 }}
	for _, tt := range []struct {
		own   int64
		count uint32
		lie   bool
	}{{500, 500, false}, {500, 499, true}, {0, 100, false}, {0, 101, true}} {
		q.count.Store(tt.own)
		k := &call{c: &choice{q: q}}
		if err := k.counted(&inference.Receipt{Pb: &inferencepb.Receipt{PromptTokens: tt.count}}); (err != nil) != tt.lie {
			t.Errorf("this node counts %d, a host %d: %v", tt.own, tt.count, err)
		}
	}
}
