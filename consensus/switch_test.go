package consensus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	cp2p "github.com/cometbft/cometbft/p2p"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p"
)

// visitor is a host without a ledger, which takes what the node sends and lets a test
// do what it likes.
func (n *toyNet) visitor(i int, cfg p2p.Config) *p2p.Host {
	n.t.Helper()
	if cfg.Network == "" {
		cfg.Network, cfg.Genesis = n.network, n.hash
	}
	cfg.Key, cfg.Listen, cfg.Log = toyKey(i), []string{"127.0.0.1:0"}, n.log(i)
	h, err := p2p.New(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := h.Start(context.Background()); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { h.Close() })
	h.Handle(protocolName, p2p.Limits{}, func(_ context.Context, _ mesh.Address, c net.Conn) { io.Copy(io.Discard, c) })
	return h
}

func (node *toyNode) has(a mesh.Address) bool { return node.sw().Peers().Has(idOf(a)) }

func (node *toyNode) sw() cp2p.Switcher {
	p, err := node.running()
	if err != nil {
		panic(err)
	}
	return p.sw
}

// TestWhoIsAPeer: full nodes whose hello agreed become peers, others never do.
func TestWhoIsAPeer(t *testing.T) {
	n := newToyNet(t, 1, 0, nil)
	n.start()
	node := n.nodes[0]
	foreign := n.visitor(10, p2p.Config{Network: mesh.NewNetworkID("other", n.hash), Genesis: n.hash})
	fork := n.visitor(11, p2p.Config{Network: n.network, Genesis: mesh.HashOf([]byte("another"))})
	for _, h := range []*p2p.Host{foreign, fork} {
		if _, err := h.Connect(t.Context(), node.host.Addrs()[0]); err == nil {
			t.Error("a node of another network connects")
		}
	}
	light := n.visitor(12, p2p.Config{Role: p2p.RoleLight})
	full := n.visitor(13, p2p.Config{})
	for _, h := range []*p2p.Host{light, full} {
		if _, err := h.Connect(t.Context(), node.host.Addrs()[0]); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the full node is a peer", func() bool { return node.has(full.Address()) })
	c, err := light.Dial(t.Context(), node.host.Address(), protocolName)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte{0x20})
	cut(t, c, "a light node's stream")
	for _, h := range []*p2p.Host{light, foreign, fork} {
		if node.has(h.Address()) {
			t.Errorf("%s is a peer", h.Address())
		}
	}
	full.Close()
	eventually(t, "a peer that left is none", func() bool { return !node.has(full.Address()) })
}

// cut waits for the end of a stream that the other side broke off.
func cut(t *testing.T, c net.Conn, what string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	_, err := c.Read(make([]byte, 1))
	var late net.Error
	if err == nil || errors.As(err, &late) && late.Timeout() {
		t.Errorf("%s is not cut: %v", what, err)
	}
}

// TestHostilePeers: what a peer cannot have meant well ends its streams, costs it
// points and takes it away for a while; the node goes on.
func TestHostilePeers(t *testing.T) {
	n := newToyNet(t, 1, 0, nil)
	n.start()
	node := n.nodes[0]
	frame := func(size uint64, body ...byte) []byte { return append(binary.AppendUvarint(nil, size), body...) }
	for i, c := range []struct {
		name string
		send []byte
	}{
		{"unknown channel", []byte{0x77}},
		{"oversized message", append([]byte{0x20}, frame(2<<20)...)},
		{"oversized beyond 64 bits", append([]byte{0x20}, bytes.Repeat([]byte{0xff}, 12)...)},
		{"length not minimal", []byte{0x20, 0x81, 0x00, 0xff}},
		{"not protobuf", append([]byte{0x22}, frame(4, 0xff, 0xff, 0xff, 0xff)...)},
		{"empty consensus message", append([]byte{0x20}, frame(0)...)},
		{"unsolicited block", append([]byte{0x40}, frame(2, 0x1a, 0)...)},
		{"malformed transaction", append([]byte{0x30}, frame(10, append([]byte{0x0a, 8, 0x0a, 6}, "forged"...)...)...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := n.visitor(20+i, p2p.Config{})
			if _, err := h.Connect(t.Context(), node.host.Addrs()[0]); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the visitor is a peer", func() bool { return node.has(h.Address()) })
			st, err := h.Dial(t.Context(), node.host.Address(), protocolName)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Write(c.send); err != nil {
				t.Fatal(err)
			}
			cut(t, st, "the stream")
			if info, ok := node.host.Peer(h.Address()); !ok {
				t.Error("one fault cost the whole connection")
			} else if info.Score == 0 {
				t.Error("it cost no points")
			}
		})
	}
	before := node.height()
	n.reach(before+2, node)
}

// TestMemoryFollowsBytes: a length that is claimed reserves nothing.
func TestMemoryFollowsBytes(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	b := newBudget(1 << 20)
	f := newFrames(server, 8<<20, b)
	go func() {
		client.Write(binary.AppendUvarint(nil, 8<<20))
		client.Write(make([]byte, 700<<10))
		client.Close()
	}()
	if _, err := f.next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("broken off: %v", err)
	}
	if took := 1<<20 - b.free.Load(); took < 700<<10 || took > 1<<20 {
		t.Errorf("%d bytes taken for 700 KiB", took)
	}
	f.done()
	if b.free.Load() != 1<<20 {
		t.Errorf("%d bytes are missing from the budget", 1<<20-b.free.Load())
	}

	client, server = net.Pipe()
	defer client.Close()
	f = newFrames(server, 8<<20, b)
	defer f.done()
	go func() {
		client.Write(binary.AppendUvarint(nil, 2<<20))
		client.Write(make([]byte, 2<<20))
	}()
	if _, err := f.next(); err == nil {
		t.Error("2 MiB were read with a budget of 1 MiB")
	}
	server.Close()
}

