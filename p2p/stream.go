package p2p

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/gonka-mesh/mesh"
)

// Codes with which a stream is reset. A peer that is refused for load should try
// elsewhere.
const (
	CodeBusy      uint32 = uint32(network.StreamResourceLimitExceeded)
	CodeRate      uint32 = uint32(network.StreamRateLimited)
	CodeViolation uint32 = uint32(network.StreamProtocolViolation)
	CodeRefused   uint32 = uint32(network.StreamGated)
	CodeInternal  uint32 = 0x4d01
	CodeIdle      uint32 = 0x4d02
)

const (
	dialTimeout   = 15 * time.Second        // of a Dial whose context has no deadline
	directTimeout = 3 * time.Second         // of dialling a peer that is connected through a relay
	silentFor     = 1500 * time.Millisecond // after which a stream that brought nothing is held against the peer
)

// ErrNoAddress is returned by Dial for a peer that nobody knows an address of.
var ErrNoAddress = errors.New("no address known")

// protocolID returns the full name of a protocol: /mesh/NET/infer/1.
func (h *Host) protocolID(name string) protocol.ID {
	return protocol.ID("/mesh/" + string(h.cfg.Network) + "/" + name + "/1")
}

// Dial opens a stream of a protocol, by its short name, to a peer. It connects
// first where needed, with addresses from the address book, adverts and the DHT.
// A peer that refuses the stream shows it by a reset at the first read.
func (h *Host) Dial(ctx context.Context, a mesh.Address, name string) (net.Conn, error) {
	c, err := h.dial(ctx, a, name)
	if err != nil {
		return nil, fmt.Errorf("dial %s for %s: %w", a, name, err)
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, a mesh.Address, name string) (net.Conn, error) {
	id, err := peerID(a)
	if err != nil {
		return nil, err
	}
	if id == h.host.ID() {
		return nil, errors.New("that is this node")
	}
	if err := h.gate.refused(id); err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, dialTimeout)
		defer cancel()
	}
	if !h.hellos.passed(id) {
		if err := h.reachPeer(ctx, id); err != nil {
			return nil, err
		}
	}
	h.direct(ctx, id)
	st, err := h.host.NewStream(ctx, id, h.protocolID(name))
	if err != nil {
		return nil, err
	}
	// The stream may have landed on a newer connection of the same peer.
	if err := h.hellos.wait(ctx, st.Conn()); err != nil {
		st.Reset()
		return nil, err
	}
	return newConn(h, st, nil), nil
}

// reachPeer connects to a peer by what is known of it.
func (h *Host) reachPeer(ctx context.Context, id peer.ID) error {
	info := peer.AddrInfo{ID: id, Addrs: h.knownAddrs(id)}
	if len(h.host.Network().ConnsToPeer(id)) == 0 && len(info.Addrs) == 0 {
		found, err := h.disc.addrs(ctx, id)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNoAddress, err)
		}
		if len(found) == 0 {
			return ErrNoAddress
		}
		info.Addrs = found
		return h.connect(ctx, info)
	}
	err := h.connect(ctx, info)
	if err == nil || ctx.Err() != nil || errors.Is(err, errForeign) {
		return err
	}
	// The peer may have moved: what others know now may be newer.
	found, ferr := h.disc.addrs(ctx, id)
	if ferr != nil || len(found) == 0 {
		return err
	}
	return h.connect(ctx, peer.AddrInfo{ID: id, Addrs: found})
}

// direct dials a peer that is connected through a relay only, since mesh
// protocols do not run over relays. Where that fails, hole punching may still
// bring a direct connection, which NewStream waits for.
func (h *Host) direct(ctx context.Context, id peer.ID) {
	if h.host.Network().Connectedness(id) != network.Limited {
		return
	}
	ctx, cancel := context.WithTimeout(network.WithForceDirectDial(ctx, "mesh"), directTimeout)
	defer cancel()
	if err := h.host.Connect(ctx, peer.AddrInfo{ID: id, Addrs: h.knownAddrs(id)}); err != nil {
		h.log.Debug("no direct connection by dialling", "peer", id.String(), "err", err)
	}
}

// connect dials a peer and waits until a connection's hello agreed.
func (h *Host) connect(ctx context.Context, info peer.AddrInfo) error {
	if err := h.gate.refused(info.ID); err != nil {
		return err
	}
	if err := h.host.Connect(ctx, info); err != nil {
		if rerr := h.gate.refused(info.ID); rerr != nil {
			return rerr
		}
		return err
	}
	var err error
	for _, c := range h.host.Network().ConnsToPeer(info.ID) {
		if err = h.hellos.wait(ctx, c); err == nil {
			return nil
		}
	}
	if h.hellos.passed(info.ID) {
		return nil
	}
	if rerr := h.gate.refused(info.ID); rerr != nil {
		return fmt.Errorf("%w: %w", errForeign, rerr)
	}
	if err == nil {
		err = errors.New("connection closed at once")
	}
	return err
}

