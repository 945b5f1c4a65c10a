package kernel

import (
	"os"
	"runtime"
	"sync"
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

// arena is the pages that the next weights come from. Weights share them, so that few of them lie in small pages at the
// ends of large ones.
var arena struct {
	sync.Mutex
	*pages     // nil: none
	used   int // of b
}

// arenaSize is reserved at once; what is not used is no memory.
const arenaSize = 256 << 20

// newPages returns n bytes of zeros, in pages of 2 MiB where that is granted: weights are read 8 % faster from them. They
// must not be used without their owner, if there is one.
func newPages(n int) ([]byte, *pages) {
	if n < smallest {
		return make([]byte, n), nil
	}
	b, p := reserve(n)
	if b == nil {
		return make([]byte, n), nil
	}
	_ = unix.Madvise(b[:cap(b)], unix.MADV_POPULATE_WRITE) // at once is quicker than page by page; advice only
	return b, p
}

// reserve returns n bytes that begin at a page and have its end as their capacity; nil where the system has none.
func reserve(n int) ([]byte, *pages) {
	page := os.Getpagesize()
	whole := (n + page - 1) &^ (page - 1)
	arena.Lock()
	defer arena.Unlock()
	if arena.pages == nil || whole > len(arena.b)-arena.used {
		all, err := unix.Mmap(-1, 0, max(whole, arenaSize)+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
		if err != nil {
			return nil, nil
		}
		hugePages(all)
		arena.pages, arena.used = &pages{all}, -int(uintptr(unsafe.Pointer(unsafe.SliceData(all))))&(hugePage-1)
		runtime.AddCleanup(arena.pages, func(b []byte) { _ = unix.Munmap(b) }, all)
	}
	from := arena.used
	arena.used += whole
	return arena.b[from : from+n : from+whole], arena.pages
}

// hugePages asks for pages of 2 MiB. Where it is refused nothing changes.
func hugePages(b []byte) {
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (hugePage - 1)
	if n := (len(b) - skip) &^ (hugePage - 1); n > 0 {
		_ = unix.Madvise(b[skip:skip+n], unix.MADV_HUGEPAGE)
	}
}
