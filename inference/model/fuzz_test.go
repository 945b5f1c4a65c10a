package model

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gonka-mesh/mesh/internal/merkle"
)

// FuzzCache reads the cache of hashes.
func FuzzCache(f *testing.F) {
	f.Add([]byte(`{"version":1,"entries":[]}`))
	f.Add([]byte(`{"version":1,"entries":[{"digest":{"Size":1,"Chunks":[""]}}]}`))
	path := filepath.Join(f.TempDir(), "hashes.json")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, e := range readCache(path) {
			if uint64(len(e.Digest.Chunks)) != merkle.Chunks(e.Digest.Size, merkle.ChunkSize) {
				t.Errorf("a file of %d bytes with %d chunks", e.Digest.Size, len(e.Digest.Chunks))
			}
		}
	})
}
