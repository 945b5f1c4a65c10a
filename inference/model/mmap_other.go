//go:build !linux && !darwin

package model

import "os"

// mapFile reads the file: large allocations start on a page, so tensors are as
// aligned as they would be in a mapping.
func mapFile(path string) (data []byte, mapped bool, err error) {
	data, err = os.ReadFile(path)
	return data, false, err
}

func unmap([]byte) error { return nil }
