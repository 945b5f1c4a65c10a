package native

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/model"
)

// TestMostPrompt: no prompt has more tokens than a router without the tokenizer lets a
// host count, whatever the text.
func TestMostPrompt(t *testing.T) {
	texts := []string{"", "hi", strings.Repeat("\x00", 90), strings.Repeat("\ufdfa\U0001f9ff", 12), strings.Repeat("\ufdfa", 400), strings.Repeat("\U0001d1c0", 400), strings.Repeat("<|im_start|>", 7), strings.Repeat("ㄱ각e\u0301", 9)}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		r := make([]rune, 1+rng.IntN(24))
		for i := range r {
			r[i] = rune(rng.IntN(0x2ffff))
		}
		texts = append(texts, strings.ToValidUTF8(string(r), ""))
	}
	tools := `[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"string"}}}}}]`
	for name, f := range map[string]*model.File{
		"builtin": builtinFile(t), "llama": synthetic(t, shape(t, "tiny-llama"), model.Q8_0), "NFC": normalizing(t, "NFC"), "NFKC": normalizing(t, "NFKC"),
	} {
		e, err := NewEncoder(f, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			questions := []*inferencepb.Question{{Prompt: text}}
			if e.template != nil {
				questions = append(questions,
					&inferencepb.Question{Messages: []*inferencepb.Message{{Role: "user", Content: text}}},
					&inferencepb.Question{Tools: tools, Messages: []*inferencepb.Message{{Role: "system"}, {Role: "user", Content: text}, {Role: "assistant"}, {Role: "user"}}})
			}
			for _, q := range questions {
				ids, err := e.Encode(q)
				var long *inference.TooLongError
				if errors.As(err, &long) && !strings.HasPrefix(name, "NF") {
					continue // their contexts are small
				}
				if err != nil {
					t.Fatalf("%s: %q: %v", name, text, err)
				}
				if most := inference.MostPrompt(q); len(ids) > most {
					t.Errorf("%s: %q has %d tokens, at most %d are believed", name, text, len(ids), most)
				}
			}
		}
	}
}

// normalizing returns a small model whose tokenizer brings text into a normal form.
func normalizing(t *testing.T, form string) *model.File {
	t.Helper()
	dir, small := t.TempDir(), shape(t, "tiny-qwen3")
	small.Context = 1 << 16
	if err := model.SynthesizeDirectory(dir, small, model.BF16, 1, 1); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "tokenizer.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(raw, []byte(`{"type":"NFC"}`), []byte(`{"type":"`+form+`"}`), 1)
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
