// Package gpu says which NVIDIA GPUs a machine has, how they fare, and which engine
// is sensible on such a machine. It asks NVML where the program was built with cgo
// on Linux, and nvidia-smi where it was not or where NVML has no answer.
//
// Nothing here takes a GPU for granted: what is not there has a reason in words, a
// value that a device does not tell is Unknown, and a GPU that fell off the bus is
// listed with its Fault beside those that still work. All of it is a hint to people
// and peers; no weight follows from it.
package gpu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Unknown stands for a number that the device does not tell.
const Unknown = -1

// Inventory is what one look found.
type Inventory struct {
	Source  string // NVML or nvidia-smi
	Driver  string // version of the driver
	CUDA    string // newest CUDA version that the driver runs, such as 12.4
	Devices []Device
}

// Device is one GPU. Memory and Used are 0 and other numbers Unknown where the
// device does not tell them; all of them may be when Fault is set.
type Device struct {
	Index       int // as the driver counts; Unknown for a GPU that was never seen well
	Name        string
	UUID        string  // its beginning, GPU- and 8 digits: CUDA_VISIBLE_DEVICES takes it
	PCI         string  // address on the bus, such as 0000:17:00.0
	Compute     string  // CUDA compute capability, such as 9.0
	Memory      uint64  // bytes
	Used        uint64  // bytes
	Utilisation int     // percent of the time in which a kernel ran
	Temperature int     // degrees Celsius
	Power       float64 // watts
	PowerLimit  float64 // watts
	LinkGen     int     // generation of the PCIe link as it is now; idle GPUs lower it
	LinkWidth   int     // lanes of the PCIe link
	MIG         bool    // it is split into instances
	Fault       string  // why it cannot be used; empty: it can
}

// unknownDevice has no value but its place.
func unknownDevice(index int) Device {
	return Device{Index: index, Utilisation: Unknown, Temperature: Unknown, Power: Unknown, PowerLimit: Unknown, LinkGen: Unknown, LinkWidth: Unknown}
}

// Usable returns the devices without a fault.
func (i Inventory) Usable() []Device {
	return slices.DeleteFunc(slices.Clone(i.Devices), func(d Device) bool { return d.Fault != "" })
}

// Model returns the name that all usable GPUs share, for a fingerprint; empty where
// there is none or they differ.
func (i Inventory) Model() string {
	name := ""
	for _, d := range i.Usable() {
		if name != "" && d.Name != name {
			return ""
		}
		name = d.Name
	}
	return name
}

// String describes the GPUs in one line.
func (i Inventory) String() string {
	var parts []string
	for _, g := range groups(i.Usable()) {
		s := fmt.Sprintf("%d x %s", len(g), g[0].Name)
		if g[0].Memory > 0 {
			s += fmt.Sprintf(" (%s)", gib(g[0].Memory))
		}
		parts = append(parts, s)
	}
	for _, d := range i.Devices {
		if d.Fault != "" {
			parts = append(parts, d.label()+": "+d.Fault)
		}
	}
	if len(parts) == 0 {
		return "no GPU"
	}
	return strings.Join(parts, ", ")
}

// label names a device among others.
func (d Device) label() string {
	switch {
	case d.Index >= 0:
		return fmt.Sprintf("GPU %d", d.Index)
	case d.PCI != "":
		return "GPU at " + d.PCI
	}
	return "a GPU"
}

// groups gathers equal devices, most memory together first.
func groups(devices []Device) [][]Device {
	var out [][]Device
	for _, d := range devices {
		at := slices.IndexFunc(out, func(g []Device) bool {
			return g[0].Name == d.Name && g[0].Memory == d.Memory && g[0].MIG == d.MIG
		})
		if at < 0 {
			out = append(out, []Device{d})
			continue
		}
		out[at] = append(out[at], d)
	}
	slices.SortStableFunc(out, func(a, b []Device) int {
		return cmp.Compare(uint64(len(b))*b[0].Memory, uint64(len(a))*a[0].Memory)
	})
	return out
}

func gib(n uint64) string { return fmt.Sprintf("%.0f GiB", float64(n)/(1<<30)) }

// patience is how long one look may take. A driver that has just been loaded, or
// wakes its GPUs for each caller, needs seconds.
const patience = 20 * time.Second

