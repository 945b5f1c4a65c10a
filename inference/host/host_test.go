package host

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
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

// TestPace gives people time to watch: tokens come no faster than said, however fast
// the engine is, and one that is slower is not held up.
func TestPace(t *testing.T) {
	for _, c := range []struct{ engine, pace, want time.Duration }{
		{time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond},
		{300 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, &engine{slots: 1, pace: c.engine}, Config{Pace: c.pace})
			defer b.close()
			_, signed := request(t, 2, "hello", 10, nil)
			start := time.Now()
			tokens, _, _, _ := b.post(2, "/v1/infer", callBody(t, signed)).rest(t)
			if took := time.Since(start) - c.engine; tokens != 10 || took < 9*c.want || took > 10*c.want {
				t.Errorf("pace %s, engine %s: %d tokens in %s", c.pace, c.engine, tokens, took)
			}
		})
	}
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
				var wg sync.WaitGroup
				defer wg.Wait() // before the host closes
				wg.Go(func() {
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
				})
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

func TestOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1, pace: 100 * time.Millisecond}, Config{Queue: 2})
		defer b.close()
		ask := &inferencepb.OfferAsk{Model: modelID[:], PromptTokens: 10, MaxTokens: 100, Choices: 1}
		if o := b.host.offer(ask); !o.Accept || o.Active != 0 || o.WaitMs != 0 || o.Capability.GetPriceOutput() != 3 {
			t.Errorf("idle: %v", o)
		}
		_, signed := request(t, 2, "hello", 10, nil)
		b.post(2, "/v1/infer", callBody(t, signed)).rest(t)
		synctest.Wait()
		_, signed = request(t, 2, "again", 10, nil)
		s := b.post(2, "/v1/infer", callBody(t, signed))
		o := b.host.offer(ask)
		if !o.Accept || o.Active != 1 || o.WaitMs < 500 || o.TokenUs < 90_000 || o.TokenUs > 110_000 {
			t.Errorf("busy: %v", o)
		}
		s.rest(t)
		for name, ask := range map[string]*inferencepb.OfferAsk{
			"another model": {Model: make([]byte, 32)}, "no model": {},
		} {
			if o := b.host.offer(ask); o.Accept || o.Reason == "" {
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
