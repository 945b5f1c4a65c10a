//go:build unix

package model

import (
	"io/fs"
	"syscall"
)

func identify(info fs.FileInfo) (identity, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, false
	}
	return identity{info.Size(), info.ModTime().UnixNano(), uint64(st.Dev), uint64(st.Ino)}, true
}
