package host

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// wireBytes is an infer stream on which a peer says what it likes, and then no more.
type wireBytes struct {
	said
	closed chan struct{}
	once   sync.Once
}

func (w *wireBytes) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}
func (w *wireBytes) LocalAddr() net.Addr                { return pipeAddr{} }
func (w *wireBytes) RemoteAddr() net.Addr               { return pipeAddr{} }
func (w *wireBytes) SetReadDeadline(_ time.Time) error  { return nil }
func (w *wireBytes) SetWriteDeadline(_ time.Time) error { return nil }

// panics is a log that notices what net/http says of a handler that panicked.
type panics struct {
	slog.Handler
	mu   sync.Mutex
	seen string // guarded by mu
}

func (p *panics) Enabled(context.Context, slog.Level) bool { return true }
func (p *panics) Handle(_ context.Context, r slog.Record) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.Contains(r.Message, "panic") {
		p.seen = r.Message
	}
	return nil
}

// FuzzInferStream is what a host does with the raw bytes of an infer stream: headers,
// bodies and several requests, one after the other. All that a call took is given back.
func FuzzInferStream(f *testing.F) {
	log := &panics{Handler: slog.DiscardHandler}
	h, err := New(Config{
		Network: network, Key: testKey(1), Log: slog.New(log),
		RemotePeer: func(net.Conn) (mesh.Address, bool) { return addressOf(2), true },
	})
	if err != nil {
		f.Fatal(err)
	}
	if err := h.Add(&engine{slots: 4}, Prices{Prompt: 2, Output: 3}); err != nil {
		f.Fatal(err)
	}
	for _, s := range seedStreams(f) {
		f.Add(s)
	}
	streams := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	go h.Serve(streams)
	f.Cleanup(func() {
		h.Shutdown(context.Background())
		streams.Close()
	})
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &wireBytes{said: said{in: bytes.NewReader(in)}, closed: make(chan struct{})}
		streams.conns <- c
		<-c.closed
		h.mu.Lock()
		if len(h.peers) > 0 || len(h.running) > 0 || h.held != 0 {
			t.Errorf("after the stream %d peers, %d answers and %d bytes are counted", len(h.peers), len(h.running), h.held)
		}
		h.mu.Unlock()
		if log.mu.Lock(); log.seen != "" {
			t.Error(log.seen)
		}
		log.mu.Unlock()
		for r := bufio.NewReader(&c.out); ; {
			if _, err := r.Peek(1); err != nil {
				break
			}
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("the host said what is no HTTP: %v", err)
			}
			io.Copy(io.Discard, resp.Body) // the last may have lost its reader
			resp.Body.Close()
		}
	})
}

// seedStreams returns streams of an honest peer, and some of others.
func seedStreams(f *testing.F) [][]byte {
	req, signed, err := inference.NewRequest(network, testKey(2), &inferencepb.Question{Model: modelID[:], Prompt: "hello"},
		&inferencepb.Request{Choices: 1, MaxTokens: 5, Nonce: make([]byte, 16)})
	if err != nil {
		f.Fatal(err)
	}
	call, err := inference.EncodeCall(signed, 0, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	order, err := inference.SignCancel(network, testKey(2), req.Hash, 0)
	if err != nil {
		f.Fatal(err)
	}
	cancel, err := proto.Marshal(order)
	if err != nil {
		f.Fatal(err)
	}
	post := func(path string, body []byte) []byte {
		return append(fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", path, len(body)), body...)
	}
	whole := post("/v1/infer", call)
	ping := []byte("GET /v1/ping HTTP/1.1\r\nHost: h\r\n\r\n")
	return [][]byte{
		whole, post("/v1/cancel", cancel), ping, bytes.Join([][]byte{ping, post("/v1/cancel", cancel), whole, ping}, nil),
		whole[:len(whole)/2], post("/v1/infer", nil), post("/v1/elsewhere", call), nil,
		[]byte("POST /v1/infer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
		[]byte("POST /v1/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\nx"),
		[]byte("POST /v1/infer HTTP/1.0\r\nContent-Length: -1\r\nExpect: 100-continue\r\n\r\n"),
		[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
	}
}
