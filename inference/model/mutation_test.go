package model

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
	"time"
)

// mutations is how many damaged files are opened: the long form with MESH_LONG=1.
func mutations() int {
	if os.Getenv("MESH_LONG") != "" {
		return 100_000
	}
	return 3_000
}

// allocated returns the bytes that the process has allocated so far.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// A damaged file may take allocFactor times the size of the model in allocations of
// all kinds, and allocFixed beside it: opening it, its tokenizer and template.
const (
	allocFactor = 24
	allocFixed  = 256 << 10
)

// tinyShapes are models of a few tens of kilobytes, most of it header.
func tinyShapes() []Shape {
	base := Shape{Layers: 2, Width: 64, FFN: 32, Heads: 2, KVHeads: 1, HeadDim: 32, Vocab: 1024, Context: 64, RopeBase: 1e4, Tied: true}
	var out []Shape
	for _, architecture := range Architectures {
		s := base
		s.Name, s.Architecture = "tiny", architecture
		switch architecture {
		case "qwen3moe":
			s.Experts, s.ExpertsUsed = 4, 2
		case "mistral", "gemma2", "gemma3":
			s.Window = 16
		}
		out = append(out, s)
	}
	return out
}

// use does with a model what a host does before it computes.
func use(t *testing.T, f *File) {
	for _, x := range f.Tensors {
		if uint64(len(x.Data)) != x.size && x.experts == nil {
			t.Errorf("tensor %q has %d bytes of %d", x.Name, len(x.Data), x.size)
		}
		if len(x.Shape) == 1 && x.Format == F32 {
			x.Float32s()
		}
		for e := range x.Experts() {
			if len(x.Shape) > 1 && len(x.Expert(e).Data) != x.Format.RowBytes(x.In())*x.Shape[1] {
				t.Errorf("tensor %q: expert %d has %d bytes", x.Name, e, len(x.Expert(e).Data))
			}
		}
	}
	if tok, err := f.Tokenizer(); err == nil {
		tok.Decode(tok.Encode("Hello, wörld <tool> 123"))
	}
	if tpl, err := f.Template(); err == nil {
		tpl.Encode([]Message{{Role: "user", Content: "x"}}, "")
	}
}

// mutate damages a file in one to three places of its first head bytes.
func mutate(r *rand.Rand, b []byte, head int) []byte {
	b = bytes.Clone(b)
	for range 1 + r.IntN(3) {
		if len(b) < 16 {
			return b
		}
		at := r.IntN(min(head, len(b)))
		if r.IntN(2) == 0 {
			at = r.IntN(min(400, len(b)))
		}
		n := min(1+r.IntN(16), len(b)-at)
		switch r.IntN(6) {
		case 0:
			b[at] = byte(r.Uint32())
		case 1:
			b[at] ^= 1 << r.IntN(8)
		case 2:
			binary.LittleEndian.PutUint64(b[min(at, len(b)-8):], r.Uint64()>>r.IntN(64))
		case 3:
			b = slices.Delete(b, at, at+n)
		case 4:
			b = slices.Insert(b, at, bytes.Clone(b[at:at+n])...)
		case 5:
			b = b[:len(b)-r.IntN(len(b)-at)]
		}
	}
	return b
}

var (
	jsonNumber = regexp.MustCompile(`-?\d+(\.\d+)?(e[-+]?\d+)?`)
	jsonWord   = regexp.MustCompile(`"[^"\\]{1,40}"|null|true|false`)
	jsonValues = []string{"0", "-1", "1", "2", "3", "7", "64", "65", "1024", "1000000000", "4294967296", "9223372036854775807", "1e308", "-0.5", "1.5",
		"null", "true", `""`, `"x"`, "[]", "{}", "[[[[[[[[1]]]]]]]]", `{"type":"Sequence","normalizers":[]}`, `"\ud800"`}
)

