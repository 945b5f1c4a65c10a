package native

import (
	"fmt"

	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

// pagePositions is how many positions a page of a kernel.Cache holds.
const pagePositions = 256

// idlePages bounds what an engine without requests keeps for the next one.
const idlePages = 4

// store holds the keys and values of one sequence.
type store struct {
	layers []*kernel.Cache
	pages  int // of every layer; reserved, made when first written
}

// memory lends stores to sequences and keeps their pages below a limit. It belongs
// to the scheduler.
type memory struct {
	config    model.Config
	format    kernel.Format
	pageBytes int64 // of one page in all layers
	limit     int   // pages
	used      int   // pages of lent and of idle stores
	idle      []*store
}

func newMemory(c model.Config, format kernel.Format, limit int64) (*memory, error) {
	cache, err := kernel.NewCache(format, c.KVHeads, c.HeadDim)
	if err != nil {
		return nil, err
	}
	m := &memory{config: c, format: format, pageBytes: int64(cache.PageBytes()) * int64(c.Layers)}
	m.limit = int(limit / m.pageBytes)
	if m.limit < 1 {
		return nil, fmt.Errorf("memory of %d bytes for keys and values: this model needs at least %d", limit, m.pageBytes)
	}
	return m, nil
}

func pagesFor(positions int) int { return (positions + pagePositions - 1) / pagePositions }

// take returns a store with room for that many positions, or nil when the memory
// is lent.
func (m *memory) take(positions int) (*store, error) {
	var s *store
	if n := len(m.idle); n > 0 {
		s, m.idle = m.idle[n-1], m.idle[:n-1]
	} else {
		s = &store{layers: make([]*kernel.Cache, m.config.Layers)}
		for i := range s.layers {
			var err error
			if s.layers[i], err = kernel.NewCache(m.format, m.config.KVHeads, m.config.HeadDim); err != nil {
				return nil, err
			}
		}
	}
	m.shrink(s, pagesFor(positions))
	if !m.grow(s, positions) {
		m.give(s)
		return nil, nil
	}
	return s, nil
}

// grow makes room for that many positions in a lent store. It reports false, with
// the store as it was, when the memory is lent.
func (m *memory) grow(s *store, positions int) bool {
	more := pagesFor(positions) - s.pages
	if more <= 0 {
		return true
	}
	for m.used+more > m.limit && len(m.idle) > 0 {
		last := len(m.idle) - 1
		m.shrink(m.idle[last], 0)
		m.idle = m.idle[:last]
	}
	if m.used+more > m.limit {
		return false
	}
	m.used += more
	s.pages += more
	return true
}

func (m *memory) shrink(s *store, pages int) {
	if s.pages <= pages {
		return
	}
	for _, c := range s.layers {
		c.Truncate(pages * pagePositions)
	}
	m.used -= s.pages - pages
	s.pages = pages
}

// give takes a store back. Its pages serve the next sequence: attention reads only
// positions that were stored since.
func (m *memory) give(s *store) { m.idle = append(m.idle, s) }

// rest frees what a long pause does not need.
func (m *memory) rest() {
	for i, s := range m.idle {
		if i == 0 {
			m.shrink(s, idlePages)
		} else {
			m.shrink(s, 0)
		}
	}
	if len(m.idle) > 1 {
		clear(m.idle[1:])
		m.idle = m.idle[:1]
	}
}
