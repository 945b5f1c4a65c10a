//go:build linux || darwin

package model

import (
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// mapFile maps a regular file read-only.
func mapFile(path string) (data []byte, mapped bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, false, errors.New("not a regular file")
	case info.Size() == 0:
		return nil, false, errors.New("the file is empty")
	case info.Size() > math.MaxInt:
		return nil, false, fmt.Errorf("%d bytes do not fit the address space", info.Size())
	}
	data, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, false, fmt.Errorf("map: %w", err)
	}
	return data, true, nil
}

func unmap(data []byte) error { return unix.Munmap(data) }