// mutateJSON changes the meaning of a JSON file, or its form.
func mutateJSON(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range 1 + r.IntN(2) {
		if len(b) < 16 {
			return b
		}
		pattern := jsonNumber
		switch r.IntN(8) {
		case 0:
			return mutate(r, b, len(b))
		case 1:
			deep := strings.Repeat("[", 1+r.IntN(12000))
			at := r.IntN(len(b))
			b = slices.Insert(b, at, []byte(deep)...)
			continue
		case 2, 3:
			pattern = jsonWord
		}
		from := r.IntN(len(b))
		if r.IntN(2) == 0 {
			from = r.IntN(min(len(b), 600))
		}
		m := pattern.FindIndex(b[from:])
		if m == nil {
			continue
		}
		value := jsonValues[r.IntN(len(jsonValues))]
		if other := pattern.FindIndex(b); r.IntN(3) == 0 && other != nil {
			value = string(b[other[0]:other[1]])
		}
		b = slices.Replace(b, from+m[0], from+m[1], []byte(value)...)
	}
	return b
}

// TestMutations damages models in thousands of ways, in turn of every architecture
// and both kinds of files: each one opens or fails, and none takes memory beyond a
// few times its size.
func TestMutations(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	type model struct {
		gguf []byte
		head int
		hub  hubModel
		dir  string
		size int
	}
	var models []model
	for _, s := range tinyShapes() {
		var b bytes.Buffer
		if err := Synthesize(&b, s, BF16, 1); err != nil {
			t.Fatal(err)
		}
		h, f := makeHub(t, s, BF16)
		if len(models)%2 == 1 {
			h.shard(t, f)
		}
		h["generation_config.json"] = []byte(`{"bos_token_id":1021,"eos_token_id":[1023,1022]}`)
		m := model{b.Bytes(), bytes.LastIndex(b.Bytes(), []byte("weight")) + 64, h, t.TempDir(), 0}
		h.write(t, m.dir)
		for _, b := range h {
			m.size += len(b)
		}
		if f, err := Open(m.dir); err != nil {
			t.Fatal(err)
		} else if _, err := f.Tokenizer(); err != nil {
			t.Fatal(err)
		} else if _, err := f.Template(); err != nil {
			t.Fatal(err)
		}
		models = append(models, m)
	}
	opened, worst := 0, 0.0
	try := func(what string, size int, open func() (*File, error)) {
		start, before := time.Now(), allocated()
		f, err := open()
		if err == nil {
			opened++
			use(t, f)
			f.Close()
		}
		used := allocated() - before
		if used > allocFixed {
			worst = max(worst, float64(used-allocFixed)/float64(size))
		}
		if used > uint64(allocFactor*size+allocFixed) {
			t.Errorf("seed %d, %s: %d bytes allocated for a model of %d", seed, what, used, size)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("seed %d, %s: took %v", seed, what, d)
		}
	}
	for i := range mutations() {
		m := &models[i/2%len(models)]
		if i%2 == 0 {
			bad := mutate(r, m.gguf, m.head)
			try(fmt.Sprintf("GGUF %d", i), len(bad), func() (*File, error) { return OpenBytes(bad) })
			continue
		}
		name := slices.Sorted(maps.Keys(m.hub))[r.IntN(len(m.hub))]
		bad := m.hub[name]
		if strings.HasSuffix(name, ".json") {
			bad = mutateJSON(r, bad)
		} else {
			head := 8 + int(binary.LittleEndian.Uint64(bad))
			if r.IntN(2) == 0 {
				bad = slices.Concat(bad[:8], mutateJSON(r, bad[8:head]), bad[head:])
				if r.IntN(2) == 0 {
					binary.LittleEndian.PutUint64(bad, uint64(len(bad)-len(m.hub[name])+head-8))
				}
			} else {
				bad = mutate(r, bad, head)
			}
		}
		size := m.size - len(m.hub[name]) + len(bad)
		path := filepath.Join(m.dir, name)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		try(fmt.Sprintf("%s %d", name, i), size, func() (*File, error) { return Open(m.dir) })
		if err := os.WriteFile(path, m.hub[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d damaged models open; the most memory was %.1f times the size beside %d KiB", opened, mutations(), worst, allocFixed>>10)
}
