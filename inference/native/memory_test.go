package native

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
)

func newTestMemory(t testing.TB, limit int) *memory {
	t.Helper()
	m, err := newMemory(small(t).Config, 1, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	m.limit, m.now = limit, time.Unix(1e9, 0)
	return m
}

// check counts everything in a memory anew.
func (m *memory) check(stores map[*store]bool) error {
	refs, used, cached := make(map[*block]int), make(map[*tree]int), 0
	for s := range stores {
		for i, b := range s.blocks {
			refs[b]++
			if b.tree != s.tree {
				return fmt.Errorf("a store has the block of another tree")
			}
			if i > 0 && b.parent != nil && b.parent != s.blocks[i-1] {
				return fmt.Errorf("block %d of a store does not follow the one before", i)
			}
		}
	}
	for b, n := range refs {
		used[b.tree]++
		if b.refs != n {
			return fmt.Errorf("a block counts %d uses, it has %d", b.refs, n)
		}
		if n > 1 && len(b.tokens) < pagePositions {
			return fmt.Errorf("%d stores have a block of %d tokens", n, len(b.tokens))
		}
	}
	for _, t := range m.trees {
		n := 0
		for b := t.oldest; b != nil; b = b.newer {
			n++
			if b.refs != 0 || b.tree != t || !slices.Contains(b.parent.children, b) || len(b.tokens) == 0 {
				return fmt.Errorf("the list of a tree has a block that is in use or in no tree")
			}
			if b.newer == nil && t.newest != b {
				return fmt.Errorf("the newest block of a tree is not at the end of its list")
			}
			for _, c := range b.children { // the oldest is lost first
				for o := b.newer; o != nil; o = o.newer {
					if o == c {
						return fmt.Errorf("a block would be lost before its child")
					}
				}
			}
		}
		if n != t.cached || used[t] != t.used || n+t.used == 0 {
			return fmt.Errorf("a tree counts %d and %d blocks, it has %d and %d", t.cached, t.used, n, used[t])
		}
		cached += n
		if err := t.root.check(true); err != nil {
			return err
		}
	}
	if m.cached != cached || m.used != len(refs) || m.used+m.cached+len(m.spare)+m.lent > m.limit {
		return fmt.Errorf("%d used, %d cached, %d spare and %d lent of %d, counted %d and %d", m.used, m.cached, len(m.spare), m.lent, m.limit, len(refs), cached)
	}
	for _, b := range m.spare {
		if b.refs != 0 || len(b.tokens)+len(b.children) != 0 || b.parent != nil || b.tree != nil {
			return fmt.Errorf("a spare block is not empty")
		}
	}
	return nil
}

func (b *block) check(root bool) error {
	if !root && len(b.children) > 0 && len(b.tokens) != pagePositions {
		return fmt.Errorf("a block of %d tokens has children", len(b.tokens))
	}
	if len(b.leaves) != len(b.tokens) {
		return fmt.Errorf("%d leaves of %d tokens", len(b.leaves), len(b.tokens))
	}
	for _, c := range b.children {
		if c.parent != b {
			return fmt.Errorf("a child has another parent")
		}
		if err := c.check(false); err != nil {
			return err
		}
	}
	return nil
}

// leafOf stands for the hidden state: a function of all tokens up to a position.
func leafOf(before mesh.Hash, token int32) mesh.Hash {
	return mesh.HashOf(before[:], fmt.Append(nil, token))
}

// TestMemoryRandom drives a memory with random requests of several groups that begin
// alike, and holds that uses are counted right, nothing leaks, the limit is kept, and
// what is reused belongs to the same tokens of the same group.
func TestMemoryRandom(t *testing.T) {
	type run struct {
		s      *store
		group  mesh.Address
		tokens []int32
		done   int
		leaf   mesh.Hash
	}
	const rounds = 4000
	for _, limit := range []int{2, 5, 12, 40} {
		t.Run(fmt.Sprint(limit, " pages"), func(t *testing.T) {
			seed := rand.Uint64()
			r := rand.New(rand.NewPCG(seed, 0))
			m := newTestMemory(t, limit)
			var runs []*run
			stores := make(map[*store]bool)
			fail := func(format string, args ...any) {
				t.Helper()
				t.Fatalf("seed %d: %s", seed, fmt.Sprintf(format, args...))
			}
			// follow checks that a run's store has what its tokens give, up to done.
			follow := func(q *run) {
				q.leaf = mesh.Hash(q.group)
				for pos, token := range q.tokens[:q.done] {
					b := q.s.blocks[pos/pagePositions]
					q.leaf = leafOf(q.leaf, token)
					if b.tokens[pos%pagePositions] != token || b.leaves[pos%pagePositions] != q.leaf {
						fail("position %d is of other tokens", pos)
					}
				}
			}
			for range rounds {
				m.now = m.now.Add(time.Second)
				switch n := r.IntN(10); {
				case n < 3:
					q := &run{group: mesh.Address{byte(r.IntN(3))}, tokens: make([]int32, 1+r.IntN(min(limit, 4)*pagePositions))}
					base := int32(r.IntN(3))
					change := r.IntN(len(q.tokens) + 1) // from there on it is its own
					for i := range q.tokens {
						q.tokens[i] = base
						if i >= change {
							q.tokens[i] = r.Int32N(4)
						}
					}
					s, computed, err := m.take(q.group, q.tokens)
					if err != nil {
						fail("%v", err)
					}
					if s == nil {
						continue
					}
					if computed >= len(q.tokens) || len(s.blocks) != pagesFor(len(q.tokens)) {
						fail("%d of %d tokens are computed, %d blocks", computed, len(q.tokens), len(s.blocks))
					}
					q.s, q.done = s, computed
					stores[s] = true
					runs = append(runs, q)
					follow(q)
				case len(runs) == 0:
				case n < 8: // compute, and answer
					q := runs[r.IntN(len(runs))]
					if q.done < len(q.tokens) {
						if done := m.advance(q.s, q.tokens, q.done); done != q.done {
							q.done = done
							follow(q)
						}
						for n := 1 + r.IntN(300); n > 0 && q.done < len(q.tokens); n-- {
							q.leaf = leafOf(q.leaf, q.tokens[q.done])
							m.publish(q.s, q.done, q.tokens[q.done], q.leaf)
							q.done++
						}
					} else if len(q.tokens) < limit*pagePositions && m.grow(q.s, len(q.tokens)+1) {
						q.tokens = append(q.tokens, r.Int32N(2))
					}
				case n < 9:
					i := r.IntN(len(runs))
					delete(stores, runs[i].s)
					m.give(runs[i].s)
					runs = slices.Delete(runs, i, i+1)
				case r.IntN(2) == 0:
					m.expire()
				case m.lent > 0:
					m.lent = 0
				default:
					n, fits := 1+r.IntN(limit), limit-m.used
					if got := m.lend(n); got != (n <= fits) || got != (m.lent == n) || got != (m.owed == 0) {
						fail("%d of %d: lent %v, %d, owed %d", n, fits, got, m.lent, m.owed)
					}
					m.owed = 0
				}
				if err := m.check(stores); err != nil {
					fail("%v", err)
				}
			}
			for _, q := range runs {
				delete(stores, q.s)
				m.give(q.s)
			}
			m.lent = 0
			m.now = m.now.Add(2 * keepFor)
			m.rest()
			if err := m.check(stores); err != nil || m.used+m.cached+len(m.trees) != 0 || len(m.spare) > sparePages {
				fail("at rest %d used, %d cached, %d spare, %d trees; %v", m.used, m.cached, len(m.spare), len(m.trees), err)
			}
			if m.reused == 0 {
				fail("nothing was reused")
			}
		})
	}
}
