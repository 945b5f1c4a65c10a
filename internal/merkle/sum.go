package merkle

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/gonka-mesh/mesh"
)

// SumNode is a node of a Merkle-sum tree: a hash that commits to the sum of the
// amounts under it. A leaf is given as the hash of what it stands for, with its amount.
//
// The tree splits as that of RFC 6962 does. Leaves are hashed as
// SHA-256(0x02 ‖ leaf ‖ be64 amount) and inner nodes as
// SHA-256(0x03 ‖ left ‖ be64 sum of left ‖ right ‖ be64 sum of right), so nobody can
// show a part of the tree with another sum than the root was made of. The root of no
// leaves is the SHA-256 of the empty string, with the sum 0.
type SumNode struct {
	Hash mesh.Hash
	Sum  uint64
}

func sumLeaf(leaf SumNode) SumNode {
	var b [41]byte
	b[0] = 2
	copy(b[1:], leaf.Hash[:])
	binary.BigEndian.PutUint64(b[33:], leaf.Sum)
	return SumNode{sha256.Sum256(b[:]), leaf.Sum}
}

// sumNode reports false when the sum leaves 64 bits.
func sumNode(left, right SumNode) (SumNode, bool) {
	var b [81]byte
	b[0] = 3
	copy(b[1:], left.Hash[:])
	binary.BigEndian.PutUint64(b[33:], left.Sum)
	copy(b[41:], right.Hash[:])
	binary.BigEndian.PutUint64(b[73:], right.Sum)
	sum, carry := bits.Add64(left.Sum, right.Sum, 0)
	return SumNode{sha256.Sum256(b[:]), sum}, carry == 0
}

// SumRoot returns the root over the leaves in their order, and an error when their
// sum leaves 64 bits.
func SumRoot(leaves []SumNode) (SumNode, error) {
	var b SumBuilder
	for _, leaf := range leaves {
		if err := b.Append(leaf); err != nil {
			return SumNode{}, err
		}
	}
	return b.Root(), nil
}

// SumBuilder computes a root from leaves that arrive one by one. It keeps one node per
// set bit of the leaf count. The zero SumBuilder is an empty tree.
type SumBuilder struct {
	count uint64
	sum   uint64
	peaks []SumNode // roots of the complete subtrees, largest first
}

// ResumeSum returns a builder that goes on where one with this count and these peaks
// was left.
func ResumeSum(count uint64, peaks []SumNode) (*SumBuilder, error) {
	if len(peaks) != bits.OnesCount64(count) {
		return nil, fmt.Errorf("merkle-sum tree of %d leaves with %d peaks", count, len(peaks))
	}
	b := &SumBuilder{count: count, peaks: append([]SumNode(nil), peaks...)}
	for _, p := range peaks {
		sum, carry := bits.Add64(b.sum, p.Sum, 0)
		if carry != 0 {
			return nil, fmt.Errorf("merkle-sum tree: %w", mesh.ErrOverflow)
		}
		b.sum = sum
	}
	return b, nil
}

// Append adds the next leaf. After an error the builder is as it was.
func (b *SumBuilder) Append(leaf SumNode) error {
	sum, carry := bits.Add64(b.sum, leaf.Sum, 0)
	if carry != 0 {
		return fmt.Errorf("merkle-sum tree, leaf %d: %w", b.count, mesh.ErrOverflow)
	}
	n := sumLeaf(leaf)
	// Each trailing one bit of the count is a complete subtree of that size. The sums
	// of subtrees cannot overflow, as that of all leaves does not.
	for c := b.count; c&1 == 1; c >>= 1 {
		last := len(b.peaks) - 1
		n, _ = sumNode(b.peaks[last], n)
		b.peaks = b.peaks[:last]
	}
	b.peaks = append(b.peaks, n)
	b.count, b.sum = b.count+1, sum
	return nil
}

// Len returns the number of leaves so far.
func (b *SumBuilder) Len() uint64 { return b.count }

// Peaks returns what ResumeSum needs; the caller does not change it.
func (b *SumBuilder) Peaks() []SumNode { return b.peaks }

// Root returns the root over the leaves so far; more may follow.
func (b *SumBuilder) Root() SumNode {
	if len(b.peaks) == 0 {
		return SumNode{Hash: mesh.HashOf()}
	}
	n := b.peaks[len(b.peaks)-1]
	for i := len(b.peaks) - 2; i >= 0; i-- {
		n, _ = sumNode(b.peaks[i], n)
	}
	return n
}

