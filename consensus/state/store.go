// Package state is the ledger's state on disk: one pebble database per node, which
// also holds CometBFT's blocks.
//
// All of the state lies flat, so that reads are one look-up and tables iterate in
// order. What light peers can have proven is in a sparse Merkle tree as well (package
// proof), the rest in a lattice hash; both make the app hash, which depends on the
// entries alone. A block is one batch with one fsync: flat entries, pages of the tree,
// what they replaced, and the height. So a crash leaves the state of one block or of
// the next, and there is nothing to repair.
package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/state/proof"
)

// Version is the version of what is on disk; a newer one is refused.
const Version = 1

// Config says where the state is and how much of the past it keeps.
type Config struct {
	Dir    string       // of the database
	Memory bool         // keep everything in memory, for tests and simulations
	Log    *slog.Logger // default: slog.Default()

	// Keep is how many heights before the last one entries can be proven for. Default 256.
	Keep uint64
	// SnapshotEvery is how many blocks lie between two snapshots for those who join.
	// Default 0: none.
	SnapshotEvery uint64
	// SnapshotKeep is how many snapshots are kept. Default 2.
	SnapshotKeep int

	fs vfs.FS // a test's file system
}

// ErrClosed is the error of whatever is asked of a store after Close.
var ErrClosed = errors.New("the ledger's state is closed")

var _ ledger.Reader = (*Store)(nil)

// Store is the state of the ledger. Stage and Commit are for one caller, the one that
// applies blocks; everything else may be called at the same time.
type Store struct {
	cfg Config
	fs  vfs.FS
	db  *pebble.DB
	log *databaseLog

	cache *cache

	mu      sync.Mutex // guards the fields below
	head    head
	staged  *staged
	taking  bool     // a snapshot is being written
	restore *Restore // in progress

	calls gate
	quit  chan struct{}
}

// head is the record of the last committed state.
type head struct {
	committed bool // false: nothing was ever committed
	height    mesh.Height
	oldest    mesh.Height // the first height that can be proven
	root      mesh.Hash   // of the tree
	flat      mesh.Hash   // hash of the lattice
}

func (h head) appHash() mesh.Hash { return proof.AppHash(h.root, h.flat) }

var (
	keyVersion = []byte{tableMeta, 'v'}
	keyHead    = []byte{tableMeta, 'h'}
	keyRestore = []byte{tableMeta, 'r'}
)

const headSize = 8 + 8 + 32 + 32 + latticeSize

func (h head) encode(l *lattice) []byte {
	out := make([]byte, 0, headSize)
	out = binary.BigEndian.AppendUint64(out, uint64(h.height))
	out = binary.BigEndian.AppendUint64(out, uint64(h.oldest))
	out = append(out, h.root[:]...)
	out = append(out, h.flat[:]...)
	return l.append(out)
}

// readHead reads the record of the committed state and its lattice.
func (l *databaseLog) readHead(r reader) (head, *lattice, error) {
	b, err := l.get(r, keyHead)
	if err != nil {
		return head{}, nil, err
	}
	var sum lattice
	if b == nil {
		return head{flat: sum.hash()}, &sum, nil
	}
	if len(b) != headSize {
		return head{}, nil, fmt.Errorf("ledger database: the record of its state has %d bytes, not %d", len(b), headSize)
	}
	h := head{committed: true, height: mesh.Height(binary.BigEndian.Uint64(b)), oldest: mesh.Height(binary.BigEndian.Uint64(b[8:]))}
	copy(h.root[:], b[16:])
	copy(h.flat[:], b[48:])
	sum.decode(b[80:])
	if h.flat != sum.hash() {
		return head{}, nil, errors.New("ledger database: the record of its state is damaged")
	}
	return h, &sum, nil
}

// Damaged reports whether an error says that the database on disk is not what was written.
func Damaged(err error) bool { return pebble.IsCorruptionError(err) }

// Open opens the state, or makes an empty one.
func Open(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Keep == 0 {
		cfg.Keep = 256
	}
	if cfg.SnapshotKeep == 0 {
		cfg.SnapshotKeep = 2
	}
	fs := cfg.fs
	switch {
	case fs != nil:
	case cfg.Memory:
		fs = vfs.NewMem()
	default:
		fs = vfs.Default
	}
	if cfg.Dir == "" {
		if !cfg.Memory {
			return nil, errors.New("open ledger state: no folder was named")
		}
		cfg.Dir = "/ledger"
	}
	s := &Store{cfg: cfg, fs: fs, log: newDatabaseLog(cfg.Log), cache: newCache(entryCache), quit: make(chan struct{})}
	s.calls.init()
	if err := fs.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open ledger state: %w", err)
	}
	var err error
	if s.db, err = openPebble(fs.PathJoin(cfg.Dir, "db"), fs, s.log); err != nil {
		return nil, err
	}
	// The folders' names are on disk before the first block: else a power cut would
	// take them, and it, away.
	for _, dir := range []string{fs.PathDir(cfg.Dir), cfg.Dir} {
		if err := s.syncDir(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("open ledger state %s: %w", cfg.Dir, err), closePebble(s.db, s.log))
		}
	}
	if err := s.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("open ledger state %s: %w", cfg.Dir, err), closePebble(s.db, s.log))
	}
	return s, nil
}

