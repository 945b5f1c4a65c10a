package p2p

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/gonka-mesh/mesh"
)

// besieged starts a victim that echoes on loopback, and peers that are connected to
// it by TCP, where nothing but the victim's own limits bounds the streams.
func besieged(t *testing.T, peers int) (victim *Host, others []*Host) {
	t.Helper()
	victim = startHost(t, testConfig(t, 100))
	victim.Handle("work", Limits{PerPeer: 16}, echoMessages)
	for i := range peers {
		h := startHost(t, testConfig(t, 101+i))
		if _, err := h.Connect(t.Context(), victim.Addrs()[0]); err != nil {
			t.Fatal(err)
		}
		others = append(others, h)
	}
	return victim, others
}

// raw opens a stream beneath every protocol.
func raw(from, to *Host) (network.Stream, error) {
	id, err := peerID(to.Address())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(network.WithNoDial(context.Background(), "hostile"), time.Second)
	defer cancel()
	return from.host.Network().NewStream(ctx, id)
}

// TestNamelessStreams: streams that never say which protocol they are for fill only
// their own peer's share of what is unnegotiated, and who opens on and on is cut off.
func TestNamelessStreams(t *testing.T) {
	victim, others := besieged(t, 2)
	foe, honest := others[0], others[1]
	begin := time.Now()
	opened := 0
	for foe.Connected(victim.Address()) && time.Since(begin) < 10*time.Second {
		st, err := raw(foe, victim)
		if err != nil { // the foe's own limits
			break
		}
		st.Write([]byte{0x13})
		if opened++; opened%100 == 0 {
			if err := ask(honest, victim, "work"); err != nil {
				t.Fatalf("an honest request beside %d nameless streams: %v", opened, err)
			}
		}
	}
	for victim.Connected(foe.Address()) && time.Since(begin) < 10*time.Second {
		time.Sleep(time.Millisecond) // the last streams are still being counted
	}
	if took := time.Since(begin); victim.Connected(foe.Address()) || took > 10*time.Second {
		t.Errorf("after %d nameless streams in %s the peer is not cut off", opened, took)
	}
	if err := ask(honest, victim, "work"); err != nil {
		t.Errorf("an honest request after %d nameless streams: %v", opened, err)
	}
	t.Logf("cut off after %d streams in %s", opened, time.Since(begin).Round(time.Millisecond))
}

// TestHeldHello: one hello stream is all that a peer may have.
func TestHeldHello(t *testing.T) {
	victim, others := besieged(t, 2)
	foe, honest := others[0], others[1]
	for range 8 {
		c, err := foe.Dial(t.Context(), victim.Address(), "hello")
		if err != nil {
			break
		}
		c.Write(nil)
	}
	eventually(t, "the foe to be cut off", func() bool { return !victim.Connected(foe.Address()) })
	if err := ask(honest, victim, "work"); err != nil {
		t.Errorf("an honest request: %v", err)
	}
}

// TestStreamsOfHandlersThatGiveUp: a silent stream costs points also where the
// protocol's own deadline ends it before the idle time.
func TestStreamsOfHandlersThatGiveUp(t *testing.T) {
	attack(t, func(t *testing.T, victim, attacker, _ *Host) {
		victim.Handle("brief", Limits{}, func(_ context.Context, _ mesh.Address, c net.Conn) {
			c.SetDeadline(time.Now().Add(2 * time.Second))
			c.Read(make([]byte, 1))
		})
		for range 12 {
			c, err := attacker.Dial(t.Context(), victim.Address(), "brief")
			if err != nil {
				t.Fatal(err)
			}
			c.Write(nil)
		}
		time.Sleep(4 * time.Second)
		if victim.Connected(attacker.Address()) {
			t.Error("twelve silent streams, and the peer is still there")
		}
	})
}

// TestForeignFrames throws bytes that are no message at every protocol that a node
// speaks, those of libp2p itself included. MESH_HOSTILE=1 throws 10,000 of each kind.
func TestForeignFrames(t *testing.T) {
	count := 40
	if os.Getenv("MESH_HOSTILE") != "" {
		count = 10000
	}
	victim := startHost(t, testConfig(t, 200))
	victim.Handle("work", Limits{PerPeer: 16}, echoMessages)
	honest := startHost(t, testConfig(t, 201))
	if _, err := honest.Connect(t.Context(), victim.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	id, _ := peerID(victim.Address())
	var spoken []protocol.ID
	eventually(t, "the protocols of the victim", func() bool {
		spoken, _ = honest.host.Peerstore().GetProtocols(id)
		return len(spoken) > 5
	})
	goroutines := runtime.NumGoroutine()
	r := rand.New(rand.NewPCG(11, 0))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	kinds := []struct {
		name  string
		frame func() []byte
	}{
		{"oversized", func() []byte { return append([]byte{0xff, 0xff, 0xff, 0x7f}, noise(64)...) }},
		{"truncated", func() []byte { return []byte{100, 0x0a, 20, 1, 2, 3} }},
		{"random", func() []byte { return noise(1 + r.IntN(300)) }},
	}
	foes := 0
	for _, p := range spoken {
		for _, k := range kinds {
			left, cuts, slowest := count, 0, time.Duration(0)
			for left > 0 {
				foes++
				n, took, cut := throw(t, foes, victim, id, p, left, k.frame)
				left -= n
				slowest = max(slowest, took)
				if cut {
					cuts++
				}
				if err := ask(honest, victim, "work"); err != nil {
					t.Fatalf("an honest request beside %s frames on %s: %v", k.name, p, err)
				}
			}
			if slowest > 10*time.Second {
				t.Errorf("%s frames on %s: the sender went on for %s", k.name, p, slowest)
			}
			if count > 1000 {
				t.Logf("%s, %s: %d cut off, the slowest after %s", p, k.name, cuts, slowest.Round(time.Millisecond))
			}
		}
	}
	eventually(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines+20 })
}

// throw sends up to n frames on a protocol as a new peer, until it is cut off.
func throw(t *testing.T, foe int, victim *Host, id peer.ID, p protocol.ID, n int, frame func() []byte) (sent int, took time.Duration, cut bool) {
	t.Helper()
	cfg := testConfig(t, 1000+foe)
	cfg.Role, cfg.NoListen, cfg.Listen = RoleLight, true, nil
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Connect(t.Context(), victim.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	var drains sync.WaitGroup
	places := make(chan struct{}, 32)
	for ; sent < n && h.Connected(victim.Address()); sent++ {
		st, err := h.host.NewStream(network.WithNoDial(t.Context(), "hostile"), id, p)
		if err != nil {
			if strings.Contains(err.Error(), "resource") {
				time.Sleep(time.Millisecond)
			}
			continue
		}
		st.Write(frame())
		st.CloseWrite()
		places <- struct{}{}
		drains.Go(func() {
			st.SetReadDeadline(time.Now().Add(time.Second))
			io.Copy(io.Discard, st)
			st.Reset()
			<-places
		})
	}
	took, cut = time.Since(begin), !h.Connected(victim.Address())
	drains.Wait()
	return sent, took, cut
}
