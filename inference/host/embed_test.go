package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// Embed takes a step of work for each token. A text of 7 tokens leaves the numeric
// contract, one of 8 has no finite vector and one of 9 a short one.
func (e *engine) Embed(ctx context.Context, tokens []int32, progress func()) (inference.Embedding, error) {
	e.mu.Lock()
	e.active++
	e.most = max(e.most, e.active)
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.active--
		e.mu.Unlock()
	}()
	for range tokens {
		select {
		case <-time.After(e.pace):
			progress()
		case <-ctx.Done():
			return inference.Embedding{}, ctx.Err()
		}
	}
	v := make([]float32, e.width)
	v[len(tokens)%e.width] = 1
	switch len(tokens) {
	case 7:
		return inference.Embedding{}, inference.ErrNumeric
	case 8:
		v[0] = float32(math.NaN())
	case 9:
		v = v[1:]
	}
	return inference.Embedding{Vector: v, Hidden: mesh.HashOf([]byte("root")), Positions: len(tokens)}, e.fail
}

// embedRequest returns the signed request of client n for the vector of a text.
func embedRequest(t *testing.T, n byte, prompt string, change func(*inferencepb.Request)) (*inference.Request, *inferencepb.Signed) {
	t.Helper()
	pb := &inferencepb.Request{Choices: 1, Nonce: make([]byte, 16)}
	if change != nil {
		change(pb)
	}
	req, signed, err := inference.NewRequest(network, testKey(n), &inferencepb.Question{Model: modelID[:], Prompt: prompt, Embed: true}, pb)
	if err != nil {
		t.Fatal(err)
	}
	return req, signed
}

// last reads to the last frame, and returns it with the heartbeats before it.
func (s *stream) last(t *testing.T) (f *inference.Frame, steps []int) {
	t.Helper()
	defer s.conn.Close()
	for {
		f, err := s.frames.Next()
		if err != nil {
			t.Fatal(err)
		}
		if f.Finish != "" {
			return f, steps
		}
		steps = append(steps, f.Progress.Steps)
	}
}

func TestEmbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1, width: 4, pace: 100 * time.Millisecond}, Config{})
		defer b.close()
		if got := b.host.Capabilities()[0].GetEmbed(); got != 4 {
			t.Errorf("it advertises vectors of %d", got)
		}
		req, signed := embedRequest(t, 2, "hello", nil)
		f, steps := b.post(2, "/v1/infer", callBody(t, signed)).last(t)
		if f.Finish != inference.FinishEOS || len(f.Tokens) > 0 || string(f.Vector) != string(inference.EncodeVector([]float32{0, 1, 0, 0})) {
			t.Errorf("frame %+v", f)
		}
		if len(steps) < 2 || steps[0] == steps[len(steps)-1] {
			t.Errorf("heartbeats %v: no progress to see", steps)
		}
		synctest.Wait()
		kept := b.kept.all()
		if len(kept) != 1 {
			t.Fatalf("%d receipts", len(kept))
		}
		r, chain := kept[0], inference.NewChain(network, req.Hash, 0)
		chain.Bind(f.Vector)
		if r.After != chain || r.Finish != inference.FinishEOS || r.Pb.GetPrice() != 5*2 || r.Pb.GetPromptTokens() != 5 || r.Pb.GetOutputTokens() != 0 {
			t.Errorf("receipt %v", r.Pb)
		}
		if r.Pb.GetPositions() != 5 || len(r.Pb.GetHiddenRoot()) != 32 || r.Pb.GetFirstTokenMs() == 0 {
			t.Errorf("receipt %v", r.Pb)
		}
	})
}

func TestEmbedEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		prompt string
		fail   error
		finish inference.FinishReason
		kept   int
	}{
		{"numeric", "1234567", nil, inference.FinishNumeric, 1},
		{"not finite", "12345678", nil, inference.FinishAborted, 0},
		{"narrow", "123456789", nil, inference.FinishAborted, 0},
		{"fault", "1", errors.New("no memory"), inference.FinishAborted, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &engine{slots: 1, width: 4, fail: tt.fail}, Config{})
				defer b.close()
				req, signed := embedRequest(t, 2, tt.prompt, nil)
				f, _ := b.post(2, "/v1/infer", callBody(t, signed)).last(t)
				s, err := f.Signed()
				if err != nil {
					t.Fatal(err)
				}
				r, err := inference.ParseReceipt(network, s)
				if err != nil || f.Finish != tt.finish || f.Vector != nil || r.After != inference.NewChain(network, req.Hash, 0) {
					t.Errorf("%v, frame %+v, receipt %v", err, f, r)
				}
				synctest.Wait()
				if got := len(b.kept.all()); got != tt.kept {
					t.Errorf("%d receipts kept, want %d", got, tt.kept)
				}
			})
		})
	}
}

