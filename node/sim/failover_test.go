package sim

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

const pace = 20 * time.Millisecond // of the engines below, per token

func parrot(int) *engine { return &engine{name: modelName, slots: 8, pace: pace} }

// interToken sets how long a router waits for a token; 0 leaves the default.
func interToken(d time.Duration) func(*node.CoreConfig) {
	return func(c *node.CoreConfig) { c.Router.InterToken = d }
}

// TestBlackHole: the speaking host falls into a black hole, and so may the next and
// the one after it. Nobody is told. The answer goes on as if nothing had been, after
// no more than the inter-token timeout, a round trip and the time of one token for
// each host that was lost.
func TestBlackHole(t *testing.T) {
	const byDefault = 2 * time.Second
	tests := []struct {
		name    string
		timeout time.Duration // set; 0 is the default
		lost    []int         // hosts by the token that they did not say
		silent  int           // most hosts lost in a row without a token between
	}{
		{"before the first token", 0, []int{0}, 1},
		{"at token 50", 0, []int{50}, 1},
		{"at token 50, 500 ms", 500 * time.Millisecond, []int{50}, 1},
		{"the second before its first token", 0, []int{50, 50}, 2},
		{"the second right after its first token", 0, []int{50, 51}, 1},
		{"three before their first tokens", 0, []int{0, 0, 0}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			small(t, parrot, interToken(tt.timeout), func(t *testing.T, w *world, asker *member) {
				a := question("What is Mesh?", 80)
				whole := asker.answered(t, a)
				w.strikes(cut, tt.lost...)
				got := asker.answered(t, a)
				if n := w.left(); n > 0 {
					t.Fatalf("%d hosts were not lost", n)
				}
				if got.text != whole.text {
					t.Error("the text is not that of the undisturbed answer")
				}
				timeout := tt.timeout
				if timeout == 0 {
					timeout = byDefault
				}
				limit := time.Duration(tt.silent)*(timeout+rtt) + pace + slack
				gap := max(got.gap(), got.first)
				t.Logf("first token %s, undisturbed %s; gap %s, at most %s", got.first, whole.first, gap, limit)
				if gap > limit {
					t.Errorf("gap of %s, at most %s", gap, limit)
				}
			})
		})
	}
}

// TestBlackHoleLate: hosts are lost when the offers of the others have aged.
func TestBlackHoleLate(t *testing.T) {
	const slow, timeout = 120 * time.Millisecond, 500 * time.Millisecond
	mk := func(int) *engine { return &engine{name: modelName, slots: 8, pace: slow} }
	small(t, mk, interToken(timeout), func(t *testing.T, w *world, asker *member) {
		a := question("A long story.", 220)
		w.strikes(cut, 105, 210) // each after more than 12 s
		got := asker.answered(t, a)
		const asked = time.Duration(0)
		limit := timeout + rtt + asked + slow + slack
		t.Logf("gaps %v, at most %s", got.handed, limit)
		if len(got.hosts) != 3 || got.gap() > limit {
			t.Errorf("%d hosts, gap %s; at most %s", len(got.hosts), got.gap(), limit)
		}
	})
}

// settings are inter-token timeouts to test with: what is set, 0 for nothing, and what
// that comes to.
var settings = []struct{ set, timeout time.Duration }{
	{0, 2 * time.Second},
	{500 * time.Millisecond, 500 * time.Millisecond},
}

// TestHang: the engine of the speaking host stops while its process lives on, and its
// heartbeats too. The host gets its slot back.
func TestHang(t *testing.T) {
	small(t, parrot, nil, func(t *testing.T, w *world, _ *member) {
		for _, s := range settings {
			asker := w.start(len(w.members), p2p.RoleLight, nil, interToken(s.set))
			time.Sleep(time.Second)
			w.strikes(hang, 50)
			got := asker.answered(t, question("What is Mesh?", 80))
			limit := s.timeout + rtt + pace + slack
			t.Logf("timeout %s: gap %s, at most %s", s.timeout, got.gap(), limit)
			if len(got.hosts) != 2 || got.gap() < s.timeout || got.gap() > limit {
				t.Errorf("%d hosts spoke, gap %s; want 2 and at most %s", len(got.hosts), got.gap(), limit)
			}
			hung := w.member(got.hosts[0])
			if _, err := until(time.Second, func() bool { return hung.Host.Load().Active == 0 }); err != nil {
				t.Errorf("the slot of the host that hung is not free: %v", err)
			}
			w.mu.Lock()
			hung.stuck = false // the next asker may choose it
			w.mu.Unlock()
		}
	})
}

