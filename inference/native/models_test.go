package native

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

// TestModels holds that every architecture and format computes the same bits with
// every kernel, with one thread token by token and with several in chunks: experts,
// windows, caps and norms included.
func TestModels(t *testing.T) {
	if testing.Short() {
		t.Skip("arithmetic, which the race detector makes slow and finds nothing in")
	}
	defer kernel.Use("")
	cases := []struct {
		shape   string
		formats []model.Format
	}{
		{"tiny-mistral", []model.Format{model.Q8_0, model.Q4_K}},
		{"tiny-qwen3moe", []model.Format{model.Q8_0, model.Q5_K, model.F16}},
		{"tiny-gemma", []model.Format{model.BF16, model.Q4_0}},
		{"tiny-gemma2", []model.Format{model.Q8_0, model.Q6_K}},
		{"tiny-gemma3", []model.Format{model.Q8_0, model.F32}},
	}
	for _, c := range cases {
		if long {
			c.formats = model.Formats
		}
		for _, format := range c.formats {
			t.Run(fmt.Sprintf("%s/%v", c.shape, format), func(t *testing.T) {
				f := synthetic(t, shape(t, c.shape), format)
				// Longer than the windows, and across the chunks of attention.
				tokens := randomGeneration(rand.New(rand.NewPCG(3, 3)), f.Config.Vocab, 300, 1).Prompt
				var want mesh.Hash
				for i, backend := range kernel.Backends() {
					if err := kernel.Use(backend); err != nil {
						t.Fatal(err)
					}
					n := len(tokens)
					if backend == "portable" && !long {
						n = 70 // it is slow
					}
					whole := hashLogits(t, start(t, Config{File: f, Threads: 2}), tokens[:n])
					parts := hashLogits(t, start(t, Config{File: f, Threads: 1, Chunk: 7}), tokens[:n])
					if whole != parts {
						t.Errorf("%s: other bits in chunks of 7", backend)
					}
					if n < len(tokens) {
						kernel.Use(kernel.Backends()[0])
						want = hashLogits(t, start(t, Config{File: f, Threads: 2}), tokens[:n])
					} else if i == 0 {
						want = whole
					}
					if whole != want {
						t.Errorf("%s: other bits than %s", backend, kernel.Backends()[0])
					}
				}
			})
		}
	}
}

// TestExperts holds that company changes no answer of a mixture of experts, where the
// rows of a step meet at the same experts.
func TestExperts(t *testing.T) {
	f := synthetic(t, shape(t, "tiny-qwen3moe"), model.Q8_0)
	e := start(t, Config{File: f, Threads: 2})
	var asked []inference.Generation
	var want []*answer
	r := rand.New(rand.NewPCG(5, 5))
	for range 5 {
		g := randomGeneration(r, f.Config.Vocab, 5+r.IntN(30), 12)
		asked, want = append(asked, g), append(want, mustAsk(t, start(t, Config{File: f, Threads: 1, Chunk: 1}), g))
	}
	got := make(chan struct{})
	answers := make([]*answer, len(asked))
	for i, g := range asked {
		go func() {
			answers[i], _ = ask(t.Context(), e, g)
			got <- struct{}{}
		}()
	}
	for range asked {
		<-got
	}
	for i := range asked {
		if answers[i] == nil {
			t.Fatalf("request %d failed", i)
		}
		compare(t, fmt.Sprintf("request %d in company", i), answers[i], want[i])
	}
}

// TestRoute checks the choice of experts against its definition.
func TestRoute(t *testing.T) {
	n := &network{Config: model.Config{Experts: 4, ExpertsUsed: 2, NormTopK: true}}
	g := &graph{net: n, bad: make([]bool, 1)}
	g.mix.logits = []float32{1, 3, 3, 0}
	g.mix.chosen = make([]choice, 2)
	g.route(0, 1)
	if c := g.mix.chosen; c[0].expert != 1 || c[1].expert != 2 || c[0].weight != 0.5 || c[1].weight != 0.5 {
		t.Errorf("chosen: %+v", c)
	}
	nan := kernel.Exp(1000) - kernel.Exp(1000)
	g.mix.logits = []float32{1, nan, 3, 0}
	g.route(0, 1)
	if !g.bad[0] || !slices.ContainsFunc(g.mix.chosen, func(c choice) bool { return c.expert == 0 }) {
		t.Errorf("a logit that is no number: bad %v, %+v", g.bad, g.mix.chosen)
	}
}
