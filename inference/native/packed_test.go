package native

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/model"
)

var packedModel = mesh.HashOf([]byte("a model"))

// packedConfig is an engine of a small model that keeps its packed weights in path.
func packedConfig(t testing.TB, path string) Config {
	return Config{File: synthetic(t, shape(t, "tiny-qwen2"), model.Q8_0), ID: packedModel, Packed: path, Threads: 2}
}

// packedOnce opens an engine, lets it write or check its file, and returns the hash of
// its logits and what it logged.
func packedOnce(t *testing.T, cfg Config) (logits mesh.Hash, notes string) {
	t.Helper()
	var log bytes.Buffer
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	e, s, err := open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	go s.run()
	e.packed.tend(0, func(mend func()) { mend() }) // nothing is computed yet
	if e.packed != nil {
		e.packed.work.Wait()
	}
	logits = hashLogits(t, e, packedTokens)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return logits, log.String()
}

var packedTokens = []int32{5, 300, 17, 999, 4, 5, 77, 800}

func TestPackedHit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "packed", "file")
	plain := packedConfig(t, "")
	e := start(t, plain)
	if e.packed != nil {
		t.Fatal("packed weights without a path")
	}
	want := hashLogits(t, e, packedTokens)
	first, notes := packedOnce(t, packedConfig(t, path))
	if first != want || !strings.Contains(notes, "kept for the next start") {
		t.Errorf("first start: %s", notes)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Open(packedConfig(t, path))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if second.packed.data == nil || second.packed.missing || len(second.packed.loaded) == 0 {
		t.Error("the second start packs")
	}
	if hashLogits(t, second, packedTokens) != want {
		t.Error("mapped weights give other logits")
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was written again: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("%d files: %v", len(left), err)
	}
}

// TestPackedUnfit: a file that is damaged, cut, copied, of another model or layout is
// not used, and replaced by a good one.
func TestPackedUnfit(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	want, _ := packedOnce(t, packedConfig(t, good))
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(h *packedHeader)) func([]byte, os.FileInfo) []byte {
		return func(b []byte, info os.FileInfo) []byte { return reheaded(t, b, change) }
	}
	edit := func(at int) func([]byte, os.FileInfo) []byte {
		return func(b []byte, _ os.FileInfo) []byte { b[at] ^= 1; return b }
	}
	for _, c := range []struct {
		name, why string
		change    func([]byte, os.FileInfo) []byte
	}{
		{"copied", "copied or changed", func(b []byte, _ os.FileInfo) []byte { return b }},
		{"empty", "not a file of packed weights", func([]byte, os.FileInfo) []byte { return nil }},
		{"magic", "not a file of packed weights", edit(0)},
		{"header", "header is damaged", edit(packedPrefix + 20)},
		{"length of header", "does not fit", edit(len(packedMagic) + 3)},
		{"cut", "lies outside", func(b []byte, _ os.FileInfo) []byte { return b[:len(b)-1] }},
		{"cut in the header", "does not fit", func(b []byte, _ os.FileInfo) []byte { return b[:packedPrefix+10] }},
		{"half written", "lies outside", func(b []byte, _ os.FileInfo) []byte { return b[:len(b)/2] }},
		{"longer", "another length", func(b []byte, _ os.FileInfo) []byte { return append(b, 0) }},
		{"version", "version 2", changed(func(h *packedHeader) { h.Version++ })},
		{"layout", "layout", changed(func(h *packedHeader) { h.Layout++ })},
		{"model", "of model", changed(func(h *packedHeader) { h.Model[0] ^= 1 })},
		{"offset", "lies outside", changed(func(h *packedHeader) { h.Matrices[0].Offset = -64 })},
		{"size", "lies outside", changed(func(h *packedHeader) { h.Matrices[1].Bytes = 1 << 62 })},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(c.name, " ", "-"))
			if err := os.WriteFile(path, c.change(bytes.Clone(whole), nil), 0o600); err != nil {
				t.Fatal(err)
			}
			got, notes := packedOnce(t, packedConfig(t, path))
			if got != want || !strings.Contains(notes, c.why) || !strings.Contains(notes, "kept for the next start") {
				t.Errorf("equal logits %v, want %q in %s", got == want, c.why, notes)
			}
			if got, notes := packedOnce(t, packedConfig(t, path)); got != want || notes != "" {
				t.Errorf("the next start: equal logits %v, %s", got == want, notes)
			}
		})
	}
}

// reheaded changes the header of a file, of which inode and time are right.
func reheaded(t *testing.T, b []byte, change func(h *packedHeader)) []byte {
	h, weights, err := parsePacked(b)
	if err != nil {
		t.Fatal(err)
	}
	change(h)
	head, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(head)
	out := binary.LittleEndian.AppendUint32([]byte(packedMagic), uint32(len(head)))
	out = append(append(out, sum[:]...), head...)
	return append(append(out, make([]byte, packedFrom(len(head))-len(out))...), weights...)
}

