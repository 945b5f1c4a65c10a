package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// answer is what a client saw of one choice.
type answer struct {
	tokens  []int32
	text    string
	hosts   []mesh.Address // in order, each once in a row
	finish  inference.FinishReason
	usage   inference.Usage
	request mesh.Hash
	gap     time.Duration // the longest between two events
	first   time.Duration
	last    time.Time
	events  int
}

// collect asks and gathers the answers by choice.
func (w *world) collect(ctx context.Context, a inference.Ask, each func(inference.Event) error) ([]answer, error) {
	out := make([]answer, max(1, a.Choices))
	start := time.Now()
	err := w.router.Ask(ctx, a, func(e inference.Event) error {
		x := &out[e.Choice]
		if x.finish != "" {
			w.t.Errorf("choice %d: an event after its end", e.Choice)
		}
		if x.events++; x.events == 1 {
			x.first = time.Since(start)
		} else {
			x.gap = max(x.gap, time.Since(x.last))
		}
		x.last = time.Now()
		for _, t := range e.Tokens {
			x.tokens = append(x.tokens, t.ID)
		}
		x.text += e.Text
		x.finish, x.usage, x.request = e.Finish, e.Usage, e.Request
		if len(x.hosts) == 0 || x.hosts[len(x.hosts)-1] != e.Host {
			x.hosts = append(x.hosts, e.Host)
		}
		if each != nil {
			return each(e)
		}
		return nil
	})
	return out, err
}

func seed(n uint64) *uint64 { return &n }

// ask is a question whose answer has n tokens.
func ask(n int) inference.Ask {
	return inference.Ask{Model: "model", Prompt: "What is Mesh?", Seed: seed(7), MaxTokens: n}
}

// want returns the undisturbed answer to an ask, by choice.
func want(t *testing.T, e *engine, a inference.Ask, choice uint32) ([]int32, string) {
	t.Helper()
	q := &inferencepb.Question{Model: modelID[:], Prompt: a.Prompt, Seed: *a.Seed}
	req, _, err := inference.NewRequest(network, testKey(1), q, &inferencepb.Request{
		Choices: uint32(max(1, a.Choices)), MaxTokens: uint32(a.MaxTokens), Nonce: make([]byte, 16)})
	if err != nil {
		t.Fatal(err)
	}
	prompt, err := e.Encode(q)
	if err != nil {
		t.Fatal(err)
	}
	plain := engine{script: e.script}
	text := inference.NewText(new(byteText), a.Stop)
	var tokens []int32
	var out strings.Builder
	stopped := errors.New("stopped")
	_, err = plain.Generate(context.Background(), inference.Generation{
		Prompt: prompt, Tape: req.Tape(choice), MaxTokens: a.MaxTokens,
	}, func(tok inference.Token) error {
		tokens = append(tokens, tok.ID)
		s, stop := text.Add(tok.ID)
		out.WriteString(s)
		if stop {
			return stopped
		}
		return nil
	})
	if err == nil {
		out.WriteString(text.End())
	} else if !errors.Is(err, stopped) {
		t.Fatal(err)
	}
	return tokens, out.String()
}

// check compares an answer with the undisturbed one, and its receipts with each other.
func (w *world) check(t *testing.T, a inference.Ask, choice int, got answer) {
	t.Helper()
	tokens, text := want(t, w.order[0].engine, a, uint32(choice))
	if fmt.Sprint(got.tokens) != fmt.Sprint(tokens) {
		t.Errorf("tokens differ from the undisturbed run: %d, want %d", len(got.tokens), len(tokens))
	}
	if got.text != text {
		t.Errorf("text %q, want %q", got.text, text)
	}
	if got.usage.OutputTokens != len(tokens) || got.usage.PromptTokens != len(a.Prompt) {
		t.Errorf("usage %+v", got.usage)
	}
	var last *inference.Receipt
	chain := inference.NewChain(network, got.request, uint32(choice))
	var price mesh.Amount
	for _, r := range w.receipts(choice) {
		if r.Before.Next == 0 && r.Before != chain {
			t.Error("the first receipt does not begin at the request")
		}
		if last != nil {
			if err := last.Joins(r); err != nil {
				t.Errorf("receipts: %v", err)
			}
			if !bytes.Equal(r.Pb.GetPrefixHost(), last.Host[:]) {
				t.Errorf("receipts: the second does not name who made its prefix")
			}
		}
		price += mesh.Amount(r.Pb.GetPrice())
		last = r
	}
	for _, tok := range tokens {
		chain.Add(tok)
	}
	if last == nil || last.After != chain || last.Finish != got.finish {
		t.Errorf("the last receipt does not end the answer: %+v", last)
	}
	if price != got.usage.Price {
		t.Errorf("the receipts cost %d, the usage says %d", price, got.usage.Price)
	}
}

// receipts returns what the router kept of a choice, segments without tokens left out.
func (w *world) receipts(choice int) []*inference.Receipt {
	var out []*inference.Receipt
	for _, r := range w.keeper.all() {
		if int(r.Pb.GetChoice()) == choice && (r.Pb.GetOutputTokens() > 0 || r.Finish != inference.FinishAborted) {
			out = append(out, r)
		}
	}
	return out
}

// TestHeldReceipt: a receipt that waits for the disk is not lost, and no error in the log.
func TestHeldReceipt(t *testing.T) {
	for _, tt := range []struct {
		err   error
		level string
	}{{nil, ""}, {fmt.Errorf("no room: %w", inference.ErrHeld), "WARN"}, {errors.New("no room"), "ERROR"}} {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			w := newWorld(t, 1, func(int) *engine { return new(engine) })
			w.keeper.fail = tt.err
			w.router.cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			_, err := w.collect(t.Context(), ask(5), nil)
			if w.close(); err != nil {
				t.Error(err)
			}
			if said := log.String(); tt.level == "" && said != "" || !strings.Contains(said, tt.level) || tt.level == "WARN" && strings.Contains(said, "ERROR") {
				t.Errorf("%v: log: %s", tt.err, said)
			}
		})
	}
}
