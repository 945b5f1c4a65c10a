package blob

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
)

// Put keeps bytes as a blob of the store's own; name is what peers are told.
func (s *Store) Put(name string, data []byte) (mesh.Hash, error) {
	root, err := s.put(name, data)
	if err != nil {
		return mesh.Hash{}, fmt.Errorf("keep blob %s: %w", name, err)
	}
	return root, nil
}

func (s *Store) put(name string, data []byte) (mesh.Hash, error) {
	e := entry{Name: cleanName(name), Size: uint64(len(data)), ChunkSize: s.chunkSize, Added: time.Now().UTC().Round(0)}
	if err := checkShape(e.Size, e.ChunkSize); err != nil {
		return mesh.Hash{}, err
	}
	m := &Manifest{Size: e.Size, ChunkSize: e.ChunkSize, Name: e.Name}
	var err error
	if m.Chunks, err = hashChunks(context.Background(), bytes.NewReader(data), e.Size, e.ChunkSize, nil); err != nil {
		return mesh.Hash{}, err
	}
	root := m.Root()
	if _, err := s.Path(root); err == nil {
		return root, nil
	}
	if err := s.claim(root); err != nil {
		return root, err
	}
	defer s.release(root)
	if err := s.putManifest(root, m); err != nil {
		return root, err
	}
	if err := atomicfile.Write(s.path(root, dataFile), data, 0o644); err != nil {
		return root, err
	}
	info, err := os.Stat(s.path(root, dataFile))
	if err != nil {
		return root, err
	}
	e.identify(info)
	return root, s.putEntry(root, e)
}
