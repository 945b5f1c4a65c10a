package p2p

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

// TestDoorAfterStorm: more nodes than a bootstrap node can hold join it within half a
// second, and the next one still gets in.
func TestDoorAfterStorm(t *testing.T) {
	t.Parallel()
	const crowd, small = 60, 8 // the bootstrap node can hold 32
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{Seed: 1})
		boot := simHost(t, sim, 0, func(c *Config) { c.LowConns, c.HighConns = small/2, small })
		hosts := []*Host{boot}
		defer func() { settle(sim, hosts...) }()
		join := func(i int) *Host {
			h := simHost(t, sim, i, func(c *Config) { c.Bootstrap = []string{simAddr(boot, 0)} })
			hosts = append(hosts, h)
			return h
		}
		for i := range crowd {
			join(1 + i)
			time.Sleep(8 * time.Millisecond)
		}
		most := 0
		for range 4 {
			time.Sleep(50 * time.Millisecond)
			most = max(most, len(boot.host.Network().Conns()))
		}
		if most < stormFactor*small {
			t.Errorf("the bootstrap node held at most %d connections: it was never full", most)
		}
		newcomer := join(1 + crowd)
		begin := time.Now()
		for len(newcomer.Peers()) == 0 && time.Since(begin) < 20*time.Second {
			time.Sleep(10 * time.Millisecond)
		}
		t.Logf("the newcomer had a peer after %s", time.Since(begin))
		if took := time.Since(begin); took > 4*time.Second {
			t.Errorf("the newcomer had to wait %s, want 4 s", took)
		}
		time.Sleep(10 * time.Second)
		for i, h := range hosts[1:] {
			if len(h.Peers()) < 3 {
				t.Errorf("node %d has %d peers", 1+i, len(h.Peers()))
			}
		}
	})
}
