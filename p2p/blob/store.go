package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// ErrNotFound says that the store has no such blob, or has it no longer.
var ErrNotFound = errors.New("blob not found")

// storeVersion is raised when an older program could not read the folder.
const storeVersion = 1

// Names in the folder of a store: a folder per blob, named by its root.
const (
	versionFile  = "version"
	entryFile    = "entry.json"
	manifestFile = "manifest"
	dataFile     = "data"
	partFile     = "data.part"
	journalFile  = "journal"
	gonePrefix   = "gone-" // a blob being removed
)

// Store keeps blobs in a folder: files that lie elsewhere, by reference, and
// files of its own that were downloaded. One process at a time may use it. Its
// methods may be called concurrently.
type Store struct {
	dir       string
	log       *slog.Logger
	chunkSize uint32
	free      func(dir string) (uint64, error)
	writeAt   func(f *os.File, b []byte, off int64) (int, error)

	mu      sync.Mutex
	entries map[mesh.Hash]entry // guarded by mu
	busy    map[mesh.Hash]bool  // roots being downloaded or added; guarded by mu
}

// Blob describes one complete blob of a store.
type Blob struct {
	Root      mesh.Hash
	Name      string
	Path      string
	Size      uint64 // bytes
	ChunkSize uint32 // bytes
	Owned     bool   // a file of the store, not a reference to one elsewhere
	Added     time.Time
	// Withdrawn says why the blob is not served: its file is missing or changed.
	// It is nil for one that is.
	Withdrawn error
}

