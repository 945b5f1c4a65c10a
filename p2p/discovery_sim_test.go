package p2p

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

var testModel = mesh.HashOf([]byte("a model"))

// simPaths gives each pair of nodes a latency of 5 to 75 ms.
func simPaths(sim *p2psim.Net, nodes int, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range nodes {
		for j := range i {
			sim.SetPath(i, j, p2psim.Path{Latency: time.Duration(5+rng.IntN(71)) * time.Millisecond})
		}
	}
}

// TestCrowd: in a network that formed around one bootstrap node, a newcomer that
// knows only that node finds the hosts of a model, and gossip reaches everybody.
func TestCrowd(t *testing.T) {
	t.Parallel()
	nodes := 50
	if n, err := strconv.Atoi(os.Getenv("MESH_TEST_NODES")); err == nil {
		nodes = n
	}
	if testing.Short() {
		nodes = 20
	}
	const seed = 3
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{Seed: seed})
		simPaths(sim, nodes+1, seed)
		var hosts []*Host
		defer func() { settle(sim, hosts...) }()
		join := func(i int, role string) *Host {
			h := simHost(t, sim, i, func(c *Config) {
				c.Role = role
				if i > 0 {
					c.Bootstrap = []string{simAddr(hosts[0], 0)}
				}
			})
			hosts = append(hosts, h)
			return h
		}
		var topics []*Topic
		var heard arrivals
		serving := 0
		for i := range nodes {
			h := join(i, RoleHost)
			if i%10 == 5 {
				serving++
				if err := h.SetAdvert([]Service{{Key: testModel, Payload: []byte("q8_0")}}); err != nil {
					t.Fatal(err)
				}
			}
			topic, err := h.Join("task", heard.take, TopicOptions{})
			if err != nil {
				t.Fatal(err)
			}
			topics = append(topics, topic)
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		conns := 0
		for _, h := range hosts {
			conns += len(h.host.Network().Peers())
		}
		t.Logf("%d nodes, %d serving, %.1f connections each", nodes, serving, float64(conns)/float64(nodes))

		newcomer := join(nodes, RoleHost)
		found := timeToFind(newcomer, serving)
		t.Logf("newcomer found %d of %d hosts in %v", len(newcomer.Adverts(testModel)), serving, found)
		if found > 2*time.Second {
			t.Errorf("newcomer needed %v, want 2 s", found)
		}
		measureGossip(t, topics, &heard, seed)
	})
}

// timeToFind returns how long a node takes to know 95 % of the hosts of the
// test's model, at most 10 s.
func timeToFind(h *Host, serving int) time.Duration {
	begin := time.Now()
	h.Follow(testModel)
	for len(h.Adverts(testModel))*100 < 95*serving && time.Since(begin) < 10*time.Second {
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(begin)
}

// arrivals are the times that messages took.
type arrivals struct {
	mu    sync.Mutex
	times []time.Duration // guarded by mu
}

// take is a Validator. A message begins with the time at which it was sent.
func (a *arrivals) take(_ mesh.Address, data []byte) Verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.times = append(a.times, time.Since(time.UnixMicro(int64(binary.BigEndian.Uint64(data)))))
	return Accept
}

// measureGossip publishes from some of the topics and checks that all others
// hear it, fast enough.
func measureGossip(t *testing.T, topics []*Topic, heard *arrivals, seed uint64) {
	const messages = 20
	rng := rand.New(rand.NewPCG(seed, 2))
	for range messages {
		data := make([]byte, 300)
		binary.BigEndian.PutUint64(data, uint64(time.Now().UnixMicro()))
		if err := topics[rng.IntN(len(topics))].Publish(t.Context(), data); err != nil {
			t.Error(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
	time.Sleep(3 * time.Second)
	heard.mu.Lock()
	defer heard.mu.Unlock()
	times := heard.times
	slices.Sort(times)
	want := messages * (len(topics) - 1)
	if len(times) != want {
		t.Errorf("%d of %d messages delivered", len(times), want)
	}
	if len(times) == 0 {
		return
	}
	p99 := times[len(times)*99/100]
	t.Logf("gossip p50 %v, p99 %v, max %v", times[len(times)/2], p99, times[len(times)-1])
	if p99 > 250*time.Millisecond {
		t.Errorf("gossip p99 is %v, want 250 ms", p99)
	}
}
