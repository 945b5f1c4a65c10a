// Package atomicfile writes files that survive the death of the process or the power
// at any moment: after it there is the old content or the new, and no mixture.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// Write replaces a file, or makes it.
func Write(path string, data []byte, mode os.FileMode) error {
	return put(path, writing(data), mode, os.Rename)
}

// WriteFunc replaces a file, or makes it, with what write puts into it.
func WriteFunc(path string, mode os.FileMode, write func(f *os.File) error) error {
	return put(path, write, mode, os.Rename)
}

// Create makes a file that must not be there yet; else the error is fs.ErrExist.
func Create(path string, data []byte, mode os.FileMode) error {
	return put(path, writing(data), mode, os.Link) // unlike Rename, Link never replaces
}

func writing(data []byte) func(f *os.File) error {
	return func(f *os.File) error {
		_, err := f.Write(data)
		return err
	}
}

// put writes a file beside path, with its content on disk, and gives it the name.
func put(path string, write func(f *os.File) error, mode os.FileMode, name func(from, to string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // see unfinished
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after a rename there is none
	if err = errors.Join(write(f), f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := name(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// unfinished matches the names of files that have not got theirs yet.
var unfinished = regexp.MustCompile(`^\.(.+)\.[0-9]+$`)

// Unfinished returns the name that a half written file was to have; empty: name is none of
// such a file.
func Unfinished(name string) string {
	if m := unfinished.FindStringSubmatch(name); m != nil {
		return m[1]
	}
	return ""
}

// Sweep removes what killed processes left unfinished in a folder, if it is there.
// Nobody may write in it meanwhile.
func Sweep(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range files {
		if f.Type().IsRegular() && Unfinished(f.Name()) != "" {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// SyncDir puts the names in a folder on disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
