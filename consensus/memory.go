package consensus

import (
	"sync"

	"github.com/gonka-mesh/mesh"
)

// memory remembers good signatures and proofs: a transaction is checked when it arrives,
// when it is proposed and when it is decided, and costs its arithmetic once. Two
// generations bound it.
type memory struct {
	mu         sync.Mutex
	young, old map[mesh.Hash]struct{} // guarded by mu
}

const memorySize = 20_000 // a generation

func newMemory() *memory {
	return &memory{young: make(map[mesh.Hash]struct{}), old: make(map[mesh.Hash]struct{})}
}

// recall returns whether a signature is known to be good, or finds out.
func (m *memory) recall(key mesh.Hash, verify func() bool) bool {
	m.mu.Lock()
	_, young := m.young[key]
	_, old := m.old[key]
	m.mu.Unlock()
	if young {
		return true
	}
	if !old && !verify() {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.young) >= memorySize {
		m.young, m.old = make(map[mesh.Hash]struct{}), m.young
	}
	m.young[key] = struct{}{}
	return true
}
