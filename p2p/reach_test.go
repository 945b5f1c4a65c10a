package p2p

import (
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	bhost "github.com/libp2p/go-libp2p/p2p/host/basic"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
)

func TestReachabilityInWords(t *testing.T) {
	public, private := multiaddrs([]string{"/ip4/8.8.8.8/tcp/4700"}), multiaddrs([]string{"/ip4/192.168.1.7/tcp/4700"})
	circuit := multiaddrs([]string{"/ip4/8.8.4.4/tcp/4700/p2p/12D3KooWA4rBmYq1iaZLskz4jnBVLJk3sgYWDfBkWuZ3gWxtK9ZT/p2p-circuit"})
	tests := []struct {
		name   string
		events []any
		own    int // 0 private addresses, 1 a public one
		peers  int
		state  string
		reason string
	}{
		{"alone", nil, 1, 0, ReachUnknown, "no peer is connected"},
		{"local network", nil, 0, 3, ReachPrivate, "no public address"},
		{"not tried yet", nil, 1, 3, ReachUnknown, "none of 3 peers"},
		{"dialled back", []any{event.EvtHostReachableAddrsChanged{Reachable: public}}, 1, 3, ReachPublic, "/ip4/8.8.8.8/tcp/4700"},
		{"dialled back, old peers", []any{event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPublic}}, 1, 3, ReachPublic, "got through"},
		{"firewall", []any{event.EvtHostReachableAddrsChanged{Unreachable: public}}, 1, 3, ReachPrivate, "firewall"},
		{"symmetric NAT", []any{event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate},
			event.EvtNATDeviceTypeChanged{NatDeviceType: network.NATDeviceTypeEndpointDependent}}, 0, 3, ReachPrivate, "another port"},
		{"relay", []any{event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate},
			event.EvtAutoRelayAddrsUpdated{RelayAddrs: circuit}}, 0, 3, ReachRelayed, "through a relay"},
		{"relay lost", []any{event.EvtAutoRelayAddrsUpdated{RelayAddrs: circuit}, event.EvtAutoRelayAddrsUpdated{},
			event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate}}, 0, 3, ReachPrivate, "router or firewall"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newReach(&Host{})
			for _, e := range tt.events {
				r.note(e)
			}
			own := private
			if tt.own == 1 {
				own = public
			}
			got := r.judge(own, tt.peers)
			if got.State != tt.state || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("%s (%s), want %s (…%s…)", got.State, got.Reason, tt.state, tt.reason)
			}
			if (got.State == ReachPublic || got.State == ReachRelayed) && len(got.External) == 0 {
				t.Error("no external address")
			}
		})
	}
}

// router is a port mapper that a router answered.
type router struct{ mapped ma.Multiaddr } // nil: it gives no port

func (r router) GetMapping(ma.Multiaddr) ma.Multiaddr { return r.mapped }
func (r router) HasDiscoveredNAT() bool               { return true }
func (r router) Close() error                         { return nil }

func TestPortMapInWords(t *testing.T) {
	h := startHost(t, testConfig(t, 1))
	tests := []struct {
		name   string
		wanted bool
		router bhost.NATManager
		want   string
	}{
		{"off", false, nil, "off"},
		{"no answer", true, nil, "no router answered"},
		{"no port", true, router{}, "router answered, no port given"},
		{"mapped", true, router{ma.StringCast("/ip4/8.8.8.8/tcp/4700")}, "mapped to /ip4/8.8.8.8/tcp/4700"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h.nat.mu.Lock()
			h.nat.wanted, h.nat.inner = tt.wanted, tt.router
			h.nat.mu.Unlock()
			if got := h.Reachability().PortMap; got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// TestReachabilityHeard: what libp2p finds out comes through to the status.
func TestReachabilityHeard(t *testing.T) {
	h := startHost(t, testConfig(t, 1))
	if got := h.Reachability(); got.State != ReachUnknown || !strings.Contains(got.Reason, "no peer is connected") {
		t.Errorf("alone: %s (%s)", got.State, got.Reason)
	}
	emit, err := h.host.EventBus().Emitter(new(event.EvtNATDeviceTypeChanged))
	if err != nil {
		t.Fatal(err)
	}
	defer emit.Close()
	if err := emit.Emit(event.EvtNATDeviceTypeChanged{NatDeviceType: network.NATDeviceTypeEndpointDependent}); err != nil {
		t.Fatal(err)
	}
	connect(t, h, startHost(t, testConfig(t, 2)))
	eventually(t, "the router's kind is in the status", func() bool {
		got := h.Reachability()
		return got.State == ReachPrivate && strings.Contains(got.Reason, "another port")
	})
	cfg := testConfig(t, 3)
	cfg.NoListen = true
	if got := startHost(t, cfg).Reachability(); got.State != ReachPrivate || !strings.Contains(got.Reason, "only dials") {
		t.Errorf("a node that only dials: %s (%s)", got.State, got.Reason)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := testConfig(t, 1)
	cfg.Metrics = reg
	a, b := startHost(t, cfg), startHost(t, testConfig(t, 2))
	connect(t, a, b)
	gather := func() map[string]float64 {
		out := map[string]float64{}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				out[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		return out
	}
	got := gather()
	if got["mesh_p2p_peers"] != 1 || got["mesh_p2p_connections"] != 1 || got["mesh_p2p_bytes_total"] < 100 {
		t.Errorf("metrics %v", got)
	}
	a.Close()
	if got := gather(); len(got) != 0 {
		t.Errorf("metrics of a closed host: %v", got)
	}
}
