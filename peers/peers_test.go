package main

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/text/unicode/norm"

	"github.com/gonka-mesh/mesh/inference/model/builtin"
)

func builtinFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "builtin.gguf")
	if err := os.WriteFile(path, builtin.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func both(t *testing.T, file string) (ours, theirs *peer) {
	ours, err := mesh("", file, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.close() })
	if theirs, err = llamaCPP(t.TempDir(), "", file, 2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.close() })
	return ours, theirs
}

// difference compares logits: how often the largest is the same, the largest
// difference, and the root of the mean square of theirs.
func difference(ours, theirs [][]float32) (same int, largest, rms float64) {
	n := 0
	for i := range ours {
		if argmax(ours[i]) == argmax(theirs[i]) {
			same++
		}
		for j := range ours[i] {
			largest = max(largest, math.Abs(float64(ours[i][j])-float64(theirs[i][j])))
			rms += float64(theirs[i][j]) * float64(theirs[i][j])
			n++
		}
	}
	return same, largest, math.Sqrt(rms / float64(n))
}

func argmax(x []float32) int { return slices.Index(x, slices.Max(x)) }

// TestBuiltinLogits compares logits over questions that the built-in model was made
// for: both engines compute the same network, each with its own rounding.
func TestBuiltinLogits(t *testing.T) {
	ours, theirs := both(t, builtinFile(t))
	positions, same := 0, 0
	for _, text := range questions {
		ids, err := theirs.tokens(text)
		if err != nil {
			t.Fatal(err)
		}
		a, err := ours.logits(ids)
		if err != nil {
			t.Fatal(err)
		}
		b, err := theirs.logits(ids)
		if err != nil {
			t.Fatal(err)
		}
		n, largest, rms := difference(a, b)
		t.Logf("%d of %d equal, largest difference %.3f at an rms of %.2f: %.40q", n, len(ids), largest, rms, text)
		if largest > 0.1*rms {
			t.Errorf("difference %.3f is above a tenth of the rms %.2f", largest, rms)
		}
		positions, same = positions+len(ids), same+n
	}
	if float64(same) < 0.99*float64(positions) {
		t.Errorf("the likeliest token is the same at %d of %d positions: want 99 %%", same, positions)
	}
}

var questions = []string{
	"What is Mesh?", "How do I join the network with one command?", "Who pays a host, and when?",
	"A peer-to-peer network for compute has no gateways, so that every participant is its own transfer agent.",
	"What happens when the host that answers is killed in the middle of a sentence?",
	"Explain proof of compute in two sentences.", "1 2 3 4 5 6 7 8 9 10 11 12", "The receipt names the tokens and the price.",
}

// TestBuiltinTokens compares token ids of 10,000 strings. The tokenizer's definition
// brings text into normal form C first, which llama.cpp leaves out; it gets the
// normal form.
func TestBuiltinTokens(t *testing.T) {
	ours, theirs := both(t, builtinFile(t))
	const seed = 1
	r := rand.New(rand.NewPCG(seed, seed))
	wrong := 0
	for i := range 10_000 {
		text := randomText(r)
		a, err := ours.tokens(text)
		if err != nil {
			t.Fatal(err)
		}
		b, err := theirs.tokens(norm.NFC.String(text))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(a, b) {
			if wrong++; wrong < 10 {
				t.Errorf("string %d of seed %d, %q:\n ours   %v\n theirs %v", i, seed, text, a, b)
			}
		}
	}
	t.Logf("%d of 10000 differ", wrong)
}

// randomText mixes words, numbers, spaces and Unicode that splitters disagree about.
func randomText(r *rand.Rand) string {
	var b strings.Builder
	for range 1 + r.IntN(12) {
		switch r.IntN(8) {
		case 0:
			b.WriteString(pieces[r.IntN(len(pieces))])
		case 1:
			b.WriteRune(rune(r.IntN(0x3000)))
		case 2:
			for c := rune(r.IntN(0x10ffff)); ; c = rune(r.IntN(0x10ffff)) {
				if c < 0xd800 || c > 0xdfff {
					b.WriteRune(c)
					break
				}
			}
		default:
			b.WriteString(words[r.IntN(len(words))])
		}
		if r.IntN(3) == 0 {
			b.WriteByte(' ')
		}
	}
	return strings.ReplaceAll(b.String(), "\x00", "")
}

