package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

// crowd is a network of many nodes, one in ten of which serves the model.
type crowd struct {
	*world
	rng     *rand.Rand
	full    int // nodes of the network, newcomers not counted
	serving int
	join    time.Duration // virtual
	topics  []*p2p.Topic
	meters  []*prometheus.Registry

	mu    sync.Mutex
	heard []time.Duration // that messages took; guarded by mu
}

const one = 10 // node in so many serves

// gather forms a network of n nodes with 5 to 75 ms between each two. A node knows
// the bootstrap node and that many others that were there before it.
func gather(t *testing.T, n, known int, seed uint64, f func(t *testing.T, c *crowd)) {
	t.Logf("seed %d", seed)
	links := p2psim.Config{Seed: seed, Latency: 5 * time.Millisecond, Spread: 70 * time.Millisecond}
	simulate(t, links, func(t *testing.T, w *world) {
		c := &crowd{world: w, rng: rand.New(rand.NewPCG(seed, 1)), full: n}
		begin := time.Now()
		for i := range n {
			var e *engine
			if i%one == one/2 {
				e = &engine{name: modelName, slots: 8, pace: pace}
				c.serving++
			}
			meters := prometheus.NewRegistry()
			m := w.start(i, p2p.RoleHost, e, func(cfg *node.CoreConfig) {
				cfg.P2P.Metrics = meters
				for range min(known, i-1) {
					cfg.P2P.Bootstrap = append(cfg.P2P.Bootstrap, seedOf(1+c.rng.IntN(i-1)))
				}
			})
			topic, err := m.Net.Join("sim", c.hear, p2p.TopicOptions{Rate: 5, Burst: 50})
			if err != nil {
				t.Fatal(err)
			}
			c.topics, c.meters = append(c.topics, topic), append(c.meters, meters)
			time.Sleep(25 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		c.join = time.Since(begin)
		f(t, c)
	})
}

// newcomer starts a node that knows the bootstrap node alone, and returns when it had
// found the first and 95 of 100 of the model's hosts.
func (c *crowd) newcomer(role string) (m *member, first, most time.Duration, err error) {
	begin := time.Now()
	m = c.start(len(c.members), role, nil, nil)
	m.Net.Follow(modelOf(modelName)) // as its first question would
	found := func() int { return len(m.Net.Adverts(modelOf(modelName))) }
	if _, err = until(10*time.Second, func() bool { return found() > 0 }); err != nil {
		return m, 0, 0, fmt.Errorf("a %s found no host of %d: %w", role, c.serving, err)
	}
	first = time.Since(begin)
	if _, err = until(10*time.Second, func() bool { return found()*100 >= 95*c.serving }); err != nil {
		return m, first, 0, fmt.Errorf("a %s found %d hosts of %d: %w", role, found(), c.serving, err)
	}
	return m, first, time.Since(begin), nil
}

// spread is how gossip went.
type spread struct {
	p50, p99, max    time.Duration
	delivered, want  int
	bytesPer         float64 // received per node and message, all traffic of that time
	quietBytesPerSec float64 // received per node and second when no messages are sent
}

// hear takes in a message, which begins with the time at which it was sent.
func (c *crowd) hear(_ mesh.Address, data []byte) p2p.Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = append(c.heard, time.Since(time.UnixMicro(int64(binary.BigEndian.Uint64(data)))))
	return p2p.Accept
}

// gossip publishes messages of a size from nodes drawn at random and waits until all
// others have heard them.
func (c *crowd) gossip(messages, size int) (spread, error) {
	ctx := c.t.Context()
	c.mu.Lock()
	c.heard = nil
	c.mu.Unlock()
	const quiet = 5 * time.Second
	before := c.received()
	time.Sleep(quiet)
	calm := (c.received() - before) / float64(c.full)
	begin := time.Now()
	before = c.received()
	for range messages {
		data := make([]byte, size)
		binary.BigEndian.PutUint64(data, uint64(time.Now().UnixMicro()))
		if err := c.topics[c.rng.IntN(len(c.topics))].Publish(ctx, data); err != nil {
			return spread{}, err
		}
		time.Sleep(150 * time.Millisecond)
	}
	time.Sleep(3 * time.Second)
	s := spread{want: messages * (c.full - 1), quietBytesPerSec: calm / quiet.Seconds()}
	s.bytesPer = ((c.received()-before)/float64(c.full) - s.quietBytesPerSec*time.Since(begin).Seconds()) / float64(messages)
	c.mu.Lock()
	defer c.mu.Unlock()
	times := c.heard
	slices.Sort(times)
	if s.delivered = len(times); s.delivered > 0 {
		s.p50, s.p99, s.max = times[len(times)/2], times[len(times)*99/100], times[len(times)-1]
	}
	return s, nil
}

// received returns the bytes that the nodes of the network received so far.
func (c *crowd) received() float64 {
	var sum float64
	for _, meters := range c.meters {
		families, err := meters.Gather()
		if err != nil {
			c.t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() != "mesh_p2p_bytes_total" {
				continue
			}
			for _, m := range f.GetMetric() {
				if m.GetLabel()[0].GetValue() == "in" {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

func (s spread) String() string {
	return fmt.Sprintf("p50 %s, p99 %s, max %s, %d of %d delivered, %.1f kB received per node and message (quiet: %.1f kB/s)",
		s.p50.Round(time.Millisecond), s.p99.Round(time.Millisecond), s.max.Round(time.Millisecond), s.delivered, s.want,
		s.bytesPer/1e3, s.quietBytesPerSec/1e3)
}

// measure checks what is promised of large networks, and prints the figures. It
// returns a light newcomer.
func (c *crowd) measure(t *testing.T, messages int) (light *member) {
	joined := resources()
	conns := 0
	for _, m := range c.members {
		conns += len(m.Net.Peers())
	}
	t.Logf("%d nodes, %d serving, joined in %s; %.1f peers per node; %s", c.full, c.serving, c.join, float64(conns)/float64(c.full), joined.per(c.full))
	for _, role := range []string{p2p.RoleHost, p2p.RoleLight} {
		m, first, most, err := c.newcomer(role)
		light = m
		if err != nil {
			t.Error(err)
			continue
		}
		t.Logf("a newcomer (%s) found the first host after %s, 95 %% of %d after %s", role, first, c.serving, most)
		if most > 2*time.Second {
			t.Errorf("a newcomer (%s) needed %s to find the hosts, want 2 s", role, most)
		}
	}
	for _, size := range []int{300, 4 << 10} {
		s, err := c.gossip(messages, size)
		if err != nil {
			t.Error(err)
			continue
		}
		t.Logf("gossip of %d bytes: %s", size, s)
		if s.delivered != s.want {
			t.Errorf("gossip of %d bytes: %d of %d delivered", size, s.delivered, s.want)
		}
		if s.p99 >= 250*time.Millisecond {
			t.Errorf("gossip of %d bytes: p99 %s, want less than 250 ms", size, s.p99)
		}
	}
	t.Log(resources().per(c.full))
	return light
}

// usage is what the process took so far. The clock of a simulation says nothing of it.
type usage struct {
	cpu time.Duration
	rss int64 // bytes; 0 where it is not known
}

func resources() usage {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return usage{}
	}
	u := usage{cpu: time.Duration(r.Utime.Nano() + r.Stime.Nano())}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return u // not on Linux
	}
	for line := range bytes.Lines(status) {
		if rest, ok := strings.CutPrefix(string(line), "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err == nil {
				u.rss = kib << 10
			}
		}
	}
	return u
}

func (u usage) per(nodes int) string {
	return fmt.Sprintf("%.0f s of CPU, %d goroutines, RSS %.0f MB (%.2f MB per node)",
		u.cpu.Seconds(), runtime.NumGoroutine(), float64(u.rss)/1e6, float64(u.rss)/1e6/float64(nodes))
}

// TestCrowd: fifty nodes that each know the bootstrap node alone.
func TestCrowd(t *testing.T) {
	if testing.Short() {
		t.Skip("50 nodes take some ten seconds of CPU; make test runs it, -short does not")
	}
	gather(t, 50, 0, 3, func(t *testing.T, c *crowd) {
		c.findUnknown(t, c.measure(t, 10))
	})
}

// TestSimCrowd: a thousand nodes that each know the bootstrap node and eight others.
func TestSimCrowd(t *testing.T) {
	large(t)
	nodes := 1000
	if s := os.Getenv("MESH_SIM_NODES"); s != "" {
		var err error
		if nodes, err = strconv.Atoi(s); err != nil || nodes < 20 {
			t.Fatalf("MESH_SIM_NODES=%s: want a number from 20", s)
		}
	}
	begin := time.Now()
	gather(t, nodes, 8, 3, func(t *testing.T, c *crowd) {
		c.findUnknown(t, c.measure(t, 20))
	})
	t.Logf("wall time %s", time.Since(begin).Round(time.Second))
}

// large skips what only `make sim` runs.
func large(t *testing.T) {
	t.Helper()
	if os.Getenv("MESH_SIM") == "" {
		t.Skip("run by make sim (MESH_SIM=1)")
	}
}