// TestStalledMessage: a message that began has a time to arrive in.
func TestStalledMessage(t *testing.T) {
	for name, sent := range map[string][]byte{"in its length": {0x80}, "in its body": {100, 1, 2, 3}} {
		client, server := net.Pipe()
		f := newFrames(server, 1<<20, newBudget(1<<20))
		f.time = 50 * time.Millisecond
		go client.Write(sent)
		var bad *badMessage
		if _, err := f.next(); !errors.As(err, &bad) || !errors.Is(err, errStalled) {
			t.Errorf("%s: %v", name, err)
		}
		client.Close()
		server.Close()
	}
}

// FuzzFrames: no bytes of a peer make the reader panic or hold what it must not.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{3, 1, 2, 3, 0, 1, 9})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02})
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newBudget(1 << 20)
		in := newFrames(onlyReader{r: bytes.NewReader(data)}, 512<<10, b)
		rest := data
		for {
			m, err := in.next()
			if err != nil {
				break
			}
			size, n := binary.Uvarint(rest)
			if n <= 0 || uint64(len(m)) != size || !bytes.Equal(m, rest[n:n+len(m)]) {
				t.Fatalf("message %x from %x", m, rest)
			}
			rest = rest[n+len(m):]
			in.done()
		}
		in.done()
		if b.free.Load() != 1<<20 {
			t.Error("the budget is short")
		}
	})
}

type onlyReader struct {
	net.Conn
	r io.Reader
}

func (o onlyReader) Read(b []byte) (int, error)      { return o.r.Read(b) }
func (o onlyReader) SetReadDeadline(time.Time) error { return nil }

// TestOtherStreamsLive: taking a peer away, by a reactor or because the ledger stops,
// touches no stream of another protocol, and the peer comes back by itself.
func TestOtherStreamsLive(t *testing.T) {
	n := newToyNet(t, 2, 0, nil)
	n.start()
	a, b := n.nodes[0], n.nodes[1]
	n.reach(2, a, b)
	b.host.Handle("echo", p2p.Limits{}, func(_ context.Context, _ mesh.Address, c net.Conn) { io.Copy(c, c) })
	c, err := a.host.Dial(t.Context(), b.host.Address(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echo := func(when string) {
		t.Helper()
		c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	echo("at first")
	peer := a.sw().Peers().Get(idOf(b.host.Address()))
	a.sw().StopPeerForError(peer, "a test")
	if peer.Send(cp2p.Envelope{}) {
		t.Error("a peer that was taken away takes messages")
	}
	echo("after StopPeerForError")
	at := a.height()
	eventually(t, "the peer is back", func() bool {
		p := a.sw().Peers().Get(idOf(b.host.Address()))
		return p != nil && p != peer
	})
	n.reach(at+3, a, b)
	a.Stop()
	echo("after Stop")
	if !a.host.Connected(b.host.Address()) {
		t.Error("the connection is gone")
	}
	n.startChain(a)
	n.reach(b.height()+2, a, b)
}

// TestIPv6 runs nodes that have no other address.
func TestIPv6(t *testing.T) {
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here:", err)
	}
	ln.Close()
	n := newToyNet(t, 2, 0, nil)
	n.listen = "[::1]:0"
	n.start()
	n.reach(3, n.nodes...)
	n.agree(3, n.nodes...)
}

// TestCometTransport runs the same ledger over CometBFT's own transport.
func TestCometTransport(t *testing.T) {
	n := newToyNet(t, 4, 0, nil)
	n.useComet()
	n.start()
	n.reach(5, n.nodes...)
	n.agree(5, n.nodes...)
}

// TestChannels fails when an upgrade of CometBFT brings channels, or takes names away,
// that the switch knows nothing of.
func TestChannels(t *testing.T) {
	n := newToyNet(t, 1, 0, nil)
	n.start()
	s := n.nodes[0].sw().(*meshSwitch)
	want := map[byte]string{0x20: "CONSENSUS", 0x21: "CONSENSUS", 0x22: "CONSENSUS", 0x23: "CONSENSUS",
		0x30: "MEMPOOL", 0x38: "EVIDENCE", 0x40: "BLOCKSYNC", 0x60: "STATESYNC", 0x61: "STATESYNC"}
	for id, ch := range s.channels {
		r, ok := s.Reactor(want[id])
		if !ok || r != ch.reactor {
			t.Errorf("channel %#x is not of reactor %q", id, want[id])
		}
		delete(want, id)
	}
	if len(want) > 0 {
		t.Errorf("channels are missing: %v", want)
	}
}

// TestChurn: a peer that opens and ends streams as fast as it can is made a peer anew
// only after a pause each time.
func TestChurn(t *testing.T) {
	n := newToyNet(t, 1, 0, nil)
	n.start()
	node := n.nodes[0]
	h := n.visitor(40, p2p.Config{})
	if _, err := h.Connect(t.Context(), node.host.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the visitor is a peer", func() bool { return node.has(h.Address()) })
	seen := make(map[cp2p.Peer]bool)
	begin := time.Now()
	for range 100 {
		c, err := h.Dial(t.Context(), node.host.Address(), protocolName)
		if err != nil {
			continue
		}
		c.Write([]byte{0x20})
		c.Close()
		if p := node.sw().Peers().Get(idOf(h.Address())); p != nil {
			seen[p] = true
		}
		time.Sleep(5 * time.Millisecond)
	}
	if most := 2 + int(time.Since(begin)/firstPenance); len(seen) > most {
		t.Errorf("it was made a peer %d times in %s", len(seen), time.Since(begin))
	}
	if !node.host.Connected(h.Address()) {
		t.Error("the connection was cut")
	}
}
