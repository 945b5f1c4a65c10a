package consensus

import (
	"testing"

	cp2p "github.com/cometbft/cometbft/p2p"

	"github.com/gonka-mesh/mesh"
)

// TestOutgoingMemory: peers that read nothing have together no more waiting than the
// budget and what is each channel's own; another peer's votes still go, and what a peer
// took comes back when it is sent or the peer is gone.
func TestOutgoingMemory(t *testing.T) {
	const budget = 4 << 20
	s := &meshSwitch{channels: map[byte]*channel{
		1: {ChannelDescriptor: cp2p.ChannelDescriptor{ID: 1}.FillDefaults()},
		2: {ChannelDescriptor: cp2p.ChannelDescriptor{ID: 2}.FillDefaults()},
	}, outgoing: newBudget(budget), ctx: t.Context()}
	peer := func(n byte) *meshPeer {
		p := newMeshPeer(s, mesh.Address{n})
		for _, o := range p.out {
			o.once.Do(func() {}) // nobody writes
		}
		return p
	}
	greedy, other := peer(1), peer(2)
	block := make([]byte, 1<<20)
	for i := range budget / len(block) {
		if !greedy.enqueue(1, block, 0) {
			t.Fatalf("message %d: there is room", i)
		}
	}
	for _, p := range []*meshPeer{greedy, other} {
		if p.enqueue(2, block, 0) {
			t.Error("more waits than there is memory for")
		}
		for range 4 {
			if !p.enqueue(2, make([]byte, queueOwn/4), 0) {
				t.Error("small messages do not go while others hold the budget")
			}
		}
		if p.enqueue(2, make([]byte, queueOwn/4), 0) {
			t.Error("small messages have no bound")
		}
	}
	o := greedy.out[1]
	greedy.sent(o, <-o.queue)
	if !other.enqueue(1, block, 0) {
		t.Error("what was sent is still counted")
	}
	if other.enqueue(1, block, 0) {
		t.Error("what was sent is given back twice")
	}
	greedy.end()
	greedy.sent(o, <-o.queue) // its writer was in the middle of it
	if greedy.enqueue(1, block, 0) {
		t.Error("a peer that is gone is sent to")
	}
	other.end()
	if free := s.outgoing.free.Load(); free != budget {
		t.Errorf("%d of %d are free when all are gone", free, budget)
	}
}
