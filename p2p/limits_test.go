package p2p

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

func TestSubnetLimits(t *testing.T) {
	tests := []struct {
		name          string
		addr          func(i int) string
		conns, burst  int
		want, wantAny int // admitted of 40 at once; of 40 more, a second each, when those are closed
	}{
		{"conns of one address", func(int) string { return "/ip4/8.8.8.8/tcp/1" }, 5, 100, 5, 40},
		{"rate of one address", func(int) string { return "/ip4/8.8.8.8/tcp/1" }, 100, 7, 7, 40},
		{"many addresses", func(i int) string { return fmt.Sprintf("/ip4/8.8.8.%d/tcp/1", i) }, 5, 7, 40, 40},
		{"one IPv6 network", func(i int) string { return fmt.Sprintf("/ip6/2001:db8:0:%x::1/tcp/1", i) }, 5, 100, 5, 40},
		{"loopback", func(int) string { return "/ip4/127.0.0.1/tcp/1" }, 5, 7, 40, 40},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig(t, 1)
				cfg.SubnetConns, cfg.SubnetBurst = tt.conns, tt.burst
				if err := cfg.complete(); err != nil {
					t.Fatal(err)
				}
				limits, err := (&Host{cfg: cfg}).resources()
				if err != nil {
					t.Fatal(err)
				}
				defer limits.Close()
				var open []network.ConnManagementScope
				admit := func(i int) bool {
					s, err := limits.OpenConnection(network.DirInbound, true, ma.StringCast(tt.addr(i)))
					if err == nil {
						open = append(open, s)
					}
					return err == nil
				}
				for i := range 40 {
					admit(i)
				}
				if len(open) != tt.want {
					t.Errorf("%d of 40 connections at once, want %d", len(open), tt.want)
				}
				got := 0
				for i := range 40 {
					for _, s := range open {
						s.Done()
					}
					open = nil
					time.Sleep(time.Second)
					if admit(i) {
						got++
					}
				}
				if got != tt.wantAny {
					t.Errorf("%d of 40 connections one by one, want %d", got, tt.wantAny)
				}
			})
		})
	}
}

// TestOneAddress: of many identities at one address so many are connected as the limit
// allows, and another address is not disturbed.
func TestOneAddress(t *testing.T) {
	const crowd, limit = 12, 5
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{})
		victim := simHost(t, sim, 1, func(c *Config) { c.SubnetConns = limit })
		hosts := []*Host{victim}
		defer func() { settle(sim, hosts...) }()
		join := func(i int, listen string) {
			hosts = append(hosts, simHost(t, sim, i, func(c *Config) {
				c.Listen, c.Bootstrap = []string{listen}, []string{simAddr(victim, 1)}
			}))
		}
		for i := range crowd {
			join(10+i, netip.AddrPortFrom(p2psim.IP(2), uint16(4700+i)).String())
		}
		time.Sleep(3 * time.Second)
		join(30, p2psim.Addr(3))
		time.Sleep(3 * time.Second)
		inbound := make(map[string]int)
		for _, c := range victim.host.Network().Conns() {
			if c.Stat().Direction == network.DirInbound {
				ip, _ := c.RemoteMultiaddr().ValueForProtocol(ma.P_IP4)
				inbound[ip]++
			}
		}
		if n := inbound[p2psim.IP(2).String()]; n != limit {
			t.Errorf("%d connections of one address, limit %d", n, limit)
		}
		if n := inbound[p2psim.IP(3).String()]; n != 1 {
			t.Errorf("%d connections of another address, want 1", n)
		}
	})
}
