// Package merkle holds the hash trees that several rules share: the binary tree
// of RFC 6962 over 32-byte leaves (receipts commit to hidden states with it) and
// the chunk root of a file (model manifests and blob transfer name files by it).
//
// Leaves are hashed as SHA-256(0x00 ‖ leaf) and inner nodes as
// SHA-256(0x01 ‖ left ‖ right), so a node can never be passed off as a leaf. A
// tree of n > 1 leaves splits at the largest power of two below n. The root of no
// leaves is the SHA-256 of the empty string.
package merkle

import (
	"fmt"
	"math/bits"

	"github.com/gonka-mesh/mesh"
)

func leafHash(leaf mesh.Hash) mesh.Hash {
	return mesh.HashOf([]byte{0}, leaf[:])
}

func nodeHash(left, right mesh.Hash) mesh.Hash {
	return mesh.HashOf([]byte{1}, left[:], right[:])
}

// Root returns the root over the leaves in their order.
func Root(leaves []mesh.Hash) mesh.Hash {
	var b Builder
	for _, leaf := range leaves {
		b.Append(leaf)
	}
	return b.Root()
}

// Builder computes a root from leaves that arrive one by one. It keeps one hash
// per set bit of the leaf count. The zero Builder is an empty tree.
type Builder struct {
	count uint64
	peaks []mesh.Hash // roots of the complete subtrees, largest first
}

// Append adds the next leaf.
func (b *Builder) Append(leaf mesh.Hash) {
	h := leafHash(leaf)
	// Each trailing one bit of the count is a complete subtree of that size.
	for c := b.count; c&1 == 1; c >>= 1 {
		last := len(b.peaks) - 1
		h = nodeHash(b.peaks[last], h)
		b.peaks = b.peaks[:last]
	}
	b.peaks = append(b.peaks, h)
	b.count++
}

// Len returns the number of leaves so far.
func (b *Builder) Len() uint64 { return b.count }

// Root returns the root over the leaves so far; more may follow.
func (b *Builder) Root() mesh.Hash {
	if len(b.peaks) == 0 {
		return mesh.HashOf()
	}
	h := b.peaks[len(b.peaks)-1]
	for i := len(b.peaks) - 2; i >= 0; i-- {
		h = nodeHash(b.peaks[i], h)
	}
	return h
}

// Proof returns the inclusion proof of the leaf at index: the sibling hashes from
// the leaf up to the root, at most 64 of them.
func Proof(leaves []mesh.Hash, index int) ([]mesh.Hash, error) {
	if index < 0 || index >= len(leaves) {
		return nil, fmt.Errorf("merkle proof of leaf %d: the tree has %d", index, len(leaves))
	}
	return path(leaves, index), nil
}

func path(leaves []mesh.Hash, index int) []mesh.Hash {
	if len(leaves) <= 1 {
		return nil
	}
	split := 1 << (bits.Len(uint(len(leaves)-1)) - 1)
	if index < split {
		return append(path(leaves[:split], index), Root(leaves[split:]))
	}
	return append(path(leaves[split:], index-split), Root(leaves[:split]))
}

// Verify reports whether leaf is the one at index in the tree of count leaves
// with this root. A proof of the wrong length is refused.
// Source: RFC 9162, section 2.1.3.2.
func Verify(root, leaf mesh.Hash, index, count uint64, proof []mesh.Hash) bool {
	if index >= count || len(proof) > 64 {
		return false
	}
	fn, sn, h := index, count-1, leafHash(leaf)
	for _, sibling := range proof {
		if sn == 0 {
			return false
		}
		if fn&1 == 1 || fn == sn {
			h = nodeHash(sibling, h)
			for fn&1 == 0 && fn != 0 {
				fn >>= 1
				sn >>= 1
			}
		} else {
			h = nodeHash(h, sibling)
		}
		fn >>= 1
		sn >>= 1
	}
	return sn == 0 && h == root
}
