package router

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gonka-mesh/mesh"
)

// maxCalls is how many answers of one host there are at a time: hosts hold against a peer
// what it opens beyond 256 streams, and cancels, vouchers and gossip need some, too.
const maxCalls = 128

// enter counts a call to a host, unless there are as many as may be. leave has to follow.
func (r *Router) enter(peer mesh.Address) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calls[peer] >= maxCalls {
		return false
	}
	r.calls[peer]++
	return true
}

func (r *Router) leave(peer mesh.Address) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calls[peer]--; r.calls[peer] == 0 {
		delete(r.calls, peer)
	}
}

// newTransport returns the pool of infer streams. A peer's host name is its address
// in hex, since names are not case-sensitive everywhere.
func (r *Router) newTransport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			name, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			h, err := mesh.ParseHash(name)
			if err != nil {
				return nil, err
			}
			return r.dial(ctx, mesh.Address(h), "infer")
		},
		DisableCompression:  true,
		MaxIdleConnsPerHost: maxCalls, // to open new ones has a rate
		// Less than the minute after which p2p resets a stream that nobody uses.
		IdleConnTimeout:        45 * time.Second,
		MaxResponseHeaderBytes: 16 << 10,
	}
}

func (r *Router) dial(ctx context.Context, peer mesh.Address, protocol string) (net.Conn, error) {
	switch {
	case peer == r.self && r.cfg.Local != nil:
		return r.cfg.Local.Dial(ctx, peer, protocol)
	case r.cfg.Dialer == nil || peer == r.self:
		return nil, fmt.Errorf("dial %s: no way there", peer)
	}
	return r.cfg.Dialer.Dial(ctx, peer, protocol)
}

// newCall returns a request to a peer. body is a message; nil for none.
func newCall(ctx context.Context, method string, peer mesh.Address, path string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+hex.EncodeToString(peer[:])+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-protobuf")
	}
	req.Header.Set("User-Agent", "") // none is sent
	return req, nil
}

// ping opens a pooled stream to a peer, so that a call that has to move finds one.
func (r *Router) ping(peer mesh.Address) error {
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.Connect)
	defer cancel()
	req, err := newCall(ctx, http.MethodGet, peer, "/v1/ping", nil)
	if err != nil {
		return err
	}
	resp, err := r.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	drain(resp.Body)
	return nil
}

// drain reads what is left of a body, so that its stream is used again.
func drain(body io.Reader) { io.Copy(io.Discard, io.LimitReader(body, 64<<10)) }