// start checks the version, ends what a crash interrupted, and reads the head.
func (s *Store) start() error {
	v, err := s.log.get(s.db, keyVersion)
	switch {
	case err != nil:
		return err
	case v == nil:
		if err := s.write(func(b *pebble.Batch) error {
			return b.Set(keyVersion, binary.BigEndian.AppendUint64(nil, Version), nil)
		}); err != nil {
			return err
		}
	case len(v) != 8:
		return errors.New("the version record is damaged")
	case binary.BigEndian.Uint64(v) > Version:
		return fmt.Errorf("it has version %d and this program knows %d: use a newer one", binary.BigEndian.Uint64(v), Version)
	}
	restoring, err := s.log.get(s.db, keyRestore)
	if err != nil {
		return err
	}
	if restoring != nil { // it never came to its end
		if err := s.write(wipe); err != nil {
			return err
		}
	}
	if err := s.sweepSnapshots(); err != nil {
		return err
	}
	s.head, _, err = s.log.readHead(s.db)
	return err
}

// write commits a batch with an fsync.
func (s *Store) write(fill func(b *pebble.Batch) error) error {
	return s.log.guard(func() error {
		b := s.db.NewBatch()
		if err := fill(b); err != nil {
			return errors.Join(err, b.Close())
		}
		return s.log.io("write", errors.Join(b.Commit(pebble.Sync), b.Close()))
	})
}

// Close closes the database after the calls that are under way. What was staged and
// not committed is dropped.
func (s *Store) Close() error {
	if !s.calls.shut() {
		return nil
	}
	close(s.quit)
	s.calls.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.log.guard(s.dropStaged)
	return errors.Join(err, closePebble(s.db, s.log))
}

// Err returns the first error of the database, which stays. Readers have no errors of
// their own: whoever applies a block asks here before it is committed.
func (s *Store) Err() error {
	if err := s.log.err(); err != nil || s.calls.open() {
		return err
	}
	return ErrClosed
}

// Height returns the height of the last committed state, 0 when there is none.
func (s *Store) Height() mesh.Height {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head.height
}

// AppHash returns the app hash of the last committed state.
func (s *Store) AppHash() mesh.Hash {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head.appHash()
}

// Get implements ledger.Reader over the last committed state.
func (s *Store) Get(key []byte) []byte {
	if !s.calls.enter() {
		return nil
	}
	defer s.calls.leave()
	v, _ := s.read(flatKey(key)) // the error sticks
	return v
}

// Iterate implements ledger.Reader over the last committed state.
func (s *Store) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	if !s.calls.enter() {
		return
	}
	defer s.calls.leave()
	s.log.entries(s.db, prefix, fn)
}

// read returns the committed value of a key of the database, nil when absent.
func (s *Store) read(key []byte) ([]byte, error) {
	v, known, version := s.cache.get(key)
	if known {
		return v, nil
	}
	v, err := s.log.get(s.db, key)
	if err == nil {
		s.cache.put(key, v, version)
	}
	return v, err
}

func flatKey(key []byte) []byte {
	out := make([]byte, 0, 1+len(key))
	return append(append(out, tableFlat), key...)
}

// entry reads an entry of the state.
func (l *databaseLog) entry(r reader, key []byte) []byte {
	v, _ := l.get(r, flatKey(key)) // the error sticks
	return v
}

// entries reads the entries of the state with a prefix.
func (l *databaseLog) entries(r reader, prefix []byte, fn func(key, value []byte) bool) {
	l.entriesFrom(r, prefix, prefix, fn)
}

// entriesFrom begins at a key instead of the first one with the prefix.
func (l *databaseLog) entriesFrom(r reader, prefix, from []byte, fn func(key, value []byte) bool) {
	_ = l.scan(r, flatKey(from), after(flatKey(prefix)), func(key, value []byte) (bool, error) {
		return fn(key[1:], value), nil
	}) // the error sticks
}
