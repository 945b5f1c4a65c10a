package model

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// hubModel is a model directory in memory: its files by name.
type hubModel map[string][]byte

func (m hubModel) write(t testing.TB, dir string) {
	t.Helper()
	for name, b := range m {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func (m hubModel) open(t testing.TB) (*File, error) {
	t.Helper()
	dir := t.TempDir()
	m.write(t, dir)
	f, err := Open(dir)
	if err == nil {
		t.Cleanup(func() { f.Close() })
	}
	return f, err
}

// edit changes fields of one of the JSON files; nil deletes one.
func (m hubModel) edit(t testing.TB, file string, fields map[string]any) {
	t.Helper()
	all := map[string]any{}
	if b := m[file]; b != nil {
		if err := json.Unmarshal(b, &all); err != nil {
			t.Fatal(err)
		}
	}
	for k, v := range fields {
		if all[k] = v; v == nil {
			delete(all, k)
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	m[file] = b
}

type hubKey struct {
	shape  Shape
	format Format
}

type hubMade struct {
	hub  hubModel
	file *File
}

var hubsMade sync.Map // hubKey to hubMade

// hubOf returns the directory of a synthetic model, for the caller to change, and
// the same model out of a GGUF file.
func hubOf(t testing.TB, shape string, format Format) (hubModel, *File) {
	t.Helper()
	s, err := ShapeOf(shape)
	if err != nil {
		t.Fatal(err)
	}
	made, ok := hubsMade.Load(hubKey{s, format})
	if !ok {
		m, f := makeHub(t, s, format)
		made, _ = hubsMade.LoadOrStore(hubKey{s, format}, hubMade{m, f})
	}
	return maps.Clone(made.(hubMade).hub), made.(hubMade).file
}

func makeHub(t testing.TB, s Shape, format Format) (hubModel, *File) {
	t.Helper()
	var file bytes.Buffer
	if err := Synthesize(&file, s, format, 1); err != nil {
		t.Fatal(err)
	}
	f, err := OpenBytes(file.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	m := hubModel(s.hubFiles(f))
	addWeights(m, hubTensors(f), 1)
	return m, f
}

// TestHubEqualsGGUF opens each architecture in both forms: configuration, weights,
// ids and template are the same.
func TestHubEqualsGGUF(t *testing.T) {
	for _, shape := range []string{"tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3moe", "tiny-gemma", "tiny-gemma2", "tiny-gemma3"} {
		for _, format := range []Format{BF16, F16, F32} {
			if format != BF16 && shape != "tiny-gemma" && shape != "tiny-qwen2" {
				continue
			}
			t.Run(fmt.Sprintf("%s %v", shape, format), func(t *testing.T) {
				m, want := hubOf(t, shape, format)
				got, err := m.open(t)
				if err != nil {
					t.Fatal(err)
				}
				sameModel(t, got, want)
			})
		}
	}
}

func sameModel(t *testing.T, got, want *File) {
	t.Helper()
	a, b := got.Config, want.Config
	a.Name, b.Name = "", ""
	a.Architecture, b.Architecture = "", ""
	a.RopeKind, b.RopeKind = 0, 0
	if !sameConfig(a, b) {
		t.Errorf("config\n got %+v\nwant %+v", a, b)
	}
	if len(got.Tensors) != len(want.Tensors) {
		t.Fatalf("%d tensors, want %d", len(got.Tensors), len(want.Tensors))
	}
	for _, w := range want.Tensors {
		g := got.Tensor(w.Name)
		if g == nil || !slices.Equal(g.Shape, w.Shape) || g.Format != w.Format {
			t.Fatalf("tensor %s: got %+v", w.Name, g)
		}
		switch {
		case len(w.Shape) == 1:
			x, errX := g.Float32s()
			y, errY := w.Float32s()
			if errX != nil || errY != nil {
				t.Fatal(errX, errY)
			}
			for i := range x { // gemma's lost a bit in between
				if math.Abs(float64(x[i]-y[i])) > 1e-6*math.Abs(float64(y[i]))+1e-7 {
					t.Fatalf("tensor %s element %d: got %g, want %g", w.Name, i, x[i], y[i])
				}
			}
		case w.Experts() > 1:
			for e := range w.Experts() {
				if !bytes.Equal(g.Expert(e).Data, w.Expert(e).Data) {
					t.Fatalf("tensor %s expert %d differs", w.Name, e)
				}
			}
		case !bytes.Equal(g.Data, w.Data):
			t.Fatalf("tensor %s differs", w.Name)
		}
	}
	chat := []Message{{Role: "user", Content: "bala deni <|im_end|> 12345 naïve"}}
	var ids [2][]int32
	for i, f := range []*File{got, want} {
		tpl, err := f.Template()
		if err != nil {
			t.Fatal(err)
		}
		if ids[i], err = tpl.Encode(chat, ""); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(ids[0], ids[1]) {
		t.Errorf("chat\n got %v\nwant %v", ids[0], ids[1])
	}
	x, _ := got.Tokenizer()
	y, _ := want.Tokenizer()
	for i := range int32(x.Vocab()) {
		if string(x.Piece(i)) != string(y.Piece(i)) || x.IsEnd(i) != y.IsEnd(i) || x.IsSpecial(i) != y.IsSpecial(i) {
			t.Fatalf("token %d: %q %v %v, want %q %v %v", i, x.Piece(i), x.IsEnd(i), x.IsSpecial(i), y.Piece(i), y.IsEnd(i), y.IsSpecial(i))
		}
	}
}

// shard divides the weights of a model into two files with an index.
func (m hubModel) shard(t testing.TB, f *File) {
	t.Helper()
	delete(m, weightsName)
	addWeights(m, hubTensors(f), 2)
}

func TestHubShards(t *testing.T) {
	m, want := hubOf(t, "tiny-qwen3moe", BF16)
	whole, err := m.open(t)
	if err != nil {
		t.Fatal(err)
	}
	m.shard(t, want)
	got, err := m.open(t)
	if err != nil {
		t.Fatal(err)
	}
	sameModel(t, got, want)
	one, err := whole.Manifest(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	two, err := got.Manifest(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range two.Files {
		names = append(names, f.Name)
	}
	wantNames := []string{"config.json", "tokenizer.json", "tokenizer_config.json", indexName, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
	if one.ID() == two.ID() || !slices.Equal(names, wantNames) {
		t.Errorf("files %q, want %q", names, wantNames)
	}
	again, err := ParseManifest(two.Encode())
	if err != nil || again.ID() != two.ID() {
		t.Errorf("parsed again: %v", err)
	}
	bad := strings.Replace(string(two.Encode()), `"name":"config.json"`, `"name":"../config.json"`, 1)
	if _, err := ParseManifest([]byte(bad)); err == nil || !strings.Contains(err.Error(), "name") {
		t.Errorf("a manifest with a path: %v", err)
	}
	if p := got.Paths(); len(p) != 6 || filepath.Base(p[0]) != "config.json" || got.Size() < whole.Size()/2 {
		t.Errorf("paths %q, size %d", p, got.Size())
	}
	m.edit(t, "config.json", map[string]any{"rope_theta": 12345.0})
	changed, err := m.open(t)
	if err != nil {
		t.Fatal(err)
	}
	if three, err := changed.Manifest(context.Background(), ""); err != nil || three.ID() == two.ID() || three.Rope == two.Rope {
		t.Errorf("another config.json gives the same manifest, %v", err)
	}
}

func TestOpenOneSafetensors(t *testing.T) {
	m, _ := hubOf(t, "tiny-qwen2", BF16)
	m["other.safetensors"] = m[weightsName]
	delete(m, weightsName)
	dir := t.TempDir()
	m.write(t, dir)
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), indexName) {
		t.Errorf("a directory without weights: %v", err)
	}
	f, err := Open(filepath.Join(dir, "other.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Config.Name != "other" || f.Path() != filepath.Join(dir, "other.safetensors") {
		t.Errorf("name %q, path %q", f.Config.Name, f.Path())
	}
}