// TestPackedWholeSeconds: a disk that keeps no parts of seconds, or none but even ones,
// does not make the file look changed; a change at once after writing does.
func TestPackedWholeSeconds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	want, _ := packedOnce(t, packedConfig(t, path))
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	kept := info.ModTime().Truncate(2 * time.Second)
	if err := os.Chtimes(path, kept, kept); err != nil {
		t.Fatal(err)
	}
	if got, notes := packedOnce(t, packedConfig(t, path)); got != want || notes != "" {
		t.Errorf("equal logits %v, %s", got == want, notes)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], info.Size()-200); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{^b[0]}, info.Size()-200); err != nil {
		t.Fatal(err)
	}
	if info, err = f.Stat(); err != nil {
		t.Fatal(err)
	}
	kept = info.ModTime().Truncate(2 * time.Second)
	if err := errors.Join(f.Close(), os.Chtimes(path, kept, kept)); err != nil {
		t.Fatal(err)
	}
	if got, notes := packedOnce(t, packedConfig(t, path)); got != want || !strings.Contains(notes, "copied or changed") {
		t.Errorf("after a change: equal logits %v, %s", got == want, notes)
	}
}

// TestPackedRot: a bit that changed under an unchanged inode and time is found after
// the start, and the engine goes on with the right weights.
func TestPackedRot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	want, _ := packedOnce(t, packedConfig(t, path))
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], info.Size()-200); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b[:], info.Size()-200); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), os.Chtimes(path, info.ModTime(), info.ModTime())); err != nil {
		t.Fatal(err)
	}
	got, notes := packedOnce(t, packedConfig(t, path))
	if got != want || !strings.Contains(notes, "were damaged") || !strings.Contains(notes, "kept for the next start") {
		t.Errorf("equal logits %v: %s", got == want, notes)
	}
	if got, notes := packedOnce(t, packedConfig(t, path)); got != want || notes != "" {
		t.Errorf("the next start: equal logits %v, %s", got == want, notes)
	}
}

func TestPackedNotKept(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	small := packedConfig(t, filepath.Join(dir, "small"))
	small.PackedLimit = 1 << 20
	for _, c := range []struct {
		why string
		cfg Config
	}{
		{"not a directory", packedConfig(t, filepath.Join(dir, "file", "below"))},
		{"allowed", small},
	} {
		if _, notes := packedOnce(t, c.cfg); !strings.Contains(notes, "not kept") || !strings.Contains(notes, c.why) {
			t.Errorf("want %q in %s", c.why, notes)
		}
	}
	if os.Getuid() != 0 { // root may write anywhere
		closed := filepath.Join(dir, "closed")
		if err := os.Mkdir(closed, 0o500); err != nil {
			t.Fatal(err)
		}
		if _, notes := packedOnce(t, packedConfig(t, filepath.Join(closed, "file"))); !strings.Contains(notes, "permission denied") {
			t.Error(notes)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 2 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestPackedTwo starts several engines on one file at once.
func TestPackedTwo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	want, _ := packedOnce(t, packedConfig(t, ""))
	for range 3 {
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if got, notes := packedOnce(t, packedConfig(t, path)); got != want || strings.Contains(notes, "not kept") {
					t.Errorf("equal logits %v: %s", got == want, notes)
				}
			})
		}
		wg.Wait()
	}
}

// TestPackedClose ends an engine before its file is written, and in the middle of it.
func TestPackedClose(t *testing.T) {
	dir := t.TempDir()
	for _, after := range []time.Duration{0, time.Hour} {
		e, s, err := open(packedConfig(t, filepath.Join(dir, "file")))
		if err != nil {
			t.Fatal(err)
		}
		go s.run()
		e.packed.tend(after, func(mend func()) { mend() })
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 1 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

func FuzzPacked(f *testing.F) {
	path := filepath.Join(f.TempDir(), "file")
	e, err := Open(packedConfig(f, path))
	if err != nil {
		f.Fatal(err)
	}
	defer e.Close()
	if _, err := e.packed.write(f.Context()); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole[:packedPrefix+300])
	f.Add([]byte(packedMagic))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, head []byte) {
		// As if head were a header that someone sealed, in front of some weights.
		sum := sha256.Sum256(head)
		b := binary.LittleEndian.AppendUint32([]byte(packedMagic), uint32(len(head)))
		b = append(append(b, sum[:]...), head...)
		b = append(append(b, make([]byte, packedFrom(len(head))-len(b))...), make([]byte, 4096)...)
		for _, data := range [][]byte{head, b} {
			h, weights, err := parsePacked(data)
			if err != nil {
				continue
			}
			for _, m := range h.Matrices {
				if part := weights[m.Offset : m.Offset+m.Bytes]; len(part) == 0 {
					t.Fatal("an empty matrix")
				}
			}
		}
	})
}
