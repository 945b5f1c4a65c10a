package grammar

import (
	"fmt"
	"math/bits"
	"slices"
)

const maxMaskBytes = 4 << 20 // that a grammar keeps

// mask is the tokens allowed at a point, for a vocabulary: a bit set, or a list if
// they are few.
type mask struct {
	of    *Vocabulary
	dense []uint64
	few   []int32
}

// Matcher follows one answer. It is for one goroutine at a time.
type Matcher struct {
	g    *Grammar
	v    *Vocabulary
	auto *automaton // of which at is a point
	at   *point
	done bool
	bits []uint64
	set  []int32 // the bits that are set in bits
}

// NewMatcher returns a matcher at the start of an answer. It costs little.
func NewMatcher(g *Grammar, v *Vocabulary) *Matcher {
	g.mu.Lock()
	defer g.mu.Unlock()
	return &Matcher{g: g, v: v, auto: g.auto, at: g.auto.first}
}

// Done reports whether a token has ended the answer.
func (m *Matcher) Done() bool { return m.done }

// Accept goes on by a token of the answer. A token that is not allowed is an error and
// changes nothing.
func (m *Matcher) Accept(id int32) error {
	if m.done {
		return fmt.Errorf("token %d follows the end of the answer", id)
	}
	if id < 0 || int(id) >= m.v.size {
		return fmt.Errorf("token %d: the vocabulary has %d", id, m.v.size)
	}
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if err := m.sync(); err != nil {
		return err
	}
	if m.v.isEnd[id] {
		if !m.at.accepting {
			return fmt.Errorf("token %d ends the answer before the constraint is satisfied", id)
		}
		m.done = true
		return nil
	}
	s := m.v.pieces[id]
	p := m.at
	for i := 0; i < len(s) && p != nil; i++ {
		p = m.auto.step(p, m.g.net.classOf[s[i]])
	}
	switch {
	case s != "" && p != nil:
		m.at = p
		return nil
	case s != "" && m.auto.err != nil:
		return m.auto.err
	}
	return fmt.Errorf("token %d is not allowed by the constraint here", id)
}

// sync follows the grammar when that began anew. Called with its lock held.
func (m *Matcher) sync() error {
	m.g.refresh()
	if m.auto == m.g.auto {
		return nil
	}
	p := m.g.auto.adopt(m.at)
	if p == nil {
		return m.g.auto.err
	}
	m.auto, m.at = m.g.auto, p
	return nil
}

// Mask returns the tokens that may come next, a bit for each, lowest ids first. It stays
// valid until the next call and is not to be changed. Only end tokens are allowed after
// the end. ErrTooComplex reports a constraint that cannot be followed any further.
func (m *Matcher) Mask() ([]uint64, error) {
	if m.done {
		return m.show(m.v.ends), nil
	}
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if err := m.sync(); err != nil {
		return nil, err
	}
	for _, k := range m.at.masks {
		if k.of == m.v {
			return m.open(k), nil
		}
	}
	k, err := m.compute()
	if err != nil {
		return nil, err
	}
	m.at.masks = append(m.at.masks, k)
	m.g.masks += 8*len(k.dense) + 4*len(k.few) + 64
	return m.open(k), nil
}

func (m *Matcher) open(k mask) []uint64 {
	if k.dense != nil {
		return k.dense
	}
	return m.show(k.few)
}

// show sets the bits of a list.
func (m *Matcher) show(ids []int32) []uint64 {
	if m.bits == nil {
		m.bits = make([]uint64, m.v.words)
	}
	for _, id := range m.set {
		m.bits[id/64] = 0
	}
	for _, id := range ids {
		m.bits[id/64] |= 1 << (id % 64)
	}
	m.set = ids
	return m.bits
}

// compute finds the mask of the point. If that takes more than an automaton may spend,
// it is tried once more with a fresh one: only then is it the constraint's fault.
func (m *Matcher) compute() (mask, error) {
	for fresh := false; ; fresh = true {
		w := walk{m: m, bits: make([]uint64, m.v.words)}
		m.auto.err = nil
		if w.trie(&m.v.rest, 0) && w.text() {
			return w.result()
		}
		if m.auto.err != nil || fresh {
			return mask{}, ErrTooComplex
		}
		if err := m.sync(); err != nil {
			return mask{}, err
		}
	}
}

// walk computes a mask.
type walk struct {
	m     *Matcher
	bits  []uint64
	count int
	path  []*point
}

func (w *walk) set(id int32) {
	w.bits[id/64] |= 1 << (id % 64)
	w.count++
}

// text allows the tokens of plain code points. It reports false like trie.
func (w *walk) text() bool {
	v, free := w.m.v, w.m.at.free
	if free == 0 {
		return w.trie(&v.text, 0)
	}
	for i, b := range v.plain {
		w.bits[i] |= b
	}
	w.count += len(v.text.tokens)
	if int(free) >= len(v.byLength)-1 {
		return true
	}
	for _, ids := range v.byLength[free+1:] {
		for _, id := range ids {
			w.bits[id/64] &^= 1 << (id % 64)
		}
		w.count -= len(ids)
	}
	return w.trie(&v.text, free)
}

// trie allows the tokens of a trie that can follow. Below nodes whose tokens have at
// most so many code points there is nothing to look at. It reports false if that costs
// too much or cannot be done.
func (w *walk) trie(t *trie, known int32) bool {
	a, classOf := w.m.auto, &w.m.g.net.classOf
	if len(w.path) <= t.height {
		w.path = append(w.path, make([]*point, t.height+1-len(w.path))...)
	}
	w.path[0] = w.m.at
	for i := int32(0); int(i) < len(t.byte); {
		if known > 0 && t.most[i] <= known {
			i = t.end[i]
			continue
		}
		d := t.depth[i]
		class := classOf[t.byte[i]]
		p := w.path[d].next[class]
		if p == nil {
			if a.step(w.path[d], class); a.err != nil || a.spent > maxSpent {
				return false
			}
			p = w.path[d].next[class]
		}
		if p == dead {
			i = t.end[i]
			continue
		}
		for _, id := range t.tokens[t.first[i]:t.first[i+1]] {
			if bit := uint64(1) << (id % 64); w.bits[id/64]&bit == 0 {
				w.bits[id/64] |= bit
				w.count++
			}
		}
		w.path[d+1] = p
		i++
	}
	return true
}

// result adds the end tokens and packs the mask.
func (w *walk) result() (mask, error) {
	v := w.m.v
	if w.m.at.accepting {
		for _, id := range v.ends {
			w.set(id)
		}
	}
	if w.count == 0 {
		return mask{}, errDeadEnd
	}
	if w.count > v.words {
		return mask{of: v, dense: w.bits}, nil
	}
	few := make([]int32, 0, w.count)
	for i, b := range w.bits {
		for ; b != 0; b &= b - 1 {
			few = append(few, int32(64*i+bits.TrailingZeros64(b)))
		}
	}
	return mask{of: v, few: slices.Clip(few)}, nil
}
