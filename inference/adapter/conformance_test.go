package adapter

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/adapter/standin"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// target is a server that the suite runs against: a stand-in, or a real one that an
// environment variable names by its URL.
type target struct {
	name  string
	kind  Kind
	cfg   Config
	stand *standin.Server // nil: a real server
	seeds bool            // seeds have effect
}

func targets(t *testing.T) []target {
	sg := standin.NewSGLang(t)
	sg.Invariant.Store(true)
	news := standin.NewSGLang(t)
	news.Invariant.Store(true)
	news.Whole.Store(false)
	dev := standin.NewVLLM(t)
	dev.Info.Store(true)
	dev.Invariant.Store(true)
	list := []target{
		{name: "vllm", kind: VLLM, stand: standin.NewVLLM(t), seeds: true}, {name: "vllm-dev", kind: VLLM, stand: dev, seeds: true},
		{name: "sglang", kind: SGLang, stand: sg, seeds: true}, {name: "sglang-new-tokens", kind: SGLang, stand: news, seeds: true},
		{name: "llama-server", kind: Llama, stand: standin.NewLlama(t), seeds: true}, {name: "ollama", kind: Ollama, stand: standin.NewOllama(t), seeds: true},
	}
	for i := range list {
		list[i].cfg = Config{URL: list[i].stand.URL}
	}
	for _, real := range []struct {
		kind     Kind
		variable string
	}{
		{VLLM, "MESH_TEST_VLLM"}, {SGLang, "MESH_TEST_SGLANG"}, {Llama, "MESH_TEST_LLAMA_SERVER"}, {Ollama, "MESH_TEST_OLLAMA"},
	} {
		if url := os.Getenv(real.variable); url != "" {
			var models []Model
			if name := os.Getenv(real.variable + "_MODEL"); name != "" {
				models = []Model{{Server: name}}
			}
			list = append(list, target{name: "real-" + string(real.kind), kind: real.kind, cfg: Config{URL: url, Models: models}, seeds: real.kind != SGLang})
		}
	}
	return list
}

func (g *target) open(t *testing.T) (inference.Engine, *Description) {
	t.Helper()
	cfg := g.cfg
	cfg.Poll = 20 * time.Millisecond
	engines, d, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, e := range engines {
			e.Close()
		}
	})
	return engines[0], d
}

func user(text string) *inferencepb.Question {
	return &inferencepb.Question{Messages: []*inferencepb.Message{{Role: "user", Content: text}}}
}

func encode(t *testing.T, e inference.Engine, q *inferencepb.Question) []int32 {
	t.Helper()
	ids, err := e.Encode(q)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// generate runs one choice and returns its tokens.
func generate(t *testing.T, e inference.Engine, g inference.Generation) ([]inference.Token, inference.FinishReason) {
	t.Helper()
	var out []inference.Token
	fin, err := e.Generate(t.Context(), g, func(tok inference.Token) error {
		out = append(out, tok)
		return nil
	})
	if err != nil {
		t.Fatalf("generate: %v (after %d tokens)", err, len(out))
	}
	return out, fin.Reason
}

func idsOf(tokens []inference.Token) []int32 {
	var ids []int32
	for _, t := range tokens {
		ids = append(ids, t.ID)
	}
	return ids
}

func textOf(e inference.Engine, ids []int32) string {
	d := e.Text()
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(d.Add(id))
	}
	return b.String() + d.Flush()
}

func hot(t float32) *inferencepb.Sampling { return &inferencepb.Sampling{Temperature: t} }

// TestConformance is what every adapter does, whatever server is behind it.
func TestConformance(t *testing.T) {
	cases := []struct {
		name string
		run  func(t *testing.T, g *target)
	}{
		{"description", conformDescription}, {"encode", conformEncode}, {"control tokens", conformControl}, {"greedy", conformGreedy},
		{"length", conformLength}, {"prefix", conformPrefix}, {"text", conformText}, {"log-probabilities", conformLogProbs},
		{"seed", conformSeed}, {"cancel", conformCancel}, {"emit fails", conformEmitFails}, {"many", conformMany}, {"load", conformLoad},
		{"invalid", conformInvalid}, {"close", conformClose}, {"fragments", conformFragments}, {"score", conformScore},
	}
	for _, g := range targets(t) {
		t.Run(g.name, func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) { c.run(t, &g) })
			}
		})
	}
}
