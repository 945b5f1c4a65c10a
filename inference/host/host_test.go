package host

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/p2p"
)

const network = mesh.NetworkID("dev00000000")

var modelID = mesh.HashOf([]byte("a model"))

func testKey(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, 32))
}

func addressOf(n byte) mesh.Address { return mesh.AddressOf(testKey(n).Public().(ed25519.PublicKey)) }

// engine emits the letters of the alphabet, over and over.
type engine struct {
	slots int
	pace  time.Duration
	burst int // tokens at a time; 0 is 1
	fail  error

	mu     sync.Mutex
	active int      // guarded by mu
	most   int      // ever active; guarded by mu
	order  []string // prompts as they began; guarded by mu
}

func (e *engine) Info() inference.ModelInfo {
	return inference.ModelInfo{ID: modelID, Name: "alphabet", Context: 1 << 20, Vocab: 128, Slots: e.slots}
}

func (e *engine) Encode(q *inferencepb.Question) ([]int32, error) {
	if q.GetPrompt() == "bad" {
		return nil, errors.New("a bad prompt")
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
}

func (k *keeper) Put(_ mesh.Hash, s *inferencepb.Signed) error {
	r, err := inference.ParseReceipt(network, s)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list = append(k.list, r)
	return nil
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

func newBench(t *testing.T, e *engine, cfg Config) *bench {
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
	if s.resp, err = http.ReadResponse(bufio.NewReader(s.conn), req); err != nil {
		b.t.Fatal(err)
	}
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

func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &engine{slots: 2, pace: 10 * time.Millisecond}
		b := newBench(t, e, Config{})
		defer b.close()
		_, signed := request(t, 2, "hello", 30, nil)
		s := b.post(2, "/v1/infer", callBody(t, signed))
		if tokens, text, finish, _ := s.rest(t); tokens != 30 || text != "abcdefghijklmnopqrstuvwxyzabcd" || finish != inference.FinishLength {
			t.Errorf("%d tokens, %q, %s", tokens, text, finish)
		}
		synctest.Wait()
		if got := b.kept.finishes(); len(got) != 1 || got[0] != inference.FinishLength {
			t.Errorf("kept %v", got)
		}
		r := b.kept.all()[0]
		if r.Pb.GetPrice() != 5*2+30*3 || r.Pb.GetPromptTokens() != 5 || r.Host != addressOf(1) {
			t.Errorf("receipt %v", r.Pb)
		}
	})
}

// TestTogether checks that tokens which are ready at the same time go in one frame.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1, pace: 10 * time.Millisecond, burst: 200}, Config{})
		defer b.close()
		_, signed := request(t, 2, "hello", 1000, nil)
		s := b.post(2, "/v1/infer", callBody(t, signed))
		defer s.conn.Close()
		frames, tokens := 0, 0
		for {
			f, err := s.frames.Next()
			if err != nil {
				t.Fatal(err)
			}
			tokens += len(f.Tokens)
			frames++
			if f.Finish != "" {
				break
			}
		}
		if tokens != 1000 || frames > 200 {
			t.Errorf("%d frames for %d tokens", frames, tokens)
		}
	})
}

func TestRefusals(t *testing.T) {
	other := mesh.HashOf([]byte("other"))
	_, valid := request(t, 2, "hello", 5, nil)
	_, unknown, err := inference.NewRequest(network, testKey(2), &inferencepb.Question{Model: other[:], Prompt: "x"},
		&inferencepb.Request{Choices: 1, MaxTokens: 1, Nonce: make([]byte, 16)})
	if err != nil {
		t.Fatal(err)
	}
	_, long := request(t, 2, "hello", 1<<20-1, nil)
	_, bad := request(t, 2, "bad", 5, nil)
	_, dear := request(t, 2, "hello", 5, func(r *inferencepb.Request) { r.PriceCap = 5 })
	forged := proto.Clone(valid).(*inferencepb.Signed)
	forged.Signature[0] ^= 1
	for _, tt := range []struct {
		name     string
		body     []byte
		client   byte
		code     string
		penalise bool
	}{
		{"unknown model", callBody(t, unknown), 2, inference.CodeUnknownModel, false},
		{"too long", callBody(t, long), 2, inference.CodeTooLong, false},
		{"bad prompt", callBody(t, bad), 2, inference.CodeInvalid, false},
		{"too dear", callBody(t, dear), 2, inference.CodeTooDear, false},
		{"not the payer", callBody(t, valid), 3, inference.CodeForbidden, false},
		{"forged", callBody(t, forged), 2, inference.CodeInvalid, true},
		{"token out of range", callBody(t, valid, 128), 2, inference.CodeInvalid, false},
		{"prefix too long", callBody(t, valid, 1, 2, 3, 4, 5, 6), 2, inference.CodeInvalid, true},
		{"nonsense", []byte("nonsense"), 2, inference.CodeInvalid, true},
		{"empty", nil, 2, inference.CodeInvalid, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				penalised := 0
				b := newBench(t, &engine{slots: 1}, Config{Penalise: func(mesh.Address, string, int) { penalised++ }})
				defer b.close()
				if r := b.post(tt.client, "/v1/infer", tt.body).refusal(t); r.Code != tt.code {
					t.Errorf("refused with %s: %s", r.Code, r.Message)
				}
				if (penalised > 0) != tt.penalise {
					t.Errorf("penalised %d times", penalised)
				}
			})
		})
	}
}

