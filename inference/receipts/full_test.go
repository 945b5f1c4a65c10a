package receipts

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
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
	set(limit)
	return func() { set(old) }
}

// TestFullDisk fills the disk: Put says so, what was kept can be read, and nothing is
// lost when there is room again.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipts.db")
	s := open(t, Config{Path: path})
	id := func(i int) mesh.Hash { return mesh.HashOf(binary.BigEndian.AppendUint32(nil, uint32(i))) }
	put := func(i int) error {
		return s.Put(id(i), receipt(t, 1, id(i), 0, 0, 1, inference.FinishEOS))
	}
	check := func(n int) {
		t.Helper()
		for i := range n {
			if got, err := s.Get(id(i)); err != nil || len(got) != 1 {
				t.Fatalf("receipt %d of %d: %d found, %v", i, n, len(got), err)
			}
		}
	}
	if err := put(0); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	lift := limitFiles(t, uint64(info.Size()))
	kept, failed := 1, 0
	for i := 1; failed < 20 && i < 2000; i++ {
		switch err := put(i); {
		case err != nil && !strings.Contains(err.Error(), "wait in memory"):
			lift()
			t.Fatal(err)
		case err != nil:
			failed++
		case failed > 0:
			lift()
			t.Fatal("a receipt was kept on a full disk")
		default:
			kept++
		}
	}
	check(kept)
	lift()
	if failed != 20 {
		t.Fatalf("the disk was never full: %d kept", kept)
	}
	if err := put(kept + failed); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	check(kept + failed + 1)

	// Those that still wait at the end are written then.
	lift = limitFiles(t, uint64(info.Size()))
	if err := put(kept + failed + 1); err == nil {
		t.Error("a receipt was kept on a full disk")
	}
	lift()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Path: path})
	check(kept + failed + 2)
}
