package host

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// engine emits the letters of the alphabet, over and over.
type engine struct {
	slots int
	pace  time.Duration
	burst int // tokens at a time; 0 is 1
	fail  error
	holds int // tokens of context that fit the memory; 0: the model's 1<<20
	width int // of its vectors; 0: it makes none

	mu     sync.Mutex
	active int      // guarded by mu
	most   int      // ever active; guarded by mu
	order  []string // prompts as they began; guarded by mu
}

func (e *engine) Info() inference.ModelInfo {
	holds := e.holds
	if holds == 0 {
		holds = 1 << 20
	}
	return inference.ModelInfo{ID: modelID, Name: "alphabet", Context: holds, ModelContext: 1 << 20, Vocab: 128, Slots: e.slots, Embed: e.width}
}

func (e *engine) Encode(q *inferencepb.Question) ([]int32, error) {
	if q.GetPrompt() == "bad" {
		return nil, fmt.Errorf("%w: a bad prompt", inference.ErrInvalid)
	}
	return make([]int32, len(q.GetPrompt())), nil
}

func (e *engine) Text() inference.Detokenizer { return letters{} }
func (e *engine) Load() inference.Load        { return inference.Load{} }
func (e *engine) Close() error                { return nil }

type letters struct{}

func (letters) Add(id int32) string { return string(rune(id)) }
func (letters) Flush() string       { return "" }

func (e *engine) Generate(ctx context.Context, g inference.Generation, emit func(inference.Token) error) (inference.Finish, error) {
	e.mu.Lock()
	e.active++
	e.most = max(e.most, e.active)
	e.order = append(e.order, fmt.Sprint(len(g.Prompt)))
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.active--
		e.mu.Unlock()
	}()
	for i := len(g.Prefix); i < g.MaxTokens; i++ {
		if e.burst == 0 || i%e.burst == 0 {
			select {
			case <-time.After(e.pace):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return inference.Finish{Reason: inference.FinishCancelled}, nil
		}
		if e.fail != nil && i == 3 {
			return inference.Finish{}, e.fail
		}
		if err := emit(inference.Token{ID: int32('a' + i%26)}); err != nil {
			return inference.Finish{}, err
		}
	}
	return inference.Finish{Reason: inference.FinishLength}, nil
}

func (e *engine) running() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.active
}

type keeper struct {
	mu   sync.Mutex
	list []*inference.Receipt // guarded by mu
	fail error                // what Put returns
}

func (k *keeper) Put(_ mesh.Hash, s *inferencepb.Signed) error {
	r, err := inference.ParseReceipt(network, s)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list = append(k.list, r)
	return k.fail
}

func (k *keeper) all() []*inference.Receipt {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.list
}

func (k *keeper) finishes() []inference.FinishReason {
	var out []inference.FinishReason
	for _, r := range k.all() {
		out = append(out, r.Finish)
	}
	return out
}

// bench is a host and clients by number, in one bubble.
type bench struct {
	t      *testing.T
	host   *Host
	kept   *keeper
	accept chan net.Conn
	done   chan struct{}
	ended  chan struct{}
}

type far struct {
	net.Conn
	peer mesh.Address
}

func newBench(t *testing.T, e inference.Engine, cfg Config) *bench {
	t.Helper()
	b := &bench{t: t, kept: new(keeper), accept: make(chan net.Conn), done: make(chan struct{}), ended: make(chan struct{})}
	cfg.Network, cfg.Key, cfg.Receipts = network, testKey(1), b.kept
	cfg.RemotePeer = func(c net.Conn) (mesh.Address, bool) {
		f, ok := c.(*far)
		if !ok {
			return mesh.Address{}, false
		}
		return f.peer, true
	}
	var err error
	if b.host, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	if err := b.host.Add(e, Prices{Prompt: 2, Output: 3}); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(b.ended)
		if err := b.host.Serve(b); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}()
	return b
}

func (b *bench) Accept() (net.Conn, error) {
	select {
	case c := <-b.accept:
		return c, nil
	case <-b.done:
		return nil, net.ErrClosed
	}
}

func (b *bench) Addr() net.Addr { return pipeAddr{} }

func (b *bench) Close() error {
	select {
	case <-b.done:
	default:
		close(b.done)
	}
	return nil
}

func (b *bench) close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b.host.Shutdown(ctx)
	b.Close()
	<-b.ended
}

// dial opens an infer stream as client n.
func (b *bench) dial(n byte) net.Conn {
	b.t.Helper()
	near, c := net.Pipe()
	b.accept <- &far{c, addressOf(n)}
	return near
}

// request returns the signed request of client n. Its prompt makes it distinct.
func request(t *testing.T, n byte, prompt string, maxTokens int, change func(*inferencepb.Request)) (*inference.Request, *inferencepb.Signed) {
	t.Helper()
	pb := &inferencepb.Request{Choices: 1, MaxTokens: uint32(maxTokens), Nonce: make([]byte, 16)}
	if change != nil {
		change(pb)
	}
	req, signed, err := inference.NewRequest(network, testKey(n), &inferencepb.Question{Model: modelID[:], Prompt: prompt}, pb)
	if err != nil {
		t.Fatal(err)
	}
	return req, signed
}

func callBody(t *testing.T, signed *inferencepb.Signed, prefix ...int32) []byte {
	t.Helper()
	body, err := inference.EncodeCall(signed, 0, prefix, nil)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// stream is an answer as it is read.
type stream struct {
	conn   net.Conn
	resp   *http.Response
	frames *inference.FrameReader
}

// post sends a body on a stream of its own.
func (b *bench) post(n byte, path string, body []byte) *stream {
	b.t.Helper()
	s := &stream{conn: b.dial(n)}
	req, err := http.NewRequest(http.MethodPost, "http://host"+path, bytes.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	go req.Write(s.conn)
	s.resp, err = http.ReadResponse(bufio.NewReader(s.conn), req) //nolint:bodyclose // the Cleanup below does
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { s.resp.Body.Close() })
	s.frames = inference.NewFrameReader(s.resp.Body)
	return s
}

// rest reads to the end and returns tokens, text and finish.
func (s *stream) rest(t *testing.T) (tokens int, text string, finish inference.FinishReason, beats int) {
	t.Helper()
	defer s.conn.Close()
	for {
		f, err := s.frames.Next()
		if err != nil {
			t.Fatalf("after %d tokens: %v", tokens, err)
		}
		if f.Heartbeat() {
			beats++
		}
		tokens += len(f.Tokens)
		text += f.Text
		if f.Finish != "" {
			return tokens, text, f.Finish, beats
		}
	}
}

func (s *stream) refusal(t *testing.T) *inference.Refusal {
	t.Helper()
	defer s.conn.Close()
	body, err := io.ReadAll(s.resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return inference.ParseRefusal(s.resp.StatusCode, body)
}
