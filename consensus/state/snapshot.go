package state

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/gonka-mesh/mesh"
)

// Snapshots lie in DIR/snapshots/HEIGHT: a file "metadata" and one for each chunk. They
// are written under another name, which a crash leaves for the next start to remove.

const unfinished = ".tmp"

var errStopped = errors.New("stopped")

func (s *Store) snapshotDir(name ...string) string {
	return s.fs.PathJoin(append([]string{s.cfg.Dir, "snapshots"}, name...)...)
}

// snapshotWhenDue starts a snapshot of the state that was just committed, in the
// background and from a view of it, so that blocks go on. The caller holds s.mu.
func (s *Store) snapshotWhenDue() {
	if s.cfg.SnapshotEvery == 0 || uint64(s.head.height)%s.cfg.SnapshotEvery != 0 || s.taking || !s.calls.enter() {
		return
	}
	s.taking = true
	snap, height := s.db.NewSnapshot(), s.head.height
	go func() {
		defer s.calls.leave()
		err := s.takeSnapshot(snap, height)
		if err != nil && !errors.Is(err, errStopped) {
			s.cfg.Log.Warn("snapshot of the ledger's state", "height", height, "error", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taking = false
	}()
}

// TakeSnapshot makes a snapshot of the committed state now and returns when it is on
// disk.
func (s *Store) TakeSnapshot() error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	s.mu.Lock()
	if s.taking || !s.head.committed {
		defer s.mu.Unlock()
		return fmt.Errorf("snapshot of height %d: there is nothing to take, or one is being taken", s.head.height)
	}
	s.taking = true
	snap, height := s.db.NewSnapshot(), s.head.height
	s.mu.Unlock()
	err := s.takeSnapshot(snap, height)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taking = false
	return err
}

func (s *Store) takeSnapshot(snap *pebble.Snapshot, height mesh.Height) error {
	err := s.log.guard(func() error { return s.writeSnapshot(snap, height) })
	if e := snap.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("snapshot of height %d: %w", height, err)
	}
	return s.dropSnapshots()
}

func (s *Store) writeSnapshot(r reader, height mesh.Height) error {
	name := strconv.FormatUint(uint64(height), 10)
	if _, err := s.fs.Stat(s.snapshotDir(name, "metadata")); err == nil {
		return nil // there is one
	}
	dir := s.snapshotDir(name + unfinished)
	if err := errors.Join(s.fs.RemoveAll(dir), s.fs.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	var chunks []mesh.Hash
	chunk := append(make([]byte, 0, 1<<16), SnapshotFormat)
	flush := func() error {
		if len(chunks) == MaxChunks {
			return errors.New("the state is too large")
		}
		select {
		case <-s.quit:
			return errStopped
		default:
		}
		name := s.fs.PathJoin(dir, strconv.Itoa(len(chunks)))
		chunks = append(chunks, sha256.Sum256(chunk)) // first: a vfs.File may change what it writes
		if err := s.writeFile(name, chunk); err != nil {
			return err
		}
		chunk = append(chunk[:0], SnapshotFormat)
		return nil
	}
	low := []byte{tableFlat}
	err := s.log.scan(r, low, after(low), func(key, value []byte) (bool, error) {
		was := len(chunk)
		if chunk = appendEntry(chunk, key[1:], value); len(chunk) <= MaxChunk {
			return true, nil
		}
		chunk = chunk[:was]
		if err := flush(); err != nil {
			return false, err
		}
		chunk = appendEntry(chunk, key[1:], value)
		return true, nil
	})
	if err == nil {
		err = flush()
	}
	if err == nil {
		err = s.writeFile(s.fs.PathJoin(dir, "metadata"), newSnapshot(height, chunks).Metadata)
	}
	if err != nil {
		return errors.Join(err, s.fs.RemoveAll(dir))
	}
	// The names of the files are on disk before the folder has its name.
	if err := s.syncDir(dir); err != nil {
		return err
	}
	if err := s.fs.Rename(dir, s.snapshotDir(name)); err != nil {
		return err
	}
	return s.syncDir(s.snapshotDir())
}

func (s *Store) writeFile(path string, data []byte) error {
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (s *Store) syncDir(dir string) error {
	d, err := s.fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// heights returns the heights of the snapshots, ascending.
func (s *Store) heights() ([]mesh.Height, error) {
	names, err := s.fs.List(s.snapshotDir())
	if err != nil {
		return nil, err
	}
	var out []mesh.Height
	for _, name := range names {
		h, err := strconv.ParseUint(name, 10, 64)
		if err == nil && strconv.FormatUint(h, 10) == name {
			out = append(out, mesh.Height(h))
		}
	}
	slices.Sort(out)
	return out, nil
}

// dropSnapshots keeps the last few.
func (s *Store) dropSnapshots() error {
	heights, err := s.heights()
	if err != nil {
		return err
	}
	for len(heights) > s.cfg.SnapshotKeep {
		if err := s.removeSnapshot(strconv.FormatUint(uint64(heights[0]), 10)); err != nil {
			return err
		}
		heights = heights[1:]
	}
	return nil
}

// removeSnapshot takes the name away first: half a snapshot is never offered.
func (s *Store) removeSnapshot(name string) error {
	gone := s.snapshotDir(name + unfinished)
	if err := s.fs.RemoveAll(gone); err != nil {
		return err
	}
	if err := s.fs.Rename(s.snapshotDir(name), gone); err != nil {
		return err
	}
	if err := s.syncDir(s.snapshotDir()); err != nil {
		return err
	}
	return s.fs.RemoveAll(gone)
}

// sweepSnapshots removes what a crash left unfinished.
func (s *Store) sweepSnapshots() error {
	if err := errors.Join(s.fs.MkdirAll(s.snapshotDir(), 0o700), s.syncDir(s.cfg.Dir)); err != nil {
		return err
	}
	names, err := s.fs.List(s.snapshotDir())
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, unfinished) {
			if err := s.fs.RemoveAll(s.snapshotDir(name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Snapshots returns those on disk, the newest first. One that cannot be read is left
// out.
func (s *Store) Snapshots() ([]Snapshot, error) {
	heights, err := s.heights()
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var out []Snapshot
	for _, h := range slices.Backward(heights) {
		meta, err := s.readFile(s.snapshotDir(strconv.FormatUint(uint64(h), 10), "metadata"), 8+MaxChunks*len(mesh.Hash{}))
		if err != nil {
			continue // removed meanwhile
		}
		height, chunks, err := decodeMetadata(meta)
		if err != nil || height != h {
			s.cfg.Log.Warn("a snapshot of the ledger's state is damaged", "height", h)
			continue
		}
		out = append(out, newSnapshot(height, chunks))
	}
	return out, nil
}

// LoadChunk reads a chunk of a snapshot, to be sent to somebody who joins.
func (s *Store) LoadChunk(height mesh.Height, format, index uint32) ([]byte, error) {
	if format != SnapshotFormat {
		return nil, fmt.Errorf("snapshot format %d is not known", format)
	}
	dir := strconv.FormatUint(uint64(height), 10)
	b, err := s.readFile(s.snapshotDir(dir, strconv.FormatUint(uint64(index), 10)), MaxChunk)
	if err != nil {
		return nil, fmt.Errorf("read chunk %d of snapshot %d: %w", index, height, err)
	}
	return b, nil
}

func (s *Store) readFile(path string, most int) ([]byte, error) {
	f, err := s.fs.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(b) > most {
		err = errors.New("it is too large")
	}
	return b, errors.Join(err, f.Close())
}
