package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/state/proof"
)

// The tree of package proof, in pages of four levels: a page holds the 16 slots below
// it, so one read and one write on disk stand for up to 15 inner nodes, which are
// computed. A page exists where a subtree has two leaves or more; the root page exists
// when there is a leaf.

type slotKind uint8

const (
	empty slotKind = iota
	leaf
	inner
)

// slot is one of a page's 16 subtrees.
type slot struct {
	kind slotKind
	hash mesh.Hash
	key  []byte // of a leaf
}

type page [16]slot

func (p *page) empty() bool {
	for i := range p {
		if p[i].kind != empty {
			return false
		}
	}
	return true
}

// prefix is a path down to a page, one nibble a byte.
type prefix []byte

// key returns where the page lies in the database: upper pages, which every block
// reads, side by side.
func (p prefix) key() []byte {
	out := make([]byte, 2, 2+(len(p)+1)/2)
	out[0], out[1] = tableTree, byte(len(p))
	for i, n := range p {
		if i%2 == 0 {
			out = append(out, n<<4)
		} else {
			out[len(out)-1] |= n
		}
	}
	return out
}

func nibble(path mesh.Hash, depth int) byte { return path[depth/2] >> (4 - depth%2*4) & 15 }

// encode writes which slots are leaves and which inner nodes, 16 bits each, and then
// their hashes in order; behind that of a leaf its key.
func (p *page) encode() []byte {
	var leaves, inners uint16
	size := 4
	for i := range p {
		switch p[i].kind {
		case leaf:
			leaves |= 1 << i
			size += len(p[i].hash) + 2 + len(p[i].key)
		case inner:
			inners |= 1 << i
			size += len(p[i].hash)
		}
	}
	out := make([]byte, 0, size)
	out = binary.BigEndian.AppendUint16(out, leaves)
	out = binary.BigEndian.AppendUint16(out, inners)
	for i := range p {
		if p[i].kind == empty {
			continue
		}
		out = append(out, p[i].hash[:]...)
		if p[i].kind == leaf {
			out = binary.BigEndian.AppendUint16(out, uint16(len(p[i].key)))
			out = append(out, p[i].key...)
		}
	}
	return out
}

// decodePage reads what encode wrote; the keys of its leaves share b.
func decodePage(b []byte) (*page, error) {
	bad := func() (*page, error) { return nil, fmt.Errorf("a page of the tree is damaged (%d bytes)", len(b)) }
	if len(b) < 4 {
		return bad()
	}
	leaves, inners := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if leaves&inners != 0 {
		return bad()
	}
	var p page
	rest := b[4:]
	for i := range p {
		isLeaf, isInner := leaves>>i&1 == 1, inners>>i&1 == 1
		if !isLeaf && !isInner {
			continue
		}
		if len(rest) < len(p[i].hash) {
			return bad()
		}
		p[i].kind = inner
		rest = rest[copy(p[i].hash[:], rest):]
		if isLeaf {
			if len(rest) < 2 {
				return bad()
			}
			n := int(binary.BigEndian.Uint16(rest))
			if rest = rest[2:]; n == 0 || n > len(rest) {
				return bad()
			}
			p[i].kind, p[i].key, rest = leaf, rest[:n:n], rest[n:]
		}
	}
	if len(rest) != 0 {
		return bad()
	}
	return &p, nil
}

// nodes is a page with its inner nodes: the root at 1, the children of i at 2i and
// 2i+1, the slots from 16.
type nodes [32]slot

func (p *page) nodes() *nodes {
	var n nodes
	copy(n[16:], p[:])
	for i := 15; i > 0; i-- {
		n[i] = join(&n[2*i], &n[2*i+1])
	}
	return &n
}

// root returns what stands for the page in its parent's slot.
func (p *page) root() slot {
	n := *p
	for width := 8; width > 0; width /= 2 {
		for i := range width {
			n[i] = join(&n[2*i], &n[2*i+1])
		}
	}
	return n[0]
}

