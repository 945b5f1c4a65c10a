package native

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropPages takes the whole pages of a mapped file within data out of memory.
func dropPages(data []byte) {
	page := os.Getpagesize()
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(data)))) & (page - 1)
	if n := (len(data) - skip) &^ (page - 1); n > 0 {
		// Advice only: where it is refused, the pages stay.
		_ = unix.Madvise(data[skip:skip+n], unix.MADV_DONTNEED)
	}
}

// populate maps the pages of a mapped file before they are touched one by one, in
// large pages where the system keeps the file in such.
func populate(data []byte) {
	_ = unix.Madvise(data, unix.MADV_HUGEPAGE)
	if unix.Madvise(data, unix.MADV_POPULATE_READ) != nil {
		_ = unix.Madvise(data, unix.MADV_WILLNEED)
	}
}