// TestEmbedCancelled ends a text half computed: by the payer's word, and by a host that stops.
func TestEmbedCancelled(t *testing.T) {
	for _, cancelled := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			e := &engine{slots: 1, width: 4, pace: time.Second}
			b := newBench(t, e, Config{})
			req, signed := embedRequest(t, 2, strings.Repeat("a", 100), nil)
			s := b.post(2, "/v1/infer", callBody(t, signed))
			want := inference.FinishAborted
			if cancelled {
				want = inference.FinishCancelled
				c, err := inference.SignCancel(network, testKey(2), req.Hash, 0)
				if err != nil {
					t.Fatal(err)
				}
				body, err := proto.Marshal(c)
				if err != nil {
					t.Fatal(err)
				}
				b.post(2, "/v1/cancel", body).conn.Close()
				defer b.close()
			} else {
				go b.close()
			}
			if f, _ := s.last(t); f.Finish != want || f.Vector != nil {
				t.Errorf("frame %+v, want %s", f, want)
			}
			synctest.Wait()
			if e.running() != 0 {
				t.Error("the engine runs on")
			}
		})
	}
}

// TestEmbedAdmission holds that a text takes a slot and a place in the queue as a
// prompt does, and what is refused.
func TestEmbedAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &engine{slots: 2, width: 4, pace: 100 * time.Millisecond} // long enough for heartbeats
		b := newBench(t, e, Config{})
		defer b.close()
		var streams []*stream
		for i := range 5 {
			_, signed := embedRequest(t, 2, strings.Repeat("a", 10+i), nil)
			streams = append(streams, b.post(2, "/v1/infer", callBody(t, signed)))
		}
		for _, s := range streams {
			if f, _ := s.last(t); f.Finish != inference.FinishEOS {
				t.Errorf("frame %+v", f)
			}
		}
		if e.most != 2 {
			t.Errorf("%d at once, and there are 2 slots", e.most)
		}
	})
	for _, tt := range []struct {
		name   string
		engine *engine
		prompt string
		cap    uint64
		code   string
	}{
		{"no vectors", &engine{slots: 1}, "hello", 0, inference.CodeInvalid},
		{"too dear", &engine{slots: 1, width: 4}, "hello", 9, inference.CodeTooDear},
		{"too small", &engine{slots: 1, width: 4, holds: 4}, "hello", 0, inference.CodeTooSmall},
		{"bad prompt", &engine{slots: 1, width: 4}, "bad", 0, inference.CodeInvalid},
		{"it fits", &engine{slots: 1, width: 4, holds: 5}, "hello", 10, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, tt.engine, Config{})
				defer b.close()
				_, signed := embedRequest(t, 2, tt.prompt, func(r *inferencepb.Request) { r.PriceCap = tt.cap })
				s := b.post(2, "/v1/infer", callBody(t, signed))
				if tt.code == "" {
					if f, _ := s.last(t); f.Finish != inference.FinishEOS {
						t.Errorf("frame %+v", f)
					}
					return
				}
				if r := s.refusal(t); r.Code != tt.code {
					t.Errorf("refused with %s: %s", r.Code, r.Message)
				}
			})
		})
	}
}

// TestEmbedLog: only what an operator has to look after is an error in the log.
func TestEmbedLog(t *testing.T) {
	for _, tt := range []struct {
		name       string
		fail, keep error
		level      string // of the line; empty: there is none
	}{
		{"a fault", errors.New("no memory"), nil, "ERROR"},
		{"answers have the memory", fmt.Errorf("%w: no pages", inference.ErrBusy), nil, ""},
		{"a receipt that waits", nil, fmt.Errorf("no room: %w", inference.ErrHeld), "WARN"},
		{"a receipt that is lost", nil, errors.New("no room"), "ERROR"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				b := newBench(t, &engine{slots: 1, width: 4, fail: tt.fail}, Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
				b.kept.fail = tt.keep
				_, signed := embedRequest(t, 2, "hello", nil)
				f, _ := b.post(2, "/v1/infer", callBody(t, signed)).last(t)
				if (f.Finish == inference.FinishAborted) != (tt.fail != nil) {
					t.Errorf("it ended as %s", f.Finish)
				}
				b.close()
				if said := log.String(); tt.level == "" && said != "" || !strings.Contains(said, tt.level) || tt.level == "WARN" && strings.Contains(said, "ERROR") {
					t.Errorf("log: %s", said)
				}
			})
		})
	}
}
