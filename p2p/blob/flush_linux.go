package blob

import (
	"os"
	"syscall"
)

// startWriteback tells the kernel to begin writing a range to the disk, and does
// not wait for it. Without it a fast download leaves all of its disk time to the
// sync at the end. It is a wish only, so errors do not matter.
func startWriteback(f *os.File, off int64, n int) {
	const write = 2 // SYNC_FILE_RANGE_WRITE
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { syscall.SyncFileRange(int(fd), off, int64(n), write) })
	}
}
