package p2p

import (
	"crypto/ed25519"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

// TestDoorAfterStorm: more nodes than a bootstrap node can hold join it within half a
// second, and the next one gets in at its second try. By then there is room: those that
// were refused are fewer than the places, and those that were sent away to make room
// do not hurry back.
func TestDoorAfterStorm(t *testing.T) {
	t.Parallel()
	const (
		crowd, small = 60, 8                          // the bootstrap node can hold 32
		atMost       = firstBackoff*3/2 + time.Second // the longest wait after one refusal, and two dials
	)
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
		if took := time.Since(begin); took > atMost {
			t.Errorf("the newcomer had to wait %s, want %s", took, atMost)
		}
		time.Sleep(10 * time.Second)
		for i, h := range hosts[1:] {
			if len(h.Peers()) < 3 {
				t.Errorf("node %d has %d peers", 1+i, len(h.Peers()))
			}
		}
	})
}

// TestSentAway: a node whose bootstrap node closed the connection leaves it the place
// for a while, longer when it has other peers, and then is back.
func TestSentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig(t, 1)
		cfg.NoListen = true
		cfg.Bootstrap = []string{p2psim.Multiaddr(2, mesh.AddressOf(testKey(2).Public().(ed25519.PublicKey)))}
		h, err := New(cfg) // not started: the test takes the place of its joining loop
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		boot := h.seeds[0].ID
		for _, others := range []int{0, 1} {
			waits, flying := make(map[peer.ID]*backoff), make(map[peer.ID]bool)
			connected := make(map[peer.ID]*said)
			for i := range others {
				id, _ := peerID(mesh.AddressOf(testKey(3 + i).Public().(ed25519.PublicKey)))
				connected[id] = &said{}
			}
			waits[boot] = &backoff{delay: firstBackoff / 2, up: true}
			least := firstBackoff / 2 << others
			h.hellos.peers = connected
			h.missed(waits)
			now, turn := h.candidates(waits, flying)
			if len(now) != 0 || turn < least || turn > 3*least {
				t.Errorf("%d other peers: sent away, dials %d and its turn is in %s: want %s to %s", others, len(now), turn, least, 3*least)
			}
			time.Sleep(turn)
			if now, _ = h.candidates(waits, flying); len(now) != 1 {
				t.Errorf("%d other peers: its turn has come, dials %d", others, len(now))
			}
		}
	})
}

// TestForgetsFailures: of a peer that failed and was not dialled again for long nothing is
// kept; of one that is connected or still waits it is.
func TestForgetsFailures(t *testing.T) {
	cfg := testConfig(t, 1)
	cfg.NoListen = true
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	now := time.Now()
	h.hellos.peers = map[peer.ID]*said{"connected": {}}
	waits := map[peer.ID]*backoff{
		"connected":   {delay: firstBackoff / 2, up: true},
		"waits":       {delay: lastBackoff, next: now.Add(time.Minute)},
		"not long":    {delay: lastBackoff, next: now.Add(time.Minute - lastBackoff)},
		"for long":    {delay: lastBackoff, next: now.Add(-lastBackoff - time.Minute)},
		"just missed": {delay: firstBackoff / 2, up: true},
	}
	h.missed(waits)
	if _, stale := waits["for long"]; stale || len(waits) != 4 {
		t.Errorf("%d are remembered, want 4", len(waits))
	}
}