// Open opens the store in dir, which it makes when there is none, and finishes
// what a killed process left half done.
func Open(dir string, log *slog.Logger) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		dir: dir, log: log, chunkSize: merkle.ChunkSize, free: diskFree, writeAt: (*os.File).WriteAt,
		entries: make(map[mesh.Hash]entry), busy: make(map[mesh.Hash]bool),
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open blob store %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) load() error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	if err := checkVersion(filepath.Join(s.dir, versionFile)); err != nil {
		return err
	}
	folders, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, folder := range folders {
		if strings.HasPrefix(folder.Name(), gonePrefix) {
			if err := os.RemoveAll(filepath.Join(s.dir, folder.Name())); err != nil {
				return err
			}
			continue
		}
		root, err := mesh.ParseHash(folder.Name())
		if err != nil || !folder.IsDir() {
			continue
		}
		if err := s.tidy(root); err != nil {
			return err
		}
		b, err := os.ReadFile(s.path(root, entryFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		e, err := decodeEntry(b)
		if err != nil {
			s.log.Warn("blob left out: its entry is damaged", "root", root, "err", err)
			continue
		}
		s.entries[root] = e
	}
	return nil
}

// tidy removes what a killed process left in the folder of a blob: files that were
// being written, and the whole folder when it has no bytes of the blob and no entry.
func (s *Store) tidy(root mesh.Hash) error {
	files, err := os.ReadDir(s.path(root, ""))
	if err != nil {
		return err
	}
	worth := false
	for _, f := range files {
		switch name := f.Name(); {
		case strings.HasPrefix(name, "."):
			if err := os.Remove(s.path(root, name)); err != nil {
				return err
			}
		case name == entryFile || name == dataFile || name == partFile:
			worth = true
		}
	}
	if worth {
		return nil
	}
	return os.RemoveAll(s.path(root, ""))
}

// Sweep removes the complete blobs that keep does not want: who uses a store may have
// been killed between forgetting a blob and Remove. Call it at start.
func (s *Store) Sweep(keep func(root mesh.Hash) bool) error {
	for _, b := range s.List() {
		if keep(b.Root) {
			continue
		}
		s.log.Info("blob removed that nothing uses", "root", b.Root, "name", b.Name)
		if err := s.Remove(b.Root); err != nil {
			return err
		}
	}
	return nil
}

func checkVersion(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return atomicfile.Write(path, []byte(strconv.Itoa(storeVersion)+"\n"), 0o644)
	}
	if err != nil {
		return err
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || v < 1 {
		return fmt.Errorf("%s is damaged, it has %.20q: delete it, it is made anew", path, b)
	}
	if v > storeVersion {
		return fmt.Errorf("its version is %d, this program reads up to %d: use the program that made it, or another home", v, storeVersion)
	}
	return nil
}

func (s *Store) path(root mesh.Hash, name string) string {
	return filepath.Join(s.dir, root.String(), name)
}

func (s *Store) dataPath(root mesh.Hash, e entry) string {
	if e.Path != "" {
		return e.Path
	}
	return s.path(root, dataFile)
}

// Add hashes a file and offers it by reference: the file stays where it is, and is
// withdrawn as soon as it changes. progress, when not nil, is called with bytes.
func (s *Store) Add(ctx context.Context, path string, progress func(done, total uint64)) (mesh.Hash, error) {
	return s.add(path, func(f *os.File, e entry) ([]mesh.Hash, error) {
		var report func(uint64)
		if progress != nil {
			report = func(done uint64) { progress(done, e.Size) }
		}
		return hashChunks(ctx, f, e.Size, e.ChunkSize, report)
	})
}

// AddHashed is Add for a file whose chunks, of merkle.ChunkSize bytes, the caller has
// hashed while its time of modification was this one: it is not read again.
func (s *Store) AddHashed(path string, modified time.Time, chunks []mesh.Hash) (mesh.Hash, error) {
	return s.add(path, func(_ *os.File, e entry) ([]mesh.Hash, error) {
		if e.MTime != modified.UnixNano() {
			return nil, errors.New("the file changed since it was hashed")
		}
		if e.ChunkSize != merkle.ChunkSize || uint64(len(chunks)) != merkle.Chunks(e.Size, e.ChunkSize) {
			return nil, fmt.Errorf("%d hashes do not fit a file of %d bytes", len(chunks), e.Size)
		}
		return slices.Clone(chunks), nil
	})
}

func (s *Store) add(path string, hash func(*os.File, entry) ([]mesh.Hash, error)) (mesh.Hash, error) {
	root, err := s.enter(path, hash)
	if err != nil {
		return mesh.Hash{}, fmt.Errorf("add %s: %w", path, err)
	}
	return root, nil
}

func (s *Store) enter(path string, hash func(*os.File, entry) ([]mesh.Hash, error)) (mesh.Hash, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return mesh.Hash{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return mesh.Hash{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return mesh.Hash{}, err
	}
	if !info.Mode().IsRegular() {
		return mesh.Hash{}, errors.New("not a regular file")
	}
	e := entry{Name: cleanName(filepath.Base(path)), Path: path, ChunkSize: s.chunkSize, Added: time.Now().UTC().Round(0)}
	e.identify(info)
	if err := checkShape(e.Size, e.ChunkSize); err != nil {
		return mesh.Hash{}, err
	}
	if root, ok := s.known(e); ok {
		return root, nil
	}
	m := &Manifest{Size: e.Size, ChunkSize: e.ChunkSize, Name: e.Name}
	if m.Chunks, err = hash(f, e); err != nil {
		return mesh.Hash{}, err
	}
	if info, err = f.Stat(); err != nil {
		return mesh.Hash{}, err
	}
	if !e.same(info) {
		return mesh.Hash{}, errors.New("the file changed while it was read")
	}
	root := m.Root()
	return root, s.reference(root, m, e)
}

// known returns the root of a file that was added before and is still the same.
func (s *Store) known(e entry) (mesh.Hash, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for root, old := range s.entries {
		if old.Path != e.Path || old.ChunkSize != e.ChunkSize || old.Size != e.Size || old.MTime != e.MTime || old.Inode != e.Inode {
			continue
		}
		if _, err := s.Manifest(root); err == nil {
			return root, true
		}
	}
	return mesh.Hash{}, false
}

// reference records a hashed file, unless the store has the blob as a file of its own.
func (s *Store) reference(root mesh.Hash, m *Manifest, e entry) error {
	if err := s.claim(root); err != nil {
		return err
	}
	defer s.release(root)
	if old, err := s.blob(root); err == nil && old.Owned && old.Withdrawn == nil {
		return nil
	}
	if err := s.putManifest(root, m); err != nil {
		return err
	}
	return s.putEntry(root, e)
}

// claim reserves a root for one writer; release ends it.
func (s *Store) claim(root mesh.Hash) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[root] {
		return fmt.Errorf("blob %s is in use: it is being downloaded, added or removed", root.Short())
	}
	s.busy[root] = true
	return nil
}

func (s *Store) release(root mesh.Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, root)
}

func (s *Store) putManifest(root mesh.Hash, m *Manifest) error {
	if err := os.MkdirAll(s.path(root, ""), 0o755); err != nil {
		return err
	}
	if err := atomicfile.SyncDir(s.dir); err != nil {
		return err
	}
	b, err := proto.Marshal(m.message())
	if err != nil {
		return err
	}
	return atomicfile.Write(s.path(root, manifestFile), b, 0o644)
}

