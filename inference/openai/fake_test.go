package openai

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// fakeModel is what the fake backend serves.
var fakeModel = inference.ModelInfo{
	ID: mesh.HashOf([]byte("a model")), Name: "tiny", Context: 512, Vocab: 2048, Slots: 4, Embed: 3,
	Fingerprint: &inferencepb.Fingerprint{Engine: "native", EngineVersion: "0.1", Contract: "mk1", Weights: "Q8_0", Kv: "f16"},
}

// fakeBackend answers with scripted events. It keeps what it was asked.
type fakeBackend struct {
	events []inference.Event // of every ask; request, model and host are filled in
	err    error             // returned after the events
	pause  time.Duration     // between events
	ended  chan error        // if set, gets what ended an answer that never ends by itself

	mu   sync.Mutex // guards the next one
	asks []inference.Ask
}

func (b *fakeBackend) Models(context.Context) ([]inference.ModelInfo, error) {
	if b.err != nil {
		return nil, b.err
	}
	second := fakeModel
	second.ID = mesh.HashOf([]byte("another"))
	slash := inference.ModelInfo{ID: mesh.HashOf([]byte("third")), Name: "org/big", Context: 8192}
	return []inference.ModelInfo{fakeModel, second, slash}, nil
}

func (b *fakeBackend) Ask(ctx context.Context, ask inference.Ask, emit func(inference.Event) error) error {
	b.mu.Lock()
	b.asks = append(b.asks, ask)
	b.mu.Unlock()
	say := func(ev inference.Event) error {
		if b.pause > 0 {
			select {
			case <-time.After(b.pause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		ev.Request = mesh.HashOf([]byte(ask.Prompt), fmt.Append(nil, ask.PromptTokens))
		ev.Model, ev.Host = fakeModel, mesh.Address{1, 2, 3}
		return emit(ev)
	}
	events := b.events
	if ask.Embed && b.events == nil && b.err == nil {
		events = []inference.Event{{Vector: []float32{float32(len(ask.Prompt)), float32(len(ask.PromptTokens)), -0.1},
			Finish: inference.FinishEOS, Usage: inference.Usage{PromptTokens: 7, Segments: 1}}}
	}
	for _, ev := range events {
		if err := say(ev); err != nil {
			return err
		}
	}
	if b.ended != nil {
		err := ctx.Err()
		for err == nil {
			err = say(inference.Event{Text: strings.Repeat("word ", 200)})
		}
		b.ended <- errors.Join(err, ctx.Err())
		return err
	}
	return b.err
}

// said makes the events of one choice: a token for each text, then the end.
func said(choice int, finish inference.FinishReason, texts ...string) []inference.Event {
	var out []inference.Event
	for i, text := range texts {
		out = append(out, inference.Event{Choice: choice, Text: text, Tokens: []inference.TokenText{token(i+1, text)}})
	}
	end := inference.Event{Choice: choice, Finish: finish,
		Usage: inference.Usage{PromptTokens: 7, OutputTokens: len(texts) + 1, Segments: 1}}
	if finish == inference.FinishEOS {
		end.Tokens = []inference.TokenText{{ID: 2047, LogProb: -0.5}}
	}
	return append(out, end)
}

func token(id int, text string) inference.TokenText {
	return inference.TokenText{ID: int32(id), Bytes: []byte(text), LogProb: -0.25, Top: []inference.TopText{
		{ID: int32(id), Bytes: []byte(text), LogProb: -0.25}, {ID: 99, Bytes: []byte{0xc3}, LogProb: -2},
	}}
}
