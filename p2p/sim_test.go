package p2p

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

// simHost starts node i of a simulated network.
func simHost(t *testing.T, net *p2psim.Net, i int, change func(*Config)) *Host {
	t.Helper()
	cfg := testConfig(t, i)
	cfg.Listen, cfg.ListenUDP = []string{p2psim.Addr(i)}, net.Listen
	if change != nil {
		change(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

// settle ends a simulation: all hosts, then the network.
func settle(net *p2psim.Net, hosts ...*Host) {
	for _, h := range hosts {
		h.Close()
	}
	net.Close()
}

func simAddr(h *Host, i int) string { return p2psim.Multiaddr(i, h.Address()) }

func TestVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{Seed: 1, Bandwidth: 50_000_000})
		a, b := simHost(t, sim, 1, nil), simHost(t, sim, 2, nil)
		defer settle(sim, a, b)
		begin := time.Now()
		if _, err := a.Connect(t.Context(), simAddr(b, 2)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 40*time.Millisecond || took > 400*time.Millisecond {
			t.Errorf("connect with hello took %s of virtual time", took)
		}
		b.Handle("echo", Limits{}, func(_ context.Context, _ mesh.Address, c net.Conn) { io.Copy(c, c) })
		c, err := a.Dial(t.Context(), b.Address(), "echo")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		roundTrip := func() (time.Duration, error) {
			begin := time.Now()
			c.SetDeadline(begin.Add(3 * time.Second))
			if _, err := c.Write([]byte("token")); err != nil {
				return 0, err
			}
			_, err := io.ReadFull(c, make([]byte, 5))
			return time.Since(begin), err
		}
		if _, err := roundTrip(); err != nil { // the first also negotiates the protocol
			t.Fatal(err)
		}
		if rtt, err := roundTrip(); err != nil || rtt < 40*time.Millisecond || rtt > 45*time.Millisecond {
			t.Errorf("round trip %s, %v: want 40 ms", rtt, err)
		}
		sim.SetPath(1, 2, p2psim.Path{Latency: 100 * time.Millisecond})
		if rtt, err := roundTrip(); err != nil || rtt < 200*time.Millisecond || rtt > 205*time.Millisecond {
			t.Errorf("round trip on a longer path %s, %v: want 200 ms", rtt, err)
		}
		sim.Cut(2)
		if _, err := roundTrip(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("round trip into a black hole: %v, want a deadline", err)
		}
		var ne net.Error
		if _, err := roundTrip(); !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
		sim.Heal(2)
	})
}

func TestSilentPeerIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{})
		a, b := simHost(t, sim, 1, nil), simHost(t, sim, 2, nil)
		defer settle(sim, a, b)
		// A peer that dials and says nothing.
		b.host.Network().StopNotify(b.hellos)
		id, _ := peerID(a.Address())
		info, _ := parseSeed(simAddr(a, 1))
		if err := b.host.Connect(t.Context(), info); err != nil {
			t.Fatal(err)
		}
		time.Sleep(helloTimeout - time.Second)
		if len(b.host.Network().ConnsToPeer(id)) != 1 || len(a.Peers()) != 0 {
			t.Errorf("before the timeout: want a connection, and no peer")
		}
		time.Sleep(2 * time.Second)
		if n := len(b.host.Network().ConnsToPeer(id)); n != 0 {
			t.Errorf("after the timeout: %d connections", n)
		}
	})
}

func TestLossyPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{Seed: 7})
		sim.SetPath(1, 2, p2psim.Path{Loss: 0.05})
		a, b := simHost(t, sim, 1, nil), simHost(t, sim, 2, nil)
		defer settle(sim, a, b)
		if _, err := a.Connect(t.Context(), simAddr(b, 2)); err != nil {
			t.Fatal(err)
		}
		const size = 1 << 20
		b.Handle("load", Limits{}, func(_ context.Context, _ mesh.Address, c net.Conn) { c.Write(make([]byte, size)) })
		c, err := a.Dial(t.Context(), b.Address(), "load")
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		c.SetDeadline(begin.Add(time.Minute))
		CloseWrite(c)
		if n, err := io.Copy(io.Discard, c); n != size || err != nil {
			t.Errorf("%d of %d bytes, %v", n, size, err)
		}
		t.Logf("1 MiB at 5%% loss: %s", time.Since(begin))
	})
}

// TestRejoin: the bootstrap node is gone for good, and a restarted node finds its
// peers by its address book.
func TestRejoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{})
		home := t.TempDir()
		boot := simHost(t, sim, 1, nil)
		seeds := func(c *Config) { c.Bootstrap = []string{simAddr(boot, 1)} }
		b := simHost(t, sim, 2, seeds)
		c := simHost(t, sim, 3, func(c *Config) { seeds(c); c.Home = home })
		time.Sleep(2 * time.Second)
		if !c.Connected(boot.Address()) || !b.Connected(boot.Address()) {
			t.Error("not joined through the bootstrap node")
		}
		if _, err := c.Connect(t.Context(), simAddr(b, 2)); err != nil {
			t.Error(err)
		}
		time.Sleep(5 * time.Second) // the book is written some seconds after the start
		sim.Cut(1)
		sim.Cut(3) // killed, not closed
		boot.Close()
		c.Close()
		sim.Heal(3)
		c = simHost(t, sim, 3, func(c *Config) { seeds(c); c.Home = home })
		defer settle(sim, b, c)
		time.Sleep(2 * time.Second)
		if !c.Connected(b.Address()) {
			t.Errorf("not rejoined after 2 s; book %v", c.book.best(9))
		}
	})
}

// TestLateBootstrap: a node that starts before its bootstrap node keeps trying.
func TestLateBootstrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{})
		key := mesh.AddressOf(testKey(1).Public().(ed25519.PublicKey))
		a := simHost(t, sim, 2, func(c *Config) { c.Bootstrap = []string{p2psim.Multiaddr(1, key)} })
		time.Sleep(10 * time.Minute)
		boot := simHost(t, sim, 1, nil)
		defer settle(sim, a, boot)
		time.Sleep(20 * time.Second)
		if !a.Connected(boot.Address()) {
			t.Error("not joined 20 s after the bootstrap node came up")
		}
	})
}
