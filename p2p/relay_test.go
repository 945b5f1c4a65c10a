package p2p

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/gonka-mesh/mesh"
)

// TestRelay: a node that is not reachable finds a relay among its peers by their
// adverts and reserves a place there. A peer that knows that address only has its
// hello through the relay; streams wait for a direct connection.
func TestRelay(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, 1)
	cfg.reachability = network.ReachabilityPublic
	relay := startHost(t, cfg)
	cfg = testConfig(t, 2)
	cfg.reachability, cfg.Bootstrap = network.ReachabilityPrivate, relay.Addrs()
	hidden := startHost(t, cfg)
	hidden.Handle("echo", Limits{}, func(_ context.Context, _ mesh.Address, c net.Conn) { io.Copy(c, c) })
	id, _ := peerID(hidden.Address())
	eventually(t, "a place at the relay", func() bool {
		info := relay.host.ConnManager().GetTagInfo(id)
		return info != nil && info.Tags["relay-reservation"] > 0
	})
	caller := startHost(t, testConfig(t, 3))
	var relayed atomic.Bool
	caller.host.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if isRelayed(c.RemoteMultiaddr()) {
			relayed.Store(true)
		}
	}})
	// On loopback libp2p announces no relay address, so the test makes the one
	// that the reservation stands for.
	if _, err := caller.Connect(t.Context(), relay.Addrs()[0]+"/p2p-circuit/p2p/"+hidden.Address().String()); err != nil {
		t.Fatal(err)
	}
	if !relayed.Load() {
		t.Error("no connection ran through the relay")
	}
	c, err := caller.Dial(t.Context(), hidden.Address(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := transportOf(c.(*Conn).Stream.Conn().RemoteMultiaddr()); got == "relay" {
		t.Error("the stream runs through the relay")
	}
	io.WriteString(c, "direct")
	CloseWrite(c)
	if got, err := io.ReadAll(c); string(got) != "direct" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
