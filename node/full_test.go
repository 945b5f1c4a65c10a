package node

import (
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gonka-mesh/mesh"
)

// limitFiles bounds the size of files that this process writes, as a full disk does.
func limitFiles(t *testing.T, size uint64) (lift func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = size
	set := func(l syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
			t.Fatal(err)
		}
	}
	emptyTestLog()
	set(limit)
	return func() { set(old) }
}

// emptyTestLog has the testing package write what it notes of the environment and of
// files, for its cache, which would not find room under a limit.
func emptyTestLog() {
	log := flag.Lookup("test.testlogfile").Value.String()
	size := func() int64 {
		info, err := os.Stat(log)
		if err != nil {
			return -1
		}
		return info.Size()
	}
	for was := size(); was >= 0 && size() == was; {
		os.Getenv("a name that takes some room in the log of this test")
	}
}

// TestFullDisk adds a model to the list on a full disk: the list on disk stays whole,
// and takes the model when there is room again.
func TestFullDisk(t *testing.T) {
	home, err := OpenHome(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	log := slog.New(slog.DiscardHandler)
	c, err := openCatalogue(home, 1<<30, log)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string) error {
		return c.put(entry{Name: name, Path: "/models/" + name, Model: mesh.HashOf([]byte(name))})
	}
	if err := add("one"); err != nil {
		t.Fatal(err)
	}
	lift := limitFiles(t, 16)
	err = add("two")
	lift()
	if err == nil || !strings.Contains(err.Error(), "write list of models") {
		t.Errorf("on a full disk: %v", err)
	}
	list := func(want int) {
		t.Helper()
		again, err := openCatalogue(home, 1<<30, log)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := again.list(); len(got) != want {
			t.Errorf("%d models on disk, want %d", len(got), want)
		}
	}
	list(1)
	if err := add("two"); err != nil {
		t.Fatal(err)
	}
	list(2)
}

// TestFullDiskNotes opens an escrow on a full disk again and again: it is noted once it is
// on the disk, and not before.
func TestFullDiskNotes(t *testing.T) {
	c := newMoneyChain(t)
	path := filepath.Join(t.TempDir(), "receipts.db")
	p := c.client(c.payers[0], path)
	escrow := mesh.HashOf([]byte("escrow"))
	lift := limitFiles(t, 1)
	_, err := p.remember(p.self(), escrow)
	_, err2 := p.remember(p.self(), escrow)
	lift()
	if err == nil || err2 == nil || len(p.escrows(p.self())) != 0 {
		t.Errorf("on a full disk: %v, then %v", err, err2)
	}
	if fresh, err := p.remember(p.self(), escrow); err != nil || !fresh {
		t.Errorf("with room again: fresh %v, %v", fresh, err)
	}
	if err := p.store.Close(); err != nil {
		t.Fatal(err)
	}
	if p = c.client(c.payers[0], path); len(p.escrows(p.self())) != 1 {
		t.Error("after a restart it is not known")
	}
	lift = limitFiles(t, 1)
	err = p.forget(p.self(), escrow)
	lift()
	if err == nil || len(p.escrows(p.self())) != 1 {
		t.Errorf("forgotten on a full disk, and still in the file: %v", err)
	}
}
