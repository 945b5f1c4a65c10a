package node

import (
	"bytes"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/node/api"
)

func quiet(api.Progress) {}

// testCatalogue opens the list of models of a home folder, and sweeps it like a node
// that starts.
func testCatalogue(t *testing.T, dir string) *catalogue {
	t.Helper()
	home, err := OpenHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { home.Close() })
	return reopen(t, home)
}

func reopen(t *testing.T, home *Home) *catalogue {
	t.Helper()
	c, err := openCatalogue(home, 64<<20, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.sweep(); err != nil {
		t.Fatal(err)
	}
	return c
}

// folderModel writes a model of several files.
func folderModel(t *testing.T, seed uint64, shards int) string {
	t.Helper()
	shape, err := model.ShapeOf("tiny-qwen2")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "tiny")
	if err := model.SynthesizeDirectory(dir, shape, model.BF16, seed, shards); err != nil {
		t.Fatal(err)
	}
	return dir
}

func describe(t *testing.T, c *catalogue, path string) entry {
	t.Helper()
	e, err := c.describe(t.Context(), path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func examine(t *testing.T, c *catalogue, path string) (*model.File, *model.Manifest) {
	t.Helper()
	f, digests, err := c.examine(t.Context(), path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return f, f.ManifestOf(digests)
}

// TestFolderModel adds a folder, serves it after a restart, and takes a folder that
// changed since for another one.
func TestFolderModel(t *testing.T) {
	dir := folderModel(t, 1, 3)
	home, err := OpenHome(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	c := reopen(t, home)
	last := api.Progress{}
	e, err := c.describe(t.Context(), dir, func(p api.Progress) {
		if p.Stage != "hash" || p.Bytes < last.Bytes || p.Bytes > p.Total {
			t.Errorf("%+v follows %+v", p, last)
		}
		last = p
	})
	if err != nil {
		t.Fatal(err)
	}
	if e.Name != "tiny" || e.Path != dir || len(e.Files) != 7 || last.Bytes != e.Bytes || last.Total != e.Bytes {
		t.Errorf("entry %+v after %+v", e, last)
	}
	e.Serve = true
	if err := c.put(e); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, home)
	got, ok := c.find(e.Root.String())
	if !ok || !slices.Equal(got.Files, e.Files) {
		t.Fatalf("after a restart: %+v", got)
	}
	path, err := c.blobs.Path(e.Root)
	if err != nil {
		t.Fatal(err)
	}
	m, err := readManifest(path)
	if err != nil || m == nil || m.ID() != e.Model || len(m.Files) != len(e.Files) {
		t.Fatalf("the manifest that peers get is %+v, %v", m, err)
	}
	for i, f := range m.Files {
		if at, err := c.blobs.Path(e.Files[i]); err != nil || at != filepath.Join(dir, f.Name) {
			t.Errorf("file %s is offered as %s, %v", f.Name, at, err)
		}
	}
	cfg := Config{Threads: 1, Slots: 1, KV: "f16"}
	l, err := c.load(got, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.stop(l); err != nil {
		t.Fatal(err)
	}
	// The same bytes under a new date are the same model, and peers get them again.
	config := filepath.Join(dir, "config.json")
	b, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(config+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(config+".new", config); err != nil {
			t.Fatal(err)
		}
	}
	rewrite(b)
	if _, err := c.blobs.Path(e.Files[0]); err == nil {
		t.Fatal("the store did not see a new file")
	}
	if l, err = c.load(got, cfg); err != nil {
		t.Fatal(err)
	}
	if err := c.stop(l); err != nil {
		t.Fatal(err)
	}
	if _, err := c.blobs.Path(e.Files[0]); err != nil {
		t.Errorf("the same bytes are not offered again: %v", err)
	}
	rewrite(bytes.Replace(b, []byte(`"rope_theta":10000`), []byte(`"rope_theta":10001`), 1))
	if _, err := c.load(got, cfg); err == nil || !strings.Contains(err.Error(), "has changed") {
		t.Errorf("a changed folder: %v", err)
	}
	rewrite(b)
	if err := os.WriteFile(filepath.Join(dir, "generation_config.json"), []byte(`{"eos_token_id":5}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.load(got, cfg); err == nil || !strings.Contains(err.Error(), "has changed") {
		t.Errorf("a folder with one more file: %v", err)
	}
	if err := c.forget(got); err != nil {
		t.Fatal(err)
	}
	if left := c.blobs.List(); len(left) != 0 {
		t.Errorf("after rm: %+v", left)
	}
	if _, err := os.Stat(filepath.Join(dir, "tokenizer.json")); err != nil {
		t.Errorf("the files of the person are gone: %v", err)
	}
}

// TestFolderModelsShareFiles removes one of two models with the same tokenizer.
func TestFolderModelsShareFiles(t *testing.T) {
	c := testCatalogue(t, t.TempDir())
	a, b := describe(t, c, folderModel(t, 1, 1)), describe(t, c, folderModel(t, 2, 1))
	if a.Model == b.Model || a.Files[1] != b.Files[1] {
		t.Fatal("the models should share a tokenizer, and no more")
	}
	for _, e := range []entry{a, b} {
		if err := c.put(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.forget(a); err != nil {
		t.Fatal(err)
	}
	for _, root := range b.roots() {
		if _, err := c.blobs.Path(root); err != nil {
			t.Error(err)
		}
	}
	if left := c.blobs.List(); len(left) != len(b.Files)+1 {
		t.Errorf("%d blobs are left, want %d", len(left), len(b.Files)+1)
	}
}

// TestSweepKeepsHalfPulled restarts in the middle of a pull, then gives it up.
func TestSweepKeepsHalfPulled(t *testing.T) {
	home, err := OpenHome(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	c := reopen(t, home)
	dir := folderModel(t, 1, 2)
	e := describe(t, c, dir) // peers' blobs, as far as the list knows
	f, m := examine(t, c, dir)
	f.Close()
	if err := c.begin(coming{Name: "half", Root: e.Root}); err != nil {
		t.Fatal(err)
	}
	if err := c.learn(e.Root, m); err != nil {
		t.Fatal(err)
	}
	if got := c.manifests(e.Files[2]); !slices.Equal(got, []mesh.Hash{e.Root}) {
		t.Errorf("sources of a file are looked for by %v", got)
	}
	if got := c.manifests(e.Root); !slices.Equal(got, []mesh.Hash{e.Root}) {
		t.Errorf("sources of a manifest are looked for by %v", got)
	}
	if _, err := c.abandon("half"); err == nil || !strings.Contains(err.Error(), "being fetched") {
		t.Errorf("a pull was taken from under its callers: %v", err)
	}
	paths := make([]string, len(e.Files))
	for i, root := range e.Files {
		if paths[i], err = c.blobs.Path(root); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.gather(m, paths); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, home)
	if left := c.blobs.List(); len(left) != len(e.Files)+1 {
		t.Errorf("%d blobs after a restart, want %d", len(left), len(e.Files)+1)
	}
	if _, err := os.Stat(c.folder(e.Model)); err == nil {
		t.Error("the folder of a model that is not listed is still there")
	}
	if _, err := c.abandon(e.Model.String()); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, home)
	if left := c.blobs.List(); len(left) != 0 || len(c.coming) != 0 {
		t.Errorf("after giving up: %+v, %+v", left, c.coming)
	}
	if _, err := c.abandon(e.Model.String()); err == nil {
		t.Error("a pull was given up twice")
	}
}

// TestGather names files as a manifest says, and nothing outside of its folder.
func TestGather(t *testing.T) {
	c := testCatalogue(t, t.TempDir())
	for _, shards := range []int{1, 2} {
		dir := folderModel(t, 1, shards)
		f, m := examine(t, c, dir)
		paths := f.Paths()
		f.Close()
		// A kill left half of it, and something else under a name.
		if err := os.MkdirAll(c.folder(m.ID()), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(c.folder(m.ID()), "config.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			path, err := c.gather(m, paths)
			if err != nil {
				t.Fatal(err)
			}
			g, again := examine(t, c, path)
			g.Close()
			if again.ID() != m.ID() {
				t.Error("another model came of it")
			}
		}
		for _, name := range []string{"../x", "/x", "a/b", "..", ".", ""} {
			bad := *m
			bad.Files = slices.Clone(m.Files)
			bad.Files[0].Name = name
			if _, err := c.gather(&bad, paths); err == nil {
				t.Errorf("a file with the name %q", name)
			}
		}
	}
	if err := filepath.WalkDir(filepath.Dir(c.folders), func(path string, d fs.DirEntry, err error) error {
		if d != nil && (d.Name() == "x" || d.Name() == "b") {
			t.Errorf("%s was made", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestModelName(t *testing.T) {
	for path, want := range map[string]string{
		"/m/qwen3.gguf":        "qwen3",
		"/m/qwen3":             "qwen3",
		"/m/qwen3.safetensors": "qwen3",
		"/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12100db370d81485cdf75e47ca": "Qwen3-0.6B",
		"/snapshots/mine": "mine",
	} {
		if got := modelName(path); got != want {
			t.Errorf("%s is called %q, want %q", path, got, want)
		}
	}
}

// TestLink names a file twice, as a pull does that goes on after a kill.
func TestLink(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(from, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := link(from, to); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(to); err != nil || string(b) != "content" {
			t.Errorf("%q, %v", b, err)
		}
	}
	if err := link(filepath.Join(dir, "none"), to); err == nil {
		t.Error("a file that is not there has a second name")
	}
}
