package native

import (
	"os"
	"slices"
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

// populatePiece is mapped at once: while it is, nothing else can map memory, Go's heap
// included.
const populatePiece = 16 << 20

// populate maps the pages of a mapped file before they are touched one by one, in
// large pages where the system keeps the file in such.
func populate(data []byte) {
	_ = unix.Madvise(data, unix.MADV_HUGEPAGE)
	for piece := range slices.Chunk(data, populatePiece) {
		if unix.Madvise(piece, unix.MADV_POPULATE_READ) != nil {
			_ = unix.Madvise(data, unix.MADV_WILLNEED)
			return
		}
	}
}