var (
	words  = strings.Fields("mesh network peer host the of a token price receipt epoch Ledger PROOF compute don't I'll WE'RE can't 7 42 2026 3.14159 1,000,000 x86 GPT-4 naïve café straße Ünïcödé")
	pieces = []string{
		"  ", "   ", "\n", "\n\n", " \n ", "\r\n", "\t", " \t\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\ufeff", "\u0085", "\u2028",
		"'s", "'S", "'ll", "'ſ", "’s", "...", "!?", "--", "()", "<|im_end|>", "<s>", "</s>", "[INST]", "```", "://", "_", "€", "½", "²", "Ⅷ", "٣", "१२", "一二三",
		"世界", "こんにちは", "한국어", "русский", "العربية", "ไทย", "हिन्दी", "🌍", "👩‍👩‍👧", "🇩🇪", "e\u0301", "\u0301", "ﬁ", "ǅ", "\u0130", "\U0001d7d8", "\x7f", "\x01",
	}
)

// TestSyntheticLogits compares the other architectures and formats on random
// weights, where logits are flat: the tolerance is what independent engines show.
func TestSyntheticLogits(t *testing.T) {
	for _, c := range []struct {
		shape, format string
		tolerance     float64 // of the rms
	}{
		{"tiny-llama", "f32", 3e-4}, {"tiny-qwen2", "f32", 3e-4}, {"tiny-qwen3", "f32", 3e-4}, {"tiny-mistral", "f32", 2e-3},
		{"tiny-qwen3moe", "f32", 3e-4}, {"tiny-gemma", "f32", 3e-4}, {"tiny-gemma2", "f32", 3e-4}, {"tiny-gemma3", "f32", 3e-4},
		{"tiny-llama", "f16", 0.01}, {"tiny-mistral", "bf16", 0.01}, {"tiny-gemma", "bf16", 0.01},
		{"tiny-llama", "q8_0", 0.03}, {"tiny-qwen2", "q8_0", 0.03}, {"tiny-qwen3", "q8_0", 0.03}, {"tiny-mistral", "q8_0", 0.03},
		{"tiny-qwen3moe", "q8_0", 0.03}, {"tiny-gemma", "q8_0", 0.03}, {"tiny-gemma2", "q8_0", 0.03}, {"tiny-gemma3", "q8_0", 0.03},
		{"tiny-mistral", "q4_0", 0.03}, {"tiny-mistral", "q4_k", 0.03}, {"tiny-mistral", "q5_k", 0.03}, {"tiny-mistral", "q6_k", 0.03},
		{"tiny-qwen3moe", "q4_k", 0.1}, // near choices of experts fall differently
	} {
		t.Run(c.shape+"-"+c.format, func(t *testing.T) {
			file, err := synthesize(t.TempDir(), c.shape, c.format)
			if err != nil {
				t.Fatal(err)
			}
			ours, theirs := both(t, file)
			ids := make([]int32, 64) // where llama.cpp's own arithmetic is closest to float32
			if c.shape == "tiny-mistral" {
				ids = ids[:48] // the window, which llama.cpp does not see in such files
			}
			for i := range ids {
				ids[i] = int32(i*37+5) % 1000
			}
			a, err := ours.logits(ids)
			if err != nil {
				t.Fatal(err)
			}
			b, err := theirs.logits(ids)
			if err != nil {
				t.Fatal(err)
			}
			same, largest, rms := difference(a, b)
			t.Logf("%d of %d equal, largest difference %.2g at an rms of %.2g", same, len(ids), largest, rms)
			if largest > c.tolerance*rms {
				t.Errorf("largest difference %.2g: want at most %.2g", largest, c.tolerance*rms)
			}
		})
	}
}
