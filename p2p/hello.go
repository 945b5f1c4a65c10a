package p2p

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	msmux "github.com/multiformats/go-multistream"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

const (
	helloTimeout = 5 * time.Second
	helloLimit   = 512 // bytes of a hello
	agentLimit   = 64  // bytes of the agent that are kept
)

// errForeign marks a peer of another network, genesis or protocol version.
var errForeign = errors.New("foreign peer")

// hellos holds what the peers said in their hello. The side that dialled a
// connection opens the hello stream on it and speaks first; a connection on
// which the hello does not agree within helloTimeout is closed.
type hellos struct {
	h *Host

	mu     sync.Mutex
	atDoor bool                       // watchDoor runs; guarded by mu
	conns  map[network.Conn]*greeting // guarded by mu
	peers  map[peer.ID]*said          // of open connections; guarded by mu
}

// greeting is the state of one connection.
type greeting struct {
	done  chan struct{} // closed when decided
	err   error         // set before done is closed
	asked atomic.Bool   // the peer opened its hello stream
}

// said is what a peer announced.
type said struct {
	role, agent string
	conns       int // open connections whose hello agreed
}

func newHellos(h *Host) *hellos {
	return &hellos{h: h, conns: make(map[network.Conn]*greeting), peers: make(map[peer.ID]*said)}
}

func (s *hellos) protocol() protocol.ID { return s.h.protocolID("hello") }

func (s *hellos) start() {
	s.h.host.SetStreamHandler(s.protocol(), s.answer)
	s.h.host.Network().Notify(s)
}

// Connected starts the hello of a new connection.
func (s *hellos) Connected(_ network.Network, c network.Conn) {
	g := s.greeting(c)
	if c.Stat().Direction == network.DirOutbound {
		go s.ask(c, g)
		return
	}
	s.mu.Lock()
	watch := !s.atDoor && len(s.conns) >= s.crowd()
	s.atDoor = s.atDoor || watch
	s.mu.Unlock()
	if watch {
		go s.watchDoor()
	}
	time.AfterFunc(helloTimeout, func() {
		if s.decide(c, g, nil, errors.New("no hello")) {
			c.Close()
		}
	})
}

// Disconnected forgets a connection.
func (s *hellos) Disconnected(_ network.Network, c network.Conn) {
	s.mu.Lock()
	g := s.conns[c]
	delete(s.conns, c)
	lost := false
	if g != nil && g.decided() && g.err == nil {
		if p := s.peers[c.RemotePeer()]; p != nil {
			if p.conns--; p.conns == 0 {
				delete(s.peers, c.RemotePeer())
				lost = true
			}
		}
	}
	s.mu.Unlock()
	if lost {
		s.h.disc.lost()
	}
	if g != nil {
		s.decide(c, g, nil, errors.New("connection closed before the hello"))
	}
	s.h.poke()
}

// Listen and ListenClose complete network.Notifiee.
func (s *hellos) Listen(network.Network, ma.Multiaddr)      {}
func (s *hellos) ListenClose(network.Network, ma.Multiaddr) {}

func (g *greeting) decided() bool {
	select {
	case <-g.done:
		return true
	default:
		return false
	}
}

// greeting returns the state of a connection. A connection may be seen by a
// caller before Connected was called for it.
func (s *hellos) greeting(c network.Conn) *greeting {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.conns[c]
	if g == nil {
		g = &greeting{done: make(chan struct{})}
		if c.IsClosed() {
			g.err = errors.New("connection closed")
			close(g.done)
			return g
		}
		s.conns[c] = g
	}
	return g
}

// decide ends a greeting; the first decision holds. It reports whether this was it.
func (s *hellos) decide(c network.Conn, g *greeting, hello *p2ppb.Hello, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.decided() {
		return false
	}
	g.err = err
	if err == nil {
		if s.conns[c] != g {
			g.err = errors.New("connection closed during the hello")
		} else {
			p := s.peers[c.RemotePeer()]
			if p == nil {
				p = &said{}
				s.peers[c.RemotePeer()] = p
			}
			p.role, p.agent = hello.GetRole(), clip(hello.GetAgent(), agentLimit)
			p.conns++
		}
	}
	close(g.done)
	return true
}

// clip returns the first n bytes of s at most, in valid UTF-8 of printable text.
func clip(s string, n int) string {
	out := make([]rune, 0, min(len(s), n))
	size := 0
	for _, r := range s {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			r = '?'
		}
		if size += utf8.RuneLen(r); size > n {
			break
		}
		out = append(out, r)
	}
	return string(out)
}

// passed reports whether a connected peer's hello agreed.
func (s *hellos) passed(id peer.ID) bool {
	_, ok := s.get(id)
	return ok
}

func (s *hellos) get(id peer.ID) (said, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[id]
	if p == nil {
		return said{}, false
	}
	return *p, true
}

// count returns the number of peers whose hello agreed.
func (s *hellos) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

