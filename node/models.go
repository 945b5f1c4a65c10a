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
	"strings"
	"sync"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/inference/native"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p/blob"
)

// catalogue is the node's list of models: the built-in one, and those added or
// pulled, which models.json in the home folder remembers.
type catalogue struct {
	path   string // of models.json
	hashes string // cache of the hashes of big files
	blobs  *blob.Store
	log    *slog.Logger

	mu      sync.Mutex
	entries []entry   // guarded by mu
	open    []*loaded // guarded by mu; the models that are served
}

// entry is a model that the node has as a file.
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
}

// loaded is a model in memory.
type loaded struct {
	entry
	engine  *native.Engine
	file    *model.File
	builtin bool
}

// catalogueFile is models.json.
type catalogueFile struct {
	Version int     `json:"version"`
	Models  []entry `json:"models"`
}

func openCatalogue(home *Home, log *slog.Logger) (*catalogue, error) {
	blobs, err := blob.Open(home.Path("blobs"), log)
	if err != nil {
		return nil, err
	}
	c := &catalogue{path: home.Path("models.json"), hashes: home.Path("hashes.json"), blobs: blobs, log: log}
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
	c.entries = f.Models
	return c, nil
}

// save writes models.json. The caller holds mu.
func (c *catalogue) save() error {
	b, err := json.MarshalIndent(catalogueFile{Version: 1, Models: c.entries}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode list of models: %w", err)
	}
	return writeFile(c.path, append(b, '\n'), 0o600)
}

// put adds or replaces an entry.
func (c *catalogue) put(e entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
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

// describe opens a model file, checks it and names it.
func (c *catalogue) describe(ctx context.Context, path string, progress func(api.Progress)) (entry, error) {
	f, err := model.Open(path)
	if err != nil {
		return entry{}, err
	}
	defer f.Close()
	root, err := c.blobs.Add(ctx, path, func(done, total uint64) {
		progress(api.Progress{Stage: "hash", Bytes: int64(done), Total: int64(total)})
	})
	if err != nil {
		return entry{}, err
	}
	m, err := f.Manifest(ctx, c.hashes)
	if err != nil {
		return entry{}, err
	}
	name := strings.TrimSuffix(filepath.Base(path), ".gguf")
	return entry{Name: name, Path: path, Model: m.ID(), Root: root, Bytes: f.Size(), Arch: f.Config.Architecture, Context: f.Config.Context}, nil
}

// load opens an entry and starts its engine.
func (c *catalogue) load(e entry, cfg Config) (*loaded, error) {
	f, err := model.Open(e.Path)
	if err != nil {
		return nil, err
	}
	// The file may be another one by now; under the old ID its answers would be lies.
	m, err := f.Manifest(context.Background(), c.hashes)
	if err == nil && m.ID() != e.Model {
		err = fmt.Errorf("file %s has changed since it was added; add it again", e.Path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	l, err := c.start(&loaded{entry: e, file: f}, cfg)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("model %s: %w", e.Name, err)
	}
	return l, nil
}

// loadBuiltin starts the engine of the model in the binary.
func (c *catalogue) loadBuiltin(ctx context.Context, cfg Config) (*loaded, error) {
	f, err := builtin.Open()
	if err != nil {
		return nil, fmt.Errorf("built-in model: %w", err)
	}
	m, err := f.Manifest(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("built-in model: %w", err)
	}
	e := entry{Name: builtin.Name, Model: m.ID(), Bytes: f.Size(), Arch: f.Config.Architecture, Context: f.Config.Context, Serve: true}
	return c.start(&loaded{entry: e, file: f, builtin: true}, cfg)
}

func (c *catalogue) start(l *loaded, cfg Config) (*loaded, error) {
	memory := cfg.MemoryMB << 20
	if memory == 0 {
		memory = totalMemory() / 4
	}
	var err error
	l.engine, err = native.Open(native.Config{
		File: l.file, ID: l.Model, Name: l.Name, Threads: cfg.Threads, Slots: cfg.Slots, KV: cfg.KV, Memory: memory,
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.open = append(c.open, l)
	c.mu.Unlock()
	return l, nil
}

// stop ends a model's engine.
func (c *catalogue) stop(l *loaded) error {
	c.mu.Lock()
	c.open = slices.DeleteFunc(c.open, func(o *loaded) bool { return o == l })
	c.mu.Unlock()
	err := l.engine.Close()
	if !l.builtin {
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

// forget drops an entry, and its file if it was pulled.
func (c *catalogue) forget(e entry) error {
	c.mu.Lock()
	c.entries = slices.DeleteFunc(c.entries, func(old entry) bool { return old.Model == e.Model })
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.blobs.Remove(e.Root)
}
