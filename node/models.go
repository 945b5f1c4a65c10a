package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/inference/native"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p/blob"
)

// catalogue is the node's list of models: the built-in one, and those added or
// pulled, which models.json in the home folder remembers.
type catalogue struct {
	path    string // of models.json
	hashes  string // cache of the hashes of big files
	packed  string // folder of packed weights
	folders string // of models of several files that were pulled; see folder
	blobs   *blob.Store
	log     *slog.Logger

	mu      sync.Mutex
	entries []entry   // guarded by mu
	coming  []coming  // guarded by mu; the models that are being pulled
	open    []*loaded // guarded by mu; the models that are served
	budget  budget    // guarded by mu
}

// entry is a model that the node has as a file, or as several: then Root is that of
// its manifest, which tells peers the others.
type entry struct {
	Name    string       `json:"name"`
	Path    string       `json:"path"`
	Model   mesh.ModelID `json:"model"`
	Root    mesh.Hash    `json:"root"`
	Bytes   int64        `json:"bytes"`
	Arch    string       `json:"arch"`
	Context int          `json:"context"`
	Serve   bool         `json:"serve"`  // at every start
	Pulled  bool         `json:"pulled"` // the file is ours to delete
	Files   []mesh.Hash  `json:"files,omitempty"`
}

// roots returns the blobs of a model.
func (e *entry) roots() []mesh.Hash { return append([]mesh.Hash{e.Root}, e.Files...) }

// loaded is a model in memory.
type loaded struct {
	entry
	engine  inference.Engine
	file    *model.File
	builtin bool
	memory  int64 // bytes for keys and values
}

// catalogueFile is models.json.
type catalogueFile struct {
	Version int      `json:"version"`
	Models  []entry  `json:"models"`
	Coming  []coming `json:"coming,omitempty"`
}

func openCatalogue(home *Home, memory int64, log *slog.Logger) (*catalogue, error) {
	blobs, err := blob.Open(home.Path("blobs"), log)
	if err != nil {
		return nil, err
	}
	c := &catalogue{path: home.Path("models.json"), hashes: home.Path("hashes.json"), packed: home.Path(packedFolder),
		folders: home.Path("models"), blobs: blobs, log: log, budget: budget{limit: memory}}
	b, err := os.ReadFile(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open list of models: %w", err)
	}
	var f catalogueFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("list of models %s: %w; move it away to start without added models", c.path, err)
	}
	if f.Version != 1 {
		return nil, fmt.Errorf("list of models %s has version %d, this mesh knows 1", c.path, f.Version)
	}
	c.entries, c.coming = f.Models, f.Coming
	return c, nil
}

// sweep removes files of models that are neither listed nor served nor half pulled:
// they were to be removed when the process before was killed, or it served them once.
func (c *catalogue) sweep() error {
	c.mu.Lock()
	kept := slices.Clone(c.entries)
	for _, l := range c.open {
		kept = append(kept, l.entry)
	}
	c.mu.Unlock()
	known := func(id mesh.ModelID) bool {
		return slices.ContainsFunc(kept, func(e entry) bool { return e.Model == id })
	}
	return errors.Join(c.blobs.Sweep(c.uses), c.sweepFolders(known), c.sweepPacked(known))
}

// save writes models.json. The caller holds mu.
func (c *catalogue) save() error {
	b, err := json.MarshalIndent(catalogueFile{Version: 1, Models: c.entries, Coming: c.coming}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode list of models: %w", err)
	}
	if err := atomicfile.Write(c.path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write list of models: %w", err)
	}
	return nil
}

// put adds or replaces an entry. A pull of it is done.
func (c *catalogue) put(e entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.coming = slices.DeleteFunc(c.coming, func(p coming) bool { return p.Root == e.Root })
	c.entries = slices.DeleteFunc(c.entries, func(old entry) bool { return old.Model == e.Model })
	c.entries = append(c.entries, e)
	return c.save()
}

// find returns the file that a name, path, model ID or root stands for.
func (c *catalogue) find(ref string) (entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if ref == e.Name || ref == e.Path || ref == e.Model.String() || ref == e.Root.String() {
			return e, true
		}
	}
	return entry{}, false
}

// list returns all entries and what is loaded.
func (c *catalogue) list() ([]entry, []*loaded) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.entries), slices.Clone(c.open)
}

// served returns the loaded model with this name or ID, or nil.
func (c *catalogue) served(ref string) *loaded {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.open {
		if ref == l.Name || ref == l.Model.String() || (l.Path != "" && ref == l.Path) || (!l.Root.IsZero() && ref == l.Root.String()) {
			return l
		}
	}
	return nil
}

