// Package blob moves files between peers by content. A blob is named by its root
// (internal/merkle.ChunkRoot: size, chunk size and the SHA-256 of each chunk); a
// Manifest lists the chunks, a Store keeps blobs in a folder, a Server answers the
// protocols "manifest" and "blob", and a Fetcher downloads a blob from several
// peers at once.
//
// Nothing that a peer says is believed: a manifest must hash to the root, a chunk
// to its digest in the manifest, before either is used. Every file in a Store is
// either replaced by a rename or is a hint that is checked again, so a process may
// be killed at any moment.
package blob

import (
	"errors"
	"fmt"
	"math/bits"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/merkle"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

const (
	// MaxSize is the size of the largest blob in bytes: 1 TiB.
	MaxSize = 1 << 40

	minChunkSize = 16 << 10
	maxChunkSize = merkle.ChunkSize
	maxChunks    = MaxSize / maxChunkSize
	// A manifest of maxChunks digests takes 8 MiB; the rest is for its other fields.
	maxManifest = maxChunks*len(mesh.Hash{}) + 4096
	maxName     = 255
)

// Manifest lists the chunks of a blob. Every chunk but the last has ChunkSize bytes.
type Manifest struct {
	Size      uint64 // bytes
	ChunkSize uint32 // bytes, a power of two
	Chunks    []mesh.Hash
	Name      string // file name that the author suggests; not covered by the root
}

// Root returns the hash that names the blob.
func (m *Manifest) Root() mesh.Hash {
	return merkle.ChunkRoot(m.Size, m.ChunkSize, m.Chunks)
}

// chunkLen returns the length in bytes of chunk i.
func (m *Manifest) chunkLen(i int) int {
	return chunkLen(m.Size, m.ChunkSize, uint64(i))
}

func (m *Manifest) offset(i int) int64 { return int64(i) * int64(m.ChunkSize) }

func chunkLen(size uint64, chunkSize uint32, i uint64) int {
	return int(min(uint64(chunkSize), size-i*uint64(chunkSize)))
}

func checkShape(size uint64, chunkSize uint32) error {
	switch {
	case size == 0:
		return errors.New("a blob of no bytes")
	case size > MaxSize:
		return fmt.Errorf("blob of %d bytes: the limit is %d", size, uint64(MaxSize))
	case chunkSize < minChunkSize || chunkSize > maxChunkSize || bits.OnesCount32(chunkSize) != 1:
		return fmt.Errorf("chunks of %d bytes: want a power of two from %d to %d", chunkSize, minChunkSize, maxChunkSize)
	case merkle.Chunks(size, chunkSize) > maxChunks:
		return fmt.Errorf("%d chunks: the limit is %d", merkle.Chunks(size, chunkSize), maxChunks)
	}
	return nil
}

// manifestOf checks the message against the root before it copies anything.
func manifestOf(pb *p2ppb.Manifest, root mesh.Hash) (*Manifest, error) {
	if pb == nil {
		return nil, fmt.Errorf("manifest of %s: missing", root.Short())
	}
	size, chunkSize, digests := pb.GetSize(), pb.GetChunkSize(), pb.GetChunks()
	if err := checkShape(size, chunkSize); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", root.Short(), err)
	}
	n := int(merkle.Chunks(size, chunkSize))
	if len(digests) != n*len(mesh.Hash{}) {
		return nil, fmt.Errorf("manifest of %s: %d bytes of digests for %d chunks", root.Short(), len(digests), n)
	}
	m := &Manifest{Size: size, ChunkSize: chunkSize, Chunks: make([]mesh.Hash, n), Name: cleanName(pb.GetName())}
	for i := range m.Chunks {
		copy(m.Chunks[i][:], digests[i*len(mesh.Hash{}):])
	}
	if got := m.Root(); got != root {
		return nil, fmt.Errorf("manifest of %s: it hashes to %s", root.Short(), got.Short())
	}
	return m, nil
}

func (m *Manifest) message() *p2ppb.Manifest {
	digests := make([]byte, 0, len(m.Chunks)*len(mesh.Hash{}))
	for i := range m.Chunks {
		digests = append(digests, m.Chunks[i][:]...)
	}
	return &p2ppb.Manifest{Size: m.Size, ChunkSize: m.ChunkSize, Chunks: digests, Name: m.Name}
}

func decodeManifest(b []byte, root mesh.Hash) (*Manifest, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("manifest of %s: %d bytes, the limit is %d", root.Short(), len(b), maxManifest)
	}
	var pb p2ppb.Manifest
	if err := proto.Unmarshal(b, &pb); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", root.Short(), err)
	}
	return manifestOf(&pb, root)
}

// cleanName makes a name that a peer chose safe to show and to use as a file name.
func cleanName(name string) string {
	if !utf8.ValidString(name) || len(name) > maxName {
		return ""
	}
	name = filepath.Base(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || strings.ContainsRune(`/\:`, r) {
			return '_'
		}
		return r
	}, name))
	if strings.Trim(name, ". ") == "" {
		return ""
	}
	return name
}
