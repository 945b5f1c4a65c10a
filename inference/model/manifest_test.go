package model

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// goldenManifest is the canonical manifest of the synthetic tiny-llama of seed 1.
const goldenManifest = `{"version":1,"format":"gguf","files":[{"sha256":"20d84a7140d65362da601be46e609645898d40fbd472e1dbffce063bbf726ad9","size":702752,"chunk_size":4194304,"chunk_root":"a8d7133dd7071a7c4f47911bbcebf736a57962aad7d98d33220f52feea0e3fd5"}],"tokenizer":"fd66e674237962b459759fb012a19d30cb7703a887a04d15118a50aaee3d1382","chat_template":"66edfb854931c933d3ac94f507626dd4fa2d5ca0a9b1036b11729d296a7392ac","rope":"3f8000003ee177bb3e4693af3daee4ad3d1a08c83c87a9c33beef74e3b5277203ab95d223a23418d398fc8f838fd45c2385f10c437c47611372d07a7369864a7"}`

func TestManifestGolden(t *testing.T) {
	f := openSynthetic(t, "tiny-llama", Q8_0)
	m, err := f.Manifest(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(m.Encode()); got != goldenManifest {
		t.Errorf("manifest\n got %s\nwant %s", got, goldenManifest)
	}
	if m.ID() != sha256.Sum256([]byte(goldenManifest)) {
		t.Error("the ID is not the hash of the manifest")
	}
	again, err := ParseManifest(m.Encode())
	if err != nil || again.ID() != m.ID() {
		t.Errorf("parsed again: %v, %v", again, err)
	}
	freq, local, err := again.InvFreq()
	if err != nil || local != nil || !slices.Equal(freq, f.Config.InvFreq()) {
		t.Errorf("inverse frequencies %v, %v", freq, err)
	}
}

func TestManifestBinds(t *testing.T) {
	id := func(change func(*[]Meta, *[]TensorSource)) mesh.ModelID {
		f, err := OpenBytes(rebuild(t, "tiny-qwen2", change))
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Manifest(context.Background(), "")
		if err != nil {
			t.Fatal(err)
		}
		// The file's own hashes bind everything; the rest must bind its own part too.
		m.Files = m.Files[:0]
		return m.ID()
	}
	meta := func(key string, v any) func(*[]Meta, *[]TensorSource) {
		return func(m *[]Meta, _ *[]TensorSource) { setMeta(m, key, v) }
	}
	base := id(meta("general.name", "other"))
	if base != id(func(*[]Meta, *[]TensorSource) {}) {
		t.Error("a name is no part of the tokenizer, the template or the table")
	}
	for key, v := range map[string]any{
		"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": true, chatTemplateKey: "{{ 1 }}", "qwen2.rope.freq_base": float32(2e4),
	} {
		if id(meta(key, v)) == base {
			t.Errorf("%s does not bind", key)
		}
	}
}

func TestParseManifestRefuses(t *testing.T) {
	good := goldenManifest
	for name, s := range map[string]string{
		"empty": "", "space": " " + good, "line": good + "\n", "list": "[]", "null": "null",
		"version":    strings.Replace(good, `"version":1`, `"version":2`, 1),
		"format":     strings.Replace(good, `"gguf"`, `"pth"`, 1),
		"extra":      strings.Replace(good, `{"version"`, `{"x":1,"version"`, 1),
		"upper case": strings.Replace(good, `"tokenizer"`, `"Tokenizer"`, 1),
		"twice":      strings.Replace(good, `"format":"gguf",`, `"format":"gguf","format":"gguf",`, 1),
		"chunk size": strings.Replace(good, `"chunk_size":4194304`, `"chunk_size":4194305`, 1),
		"no size":    strings.Replace(good, `"size":`, `"size":0,"siz":`, 1),
		"rope":       good[:strings.Index(good, `"rope":"`)+8] + `3f8"}`,
		"no rope":    good[:strings.Index(good, `"rope":"`)+8] + `"}`,
		"long":       strings.Repeat("x", maxManifestLen+1),
	} {
		if _, err := ParseManifest([]byte(s)); err == nil {
			t.Errorf("%s parses", name)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(goldenManifest))
	f.Add([]byte(`{"version":1,"format":"gguf","files":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := ParseManifest(b); err == nil && !bytes.Equal(m.Encode(), b) {
			t.Errorf("%s encodes to %s", b, m.Encode())
		}
	})
}

func TestDigest(t *testing.T) {
	// Sizes around the chunk bounds.
	for _, n := range []int{0, 1, merkle.ChunkSize - 1, merkle.ChunkSize, merkle.ChunkSize + 1, 3*merkle.ChunkSize + 5} {
		data := bytes.Repeat([]byte{7, 8, 9}, n/3+1)[:n]
		d, err := digestBytes(context.Background(), data, func(int64) {})
		if err != nil {
			t.Fatal(err)
		}
		if d.SHA256 != sha256.Sum256(data) || d.Size != uint64(n) || uint64(len(d.Chunks)) != merkle.Chunks(uint64(n), merkle.ChunkSize) {
			t.Errorf("%d bytes: %+v", n, d)
		}
		for i, c := range d.Chunks {
			if c != sha256.Sum256(data[i*merkle.ChunkSize:min((i+1)*merkle.ChunkSize, n)]) {
				t.Errorf("%d bytes: chunk %d", n, i)
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := digestBytes(ctx, make([]byte, 9), func(int64) {}); err == nil {
		t.Error("a cancelled hash ends well")
	}
}

func TestDigestCache(t *testing.T) {
	dir := t.TempDir()
	path, cache := filepath.Join(dir, "m.gguf"), filepath.Join(dir, "hashes.json")
	write := func(data []byte, at time.Time) *File {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	digest := func(f *File) mesh.Hash {
		t.Helper()
		d, err := f.parts[0].digest(context.Background(), cache, func(int64) {})
		if err != nil {
			t.Fatal(err)
		}
		return d.SHA256
	}
	data := synthesize(t, "tiny-qwen2", Q8_0)
	at := time.Unix(1700000000, 0)
	first := digest(write(data, at))
	if first != sha256.Sum256(data) {
		t.Fatal("wrong hash")
	}
	// Another file of the same size, time and inode: the cache answers, which shows
	// that it is asked at all.
	other := bytes.Clone(data)
	other[len(other)-1] ^= 1
	if digest(write(other, at)) != first {
		t.Error("the cache is not used")
	}
	if digest(write(other, at.Add(time.Second))) != sha256.Sum256(other) {
		t.Error("a file of another time has the old hash")
	}
	for name, content := range map[string]string{"damaged": "{", "chunks missing": `{"version":1,"entries":[{"digest":{"size":9}}]}`} {
		if err := os.WriteFile(cache, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if digest(write(data, at)) != first {
			t.Errorf("%s cache", name)
		}
		if len(readCache(cache)) != 1 {
			t.Errorf("%s cache is not replaced", name)
		}
	}
	newer := `{"version":2,"entries":[]}`
	if err := os.WriteFile(cache, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	if digest(write(data, at)) != first {
		t.Error("with a newer cache")
	}
	if b, _ := os.ReadFile(cache); string(b) != newer {
		t.Error("a newer program's cache is overwritten")
	}
	if _, err := write(data, at).parts[0].digest(context.Background(), filepath.Join(dir, "none", "x"), func(int64) {}); err == nil {
		t.Error("a cache that cannot be written passes in silence")
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.tmp*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files stay: %v, %v", left, err)
	}
}