// SumProof returns the inclusion proof of the leaf at index: the siblings from the
// leaf up to the root, at most 64 of them.
func SumProof(leaves []SumNode, index int) ([]SumNode, error) {
	if index < 0 || index >= len(leaves) {
		return nil, fmt.Errorf("merkle-sum proof of leaf %d: the tree has %d", index, len(leaves))
	}
	if _, carry := total(leaves); carry {
		return nil, fmt.Errorf("merkle-sum proof: %w", mesh.ErrOverflow)
	}
	nodes := make([]SumNode, len(leaves))
	for i, leaf := range leaves {
		nodes[i] = sumLeaf(leaf)
	}
	return sumPath(nodes, index), nil
}

func total(leaves []SumNode) (sum uint64, overflow bool) {
	for _, leaf := range leaves {
		var carry uint64
		if sum, carry = bits.Add64(sum, leaf.Sum, 0); carry != 0 {
			return 0, true
		}
	}
	return sum, false
}

// sumPath returns the siblings of a node up to the root over nodes, whose sum fits.
func sumPath(nodes []SumNode, index int) (path []SumNode) {
	for len(nodes) > 1 {
		split := 1 << (bits.Len(uint(len(nodes)-1)) - 1)
		in, beside := nodes[:split], nodes[split:]
		if index >= split {
			in, beside, index = beside, in, index-split
		}
		path = append(path, over(beside))
		nodes = in
	}
	slices.Reverse(path)
	return path
}

// over returns the root over nodes, at least one, whose sum fits.
func over(nodes []SumNode) SumNode {
	if len(nodes) == 1 {
		return nodes[0]
	}
	split := 1 << (bits.Len(uint(len(nodes)-1)) - 1)
	n, _ := sumNode(over(nodes[:split]), over(nodes[split:]))
	return n
}

// SumTree gives many proofs from the same leaves without hashing all of them for each:
// it keeps the roots of sumBlock leaves each.
type SumTree struct {
	count  int
	blocks []SumNode
}

const sumBlock = 256 // leaves; a power of two, so that a block is a subtree

// NewSumTree takes in the leaves of a tree. Their sum has to fit in 64 bits.
func NewSumTree(leaves []SumNode) (*SumTree, error) {
	if _, carry := total(leaves); carry {
		return nil, fmt.Errorf("merkle-sum tree: %w", mesh.ErrOverflow)
	}
	t := &SumTree{count: len(leaves)}
	for block := range slices.Chunk(leaves, sumBlock) {
		root, err := SumRoot(block)
		if err != nil {
			return nil, err
		}
		t.blocks = append(t.blocks, root)
	}
	return t, nil
}

// Root returns the root over the leaves.
func (t *SumTree) Root() SumNode {
	if t.count == 0 {
		return new(SumBuilder).Root()
	}
	return over(t.blocks)
}

// Proof returns the proof of the leaf at index, as SumProof does. leaf gives the leaves
// that NewSumTree took in; those of one block are asked for.
func (t *SumTree) Proof(index int, leaf func(i int) SumNode) ([]SumNode, error) {
	if index < 0 || index >= t.count {
		return nil, fmt.Errorf("merkle-sum proof of leaf %d: the tree has %d", index, t.count)
	}
	from := index - index%sumBlock
	block := make([]SumNode, 0, sumBlock)
	for i := from; i < min(from+sumBlock, t.count); i++ {
		block = append(block, leaf(i))
	}
	path, err := SumProof(block, index-from)
	if err != nil {
		return nil, err
	}
	return append(path, sumPath(t.blocks, index/sumBlock)...), nil
}

// VerifySum reports whether leaf, with its amount, is the one at index in the tree of
// count leaves with this root and sum. A proof of the wrong length is refused, and one
// whose sums leave 64 bits.
// Source: RFC 9162, section 2.1.3.2, with sums.
func VerifySum(root SumNode, leaf SumNode, index, count uint64, proof []SumNode) bool {
	if index >= count || len(proof) > 64 {
		return false
	}
	fn, sn, n := index, count-1, sumLeaf(leaf)
	for _, sibling := range proof {
		if sn == 0 {
			return false
		}
		var ok bool
		if fn&1 == 1 || fn == sn {
			n, ok = sumNode(sibling, n)
			for fn&1 == 0 && fn != 0 {
				fn >>= 1
				sn >>= 1
			}
		} else {
			n, ok = sumNode(n, sibling)
		}
		if !ok {
			return false
		}
		fn >>= 1
		sn >>= 1
	}
	return sn == 0 && n == root
}
