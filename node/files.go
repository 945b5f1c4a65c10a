package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
	"github.com/gonka-mesh/mesh/internal/merkle"
	"github.com/gonka-mesh/mesh/p2p/blob"
)

// entryOf names a model after its path and says which blobs it is.
func entryOf(f *model.File, m *model.Manifest) entry {
	e := entry{
		Name: modelName(f.Path()), Path: f.Path(), Model: m.ID(), Root: m.Files[0].ChunkRoot,
		Bytes: f.Size(), Arch: f.Config.Architecture, Context: f.Config.Context,
	}
	if m.Files[0].Name != "" {
		b := m.Encode()
		e.Root = merkle.ChunkRoot(uint64(len(b)), merkle.ChunkSize, []mesh.Hash{mesh.HashOf(b)})
		for _, file := range m.Files {
			e.Files = append(e.Files, file.ChunkRoot)
		}
	}
	return e
}

// modelName is the name of a file or folder. In the cache of Hugging Face that is a
// commit; the model's name is part of another folder's.
func modelName(path string) string {
	if up := filepath.Dir(path); filepath.Base(up) == "snapshots" {
		name := filepath.Base(filepath.Dir(up))
		if at := strings.LastIndex(name, "--"); at >= 0 && validName(name[at+2:]) {
			return name[at+2:]
		}
	}
	return strings.TrimSuffix(strings.TrimSuffix(filepath.Base(path), ".gguf"), ".safetensors")
}

// offer lets peers fetch the files of a model, which stay where they are. What the
// store has already is left as it is.
func (c *catalogue) offer(f *model.File, m *model.Manifest, digests []*model.Digest) error {
	for i, path := range f.Paths() {
		file := m.Files[i]
		if _, err := c.blobs.Path(file.ChunkRoot); err != nil {
			root, err := c.blobs.AddHashed(path, digests[i].Modified, digests[i].Chunks)
			if err != nil {
				return err
			}
			if root != file.ChunkRoot {
				return fmt.Errorf("add %s: the file changes", path)
			}
		}
	}
	if m.Files[0].Name == "" {
		return nil
	}
	_, err := c.blobs.Put(m.ID().String()+".json", m.Encode())
	return err
}

// uses reports whether a blob is part of a model that is here or on its way.
func (c *catalogue) uses(root mesh.Hash) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.entries, func(e entry) bool { return slices.Contains(e.roots(), root) }) ||
		slices.ContainsFunc(c.open, func(l *loaded) bool { return slices.Contains(l.roots(), root) }) ||
		slices.ContainsFunc(c.coming, func(p coming) bool { return slices.Contains(p.roots(), root) })
}

// offered returns the blobs by which peers ask for models: not the files behind a
// manifest, as who has it has them.
func (c *catalogue) offered() []mesh.Hash {
	entries, open := c.list()
	for _, l := range open {
		entries = append(entries, l.entry)
	}
	var out []mesh.Hash
	for _, e := range entries {
		if !e.Root.IsZero() && !slices.Contains(out, e.Root) {
			out = append(out, e.Root)
		}
	}
	return out
}

// drop removes the blobs that no model uses any more.
func (c *catalogue) drop(roots []mesh.Hash) error {
	var errs []error
	for _, root := range roots {
		if c.uses(root) {
			continue
		}
		if err := c.blobs.Remove(root); err != nil && !errors.Is(err, blob.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// folder is where the files of a pulled model lie under their names.
func (c *catalogue) folder(id mesh.ModelID) string { return filepath.Join(c.folders, id.String()) }

// sweepFolders removes the folders of models that are not known.
func (c *catalogue) sweepFolders(known func(mesh.ModelID) bool) error {
	found, err := os.ReadDir(c.folders)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open folder of models: %w", err)
	}
	for _, f := range found {
		id, err := mesh.ParseHash(f.Name())
		if err != nil || known(id) {
			continue
		}
		if err := os.RemoveAll(c.folder(id)); err != nil {
			return fmt.Errorf("remove the folder of a model: %w", err)
		}
	}
	return nil
}

// gather gives blobs the names that a manifest says, in the model's folder, and
// returns the path to open. The bytes are on disk once.
func (c *catalogue) gather(m *model.Manifest, paths []string) (string, error) {
	dir := c.folder(m.ID())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the folder of a model: %w", err)
	}
	index := false
	for i, f := range m.Files {
		// Names come from strangers. ParseManifest has looked at them, too.
		if !filepath.IsLocal(f.Name) || filepath.Base(f.Name) != f.Name {
			return "", fmt.Errorf("manifest names a file %.80q: want a plain name", f.Name)
		}
		if err := link(paths[i], filepath.Join(dir, f.Name)); err != nil {
			return "", fmt.Errorf("name file of a model: %w", err)
		}
		index = index || strings.HasSuffix(f.Name, ".index.json")
	}
	if err := errors.Join(atomicfile.SyncDir(dir), atomicfile.SyncDir(c.folders)); err != nil {
		return "", fmt.Errorf("name files of a model: %w", err)
	}
	if !index { // one file of weights, which may have any name
		dir = filepath.Join(dir, m.Files[len(m.Files)-1].Name)
	}
	return dir, nil
}

// link makes a second name for a file, a symbolic one where the disk is another.
func link(from, to string) error {
	from, err := filepath.EvalSymlinks(from) // a link to a relative link leads nowhere
	if err != nil {
		return err
	}
	a, err := os.Stat(from)
	if err != nil {
		return err
	}
	if b, err := os.Stat(to); err == nil && os.SameFile(a, b) {
		return nil
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	return os.Symlink(from, to)
}
