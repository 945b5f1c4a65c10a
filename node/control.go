package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/host"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/internal/plainly"
	"github.com/gonka-mesh/mesh/node/api"
)

var _ api.Control = (*Node)(nil)

// Connect dials a multiaddress.
func (n *Node) Connect(ctx context.Context, multiaddr string) (api.Peer, error) {
	address, err := n.core.Net.Connect(ctx, multiaddr)
	if err != nil {
		return api.Peer{}, fmt.Errorf("connect %.200s: %w", multiaddr, plainly.Said(err))
	}
	for _, p := range n.core.Net.Peers() {
		if p.Address == address {
			return n.peerOf(p), nil
		}
	}
	return api.Peer{}, fmt.Errorf("connect %s: it hung up", multiaddr)
}

// loadModels serves what the configuration names: servers and models, else the
// built-in model and those that were added before.
func (n *Node) loadModels(ctx context.Context) error {
	quiet := func(api.Progress) {}
	if err := n.serveServers(ctx); err != nil {
		return err
	}
	if len(n.cfg.Models) > 0 {
		n.models.expect(len(n.cfg.Models))
		defer n.models.expect(0)
		for _, ref := range n.cfg.Models {
			// What has to be fetched needs the network, which is not up yet.
			if err := n.serveRef(ctx, ref, quiet); err != nil {
				return fmt.Errorf("--model %s: %w", ref, plainly.Said(err))
			}
		}
		return nil
	}
	if len(n.cfg.Engines) > 0 {
		return nil // the servers' models are what this node is for
	}
	entries, _ := n.models.list()
	entries = slices.DeleteFunc(entries, func(e entry) bool { return !e.Serve })
	n.models.expect(1 + len(entries))
	defer n.models.expect(0) // some may be missing
	if err := n.serveBuiltin(); err != nil {
		return err
	}
	for _, e := range entries {
		// A model that has gone is no reason to stay away.
		if err := n.serve(e); err != nil {
			n.log.Error("an added model cannot be served", "model", e.Name, "err", err)
		}
	}
	return nil
}

// serveRef serves a model that is here: built in, added before, or a file.
func (n *Node) serveRef(ctx context.Context, ref string, progress func(api.Progress)) error {
	if ref == builtin.Name || ref == n.core.dir.fallback.String() {
		return n.serveBuiltin()
	}
	e, ok := n.models.find(ref)
	if !ok || ref == e.Path {
		if _, err := os.Stat(ref); err != nil {
			return fmt.Errorf("neither a file nor a model that this node has; with the node up, `mesh model add %s` looks in the mesh", ref)
		}
		var err error
		if e, err = n.models.describe(ctx, ref, progress); err != nil {
			return err
		}
	}
	return n.serve(e)
}

func (n *Node) serveBuiltin() error {
	l, err := n.models.loadBuiltin(n.cfg)
	if err != nil {
		return err
	}
	return n.core.Serve(l.engine, n.prices(), l.Root)
}

func (n *Node) serve(e entry) error {
	if n.models.served(e.Model.String()) != nil {
		return nil
	}
	l, err := n.models.load(e, n.cfg)
	if err != nil {
		return err
	}
	if err := n.core.Serve(l.engine, n.prices(), l.Root); err != nil {
		return errors.Join(err, n.models.stop(l))
	}
	return nil
}

func (n *Node) prices() host.Prices {
	return host.Prices{Prompt: mesh.Amount(n.cfg.PricePrompt), Output: mesh.Amount(n.cfg.PriceOutput)}
}

// AddModel serves a file, or a model that the mesh has, now and after a restart.
func (n *Node) AddModel(ctx context.Context, ref string, progress func(api.Progress)) (api.Model, error) {
	if n.cfg.Light {
		return api.Model{}, errors.New("a light node serves nothing; start it without --light, or use `mesh model pull`")
	}
	if l := n.models.served(ref); l != nil && ref != l.Path { // a file is looked at anew
		return n.modelNow(ctx, l.Model)
	}
	if ref == builtin.Name {
		if err := n.serveBuiltin(); err != nil {
			return api.Model{}, err
		}
		return n.modelNow(ctx, n.core.dir.fallback)
	}
	e, err := n.fetch(ctx, ref, progress)
	if err != nil {
		return api.Model{}, err
	}
	progress(api.Progress{Stage: "load", Bytes: 0, Total: e.Bytes})
	if err := n.serve(e); err != nil {
		return api.Model{}, err
	}
	e.Serve = true
	if err := n.models.put(e); err != nil {
		return api.Model{}, err
	}
	return n.modelNow(ctx, e.Model)
}

// PullModel fetches a model's file without serving it.
func (n *Node) PullModel(ctx context.Context, ref string, progress func(api.Progress)) (api.Model, error) {
	e, err := n.fetch(ctx, ref, progress)
	if err != nil {
		return api.Model{}, err
	}
	n.core.Net.Provide(e.Root)
	return n.modelNow(ctx, e.Model)
}

func (n *Node) modelNow(ctx context.Context, id mesh.ModelID) (api.Model, error) {
	all, err := n.Models(ctx)
	if err != nil {
		return api.Model{}, err
	}
	for _, m := range all {
		if m.Model == id {
			return m, nil
		}
	}
	return api.Model{}, fmt.Errorf("model %s: %w", id, api.ErrNotFound)
}

// RemoveModel stops serving a model and forgets it; pulled files are deleted, and what
// there is of a model whose pull did not end.
func (n *Node) RemoveModel(ctx context.Context, ref string) (api.Model, error) {
	l := n.models.served(ref)
	e, known := n.models.find(ref)
	var out api.Model
	switch {
	case l != nil:
		out = modelOf(l.entry)
	case known:
		out = modelOf(e)
	default:
		p, err := n.models.abandon(ref)
		return api.Model{Name: p.Name, Model: p.Model, Root: p.Root}, err
	}
	if l != nil {
		if err := n.core.Remove(l.Model); err != nil {
			return api.Model{}, err
		}
		if err := n.models.stop(l); err != nil {
			return api.Model{}, err
		}
	}
	if known {
		n.core.Net.Unprovide(e.Root)
		if err := n.models.forget(e); err != nil {
			return api.Model{}, err
		}
		if !e.Pulled {
			out.Path = ""
		}
	}
	return out, nil
}
