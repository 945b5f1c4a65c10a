package p2p

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

// village starts n hosts that know the first of them, and settles them at the
// end of the test's bubble.
func village(t *testing.T, sim *p2psim.Net, n int, change func(i int, c *Config)) []*Host {
	t.Helper()
	var hosts []*Host
	for i := range n {
		hosts = append(hosts, simHost(t, sim, i, func(c *Config) {
			if i > 0 {
				c.Bootstrap = []string{simAddr(hosts[0], 0)}
			}
			if change != nil {
				change(i, c)
			}
		}))
	}
	return hosts
}

// within waits for a condition in virtual time and returns how long it took.
func within(t *testing.T, d time.Duration, what string, cond func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !cond() {
		if time.Since(begin) > d {
			t.Errorf("not within %v: %s", d, what)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(begin)
}

func knows(h *Host, key mesh.Hash, of *Host) bool {
	return slices.ContainsFunc(h.Adverts(key), func(a Advert) bool { return a.Peer == of.Address() })
}

func TestAdvertStory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{})
		hosts := village(t, sim, 5, nil)
		defer func() { settle(sim, hosts...) }()
		server, watcher := hosts[1], hosts[2]
		watcher.Follow(testModel)
		time.Sleep(5 * time.Second)
		set := func(payload string) {
			if err := server.SetAdvert([]Service{{Key: testModel, Payload: []byte(payload)}}); err != nil {
				t.Fatal(err)
			}
		}
		says := func(payload string) func() bool {
			return func() bool {
				a, ok := watcher.AdvertOf(server.Address())
				p, _ := a.Service(testModel)
				return ok && string(p) == payload
			}
		}
		set("one")
		took := within(t, 2*time.Second, "first advert", says("one"))
		t.Logf("first advert after %v", took)
		set("two")
		within(t, 500*time.Millisecond, "a change at once", says("two"))
		for i := range 20 {
			set(fmt.Sprintf("fast %d", i))
			time.Sleep(10 * time.Millisecond)
		}
		within(t, advertEvery+time.Second, "the last of many changes", says("fast 19"))
		time.Sleep(5 * time.Minute)
		if !says("fast 19")() {
			t.Error("heartbeats did not keep the advert alive")
		}
		if err := server.SetAdvert(nil); err != nil {
			t.Fatal(err)
		}
		within(t, time.Second, "withdrawal", func() bool { return !knows(watcher, testModel, server) })
		set("back")
		within(t, advertEvery+time.Second, "return", says("back"))
		server.Close()
		within(t, time.Second, "goodbye at close", func() bool { return !knows(watcher, testModel, server) })

		// It comes back from the same address with no memory of its sequence.
		hosts[1] = simHost(t, sim, 1, func(c *Config) { c.Bootstrap = []string{simAddr(hosts[0], 0)} })
		server = hosts[1]
		set("again")
		within(t, 2*time.Second, "advert after a restart", says("again"))
		sim.Cut(1)
		took = within(t, advertTTL+2*sweepEvery, "expiry of a dead peer", func() bool { return !knows(watcher, testModel, server) })
		if took < advertBeat {
			t.Errorf("a silent peer was forgotten after %v", took)
		}
	})
}

// TestLightPeer: a light peer, which joins no topic, knows the hosts of a model in
// two seconds and follows changes by asking.
func TestLightPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{})
		hosts := village(t, sim, 8, nil)
		defer func() { settle(sim, hosts...) }()
		for i, h := range hosts[4:] {
			if err := h.SetAdvert([]Service{{Key: testModel, Payload: []byte{byte(i)}}}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second)
		light := simHost(t, sim, 20, func(c *Config) {
			c.Role = RoleLight
			c.Bootstrap = []string{simAddr(hosts[0], 0)}
		})
		hosts = append(hosts, light)
		light.Follow(testModel)
		took := within(t, 2*time.Second, "all hosts of the model", func() bool { return len(light.Adverts(testModel)) == 4 })
		t.Logf("light peer knew all after %v", took)
		if n := len(light.disc.shards); n != 0 {
			t.Errorf("light peer joined %d topics", n)
		}
		task, err := light.Join("task", nil, TopicOptions{})
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan string, 1)
		if _, err := hosts[6].Join("task", func(from mesh.Address, data []byte) Verdict {
			heard <- from.String() + " " + string(data)
			return Accept
		}, TopicOptions{}); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, "a subscriber is seen", func() bool { return task.Peers() > 0 })
		if err := task.Publish(t.Context(), []byte("who can?")); err != nil {
			t.Fatal(err)
		}
		if m := <-heard; m != light.Address().String()+" who can?" {
			t.Errorf("heard %q", m)
		}
		if err := hosts[5].SetAdvert([]Service{{Key: testModel, Payload: []byte("changed")}}); err != nil {
			t.Fatal(err)
		}
		within(t, findLight+2*time.Second, "a change", func() bool {
			a, _ := light.AdvertOf(hosts[5].Address())
			p, _ := a.Service(testModel)
			return string(p) == "changed"
		})
	})
}

