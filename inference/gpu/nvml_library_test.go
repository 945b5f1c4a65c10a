//go:build cgo && linux

package gpu

import (
	"errors"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// The real loader, on a library that lacks what came after the first versions: it
// answers, and no function that is missing ends the process.
func TestNVMLLoadsALibrary(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	if out, err := exec.CommandContext(t.Context(), cc, "-shared", "-fPIC", "-o", path, "testdata/nvml.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := &nvmlSource{lib: nvml.New(nvml.WithLibraryPath(path)), turn: &turn}
	for range 2 {
		i, err := s.read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := unknownDevice(0)
		want.Name, want.UUID, want.PCI, want.Memory, want.Used, want.Utilisation, want.Power = "Tesla K80", "GPU-0badcafe", "0000:05:00.0", 12<<30, 1<<30, 64, 149.5
		lost := unknownDevice(1)
		lost.Fault = lostWords
		if i.Driver != "384.81" || i.CUDA != "" || len(i.Devices) != 2 || i.Devices[0] != want || i.Devices[1] != lost {
			t.Errorf("%+v", i)
		}
	}
	s.close()
}

func TestNVMLWithoutLibrary(t *testing.T) {
	s := &nvmlSource{lib: nvml.New(nvml.WithLibraryPath(filepath.Join(t.TempDir(), "none.so"))), turn: new(sync.Mutex)}
	for range 2 {
		var e *NotFoundError
		if _, err := s.read(t.Context()); !errors.As(err, &e) || e.Cause != NoLibrary {
			t.Error(err)
		}
	}
	s.close()
}
