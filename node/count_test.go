package node

import (
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/p2p"
)

// TestLightCounts: a node that serves nothing counts the prompts of the built-in model,
// as a host of it does, and no others.
func TestLightCounts(t *testing.T) {
	k := &kept{all: make(map[mesh.Hash]*inference.Receipt)}
	light, host := coreOn(t, 1, p2p.RoleLight, k, nil), coreOn(t, 2, p2p.RoleHost, k, nil)
	serveAs(t, host, builtin.Name)
	for _, q := range []*inferencepb.Question{
		{Prompt: "Once upon a time"},
		{Messages: []*inferencepb.Message{{Role: "user", Content: "What is Mesh?"}}},
		{PromptTokens: []uint32{1, 2, 3}},
	} {
		got, want := light.countOf(builtin.ID(), q), host.countOf(builtin.ID(), q)
		if got != want || want == 0 {
			t.Errorf("%v: %d tokens, and %d by its host", q, got, want)
		}
		if n := light.countOf(mesh.HashOf([]byte("another")), q); n != 0 {
			t.Errorf("%v: %d tokens of a model that nobody here has", q, n)
		}
	}
	if n := light.countOf(builtin.ID(), &inferencepb.Question{PromptTokens: []uint32{1 << 30}}); n != 0 {
		t.Errorf("%d tokens of what is no prompt", n)
	}
}