func (s *Store) putEntry(root mesh.Hash, e entry) error {
	b, err := encodeEntry(e)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(s.path(root, entryFile), b, 0o644); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[root] = e
	return nil
}

// Manifest returns the manifest of a blob that is complete or being downloaded.
func (s *Store) Manifest(root mesh.Hash) (*Manifest, error) {
	b, err := os.ReadFile(s.path(root, manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("manifest of %s: %w", root.Short(), ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return decodeManifest(b, root)
}

// open opens the file of a blob, provided that it is the one that was hashed.
func (s *Store) open(root mesh.Hash) (*os.File, entry, error) {
	s.mu.Lock()
	e, ok := s.entries[root]
	s.mu.Unlock()
	if !ok {
		return nil, e, ErrNotFound
	}
	f, err := os.Open(s.dataPath(root, e))
	if err != nil {
		return nil, e, err
	}
	info, err := f.Stat()
	if err == nil && !e.same(info) {
		err = errChanged
	}
	if err != nil {
		f.Close()
		return nil, e, err
	}
	return f, e, nil
}

func (s *Store) blob(root mesh.Hash) (Blob, error) {
	s.mu.Lock()
	e, ok := s.entries[root]
	s.mu.Unlock()
	if !ok {
		return Blob{}, fmt.Errorf("blob %s: %w", root.Short(), ErrNotFound)
	}
	b := Blob{Root: root, Name: e.Name, Path: s.dataPath(root, e), Size: e.Size, ChunkSize: e.ChunkSize,
		Owned: e.Path == "", Added: e.Added}
	info, err := os.Stat(b.Path)
	if err == nil && !e.same(info) {
		err = errChanged
	}
	b.Withdrawn = err
	return b, nil
}

// List returns the complete blobs, the oldest first.
func (s *Store) List() []Blob {
	s.mu.Lock()
	roots := make([]mesh.Hash, 0, len(s.entries))
	for root := range s.entries {
		roots = append(roots, root)
	}
	s.mu.Unlock()
	var out []Blob
	for _, root := range roots {
		if b, err := s.blob(root); err == nil {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(a, b Blob) int {
		if c := a.Added.Compare(b.Added); c != 0 {
			return c
		}
		return slices.Compare(a.Root[:], b.Root[:])
	})
	return out
}

// Path returns where the blob lies as one file. It fails when the file is missing
// or changed.
func (s *Store) Path(root mesh.Hash) (string, error) {
	b, err := s.blob(root)
	if err != nil {
		return "", err
	}
	if b.Withdrawn != nil {
		return "", fmt.Errorf("blob %s: %s: %w", root.Short(), b.Path, b.Withdrawn)
	}
	return b.Path, nil
}

// Verify reads the whole blob and compares it with its manifest.
func (s *Store) Verify(ctx context.Context, root mesh.Hash, progress func(done, total uint64)) error {
	m, err := s.Manifest(root)
	if err != nil {
		return err
	}
	f, e, err := s.open(root)
	if err != nil {
		return fmt.Errorf("verify blob %s: %w", root.Short(), err)
	}
	defer f.Close()
	var report func(uint64)
	if progress != nil {
		report = func(done uint64) { progress(done, e.Size) }
	}
	chunks, err := hashChunks(ctx, f, m.Size, m.ChunkSize, report)
	if err != nil {
		return fmt.Errorf("verify blob %s: %w", root.Short(), err)
	}
	for i := range chunks {
		if chunks[i] != m.Chunks[i] {
			return fmt.Errorf("verify blob %s: chunk %d of %s is damaged", root.Short(), i, f.Name())
		}
	}
	return nil
}

// Remove forgets a blob and deletes what the store itself holds of it, a partial
// download too. A file that was added by reference stays.
func (s *Store) Remove(root mesh.Hash) error {
	if err := s.claim(root); err != nil {
		return err
	}
	defer s.release(root)
	// One rename is the commit point; Open finishes a deletion that was cut short.
	gone := filepath.Join(s.dir, gonePrefix+root.String())
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove blob %s: %w", root.Short(), err)
	}
	err := os.Rename(s.path(root, ""), gone)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove blob %s: %w", root.Short(), ErrNotFound)
	}
	if err == nil {
		s.mu.Lock()
		delete(s.entries, root)
		s.mu.Unlock()
		err = errors.Join(atomicfile.SyncDir(s.dir), os.RemoveAll(gone))
	}
	if err != nil {
		return fmt.Errorf("remove blob %s: %w", root.Short(), err)
	}
	return nil
}
