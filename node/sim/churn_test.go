package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

// churn is a network whose hosts come and go under a steady load.
type churn struct {
	hosts   int
	askers  int
	percent int           // of the hosts that go per minute
	away    time.Duration // until one that went is back
	every   time.Duration // between questions
	tokens  int           // of an answer
	lasts   time.Duration
}

// outcome is what the clients saw.
type outcome struct {
	mu       sync.Mutex
	asked    int             // guarded by mu
	failed   []error         // guarded by mu
	first    []time.Duration // to the first token; guarded by mu
	handed   []time.Duration // at each hand-over in mid-stream; guarded by mu
	given    map[string]int  // hosts given up, by why
	departed int
}

// TestChurn: six of ten hosts go per minute.
func TestChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("ninety answers take some seconds of CPU; make test runs it, -short does not")
	}
	churn{hosts: 10, askers: 2, percent: 60, away: 10 * time.Second, every: time.Second, tokens: 40, lasts: 90 * time.Second}.run(t, 5)
}

// TestSimChurn: fifty hosts, and up to thirty of them go per minute.
func TestSimChurn(t *testing.T) {
	large(t)
	for _, percent := range []int{10, 30, 60} {
		t.Run(fmt.Sprintf("%d%%", percent), func(t *testing.T) {
			churn{hosts: 50, askers: 5, percent: percent, away: 20 * time.Second, every: 500 * time.Millisecond, tokens: 60, lasts: 5 * time.Minute}.run(t, 5)
		})
	}
}

func (c churn) run(t *testing.T, seed uint64) {
	t.Logf("seed %d", seed)
	simulate(t, p2psim.Config{Seed: seed, Latency: latency, Bandwidth: 50_000_000}, func(t *testing.T, w *world) {
		for i := range c.hosts {
			w.start(i, p2p.RoleHost, parrot(i), nil)
		}
		var askers []*member
		meters := make(map[*member]*prometheus.Registry)
		for i := range c.askers {
			r := prometheus.NewRegistry()
			m := w.start(c.hosts+i, p2p.RoleLight, nil, func(cfg *node.CoreConfig) { cfg.P2P.Metrics = r })
			askers, meters[m] = append(askers, m), r
		}
		time.Sleep(3 * time.Second)
		out := &outcome{given: make(map[string]int)}
		var load sync.WaitGroup
		load.Go(func() { c.load(w, askers, out) })
		c.come(w, out, rand.New(rand.NewPCG(seed, 2)))
		load.Wait()
		for _, r := range meters {
			for why, n := range failovers(t, r) {
				out.given[why] += n
			}
		}
		out.report(t, c)
	})
}

// load asks at a steady pace, and waits for the answers.
func (c churn) load(w *world, askers []*member, out *outcome) {
	var asks sync.WaitGroup
	defer asks.Wait()
	for i := range int(c.lasts / c.every) {
		asker := askers[i%len(askers)]
		asks.Go(func() {
			ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
			defer cancel()
			a := question(fmt.Sprintf("Question %d", i), c.tokens)
			got, err := asker.ask(ctx, a)
			if err == nil {
				err = asker.verify(a, got)
			}
			out.mu.Lock()
			defer out.mu.Unlock()
			out.asked++
			if err != nil {
				out.failed = append(out.failed, fmt.Errorf("question %d: %w", i, err))
				return
			}
			out.first = append(out.first, got.first)
			out.handed = append(out.handed, got.handed...)
		})
		time.Sleep(c.every)
	}
}

// come takes hosts away, by turns as kill -9 does and in order, and brings them back
// under their old names. The bootstrap node stays.
func (c churn) come(w *world, out *outcome, rng *rand.Rand) {
	every := time.Duration(float64(time.Minute) * 100 / float64(c.percent*c.hosts))
	type absence struct {
		index int
		until time.Time
	}
	var absent []absence
	for end := time.Now().Add(c.lasts); time.Now().Before(end); time.Sleep(every/2 + time.Duration(rng.Int64N(int64(every)))) {
		var there []*member
		for _, m := range w.members {
			if m.engine != nil && m.index > 0 && !m.gone {
				there = append(there, m)
			}
		}
		if len(there) > 1 {
			m := there[rng.IntN(len(there))]
			if out.departed++; out.departed%2 == 0 {
				w.leave(m)
			} else {
				w.kill(m)
			}
			absent = append(absent, absence{m.index, time.Now().Add(c.away)})
		}
		for len(absent) > 0 && !time.Now().Before(absent[0].until) {
			i := absent[0].index
			absent = absent[1:]
			w.net.Heal(i)
			w.start(i, p2p.RoleHost, parrot(i), nil)
		}
	}
}

// failovers returns how many hosts a router gave up, by why.
func failovers(t *testing.T, r *prometheus.Registry) map[string]int {
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]int)
	for _, f := range families {
		if f.GetName() == "mesh_router_failovers_total" {
			for _, m := range f.GetMetric() {
				out[m.GetLabel()[0].GetValue()] += int(m.GetCounter().GetValue())
			}
		}
	}
	return out
}

func (o *outcome) report(t *testing.T, c churn) {
	slices.Sort(o.first)
	slices.Sort(o.handed)
	t.Logf("%d hosts, %d %% go per minute (%d in %s): %d questions, %.2f %% answered; first token p50 %s, p99 %s, max %s; hosts given up %v; %d hand-overs in mid-stream, gap p50 %s, max %s",
		c.hosts, c.percent, o.departed, c.lasts, o.asked, 100*float64(o.asked-len(o.failed))/float64(max(1, o.asked)),
		percentile(o.first, 50), percentile(o.first, 99), percentile(o.first, 100), o.given, len(o.handed), percentile(o.handed, 50), percentile(o.handed, 100))
	for _, err := range o.failed {
		t.Error(err)
	}
	if o.asked == 0 || o.departed == 0 {
		t.Error("nothing happened")
	}
}

// percentile returns one of sorted times.
func percentile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)*percent/100, len(sorted)-1)].Round(time.Millisecond)
}
