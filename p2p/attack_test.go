package p2p

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

// attack runs a scenario with a victim and an attacker, who are connected, and a
// bystander who is connected to the victim.
func attack(t *testing.T, scenario func(t *testing.T, victim, attacker, honest *Host)) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{Latency: 5 * time.Millisecond})
		victim, attacker, honest := simHost(t, sim, 1, nil), simHost(t, sim, 2, nil), simHost(t, sim, 3, nil)
		defer settle(sim, victim, attacker, honest)
		for _, h := range []*Host{attacker, honest} {
			if _, err := h.Connect(t.Context(), simAddr(victim, 1)); err != nil {
				t.Fatal(err)
			}
		}
		scenario(t, victim, attacker, honest)
	})
}

// echoMessages answers each message with itself.
func echoMessages(_ context.Context, _ mesh.Address, c net.Conn) {
	for {
		m := &p2ppb.PeersAsk{}
		if err := ReadMessage(c, 1<<10, m); err != nil {
			if !errors.Is(err, io.EOF) {
				Reset(c, CodeViolation)
			}
			return
		}
		if WriteMessage(c, m) != nil {
			return
		}
	}
}

// ask runs one request on a new stream.
func ask(from, to *Host, protocol string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, to.Address(), protocol)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if err := WriteMessage(c, &p2ppb.PeersAsk{Max: 7}); err != nil {
		return err
	}
	m := &p2ppb.PeersAsk{}
	if err := ReadMessage(c, 1<<10, m); err != nil {
		return err
	}
	if m.GetMax() != 7 {
		return errors.New("wrong answer")
	}
	return nil
}

// open opens a stream as an attacker does, and uses it once so that it exists.
func open(from, to *Host, protocol string) (net.Conn, error) {
	c, err := from.Dial(context.Background(), to.Address(), protocol)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(time.Second))
	if err := WriteMessage(c, &p2ppb.PeersAsk{}); err != nil {
		return nil, err
	}
	return c, ReadMessage(c, 1<<10, &p2ppb.PeersAsk{})
}

// resetCode returns the code with which the peer reset a stream.
func resetCode(err error) (uint32, bool) {
	var se *network.StreamError
	if errors.As(err, &se) && se.Remote {
		return uint32(se.ErrorCode), true
	}
	return 0, false
}

// TestIdleStreams: a peer that fills its share with idle streams keeps a few of them,
// and those neither outlive their turn nor keep others out.
func TestIdleStreams(t *testing.T) {
	attack(t, func(t *testing.T, victim, attacker, honest *Host) {
		victim.Handle("work", Limits{PerPeer: 96, Total: 100}, echoMessages)
		victim.Handle("few", Limits{PerPeer: 6, Total: 6}, echoMessages)
		hoard := func(name string, n int) {
			for range n {
				if _, err := open(attacker, victim, name); err != nil {
					t.Fatal(err)
				}
			}
		}
		held := func(name string) int {
			l := victim.lanes[name]
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.total != len(l.held) {
				t.Errorf("%d streams counted, %d held", l.total, len(l.held))
			}
			return l.total
		}
		hoard("work", 96)
		hoard("few", 6)
		if err := ask(honest, victim, "few"); err == nil {
			t.Error("a stream beyond the limit was served while the others were in use")
		}
		time.Sleep(quietFor + time.Second)
		if n := held("work"); n != 8 {
			t.Errorf("%d idle streams of one peer after %s, want 8", n, quietFor)
		}
		if err := ask(honest, victim, "few"); err != nil {
			t.Errorf("an honest request beside idle streams that take all places: %v", err)
		}
		if n := held("few"); n > 6 {
			t.Errorf("%d streams, limit 6", n)
		}
		time.Sleep(time.Minute)
		if n := held("work") + held("few"); n != 0 {
			t.Errorf("%d streams after the idle time", n)
		}
	})
}

