package state

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/state/proof"
)

// deepTree is a tree in memory whose keys lie where the test says: nobody knows keys
// whose hashes share so many bits.
type deepTree struct {
	pages map[string][]byte
	paths map[string]mesh.Hash
	root  mesh.Hash
}

func (d *deepTree) apply(writes ...write) (err error) {
	t := treeUpdate{
		load: func(key []byte) ([]byte, error) { return d.pages[string(key)], nil },
		save: func(key, value []byte, _, _ *page) error {
			d.pages[string(key)] = value
			if value == nil {
				delete(d.pages, string(key))
			}
			return nil
		},
		path: func(key []byte) mesh.Hash { return d.paths[string(key)] },
	}
	d.root, err = t.apply(writes)
	return err
}

// sharing returns a path that has its first n bits from another and not the next.
func sharing(path mesh.Hash, n int, r *rand.Rand) mesh.Hash {
	out := mesh.Hash{}
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	for bit := range n + 1 {
		mask := byte(1) << (7 - bit%8)
		out[bit/8] = out[bit/8]&^mask | path[bit/8]&mask
	}
	out[n/8] ^= 1 << (7 - n%8)
	return out
}

// TestKeysOfOneBeginning puts keys into the tree that agree on up to 255 bits, together
// and one after the other, and takes them out again: the root is that of the
// definition, and nothing is left behind. Up to 128 bits whoever has the money could
// make them agree.
func TestKeysOfOneBeginning(t *testing.T) {
	r := seeded(t)
	var first mesh.Hash
	for i := range first {
		first[i] = byte(r.Uint32())
	}
	for _, n := range []int{0, 3, 4, 63, 127, 128, 129, 131, 132, 200, 252, 255} {
		d := &deepTree{pages: map[string][]byte{}, paths: map[string]mesh.Hash{
			"A1": first, "A2": sharing(first, n, r), "A3": sharing(first, n/2, r),
		}}
		leaf := func(key, value string) write {
			return write{path: d.paths[key], key: []byte(key), leaf: proof.Leaf(d.paths[key], []byte(value))}
		}
		gone := func(key string) write { return write{path: d.paths[key], key: []byte(key), remove: true} }
		one, two, three, changed := leaf("A1", "x"), leaf("A2", "y"), leaf("A3", "z"), leaf("A2", "w")
		for i, c := range []struct{ writes, want []write }{
			{[]write{one, two}, []write{one, two}},
			{[]write{three}, []write{one, two, three}},
			{[]write{gone("A1")}, []write{two, three}},
			{[]write{one, changed}, []write{one, changed, three}},
			{[]write{gone("A2")}, []write{one, three}},
			{[]write{two}, []write{one, two, three}},
			{[]write{gone("A3"), gone("A2"), gone("A1")}, nil},
		} {
			if err := d.apply(slices.Clone(c.writes)...); err != nil {
				t.Fatalf("%d bits, step %d: %v", n, i, err)
			}
			if want := naiveRoot(c.want, 0); d.root != want {
				t.Fatalf("%d bits, step %d: root %s, want %s", n, i, d.root.Short(), want.Short())
			}
		}
		if len(d.pages) != 0 {
			t.Fatalf("%d bits: %d pages are left of an empty tree", n, len(d.pages))
		}
	}
	d := &deepTree{pages: map[string][]byte{}, paths: map[string]mesh.Hash{"A1": first, "A2": first}}
	for i, err := range []error{
		d.apply(write{path: first, key: []byte("A1")}, write{path: first, key: []byte("A2")}),
		d.apply(write{path: first, key: []byte("A1")}),
		d.apply(write{path: first, key: []byte("A2")}),
	} {
		if want := i != 1; (err != nil) != want || want && !strings.Contains(fmt.Sprint(err), "one SHA-256") {
			t.Fatalf("two keys of one hash, %d: %v", i, err)
		}
	}
}
