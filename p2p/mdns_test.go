package p2p

import (
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
)

// TestMDNS uses the real interfaces of the machine: two hosts of one network find
// each other without any address, a third of another network is left alone.
func TestMDNS(t *testing.T) {
	local := func(n int, c func(*Config)) *Host {
		cfg := testConfig(t, n)
		cfg.MDNS = true
		if c != nil {
			c(&cfg)
		}
		return startHost(t, cfg)
	}
	begin := time.Now()
	a, b := local(1, nil), local(2, nil)
	other := local(3, func(c *Config) {
		c.Genesis = mesh.HashOf([]byte("another genesis"))
		c.Network = mesh.NewNetworkID("test", c.Genesis)
	})
	eventually(t, "two hosts of one network meet by mDNS", func() bool {
		return a.Connected(b.Address()) && b.Connected(a.Address())
	})
	took := time.Since(begin)
	t.Logf("met after %v", took)
	if took > 5*time.Second {
		t.Errorf("met after %v, want 5 s", took)
	}
	if n := len(other.host.Network().Peers()); n != 0 {
		t.Errorf("host of another network has %d peers", n)
	}
}