// join returns the parent of two nodes. A lone leaf rises.
func join(left, right *slot) slot {
	switch {
	case left.kind == empty && right.kind != inner:
		return *right
	case right.kind == empty && left.kind != inner:
		return *left
	}
	return slot{kind: inner, hash: proof.Inner(left.hash, right.hash)}
}

// write is a change of one leaf.
type write struct {
	path   mesh.Hash
	key    []byte
	leaf   mesh.Hash // the new hash
	remove bool
}

// treeUpdate applies writes to a tree and collects the pages that change.
type treeUpdate struct {
	// load returns the stored bytes of a page, or nil when there is none.
	load func(key []byte) ([]byte, error)
	// save takes a page's new bytes, nil to delete it, and the page before, nil when it
	// is new, and after.
	save func(key, value []byte, was, now *page) error
	// path is proof.Path; tests put keys where no key is known to be.
	path func(key []byte) mesh.Hash
}

// apply makes the writes, one per key in any order, and returns the new root hash.
func (t *treeUpdate) apply(writes []write) (mesh.Hash, error) {
	slices.SortFunc(writes, func(a, b write) int { return bytes.Compare(a.path[:], b.path[:]) })
	at := make(prefix, 0, 64)
	old, err := t.load(at.key())
	if err != nil {
		return mesh.Hash{}, err
	}
	root, err := t.page(at, old, writes)
	return root.hash, err
}

// page applies writes below one page, whose stored bytes are old, and returns what
// stands for it in its parent's slot.
func (t *treeUpdate) page(at prefix, old []byte, writes []write) (slot, error) {
	p, was := &page{}, (*page)(nil)
	if old != nil {
		var err error
		if was, err = decodePage(old); err != nil {
			return slot{}, err
		}
		*p = *was
	}
	for len(writes) > 0 {
		n := nibble(writes[0].path, len(at))
		end := 1
		for end < len(writes) && nibble(writes[end].path, len(at)) == n {
			end++
		}
		s, err := t.slot(append(at, n), p[n], writes[:end])
		if err != nil {
			return slot{}, err
		}
		p[n], writes = s, writes[end:]
	}
	root := p.root()
	var encoded []byte
	if root.kind == inner || root.kind == leaf && len(at) == 0 {
		encoded = p.encode()
	}
	if encoded == nil && old == nil || bytes.Equal(encoded, old) {
		return root, nil
	}
	return root, t.save(at.key(), encoded, was, p)
}

// slot applies writes to one slot of a page; below is the path to the page under it.
func (t *treeUpdate) slot(below prefix, s slot, writes []write) (slot, error) {
	if s.kind == inner {
		old, err := t.load(below.key())
		if err != nil {
			return slot{}, err
		}
		if old == nil {
			return slot{}, fmt.Errorf("a page of the tree is missing at %x", []byte(below))
		}
		return t.page(below, old, writes)
	}
	if len(writes) == 1 && (s.kind == empty || bytes.Equal(s.key, writes[0].key)) {
		if writes[0].remove {
			return slot{}, nil
		}
		return slot{kind: leaf, hash: writes[0].leaf, key: writes[0].key}, nil
	}
	// The leaf that is here and those that come: with two or more left over they get a
	// page of their own.
	left := make([]write, 0, len(writes)+1)
	keep := s.kind == leaf
	for _, w := range writes {
		if s.kind == leaf && bytes.Equal(s.key, w.key) {
			keep = false
		}
		if !w.remove {
			left = append(left, w)
		}
	}
	if keep {
		here := write{path: t.path(s.key), key: s.key, leaf: s.hash}
		i, _ := slices.BinarySearchFunc(left, here, func(a, b write) int { return bytes.Compare(a.path[:], b.path[:]) })
		left = slices.Insert(left, i, here)
	}
	switch len(left) {
	case 0:
		return slot{}, nil
	case 1:
		return slot{kind: leaf, hash: left[0].leaf, key: left[0].key}, nil
	}
	if len(below) == proof.MaxDepth/4 {
		return slot{}, fmt.Errorf("keys %x and %x have one SHA-256", left[0].key, left[1].key)
	}
	return t.page(below, nil, left)
}