// describe opens a model, checks it, names it, and offers its files to peers.
func (c *catalogue) describe(ctx context.Context, path string, progress func(api.Progress)) (entry, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return entry{}, fmt.Errorf("open model: %w", err)
	}
	f, digests, err := c.examine(ctx, path, progress)
	if err != nil {
		return entry{}, err
	}
	defer f.Close()
	m := f.ManifestOf(digests)
	return entryOf(f, m), c.offer(f, m, digests)
}

// examine opens a model and hashes its files: both make its manifest.
func (c *catalogue) examine(ctx context.Context, path string, progress func(api.Progress)) (*model.File, []*model.Digest, error) {
	f, err := model.Open(path)
	if err != nil {
		return nil, nil, err
	}
	digests, err := f.Digests(ctx, c.hashes, func(done int64) {
		progress(api.Progress{Stage: "hash", Bytes: done, Total: f.Size()})
	})
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, digests, nil
}

// load opens an entry and starts its engine.
func (c *catalogue) load(e entry, cfg Config) (*loaded, error) {
	f, digests, err := c.examine(context.Background(), e.Path, func(api.Progress) {})
	if err != nil {
		return nil, err
	}
	m := f.ManifestOf(digests)
	// It may be another one by now; under the old ID its answers would be lies.
	if m.ID() != e.Model {
		f.Close()
		return nil, fmt.Errorf("file %s has changed since it was added; add it again", e.Path)
	}
	// The store may not take a file for what it was: one with a new date, or that
	// another model had, too.
	if err := c.offer(f, m, digests); err != nil {
		c.log.Warn("peers cannot fetch a model", "model", e.Name, "err", err)
	}
	l, err := c.start(&loaded{entry: e, file: f}, cfg)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("model %s: %w", e.Name, err)
	}
	return l, nil
}

// loadBuiltin starts the engine of the model in the binary.
func (c *catalogue) loadBuiltin(cfg Config) (*loaded, error) {
	f, err := builtin.Open()
	if err != nil {
		return nil, fmt.Errorf("built-in model: %w", err)
	}
	e := entry{Name: builtin.Name, Model: builtin.ID(), Bytes: f.Size(), Arch: f.Config.Architecture, Context: f.Config.Context, Serve: true}
	return c.start(&loaded{entry: e, file: f, builtin: true}, cfg)
}

func (c *catalogue) start(l *loaded, cfg Config) (*loaded, error) {
	use, err := memoryUse(l.file.Config, cfg.KV, cfg.Slots)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	l.memory, err = c.budget.take(use)
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	engine, err := native.Open(native.Config{
		File: l.file, ID: l.Model, Name: l.Name, Threads: cfg.Threads, Slots: cfg.Slots, KV: cfg.KV, Memory: l.memory,
		Packed: c.packedPath(l, cfg), PackedLimit: cfg.PackedMB << 20, Log: c.log,
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.budget.give(l.memory)
		return nil, err
	}
	l.engine = engine
	c.open = append(c.open, l)
	return l, nil
}

// adopt takes in the engine of a server that this node did not start.
func (c *catalogue) adopt(e inference.Engine) *loaded {
	info := e.Info()
	l := &loaded{entry: entry{Name: info.Name, Model: info.ID, Bytes: info.Bytes, Context: info.Context}, engine: e}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = append(c.open, l)
	return l
}

// expect says how many models are about to be loaded, to share what memory is left.
func (c *catalogue) expect(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.budget.coming = n
}

// stop ends a model's engine.
func (c *catalogue) stop(l *loaded) error {
	c.mu.Lock()
	c.open = slices.DeleteFunc(c.open, func(o *loaded) bool { return o == l })
	c.mu.Unlock()
	err := l.engine.Close()
	c.mu.Lock()
	c.budget.give(l.memory)
	c.mu.Unlock()
	if l.file != nil && !l.builtin {
		err = errors.Join(err, l.file.Close())
	}
	return err
}

// close ends all engines.
func (c *catalogue) close() {
	_, open := c.list()
	for _, l := range open {
		if err := c.stop(l); err != nil {
			c.log.Error("close model", "model", l.Name, "err", err)
		}
	}
}

// forget drops an entry, and its files if it was pulled.
func (c *catalogue) forget(e entry) error {
	c.mu.Lock()
	c.entries = slices.DeleteFunc(c.entries, func(old entry) bool { return old.Model == e.Model })
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	errs := []error{c.drop(e.roots()), c.sweepPacked(func(id mesh.ModelID) bool { return id != e.Model })}
	if len(e.Files) > 0 {
		errs = append(errs, os.RemoveAll(c.folder(e.Model)))
	}
	return errors.Join(errs...)
}