// TestReplay sends one call twice, and again after it ended.
func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 2, pace: time.Millisecond}, Config{})
		defer b.close()
		_, signed := request(t, 2, "hello", 100, nil)
		first := b.post(2, "/v1/infer", callBody(t, signed))
		if r := b.post(2, "/v1/infer", callBody(t, signed)).refusal(t); r.Code != inference.CodeReplay {
			t.Errorf("the second was refused with %s", r.Code)
		}
		from := b.post(2, "/v1/infer", callBody(t, signed, 'a', 'b'))
		if n, _, _, _ := from.rest(t); n != 98 {
			t.Errorf("from another prefix: %d tokens", n)
		}
		if n, _, _, _ := first.rest(t); n != 100 {
			t.Errorf("the first was disturbed: %d tokens", n)
		}
	})
}

// TestQueue checks slots, bounds, order and fairness: a peer that fills the queue does
// not keep another from the next free slot.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &engine{slots: 1, pace: 100 * time.Millisecond}
		b := newBench(t, e, Config{Queue: 4})
		defer b.close()
		var streams []*stream
		for i := range 3 { // one runs, two wait: half of the queue
			_, signed := request(t, 2, string(make([]byte, 10+i)), 10, nil)
			streams = append(streams, b.post(2, "/v1/infer", callBody(t, signed)))
		}
		_, signed := request(t, 2, string(make([]byte, 20)), 10, nil)
		if r := b.post(2, "/v1/infer", callBody(t, signed)).refusal(t); r.Code != inference.CodeBusy || r.WaitMs < 1 {
			t.Errorf("the greedy peer got %+v", r)
		}
		_, signed = request(t, 3, string(make([]byte, 30)), 10, nil)
		streams = append(streams, b.post(3, "/v1/infer", callBody(t, signed)))
		beats := 0
		for _, s := range streams {
			n, _, _, waited := s.rest(t)
			if n != 10 {
				t.Errorf("%d tokens", n)
			}
			beats += waited
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.most != 1 {
			t.Errorf("%d ran at once in one slot", e.most)
		}
		if got := fmt.Sprint(e.order); got != "[10 30 11 12]" && got != "[10 11 30 12]" {
			t.Errorf("order %s", got)
		}
		if beats == 0 {
			t.Error("no heartbeat while they waited")
		}
	})
}

// TestPeerLimit bounds the calls and the memory of one peer.
func TestPeerLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 9, pace: time.Second}, Config{PerPeer: 3, Memory: 4096})
		defer b.close()
		for i := range 3 {
			_, signed := request(t, 2, string(make([]byte, 10+i)), 10, nil)
			s := b.post(2, "/v1/infer", callBody(t, signed))
			defer s.conn.Close()
			if s.resp.StatusCode != 200 {
				t.Fatalf("call %d got %d", i, s.resp.StatusCode)
			}
		}
		_, signed := request(t, 2, string(make([]byte, 20)), 10, nil)
		if r := b.post(2, "/v1/infer", callBody(t, signed)).refusal(t); r.Code != inference.CodeBusy {
			t.Errorf("a fourth call got %s", r.Code)
		}
		_, signed = request(t, 3, string(make([]byte, 3000)), 10, nil)
		if r := b.post(3, "/v1/infer", callBody(t, signed)).refusal(t); r.Code != inference.CodeBusy {
			t.Errorf("a large call got %s", r.Code)
		}
		_, signed = request(t, 3, "x", 1, nil)
		s := b.post(3, "/v1/infer", callBody(t, signed))
		if n, _, _, _ := s.rest(t); n != 1 {
			t.Errorf("an honest peer got %d tokens", n)
		}
	})
}