// Find looks once. Its error is a *NotFoundError, or the context's.
func Find(ctx context.Context) (Inventory, error) {
	r := newReader()
	defer r.close()
	return r.read(ctx)
}

// Watch looks now and after each period (default 10 s), and hands over what it found,
// until ctx ends. A driver that does not answer holds up neither it nor the caller.
func Watch(ctx context.Context, period time.Duration, see func(Inventory, error)) {
	newReader().watch(ctx, period, see)
}

// source is one way to ask.
type source interface {
	// read returns at least one device, or a *NotFoundError, or the context's error.
	read(ctx context.Context) (Inventory, error)
	close()
}

type answer struct {
	inventory Inventory
	err       error
}

// reader asks its sources one after the other, and never a second time while the
// first is still open: a hung driver cannot be interrupted. One goroutine owns it.
type reader struct {
	sources  []source
	root     fs.FS // of the machine
	patience time.Duration
	pending  chan answer // a look that was given up and has not ended
	since    time.Time   // when that one began
}

func newReader() *reader {
	root := os.DirFS("/")
	return &reader{sources: sources(root), root: root, patience: patience}
}

func (r *reader) read(ctx context.Context) (Inventory, error) {
	if r.pending != nil {
		select {
		case <-r.pending: // too old to be of use
			r.pending = nil
		default:
			return Inventory{}, &NotFoundError{Cause: Silent, Detail: fmt.Sprintf("the driver has not answered for %s", time.Since(r.since).Round(time.Second))}
		}
	}
	limited, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	done, began := make(chan answer, 1), time.Now()
	go func() {
		i, err := r.ask(limited)
		done <- answer{i, err}
	}()
	var a answer
	select {
	case a = <-done:
	case <-limited.Done():
		r.pending, r.since = done, began
		a.err = limited.Err()
	}
	switch {
	case a.err == nil:
		return a.inventory, nil
	case ctx.Err() != nil:
		return Inventory{}, fmt.Errorf("look for GPUs: %w", ctx.Err())
	case limited.Err() != nil:
		return Inventory{}, &NotFoundError{Cause: Silent, Detail: fmt.Sprintf("the driver has not answered for %s", r.patience)}
	}
	return Inventory{}, a.err
}

// ask returns the first answer with devices, else the reason that says most.
func (r *reader) ask(ctx context.Context) (Inventory, error) {
	reason := &NotFoundError{Cause: NoLibrary}
	for _, s := range r.sources {
		i, err := s.read(ctx)
		var none *NotFoundError
		switch {
		case err == nil:
			return i, nil
		case !errors.As(err, &none):
			return Inventory{}, err
		case reason.Cause == NoLibrary:
			reason = none
		}
	}
	return Inventory{}, reason.within(lookAround(r.root))
}

func (r *reader) close() {
	if r.pending != nil {
		return // what hangs in a driver is not disturbed
	}
	for _, s := range r.sources {
		s.close()
	}
}

func (r *reader) watch(ctx context.Context, period time.Duration, see func(Inventory, error)) {
	defer r.close()
	if period <= 0 {
		period = 10 * time.Second
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		i, err := r.read(ctx)
		if ctx.Err() != nil {
			return
		}
		see(i, err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// clean makes a driver's text fit for a terminal and an advert: printable, one space
// between words, at most n bytes.
func clean(s string, n int) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, ""), func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.TrimSpace(s[:n])
}

const (
	maxName    = 64  // bytes of a device's name
	maxDetail  = 200 // bytes of a driver's message
	maxDevices = 256
)

var (
	wholeUUID = regexp.MustCompile(`^([A-Z]{3})-([0-9a-f]{8})-[0-9a-f-]+$`)
	wholePCI  = regexp.MustCompile(`^[0-9a-f]{3,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]$`)
)

// shortUUID keeps what tells devices of one machine apart; empty where s is no UUID.
func shortUUID(s string) string {
	m := wholeUUID.FindStringSubmatch(s)
	if m == nil {
		return ""
	}
	return m[1] + "-" + m[2]
}

// shortPCI turns 00000000:17:00.0, as drivers write it, into 0000:17:00.0, as the
// system does; empty where s is no address.
func shortPCI(s string) string {
	s = strings.ToLower(s)
	if !wholePCI.MatchString(s) {
		return ""
	}
	if strings.HasPrefix(s, "0000") && strings.IndexByte(s, ':') == 8 {
		return s[4:]
	}
	return s
}
