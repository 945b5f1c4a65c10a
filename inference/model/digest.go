package model

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// Digest holds the hashes by which a file is named and checked: of the whole file
// and of each chunk of merkle.ChunkSize bytes.
type Digest struct {
	SHA256 mesh.Hash   `json:"sha256"`
	Size   uint64      `json:"size"`
	Chunks []mesh.Hash `json:"chunks"`

	Modified time.Time `json:"-"` // the file, when it was hashed
}

// Root returns the chunk root.
func (d *Digest) Root() mesh.Hash { return merkle.ChunkRoot(d.Size, merkle.ChunkSize, d.Chunks) }

// digestBytes hashes data on all cores; the whole-file hash is one sequence, so
// that is what the time of a large file is. progress is called with the bytes done.
func digestBytes(ctx context.Context, data []byte, progress func(done int64)) (*Digest, error) {
	n := merkle.Chunks(uint64(len(data)), merkle.ChunkSize)
	d := &Digest{Size: uint64(len(data)), Chunks: make([]mesh.Hash, n)}
	chunk := func(i int) []byte {
		from := i * merkle.ChunkSize
		return data[from:min(from+merkle.ChunkSize, len(data))]
	}
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), int(n)) {
		wg.Go(func() {
			for i := range next {
				d.Chunks[i] = sha256.Sum256(chunk(i))
			}
		})
	}
	whole := sha256.New()
	// The whole-file hash follows right behind, while the chunk is in memory.
	hashed := make(chan struct{}, 1)
	todo := make(chan int, 64)
	go func() {
		for i := range todo {
			whole.Write(chunk(i))
			progress(int64(min((i+1)*merkle.ChunkSize, len(data))))
		}
		hashed <- struct{}{}
	}()
	for i := 0; i < int(n) && ctx.Err() == nil; i++ {
		next <- i
		todo <- i
	}
	close(next)
	close(todo)
	wg.Wait()
	<-hashed
	whole.Sum(d.SHA256[:0])
	return d, ctx.Err()
}

// identity tells whether a file is the one that was hashed before.
type identity struct {
	Size   int64  `json:"size"`
	Time   int64  `json:"mtime_ns"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

type cacheEntry struct {
	File   identity `json:"file"`
	Digest Digest   `json:"digest"`
}

// cacheFile is the content of a digest cache. Version is for future readers.
type cacheFile struct {
	Version int          `json:"version"`
	Entries []cacheEntry `json:"entries"`
}

const (
	cacheVersion    = 1
	maxCacheEntries = 256
)

// digest returns the hashes of the file. A large file is hashed once: the result is
// kept in the file cache, under size, modification time and inode. An empty cache
// means none. A cache that cannot be read counts as empty; one that cannot be
// written is an error.
func (f *part) digest(ctx context.Context, cache string, progress func(done int64)) (*Digest, error) {
	if f.path == "" || cache == "" {
		return digestBytes(ctx, f.data, progress)
	}
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, fmt.Errorf("hash model: %w", err)
	}
	id, known := identify(info)
	known = known && id.Size == int64(len(f.data))
	entries := readCache(cache)
	for i := range entries {
		if known && entries[i].File == id {
			entries[i].Digest.Modified = info.ModTime()
			return &entries[i].Digest, nil
		}
	}
	d, err := digestBytes(ctx, f.data, progress)
	if d.Modified = info.ModTime(); err != nil || !known {
		return d, err
	}
	// A file that changed while it was read must not be remembered.
	if info, err = os.Stat(f.path); err != nil {
		return nil, fmt.Errorf("hash model: %w", err)
	}
	if again, _ := identify(info); again != id {
		return nil, fmt.Errorf("hash model %s: the file changes", f.path)
	}
	// What the same inode held before is gone.
	entries = slices.DeleteFunc(readCache(cache), func(e cacheEntry) bool {
		return e.File.Device == id.Device && e.File.Inode == id.Inode
	})
	entries = append(entries, cacheEntry{id, *d})
	if len(entries) > maxCacheEntries {
		entries = entries[len(entries)-maxCacheEntries:]
	}
	if err := writeCache(cache, entries); err != nil {
		return nil, fmt.Errorf("remember hash of model: %w", err)
	}
	return d, nil
}

func readCache(path string) []cacheEntry {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var c cacheFile
	if json.Unmarshal(b, &c) != nil || c.Version != cacheVersion {
		return nil
	}
	for i := range c.Entries {
		d := &c.Entries[i].Digest
		if uint64(len(d.Chunks)) != merkle.Chunks(d.Size, merkle.ChunkSize) {
			return nil
		}
	}
	return c.Entries
}

// writeCache replaces the cache in one step, so that a crash leaves the old one.
func writeCache(path string, entries []cacheEntry) error {
	b, err := json.Marshal(cacheFile{cacheVersion, entries})
	if err != nil {
		return err
	}
	// Another version's cache is its own affair: it is left alone.
	if old, err := os.ReadFile(path); err == nil {
		var c cacheFile
		if json.Unmarshal(old, &c) == nil && c.Version > cacheVersion {
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return atomicfile.Write(path, b, 0o600)
}
