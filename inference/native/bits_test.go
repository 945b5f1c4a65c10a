package native

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

// randomGeneration is a request with every parameter of sampling drawn from r. It
// does not depend on who else asks.
func randomGeneration(r *rand.Rand, vocab, prompt, tokens int) inference.Generation {
	g := inference.Generation{
		Prompt: make([]int32, prompt), MaxTokens: tokens, IgnoreEOS: true, LogProbs: true, Top: r.IntN(4),
		Sampling: &inferencepb.Sampling{},
	}
	for i := range g.Prompt {
		g.Prompt[i] = r.Int32N(int32(vocab))
	}
	for i := range g.Tape {
		g.Tape[i] = byte(r.Uint32())
	}
	if r.IntN(3) > 0 {
		g.Sampling.Temperature = 0.5 + r.Float32()
	}
	if r.IntN(2) > 0 {
		g.Sampling.TopP, g.Sampling.TopK = 0.5+r.Float32()/2, r.Uint32N(200)
	}
	if r.IntN(2) > 0 {
		g.Sampling.FrequencyPenalty, g.Sampling.PresencePenalty, g.Sampling.RepetitionPenalty = r.Float32(), r.Float32(), 1.3
		g.Sampling.LogitBias = []*inferencepb.LogitBias{{Token: r.Uint32N(uint32(vocab)), Bias: 2}}
	}
	return g
}

// hashLogits hashes the bits of the logits after every token.
func hashLogits(t *testing.T, e *Engine, tokens []int32) mesh.Hash {
	t.Helper()
	logits, err := scoreLogits(e, tokens)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	for _, row := range logits {
		for _, v := range row {
			h.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(v)))
		}
	}
	return mesh.Hash(h.Sum(nil))
}

func compare(t *testing.T, what string, got, want *answer) {
	t.Helper()
	if got.finish != want.finish || len(got.tokens) != len(want.tokens) {
		t.Errorf("%s: %d tokens, finish %q, want %d, %q", what, len(got.tokens), got.finish, len(want.tokens), want.finish)
		return
	}
	for i := range want.tokens {
		if !reflect.DeepEqual(got.tokens[i], want.tokens[i]) {
			t.Errorf("%s: token %d is %+v, want %+v", what, i, got.tokens[i], want.tokens[i])
			return
		}
	}
}

// TestBits holds the four invariances: kernel, threads, batch, path.
func TestBits(t *testing.T) {
	defer kernel.Use("")
	for _, s := range []model.Shape{
		{Name: "llama", Architecture: "llama", Layers: 2, Width: 64, FFN: 96, Heads: 4, KVHeads: 2, HeadDim: 16, Vocab: 1024, Context: 512, RopeBase: 5e5},
		{Name: "qwen2", Architecture: "qwen2", Layers: 2, Width: 64, FFN: 160, Heads: 6, KVHeads: 1, HeadDim: 16, Vocab: 1040, Context: 512, RopeBase: 1e4, Tied: true},
		{Name: "qwen3", Architecture: "qwen3", Layers: 2, Width: 64, FFN: 96, Heads: 4, KVHeads: 4, HeadDim: 32, Vocab: 1024, Context: 512, RopeBase: 1e6, Tied: true},
	} {
		for _, format := range []model.Format{model.Q8_0, model.F16, model.F32} {
			if testing.Short() && format != model.Q8_0 {
				continue
			}
			t.Run(fmt.Sprintf("%s/%v", s.Name, format), func(t *testing.T) { testBits(t, synthetic(t, s, format)) })
		}
	}
}

