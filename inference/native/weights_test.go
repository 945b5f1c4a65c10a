package native

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/inference/model"
)

// TestFormats holds that a weight counts, not how it is stored: an F16 file has the
// logits of its copy widened to F32, and of one in which some matrices are widened,
// so that a layer's matrices cannot be stacked.
func TestFormats(t *testing.T) {
	s := shape(t, "tiny-qwen2")
	tokens := randomGeneration(rand.New(rand.NewPCG(8, 8)), s.Vocab, 40, 1).Prompt
	want := hashLogits(t, start(t, Config{File: synthetic(t, s, model.F16), Threads: 2}), tokens)

	wide := start(t, Config{File: synthetic(t, s, model.F16), DequantizeToF32: true})
	if got := hashLogits(t, wide, tokens); got != want {
		t.Error("widened to F32, the logits have another hash")
	}
	if w := wide.Info().Fingerprint.Weights; w != "F32" {
		t.Errorf("widened weights are called %q", w)
	}

	mixed := synthetic(t, s, model.F16)
	for _, tensor := range mixed.Tensors {
		if strings.HasSuffix(tensor.Name, "attn_k.weight") || strings.HasSuffix(tensor.Name, "ffn_up.weight") {
			data, err := widened(tensor)
			if err != nil {
				t.Fatal(err)
			}
			tensor.Format, tensor.Data = model.F32, data
		}
	}
	e := start(t, Config{File: mixed, Threads: 2})
	if n := len(e.net.layers[1].qkv.parts); n != 3 {
		t.Errorf("q, k and v are %d matrices, want 3", n)
	}
	if got := hashLogits(t, e, tokens); got != want {
		t.Error("partly widened, the logits have another hash")
	}
	if w := e.Info().Fingerprint.Weights; w != "F16+F32" {
		t.Errorf("mixed weights are called %q", w)
	}
}

// TestChunk holds that prompts get the part of a step that the machine can do in
// the time, and answers in the making make it shorter.
func TestChunk(t *testing.T) {
	ms := time.Millisecond
	for _, test := range []struct {
		name     string
		cost     cost
		fixed    int
		decoding int
		want     int
	}{
		{"first step", cost{}, 0, 0, minChunk},
		{"prompts only", cost{each: 2 * ms}, 0, 0, 125},
		{"beside answers", cost{each: 2 * ms}, 0, 1, 30},
		{"beside many answers", cost{each: 10 * ms}, 0, 15, 15},
		{"beside answers, slow weights", cost{one: 210 * ms, each: 10 * ms}, 0, 15, 35},
		{"slow", cost{each: time.Second}, 0, 0, minChunk},
		{"fast", cost{each: time.Microsecond}, 0, 1, maxChunk},
		{"fixed", cost{each: time.Microsecond}, 5, 1, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := scheduler{e: &Engine{chunk: test.fixed}, cost: test.cost}
			if got := s.chunk(test.decoding); got != test.want {
				t.Errorf("chunk is %d, want %d", got, test.want)
			}
		})
	}
}
