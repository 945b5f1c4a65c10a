package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// engine is a model whose tokens are bytes drawn from the tape, the prompt and the
// position, at a pace of its own. It refuses a prefix that it would not have drawn.
type engine struct {
	name    string
	slots   int
	prefill time.Duration
	pace    time.Duration
	// before is called when a token is ready and not yet emitted.
	before func(ctx context.Context, position int)

	mu     sync.Mutex
	active int // guarded by mu
	runs   int // guarded by mu
}

func modelOf(name string) mesh.ModelID { return mesh.HashOf([]byte(name)) }

func (e *engine) Info() inference.ModelInfo {
	return inference.ModelInfo{
		ID: modelOf(e.name), Name: e.name, Context: 4096, Vocab: 256, Slots: max(1, e.slots),
		Fingerprint: &inferencepb.Fingerprint{Engine: "sim", Contract: "mk1"},
	}
}

func (e *engine) Encode(q *inferencepb.Question) ([]int32, error) {
	if q.GetPrompt() == "" {
		return nil, errors.New("this engine takes prompts only")
	}
	var out []int32
	for _, b := range []byte(q.GetPrompt()) {
		out = append(out, int32(b))
	}
	return out, nil
}

func (e *engine) Text() inference.Detokenizer     { return new(byteText) }
func (e *engine) TokenBytes(id int32) []byte      { return []byte{byte(id)} }
func (e *engine) Close() error                    { return nil }
func (e *engine) count(f func(e *engine) int) int { e.mu.Lock(); defer e.mu.Unlock(); return f(e) }
func (e *engine) Load() inference.Load {
	return inference.Load{Active: e.count(func(e *engine) int { return e.active })}
}

// draw returns token i of an answer. Every fifth and sixth token are the two bytes
// of one character, so that segments part within characters too.
func draw(g *inference.Generation, i int) int32 {
	prompt := make([]byte, 0, 4*len(g.Prompt))
	for _, t := range g.Prompt {
		prompt = binary.BigEndian.AppendUint32(prompt, uint32(t))
	}
	h := mesh.HashOf(g.Tape[:], prompt, binary.BigEndian.AppendUint32(nil, uint32(i)))
	switch i % 10 {
	case 4:
		return 0xc3
	case 5:
		return 0xa0 + int32(h[0]%32)
	}
	return 'a' + int32(h[0]%26)
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
	for i, t := range g.Prefix {
		if want := draw(&g, i); t != want {
			return inference.Finish{}, fmt.Errorf("token %d of the prefix is %d, want %d", i, t, want)
		}
	}
	cancelled := inference.Finish{Reason: inference.FinishCancelled}
	if !sleep(ctx, e.prefill) {
		return cancelled, nil
	}
	if g.Progress != nil {
		g.Progress()
	}
	for i := len(g.Prefix); i < g.MaxTokens; i++ {
		if !sleep(ctx, e.pace) {
			return cancelled, nil
		}
		if e.before != nil {
			e.before(ctx, i)
		}
		if err := emit(inference.Token{ID: draw(&g, i)}); err != nil {
			return inference.Finish{}, err
		}
	}
	return inference.Finish{Reason: inference.FinishLength}, nil
}

// sleep reports whether ctx outlived the time.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// byteText turns bytes into text and holds back what is no whole character.
type byteText struct{ pending []byte }

func (t *byteText) Add(id int32) string {
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