// wait returns when the hello of a connection is decided.
func (s *hellos) wait(ctx context.Context, c network.Conn) error {
	g := s.greeting(c)
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the hello: %w", ctx.Err())
	}
}

// ask runs the hello on a connection that this node dialled.
func (s *hellos) ask(c network.Conn, g *greeting) {
	hello, err := s.exchange(c)
	s.finish(c, g, hello, err)
}

func (s *hellos) exchange(c network.Conn) (*p2ppb.Hello, error) {
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(s.h.ctx, "hello"), helloTimeout)
	defer cancel()
	st, err := c.NewStream(ctx)
	if err != nil {
		return nil, err
	}
	defer st.Reset() // does nothing after the Close below
	st.SetDeadline(time.Now().Add(helloTimeout))
	if err := st.SetProtocol(s.protocol()); err != nil {
		return nil, err
	}
	if err := msmux.SelectProtoOrFail(s.protocol(), st); err != nil {
		if errors.As(err, &msmux.ErrNotSupported[protocol.ID]{}) {
			return nil, fmt.Errorf("%w: it is of another network than %s", errForeign, s.h.cfg.Network)
		}
		return nil, err
	}
	begin := time.Now()
	if err := WriteMessage(st, s.own()); err != nil {
		return nil, err
	}
	hello := &p2ppb.Hello{}
	if err := ReadMessage(st, helloLimit, hello); err != nil {
		return nil, err
	}
	s.h.host.Peerstore().RecordLatency(c.RemotePeer(), time.Since(begin))
	return hello, st.Close()
}

// answer serves the hello on a connection that the peer dialled.
func (s *hellos) answer(st network.Stream) {
	c := st.Conn()
	g := s.greeting(c)
	defer st.Reset()
	if g.asked.Swap(true) {
		// One says hello once; more streams of it are hoarded ones.
		s.h.gate.penalise(c.RemotePeer(), "hello: said again", pointsBadFrame)
		return
	}
	st.SetDeadline(time.Now().Add(helloTimeout))
	hello := &p2ppb.Hello{}
	if err := ReadMessage(st, helloLimit, hello); err != nil {
		if errors.Is(err, ErrMessage) {
			s.h.gate.penalise(c.RemotePeer(), "malformed hello", pointsBadFrame)
		}
		s.finish(c, g, nil, err)
		return
	}
	// This node's hello goes out in any case, so that a foreign peer learns why.
	begin := time.Now()
	if err := WriteMessage(st, s.own()); err != nil {
		s.finish(c, g, nil, err)
		return
	}
	if verr := s.verify(hello); verr == nil {
		s.finish(c, g, hello, nil)
	} else {
		defer s.finish(c, g, hello, nil)
	}
	st.CloseWrite()
	if _, err := st.Read(make([]byte, 1)); err != nil {
		s.h.host.Peerstore().RecordLatency(c.RemotePeer(), time.Since(begin))
	}
	st.Close()
}

// own is this node's hello.
func (s *hellos) own() *p2ppb.Hello {
	cfg := &s.h.cfg
	return &p2ppb.Hello{Network: string(cfg.Network), Genesis: cfg.Genesis[:],
		Protocol: mesh.ProtocolVersion, Role: cfg.Role, Agent: clip(cfg.Agent, agentLimit)}
}

// verify reports whether a hello agrees with this node's.
func (s *hellos) verify(hello *p2ppb.Hello) error {
	cfg := &s.h.cfg
	switch {
	case hello.GetNetwork() != string(cfg.Network):
		return fmt.Errorf("%w: it is of network %q, this node of %q", errForeign, clip(hello.GetNetwork(), 40), cfg.Network)
	case !bytes.Equal(hello.GetGenesis(), cfg.Genesis[:]):
		return fmt.Errorf("%w: its genesis differs", errForeign)
	case hello.GetProtocol() != mesh.ProtocolVersion:
		return fmt.Errorf("%w: it speaks protocol version %d, this node %d", errForeign, hello.GetProtocol(), mesh.ProtocolVersion)
	}
	switch hello.GetRole() {
	case RoleHost, RoleLight, RoleValidator:
		return nil
	}
	return fmt.Errorf("%w: unknown role %q", errForeign, clip(hello.GetRole(), 20))
}

// finish judges a hello and closes the connection unless it agrees.
func (s *hellos) finish(c network.Conn, g *greeting, hello *p2ppb.Hello, err error) {
	if err == nil {
		err = s.verify(hello)
	}
	if !s.decide(c, g, hello, err) {
		return
	}
	if err == nil {
		s.h.noteGood(c)
		s.h.poke()
		return
	}
	if errors.Is(err, errForeign) {
		s.h.gate.foreign(c.RemotePeer(), err.Error())
		s.h.log.Info("peer refused", "peer", c.RemotePeer().String(), "addr", c.RemoteMultiaddr().String(), "reason", err.Error())
	} else {
		s.h.log.Debug("hello failed", "peer", c.RemotePeer().String(), "err", err)
	}
	c.Close()
}
