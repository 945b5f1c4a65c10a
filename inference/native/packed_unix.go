//go:build linux || darwin

package native

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const canMap = true

// fileIdentity tells whether a file is the one that was written.
type fileIdentity struct {
	inode uint64
	time  int64 // of modification, ns
	size  int64
}

func identify(f *os.File) (fileIdentity, error) {
	info, err := f.Stat()
	if err != nil {
		return fileIdentity{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return fileIdentity{}, errors.New("not a regular file")
	}
	return fileIdentity{uint64(st.Ino), info.ModTime().UnixNano(), info.Size()}, nil
}

// mapPacked maps a file read-only.
func mapPacked(path string) ([]byte, fileIdentity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileIdentity{}, err
	}
	defer f.Close()
	own, err := identify(f)
	if err == nil && (own.size < int64(packedPrefix) || int64(int(own.size)) != own.size) {
		err = errors.New("not a file of packed weights")
	}
	if err != nil {
		return nil, own, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(own.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, own, os.NewSyscallError("mmap", err)
	}
	return data, own, nil
}

func unmapPacked(data []byte) { _ = unix.Munmap(data) }

// diskFree returns the bytes that a folder's disk has left for this user.
func diskFree(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, os.NewSyscallError("statfs", err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}
