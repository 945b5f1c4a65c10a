package native

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
)

// start opens an engine that ends with the test.
func start(t testing.TB, cfg Config) *Engine {
	t.Helper()
	e, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func builtinFile(t testing.TB) *model.File {
	t.Helper()
	f, err := builtin.Open()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// long asks for the tests in their full length.
var long = os.Getenv("MESH_LONG") != ""

var synthetics sync.Map // shape and format -> []byte

// synthetic returns a small model of random weights.
func synthetic(t testing.TB, s model.Shape, format model.Format) *model.File {
	t.Helper()
	key := fmt.Sprint(s, format)
	data, ok := synthetics.Load(key)
	if !ok {
		var b bytes.Buffer
		if err := model.Synthesize(&b, s, format, 1); err != nil {
			t.Fatal(err)
		}
		data, _ = synthetics.LoadOrStore(key, b.Bytes())
	}
	f, err := model.OpenBytes(data.([]byte))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// shape returns one of the shapes that the model package knows.
func shape(t testing.TB, name string) model.Shape {
	t.Helper()
	s, err := model.ShapeOf(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// answer is everything that a request yields.
type answer struct {
	tokens []inference.Token
	finish inference.FinishReason
}

func (a *answer) ids() []int32 {
	out := make([]int32, len(a.tokens))
	for i, t := range a.tokens {
		out[i] = t.ID
	}
	return out
}

func ask(ctx context.Context, e *Engine, g inference.Generation) (*answer, error) {
	a := new(answer)
	f, err := e.Generate(ctx, g, func(t inference.Token) error {
		a.tokens = append(a.tokens, t)
		return nil
	})
	a.finish = f.Reason
	return a, err
}

func mustAsk(t testing.TB, e *Engine, g inference.Generation) *answer {
	t.Helper()
	a, err := ask(t.Context(), e, g)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// scoreLogits returns the logits after each of the tokens.
func scoreLogits(e *Engine, tokens []int32) ([][]float32, error) {
	var out [][]float32
	all := inference.Scoring{Tokens: tokens, Logits: func(int) bool { return true }}
	err := e.Score(context.Background(), all, func(p inference.Position) error {
		out = append(out, slices.Clone(p.Logits))
		return nil
	})
	return out, err
}
