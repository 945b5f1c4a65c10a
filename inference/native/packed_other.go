//go:build !linux && !darwin

package native

import (
	"errors"
	"os"
)

// canMap is false where weights are packed at every start.
const canMap = false

type fileIdentity struct {
	inode uint64
	time  int64
}

func identify(*os.File) (fileIdentity, error) { return fileIdentity{}, errors.ErrUnsupported }

func mapPacked(string) ([]byte, fileIdentity, error) {
	return nil, fileIdentity{}, errors.ErrUnsupported
}

func unmapPacked([]byte) {}

func diskFree(string) (uint64, error) { return 0, errors.ErrUnsupported }
