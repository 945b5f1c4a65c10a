package native

import (
	"fmt"
	"slices"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

const (
	// pagePositions is how many positions a page of a kernel.Cache holds.
	pagePositions = 256
	// sparePages bounds what an engine without requests keeps unused for the next one.
	sparePages = 4
	// keepFor is how long what nobody used again is kept: a conversation pauses for
	// minutes. What is short of memory goes earlier.
	keepFor = 10 * time.Minute
)

// block is one page of each layer, and what is known of it.
type block struct {
	pages  []*kernel.Page
	tokens []int32     // whose keys and values it has, from its first position on
	leaves []mesh.Hash // of their hidden states: receipts commit to all positions
	refs   int         // stores that have it

	// Its place in the tree of its group, from its first token on.
	tree     *tree
	parent   *block // full; the tree's root for the first positions
	children []*block

	// While no store has it: its place among what the group may lose, and since when.
	older, newer *block
	since        time.Time
}

// tree is what was computed for a group: a path from the root is a prefix of tokens.
// Tokens are compared and not hashed, so two prefixes are never taken for one.
//
// A group sees its own tree alone. If prefixes were shared with others, the time to
// the first token would tell a payer which prompts others have sent. What is common
// to all of them, a model's template, is short; a long instruction that one payer
// sends with all its requests is found by that payer.
type tree struct {
	root   *block
	group  mesh.Address
	used   int // blocks that stores have
	cached int // other blocks
	oldest *block
	newest *block
}

// store holds the keys and values of one sequence. All but its last blocks may be
// those of other stores too.
type store struct {
	layers []*kernel.Cache
	blocks []*block
	tree   *tree
}

// memory lends blocks to stores, and keeps them for prefixes to come, below a limit. It
// belongs to the scheduler, which changes it with Engine.mu or Engine.compute held; who
// holds both may, too.
type memory struct {
	config    model.Config
	format    kernel.Format
	shape     *kernel.Cache // makes pages
	pageBytes int64         // of a block
	limit     int           // blocks
	lent      int           // blocks' worth of it that sequences outside the batch have
	owed      int           // and that one of these waits for: nobody enters the batch before
	used      int           // blocks that stores have
	cached    int           // other blocks in trees
	spare     []*block      // other blocks
	trees     map[mesh.Address]*tree
	stores    []*store  // without blocks
	now       time.Time // of the step

	prompt, reused uint64 // tokens of sequences that were taken in, and those of them that were kept
}

func newMemory(c model.Config, format kernel.Format, limit int64) (*memory, error) {
	shape, err := kernel.NewCache(format, c.KVHeads, c.HeadDim)
	if err != nil {
		return nil, err
	}
	m := &memory{config: c, format: format, shape: shape, trees: make(map[mesh.Address]*tree)}
	m.pageBytes = int64(shape.PageBytes())*int64(c.Layers) + pagePositions*(4+int64(len(mesh.Hash{})))
	m.limit = int(limit / m.pageBytes)
	if m.limit < 1 {
		return nil, fmt.Errorf("memory of %d bytes for keys and values: this model needs at least %d", limit, m.pageBytes)
	}
	return m, nil
}

// usedBy is how many blocks the sequences of a group have.
func (m *memory) usedBy(g *group) int {
	if t := m.trees[g.key]; t != nil {
		return t.used
	}
	return 0
}

func (m *memory) load() inference.Load {
	return inference.Load{
		PagesUsed: m.used + m.lent, PagesCached: m.cached, PagesLimit: m.limit, PromptTokens: m.prompt, CachedTokens: m.reused,
	}
}

func pagesFor(positions int) int { return (positions + pagePositions - 1) / pagePositions }

// take returns a store with room for all tokens of a group's sequence, and how many of
// them are computed in it; never all, for the last one's logits are wanted. It returns
// nil when the memory is lent.
func (m *memory) take(group mesh.Address, tokens []int32) (*store, int, error) {
	t := m.trees[group]
	if t == nil {
		t = &tree{group: group}
		t.root = &block{tree: t}
	}
	s, err := m.newStore()
	if err != nil {
		return nil, 0, err
	}
	m.trees[group], s.tree = t, t
	path, tail, common := t.root.find(tokens[:len(tokens)-1])
	for _, b := range path {
		m.hold(s, b)
	}
	tight := m.used+pagesFor(len(tokens))-len(path) >= m.limit-m.lent // no room for one more
	switch {
	case tail == nil || tail.refs > 0:
	case len(tail.children) == 0 && (common == len(tail.tokens) || tight):
		m.hold(s, tail) // and go on in it
		tail.tokens, tail.leaves = tail.tokens[:common], tail.leaves[:common]
		tail = nil
	case tight:
		tail, common = nil, 0
	}
	if tail != nil {
		m.pin(tail) // until it is copied
	}
	room := m.grow(s, len(tokens))
	if room && tail != nil {
		m.copy(s, len(path), tail, common)
	}
	if tail != nil {
		m.release(t, tail, true)
	}
	if !room {
		m.give(s)
		return nil, 0, nil
	}
	computed := len(path)*pagePositions + common
	m.prompt += uint64(len(tokens))
	m.reused += uint64(computed)
	return s, computed, nil
}

func (m *memory) newStore() (*store, error) {
	if n := len(m.stores); n > 0 {
		s := m.stores[n-1]
		m.stores = m.stores[:n-1]
		return s, nil
	}
	s := &store{layers: make([]*kernel.Cache, m.config.Layers)}
	for i := range s.layers {
		var err error
		if s.layers[i], err = kernel.NewCache(m.format, m.config.KVHeads, m.config.HeadDim); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// find returns the full blocks below b that hold the beginning of tokens, and the
// block that holds most of what follows, with how much that is.
func (b *block) find(tokens []int32) (path []*block, tail *block, common int) {
	for {
		child, n := b.longest(tokens, nil)
		if n < pagePositions {
			return path, child, n
		}
		path, b, tokens = append(path, child), child, tokens[n:]
	}
}

// longest returns the child with most of the beginning of tokens.
func (b *block) longest(tokens []int32, but *block) (best *block, common int) {
	for _, c := range b.children {
		if c == but {
			continue
		}
		n, end := 0, min(len(tokens), len(c.tokens))
		for n < end && tokens[n] == c.tokens[n] {
			n++
		}
		if n > common {
			best, common = c, n
		}
	}
	return best, common
}

// hold makes a block the next one of a store.
func (m *memory) hold(s *store, b *block) {
	if b.tree == nil {
		b.tree = s.tree
	}
	m.pin(b)
	s.blocks = append(s.blocks, b)
	for i, c := range s.layers {
		c.Attach(b.pages[i])
	}
}

// pin counts a use of a block.
func (m *memory) pin(b *block) {
	if b.refs == 0 {
		if b.parent != nil {
			b.tree.drop(b)
			m.cached--
		}
		b.tree.used++
		m.used++
	}
	b.refs++
}

// copy puts the first n positions of a block into the store's own one at a place.
func (m *memory) copy(s *store, place int, from *block, n int) {
	for i, p := range s.blocks[place].pages {
		p.Copy(from.pages[i])
	}
	for i := len(s.blocks[place].tokens); i < n; i++ {
		m.publish(s, place*pagePositions+i, from.tokens[i], from.leaves[i])
	}
}

// grow makes room for that many positions in a store. It reports false, with the
// store as it was, when the memory is lent.
func (m *memory) grow(s *store, positions int) bool {
	more := pagesFor(positions) - len(s.blocks)
	if m.used+more > m.limit-m.lent {
		return more <= 0
	}
	for range more {
		m.hold(s, m.fresh(s.tree))
	}
	return true
}

// fresh returns a block of nobody's, for a tree. There has to be room for one.
func (m *memory) fresh(of *tree) *block {
	if n := len(m.spare); n > 0 {
		b := m.spare[n-1]
		m.spare = m.spare[:n-1]
		return b
	}
	if m.used+m.cached < m.limit-m.lent {
		b := &block{tokens: make([]int32, 0, pagePositions), leaves: make([]mesh.Hash, 0, pagePositions)}
		for range m.config.Layers {
			b.pages = append(b.pages, m.shape.NewPage())
		}
		return b
	}
	if lost := m.evict(); lost != of {
		m.tidy(lost)
	}
	b := m.spare[len(m.spare)-1]
	m.spare = m.spare[:len(m.spare)-1]
	return b
}

// evict makes a spare block of one that is kept, and returns the tree that lost it: the
// group that keeps most loses what it has not used for longest, so that nobody drives
// out what others keep.
func (m *memory) evict() *tree {
	var most *tree
	for _, t := range m.trees {
		if t.cached > 0 && (most == nil || t.cached > most.cached || t.cached == most.cached && t.oldest.since.Before(most.oldest.since)) {
			most = t
		}
	}
	m.forget(most.oldest)
	return most
}

// lend takes n blocks' worth of the memory away, for keys and values that are in no
// store. It reports false, and remembers what it owes, when the memory is lent already.
func (m *memory) lend(n int) bool {
	if m.used+n > m.limit-m.lent {
		m.owed = n
		return false
	}
	m.owed = 0
	m.lent += n
	for m.used+m.cached > m.limit-m.lent {
		m.tidy(m.evict())
	}
	if room := m.limit - m.lent - m.used - m.cached; len(m.spare) > room {
		clear(m.spare[room:])
		m.spare = m.spare[:room]
	}
	return true
}

// forget takes a block that no store has, and that has no children, out of its tree.
// The oldest of a tree never has some: whoever used a child used the block too.
func (m *memory) forget(b *block) {
	b.tree.drop(b)
	m.cached--
	m.unlink(b)
	m.spare = append(m.spare, b)
}

func (m *memory) unlink(b *block) {
	siblings := b.parent.children
	i := slices.Index(siblings, b)
	b.parent.children = slices.Delete(siblings, i, i+1)
	b.tokens, b.leaves, b.tree, b.parent = b.tokens[:0], b.leaves[:0], nil, nil
}

// tidy forgets a tree without blocks.
func (m *memory) tidy(t *tree) {
	if t.used+t.cached == 0 && m.trees[t.group] == t {
		delete(m.trees, t.group)
	}
}

// drop takes a block from the list of those that the tree may lose.
func (t *tree) drop(b *block) {
	if b.older != nil {
		b.older.newer = b.newer
	} else {
		t.oldest = b.newer
	}
	if b.newer != nil {
		b.newer.older = b.older
	} else {
		t.newest = b.older
	}
	b.older, b.newer = nil, nil
	t.cached--
}

// keep puts a block at the end of that list.
func (t *tree) keep(b *block, now time.Time) {
	b.older, b.since = t.newest, now
	if t.newest != nil {
		t.newest.newer = b
	} else {
		t.oldest = b
	}
	t.newest = b
	t.cached++
}

// publish says what a position of a store was computed from. Positions come in
// ascending order.
func (m *memory) publish(s *store, position int, token int32, leaf mesh.Hash) {
	place := position / pagePositions
	b := s.blocks[place]
	if len(b.tokens) == 0 {
		b.parent = s.tree.root
		if place > 0 {
			b.parent = s.blocks[place-1]
		}
		b.parent.children = append(b.parent.children, b)
	}
	b.tokens, b.leaves = append(b.tokens, token), append(b.leaves, leaf)
	if len(b.tokens) == pagePositions {
		// Two that computed the same at the same time go on with one of both.
		if twin, n := b.parent.longest(b.tokens, b); n == pagePositions {
			m.swap(s, place, twin)
		}
	}
}

// swap takes another block of a tree in the place of a store's own, which nobody else
// has and which has no children.
func (m *memory) swap(s *store, place int, b *block) {
	rest := slices.Clone(s.blocks[place+1:])
	own := s.blocks[place]
	s.blocks = s.blocks[:place]
	for _, c := range s.layers {
		c.Truncate(place * pagePositions)
	}
	m.hold(s, b)
	for _, r := range rest {
		s.blocks = append(s.blocks, r)
		for i, c := range s.layers {
			c.Attach(r.pages[i])
		}
	}
	m.release(s.tree, own, false)
}

// advance looks for what others have computed since of a sequence's prompt, and
// returns up to where it is computed then.
func (m *memory) advance(s *store, tokens []int32, computed int) int {
	for end := len(tokens) - 1; computed < end; {
		place, at := computed/pagePositions, computed%pagePositions
		parent := s.tree.root
		if place > 0 {
			parent = s.blocks[place-1]
		}
		own := s.blocks[place]
		found, n := parent.longest(tokens[place*pagePositions:end], own)
		if n <= at {
			return computed
		}
		if n < pagePositions {
			m.copy(s, place, found, n)
		} else {
			m.swap(s, place, found)
		}
		m.reused += uint64(n - at)
		computed = place*pagePositions + n
		if n < pagePositions {
			return computed
		}
	}
	return computed
}

// give takes a store back. What it has computed is kept as long as there is room.
func (m *memory) give(s *store) {
	for i := len(s.blocks) - 1; i >= 0; i-- {
		m.release(s.tree, s.blocks[i], true)
	}
	for _, c := range s.layers {
		c.Truncate(0)
	}
	clear(s.blocks)
	m.tidy(s.tree)
	s.blocks, s.tree = s.blocks[:0], nil
	m.stores = append(m.stores, s)
}

// release ends a store's use of a block, and keeps it if it is worth that.
func (m *memory) release(t *tree, b *block, keep bool) {
	if b.refs--; b.refs > 0 {
		return
	}
	t.used--
	m.used--
	if b.parent == nil {
		b.tree = nil
		m.spare = append(m.spare, b)
		return
	}
	if _, n := b.parent.longest(b.tokens, b); !keep || n == len(b.tokens) && len(b.children) == 0 {
		m.unlink(b) // another has all of it
		m.spare = append(m.spare, b)
		return
	}
	t.keep(b, m.now)
	m.cached++
	for i := len(b.parent.children) - 1; i >= 0; i-- {
		c := b.parent.children[i]
		if c != b && c.refs == 0 && len(c.children) == 0 && len(c.tokens) <= len(b.tokens) && slices.Equal(c.tokens, b.tokens[:len(c.tokens)]) {
			m.forget(c) // it has all of that one
		}
	}
}

// rest frees what an engine without requests does not need, and what was not used
// for long.
func (m *memory) rest() {
	m.expire()
	if len(m.spare) > sparePages {
		clear(m.spare[sparePages:])
		m.spare = m.spare[:sparePages]
	}
	if len(m.stores) > sparePages {
		clear(m.stores[sparePages:])
		m.stores = m.stores[:sparePages]
	}
}

// expire forgets what was not used for long.
func (m *memory) expire() {
	for _, t := range m.trees {
		for t.oldest != nil && m.now.Sub(t.oldest.since) > keepFor {
			m.forget(t.oldest)
		}
		m.tidy(t)
	}
}