func testBits(t *testing.T, f *model.File) {
	seed := rand.Uint64()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	r := rand.New(rand.NewPCG(seed, 0))
	var asked []inference.Generation
	for range 6 {
		asked = append(asked, randomGeneration(r, f.Config.Vocab, 1+r.IntN(40), 2+r.IntN(12)))
	}
	// One that crosses the chunks of 256 positions in which attention folds.
	asked = append(asked, randomGeneration(r, f.Config.Vocab, 240+r.IntN(14), 20))
	prompt := asked[len(asked)-1].Prompt

	// The reference: each alone, token by token, one thread, the fastest kernels.
	var want []*answer
	e := start(t, Config{File: f, Threads: 1, Chunk: 1})
	for _, g := range asked {
		want = append(want, mustAsk(t, e, g))
	}
	logits := hashLogits(t, e, prompt)

	for _, backend := range kernel.Backends() {
		for _, threads := range []int{1, 2, 4} {
			if backend == "portable" && threads != 2 && !long {
				continue // slow, and its threads are those of every backend
			}
			name := fmt.Sprintf("%s, %d threads", backend, threads)
			if err := kernel.Use(backend); err != nil {
				t.Fatal(err)
			}
			e := start(t, Config{File: f, Threads: threads, Slots: 5, Chunk: []int{0, 3, 64}[r.IntN(3)]})
			bystanders := 4
			if backend == "portable" && !long {
				bystanders = 0
			}
			inCompany(t, name, e, asked, want, bystanders, r)
			if got := hashLogits(t, e, prompt); got != logits {
				t.Errorf("%s: the logits have another hash", name)
			}
			i := r.IntN(len(asked) - 1)
			resumed(t, name, e, asked[i], want[i], 1+r.IntN(len(want[i].tokens)-1))
			e.Close()
		}
	}
	if err := kernel.Use(""); err != nil {
		t.Fatal(err)
	}
}

// inCompany asks everything at once, in random order, beside requests that are
// cancelled half-way.
func inCompany(t *testing.T, name string, e *Engine, asked []inference.Generation, want []*answer, bystanders int, r *rand.Rand) {
	t.Helper()
	got := make([]*answer, len(asked))
	var all sync.WaitGroup
	for _, i := range r.Perm(len(asked)) {
		all.Go(func() {
			var err error
			if got[i], err = ask(t.Context(), e, asked[i]); err != nil {
				t.Error(err)
			}
		})
		if i < bystanders {
			bystander, after := randomGeneration(r, e.net.Vocab, 1+r.IntN(80), 200), r.IntN(5)
			all.Go(func() { cancelAfter(t, e, bystander, after) })
		}
	}
	all.Wait()
	for i := range asked {
		compare(t, fmt.Sprintf("%s: request %d in company", name, i), got[i], want[i])
	}
}

func cancelAfter(t *testing.T, e *Engine, g inference.Generation, tokens int) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := 0
	f, err := e.Generate(ctx, g, func(inference.Token) error {
		if seen++; seen > tokens {
			cancel()
		}
		return nil
	})
	if err != nil || f.Reason != inference.FinishCancelled {
		t.Errorf("cancelled request: finish %q, error %v", f.Reason, err)
	}
}

// resumed continues an answer after its first k tokens, as the next host does.
func resumed(t *testing.T, name string, e *Engine, g inference.Generation, want *answer, k int) {
	t.Helper()
	g.Prefix = want.ids()[:k]
	got := mustAsk(t, e, g)
	compare(t, fmt.Sprintf("%s: resumed after %d tokens", name, k), got, &answer{tokens: want.tokens[k:], finish: want.finish})
}

// TestKV32 holds that the stored type of keys and values is part of what is
// computed, with equal bits for each.
func TestKV32(t *testing.T) {
	f := synthetic(t, shape(t, "tiny-qwen2"), model.Q8_0)
	tokens := randomGeneration(rand.New(rand.NewPCG(7, 7)), f.Config.Vocab, 300, 1).Prompt
	hashes := map[mesh.Hash]string{}
	for _, kv := range []string{"f16", "f32"} {
		a := hashLogits(t, start(t, Config{File: f, Threads: 1, KV: kv}), tokens)
		b := hashLogits(t, start(t, Config{File: f, Threads: 2, KV: kv, Chunk: 100}), tokens)
		if a != b {
			t.Errorf("%s: two hashes", kv)
		}
		hashes[a] = kv
	}
	if len(hashes) != 2 {
		t.Error("f16 and f32 give equal logits")
	}
}
