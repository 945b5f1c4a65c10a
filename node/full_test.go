package node

import (
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"github.com/gonka-mesh/mesh"
)

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
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	small := old
	small.Cur = 16
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		t.Fatal(err)
	}
	err = add("two")
	if rerr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); rerr != nil {
		t.Fatal(rerr)
	}
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
