package gpu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"
)

// script is a source that answers from a list, then with its last entry.
type script struct {
	answers []answer
	hang    chan struct{} // when set, the first look waits for it and heeds no context
	asked   atomic.Int32
	closed  atomic.Int32
}

func (s *script) read(context.Context) (Inventory, error) {
	n := int(s.asked.Add(1))
	if s.hang != nil && n == 1 {
		<-s.hang
	}
	a := s.answers[min(n, len(s.answers))-1]
	return a.inventory, a.err
}

func (s *script) close() { s.closed.Add(1) }

func device(index int, name string, memory uint64) Device {
	d := unknownDevice(index)
	d.Name, d.Memory = name, memory
	return d
}

func TestReaderFallsBack(t *testing.T) {
	found := Inventory{Source: "b", Devices: []Device{device(0, "A", 1)}}
	none := func(c Cause) error { return &NotFoundError{Cause: c} }
	nvidia := fstest.MapFS{
		"sys/bus/pci/devices/0000:17:00.0/vendor": {Data: []byte("0x10de\n")}, "sys/bus/pci/devices/0000:17:00.0/class": {Data: []byte("0x030200\n")},
		"sys/bus/pci/devices/0000:17:00.1/vendor": {Data: []byte("0x10de\n")}, "sys/bus/pci/devices/0000:17:00.1/class": {Data: []byte("0x040300\n")},
		"sys/bus/pci/devices/0000:00:02.0/vendor": {Data: []byte("0x8086\n")}, "sys/bus/pci/devices/0000:00:02.0/class": {Data: []byte("0x030000\n")},
	}
	loaded := fstest.MapFS{"proc/driver/nvidia/version": {Data: []byte("NVRM")}}
	plain := fstest.MapFS{"sys/bus/pci/devices/0000:00:02.0/vendor": {Data: []byte("0x8086\n")}}
	for _, c := range []struct {
		name   string
		first  answer
		second answer
		root   fstest.MapFS
		cause  Cause
		detail string
	}{
		{"second source answers", answer{err: none(NoLibrary)}, answer{inventory: found}, nil, 0, ""},
		{"the reason that says most", answer{err: none(Mismatch)}, answer{err: none(NoLibrary)}, plain, Mismatch, ""},
		{"the second one's reason", answer{err: none(NoLibrary)}, answer{err: none(NoPermission)}, plain, NoPermission, ""},
		{"no card", answer{err: none(NoLibrary)}, answer{err: none(NoLibrary)}, plain, NoDevice, ""},
		{"a card without driver", answer{err: none(NoLibrary)}, answer{err: none(NoLibrary)}, nvidia, NoDriver, "NVIDIA devices on the PCI bus: 1"},
		{"a container", answer{err: none(NoLibrary)}, answer{err: none(NoLibrary)}, loaded, NoLibrary, "the kernel runs the NVIDIA driver; is this a container without --gpus?"},
		{"no bus to look at", answer{err: none(NoLibrary)}, answer{err: none(NoLibrary)}, fstest.MapFS{}, NoLibrary, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &reader{sources: []source{&script{answers: []answer{c.first}}, &script{answers: []answer{c.second}}}, root: c.root, patience: time.Minute}
			i, err := r.read(t.Context())
			var e *NotFoundError
			switch {
			case c.second.err == nil:
				if err != nil || i.Source != "b" {
					t.Fatalf("%v, %v", i, err)
				}
			case !errors.As(err, &e) || e.Cause != c.cause || e.Detail != c.detail:
				t.Fatalf("%#v, want %v %q", err, c.cause, c.detail)
			case (e.Remedy() == "") != (c.cause == NoDevice):
				t.Fatalf("remedy of %v: %q", e, e.Remedy())
			}
		})
	}
}

