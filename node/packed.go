package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gonka-mesh/mesh"
)

// packedEnd is how the names of files of packed weights end; before it stands the
// model ID.
const packedEnd = ".pack"

// packedFolder is where they are, in the home folder.
const packedFolder = "packed"

// packedPath returns the file of packed weights of a model; empty: none is kept. The
// built-in model is packed faster than it would be read.
func (c *catalogue) packedPath(l *loaded, cfg Config) string {
	if cfg.PackedMB < 0 || l.builtin {
		return ""
	}
	return filepath.Join(c.packed, l.Model.String()+packedEnd)
}

// sweepPacked removes packed weights of models that keep does not want.
func (c *catalogue) sweepPacked(keep func(mesh.ModelID) bool) error {
	files, err := os.ReadDir(c.packed)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look through packed weights: %w", err)
	}
	for _, f := range files {
		name, ours := strings.CutSuffix(f.Name(), packedEnd)
		id, err := mesh.ParseHash(name)
		if !ours || err != nil || keep(id) {
			continue
		}
		if err := os.Remove(filepath.Join(c.packed, f.Name())); err != nil {
			return fmt.Errorf("remove packed weights: %w", err)
		}
	}
	return nil
}
