package builtin

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/gonka-mesh/mesh/inference/model"
)

func TestOpen(t *testing.T) {
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	c := f.Config
	if c.Architecture != "qwen2" || c.Layers != 6 || c.Width != 256 || c.Heads != 4 || c.KVHeads != 2 || c.HeadDim != 64 ||
		c.FFN != 704 || c.Vocab != 2048 || c.Context != 512 || c.RopeBase != 10000 || c.Eps != 1e-6 || !c.Tied || !c.QKVBias {
		t.Errorf("config %+v", c)
	}
	m, err := f.Manifest(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	if m.ID() != ID() {
		t.Errorf("model ID: got %v, want %v", m.ID(), ID())
	}
	if again, _ := Open(); again != f || len(Bytes()) != int(f.Size()) {
		t.Error("a second Open makes a second file")
	}
}

func TestGoldenPrompts(t *testing.T) {
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	tok, err := f.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	tpl, err := f.Template()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Prompts []struct {
			Messages   []model.Message
			Text       string
			PromptIDs  []int32 `json:"prompt_ids"`
			Greedy     []int32
			GreedyText string `json:"greedy_text"`
		}
	}
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden.Prompts) != 8 {
		t.Fatalf("%d golden prompts: want 8", len(golden.Prompts))
	}
	for _, p := range golden.Prompts {
		if text, err := tpl.Text(p.Messages, ""); err != nil || text != p.Text {
			t.Errorf("prompt text: got %q, %v, want %q", text, err, p.Text)
		}
		if ids, err := tpl.Encode(p.Messages, ""); err != nil || !slices.Equal(ids, p.PromptIDs) {
			t.Errorf("%q: got %v, %v, want %v", p.Text, ids, err, p.PromptIDs)
		}
		if text := tok.Decode(p.Greedy); text != p.GreedyText {
			t.Errorf("answer: got %q, want %q", text, p.GreedyText)
		}
	}
}

func TestHeldOutPrompts(t *testing.T) {
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	tok, _ := f.Tokenizer()
	tpl, _ := f.Template()
	file, err := os.Open("testdata/heldout.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	n := 0
	for lines := bufio.NewScanner(file); lines.Scan(); n++ {
		var q struct{ Question, Answer string }
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{q.Question, q.Answer} {
			if got := tok.Decode(tok.Encode(text)); got != text {
				t.Errorf("%q decodes to %q", text, got)
			}
		}
		ids, err := tpl.Encode([]model.Message{{Role: "user", Content: q.Question}}, "")
		if err != nil {
			t.Fatal(err)
		}
		// Three special tokens, the user's text between them as it is encoded alone.
		start, end := slices.Index(ids, 2046), slices.Index(ids, 2047)
		want := tok.Encode("user\n" + q.Question)
		if start != 0 || end != len(ids)-5 || !slices.Equal(ids[1:end], want) {
			t.Errorf("%q: prompt %v", q.Question, ids)
		}
	}
	if n != 746 {
		t.Errorf("%d held-out prompts: want 746", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			tpl, err := f.Template()
			if err != nil {
				t.Error(err)
				return
			}
			ids, err := tpl.Encode([]model.Message{{Role: "user", Content: "What is Mesh?"}}, "")
			if err != nil || len(ids) != 12 {
				t.Errorf("got %v, %v", ids, err)
			}
		})
	}
	wg.Wait()
}
