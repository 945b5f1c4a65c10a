package native

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

type golden struct {
	ToleranceF32 float64 `json:"tolerance_f32"`
	ToleranceQ8  float64 `json:"tolerance_q8_activations"`
	Prompts      []struct {
		Messages []*inferencepb.Message
		Text     string         `json:"text"`
		IDs      []int32        `json:"prompt_ids"`
		Greedy   []int32        `json:"greedy"`
		Top5     [][][2]float64 `json:"top5"` // [position][rank]{id, logit}
	} `json:"prompts"`
}

func readGolden(t *testing.T) *golden {
	t.Helper()
	b, err := os.ReadFile("../model/builtin/testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	g := new(golden)
	if err := json.Unmarshal(b, g); err != nil {
		t.Fatal(err)
	}
	if len(g.Prompts) != 8 {
		t.Fatalf("%d golden prompts, want 8", len(g.Prompts))
	}
	return g
}

func TestGolden(t *testing.T) {
	g := readGolden(t)
	for _, test := range []struct {
		name      string
		cfg       Config
		tolerance float64
	}{
		{"8-bit activations", Config{}, 0.4},
		{"float32", Config{DequantizeToF32: true, KV: "f32"}, 0.002},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.File, test.cfg.Threads = builtinFile(t), 2
			e := start(t, test.cfg)
			worst := 0.0
			for _, p := range g.Prompts {
				a := mustAsk(t, e, inference.Generation{Prompt: p.IDs, MaxTokens: len(p.Greedy)})
				if !slices.Equal(a.ids(), p.Greedy) {
					t.Errorf("%q: greedy ids %v, want %v", p.Text, a.ids(), p.Greedy)
				}
				logits, err := scoreLogits(e, slices.Concat(p.IDs, p.Greedy))
				if err != nil {
					t.Fatal(err)
				}
				for i, top := range p.Top5 {
					for _, want := range top {
						diff := math.Abs(float64(logits[len(p.IDs)-1+i][int(want[0])]) - want[1])
						worst = max(worst, diff)
					}
				}
			}
			if worst > test.tolerance {
				t.Errorf("largest difference of a logit is %g, want at most %g", worst, test.tolerance)
			}
			t.Logf("largest difference of a logit: %g", worst)
		})
	}
}

func TestEncode(t *testing.T) {
	e := start(t, Config{File: builtinFile(t)})
	for _, p := range readGolden(t).Prompts {
		ids, err := e.Encode(&inferencepb.Question{Messages: p.Messages})
		if err != nil || !slices.Equal(ids, p.IDs) {
			t.Errorf("%q: ids %v, error %v, want %v", p.Text, ids, err, p.IDs)
		}
		// As text, the marks of the template are text.
		ids, err = e.Encode(&inferencepb.Question{Prompt: p.Text})
		if err != nil || slices.ContainsFunc(ids, func(id int32) bool { return id >= 2045 }) {
			t.Errorf("%q as text: ids %v, error %v, want no special token", p.Text, ids, err)
		}
	}
	for _, test := range []struct {
		name string
		q    *inferencepb.Question
		want []int32 // nil: an invalid request
	}{
		{"token ids", &inferencepb.Question{PromptTokens: []uint32{2046, 7}}, []int32{2046, 7}},
		{"id past the vocabulary", &inferencepb.Question{PromptTokens: []uint32{2048}}, nil},
		{"id past int32", &inferencepb.Question{PromptTokens: []uint32{1<<32 - 1}}, nil},
		{"tools that are no list", &inferencepb.Question{Messages: []*inferencepb.Message{{Role: "user", Content: "hi"}}, Tools: "{"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			ids, err := e.Encode(test.q)
			if !slices.Equal(ids, test.want) || (test.want == nil) != errors.Is(err, inference.ErrInvalid) {
				t.Errorf("ids %v, error %v, want %v", ids, err, test.want)
			}
		})
	}
}

// TestHeldOut asks the questions that were kept out of the training and compares
// with the accuracy in the model's README: answers equal to the reference, to the
// end token.
func TestHeldOut(t *testing.T) {
	b, err := os.ReadFile("../model/builtin/testdata/heldout.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	type question struct{ Set, Question, Answer string }
	sets := map[string][]question{}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	if len(lines) != 746 {
		t.Fatalf("%d questions, want 746", len(lines))
	}
	for i, line := range lines {
		var q question
		if err := json.Unmarshal(line, &q); err != nil {
			t.Fatal(err)
		}
		if !testing.Short() || i%7 == 0 {
			sets[q.Set] = append(sets[q.Set], q)
		}
	}
	e := start(t, Config{File: builtinFile(t)})
	for set, percent := range map[string]float64{"paraphrase": 94.7, "fresh": 97.7, "final": 93.2} {
		t.Run(set, func(t *testing.T) {
			var right atomic.Int32
			var all sync.WaitGroup
			for _, q := range sets[set] {
				all.Go(func() {
					if text := reply(t, e, q.Question); text == q.Answer {
						right.Add(1)
					} else {
						t.Logf("%q: %q", q.Question, text)
					}
				})
			}
			all.Wait()
			n := len(sets[set])
			got := 100 * float64(right.Load()) / float64(n)
			t.Logf("%d of %d, %.1f %%", right.Load(), n, got)
			if got < percent-1 {
				t.Errorf("%.1f %% of %d answers are right, want %.1f %%", got, n, percent)
			}
		})
	}
}

// reply is the answer to one question; a question mark stands where it did not end.
func reply(t *testing.T, e *Engine, text string) string {
	ids, err := e.Encode(&inferencepb.Question{Messages: []*inferencepb.Message{{Role: "user", Content: text}}})
	if err != nil {
		t.Error(err)
		return ""
	}
	a, err := ask(t.Context(), e, inference.Generation{Prompt: ids, MaxTokens: 400})
	if err != nil {
		t.Error(err)
		return ""
	}
	var out strings.Builder
	d := e.Text()
	for _, id := range a.ids() {
		out.WriteString(d.Add(id))
	}
	out.WriteString(d.Flush())
	if a.finish != inference.FinishEOS {
		return out.String() + "?"
	}
	return out.String()
}
