package merkle

import (
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
	"slices"
	"testing"

	"github.com/gonka-mesh/mesh"
)

func sumLeaves(n int) []SumNode {
	out := make([]SumNode, n)
	for i, h := range leaves(n) {
		out[i] = SumNode{h, uint64(i*i + 1)}
	}
	return out
}

// slowSum is the definition, recursive and without shared code.
func slowSum(l []SumNode) SumNode {
	be := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	switch len(l) {
	case 0:
		return SumNode{Hash: mesh.HashOf()}
	case 1:
		return SumNode{mesh.HashOf([]byte{2}, l[0].Hash[:], be(l[0].Sum)), l[0].Sum}
	}
	k := 1
	for k*2 < len(l) {
		k *= 2
	}
	a, b := slowSum(l[:k]), slowSum(l[k:])
	return SumNode{mesh.HashOf([]byte{3}, a.Hash[:], be(a.Sum), b.Hash[:], be(b.Sum)), a.Sum + b.Sum}
}

func sumRoot(t testing.TB, l []SumNode) SumNode {
	t.Helper()
	root, err := SumRoot(l)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestSumRootFollowsDefinition(t *testing.T) {
	b := new(SumBuilder)
	all := sumLeaves(130)
	for n := range all {
		want := slowSum(all[:n])
		if got := sumRoot(t, all[:n]); got != want {
			t.Fatalf("root of %d leaves: got %v, want %v", n, got, want)
		}
		if b.Root() != want || b.Len() != uint64(n) {
			t.Fatalf("builder after %d leaves differs", n)
		}
		if len(b.Peaks()) != bits.OnesCount(uint(n)) {
			t.Fatalf("builder of %d leaves holds %d nodes", n, len(b.Peaks()))
		}
		// Each step goes on from what a builder before it left.
		var err error
		if b, err = ResumeSum(b.Len(), b.Peaks()); err != nil {
			t.Fatal(err)
		}
		if err := b.Append(all[n]); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSumGolden(t *testing.T) {
	tests := []struct {
		n    int
		sum  uint64
		want string
	}{
		{0, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{1, 1, "eca6053c854f6ee4c8aea9c654553bb9b75ba8034488e57c33dd3bd23f24ab61"},
		{7, 98, "1a5f8c039d1e485aaf835146e13d2ef3dd3e33bce785a61097efeabe77f4c27a"},
	}
	for _, tt := range tests {
		got := sumRoot(t, sumLeaves(tt.n))
		if got.Hash.String() != tt.want || got.Sum != tt.sum {
			t.Errorf("root of %d leaves: got %s with %d, want %s with %d", tt.n, got.Hash, got.Sum, tt.want, tt.sum)
		}
	}
}

func TestSumProof(t *testing.T) {
	for n := 1; n <= 40; n++ {
		l := sumLeaves(n)
		root := sumRoot(t, l)
		for i := range l {
			p, err := SumProof(l, i)
			if err != nil {
				t.Fatal(err)
			}
			at, count := uint64(i), uint64(n)
			if !VerifySum(root, l[i], at, count, p) {
				t.Fatalf("proof of leaf %d of %d does not verify", i, n)
			}
			for _, bad := range []struct {
				what        string
				root, leaf  SumNode
				index, size uint64
				proof       []SumNode
			}{
				{"a larger amount", root, SumNode{l[i].Hash, l[i].Sum + 1}, at, count, p},
				{"no amount", root, SumNode{l[i].Hash, 0}, at, count, p},
				{"another leaf", root, SumNode{mesh.HashOf(l[i].Hash[:]), l[i].Sum}, at, count, p},
				{"another sum of the root", SumNode{root.Hash, root.Sum + 1}, l[i], at, count, p},
				{"another root", SumNode{l[i].Hash, root.Sum}, l[i], at, count, p},
				{"a place outside", root, l[i], count, count, p},
				{"a tree that ends before it", root, l[i], at, at, p},
				{"a tree of twice the size", root, l[i], at, 2*count + 1, p},
				{"a longer proof", root, l[i], at, count, append(slices.Clone(p), root)},
				{"an endless proof", root, l[i], at, math.MaxUint64, make([]SumNode, 65)},
			} {
				if VerifySum(bad.root, bad.leaf, bad.index, bad.size, bad.proof) {
					t.Fatalf("proof of leaf %d of %d with %s verifies", i, n, bad.what)
				}
			}
			for j := range l {
				if j != i && (VerifySum(root, l[i], uint64(j), count, p) || VerifySum(root, l[j], at, count, p)) {
					t.Fatalf("proof of leaf %d of %d verifies for %d", i, n, j)
				}
			}
			for k := range p {
				hash, sum := slices.Clone(p), slices.Clone(p)
				hash[k].Hash[3] ^= 1
				sum[k].Sum++
				if VerifySum(root, l[i], at, count, hash) || VerifySum(root, l[i], at, count, sum) || VerifySum(root, l[i], at, count, p[:k]) {
					t.Fatalf("a damaged proof of leaf %d of %d verifies", i, n)
				}
			}
		}
	}
	if _, err := SumProof(sumLeaves(3), 3); err == nil {
		t.Error("proof of a leaf outside the tree")
	}
}

// TestSumTree: a tree that keeps roots of blocks gives the proofs of one that does not.
func TestSumTree(t *testing.T) {
	all := sumLeaves(2*sumBlock + 2)
	for _, n := range []int{0, 1, 2, sumBlock - 1, sumBlock, sumBlock + 1, sumBlock + 2, 2*sumBlock - 1, 2 * sumBlock, 2*sumBlock + 1, 2*sumBlock + 2} {
		l := all[:n]
		tree, err := NewSumTree(l)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := tree.Root(), sumRoot(t, l); got != want {
			t.Fatalf("root of %d leaves: %v, want %v", n, got, want)
		}
		asked := 0
		for i := range l {
			got, err := tree.Proof(i, func(i int) SumNode { asked++; return l[i] })
			want, err2 := SumProof(l, i)
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("proof of leaf %d of %d: %v, want %v", i, n, got, want)
			}
		}
		if asked > n*sumBlock {
			t.Errorf("%d leaves were asked for %d proofs of %d", asked, n, n)
		}
		if _, err := tree.Proof(n, func(int) SumNode { return SumNode{} }); err == nil {
			t.Errorf("proof of a leaf outside a tree of %d", n)
		}
	}
	if _, err := NewSumTree([]SumNode{{Sum: math.MaxUint64}, {Sum: 1}}); !errors.Is(err, mesh.ErrOverflow) {
		t.Errorf("overflow: %v", err)
	}
}

// TestSumOverflow: sums never wrap, neither in a tree that is built nor in one that a
// liar hashed by hand.
func TestSumOverflow(t *testing.T) {
	l := []SumNode{{mesh.HashOf([]byte("a")), math.MaxUint64 - 1}, {mesh.HashOf([]byte("b")), 1}, {mesh.HashOf([]byte("c")), 1}}
	if root, err := SumRoot(l[:2]); err != nil || root.Sum != math.MaxUint64 {
		t.Errorf("the largest sum: %v, %v", root, err)
	}
	if _, err := SumRoot(l); !errors.Is(err, mesh.ErrOverflow) {
		t.Errorf("overflow: got %v", err)
	}
	var b SumBuilder
	for _, leaf := range l[:2] {
		if err := b.Append(leaf); err != nil {
			t.Fatal(err)
		}
	}
	if before := b.Root(); b.Append(l[2]) == nil || b.Root() != before || b.Len() != 2 {
		t.Error("a leaf that overflows is taken, or leaves a trace")
	}
	if _, err := ResumeSum(3, []SumNode{{Sum: math.MaxUint64}, {Sum: 1}}); err == nil {
		t.Error("peaks that overflow are taken")
	}
	if _, err := ResumeSum(3, make([]SumNode, 1)); err == nil {
		t.Error("too few peaks are taken")
	}

	// The liar commits to two amounts that wrap to 5, and shows either.
	amounts := []SumNode{{l[0].Hash, math.MaxUint64 - 4}, {l[1].Hash, 10}}
	left, right := sumLeaf(amounts[0]), sumLeaf(amounts[1])
	forged, ok := sumNode(left, right)
	if ok || forged.Sum != 5 {
		t.Fatalf("forged node: %v, %v", forged, ok)
	}
	if VerifySum(forged, amounts[1], 1, 2, []SumNode{left}) || VerifySum(forged, amounts[0], 0, 2, []SumNode{right}) {
		t.Error("a wrapped sum verifies")
	}
}

func TestSumTreeIsNoPlainTree(t *testing.T) {
	l := leaves(2)
	plain := Root(l)
	zero := sumRoot(t, []SumNode{{Hash: l[0]}, {Hash: l[1]}})
	if plain == zero.Hash {
		t.Error("a tree without amounts is the plain tree")
	}
	// Two inner nodes do not pass as leaves.
	four := sumLeaves(4)
	a, b := sumRoot(t, four[:2]), sumRoot(t, four[2:])
	if sumRoot(t, []SumNode{a, b}) == sumRoot(t, four) {
		t.Error("two inner nodes pass as leaves")
	}
}

func FuzzVerifySum(f *testing.F) {
	l := sumLeaves(5)
	root := sumRoot(f, l)
	p, err := SumProof(l, 2)
	if err != nil {
		f.Fatal(err)
	}
	var flat []byte
	for _, n := range p {
		flat = binary.BigEndian.AppendUint64(append(flat, n.Hash[:]...), n.Sum)
	}
	f.Add(uint64(5), uint64(2), uint64(5), flat)
	f.Add(uint64(6), uint64(2), uint64(5), flat)
	f.Add(uint64(5), uint64(1<<63), uint64(1<<64-1), flat)
	f.Fuzz(func(t *testing.T, amount, index, count uint64, flat []byte) {
		var proof []SumNode
		for ; len(flat) >= 40; flat = flat[40:] {
			proof = append(proof, SumNode{mesh.Hash(flat[:32]), binary.BigEndian.Uint64(flat[32:])})
		}
		if !VerifySum(root, SumNode{l[2].Hash, amount}, index, count, proof) {
			return
		}
		if amount != l[2].Sum || !slices.Equal(proof, p) || (count == 5 && index != 2) {
			t.Errorf("verifies: amount %d at %d of %d with %v", amount, index, count, proof)
		}
	})
}
