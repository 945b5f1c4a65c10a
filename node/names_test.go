package node

import (
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/host"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/inference/native"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p"
)

// TestOwnNameWins lists the built-in model, which another host serves under a name of
// its own, as everybody knows it; and as this node calls it, where this node serves it.
func TestOwnNameWins(t *testing.T) {
	k := &kept{all: make(map[mesh.Hash]*inference.Receipt)}
	first := coreOn(t, 1, p2p.RoleHost, k, nil)
	serveAs(t, first, "gpt-9")
	light := coreOn(t, 2, p2p.RoleLight, k, first.Net.Addrs())
	second := coreOn(t, 3, p2p.RoleHost, k, first.Net.Addrs())
	serveAs(t, second, "mine")
	waitForHosts(t, light, 2)
	waitForHosts(t, second, 2)
	for _, c := range []struct {
		core *Core
		want string
	}{{light, builtin.Name}, {second, "mine"}} {
		n := &Node{core: c.core, models: new(catalogue)}
		models, err := n.Models(t.Context())
		if err != nil || len(models) != 1 || models[0].Name != c.want {
			t.Errorf("models of the node: %+v, %v, want %s", models, err, c.want)
		}
		infos, err := c.core.Router.Models(t.Context())
		if err != nil || len(infos) != 1 || infos[0].Name != c.want {
			t.Errorf("models to ask: %+v, %v, want %s", infos, err, c.want)
		}
		heard := []api.PeerModel{}
		for _, p := range n.Peers() {
			if p.Peer == first.Net.Address() {
				heard = p.Models
			}
		}
		if len(heard) != 1 || heard[0].Name != c.want {
			t.Errorf("models of the peer: %+v, want %s", heard, c.want)
		}
	}
}

func serveAs(t *testing.T, c *Core, name string) {
	t.Helper()
	f, err := builtin.Open()
	if err != nil {
		t.Fatal(err)
	}
	id := builtin.ID()
	e, err := native.Open(native.Config{File: f, ID: id, Name: name, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := c.Serve(e, host.Prices{}, mesh.Hash{}); err != nil {
		t.Fatal(err)
	}
}
