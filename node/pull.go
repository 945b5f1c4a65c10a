package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p/blob"
)

// coming is a model that is being pulled: what is there of it survives a restart, for
// the next attempt.
type coming struct {
	Name    string       `json:"name,omitempty"`
	Model   mesh.ModelID `json:"model,omitzero"` // as far as it is known
	Root    mesh.Hash    `json:"root"`
	Files   []mesh.Hash  `json:"files,omitempty"` // once the manifest is there
	callers int          // of pull
}

func (p *coming) roots() []mesh.Hash { return append([]mesh.Hash{p.Root}, p.Files...) }

// begin notes a pull.
func (c *catalogue) begin(p coming) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.coming, func(old coming) bool { return old.Root == p.Root })
	if i < 0 {
		i, p.callers = len(c.coming), 0
		c.coming = append(c.coming, p)
	}
	if c.coming[i].callers > 0 {
		c.coming[i].callers++
		return nil
	}
	if err := c.save(); err != nil {
		c.coming = slices.Delete(c.coming, i, i+1)
		return err
	}
	c.coming[i].callers++
	return nil
}

// learn notes which files a manifest names.
func (c *catalogue) learn(root mesh.Hash, m *model.Manifest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.coming {
		if p := &c.coming[i]; p.Root == root {
			p.Model, p.Files = m.ID(), nil
			for _, f := range m.Files {
				p.Files = append(p.Files, f.ChunkRoot)
			}
		}
	}
	return c.save()
}

// end notes that a caller of a pull leaves; the last one drops what is of no use.
func (c *catalogue) end(root mesh.Hash, useless bool) error {
	c.mu.Lock()
	i := slices.IndexFunc(c.coming, func(p coming) bool { return p.Root == root })
	if i < 0 { // it came
		c.mu.Unlock()
		return nil
	}
	c.coming[i].callers--
	last := c.coming[i].callers == 0
	c.mu.Unlock()
	if !last || !useless {
		return nil
	}
	_, err := c.abandon(root.String())
	return err
}

// indexComing finds a pull by name, model ID or root; -1 where there is none. The
// caller holds mu.
func (c *catalogue) indexComing(ref string) int {
	return slices.IndexFunc(c.coming, func(p coming) bool {
		return ref == p.Root.String() || ref == p.Model.String() || ref == p.Name
	})
}

// halfWay returns the pull that ref stands for, if there was one.
func (c *catalogue) halfWay(ref string) (coming, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := c.indexComing(ref); i >= 0 {
		return c.coming[i], true
	}
	return coming{}, false
}

// abandon drops what there is of a model that was not pulled to the end.
func (c *catalogue) abandon(ref string) (coming, error) {
	c.mu.Lock()
	i := c.indexComing(ref)
	if i < 0 {
		c.mu.Unlock()
		return coming{}, fmt.Errorf("this node has no model %s: %w", ref, api.ErrNotFound)
	}
	p := c.coming[i]
	if p.callers > 0 {
		c.mu.Unlock()
		return p, fmt.Errorf("model %s is being fetched; stop that first", ref)
	}
	c.coming = slices.Delete(c.coming, i, i+1)
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return p, err
	}
	err = c.drop(p.roots())
	if _, here := c.find(p.Model.String()); !here && !p.Model.IsZero() {
		err = errors.Join(err, os.RemoveAll(c.folder(p.Model)))
	}
	return p, err
}

// manifests returns what peers name who have a blob: the manifests of the models on
// their way that it is part of, or else itself.
func (c *catalogue) manifests(root mesh.Hash) []mesh.Hash {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []mesh.Hash
	for _, p := range c.coming {
		if slices.Contains(p.Files, root) {
			out = append(out, p.Root)
		}
	}
	if len(out) == 0 {
		out = append(out, root)
	}
	return out
}

// sources names the peers that may have a blob.
func (n *Node) sources(ctx context.Context, root mesh.Hash) iter.Seq[mesh.Address] {
	return func(yield func(mesh.Address) bool) {
		for _, named := range n.models.manifests(root) {
			for peer := range n.core.dir.sources(ctx, named) {
				if !yield(peer) {
					return
				}
			}
		}
	}
}

// uselessError is about what was fetched: it will not get better.
type uselessError struct{ error }

// fetch returns the entry of a model: of a file here, or pulled from peers.
func (n *Node) fetch(ctx context.Context, ref string, progress func(api.Progress)) (entry, error) {
	if e, ok := n.models.find(ref); ok && ref != e.Path { // a file is looked at anew
		return e, nil
	}
	if _, err := os.Stat(ref); err == nil && strings.ContainsAny(ref, "/.") {
		e, err := n.models.describe(ctx, ref, progress)
		if err != nil {
			return entry{}, err
		}
		return e, n.models.put(e)
	}
	root, name, ok := n.core.dir.rootOf(ref)
	if p, half := n.models.halfWay(ref); half && !ok {
		return n.pull(ctx, p, progress)
	}
	if !ok {
		look, cancel := context.WithTimeout(ctx, lookTime)
		key, _ := mesh.ParseHash(ref) // zero asks for everything
		n.core.Net.Find(look, key)
		cancel()
		root, name, ok = n.core.dir.rootOf(ref)
	}
	if !ok {
		var err error
		if root, err = mesh.ParseHash(ref); err != nil {
			return entry{}, fmt.Errorf("no file %s, and no host that is known offers a model of this name; give its hash, or see `mesh model ls`", ref)
		}
	}
	p := coming{Name: name, Root: root}
	if want, err := mesh.ParseHash(ref); err == nil && want != root {
		p.Model = want
	}
	return n.pull(ctx, p, progress)
}

