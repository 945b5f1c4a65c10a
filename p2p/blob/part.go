package blob

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
)

// part is a download in progress: the file, as long as the blob from the start,
// and the journal, one byte per chunk, 1 for a chunk that was verified and
// written.
//
// The journal is a hint. After a restart every chunk that it names is hashed
// again, so neither a torn journal, nor a power failure that lost pages of the
// file, nor another program's writes can smuggle in a wrong byte, and nothing has
// to be synced while the download runs. Hashing a chunk again costs a read from
// the local disk, while other chunks come in; leaving one out costs a transfer.
type part struct {
	store   *Store
	root    mesh.Hash
	m       *Manifest
	file    *os.File
	journal *os.File
}

// openPart opens or begins the download of the blob of a checked manifest. The
// caller holds the claim on the root. It returns which chunks the journal names.
func (s *Store) openPart(root mesh.Hash, m *Manifest) (*part, []bool, error) {
	p := &part{store: s, root: root, m: m}
	claimed, err := p.open()
	if err != nil {
		p.close()
		return nil, nil, fmt.Errorf("open partial download of %s: %w", root.Short(), err)
	}
	return p, claimed, nil
}

func (p *part) open() ([]bool, error) {
	s := p.store
	if _, err := s.Manifest(p.root); err != nil {
		if err := s.putManifest(p.root, p.m); err != nil {
			return nil, err
		}
	}
	// A process killed after the last rename but before the entry was written left
	// data instead of data.part.
	if _, err := os.Stat(s.path(p.root, partFile)); errors.Is(err, fs.ErrNotExist) {
		err := os.Rename(s.path(p.root, dataFile), s.path(p.root, partFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	var err error
	if p.file, err = os.OpenFile(s.path(p.root, partFile), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, err
	}
	if err := p.file.Truncate(int64(p.m.Size)); err != nil {
		return nil, err
	}
	if p.journal, err = os.OpenFile(s.path(p.root, journalFile), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, err
	}
	claimed, err := readJournal(p.journal, len(p.m.Chunks))
	if err != nil {
		return nil, err
	}
	return claimed, p.checkSpace()
}

// checkSpace refuses a download that the disk cannot hold before it begins.
func (p *part) checkSpace() error {
	info, err := p.file.Stat()
	if err != nil {
		return err
	}
	return p.store.checkFree(p.m.Size - min(p.m.Size, allocated(info)))
}

func (s *Store) checkFree(need uint64) error {
	free, err := s.free(s.dir)
	if err != nil {
		return fmt.Errorf("ask for free disk space: %w", err)
	}
	if need > free {
		return fmt.Errorf("%w: %d MiB are needed, %d MiB are free", syscall.ENOSPC, need>>20, free>>20)
	}
	return nil
}

// CheckSpace reports whether the disk can hold blobs of these sizes, those apart that
// the store has, whole or in part.
func (s *Store) CheckSpace(sizes map[mesh.Hash]uint64) error {
	need := uint64(0)
	for root, size := range sizes {
		if size > MaxSize || len(sizes) > 1<<16 { // no sum overflows
			return fmt.Errorf("%d blobs, one of %d bytes: the limit is %d", len(sizes), size, uint64(MaxSize))
		}
		if _, err := s.Path(root); err == nil {
			continue
		}
		if info, err := os.Stat(s.path(root, partFile)); err == nil {
			size -= min(size, allocated(info))
		}
		need += size
	}
	return s.checkFree(need)
}

// readJournal returns which of n chunks a journal names. Any bytes will do.
func readJournal(r io.Reader, n int) ([]bool, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return nil, err
	}
	claimed := make([]bool, n)
	for i, v := range b {
		claimed[i] = v == 1
	}
	return claimed, nil
}

// check hashes chunk i as it lies on disk.
func (p *part) check(i int) (bool, error) {
	got, err := hashAt(p.file, p.m.offset(i), p.m.chunkLen(i))
	return err == nil && got == p.m.Chunks[i], err
}

// write stores a verified chunk, then says so in the journal.
func (p *part) write(i int, data []byte) error {
	if _, err := p.store.writeAt(p.file, data, p.m.offset(i)); err != nil {
		return fmt.Errorf("write chunk %d of %s: %w", i, p.root.Short(), err)
	}
	startWriteback(p.file, p.m.offset(i), len(data))
	if _, err := p.store.writeAt(p.journal, []byte{1}, int64(i)); err != nil {
		return fmt.Errorf("write journal of %s: %w", p.root.Short(), err)
	}
	return nil
}

// finish turns the part, all of whose chunks were verified, into a blob. The
// entry is written last: without it the next open starts from the part again.
func (p *part) finish() (string, error) {
	s, path := p.store, p.store.path(p.root, dataFile)
	if err := p.file.Sync(); err != nil {
		return "", fmt.Errorf("finish download of %s: %w", p.root.Short(), err)
	}
	e := entry{Name: p.m.Name, ChunkSize: p.m.ChunkSize, Added: time.Now().UTC().Round(0)}
	info, err := p.file.Stat()
	if err == nil {
		e.identify(info)
		err = os.Rename(s.path(p.root, partFile), path)
	}
	if err == nil {
		err = atomicfile.SyncDir(s.path(p.root, ""))
	}
	if err == nil {
		err = s.putEntry(p.root, e)
	}
	if err == nil {
		err = os.Remove(s.path(p.root, journalFile))
	}
	if err != nil {
		return "", fmt.Errorf("finish download of %s: %w", p.root.Short(), err)
	}
	return path, nil
}

func (p *part) close() {
	for _, f := range []*os.File{p.file, p.journal} {
		if f != nil {
			f.Close()
		}
	}
}
