package blob

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// entry is what the store knows of a complete blob. Its file is the commit point:
// a folder without one holds no blob, at most a part of one.
type entry struct {
	Name      string    `json:"name"`
	Path      string    `json:"path,omitempty"` // absolute; empty for a file of the store's own
	Size      uint64    `json:"size"`
	ChunkSize uint32    `json:"chunk_size"`
	MTime     int64     `json:"mtime_ns"`
	Inode     uint64    `json:"inode"`
	Added     time.Time `json:"added"`
}

const maxEntry = 64 << 10

func decodeEntry(b []byte) (entry, error) {
	var e entry
	if len(b) > maxEntry {
		return e, fmt.Errorf("entry of %d bytes", len(b))
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return e, err
	}
	if e.Path != "" && !filepath.IsAbs(e.Path) {
		return e, fmt.Errorf("path %q is not absolute", e.Path)
	}
	return e, checkShape(e.Size, e.ChunkSize)
}

func encodeEntry(e entry) ([]byte, error) { return json.Marshal(e) }

// errChanged says that a file is no longer the one that was hashed.
var errChanged = errors.New("the file changed since it was added")

// identify notes which file this is, so that same can tell later.
func (e *entry) identify(info os.FileInfo) {
	e.Size, e.MTime = uint64(info.Size()), info.ModTime().UnixNano()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		e.Inode = st.Ino
	}
}

func (e *entry) same(info os.FileInfo) bool {
	seen := *e
	seen.identify(info)
	return info.Mode().IsRegular() && seen == *e
}

// allocated returns how many bytes of the disk a sparse file takes already.
func allocated(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Blocks) * 512
	}
	return 0
}

// diskFree returns how many bytes an ordinary user may still write under dir.
func diskFree(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}
