package native

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// small is a model that computes thousands of tokens a second.
func small(t testing.TB) *model.File {
	return synthetic(t, shape(t, "tiny-qwen2"), model.Q8_0)
}

func generation(seed uint64, prompt, tokens int) inference.Generation {
	return randomGeneration(rand.New(rand.NewPCG(seed, 0)), 1024, prompt, tokens)
}

// endless is a request that only cancelling ends while the test runs.
func endless(seed uint64) inference.Generation {
	g := generation(seed, 4, 500)
	g.LogProbs, g.Top = false, 0
	return g
}

// waitFor polls until the engine's load is as wanted.
func waitFor(t *testing.T, e *Engine, active, queued int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		l := e.Load()
		if l.Active == active && l.Queued == queued {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("load is %+v, want %d active, %d queued", l, active, queued)
		}
		runtime.Gosched()
	}
}

// held starts a request whose consumer takes its first token and then waits until
// release is called.
func held(t *testing.T, e *Engine, g inference.Generation) (release func() *answer) {
	t.Helper()
	begun, goOn, done := make(chan struct{}), make(chan struct{}), make(chan *answer, 1)
	go func() {
		a := new(answer)
		f, err := e.Generate(context.Background(), g, func(tok inference.Token) error {
			if len(a.tokens) == 0 {
				close(begun)
				<-goOn
			}
			a.tokens = append(a.tokens, tok)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		a.finish = f.Reason
		done <- a
	}()
	<-begun
	return func() *answer { close(goOn); return <-done }
}

func TestInfo(t *testing.T) {
	id := mesh.HashOf([]byte("id"))
	e := start(t, Config{File: small(t), ID: id, Name: "small", Slots: 3, Context: 100})
	i := e.Info()
	f := i.Fingerprint
	if i.ID != id || i.Name != "small" || i.Slots != 3 || i.Context != 100 || i.Vocab != 1024 || i.Bytes < 1000 {
		t.Errorf("info is %+v", i)
	}
	if f.Engine != "native" || f.EngineVersion != mesh.Version || f.Contract != "mk1" || f.Weights != "Q8_0" || f.Kv != "f16" {
		t.Errorf("fingerprint is %+v", f)
	}
	if c := inference.ClassOf(f); c != inference.ClassExact {
		t.Errorf("class is %q", c)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		name, want string
		cfg        Config
	}{
		{"negative", "negative", Config{Slots: -1}},
		{"context", "the model was made for 512", Config{Context: 513}},
		{"kv", "want f16 or f32", Config{KV: "q8"}},
		{"memory", "needs at least", Config{Memory: 100}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.File = small(t)
			e, err := Open(test.cfg)
			if err == nil {
				e.Close()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestGenerateRefuses(t *testing.T) {
	e := start(t, Config{File: small(t), Context: 64})
	for _, test := range []struct {
		name string
		g    inference.Generation
	}{
		{"no prompt", inference.Generation{MaxTokens: 1}},
		{"prompt as long as the context", generation(1, 64, 1)},
		{"no tokens", generation(1, 3, 0)},
		{"unknown token", inference.Generation{Prompt: []int32{1024}, MaxTokens: 1}},
		{"negative token", inference.Generation{Prompt: []int32{-1}, MaxTokens: 1}},
		{"unknown prefix", inference.Generation{Prompt: []int32{1}, Prefix: []int32{5000}, MaxTokens: 9}},
		{"prefix longer than the answer", inference.Generation{Prompt: []int32{1}, Prefix: []int32{5, 6}, MaxTokens: 1}},
		{"alternatives", inference.Generation{Prompt: []int32{1}, MaxTokens: 1, Top: 21}},
		{"temperature", inference.Generation{Prompt: []int32{1}, MaxTokens: 1, Sampling: &inferencepb.Sampling{Temperature: float32(math.NaN())}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := ask(t.Context(), e, test.g); !errors.Is(err, inference.ErrInvalid) {
				t.Errorf("error is %v, want an invalid request", err)
			}
		})
	}
}

func TestFinish(t *testing.T) {
	e := start(t, Config{File: builtinFile(t), Context: 128})
	p := readGolden(t).Prompts[0].IDs
	full := mustAsk(t, e, inference.Generation{Prompt: p, MaxTokens: 128})
	whole, n := full.ids(), len(full.tokens)
	if !e.isEnd(whole[n-1]) || slices.ContainsFunc(whole[:n-1], e.isEnd) {
		t.Fatalf("answer is %v, want one that ends with the only end token", whole)
	}
	biased := inference.Generation{Prompt: p, MaxTokens: 4, Sampling: &inferencepb.Sampling{LogitBias: []*inferencepb.LogitBias{{Token: 65, Bias: 100}}}}
	for _, test := range []struct {
		name   string
		g      inference.Generation
		tokens int
		finish inference.FinishReason
	}{
		{"end token", inference.Generation{Prompt: p, MaxTokens: n + 9}, n, inference.FinishEOS},
		{"end token is the last allowed", inference.Generation{Prompt: p, MaxTokens: n}, n, inference.FinishEOS},
		{"max tokens", inference.Generation{Prompt: p, MaxTokens: n - 1}, n - 1, inference.FinishLength},
		{"ignoring the end", inference.Generation{Prompt: p, MaxTokens: n + 2, IgnoreEOS: true}, n + 2, inference.FinishLength},
		{"context", inference.Generation{Prompt: p, MaxTokens: math.MaxInt, IgnoreEOS: true}, 128 - len(p), inference.FinishLength},
		{"prefix is the whole answer", inference.Generation{Prompt: p, Prefix: whole, MaxTokens: n + 9}, 0, inference.FinishEOS},
		{"prefix has all tokens", inference.Generation{Prompt: p, Prefix: whole[:3], MaxTokens: 3}, 0, inference.FinishLength},
		{"bias", biased, 4, inference.FinishLength},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := mustAsk(t, e, test.g)
			if len(a.tokens) != test.tokens || a.finish != test.finish {
				t.Errorf("%d tokens, finish %q, want %d, %q", len(a.tokens), a.finish, test.tokens, test.finish)
			}
			if test.name == "bias" && slices.ContainsFunc(a.ids(), func(id int32) bool { return id != 65 }) {
				t.Errorf("ids are %v, want 65 only", a.ids())
			}
		})
	}
}

// TestHidden holds that the root covers prompt and outputs that were fed, and is
// the one of leaves made from scratch.
func TestHidden(t *testing.T) {
	e := start(t, Config{File: small(t)})
	g := generation(3, 10, 5)
	a := mustAsk(t, e, g)
	tokens := append(slices.Clone(g.Prompt), a.ids()...)
	var leaves []mesh.Hash
	err := e.Score(t.Context(), inference.Scoring{Tokens: tokens}, func(p inference.Position) error {
		leaves = append(leaves, p.Hidden)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, tok := range a.tokens {
		if n := len(g.Prompt) + i; tok.Positions != n || tok.Hidden != merkle.Root(leaves[:n]) {
			t.Errorf("token %d has %d positions, root %v, want %d, %v", i, tok.Positions, tok.Hidden.Short(), n, merkle.Root(leaves[:n]).Short())
		}
	}
}

func TestLogProbs(t *testing.T) {
	e := start(t, Config{File: small(t)})
	g := generation(4, 8, 3)
	g.Top, g.Sampling = 5, nil
	a := mustAsk(t, e, g)
	logits, err := scoreLogits(e, append(slices.Clone(g.Prompt), a.ids()...))
	if err != nil {
		t.Fatal(err)
	}
	for i, tok := range a.tokens {
		row := logits[len(g.Prompt)-1+i]
		sum := 0.0
		for _, v := range row {
			sum += math.Exp(float64(v))
		}
		want := float64(row[tok.ID]) - math.Log(sum)
		if math.Abs(float64(tok.LogProb)-want) > 1e-5 {
			t.Errorf("token %d: log-probability %g, want %g", i, tok.LogProb, want)
		}
		if len(tok.Top) != 5 || tok.Top[0].ID != tok.ID || tok.Top[0].LogProb != tok.LogProb || tok.Top[1].LogProb > tok.Top[0].LogProb {
			t.Errorf("token %d: alternatives %+v to %d at %g", i, tok.Top, tok.ID, tok.LogProb)
		}
	}
}

func TestNumeric(t *testing.T) {
	const poison = 77
	for _, format := range []model.Format{model.F32, model.Q8_0} {
		t.Run(format.String(), func(t *testing.T) {
			var b bytes.Buffer
			if err := model.Synthesize(&b, shape(t, "tiny-qwen2"), format, 1); err != nil {
				t.Fatal(err)
			}
			f, err := model.OpenBytes(b.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			row := f.Tensor("token_embd.weight").Row(poison)
			if format == model.F32 {
				binary.LittleEndian.PutUint32(row[40:], math.Float32bits(float32(math.Inf(1))))
			} else {
				binary.LittleEndian.PutUint16(row[34:], 0x7c00)
			}
			e := start(t, Config{File: f, Threads: 2})
			good := generation(5, 30, 10)
			good.Prompt = slices.DeleteFunc(good.Prompt, func(id int32) bool { return id == poison })
			want := mustAsk(t, start(t, Config{File: f, Threads: 1, Chunk: 1}), good)
			// The row is an output row too, so the good request may meet it there.
			bad := generation(6, 30, 10)
			bad.Prompt[11] = poison
			var all sync.WaitGroup
			var got, none *answer
			var errGot, errNone error
			all.Go(func() { got, errGot = ask(t.Context(), e, good) })
			all.Go(func() { none, errNone = ask(t.Context(), e, bad) })
			all.Wait()
			if errGot != nil || errNone != nil {
				t.Fatal(errGot, errNone)
			}
			if none.finish != inference.FinishNumeric || len(none.tokens) != 0 {
				t.Errorf("poisoned request: %d tokens, finish %q", len(none.tokens), none.finish)
			}
			compare(t, "request beside a poisoned one", got, want)
		})
	}
	t.Run("overflow of the cache", func(t *testing.T) {
		var b bytes.Buffer
		if err := model.Synthesize(&b, shape(t, "tiny-qwen2"), model.F16, 1); err != nil {
			t.Fatal(err)
		}
		f, err := model.OpenBytes(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint32(f.Tensor("blk.1.attn_v.bias").Data[8:], math.Float32bits(1e6))
		for kv, finish := range map[string]inference.FinishReason{"f16": inference.FinishNumeric, "f32": inference.FinishLength} {
			a := mustAsk(t, start(t, Config{File: f, KV: kv}), generation(1, 3, 3))
			if a.finish != finish {
				t.Errorf("%s: finish %q, want %q", kv, a.finish, finish)
			}
		}
	})
}
