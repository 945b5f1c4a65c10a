package router

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/host"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// engine is a deterministic model: its tokens are bytes, either those of script or
// drawn from the tape, the prompt and the position. Token 256 ends an answer.
type engine struct {
	id      mesh.ModelID
	name    string
	slots   int
	script  string
	holds   int          // tokens of context that fit the memory; 0: the model's 4096
	width   int          // of its vectors; 0: it makes none
	price   *host.Prices // nil: 2 and 3
	pace    time.Duration
	prefill time.Duration
	// at is called before the token at a position is emitted; an error fails the engine.
	at func(ctx context.Context, position int) error

	mu     sync.Mutex
	active int // guarded by mu
	runs   int // guarded by mu
}

const endToken = 256

func (e *engine) Info() inference.ModelInfo {
	holds := e.holds
	if holds == 0 {
		holds = 4096
	}
	return inference.ModelInfo{ID: e.id, Name: e.name, Context: holds, ModelContext: 4096, Vocab: 257, Slots: e.slots, Embed: e.width,
		Fingerprint: &inferencepb.Fingerprint{Engine: "test", Contract: "mk1"}}
}

func (e *engine) Encode(q *inferencepb.Question) ([]int32, error) {
	var out []int32
	for _, b := range []byte(q.GetPrompt()) {
		out = append(out, int32(b))
	}
	return out, nil
}

func (e *engine) Text() inference.Detokenizer { return new(byteText) }

func (e *engine) TokenBytes(id int32) []byte {
	if id == endToken {
		return nil
	}
	return []byte{byte(id)}
}

func (e *engine) Load() inference.Load {
	e.mu.Lock()
	defer e.mu.Unlock()
	return inference.Load{Active: e.active}
}

func (e *engine) Close() error { return nil }

func (e *engine) token(g inference.Generation, i int) int32 {
	if e.script != "" {
		if i >= len(e.script) {
			return endToken
		}
		return int32(e.script[i])
	}
	var p []byte
	for _, t := range g.Prompt {
		p = binary.BigEndian.AppendUint32(p, uint32(t))
	}
	h := mesh.HashOf(g.Tape[:], p, binary.BigEndian.AppendUint32(nil, uint32(i)))
	return int32('a' + h[0]%26)
}

func (e *engine) Generate(ctx context.Context, g inference.Generation, emit func(inference.Token) error) (inference.Finish, error) {
	e.mu.Lock()
	e.active++
	e.runs++
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.active--
		e.mu.Unlock()
	}()
	for i := range g.Prefix {
		if want := e.token(g, i); g.Prefix[i] != want {
			return inference.Finish{}, fmt.Errorf("token %d of the prefix is %d, want %d", i, g.Prefix[i], want)
		}
	}
	if n := len(g.Prefix); n > 0 && g.Prefix[n-1] == endToken {
		return inference.Finish{Reason: inference.FinishEOS}, nil
	}
	if err := sleep(ctx, e.prefill); err != nil {
		return inference.Finish{Reason: inference.FinishCancelled}, nil
	}
	if g.Progress != nil {
		g.Progress()
	}
	for i := len(g.Prefix); i < g.MaxTokens; i++ {
		if e.at != nil {
			if err := e.at(ctx, i); err != nil {
				return inference.Finish{}, err
			}
		}
		if err := sleep(ctx, e.pace); err != nil {
			return inference.Finish{Reason: inference.FinishCancelled}, nil
		}
		t := inference.Token{ID: e.token(g, i), LogProb: -0.5}
		for j := range g.Top {
			t.Top = append(t.Top, inference.TopLogProb{ID: int32(j), LogProb: -1})
		}
		if err := emit(t); err != nil {
			return inference.Finish{}, err
		}
		if t.ID == endToken && !g.IgnoreEOS {
			return inference.Finish{Reason: inference.FinishEOS}, nil
		}
	}
	return inference.Finish{Reason: inference.FinishLength}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// byteText turns bytes into text and holds back what is no whole character.
type byteText struct{ pending []byte }

func (t *byteText) Add(id int32) string {
	if id == endToken {
		return ""
	}
	t.pending = append(t.pending, byte(id))
	if !utf8.FullRune(t.pending) {
		return ""
	}
	s := string(t.pending)
	t.pending = nil
	return s
}

func (t *byteText) Flush() string {
	if len(t.pending) == 0 {
		return ""
	}
	t.pending = nil
	return "\uFFFD"
}
