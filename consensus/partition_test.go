package consensus

import (
	"os"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

// TestPartition cuts four validators into two pairs that do not hear of each other: both
// stand still, and when the network is whole again they go on with one chain.
func TestPartition(t *testing.T) {
	sim := p2psim.New(p2psim.Config{Seed: 1, Latency: time.Millisecond, Bandwidth: 1_000_000_000})
	n := newToyNet(t, 4, 0, nil)
	t.Cleanup(func() { // after the chains, before the test's folder goes
		for _, node := range n.nodes {
			node.host.Close()
		}
		sim.Close()
	})
	for i, node := range n.nodes {
		host, err := p2p.New(p2p.Config{Network: n.network, Genesis: n.hash, Key: toyKey(i), Role: p2p.RoleValidator,
			Listen: []string{p2psim.Addr(i + 1)}, ListenUDP: sim.Listen, Log: n.log(i)})
		if err != nil {
			t.Fatal(err)
		}
		if err := host.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		node.host = host
		for k := range i {
			if _, err := host.Connect(t.Context(), p2psim.Multiaddr(k+1, n.nodes[k].host.Address())); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, node := range n.nodes {
		n.startChain(node)
	}
	n.reach(3, n.nodes...)

	between := func(p p2psim.Path) {
		for _, a := range []int{1, 2} {
			for _, b := range []int{3, 4} {
				sim.SetPath(a, b, p)
			}
		}
	}
	between(p2psim.Path{Drop: true})
	time.Sleep(time.Second) // for what was decided already
	var at mesh.Height
	for _, node := range n.nodes {
		at = max(at, node.height())
	}
	long := 4 * time.Second
	if os.Getenv("MESH_TRIALS") != "" {
		long = time.Minute // until the connections have broken
	}
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, node := range n.nodes {
			if h := node.height(); h > at {
				t.Fatalf("node %d decided block %d with half of the power", node.i, h)
			}
		}
	}
	between(p2psim.Path{})
	healed := time.Now()
	n.reach(at+1, n.nodes[0])
	took := time.Since(healed)
	t.Logf("cut for %s; blocks %s after the network was whole", long, took.Round(time.Millisecond))
	if os.Getenv("MESH_TRIALS") != "" && took > 10*time.Second {
		t.Errorf("blocks came %s after the network was whole", took)
	}
	n.reach(at+3, n.nodes...)
	for h := range at + 3 {
		n.agree(h+1, n.nodes...)
	}
}
