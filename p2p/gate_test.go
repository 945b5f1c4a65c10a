package p2p

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		var cuts []peer.ID
		g.cut = func(id peer.ID, _ time.Time, _ string) { cuts = append(cuts, id) }
		id, other := bookID(t, 1), bookID(t, 2)

		g.penalise(id, "x", cutPoints-1)
		if !g.InterceptPeerDial(id) || g.score(id) != cutPoints-1 {
			t.Errorf("score %d: one point short of the limit", g.score(id))
		}
		time.Sleep(50 * time.Second)
		if got := g.score(id); got != cutPoints-51 {
			t.Errorf("score %d after 50 s: want a point less per second", got)
		}
		g.penalise(id, "x", -5)
		g.penalise(id, "reason", 60)
		if g.InterceptPeerDial(id) || g.InterceptSecured(network.DirInbound, id, nil) || len(cuts) != 1 {
			t.Error("not cut off at the limit")
		}
		if !g.InterceptPeerDial(other) {
			t.Error("another peer is refused too")
		}
		g.penalise(id, "still sending", 500)
		if len(cuts) != 1 {
			t.Error("cut twice within one block")
		}
		time.Sleep(firstBlock)
		if err := g.refused(id); err != nil {
			t.Errorf("after the block: %v", err)
		}
		g.penalise(id, "again", cutPoints)
		time.Sleep(firstBlock + time.Minute)
		if g.refused(id) == nil {
			t.Error("the second block is no longer than the first")
		}
		for range 20 {
			time.Sleep(longestBlock)
			g.penalise(id, "again", cutPoints)
		}
		time.Sleep(longestBlock + time.Second)
		if err := g.refused(id); err != nil {
			t.Errorf("a block of more than a day: %v", err)
		}
	})
}

// TestGateIsBounded: identities are free, so they must not cost memory, and a
// flood of them must not push out a block.
func TestGateIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		bad := bookID(t, 1)
		g.penalise(bad, "x", cutPoints)
		for n := range maxRecords + 500 {
			g.penalise(peer.ID(fmt.Sprint(n)), "x", 1)
		}
		if len(g.records) > maxRecords {
			t.Errorf("%d records", len(g.records))
		}
		if g.refused(bad) == nil {
			t.Error("the blocked peer was forgotten")
		}
		time.Sleep(time.Hour)
		g.penalise("one more", "x", 1)
		if len(g.records) > 2 {
			t.Errorf("%d records after an hour: what has leaked away should be gone", len(g.records))
		}
	})
}

func TestRankAddrs(t *testing.T) {
	in := []string{
		"/ip4/203.0.113.9/udp/4700/quic-v1",
		"/ip4/8.8.4.4/tcp/4700/p2p/12D3KooWA4rBmYq1iaZLskz4jnBVLJk3sgYWDfBkWuZ3gWxtK9ZT/p2p-circuit",
		"/ip4/8.8.8.8/udp/4700/quic-v1",
		"/ip4/8.8.8.8/tcp/4700",
		"/ip4/192.168.1.7/tcp/4700",
		"/ip6/2001:4860:4860::8888/tcp/4700",
	}
	want := []struct {
		addr  string
		delay time.Duration
	}{
		{in[4], 0}, {in[5], 0}, {in[3], lateDelay},
		{in[0], quicDelay}, {in[2], quicDelay},
		{in[1], relayDelay},
	}
	got := rankAddrs(multiaddrs(in))
	if len(got) != len(want) {
		t.Fatalf("%d addresses", len(got))
	}
	for i, w := range want {
		if got[i].Addr.String() != w.addr || got[i].Delay != w.delay {
			t.Errorf("%d: %s after %s, want %s after %s", i, got[i].Addr, got[i].Delay, w.addr, w.delay)
		}
	}
	for _, only := range []string{in[1], in[2]} {
		if got := rankAddrs(multiaddrs([]string{only})); len(got) != 1 || got[0].Delay != 0 {
			t.Errorf("%s alone: %v, want no delay", only, got)
		}
	}
	if got := rankAddrs(nil); len(got) != 0 {
		t.Errorf("no addresses: %v", got)
	}
}

func multiaddrs(in []string) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, s := range in {
		out = append(out, ma.StringCast(s))
	}
	return out
}
