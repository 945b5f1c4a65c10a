package native

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

var update = flag.Bool("update", false, "write testdata/bits.txt: a changed line is a new version of the contract")

// TestGoldenBits holds the bits of whole models: hashes of logits that every machine
// and every later version has to reproduce.
func TestGoldenBits(t *testing.T) {
	if testing.Short() {
		t.Skip("arithmetic, which the race detector makes slow and finds nothing in")
	}
	const path = "testdata/bits.txt"
	golden, err := os.ReadFile(path)
	if err != nil && !*update {
		t.Fatal(err)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "# Contract %s: SHA-256 of the logits after each of 40 tokens, synthetic models of seed 1.\n", kernel.Contract)
	for _, name := range []string{
		"tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-mistral", "tiny-qwen3moe", "tiny-gemma", "tiny-gemma2", "tiny-gemma3",
	} {
		s := shape(t, name)
		for _, format := range model.Formats {
			if s.Width%256 != 0 && format != model.F32 && format != model.F16 && format != model.BF16 && format != model.Q8_0 {
				continue
			}
			f := synthetic(t, s, format)
			tokens := randomGeneration(rand.New(rand.NewPCG(1, 1)), f.Config.Vocab, 40, 1).Prompt
			fmt.Fprintf(&out, "%s %v %s\n", name, format, hashLogits(t, start(t, Config{File: f, Threads: 2}), tokens))
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := strings.Split(string(golden), "\n")
	for i, line := range strings.Split(out.String(), "\n") {
		if i >= len(want) || line != want[i] {
			t.Errorf("got %s, want %s", line, want[min(i, len(want)-1)])
		}
	}
}