// TestCancel ends an answer with the payer's signature, with another's, and without.
func TestCancel(t *testing.T) {
	for _, tt := range []struct {
		name   string
		signer byte
		finish inference.FinishReason
	}{
		{"payer", 2, inference.FinishCancelled},
		{"another", 3, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &engine{slots: 1, pace: 10 * time.Millisecond}
				b := newBench(t, e, Config{})
				defer b.close()
				req, signed := request(t, 2, "hello", 1000, nil)
				s := b.post(2, "/v1/infer", callBody(t, signed))
				go func() {
					time.Sleep(100 * time.Millisecond)
					order, err := inference.SignCancel(network, testKey(tt.signer), req.Hash, 0)
					if err != nil {
						t.Error(err)
					}
					body, err := proto.Marshal(order)
					if err != nil {
						t.Error(err)
					}
					c := b.post(tt.signer, "/v1/cancel", body)
					defer c.conn.Close()
					if ok := c.resp.StatusCode == 200; ok != (tt.finish != "") {
						t.Errorf("the cancel got %d", c.resp.StatusCode)
					}
				}()
				n, _, finish, _ := s.rest(t)
				switch {
				case tt.finish == "" && (n != 1000 || finish != inference.FinishLength):
					t.Errorf("%d tokens, %s", n, finish)
				case tt.finish != "" && (n > 12 || finish != tt.finish):
					t.Errorf("%d tokens, %s", n, finish)
				}
			})
		})
	}
}

// TestBrokenStream breaks the stream without a word: the host forfeits the prompt fee.
func TestBrokenStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &engine{slots: 1, pace: 10 * time.Millisecond}
		b := newBench(t, e, Config{})
		defer b.close()
		_, signed := request(t, 2, "hello", 1000, nil)
		s := b.post(2, "/v1/infer", callBody(t, signed))
		for range 5 {
			if _, err := s.frames.Next(); err != nil {
				t.Fatal(err)
			}
		}
		s.conn.Close()
		time.Sleep(20 * time.Millisecond)
		if e.running() != 0 {
			t.Error("the slot is not free")
		}
		if len(b.kept.all()) != 1 {
			t.Fatalf("%d receipts", len(b.kept.all()))
		}
		r := b.kept.all()[0]
		if r.Finish != inference.FinishAborted || r.Pb.GetPrice() != 3*uint64(r.Pb.GetOutputTokens()) {
			t.Errorf("receipt %v", r.Pb)
		}
	})
}

// TestSlowReader stops reading: the answer ends within the write timeout and the
// tokens that wait are bounded.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &engine{slots: 1, pace: time.Microsecond}
		b := newBench(t, e, Config{})
		defer b.close()
		_, signed := request(t, 2, "hello", 1<<19, nil)
		s := b.post(2, "/v1/infer", callBody(t, signed))
		defer s.conn.Close()
		time.Sleep(b.host.cfg.WriteTimeout + time.Second)
		if e.running() != 0 {
			t.Error("a reader that does not read holds a slot")
		}
		if load := b.host.Load(); load.Active != 0 {
			t.Errorf("load %+v", load)
		}
		_, signed = request(t, 3, "x", 5, nil)
		if n, _, _, _ := b.post(3, "/v1/infer", callBody(t, signed)).rest(t); n != 5 {
			t.Errorf("an honest peer got %d tokens", n)
		}
	})
}

// TestDrain lets a short answer end, aborts a long one, and refuses new calls.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 2, pace: 10 * time.Millisecond}, Config{})
		type end struct {
			n      int
			finish inference.FinishReason
		}
		ends := make([]end, 3)
		var wg sync.WaitGroup
		for i, n := range []int{50, 5000, 70} {
			_, signed := request(t, 2, string(make([]byte, i+1)), n, nil)
			s := b.post(2, "/v1/infer", callBody(t, signed))
			wg.Go(func() { ends[i].n, _, ends[i].finish, _ = s.rest(t) })
		}
		time.Sleep(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		wg.Go(func() {
			time.Sleep(100 * time.Millisecond)
			_, signed := request(t, 3, "x", 1, nil)
			if r := b.post(3, "/v1/infer", callBody(t, signed)).refusal(t); r.Code != inference.CodeDraining {
				t.Errorf("a new call got %s", r.Code)
			}
			if o := b.host.Offer(&inferencepb.OfferAsk{Model: modelID[:]}); o.Accept {
				t.Error("it offers while it drains")
			}
		})
		start := time.Now()
		b.host.Shutdown(ctx)
		if d := time.Since(start); d > 2100*time.Millisecond {
			t.Errorf("it took %s", d)
		}
		b.Close()
		<-b.ended
		wg.Wait()
		if ends[0] != (end{50, inference.FinishLength}) || ends[1].finish != inference.FinishAborted || ends[2] != (end{0, inference.FinishAborted}) {
			t.Errorf("ends %+v", ends)
		}
	})
}