// pull fetches a model. What is there of it stays when it cannot go on.
func (n *Node) pull(ctx context.Context, p coming, progress func(api.Progress)) (entry, error) {
	if err := n.models.begin(p); err != nil {
		return entry{}, err
	}
	e, err := n.pullAll(ctx, p, progress)
	if err == nil {
		if e.Pulled, e.Name = true, p.Name; e.Name == "" {
			e.Name = "model-" + p.Root.Short()
		}
		err = n.models.put(e)
	}
	if err == nil {
		return e, nil
	}
	// Of a hash that nobody knows there is nothing to remember.
	_, none := n.models.blobs.Manifest(p.Root)
	useless := errors.As(err, new(uselessError)) || errors.Is(none, blob.ErrNotFound)
	return entry{}, errors.Join(err, n.models.end(p.Root, useless))
}

func (n *Node) pullAll(ctx context.Context, p coming, progress func(api.Progress)) (entry, error) {
	last := api.Progress{Stage: "fetch"}
	path, err := n.fetcher.Fetch(ctx, p.Root, blob.Options{Progress: func(done, total uint64, sources int) {
		last = api.Progress{Stage: "fetch", Bytes: int64(done), Total: int64(total), Sources: sources}
		if total > maxManifest {
			progress(last)
		}
	}})
	if errors.Is(err, blob.ErrNotFound) {
		return entry{}, fmt.Errorf("nobody within reach has file %s; `mesh model ls` shows what there is: %w", p.Root.Short(), err)
	}
	if err != nil {
		return entry{}, err
	}
	m, err := readManifest(path)
	if err != nil {
		return entry{}, err
	}
	if m == nil {
		progress(last)
	} else {
		if !p.Model.IsZero() && m.ID() != p.Model {
			return entry{}, uselessError{fmt.Errorf("a peer gave model %s for %s; its manifest is dropped, try again", m.ID(), p.Model)}
		}
		if path, err = n.pullFiles(ctx, p.Root, m, progress); err != nil {
			return entry{}, err
		}
	}
	f, digests, err := n.models.examine(ctx, path, func(api.Progress) {})
	if err != nil {
		err = fmt.Errorf("file %s is no model that this mesh can read: %w", p.Root.Short(), err)
		if errno := syscall.Errno(0); ctx.Err() != nil || errors.As(err, &errno) && !errors.Is(err, fs.ErrNotExist) {
			return entry{}, err // the model may be good
		}
		return entry{}, uselessError{err}
	}
	e := entryOf(f, f.ManifestOf(digests))
	switch err := f.Close(); {
	case err != nil:
		return entry{}, err
	case e.Root != p.Root:
		return entry{}, uselessError{fmt.Errorf("the files of %s are another model: %s", p.Root.Short(), e.Model)}
	case !p.Model.IsZero() && e.Model != p.Model:
		return entry{}, uselessError{fmt.Errorf("a peer gave model %s for %s; its file is dropped, try again", e.Model, p.Model)}
	}
	return e, nil
}

// maxManifest is more than the manifest of a model takes.
const maxManifest = 1 << 20

// readManifest returns the manifest of a model of several files; nil if the file is
// something else.
func readManifest(path string) (*model.Manifest, error) {
	info, err := os.Stat(path)
	if err != nil || info.Size() > maxManifest {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, err := model.ParseManifest(b)
	if err != nil || m.Files[0].Name == "" {
		return nil, nil // opening it as a file will say what is wrong
	}
	return m, nil
}

// pullFiles fetches the files of a manifest and returns the path to open.
func (n *Node) pullFiles(ctx context.Context, root mesh.Hash, m *model.Manifest, progress func(api.Progress)) (string, error) {
	sizes, total := map[mesh.Hash]uint64{}, int64(0)
	for _, f := range m.Files {
		if f.Size > blob.MaxSize {
			return "", uselessError{fmt.Errorf("file %s of %d bytes: the limit is %d", f.Name, f.Size, uint64(blob.MaxSize))}
		}
		sizes[f.ChunkRoot] = f.Size
		total += int64(f.Size)
	}
	if err := n.models.learn(root, m); err != nil {
		return "", err
	}
	if err := n.models.blobs.CheckSpace(sizes); err != nil {
		return "", fmt.Errorf("fetch model %s: %w", m.ID().Short(), err)
	}
	before, paths := int64(0), make([]string, len(m.Files))
	for i, f := range m.Files {
		var err error
		paths[i], err = n.fetcher.Fetch(ctx, f.ChunkRoot, blob.Options{Progress: func(done, _ uint64, sources int) {
			progress(api.Progress{Stage: "fetch", Bytes: before + int64(done), Total: total, Sources: sources})
		}})
		if err != nil {
			return "", fmt.Errorf("%s: %w", f.Name, err)
		}
		info, err := os.Stat(paths[i])
		if err != nil {
			return "", err
		}
		if info.Size() != int64(f.Size) {
			return "", uselessError{fmt.Errorf("%s has %d bytes, its manifest says %d", f.Name, info.Size(), f.Size)}
		}
		before += int64(f.Size)
	}
	return n.models.gather(m, paths)
}
