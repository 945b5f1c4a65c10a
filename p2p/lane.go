package p2p

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gonka-mesh/mesh"
)

// Limits bound what peers may ask of one protocol. Zero fields are defaults.
type Limits struct {
	PerPeer    int           // open streams of one peer; default 16
	Total      int           // open streams; default 1024
	Memory     int64         // bytes that all streams may hold, at MaxMessage each; default 256 MiB
	MaxMessage int           // bytes of the largest message; default 64 KiB
	Rate       float64       // new streams per second of one peer; 0 is no limit
	Burst      int           // streams that may come at once; default 2 * Rate, at least 1
	Idle       time.Duration // a stream on which nothing moves is reset; default 1 minute
	// IdlePerPeer is how many streams of one peer may have been without a byte for ten
	// seconds; default 8. Those beyond are reset with CodeIdle, and where Total is
	// reached the one that is idle for longest makes room for the next.
	IdlePerPeer int
}

func (l Limits) complete() Limits {
	l.PerPeer = orDefault(l.PerPeer, 16)
	l.Total = orDefault(l.Total, 1024)
	l.IdlePerPeer = orDefault(l.IdlePerPeer, 8)
	l.MaxMessage = orDefault(l.MaxMessage, 64<<10)
	if l.Memory <= 0 {
		l.Memory = 256 << 20
	}
	l.Total = min(l.Total, int(max(1, l.Memory/int64(l.MaxMessage))))
	l.Burst = orDefault(l.Burst, max(1, int(2*l.Rate)))
	if l.Idle <= 0 {
		l.Idle = time.Minute
	}
	return l
}

// lane is the inbound side of one protocol. It counts per peer in both
// directions of time: streams open now, and streams opened lately.
type lane struct {
	h      *Host
	name   string
	limits Limits
	serve  func(*Conn)
	stop   context.CancelFunc

	mu    sync.Mutex
	total int                // open streams; guarded by mu
	uses  map[peer.ID]*usage // guarded by mu
	held  map[*Conn]bool     // open streams; guarded by mu
}

// usage is what one peer takes of a lane.
type usage struct {
	open   int
	tokens float64
	at     time.Time // when tokens was computed
}

const maxUsages = 1024 // of peers with no stream open, before a sweep

var (
	errFull = errors.New("no room")           // not the peer's doing
	errBusy = errors.New("too many streams")  // of this peer
	errRate = errors.New("too many requests") // of this peer
)

// admit counts a new stream of a peer in, or says why not.
func (l *lane) admit(id peer.ID) error {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.uses[id]
	if u == nil {
		if len(l.uses) > maxUsages+l.total {
			l.sweep(now)
		}
		u = &usage{tokens: float64(l.limits.Burst), at: now}
		l.uses[id] = u
	}
	if l.limits.Rate > 0 {
		u.fill(now, l.limits)
		if u.tokens < 1 {
			return errRate
		}
	}
	if u.open >= l.limits.PerPeer {
		return errBusy
	}
	if l.total >= l.limits.Total {
		return errFull
	}
	u.tokens--
	u.open++
	l.total++
	return nil
}

func (u *usage) fill(now time.Time, lim Limits) {
	u.tokens = min(float64(lim.Burst), u.tokens+lim.Rate*now.Sub(u.at).Seconds())
	u.at = now
}

// sweep forgets peers that are as good as new.
func (l *lane) sweep(now time.Time) {
	for id, u := range l.uses {
		u.fill(now, l.limits)
		if u.open == 0 && (l.limits.Rate == 0 || u.tokens >= float64(l.limits.Burst)) {
			delete(l.uses, id)
		}
	}
}

// release counts a stream of a peer out; c is nil for one that was never served.
func (l *lane) release(id peer.ID, c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, c)
	l.total--
	if u := l.uses[id]; u != nil {
		if u.open--; u.open == 0 && l.limits.Rate == 0 {
			delete(l.uses, id)
		}
	}
}

// accept is the stream handler of a lane.
func (l *lane) accept(st network.Stream) {
	id := st.Conn().RemotePeer()
	ctx, cancel := context.WithTimeout(l.h.ctx, helloTimeout)
	err := l.h.hellos.wait(ctx, st.Conn())
	cancel()
	if err != nil {
		st.ResetWithError(network.StreamErrorCode(CodeRefused))
		return
	}
	err = l.admit(id)
	if errors.Is(err, errFull) && l.makeRoom() {
		err = l.admit(id)
	}
	if err != nil {
		if !errors.Is(err, errFull) {
			l.h.gate.penalise(id, l.name+": "+err.Error(), pointsOver)
		}
		code := CodeBusy
		if errors.Is(err, errRate) {
			code = CodeRate
		}
		st.ResetWithError(network.StreamErrorCode(code))
		return
	}
	if err := st.Scope().ReserveMemory(l.limits.MaxMessage, network.ReservationPriorityAlways); err != nil {
		l.release(id, nil)
		st.ResetWithError(network.StreamErrorCode(CodeBusy))
		return
	}
	l.serve(newConn(l.h, st, l))
}

// open registers a lane under its name.
func (h *Host) open(name string, lim Limits, serve func(*Conn), stop context.CancelFunc) *lane {
	l := &lane{h: h, name: name, limits: lim.complete(), serve: serve, uses: make(map[peer.ID]*usage), held: make(map[*Conn]bool), stop: stop}
	h.mu.Lock()
	h.lanes[name] = l
	h.mu.Unlock()
	h.host.SetStreamHandler(h.protocolID(name), l.accept)
	return l
}

// Handle serves a protocol, by its short name: fn runs for each stream that a
// peer opens, within the limits. The stream is closed in order when fn returns;
// fn resets it to tell of a failure. ctx ends when the host closes.
func (h *Host) Handle(name string, lim Limits, fn func(ctx context.Context, peer mesh.Address, c net.Conn)) {
	ctx, cancel := context.WithCancel(h.ctx)
	h.open(name, lim, func(c *Conn) {
		defer c.Close()
		fn(ctx, c.peer, c)
	}, cancel)
}

// Listen serves a protocol as a net.Listener, for an http.Server. Each accepted
// connection must be closed.
func (h *Host) Listen(name string, lim Limits) (net.Listener, error) {
	h.mu.Lock()
	closed, taken := h.closed, h.lanes[name] != nil
	h.mu.Unlock()
	if closed {
		return nil, net.ErrClosed
	}
	if taken {
		return nil, errors.New("listen for " + name + ": already served")
	}
	ctx, cancel := context.WithCancel(h.ctx)
	ln := &listener{h: h, name: name, ctx: ctx, conns: make(chan *Conn)}
	ln.cancel = cancel
	h.open(name, lim, func(c *Conn) {
		select {
		case ln.conns <- c:
		case <-ctx.Done():
			c.Reset(CodeRefused)
		}
	}, cancel)
	return ln, nil
}

type listener struct {
	h      *Host
	name   string
	ctx    context.Context
	cancel context.CancelFunc
	conns  chan *Conn
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends Accept; connections that were accepted stay.
func (l *listener) Close() error {
	l.cancel()
	l.h.host.RemoveStreamHandler(l.h.protocolID(l.name))
	l.h.mu.Lock()
	delete(l.h.lanes, l.name)
	l.h.mu.Unlock()
	return nil
}

func (l *listener) Addr() net.Addr { return streamAddr(l.h.id) }
