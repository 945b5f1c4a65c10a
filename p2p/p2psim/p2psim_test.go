package p2psim

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func endpoint(t *testing.T, n *Net, i int) net.PacketConn {
	t.Helper()
	c, err := n.Listen("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(IP(i), Port)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// count sends packets from one end to the other and returns how many arrived,
// and when the first did.
func count(t *testing.T, from, to net.PacketConn, packets int) (arrived int, first time.Duration) {
	t.Helper()
	begin := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		to.SetReadDeadline(begin.Add(5 * time.Second))
		for {
			if _, _, err := to.ReadFrom(make([]byte, 2000)); err != nil {
				return
			}
			if arrived++; arrived == 1 {
				first = time.Since(begin)
			}
		}
	}()
	for range packets {
		if _, err := from.WriteTo(make([]byte, 1000), to.LocalAddr()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Millisecond)
	}
	<-done
	return arrived, first
}

func TestNet(t *testing.T) {
	tests := []struct {
		name     string
		set      func(n *Net)
		min, max int // of 1000 packets
		latency  time.Duration
	}{
		{"default", func(*Net) {}, 1000, 1000, 20 * time.Millisecond},
		{"longer path", func(n *Net) { n.SetPath(2, 1, Path{Latency: 90 * time.Millisecond}) }, 1000, 1000, 90 * time.Millisecond},
		{"loss", func(n *Net) { n.SetPath(1, 2, Path{Loss: 0.3}) }, 620, 780, 20 * time.Millisecond},
		{"black hole", func(n *Net) { n.SetPath(1, 2, Path{Drop: true}) }, 0, 0, 0},
		{"sender cut", func(n *Net) { n.Cut(1) }, 0, 0, 0},
		{"receiver cut", func(n *Net) { n.Cut(2) }, 0, 0, 0},
		{"healed", func(n *Net) { n.Cut(2); n.Heal(2) }, 1000, 1000, 20 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := New(Config{Seed: 3})
				defer n.Close()
				a, b := endpoint(t, n, 1), endpoint(t, n, 2)
				tt.set(n)
				got, first := count(t, a, b, 1000)
				if got < tt.min || got > tt.max {
					t.Errorf("%d of 1000 packets arrived, want %d to %d", got, tt.min, tt.max)
				}
				if tt.max > 0 && tt.min == 1000 && (first < tt.latency || first > tt.latency+time.Millisecond) {
					t.Errorf("the first arrived after %s, want %s", first, tt.latency)
				}
			})
		})
	}
}

func TestListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		defer n.Close()
		if _, err := n.Listen("udp4", &net.UDPAddr{IP: net.IPv4zero, Port: 1}); err == nil {
			t.Error("listens on no address")
		}
		old := endpoint(t, n, 1)
		endpoint(t, n, 1)
		if _, _, err := old.ReadFrom(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a node came back on the address, its predecessor reads: %v", err)
		}
	})
}

// TestSpread: each pair has a latency of its own, the same in both directions and in
// another network of the same seed, and all together fill the range.
func TestSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const least, spread = 5 * time.Millisecond, 70 * time.Millisecond
		n, again, other := New(Config{Seed: 3, Latency: least, Spread: spread}), New(Config{Seed: 3, Latency: least, Spread: spread}), New(Config{Seed: 4, Latency: least, Spread: spread})
		defer n.Close()
		defer again.Close()
		defer other.Close()
		var sum time.Duration
		differ, pairs := 0, 0
		for i := range 100 {
			for j := range i {
				l := n.latency(IP(i), IP(j))
				if l != n.latency(IP(j), IP(i)) || l != again.latency(IP(i), IP(j)) || l < least || l > least+spread {
					t.Fatalf("latency of %d and %d: %s", i, j, l)
				}
				if l != other.latency(IP(i), IP(j)) {
					differ++
				}
				sum += l
				pairs++
			}
		}
		if mean := sum / time.Duration(pairs); mean < 38*time.Millisecond || mean > 42*time.Millisecond || differ < pairs*9/10 {
			t.Errorf("mean %s, %d of %d differ under another seed", mean, differ, pairs)
		}
	})
}