func TestHoardedStreams(t *testing.T) {
	attack(t, func(t *testing.T, victim, attacker, honest *Host) {
		victim.Handle("work", Limits{PerPeer: 16, Total: 20, Idle: 8 * time.Second}, echoMessages)
		var held []net.Conn
		for range 40 {
			c, err := open(attacker, victim, "work")
			if err == nil {
				held = append(held, c)
				continue
			}
			if code, ok := resetCode(err); !ok || code != CodeBusy {
				t.Fatalf("refused stream: %v, want a reset with CodeBusy", err)
			}
		}
		if len(held) != 16 {
			t.Errorf("one peer holds %d streams, limit 16", len(held))
		}
		if err := ask(honest, victim, "work"); err != nil {
			t.Errorf("an honest request beside the hoarder: %v", err)
		}
		time.Sleep(9 * time.Second)
		l := victim.lanes["work"]
		l.mu.Lock()
		if l.total != 0 || len(l.uses) != 0 {
			t.Errorf("after the idle time: %d streams, %d peers in the books", l.total, len(l.uses))
		}
		l.mu.Unlock()
		// Who goes on against the limit is cut off.
		begin := time.Now()
		for attacker.Connected(victim.Address()) && time.Since(begin) < 10*time.Second {
			open(attacker, victim, "work")
		}
		if victim.Connected(attacker.Address()) {
			t.Error("the hoarder is still connected after 10 s")
		}
		if err := ask(honest, victim, "work"); err != nil {
			t.Errorf("an honest request after the attack: %v", err)
		}
	})
}

func TestTotalLimit(t *testing.T) {
	attack(t, func(t *testing.T, victim, attacker, honest *Host) {
		// 3 streams of 1 MiB each fit into the memory of the lane.
		victim.Handle("work", Limits{MaxMessage: 1 << 20, Memory: 3 << 20}, echoMessages)
		var held []net.Conn
		for _, from := range []*Host{attacker, honest, attacker, honest} {
			if c, err := open(from, victim, "work"); err == nil {
				held = append(held, c)
			}
		}
		if len(held) != 3 {
			t.Errorf("%d streams open, memory for 3", len(held))
		}
		held[0].Close()
		time.Sleep(time.Second)
		if err := ask(honest, victim, "work"); err != nil {
			t.Errorf("after one ended: %v", err)
		}
	})
}

func TestRequestRate(t *testing.T) {
	attack(t, func(t *testing.T, victim, attacker, honest *Host) {
		victim.Handle("work", Limits{Rate: 10, Burst: 20}, echoMessages)
		good, limited := 0, 0
		for range 40 {
			err := ask(attacker, victim, "work")
			if code, _ := resetCode(err); code == CodeRate {
				limited++
			} else if err == nil {
				good++
			} else {
				t.Fatal(err)
			}
		}
		// 40 requests of 10 ms: the burst, and what comes back in 0.4 s.
		if good < 20 || good > 26 || limited != 40-good {
			t.Errorf("%d of 40 requests answered, %d limited", good, limited)
		}
		if err := ask(honest, victim, "work"); err != nil {
			t.Errorf("another peer: %v", err)
		}
		time.Sleep(time.Second)
		if err := ask(attacker, victim, "work"); err != nil {
			t.Errorf("after a second of rest: %v", err)
		}
		for range 2000 {
			ask(attacker, victim, "work")
			if !victim.Connected(attacker.Address()) {
				break
			}
		}
		if victim.Connected(attacker.Address()) {
			t.Error("a flood is not cut off")
		}
		if err := ask(attacker, victim, "work"); err == nil {
			t.Error("a blocked peer is served")
		}
		if _, err := victim.Dial(t.Context(), attacker.Address(), "work"); err == nil {
			t.Error("a blocked peer is dialled")
		}
		time.Sleep(firstBlock)
		// The attacker's own dialler may still back off from the refused dials.
		time.Sleep(time.Minute)
		if _, err := attacker.Connect(t.Context(), simAddr(victim, 1)); err != nil {
			t.Errorf("after the block: %v", err)
		}
	})
}

func TestBadFrames(t *testing.T) {
	const seed = 20
	kinds := map[string]func(r *rand.Rand) []byte{
		"oversized": func(*rand.Rand) []byte { return []byte{0xff, 0xff, 0xff, 0x7f, 1, 2, 3} },
		"truncated": func(*rand.Rand) []byte { return []byte{100, 0x0a, 20, 1, 2, 3} },
		"random": func(r *rand.Rand) []byte {
			b := make([]byte, 1+r.IntN(64))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			b[0] |= 0x80 // a request of length 0 would be fine
			return append(b, 0xff)
		},
	}
	for name, frame := range kinds {
		t.Run(name, func(t *testing.T) {
			attack(t, func(t *testing.T, victim, attacker, honest *Host) {
				t.Logf("seed %d", seed)
				r := rand.New(rand.NewPCG(seed, 0))
				victim.Handle("work", Limits{}, echoMessages)
				begin := time.Now()
				sent := 0
				for attacker.Connected(victim.Address()) && time.Since(begin) < 10*time.Second {
					c, err := attacker.Dial(t.Context(), victim.Address(), "work")
					if err != nil {
						break
					}
					c.Write(frame(r))
					CloseWrite(c)
					c.SetReadDeadline(time.Now().Add(time.Second))
					io.Copy(io.Discard, c)
					c.Close()
					sent++
				}
				if victim.Connected(attacker.Address()) || sent > 20 {
					t.Errorf("after %d bad frames in %s the sender is not cut off", sent, time.Since(begin))
				}
				if err := ask(honest, victim, "work"); err != nil {
					t.Errorf("an honest request: %v", err)
				}
			})
		})
	}
}

