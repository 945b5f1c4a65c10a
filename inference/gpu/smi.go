package gpu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const (
	lostWords  = "it fell off the bus; reset it or reboot"
	resetWords = "it needs a reset"

	maxOutput = 64 << 10 // bytes of one answer of nvidia-smi
)

// smi asks nvidia-smi, which every NVIDIA driver brings along.
type smi struct {
	root   fs.FS
	fields []string          // that this version of nvidia-smi knows
	known  map[string]Device // by PCI address, as last seen well
	cuda   string            // of driver
	driver string
}

func newSMI(root fs.FS) *smi { return &smi{root: root, fields: slices.Clone(smiFields)} }

func (s *smi) close() {}

// where returns the program. Services in WSL often lack its folder in their PATH.
func (s *smi) where() (string, bool) {
	for _, name := range []string{"nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, true
		}
	}
	return "", false
}

func (s *smi) read(ctx context.Context) (Inventory, error) {
	path, ok := s.where()
	if !ok {
		return Inventory{}, &NotFoundError{Cause: NoLibrary}
	}
	devices, driver, err := s.query(ctx, path)
	if err != nil {
		return Inventory{}, err
	}
	if !slices.ContainsFunc(devices, func(d Device) bool { return d.Fault == "" }) {
		// One lost GPU ends the whole table; each of the others still answers by itself.
		more, v := s.each(ctx, path, devices)
		devices = append(devices, more...)
		driver = max(driver, v)
	}
	s.remember(devices)
	if driver != s.driver || s.cuda == "" {
		s.driver, s.cuda = driver, s.cudaVersion(ctx, path)
	}
	return Inventory{Source: "nvidia-smi", Driver: driver, CUDA: s.cuda, Devices: devices}, nil
}

// query returns at least one device, lost ones among them.
func (s *smi) query(ctx context.Context, path string, args ...string) ([]Device, string, error) {
	for {
		ask := append([]string{"--query-gpu=" + strings.Join(s.fields, ","), "--format=csv,noheader,nounits"}, args...)
		out, said, failed, err := run(ctx, path, ask...)
		if err != nil {
			return nil, "", err
		}
		if f, ok := unknownField(said, s.fields); ok {
			s.fields = slices.DeleteFunc(s.fields, func(have string) bool { return have == f })
			continue
		}
		devices, driver, bad := decode(out, s.fields)
		if len(devices) > 0 && (bad == nil || failed != nil) {
			return devices, driver, nil // with a failure, what it wrote before counts
		}
		e := smiError(said, failed)
		if e.Cause == Failed && failed == nil && bad != nil {
			e.Detail = bad.Error()
		}
		return nil, "", e
	}
}

// each asks for the GPUs that the kernel lists, except those already known as lost.
func (s *smi) each(ctx context.Context, path string, lost []Device) (found []Device, driver string) {
	entries, _ := fs.ReadDir(s.root, "proc/driver/nvidia/gpus") // none: nobody else to ask for
	for _, e := range entries[:min(len(entries), maxDevices)] {
		pci := shortPCI(e.Name())
		if slices.ContainsFunc(lost, func(d Device) bool { return d.PCI == pci }) {
			continue
		}
		devices, v, err := s.query(ctx, path, "--id="+e.Name())
		if err != nil || ctx.Err() != nil {
			continue
		}
		found, driver = append(found, devices...), max(driver, v)
	}
	return found, driver
}

// remember keeps what is seen well, and names what is lost.
func (s *smi) remember(devices []Device) {
	if s.known == nil {
		s.known = make(map[string]Device)
	}
	for i := range devices {
		d := &devices[i]
		k, seen := s.known[d.PCI]
		switch {
		case d.PCI == "":
		case d.Fault == "":
			s.known[d.PCI] = *d
		case seen:
			d.Index, d.Name, d.UUID, d.Compute, d.Memory = k.Index, k.Name, k.UUID, k.Compute, k.Memory
		}
	}
	slices.SortStableFunc(devices, func(a, b Device) int { return strings.Compare(a.PCI, b.PCI) })
}

// cudaVersion reads the head of the long report; empty where it has none.
func (s *smi) cudaVersion(ctx context.Context, path string) string {
	out, _, _, err := run(ctx, path, "-q", "-d", "COMPUTE")
	if err != nil {
		return ""
	}
	return decodeCUDA(out)
}

// run returns the program's output, the same with its complaints behind it, and, as
// failed, that it did not end well. Its error is the context's, or that of a program
// that cannot be run.
func run(ctx context.Context, path string, args ...string) (out, said []byte, failed *exec.ExitError, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second // for a pipe that a child of its keeps open
	o, e := &limitedBuffer{full: cancel}, &limitedBuffer{full: cancel}
	cmd.Stdout, cmd.Stderr = o, e
	err = cmd.Run()
	switch {
	case o.over || e.over:
		return nil, nil, nil, &NotFoundError{Detail: fmt.Sprintf("nvidia-smi writes more than %d bytes", maxOutput)}
	case ctx.Err() != nil:
		return nil, nil, nil, fmt.Errorf("run nvidia-smi: %w", ctx.Err())
	case err == nil || errors.As(err, &failed):
		return o.b.Bytes(), slices.Concat(o.b.Bytes(), e.b.Bytes()), failed, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, nil, nil, &NotFoundError{Cause: NoPermission, Detail: clean(err.Error(), maxDetail)}
	}
	return nil, nil, nil, &NotFoundError{Detail: clean(err.Error(), maxDetail)}
}

// limitedBuffer ends the program that fills it.
type limitedBuffer struct {
	b    bytes.Buffer
	over bool
	full func()
}

func (w *limitedBuffer) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > maxOutput {
		w.over = true
		w.full()
		return 0, errors.New("too much output")
	}
	return w.b.Write(p)
}
