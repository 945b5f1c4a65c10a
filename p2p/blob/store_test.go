package blob

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

func TestStoreAdd(t *testing.T) {
	for _, size := range []int{1, testChunk - 1, testChunk, testChunk + 1, 5*testChunk + 7} {
		s, root, data := testBlob(t, size, testChunk)
		var digests []mesh.Hash
		for rest := data; len(rest) > 0; {
			n := min(len(rest), testChunk)
			digests = append(digests, mesh.HashOf(rest[:n]))
			rest = rest[n:]
		}
		if want := merkle.ChunkRoot(uint64(size), testChunk, digests); root != want {
			t.Errorf("%d bytes: root %s, want %s", size, root, want)
		}
		if err := s.Verify(t.Context(), root, nil); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		reopened, err := Open(s.dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		list := reopened.List()
		if len(list) != 1 || list[0] != s.List()[0] || list[0].Name != "model.gguf" || list[0].Owned || list[0].Withdrawn != nil {
			t.Errorf("%d bytes: list %+v", size, list)
		}
	}
}

func TestStoreAddRefuses(t *testing.T) {
	s := testStore(t, testChunk)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{empty: "no bytes", t.TempDir(): "regular", filepath.Join(s.dir, "none"): "no such file"} {
		if _, err := s.Add(t.Context(), path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("add %s: %v, want %q", path, err, want)
		}
	}
}

// A file whose hashes are known is the blob that Add makes of it, unless it is another
// file than the hashes are of.
func TestStoreAddHashed(t *testing.T) {
	s := testStore(t, merkle.ChunkSize)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, bytes.Repeat([]byte("hashed "), 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := s.Add(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest(root)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	other := testStore(t, merkle.ChunkSize)
	for name, add := range map[string]func() (mesh.Hash, error){
		"too few":   func() (mesh.Hash, error) { return other.AddHashed(path, info.ModTime(), m.Chunks[1:]) },
		"not of it": func() (mesh.Hash, error) { return other.AddHashed(path, info.ModTime().Add(-1), m.Chunks) },
	} {
		if _, err := add(); err == nil {
			t.Errorf("hashes that are %s are taken", name)
		}
	}
	if same, err := other.AddHashed(path, info.ModTime(), m.Chunks); err != nil || same != root {
		t.Errorf("got %v, %v, want %v", same, err, root)
	}
	if at, err := other.Path(root); err != nil || at != path {
		t.Errorf("it is offered as %s, %v", at, err)
	}
}

// A referenced file that changed in any way is not served, and is again after it
// was added anew.
func TestStoreWithdraws(t *testing.T) {
	tests := []struct {
		name   string
		change func(path string) error
	}{
		{"deleted", os.Remove},
		{"truncated", func(p string) error { return os.Truncate(p, 100) }},
		{"touched", func(p string) error { return os.Chtimes(p, time.Time{}, time.Now().Add(time.Hour)) }},
		{"replaced by one of the same size and time", func(p string) error {
			info, err := os.Stat(p)
			if err != nil {
				return err
			}
			other := p + ".new"
			if err := os.WriteFile(other, make([]byte, info.Size()), 0o644); err != nil {
				return err
			}
			return errors.Join(os.Chtimes(other, time.Time{}, info.ModTime()), os.Rename(other, p))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, root, data := testBlob(t, 3*testChunk, testChunk)
			path, err := s.Path(root)
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.change(path); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Path(root); err == nil {
				t.Error("it still has a path")
			}
			if f, _, err := s.open(root); err == nil {
				f.Close()
				t.Error("it can still be opened")
			}
			if s.List()[0].Withdrawn == nil {
				t.Error("it is not listed as withdrawn")
			}
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
			if again, err := s.Add(t.Context(), path, nil); err != nil || again != root {
				t.Fatalf("add again: %s, %v", again, err)
			}
			if _, err := s.Path(root); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStoreVerifyFindsDamage(t *testing.T) {
	s, root, data := testBlob(t, 4*testChunk, testChunk)
	path, _ := s.Path(root)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	data[2*testChunk] ^= 1
	if err := errors.Join(os.WriteFile(path, data, 0o644), os.Chtimes(path, time.Time{}, info.ModTime())); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), root, nil); err == nil || !strings.Contains(err.Error(), "chunk 2") {
		t.Errorf("verify: %v", err)
	}
}

func TestStoreRemove(t *testing.T) {
	s, root, _ := testBlob(t, testChunk, testChunk)
	path, _ := s.Path(root)
	if err := s.Remove(root); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the referenced file went with the blob: %v", err)
	}
	if err := s.Remove(root); !errors.Is(err, ErrNotFound) {
		t.Errorf("second remove: %v", err)
	}
	if _, err := os.Stat(s.path(root, "")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its folder is still there: %v", err)
	}
}

// Every state that a killed process can leave behind is opened, and a fetch then
// ends with the right bytes.
func TestStoreAfterCrash(t *testing.T) {
	const size = 8 * testChunk
	origin, root, data := testBlob(t, size, testChunk)
	m, err := origin.Manifest(root)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := proto.Marshal(m.message())
	if err != nil {
		t.Fatal(err)
	}
	all := bytes.Repeat([]byte{1}, 8)
	tests := []struct {
		name  string
		files map[string][]byte // in the folder of the blob
		asked int               // chunks fetched
	}{
		{"empty folder", nil, 8},
		{"manifest being written", map[string][]byte{manifestFile + ".tmp": manifest[:10]}, 8},
		{"damaged manifest", map[string][]byte{manifestFile: manifest[:40]}, 8},
		{"manifest only", map[string][]byte{manifestFile: manifest}, 8},
		{"part without a journal", map[string][]byte{manifestFile: manifest, partFile: data}, 8},
		{"chunk written, journal not", map[string][]byte{manifestFile: manifest, partFile: data, journalFile: {1, 1, 1}}, 5},
		{"journal on disk, data lost", map[string][]byte{manifestFile: manifest, partFile: data[:size/2], journalFile: all}, 4},
		{"journal of nonsense", map[string][]byte{manifestFile: manifest, partFile: data, journalFile: bytes.Repeat([]byte{7, 0xff}, 100)}, 8},
		{"complete part", map[string][]byte{manifestFile: manifest, partFile: data, journalFile: all}, 0},
		{"renamed, no entry", map[string][]byte{manifestFile: manifest, dataFile: data, journalFile: all}, 0},
		{"renamed, entry being written", map[string][]byte{manifestFile: manifest, dataFile: data, journalFile: all, entryFile + ".tmp": {'{'}}, 0},
		{"damaged entry", map[string][]byte{manifestFile: manifest, dataFile: data, journalFile: all, entryFile: {'{'}}, 0},
		{"entry of another file", map[string][]byte{manifestFile: manifest, dataFile: data,
			entryFile: []byte(`{"size":524288,"chunk_size":65536,"mtime_ns":1,"inode":1,"added":"2026-01-01T00:00:00Z"}`)}, 8},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			folder := filepath.Join(dir, root.String())
			if err := errors.Join(os.Mkdir(folder, 0o755), os.Mkdir(filepath.Join(dir, gonePrefix+"x"), 0o755)); err != nil {
				t.Fatal(err)
			}
			for name, content := range tt.files {
				if err := os.WriteFile(filepath.Join(folder, name), content, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			s, err := Open(dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Path(root); err == nil {
				t.Fatal("the store has the blob already")
			}
			n := newNet(t, false)
			p := n.add(t, origin, nil)
			path, err := n.fetcher(s, p).Fetch(t.Context(), root, Options{})
			if err != nil {
				t.Fatal(err)
			}
			wantFile(t, path, data)
			if got := len(p.asked()); got != tt.asked {
				t.Errorf("asked for %d chunks, want %d", got, tt.asked)
			}
			if reopened, err := Open(dir, nil); err != nil || len(reopened.List()) != 1 || reopened.List()[0].Withdrawn != nil {
				t.Errorf("after the next start: %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, gonePrefix+"x")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a removed blob is still there: %v", err)
			}
		})
	}
}

// What is complete on disk needs no peer at all.
func TestFinishWithoutSource(t *testing.T) {
	origin, root, data := testBlob(t, 4*testChunk, testChunk)
	s := testStore(t, testChunk)
	m, err := origin.Manifest(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.putManifest(root, m); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(s.path(root, partFile), data, 0o644),
		os.WriteFile(s.path(root, journalFile), []byte{1, 1, 1, 1}, 0o644)); err != nil {
		t.Fatal(err)
	}
	path, err := newNet(t, false).fetcher(s).Fetch(t.Context(), root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, data)
}

func TestStoreVersion(t *testing.T) {
	s := testStore(t, testChunk)
	for _, version := range []string{"2\n", "", "x", "0"} {
		if err := os.WriteFile(filepath.Join(s.dir, versionFile), []byte(version), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Open(s.dir, nil)
		if err == nil {
			t.Fatalf("version %q was opened", version)
		}
		if damaged := strings.Contains(err.Error(), "delete it"); damaged != (version != "2\n") {
			t.Errorf("version %q: %v", version, err)
		}
	}
	if err := os.Remove(filepath.Join(s.dir, versionFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.dir, nil); err != nil {
		t.Errorf("it was deleted, as told: %v", err)
	}
}

func TestCleanName(t *testing.T) {
	for name, want := range map[string]string{
		"model.gguf": "model.gguf", "../../etc/passwd": ".._.._etc_passwd", "..": "", "": "", "a\x00b\u202egp": "a_b_gp",
		`c:\x`: "c__x", "\xff": "", strings.Repeat("a", 256): "", "Modèle 1": "Modèle 1",
	} {
		if got := cleanName(name); got != want {
			t.Errorf("cleanName(%q) = %q, want %q", name, got, want)
		}
	}
}

// A process killed at a bad moment leaves files half written, a manifest that belongs
// to nothing, and blobs that nothing uses.
func TestStoreSweeps(t *testing.T) {
	s, kept, _ := testBlob(t, 2*testChunk, testChunk)
	path := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(path, seeded(testChunk), 0o644); err != nil {
		t.Fatal(err)
	}
	orphan, err := s.Add(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest(kept)
	if err != nil {
		t.Fatal(err)
	}
	var unused, partial mesh.Hash
	unused[0], partial[0] = 1, 2
	for _, root := range []mesh.Hash{unused, partial} {
		if err := s.putManifest(root, m); err != nil {
			t.Fatal(err)
		}
	}
	for _, left := range []string{s.path(kept, ".entry.json.123"), s.path(partial, partFile)} {
		if err := os.WriteFile(left, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = Open(s.dir, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(func(root mesh.Hash) bool { return root == kept }); err != nil {
		t.Fatal(err)
	}
	if list := s.List(); len(list) != 1 || list[0].Root != kept {
		t.Errorf("left: %+v", list)
	}
	for what, there := range map[string]bool{
		s.path(kept, ".entry.json.123"): false, s.path(unused, ""): false, s.path(orphan, ""): false,
		s.path(partial, partFile): true, s.path(kept, entryFile): true, path: true,
	} {
		if _, err := os.Stat(what); (err == nil) != there {
			t.Errorf("%s: %v, want it there: %v", what, err, there)
		}
	}
}

// TestStorePut keeps bytes of the store's own: peers get them after a restart, and
// Remove deletes them. Bytes that are there as somebody's file stay that.
func TestStorePut(t *testing.T) {
	s := testStore(t, testChunk)
	data := bytes.Repeat([]byte("abc"), testChunk/2)
	root, err := s.Put("manifest.json", data)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Put("manifest.json", data); err != nil || again != root {
		t.Errorf("twice: %s, %v", again, err)
	}
	reopened, err := Open(s.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	reopened.chunkSize = testChunk
	if err := reopened.Verify(t.Context(), root, nil); err != nil {
		t.Error(err)
	}
	if l := reopened.List(); len(l) != 1 || !l[0].Owned || l[0].Name != "manifest.json" || l[0].Size != uint64(len(data)) {
		t.Errorf("list %+v", l)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := reopened.Remove(root); err != nil {
		t.Fatal(err)
	}
	if same, err := reopened.Add(t.Context(), file, nil); err != nil || same != root {
		t.Fatalf("%s, %v", same, err)
	}
	if _, err := reopened.Put("manifest.json", data); err != nil {
		t.Fatal(err)
	}
	if path, err := reopened.Path(root); err != nil || path != file {
		t.Errorf("the bytes lie twice: %s, %v", path, err)
	}
	if _, err := s.Put("nothing", nil); err == nil {
		t.Error("a blob of no bytes")
	}
}

func TestCheckSpace(t *testing.T) {
	s, root, data := testBlob(t, 3*testChunk, testChunk)
	s.free = func(string) (uint64, error) { return 1000, nil }
	for _, c := range []struct {
		name  string
		sizes map[mesh.Hash]uint64
		ok    bool
	}{
		{"nothing", nil, true},
		{"what is there takes no room", map[mesh.Hash]uint64{root: uint64(len(data))}, true},
		{"just enough", map[mesh.Hash]uint64{{1}: 600, {2}: 400}, true},
		{"each alone would do", map[mesh.Hash]uint64{{1}: 600, {2}: 401}, false},
		{"more than any disk has", map[mesh.Hash]uint64{{1}: 1 << 63, {2}: 1 << 63}, false},
	} {
		if err := s.CheckSpace(c.sizes); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