// TestSlow: a host that is slow and steady keeps its answer, up to a pace near the
// timeout, and beyond it when it gets slower bit by bit.
func TestSlow(t *testing.T) {
	paces := []struct {
		name string
		of   func(timeout time.Duration, position int) time.Duration
	}{
		{"nine tenths of the timeout per token", func(timeout time.Duration, _ int) time.Duration { return timeout * 9 / 10 }},
		{"slower and slower", func(timeout time.Duration, i int) time.Duration { return timeout * time.Duration(5+i) / 10 }},
	}
	mk := func(int) *engine { return &engine{name: modelName, slots: 8} }
	small(t, mk, nil, func(t *testing.T, w *world, _ *member) {
		for _, s := range settings {
			asker := w.start(len(w.members), p2p.RoleLight, nil, interToken(s.set))
			time.Sleep(time.Second)
			for _, p := range paces {
				for i := range 20 {
					w.strikes(func(ctx context.Context, m *member) {
						sleep(ctx, p.of(s.timeout, i))
						w.mu.Lock()
						m.stuck = false
						w.mu.Unlock()
					}, i)
				}
				got := asker.answered(t, question("Slowly, please.", 20))
				if len(got.hosts) != 1 || got.usage.Segments != 1 || w.left() > 0 {
					t.Errorf("%s of %s: %d hosts in %d segments: an honest slow host was given up",
						p.name, s.timeout, len(got.hosts), got.usage.Segments)
				}
			}
		}
	})
}

// TestShortPartition: the links fail and come back before anybody may lose patience.
func TestShortPartition(t *testing.T) {
	small(t, parrot, nil, func(t *testing.T, w *world, asker *member) {
		const outage = 400 * time.Millisecond
		a := question("What is Mesh?", 80)
		w.strikes(func(_ context.Context, m *member) {
			w.net.Cut(m.index)
			time.AfterFunc(outage, func() { w.net.Heal(m.index) })
		}, 50)
		got := asker.answered(t, a)
		t.Logf("gap %s with an outage of %s", got.gap(), outage)
		if len(got.hosts) != 1 || got.gap() < outage {
			t.Errorf("%d hosts spoke, gap %s", len(got.hosts), got.gap())
		}
	})
}

// TestPartition parts half of the hosts, the speaking one among them, from the rest
// for longer than connections live. The answer goes on. After it is healed they
// answer again, alone.
func TestPartition(t *testing.T) {
	small(t, parrot, nil, func(t *testing.T, w *world, asker *member) {
		a := question("What is Mesh?", 80)
		var far []*member
		w.strikes(func(_ context.Context, speaking *member) {
			far = append(far, speaking)
			for _, m := range w.members[1:8] {
				if m != speaking && len(far) < 4 {
					far = append(far, m)
				}
			}
			w.part(far, p2psim.Path{Drop: true})
		}, 50)
		got := asker.answered(t, a)
		// By bad luck all of the far ones are tried first.
		limit := time.Duration(len(far))*(2*time.Second+rtt) + pace + slack
		if w.left() > 0 || len(got.hosts) < 2 || got.gap() > limit {
			t.Errorf("%d faults to come, %d hosts spoke, gap %s", w.left(), len(got.hosts), got.gap())
		}
		time.Sleep(45 * time.Second) // connections die after 30 s
		for _, m := range far {
			if m.index != 0 && asker.Net.Connected(m.Net.Address()) {
				t.Error("the partition is none")
			}
		}
		w.part(far, p2psim.Path{})
		time.Sleep(20 * time.Second)
		for _, m := range w.members[:8] {
			if !slices.Contains(far, m) {
				w.kill(m)
			}
		}
		got = asker.answered(t, a)
		t.Logf("after the partition, the other half killed: first token after %s", got.first)
	})
}

// TestLeave: the speaking host leaves in order, and does not wait for its answers.
func TestLeave(t *testing.T) {
	small(t, parrot, nil, func(t *testing.T, w *world, asker *member) {
		a := question("What is Mesh?", 80)
		w.strikes(func(ctx context.Context, m *member) {
			w.leave(m)
			<-ctx.Done()
		}, 50)
		got := asker.answered(t, a)
		limit := rtt + pace + slack
		t.Logf("gap %s, at most %s", got.gap(), limit+pace)
		if len(got.hosts) != 2 || got.gap() > limit+pace {
			t.Errorf("%d hosts spoke, gap %s", len(got.hosts), got.gap())
		}
	})
}

// TestLoss: one packet in twenty of the asking node's is lost. No host is given up.
func TestLoss(t *testing.T) {
	small(t, parrot, nil, func(t *testing.T, w *world, asker *member) {
		w.part([]*member{asker}, p2psim.Path{Loss: 0.05})
		a := question("What is Mesh?", 120)
		got := asker.answered(t, a)
		t.Logf("gap %s", got.gap())
		if len(got.hosts) != 1 {
			t.Errorf("%d hosts spoke: lost packets are no reason to give one up", len(got.hosts))
		}
	})
}

// TestAskerOffline: the asking node itself is cut off for three seconds.
func TestAskerOffline(t *testing.T) {
	small(t, parrot, nil, func(t *testing.T, w *world, asker *member) {
		const outage = 3 * time.Second
		a := question("What is Mesh?", 80)
		w.strikes(func(context.Context, *member) {
			w.net.Cut(asker.index)
			time.AfterFunc(outage, func() { w.net.Heal(asker.index) })
		}, 50)
		got := asker.answered(t, a)
		t.Logf("gap %s with an outage of %s", got.gap(), outage)
		if got.gap() > outage+time.Second {
			t.Errorf("gap of %s", got.gap())
		}
	})
}

// part sets the paths between some nodes and all others.
func (w *world) part(some []*member, p p2psim.Path) {
	for _, a := range some {
		for _, b := range w.members {
			if !slices.Contains(some, b) {
				w.net.SetPath(a.index, b.index, p)
			}
		}
	}
}
