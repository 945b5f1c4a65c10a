//go:build !linux

package node

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// residentMemory returns what the Go runtime holds: this system does not tell the
// resident set without cgo.
func residentMemory() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys - m.HeapReleased)
}

// totalMemory returns the memory of the machine in bytes, 0 if unknown.
func totalMemory() int64 {
	n, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 0
	}
	return int64(n)
}

// DropStartPages does nothing here.
func DropStartPages() {}