// A driver that hangs is left alone until it answers, and the loop goes on.
func TestWatchSurvivesAHungDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		hang := make(chan struct{})
		s := &script{hang: hang, answers: []answer{{inventory: Inventory{Source: "x", Devices: []Device{device(0, "A", 1)}}}}}
		r := &reader{sources: []source{s}, root: fstest.MapFS{}, patience: 3 * time.Second}
		var seen []string
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r.watch(ctx, 10*time.Second, func(i Inventory, err error) {
				var e *NotFoundError
				switch {
				case errors.As(err, &e):
					seen = append(seen, fmt.Sprintf("%s: %s", e.Cause, e.Detail))
				default:
					seen = append(seen, i.Source)
				}
			})
		}()
		time.Sleep(14 * time.Second)
		if n := s.asked.Load(); n != 1 {
			t.Errorf("a driver that hangs was asked %d times", n)
		}
		close(hang)
		time.Sleep(10 * time.Second)
		cancel()
		<-ended
		want := []string{Silent.String() + ": the driver has not answered for 3s", Silent.String() + ": the driver has not answered for 10s", "x"}
		if !slices.Equal(seen, want) {
			t.Errorf("seen %q, want %q", seen, want)
		}
		if n := s.closed.Load(); n != 1 {
			t.Errorf("closed %d times", n)
		}
	})
}

func TestReadEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		hang := make(chan struct{})
		s := &script{hang: hang, answers: []answer{{}}}
		r := &reader{sources: []source{s}, root: fstest.MapFS{}, patience: time.Minute}
		if _, err := r.read(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		r.close() // must not touch what hangs
		if s.closed.Load() != 0 {
			t.Error("a source that hangs was closed")
		}
		close(hang)
	})
}

func TestInventoryInWords(t *testing.T) {
	lost := device(2, "NVIDIA H200", 141<<30)
	lost.Fault = lostWords
	for _, c := range []struct {
		devices     []Device
		text, model string
	}{
		{nil, "no GPU", ""},
		{[]Device{device(0, "NVIDIA H200", 141<<30), device(1, "NVIDIA H200", 141<<30), lost}, "2 x NVIDIA H200 (141 GiB), GPU 2: " + lostWords, "NVIDIA H200"},
		{[]Device{device(0, "T4", 15<<30), device(1, "L4", 23<<30)}, "1 x L4 (23 GiB), 1 x T4 (15 GiB)", ""},
		{[]Device{device(0, "GB10", 0)}, "1 x GB10", "GB10"},
	} {
		i := Inventory{Devices: c.devices}
		if i.String() != c.text || i.Model() != c.model {
			t.Errorf("%q, model %q; want %q, %q", i.String(), i.Model(), c.text, c.model)
		}
	}
}

func TestClean(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"  NVIDIA\x1b[31m \t H200\n", 64, "NVIDIA [31m H200"}, {"ab\xffc", 64, "abc"}, {"ééé", 3, "é"}, {"a b", 2, "a"}, {"", 4, ""},
	} {
		if got := clean(c.in, c.n); got != c.want {
			t.Errorf("clean(%q, %d) = %q, want %q", c.in, c.n, got, c.want)
		}
	}
	if got := shortPCI("00000000:17:00.0"); got != "0000:17:00.0" {
		t.Error(got)
	}
	if got := shortPCI("00010000:17:00.0"); got != "00010000:17:00.0" {
		t.Error(got)
	}
	if got := shortUUID("GPU-52a3a85d-3c55-ca3a-a955-82c69ed360fc"); got != "GPU-52a3a85d" {
		t.Error(got)
	}
	if got := shortUUID(strings.Repeat("x", 100)); got != "" {
		t.Error(got)
	}
}

// On any machine: GPUs, or a reason in words.
func TestFindHere(t *testing.T) {
	i, err := Find(t.Context())
	var e *NotFoundError
	switch {
	case err == nil && len(i.Devices) > 0 && i.Driver != "":
		t.Logf("%s, driver %s, CUDA %s, through %s: %+v", i, i.Driver, i.CUDA, i.Source, i.Devices)
	case errors.As(err, &e):
		t.Log(err)
	default:
		t.Errorf("%+v, %v", i, err)
	}
}
