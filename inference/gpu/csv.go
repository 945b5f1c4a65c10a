package gpu

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// smiFields are asked for in this order. The name comes last: nothing quotes it, so
// it alone may hold the separator.
var smiFields = []string{
	"index", "uuid", "pci.bus_id", "driver_version", "memory.total", "memory.used", "utilization.gpu", "temperature.gpu",
	"power.draw", "power.limit", "pcie.link.gen.current", "pcie.link.width.current", "mig.mode.current", "compute_cap", "name",
}

var (
	lostLine   = regexp.MustCompile(`Unable to determine the device handle for (.*)`)
	pciAddress = regexp.MustCompile(`[0-9A-Fa-f]{3,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]`)
	badField   = regexp.MustCompile(`Field "([a-z._]+)" is not a valid field to query`)
	cudaLine   = regexp.MustCompile(`(?m)^\s*CUDA[A-Za-z ]*Version\s*:\s*([0-9]{1,3}\.[0-9]{1,3})\s*$`)
	versionNo  = regexp.MustCompile(`^[0-9]{1,3}\.[0-9]{1,3}$`)
)

// unknownField finds the complaint of an older nvidia-smi about a field that may go.
func unknownField(out []byte, fields []string) (string, bool) {
	m := badField.FindSubmatch(out)
	if m == nil {
		return "", false
	}
	f := string(m[1])
	return f, slices.Contains(fields, f) && f != "index" && f != "name"
}

func decodeCUDA(out []byte) string {
	if m := cudaLine.FindSubmatch(out); m != nil {
		return string(m[1])
	}
	return ""
}

// decode reads the table of nvidia-smi, as "csv,noheader,nounits" writes it, and its
// lines about GPUs that are lost. It goes on after a line that is neither, and
// returns an error for the first.
func decode(out []byte, fields []string) (devices []Device, driver string, err error) {
	wrong := func(e error) {
		if err == nil {
			err = e
		}
	}
	for line := range bytes.Lines(out) {
		text := strings.TrimSpace(string(line))
		if text == "" {
			continue
		}
		if len(devices) == maxDevices {
			wrong(fmt.Errorf("nvidia-smi lists more than %d GPUs", maxDevices))
			break
		}
		if m := lostLine.FindStringSubmatch(text); m != nil {
			d := unknownDevice(Unknown)
			d.PCI = shortPCI(pciAddress.FindString(m[1]))
			d.Fault = lineFault(m[1])
			devices = append(devices, d)
			continue
		}
		d, version, bad := decodeRow(text, fields)
		switch {
		case bad != nil:
			wrong(bad)
		case slices.ContainsFunc(devices, func(have Device) bool { return have.Index == d.Index }):
			wrong(fmt.Errorf("nvidia-smi lists GPU %d twice", d.Index))
		default:
			devices = append(devices, d)
			driver = max(driver, version)
		}
	}
	return devices, driver, err
}

func decodeRow(text string, fields []string) (Device, string, error) {
	d, driver := unknownDevice(Unknown), ""
	cells := strings.SplitN(text, ",", len(fields))
	if len(cells) < len(fields) {
		return d, "", fmt.Errorf("nvidia-smi: %q has %d of %d fields", clean(text, 80), len(cells), len(fields))
	}
	for i, name := range fields {
		cell := strings.TrimSpace(cells[i])
		if f := cellFault(cell); f != "" {
			d.Fault = f
		}
		if v, err := decodeCell(&d, name, cell); err != nil {
			return d, "", fmt.Errorf("nvidia-smi: %s %q: %w", name, clean(cell, 40), err)
		} else if name == "driver_version" {
			driver = v
		}
	}
	if d.Index < 0 {
		return d, "", errors.New("nvidia-smi: a GPU without index")
	}
	return d, driver, nil
}

// decodeCell puts one value into d and returns it as text.
func decodeCell(d *Device, field, cell string) (string, error) {
	if cell == "" || cell[0] == '[' || cell == "N/A" {
		return "", nil // not told
	}
	var err error
	switch field {
	case "index":
		d.Index, err = whole(cell, 4095)
	case "name":
		d.Name = clean(cell, maxName)
	case "uuid":
		d.UUID = shortUUID(cell)
	case "pci.bus_id":
		d.PCI = shortPCI(cell)
	case "memory.total":
		d.Memory, err = mebibytes(cell)
	case "memory.used":
		d.Used, err = mebibytes(cell)
	case "utilization.gpu":
		d.Utilisation, err = whole(cell, 100)
	case "temperature.gpu":
		d.Temperature, err = whole(cell, 1000)
	case "power.draw":
		d.Power, err = watts(cell)
	case "power.limit":
		d.PowerLimit, err = watts(cell)
	case "pcie.link.gen.current":
		d.LinkGen, err = whole(cell, 100)
	case "pcie.link.width.current":
		d.LinkWidth, err = whole(cell, 1000)
	case "mig.mode.current":
		d.MIG = cell == "Enabled"
	case "compute_cap":
		if versionNo.MatchString(cell) {
			d.Compute = cell
		}
	}
	return clean(cell, maxName), err
}

// lineFault returns the words for "0000:0B:00.0: GPU is lost.  Reboot ..."; some
// drivers write "Unknown Error" instead.
func lineFault(s string) string {
	low := strings.ToLower(s)
	switch {
	case strings.Contains(low, "reset"):
		return resetWords
	case strings.Contains(low, "lost"):
		return lostWords
	}
	if at := strings.LastIndex(s, ": "); at >= 0 {
		s = s[at+2:]
	}
	return "nvidia-smi: " + clean(s, maxDetail)
}

// cellFault returns the words for a value that says the GPU is gone.
func cellFault(cell string) string {
	switch strings.ToLower(strings.Trim(cell, "[]")) {
	case "gpu is lost":
		return lostWords
	case "gpu requires reset":
		return resetWords
	}
	return ""
}

func whole(s string, most int) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || n > uint64(most) {
		return Unknown, fmt.Errorf("want a number up to %d", most)
	}
	return int(n), nil
}

// mebibytes returns bytes, below 2^51.
func mebibytes(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, errors.New("want MiB")
	}
	return n << 20, nil
}

func watts(s string) (float64, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v >= 0 && v < 1e6) {
		return Unknown, errors.New("want watts")
	}
	return v, nil
}

// smiError finds the cause in what nvidia-smi wrote, else in its exit status, which
// its manual lists under "Return value".
func smiError(out []byte, failed *exec.ExitError) *NotFoundError {
	e := &NotFoundError{Detail: "nvidia-smi: " + clean(string(out[:min(len(out), 4*maxDetail)]), maxDetail)}
	code := 0
	if failed != nil {
		code = failed.ExitCode()
	}
	said := func(s string) bool { return bytes.Contains(bytes.ToLower(out), []byte(s)) }
	switch {
	case said("version mismatch"):
		e.Cause = Mismatch
	case said("insufficient permissions"), code == 4:
		e.Cause = NoPermission
	case said("no devices were found"), code == 6:
		e.Cause = NoDevice
	case said("couldn't communicate with the nvidia driver"), said("driver not loaded"), code == 9:
		e.Cause = NoDriver
	case said("couldn't find libnvidia-ml"), code == 12:
		e.Cause = NoLibrary
	case len(bytes.TrimSpace(out)) == 0:
		e.Detail = fmt.Sprintf("nvidia-smi says nothing and ends with status %d", code)
	}
	return e
}