func TestSlowReader(t *testing.T) {
	attack(t, func(t *testing.T, victim, attacker, honest *Host) {
		done := make(chan error, 1)
		victim.Handle("work", Limits{Idle: 5 * time.Second}, func(_ context.Context, _ mesh.Address, c net.Conn) {
			ReadMessage(c, 1<<10, &p2ppb.PeersAsk{})
			_, err := c.Write(make([]byte, 64<<20))
			done <- err
		})
		c, err := attacker.Dial(t.Context(), victim.Address(), "work")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := WriteMessage(c, &p2ppb.PeersAsk{}); err != nil { // and never reads
			t.Fatal(err)
		}
		begin := time.Now()
		select {
		case err := <-done:
			if err == nil {
				t.Error("64 MiB went to a peer that does not read")
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("given up after %s", took)
			}
		case <-time.After(time.Minute):
			t.Error("still writing after a minute")
		}
	})
}

func TestSilentStreamsCostPoints(t *testing.T) {
	attack(t, func(t *testing.T, victim, attacker, _ *Host) {
		victim.Handle("work", Limits{Idle: time.Second}, echoMessages)
		id, _ := peerID(victim.Address())
		for range 10 {
			// The protocol is agreed upon, and then nothing is said.
			s, err := attacker.host.NewStream(t.Context(), id, attacker.protocolID("work"))
			if err != nil {
				t.Fatal(err)
			}
			s.Write(nil)
			s.CloseWrite()
		}
		attackerID, _ := peerID(attacker.Address())
		for range 10 {
			s, err := attacker.host.Network().NewStream(network.WithNoDial(t.Context(), "test"), id)
			if err != nil {
				break
			}
			s.Write([]byte("\x13/multistream/1.0.0\n"))
			p := string(attacker.protocolID("work"))
			s.Write(append([]byte{byte(len(p) + 1)}, p+"\n"...))
		}
		time.Sleep(1500 * time.Millisecond)
		if got := victim.gate.score(attackerID); got < 50 && victim.Connected(attacker.Address()) {
			t.Errorf("score %d after ten silent streams", got)
		}
	})
}

func TestMalformedHello(t *testing.T) {
	attack(t, func(t *testing.T, victim, attacker, _ *Host) {
		id, _ := peerID(victim.Address())
		attackerID, _ := peerID(attacker.Address())
		for range 6 {
			s, err := attacker.host.NewStream(t.Context(), id, attacker.protocolID("hello"))
			if err != nil {
				break
			}
			s.Write([]byte{0xff, 0xff, 0x7f})
			s.SetReadDeadline(time.Now().Add(time.Second))
			io.Copy(io.Discard, s)
			s.Close()
		}
		time.Sleep(time.Second)
		if victim.gate.refused(attackerID) == nil {
			t.Errorf("score %d: a peer that sends garbage for a hello is not cut off", victim.gate.score(attackerID))
		}
	})
}

func TestPenaliseByApplication(t *testing.T) {
	attack(t, func(t *testing.T, victim, attacker, honest *Host) {
		victim.Penalise(attacker.Address(), "lied about a price", 60)
		time.Sleep(time.Second)
		if !victim.Connected(attacker.Address()) {
			t.Fatal("cut off too early")
		}
		for _, p := range victim.Peers() {
			if p.Address == attacker.Address() && p.Score != 59 {
				t.Errorf("score %d", p.Score)
			}
		}
		victim.Penalise(attacker.Address(), "lied about a price", 60)
		time.Sleep(time.Second)
		if victim.Connected(attacker.Address()) || !victim.Connected(honest.Address()) {
			t.Error("want the attacker cut off, and nobody else")
		}
	})
}
