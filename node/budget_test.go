package node

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/node/api"
)

func TestBudget(t *testing.T) {
	for _, tt := range []struct {
		name   string
		coming int
		uses   []int64
		want   []int64
	}{
		{"one at the start takes all", 1, []int64{500}, []int64{100}},
		{"and no more than it can use", 1, []int64{30}, []int64{30}},
		{"two at the start share", 2, []int64{500, 500}, []int64{50, 50}},
		{"a small one leaves the rest", 2, []int64{4, 500}, []int64{4, 96}},
		{"later ones get half of what is left", 1, []int64{20, 500, 500}, []int64{20, 40, 20}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := budget{limit: 100, coming: tt.coming}
			for i, use := range tt.uses {
				got, err := b.take(use)
				if err != nil || got != tt.want[i] {
					t.Errorf("share %d is %d, want %d: %v", i, got, tt.want[i], err)
				}
			}
		})
	}
	b := budget{limit: 100, coming: 1}
	if _, err := b.take(500); err != nil {
		t.Fatal(err)
	}
	if n, err := b.take(500); err == nil {
		t.Errorf("%d bytes were found where none are left", n)
	}
	b.give(100)
	if n, err := b.take(500); err != nil || n != 50 {
		t.Errorf("after one went: %d, %v", n, err)
	}
}

// TestModelsShareMemory adds models to a running catalogue: their keys and values stay
// below one limit together, and what a model had comes back with its end.
func TestModelsShareMemory(t *testing.T) {
	const limit = 64 << 20
	home, err := OpenHome(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	c, err := openCatalogue(home, limit, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	cfg := Config{Threads: 1, Slots: 32, KV: "f32"}
	shape, err := model.ShapeOf("tiny-llama")
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(3) {
		path := filepath.Join(home.Dir, string(rune('a'+seed))+".gguf")
		var file bytes.Buffer
		if err := model.Synthesize(&file, shape, model.Q8_0, seed); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := c.describe(context.Background(), path, func(api.Progress) {})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.load(e, cfg); err != nil {
			t.Fatal(err)
		}
	}
	sum := int64(0)
	_, open := c.list()
	for _, l := range open {
		if l.memory < 1 {
			t.Errorf("%s has no memory", l.Name)
		}
		sum += l.memory
	}
	if len(open) != 3 || sum > limit || sum != c.budget.taken {
		t.Errorf("%d models have %d bytes of %d, counted %d", len(open), sum, limit, c.budget.taken)
	}
	if err := c.stop(open[0]); err != nil || c.budget.taken != sum-open[0].memory {
		t.Errorf("after one ended %d bytes are taken: %v", c.budget.taken, err)
	}
}