// TestEngineFails aborts: the caller continues elsewhere with what was signed.
func TestEngineFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1, fail: errors.New("out of memory")}, Config{})
		defer b.close()
		_, signed := request(t, 2, "hello", 10, nil)
		if n, _, finish, _ := b.post(2, "/v1/infer", callBody(t, signed)).rest(t); n != 3 || finish != inference.FinishAborted {
			t.Errorf("%d tokens, %s", n, finish)
		}
	})
}

// TestGarbage throws random bytes at infer and offer streams.
func TestGarbage(t *testing.T) {
	const seed = 42
	r := rand.New(rand.NewPCG(seed, seed))
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1}, Config{})
		defer b.close()
		for i := range 2000 {
			junk := make([]byte, r.IntN(300))
			for j := range junk {
				junk[j] = byte(r.Uint32())
			}
			switch i % 3 {
			case 0:
				c := b.dial(2)
				go c.Write(junk)
				time.Sleep(time.Millisecond)
				c.Close()
			case 1:
				s := b.post(2, "/v1/infer", junk)
				if s.resp.StatusCode != 400 {
					t.Fatalf("seed %d: junk %x got %d", seed, junk, s.resp.StatusCode)
				}
				s.conn.Close()
			case 2:
				near, c := net.Pipe()
				go func() {
					near.Write(junk)
					near.Close()
				}()
				b.host.ServeOffer(context.Background(), addressOf(2), c)
			}
		}
		_, signed := request(t, 3, "x", 5, nil)
		if n, _, _, _ := b.post(3, "/v1/infer", callBody(t, signed)).rest(t); n != 5 {
			t.Errorf("an honest peer got %d tokens", n)
		}
	})
}

// TestHalfCall opens a call and never completes it.
func TestHalfCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1}, Config{})
		defer b.close()
		c := b.dial(2)
		defer c.Close()
		go io.WriteString(c, "POST /v1/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nabc")
		start := time.Now()
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > bodyTimeout+time.Second {
			t.Errorf("it was held for %s", d)
		}
		b.host.mu.Lock()
		defer b.host.mu.Unlock()
		if len(b.host.peers) != 0 || b.host.held != 0 {
			t.Error("the call is still counted")
		}
	})
}

func TestOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1, pace: 100 * time.Millisecond}, Config{Queue: 2})
		defer b.close()
		ask := &inferencepb.OfferAsk{Model: modelID[:], PromptTokens: 10, MaxTokens: 100, Choices: 1}
		if o := b.host.Offer(ask); !o.Accept || o.Active != 0 || o.WaitMs != 0 || o.Capability.GetPriceOutput() != 3 {
			t.Errorf("idle: %v", o)
		}
		_, signed := request(t, 2, "hello", 10, nil)
		b.post(2, "/v1/infer", callBody(t, signed)).rest(t)
		synctest.Wait()
		_, signed = request(t, 2, "again", 10, nil)
		s := b.post(2, "/v1/infer", callBody(t, signed))
		o := b.host.Offer(ask)
		if !o.Accept || o.Active != 1 || o.WaitMs < 500 || o.TokenUs < 90_000 || o.TokenUs > 110_000 {
			t.Errorf("busy: %v", o)
		}
		s.rest(t)
		for name, ask := range map[string]*inferencepb.OfferAsk{
			"another model": {Model: make([]byte, 32)}, "no model": {},
		} {
			if o := b.host.Offer(ask); o.Accept || o.Reason == "" {
				t.Errorf("%s: %v", name, o)
			}
		}
		c, err := b.host.Dial(t.Context(), addressOf(1), "offer")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := p2p.WriteMessage(c, &inferencepb.OfferCall{Ask: ask}); err != nil {
			t.Fatal(err)
		}
		got := new(inferencepb.Offer)
		if err := p2p.ReadMessage(c, maxOfferBytes, got); err != nil || !got.Accept {
			t.Errorf("over a stream: %v, %v", got, err)
		}
	})
}
