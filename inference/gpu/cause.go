package gpu

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Cause says why no GPU was found.
type Cause int

// The causes. Only NoDevice is a machine as it should be.
const (
	Failed       Cause = iota // an error that has no name here
	NoDevice                  // there is no NVIDIA GPU
	NoDriver                  // the kernel runs no NVIDIA driver
	NoLibrary                 // neither NVML nor nvidia-smi is installed
	NoPermission              // the user may not open the devices
	Mismatch                  // library and kernel module are of different versions
	Silent                    // the driver does not answer
)

// NotFoundError reports that there is no GPU to look at, and why.
type NotFoundError struct {
	Cause  Cause
	Detail string // what was asked and what it said; may be empty
}

func (e *NotFoundError) Error() string {
	s := "no GPU found: " + e.Cause.String()
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	return s
}

func (c Cause) String() string {
	switch c {
	case NoDevice:
		return "no NVIDIA GPU in this machine"
	case NoDriver:
		return "the NVIDIA driver is not loaded"
	case NoLibrary:
		return "neither the NVML library nor nvidia-smi is here"
	case NoPermission:
		return "no permission to use the GPU"
	case Mismatch:
		return "NVIDIA's library and kernel module are of different versions"
	case Silent:
		return "the NVIDIA driver does not answer"
	}
	return "the NVIDIA driver reports an error"
}

// Remedy says what to do; empty where nothing is amiss.
func (e *NotFoundError) Remedy() string {
	switch e.Cause {
	case NoDevice:
		return ""
	case NoDriver:
		return "install the NVIDIA driver, or load it: sudo modprobe nvidia"
	case NoLibrary:
		return "install the NVIDIA driver with nvidia-smi; start a container with --gpus all"
	case NoPermission:
		return "let your user read and write /dev/nvidia*, often through the group video or render"
	case Mismatch:
		return "reboot: the driver was upgraded while the old one runs"
	}
	return "see what nvidia-smi and dmesg say; a reboot often helps"
}

// surroundings is what the system itself knows about NVIDIA GPUs.
type surroundings struct {
	bus    bool // the PCI bus can be looked at
	onBus  int  // NVIDIA display and 3D controllers on it
	module bool // the kernel module is loaded
}

// lookAround reads /sys and /proc, where they exist.
func lookAround(root fs.FS) surroundings {
	var s surroundings
	const pci = "sys/bus/pci/devices"
	entries, err := fs.ReadDir(root, pci)
	s.bus = err == nil
	for _, e := range entries {
		// Classes of the PCI code list: 0x0300 VGA, 0x0302 3D controller.
		if word(root, path.Join(pci, e.Name(), "vendor")) == "0x10de" && strings.HasPrefix(word(root, path.Join(pci, e.Name(), "class")), "0x03") {
			s.onBus++
		}
	}
	_, err = fs.Stat(root, "proc/driver/nvidia/version")
	s.module = err == nil
	return s
}

func word(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// within reads a missing library or driver in the light of the machine around it.
func (e *NotFoundError) within(s surroundings) *NotFoundError {
	if e.Cause != NoLibrary && e.Cause != NoDriver {
		return e
	}
	switch {
	case s.module && e.Cause == NoLibrary:
		return &NotFoundError{Cause: NoLibrary, Detail: "the kernel runs the NVIDIA driver; is this a container without --gpus?"}
	case s.module:
		return e
	case s.onBus > 0:
		return &NotFoundError{Cause: NoDriver, Detail: fmt.Sprintf("NVIDIA devices on the PCI bus: %d", s.onBus)}
	case s.bus:
		return &NotFoundError{Cause: NoDevice}
	}
	return e
}
