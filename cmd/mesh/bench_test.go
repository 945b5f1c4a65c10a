package main

import (
	"bytes"
	"encoding/json"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/inference/native"
)

func TestQuantileIsNearestRank(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for _, c := range []struct{ q, want float64 }{{0, 1}, {0.2, 1}, {0.5, 3}, {0.8, 4}, {0.99, 5}, {1, 5}} {
		if got := quantile(values, c.q); got != c.want {
			t.Errorf("quantile %g is %g, want %g", c.q, got, c.want)
		}
	}
	if values[0] != 5 {
		t.Error("quantile reordered what it was given")
	}
}

// One bad turn of a machine must not move the figure.
func TestLoadRatioIsTheMedianOfRatios(t *testing.T) {
	rounds := []loadRound{{Direct: 100, Mesh: 98}, {Direct: 10, Mesh: 9.9}, {Direct: 50, Mesh: 20}, {Direct: 80, Mesh: 79.2}, {Direct: 40, Mesh: 44}}
	if got := loadRatio(rounds); got < 0.9899 || got > 0.9901 {
		t.Errorf("ratio is %.4f, want 0.99", got)
	}
}

// TestBenchEngine measures the built-in model in processes of its own and in this one,
// and holds the figures to what must hold on any machine.
func TestBenchEngine(t *testing.T) {
	var out, notes bytes.Buffer
	args := []string{"bench", "--json", "--shape", "none", "--rounds", "1", "--threads", "2", "--part", "prefill,batch,score,prefix,start,memory,crowd"}
	if code := run(args, strings.NewReader(""), &out, &notes); code != exitDone {
		t.Fatalf("exit code %d: %s", code, &notes)
	}
	var doc benchDocument
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Engine) != 1 {
		t.Fatalf("%d engines were measured, want 1", len(doc.Engine))
	}
	e := doc.Engine[0]
	if e.Model != "built-in" || e.Threads != 2 || e.Prefill <= 0 || e.Score <= 0 || e.Decode != 0 {
		t.Errorf("figures are %+v", e)
	}
	if len(e.Batches) != 5 || e.Batches[4].Requests != 16 || e.Batches[4].Speed != e.Many || e.Batches[0].Ratio != 1 {
		t.Errorf("batches are %+v", e.Batches)
	}
	if e.Newcomer == nil || e.Newcomer.SameRatio <= 0 || e.Newcomer.OtherRatio <= 0 {
		t.Errorf("newcomer is %+v", e.Newcomer)
	}
	if e.Check == nil || math.Abs(e.Check.Share-e.Check.Check/e.Check.Generate) > 1e-3 {
		t.Errorf("check is %+v", e.Check)
	}
	if e.Prefix == nil || e.Prefix.Kept < e.Prefix.Common || e.Prefix.Kept >= e.Prefix.Prompt {
		t.Errorf("prefix is %+v", e.Prefix)
	}
	if e.Start == nil || e.Start.First <= 0 || e.Start.NodeAgain <= 0 {
		t.Errorf("start is %+v", e.Start)
	}
	if e.Memory == nil || e.Memory.File != e.Bytes || e.Memory.KV <= 0 || e.Memory.Peak < e.Memory.RSS {
		t.Errorf("memory is %+v", e.Memory)
	}
	if crowded := 2*e.Threads > doc.Machine.Processors; crowded != (e.Crowd != nil) || crowded && e.Crowd.Ratio <= 0 {
		t.Errorf("two processes are %+v", e.Crowd)
	}
	if err := printBench(&out, &doc); err != nil || !strings.Contains(out.String(), "16 at once") {
		t.Errorf("table: %v\n%s", err, &out)
	}
}

// The check that is measured has to be one: it finds an answer with another token, and
// one whose commitment is another.
func TestBenchCheckFinds(t *testing.T) {
	f, err := builtin.Open()
	if err != nil {
		t.Fatal(err)
	}
	e, err := native.Open(native.Config{File: f, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	m := newMeter(e)
	prompt := m.prompt(5)
	a, err := m.ask(t.Context(), 0, prompt, 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.check(t.Context(), prompt, a.tokens); err != nil {
		t.Errorf("the answer as it is: %v", err)
	}
	for name, change := range map[string]func([]inference.Token){
		"token":      func(x []inference.Token) { x[3].ID = (x[3].ID + 1) % int32(e.Info().Vocab) },
		"commitment": func(x []inference.Token) { x[19].Hidden[0] ^= 1 },
	} {
		other := append([]inference.Token(nil), a.tokens...)
		change(other)
		if m.check(t.Context(), prompt, other) == nil {
			t.Errorf("another %s was not found", name)
		}
	}
}

func TestBenchRefuses(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--part speed", `--part "speed"`}, {"--rounds 0", "1 or more"}, {"--threads -1", "negative"},
		{"--part decode --shape huge", "no synthetic model"}, {"--part decode --format q9", "Q9"},
		{"--part roof --kernels sse", "sse"}, {"--part decode --shape tiny-llama --format q4_k", "0.6b"},
	} {
		var out, notes bytes.Buffer
		code := run(append([]string{"bench"}, strings.Fields(c.args)...), strings.NewReader(""), &out, &notes)
		if code != exitUsage || !strings.Contains(notes.String(), c.want) {
			t.Errorf("%s: exit code %d, %q: want %d and %q", c.args, code, &notes, exitUsage, c.want)
		}
	}
}

func TestTokenBytes(t *testing.T) {
	for _, c := range []struct {
		shape string
		want  func(total, embedding, experts int64) int64
	}{
		{"tiny-qwen2", func(total, _, _ int64) int64 { return total }},                     // tied: the embedding is the head
		{"tiny-llama", func(total, embedding, _ int64) int64 { return total - embedding }}, // a row of it
		{"tiny-qwen3moe", func(total, embedding, experts int64) int64 { return total - embedding - experts*6/8 }},
	} {
		path := filepath.Join(t.TempDir(), c.shape)
		o := benchOptions{shape: c.shape, format: "F32", notes: new(bytes.Buffer)}
		if _, err := synthesize(o, path); err != nil {
			t.Fatal(err)
		}
		f, err := model.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		var total, experts int64
		for _, x := range f.Tensors {
			if len(x.Shape) > 1 {
				total += int64(len(x.Data))
			}
			if len(x.Shape) > 2 {
				experts += int64(len(x.Data))
			}
		}
		want := c.want(total, int64(len(f.Tensor("token_embd.weight").Data)), experts)
		if got := tokenBytes(f); got != want {
			t.Errorf("%s: a token reads %d bytes, want %d", c.shape, got, want)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestBenchTable leaves out what means nothing for a model that caches hold.
func TestBenchTable(t *testing.T) {
	for _, c := range []struct {
		bytes int64
		want  bool
	}{{5 << 20, false}, {500 << 20, true}} {
		b := engineBench{Bytes: c.bytes, Decode: 10, Roof: 11, OfRoof: 1.1, Memory: &memoryBench{RSS: 60 << 20, Over: 8}}
		got := make(map[string]bool)
		for _, row := range benchRows([]engineBench{b}) {
			got[strings.TrimSpace(row[0])] = true
		}
		if !got["decode, tok/s"] || !got["memory"] || got["of the memory read"] != c.want || got["over file, keys, values"] != c.want {
			t.Errorf("%d bytes: rows %v", c.bytes, got)
		}
	}
}
