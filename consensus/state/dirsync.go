package state

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// dirSyncs is a file system for pebble, which panics in a goroutine of its own when a
// folder cannot be synced: nothing that it could do then would be right. Here that
// goroutine ends, the error sticks, and the process lives to say so.
type dirSyncs struct {
	vfs.FS
	log *databaseLog
}

func (d dirSyncs) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return dirFile{f, d.log}, nil
}

// Unwrap returns the file system below, as pebble asks for.
func (d dirSyncs) Unwrap() vfs.FS { return d.FS }

type dirFile struct {
	vfs.File
	log *databaseLog
}

func (f dirFile) Sync() error {
	if err := f.File.Sync(); err != nil {
		f.log.die(fmt.Errorf("sync a folder of the ledger database: %w", err))
	}
	return nil
}
