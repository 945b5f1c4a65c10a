package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/gonka-mesh/mesh"
)

// Dial opens a stream to this host from within its own process, for a router that
// serves itself. Only the host's own address can be dialled.
func (h *Host) Dial(ctx context.Context, peer mesh.Address, protocol string) (net.Conn, error) {
	if peer != h.self {
		return nil, fmt.Errorf("dial %s: it is not in this process", peer)
	}
	near, far := net.Pipe()
	switch protocol {
	case "infer":
		h.local.once.Do(func() {
			h.background(func() {
				if err := h.Serve(h.local); err != nil && !errors.Is(err, net.ErrClosed) {
					h.cfg.Log.Error("the local listener ended", "error", err)
				}
			})
		})
		select {
		case h.local.conns <- localConn{far}:
			return near, nil
		case <-h.local.done:
			return nil, net.ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	case "offer":
		if !h.background(func() { h.ServeOffer(h.ctx, h.self, far) }) {
			return nil, errDraining
		}
		return near, nil
	}
	return nil, fmt.Errorf("dial %s: no protocol %q", peer, protocol)
}

// caller returns who is at the other end.
func (h *Host) caller(c net.Conn) (mesh.Address, bool) {
	if _, ok := c.(localConn); ok {
		return h.self, true
	}
	return h.cfg.RemotePeer(c)
}

// localConn marks the far end of a pipe from this process.
type localConn struct{ net.Conn }

// pipeListener accepts what Dial made.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once // starts serving
	close sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.close.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
