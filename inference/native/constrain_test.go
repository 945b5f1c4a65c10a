package native

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/grammar"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

const personSchema = `{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer","minimum":0,"maximum":150},` +
	`"tags":{"type":"array","items":{"enum":["red","green"]},"maxItems":3}},"required":["name","age","tags"],"additionalProperties":false}`

func textOf(e *Engine, ids []int32) string {
	d, out := e.Text(), ""
	for _, id := range ids {
		out += d.Add(id)
	}
	return out + d.Flush()
}

func TestConstrained(t *testing.T) {
	e := start(t, Config{File: builtinFile(t), Threads: 2})
	prompt, err := e.Encode(&inferencepb.Question{Messages: []*inferencepb.Message{{Role: "user", Content: "Who are you?"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		constraint  *inferencepb.Constraint
		temperature float32
		valid       func(text string) bool
	}{
		{"schema", &inferencepb.Constraint{Kind: "json_schema", Text: personSchema}, 0, isPerson},
		{"schema, drawn", &inferencepb.Constraint{Kind: "json_schema", Text: personSchema}, 1.5, isPerson},
		{"grammar", &inferencepb.Constraint{Kind: "gbnf", Text: `root ::= "yes" | "no, " [a-z]{3}`}, 0.8, func(s string) bool {
			return s == "yes" || strings.HasPrefix(s, "no, ") && len(s) == 7
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := e.Constrain(c.constraint); err != nil {
				t.Fatal(err)
			}
			for tape := range byte(3) {
				g := inference.Generation{Prompt: prompt, MaxTokens: 200, Constraint: c.constraint, LogProbs: true,
					Sampling: &inferencepb.Sampling{Temperature: c.temperature, TopK: 40, TopP: 0.95}, Tape: [32]byte{tape}}
				a := mustAsk(t, e, g)
				ids := a.ids()
				text := textOf(e, ids)
				if a.finish != inference.FinishEOS || !c.valid(text) {
					t.Fatalf("%q, %s", text, a.finish)
				}
				// Another host goes on from any prefix with equal tokens and log-probabilities.
				for _, n := range []int{1, len(ids) / 2, len(ids) - 1} {
					h := g
					h.Prefix = ids[:n]
					if b := mustAsk(t, e, h); !slices.Equal(b.ids(), ids[n:]) || b.finish != a.finish || b.tokens[0].LogProb != a.tokens[n].LogProb {
						t.Fatalf("continued after %d tokens: %q", n, textOf(e, append(ids[:n:n], b.ids()...)))
					}
				}
			}
		})
	}
}

func isPerson(text string) bool {
	var p struct {
		Name *string
		Age  *int
		Tags []string
	}
	return json.Unmarshal([]byte(text), &p) == nil && p.Name != nil && len([]rune(*p.Name)) <= 12 && p.Age != nil && *p.Age >= 0 && *p.Age <= 150 &&
		p.Tags != nil && len(p.Tags) <= 3 && !slices.ContainsFunc(p.Tags, func(s string) bool { return s != "red" && s != "green" })
}

func TestConstraintRefused(t *testing.T) {
	e := start(t, Config{File: builtinFile(t), Threads: 1})
	good := &inferencepb.Constraint{Kind: "gbnf", Text: `root ::= "yes"`}
	for _, c := range []struct {
		name string
		g    inference.Generation
		want string
	}{
		{"kind", inference.Generation{Constraint: &inferencepb.Constraint{Kind: "regex", Text: "a"}}, "regex"},
		{"text", inference.Generation{Constraint: &inferencepb.Constraint{Kind: "json_schema", Text: `{"type":"x"}`}}, "#/type"},
		{"ignore eos", inference.Generation{Constraint: good, IgnoreEOS: true}, "cannot go on"},
		{"prefix", inference.Generation{Constraint: good, Prefix: []int32{1}}, "output token 0"},
	} {
		c.g.Prompt, c.g.MaxTokens = []int32{5}, 5
		if _, err := ask(context.Background(), e, c.g); !errors.Is(err, inference.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := e.Constrain(&inferencepb.Constraint{Kind: "gbnf", Text: "root ::= x"}); !errors.Is(err, inference.ErrInvalid) {
		t.Errorf("an undefined rule: %v", err)
	}
}

// BenchmarkConstrained follows an answer of a schema with a vocabulary of 151,936 tokens:
// what its masks cost, when the grammar is new and when it was used before, and what it
// adds to the choice of a token.
func BenchmarkConstrained(b *testing.B) {
	s := shape(b, "0.5b")
	s.Layers, s.Width, s.FFN, s.Heads, s.KVHeads = 1, 128, 128, 2, 2
	e := start(b, Config{File: synthetic(b, s, model.Q8_0), Threads: 1})
	answer := e.tokenizer.Encode(`{"name": "banana be", "age": 42, "tags": ["red", "green"]}`)
	vocab, err := e.vocabulary()
	if err != nil {
		b.Fatal(err)
	}
	follow := func(g *grammar.Grammar) (most time.Duration) {
		m := grammar.NewMatcher(g, vocab)
		for _, id := range answer {
			start := time.Now()
			if _, err := m.Mask(); err != nil {
				b.Fatal(err)
			}
			if err := m.Accept(id); err != nil {
				b.Fatal(err)
			}
			most = max(most, time.Since(start))
		}
		return most
	}
	used, err := grammar.Compile(grammar.Schema, personSchema)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("new", func(b *testing.B) {
		var most time.Duration
		for b.Loop() {
			g, err := grammar.Compile(grammar.Schema, personSchema)
			if err != nil {
				b.Fatal(err)
			}
			most = max(most, follow(g))
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(answer)), "us/token")
		b.ReportMetric(float64(most.Microseconds()), "us-longest")
	})
	b.Run("used", func(b *testing.B) {
		for b.Loop() {
			follow(used)
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(answer)), "us/token")
	})
	b.Run("vocabulary", func(b *testing.B) {
		for b.Loop() {
			if _, err := grammar.NewVocabulary(s.Vocab, e.tokenizer.Piece, nil, []int32{int32(s.Vocab) - 1}); err != nil {
				b.Fatal(err)
			}
		}
	})
	logits := make([]float32, s.Vocab)
	for i := range logits {
		logits[i] = float32(i%997) / 100
	}
	text := grammar.NewMatcher(used, vocab)
	for _, id := range answer[:4] {
		if err := text.Accept(id); err != nil {
			b.Fatal(err)
		}
	}
	allowed, err := text.Mask()
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		allowed []uint64
	}{{"sample", nil}, {"sample allowed", allowed}} {
		b.Run(c.name, func(b *testing.B) {
			var sampler kernel.Sampler
			for b.Loop() {
				p := kernel.Sampling{Temperature: 0.8, TopP: 0.95, Allowed: c.allowed}
				if _, err := sampler.Sample(logits, &p, nil, new([32]byte), 1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