// TestProviders: records in the DHT are found by who knows only the bootstrap
// node, move with the epoch, and end with Unprovide.
func TestProviders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{})
		begin := time.Now()
		epoch := func() mesh.Epoch { return mesh.Epoch(time.Since(begin) / time.Minute) }
		hosts := village(t, sim, 8, func(_ int, c *Config) { c.Epoch = epoch })
		defer func() { settle(sim, hosts...) }()
		blob := mesh.HashOf([]byte("a blob"))
		for _, h := range hosts[2:5] {
			h.Provide(blob)
		}
		time.Sleep(5 * time.Second)
		found := func(h *Host, most int) int {
			begin, n := time.Now(), 0
			for a := range h.Providers(t.Context(), blob, most) {
				if !slices.ContainsFunc(hosts[2:5], func(p *Host) bool { return p.Address() == a }) {
					t.Errorf("%s does not provide", a)
				}
				n++
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("search took %v", took)
			}
			return n
		}
		newcomer := simHost(t, sim, 20, func(c *Config) {
			c.Epoch = epoch
			c.Bootstrap = []string{simAddr(hosts[0], 0)}
		})
		hosts = append(hosts, newcomer)
		if n := found(newcomer, 10); n != 3 {
			t.Errorf("newcomer found %d providers at once, want 3", n)
		}
		if n := found(newcomer, 2); n != 2 {
			t.Errorf("found %d providers, asked for 2", n)
		}
		time.Sleep(time.Until(begin.Add(3*time.Minute + 100*time.Millisecond)))
		if n := found(newcomer, 10); n != 3 {
			t.Errorf("found %d providers right after an epoch began, want 3", n)
		}
		for _, h := range hosts[2:5] {
			h.Unprovide(blob)
		}
		time.Sleep(3 * time.Minute)
		if n := found(newcomer, 10); n != 0 {
			t.Errorf("found %d providers three epochs after they ended", n)
		}
		for range newcomer.Providers(t.Context(), testModel, 10) {
			t.Error("found a provider of what nobody has")
		}
	})
}

// TestFindByAddress: a peer that was never met is reached over the DHT.
func TestFindByAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{})
		hosts := village(t, sim, 6, nil)
		defer func() { settle(sim, hosts...) }()
		time.Sleep(5 * time.Second)
		id, err := peerID(hosts[4].Address())
		if err != nil {
			t.Fatal(err)
		}
		newcomer := simHost(t, sim, 20, func(c *Config) { c.Bootstrap = []string{simAddr(hosts[0], 0)} })
		hosts = append(hosts, newcomer)
		addrs, err := newcomer.disc.addrs(t.Context(), id)
		if err != nil || len(addrs) == 0 {
			t.Errorf("addresses %v, %v", addrs, err)
		}
		unknown, err := peerID(testAddress(99))
		if err != nil {
			t.Fatal(err)
		}
		if addrs, err := newcomer.disc.addrs(t.Context(), unknown); err == nil {
			t.Errorf("addresses of nobody: %v", addrs)
		}
	})
}

func TestSetAdvertRefuses(t *testing.T) {
	h, err := New(testConfig(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	many := func(n, size int) (out []Service) {
		for i := range n {
			out = append(out, Service{Key: mesh.Hash{1, byte(i)}, Payload: make([]byte, size)})
		}
		return out
	}
	cases := map[string][]Service{
		"no key":         {{}},
		"twice":          {{Key: testModel}, {Key: testModel}},
		"large payload":  many(1, maxPayload+1),
		"too many":       many(maxServices+1, 0),
		"too large both": many(maxServices, maxPayload),
	}
	if err := h.SetAdvert([]Service{{Key: testModel}}); err != nil {
		t.Fatal(err)
	}
	for name, services := range cases {
		t.Run(name, func(t *testing.T) {
			if err := h.SetAdvert(services); err == nil {
				t.Error("accepted")
			}
			if a, ok := h.AdvertOf(h.Address()); !ok || len(a.Services) != 1 || a.Services[0].Key != testModel {
				t.Errorf("own advert is now %v", a)
			}
		})
	}
}

// TestTogether: hosts that start in the same moment, as those of one command do,
// know each other within two seconds, whether or not the bootstrap node cares.
func TestTogether(t *testing.T) {
	for _, serving := range []bool{true, false} {
		t.Run(fmt.Sprintf("bootstrap serves %v", serving), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sim := p2psim.New(p2psim.Config{})
				hosts := village(t, sim, 8, nil)
				defer func() { settle(sim, hosts...) }()
				members := hosts[1:]
				if serving {
					members = hosts
				}
				for _, h := range members {
					h.Follow(testModel)
					if err := h.SetAdvert([]Service{{Key: testModel}}); err != nil {
						t.Fatal(err)
					}
				}
				took := within(t, 2*time.Second, "all know all", func() bool {
					for _, h := range members {
						if len(h.Adverts(testModel)) != len(members) {
							return false
						}
					}
					return true
				})
				t.Logf("all knew all after %v", took)
			})
		})
	}
}

// TestNewcomer is the same on real sockets: one bootstrap address, which belongs
// to a host of nothing, leads to all hosts of a model.
func TestNewcomer(t *testing.T) {
	boot := startHost(t, testConfig(t, 50))
	join := func(n int) *Host {
		cfg := testConfig(t, n)
		cfg.Bootstrap = boot.Addrs()
		return startHost(t, cfg)
	}
	for n := range 4 {
		if err := join(51 + n).SetAdvert([]Service{{Key: testModel}}); err != nil {
			t.Fatal(err)
		}
	}
	probe := join(60)
	probe.Follow(testModel)
	eventually(t, "the hosts are in the DHT", func() bool { return len(probe.Adverts(testModel)) == 4 })
	newcomer := join(61)
	begin := time.Now()
	newcomer.Follow(testModel)
	eventually(t, "all hosts of the model", func() bool { return len(newcomer.Adverts(testModel)) == 4 })
	t.Logf("found all after %v", time.Since(begin))
}
