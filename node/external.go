package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/adapter"
	"github.com/gonka-mesh/mesh/inference/gpu"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
)

// engineAuto stands for whatever server answers at a usual place of this machine.
const engineAuto = "auto"

const probeTimeout = 2 * time.Second

// serveServers serves the models of the inference servers that the configuration names.
func (n *Node) serveServers(ctx context.Context) error {
	for _, url := range n.cfg.Engines {
		if url == engineAuto {
			choice := n.suggest(ctx)
			n.log.Info("choose an engine", "engine", choice.Engine, "url", choice.URL, "why", choice.Why)
			if url = choice.URL; url == "" {
				if err := n.serveBuiltin(); err != nil {
					return err
				}
				continue
			}
		}
		if err := n.serveServer(ctx, url); err != nil {
			return fmt.Errorf("--engine: %w; start the server first, or name another", err)
		}
	}
	return nil
}

func (n *Node) serveServer(ctx context.Context, url string) error {
	cfg := adapter.Config{
		URL: url, Key: n.cfg.EngineKey, Deterministic: n.cfg.Deterministic, KV: n.cfg.EngineKV, Log: n.log,
		Identify: func(m adapter.ModelDescription) (mesh.ModelID, error) { return n.fileID(ctx, m) },
	}
	var named []string
	cfg.Rename = func(m adapter.ModelDescription) string {
		name := plainName(m.Name, func(name string) bool {
			return name == builtin.Name || slices.Contains(named, name) || n.models.served(name) != nil
		})
		named = append(named, name)
		return name
	}
	if i, err := gpu.Find(ctx); err == nil {
		cfg.GPU = i.Model()
	}
	engines, d, err := adapter.Open(ctx, cfg)
	if err != nil {
		return err
	}
	n.log.Info("found a server", "kind", string(d.Kind), "version", d.Version, "url", d.URL, "continues", d.Prefix)
	for _, note := range d.Notes {
		n.log.Info("the server could do more", "note", note)
	}
	for _, e := range engines {
		l := n.models.adopt(e)
		if err := n.core.Serve(e, n.prices(), mesh.Hash{}); err != nil {
			return errors.Join(err, n.models.stop(l))
		}
	}
	return nil
}

// plainName is what requests call a server's model whose name there is a path or that
// of a repository, which no peer would take for a name: its last part, or all of it with
// dashes where that is taken.
func plainName(name string, taken func(string) bool) string {
	clean := strings.Trim(strings.ReplaceAll(filepath.ToSlash(name), "\\", "/"), "/")
	if short := modelName(path.Base(clean)); clean != "" && !taken(short) {
		return short
	}
	return strings.ReplaceAll(clean, "/", "-")
}

// fileID is the ID of a server's model whose files this node can read: hosts of the
// same files then serve the same model, whatever their engines.
func (n *Node) fileID(ctx context.Context, m adapter.ModelDescription) (mesh.ModelID, error) {
	if m.Path == "" {
		return mesh.ModelID{}, errors.New("the server does not name its file")
	}
	f, err := model.Open(m.Path)
	if err != nil {
		return mesh.ModelID{}, err
	}
	defer f.Close()
	manifest, err := f.Manifest(ctx, n.models.hashes)
	if err != nil {
		return mesh.ModelID{}, err
	}
	return manifest.ID(), nil
}

// suggest looks at the machine and its usual ports and says which engine is sensible.
func (n *Node) suggest(ctx context.Context) gpu.Choice {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var inventory gpu.Inventory
	var missing error
	var all sync.WaitGroup
	all.Go(func() { inventory, missing = gpu.Find(ctx) })
	urls := gpu.Ports()
	found := make([]gpu.Server, len(urls))
	for i, url := range urls {
		all.Go(func() {
			engines, d, err := adapter.Open(ctx, adapter.Config{
				URL: url.URL, Key: n.cfg.EngineKey, Log: n.log, HTTP: &http.Client{Timeout: probeTimeout},
			})
			if err != nil {
				return
			}
			found[i] = gpu.Server{Kind: string(d.Kind), URL: d.URL}
			for _, e := range engines {
				e.Close() // a probe has nothing to lose
			}
		})
	}
	all.Wait()
	var servers []gpu.Server
	for _, s := range found {
		if s.URL != "" {
			servers = append(servers, s)
		}
	}
	machine := gpu.Machine{Memory: totalMemory(), Processors: n.cfg.Threads, Kernels: kernel.Backend()}
	return gpu.Suggest(inventory, missing, machine, servers)
}
