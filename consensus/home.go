package consensus

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// homeLock holds a folder for one process; it goes with the process.
type homeLock struct{ f *os.File }

func lockHome(path string) (*homeLock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the ledger's folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("the ledger's folder is in use by another process (%s); two nodes with one key would be slashed for signing twice", path)
		}
		return nil, fmt.Errorf("lock the ledger's folder: %w", err)
	}
	return &homeLock{f}, nil
}

func (l *homeLock) Close() error { return l.f.Close() }

// freeSpace returns the bytes that this user may still write on a folder's disk.
func freeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for the free space of %s: %w", dir, err)
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}
