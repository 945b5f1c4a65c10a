package state

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
)

// TestCrashAtEveryWrite copies what a power cut would leave before each write of the
// file system, with and without some of what was not synced, opens the copies, and
// finds the state of a block: the last that Commit returned for, or the next.
func TestCrashAtEveryWrite(t *testing.T) {
	r := seeded(t)
	type cut struct {
		fs        vfs.FS
		committed int // blocks that Commit had returned for
	}
	mem := vfs.NewCrashableMem()
	var mu sync.Mutex
	var cuts []cut
	committed, count := -1, 0
	rng := rand.New(rand.NewPCG(r.Uint64(), 1))
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if count++; committed >= 0 && count%3 == 0 {
			for _, percent := range []int{0, 50} {
				cuts = append(cuts, cut{mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}), committed})
			}
		}
		return nil
	}))
	s := mustOpen(t, Config{Dir: "/ledger", fs: fs, SnapshotEvery: 4})
	states := []model{{}}
	mu.Lock()
	committed = 0
	mu.Unlock()
	for h := 1; h <= 30; h++ {
		changes := randomChanges(r, 60)
		states = append(states, states[h-1].apply(changes))
		if h == 15 { // through files of the tables as well as the log
			if err := s.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		mustCommit(t, s, mesh.Height(h), changes)
		mu.Lock()
		committed = h
		mu.Unlock()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if len(cuts) < 40 {
		t.Fatalf("only %d moments were seen: the test is broken", len(cuts))
	}
	for i, c := range cuts {
		s := mustOpen(t, Config{Dir: "/ledger", fs: c.fs})
		h := int(s.Height())
		if h != c.committed && h != c.committed+1 {
			t.Fatalf("moment %d: height %d after the commit of %d", i, h, c.committed)
		}
		if !maps.Equal(contents(s), states[h]) || s.AppHash() != states[h].appHash() {
			t.Fatalf("moment %d: the state of height %d differs", i, h)
		}
		next := randomChanges(r, 60)
		if got := mustCommit(t, s, mesh.Height(h+1), next); got != states[h].apply(next).appHash() {
			t.Fatalf("moment %d: the block after height %d has another hash", i, h)
		}
		snapshots, err := s.Snapshots()
		if err != nil {
			t.Fatal(err)
		}
		for _, snap := range snapshots {
			if got := restored(t, s, snap, states[snap.Height].appHash()); !maps.Equal(got, states[snap.Height]) {
				t.Fatalf("moment %d: the snapshot of height %d differs", i, snap.Height)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFailingDisk lets every n-th write fail: nothing panics, the first error stays,
// and the state that is found afterwards is that of a block: the last that Commit
// returned for, or the next.
func TestFailingDisk(t *testing.T) {
	for n := int32(0); n < 60; n += 3 {
		mem := vfs.NewMem()
		s := mustOpen(t, Config{Dir: "/ledger", fs: mem})
		first := []ledger.Change{{Key: []byte("A1"), Value: []byte("1")}}
		mustCommit(t, s, 1, first)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		broken := errorfs.InjectorFunc((&fuse{after: n}).write)
		s, err := Open(Config{Dir: "/ledger", fs: errorfs.Wrap(mem, broken), Log: quiet()})
		if err != nil {
			continue // it said so
		}
		failed, committed := false, mesh.Height(1)
		for h := mesh.Height(2); h < 40; h++ {
			_, err := s.Stage(h, []ledger.Change{{Key: []byte("A2"), Value: bytes.Repeat([]byte{byte(h)}, 500)}})
			if err == nil {
				err = s.Commit()
			}
			if failed && err == nil {
				t.Fatalf("write %d failed, and a block was committed after it", n)
			}
			if failed = failed || err != nil; !failed {
				committed = h
			}
			if failed != (s.Err() != nil) {
				t.Fatalf("write %d: Commit says %v and Err %v", n, err, s.Err())
			}
		}
		if !failed && n < 30 {
			t.Fatalf("write %d did not fail", n)
		}
		_ = s.Close() // says that it failed, or does not
		s, err = Open(Config{Dir: "/ledger", fs: mem, Log: quiet()})
		if err != nil {
			t.Fatalf("write %d: the disk is well again, and the store does not open: %v", n, err)
		}
		h := s.Height()
		if h != committed && h != committed+1 {
			t.Fatalf("write %d: height %d after the commit of %d", n, h, committed)
		}
		want := model{"A1": "1"}
		if h > 1 {
			want["A2"] = strings.Repeat(string(rune(h)), 500)
		}
		if !maps.Equal(contents(s), want) || s.AppHash() != want.appHash() {
			t.Fatalf("write %d: the state of height %d differs", n, h)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// fuse fails all writes after a number of them.
type fuse struct {
	mu    sync.Mutex
	after int32
}

func (f *fuse) write(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.after--; f.after < 0 {
		return errorfs.ErrInjected
	}
	return nil
}

// TestDamagedFiles flips bytes in each file of the database: opening and reading end
// in errors, or in the right state, never in a panic.
func TestDamagedFiles(t *testing.T) {
	r := seeded(t)
	make := func(t *testing.T) string {
		dir := t.TempDir()
		s := mustOpen(t, Config{Dir: dir})
		for h := mesh.Height(1); h < 20; h++ {
			mustCommit(t, s, h, randomChanges(r, 200))
		}
		if err := s.db.Flush(); err != nil {
			t.Fatal(err)
		}
		mustCommit(t, s, 20, randomChanges(r, 200))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	files, err := filepath.Glob(filepath.Join(make(t), "db", "*"))
	if err != nil || len(files) < 3 {
		t.Fatal(err, files)
	}
	complained := 0
	for i := range files {
		dir := make(t)
		files, err := filepath.Glob(filepath.Join(dir, "db", "*"))
		if err != nil || i >= len(files) {
			t.Fatal(err, files)
		}
		damage(t, files[i], r)
		s, err := Open(Config{Dir: dir, Log: quiet()})
		if err != nil {
			complained++
			continue
		}
		m := contents(s)
		if s.Err() != nil {
			complained++
		} else if got := m.appHash(); got != s.AppHash() {
			// The head and the entries are of different blocks, and nobody noticed.
			t.Errorf("%s is damaged, unnoticed", filepath.Base(files[i]))
		}
		_ = s.Close()
	}
	if complained < 2 {
		t.Fatalf("only %d damaged files were noticed", complained)
	}
}

// TestPanicIsLogged with where it was, which the error does not say.
func TestPanicIsLogged(t *testing.T) {
	var out bytes.Buffer
	l := newDatabaseLog(slog.New(slog.NewTextHandler(&out, nil)))
	err := l.guard(func() error { panic("a table is damaged") })
	if err == nil || !errors.Is(l.err(), err) {
		t.Fatalf("%v, and %v stays", err, l.err())
	}
	if got := out.String(); !strings.Contains(got, "a table is damaged") || !strings.Contains(got, "TestPanicIsLogged") {
		t.Fatalf("logged: %s", got)
	}
}

// TestNewerVersionIsRefused, and what is not ours at all.
func TestNewerVersionIsRefused(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, Config{Dir: "/ledger", fs: fs})
	if err := s.write(func(b *pebble.Batch) error {
		return b.Set(keyVersion, []byte{0, 0, 0, 0, 0, 0, 0, Version + 1}, nil)
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: "/ledger", fs: fs, Log: quiet()}); err == nil || !strings.Contains(err.Error(), "use a newer one") {
		t.Fatalf("a newer version was opened: %v", err)
	}
}

// TestStageRefuses what would part two nodes.
func TestStageRefuses(t *testing.T) {
	s := mustOpen(t, Config{Memory: true})
	if _, err := s.Stage(0, []ledger.Change{{Key: []byte("A1"), Value: []byte("genesis")}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, 0, []ledger.Change{{Key: []byte("A1"), Value: []byte("genesis")}}) // after a crash
	mustCommit(t, s, 1, nil)
	for name, bad := range map[string]struct {
		height  mesh.Height
		changes []ledger.Change
	}{
		"same height":   {1, nil},
		"gap":           {3, nil},
		"back":          {0, nil},
		"unsorted":      {2, []ledger.Change{{Key: []byte("b"), Value: []byte("1")}, {Key: []byte("a"), Value: []byte("1")}}},
		"twice":         {2, []ledger.Change{{Key: []byte("b")}, {Key: []byte("b")}}},
		"no key":        {2, []ledger.Change{{Value: []byte("1")}}},
		"long key":      {2, []ledger.Change{{Key: make([]byte, 2000), Value: []byte("1")}}},
		"long value":    {2, []ledger.Change{{Key: []byte("b"), Value: make([]byte, 2<<20)}}},
		"proven, empty": {2, []ledger.Change{{Key: []byte("B"), Value: []byte{}}}},
	} {
		if _, err := s.Stage(bad.height, bad.changes); err == nil {
			t.Errorf("%s: staged", name)
		}
		if err := s.Commit(); err == nil {
			t.Errorf("%s: committed", name)
		}
	}
	if err := s.Err(); err != nil {
		t.Fatalf("a bad block broke the store: %v", err)
	}
	mustCommit(t, s, 2, []ledger.Change{{Key: []byte("b"), Value: []byte{}}})
	if v := s.Get([]byte("b")); v == nil || len(v) != 0 {
		t.Fatal("an empty value is not there")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s.Get([]byte("b")) != nil || s.Err() == nil || s.View().Err() == nil {
		t.Fatal("a closed store answers")
	}
	if _, err := s.Stage(3, nil); err == nil {
		t.Fatal("a closed store takes a block")
	}
}