// Conn is a stream as a net.Conn. Close ends both directions in order: the peer
// reads EOF; Reset breaks them off.
type Conn struct {
	network.Stream
	host *Host
	peer mesh.Address

	lane   *lane // nil for streams that this node opened
	opened time.Time
	idle   time.Duration
	timer  *time.Timer
	active atomic.Int64 // Unix nanoseconds of the last progress
	spoke  atomic.Bool  // the peer sent something
	ended  sync.Once
}

func newConn(h *Host, st network.Stream, l *lane) *Conn {
	c := &Conn{Stream: st, host: h, lane: l, opened: time.Now()}
	c.peer, _ = addressOf(st.Conn().RemotePeer())
	h.value(c, 1)
	if l != nil && l.limits.Idle > 0 {
		c.idle = l.limits.Idle
		c.active.Store(time.Now().UnixNano())
		l.hold(c)
		c.timer = time.AfterFunc(min(c.idle, quietFor), c.checkIdle)
	}
	return c
}

func (c *Conn) moved(n int) {
	if n > 0 && c.idle > 0 {
		c.active.Store(time.Now().UnixNano())
	}
}

func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Stream.Read(b)
	if n > 0 && c.idle > 0 {
		c.spoke.Store(true)
		c.moved(n)
	}
	return n, err
}

func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.Stream.Write(b)
	c.moved(n)
	return n, err
}

// Close ends the stream in order.
func (c *Conn) Close() error {
	err := c.Stream.Close()
	c.end()
	return err
}

// Reset breaks the stream off with a code.
func (c *Conn) Reset(code uint32) error {
	err := c.Stream.ResetWithError(network.StreamErrorCode(code))
	c.end()
	return err
}

func (c *Conn) end() {
	c.ended.Do(func() {
		if c.timer != nil {
			c.timer.Stop()
		}
		c.host.value(c, -1)
		if c.lane == nil {
			return
		}
		id := c.Stream.Conn().RemotePeer()
		c.lane.release(id, c)
		// An honest peer's stream brings its first bytes with it.
		if !c.spoke.Load() && time.Since(c.opened) >= min(silentFor, c.idle) {
			c.host.gate.penalise(id, c.lane.name+": stream opened and not used", pointsSilent)
		}
	})
}

// Streams that are open make a peer worth its connection, up to a point that holding
// idle ones does not pass.
const (
	streamTag   = "open streams"
	streamValue = 20
	mostValued  = 3
)

// value adds n streams to the account of what the peer of c is worth when connections are closed to
// make room.
func (h *Host) value(c *Conn, n int) {
	id := c.Stream.Conn().RemotePeer()
	h.host.ConnManager().UpsertTag(id, streamTag, func(old int) int {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.streams[id] += n; h.streams[id] <= 0 {
			delete(h.streams, id)
		}
		return streamValue * min(h.streams[id], mostValued)
	})
}

// badFrame is called by ReadMessage.
func (c *Conn) badFrame(err error) {
	c.host.gate.penalise(c.Stream.Conn().RemotePeer(), string(c.Protocol())+": "+err.Error(), pointsBadFrame)
}

// LocalAddr returns this node's address.
func (c *Conn) LocalAddr() net.Addr { return streamAddr(c.host.id) }

// RemoteAddr returns the peer's address, authenticated by the handshake.
func (c *Conn) RemoteAddr() net.Addr { return streamAddr(c.peer) }

// streamAddr is a mesh address as net.Addr.
type streamAddr mesh.Address

func (streamAddr) Network() string  { return "mesh" }
func (a streamAddr) String() string { return mesh.Address(a).String() }

// RemotePeer returns the authenticated peer at the other end of a connection
// that came from this package.
func RemotePeer(c net.Conn) (mesh.Address, bool) {
	a, ok := c.RemoteAddr().(streamAddr)
	return mesh.Address(a), ok
}

// Reset breaks off a connection of this package with a code; another kind of
// connection is closed.
func Reset(c net.Conn, code uint32) error {
	if s, ok := c.(*Conn); ok {
		return s.Reset(code)
	}
	return c.Close()
}

// CloseWrite ends the writing direction; the peer reads EOF.
func CloseWrite(c net.Conn) error {
	if s, ok := c.(interface{ CloseWrite() error }); ok {
		return s.CloseWrite()
	}
	return errors.New("close write: not a stream")
}
