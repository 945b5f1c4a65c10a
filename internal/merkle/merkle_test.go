package merkle

import (
	"encoding/binary"
	"math/bits"
	"testing"

	"github.com/gonka-mesh/mesh"
)

func leaves(n int) []mesh.Hash {
	out := make([]mesh.Hash, n)
	for i := range out {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(i))
		out[i] = mesh.HashOf(b[:])
	}
	return out
}

// slowRoot is the recursive definition of RFC 6962, section 2.1.
func slowRoot(l []mesh.Hash) mesh.Hash {
	switch len(l) {
	case 0:
		return mesh.HashOf()
	case 1:
		return mesh.HashOf([]byte{0}, l[0][:])
	}
	k := 1
	for k*2 < len(l) {
		k *= 2
	}
	a, b := slowRoot(l[:k]), slowRoot(l[k:])
	return mesh.HashOf([]byte{1}, a[:], b[:])
}

func TestRootFollowsDefinition(t *testing.T) {
	var b Builder
	all := leaves(130)
	for n := range all {
		if got, want := Root(all[:n]), slowRoot(all[:n]); got != want {
			t.Fatalf("root of %d leaves: got %v, want %v", n, got, want)
		}
		if b.Root() != slowRoot(all[:n]) || b.Len() != uint64(n) {
			t.Fatalf("builder after %d leaves differs", n)
		}
		if len(b.peaks) != bits.OnesCount(uint(n)) {
			t.Fatalf("builder of %d leaves holds %d hashes", n, len(b.peaks))
		}
		b.Append(all[n])
	}
}

func TestGolden(t *testing.T) {
	tests := []struct {
		n    int
		want string
	}{
		{0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{1, "aea833068048b82f42271c18e0076a5230cbc7d711c99de16a5917db14a3b044"},
		{7, "9d07734d5f6d2e0148d180eda3c69b89e4f1ce59252771e8a018b8ef863c4485"},
	}
	for _, tt := range tests {
		if got := Root(leaves(tt.n)).String(); got != tt.want {
			t.Errorf("root of %d leaves: got %s, want %s", tt.n, got, tt.want)
		}
	}
}

func TestProof(t *testing.T) {
	for n := 1; n <= 70; n++ {
		l := leaves(n)
		root := Root(l)
		for i := range l {
			p, err := Proof(l, i)
			if err != nil {
				t.Fatal(err)
			}
			if !Verify(root, l[i], uint64(i), uint64(n), p) {
				t.Fatalf("proof of leaf %d of %d does not verify", i, n)
			}
			for j := range l {
				if j != i && Verify(root, l[i], uint64(j), uint64(n), p) {
					t.Fatalf("proof of leaf %d of %d verifies at %d", i, n, j)
				}
				if j != i && Verify(root, l[j], uint64(i), uint64(n), p) {
					t.Fatalf("proof of leaf %d of %d verifies leaf %d", i, n, j)
				}
			}
			for k := range p {
				bad := append([]mesh.Hash{}, p...)
				bad[k][3] ^= 1
				if Verify(root, l[i], uint64(i), uint64(n), bad) || Verify(root, l[i], uint64(i), uint64(n), p[:k]) {
					t.Fatalf("a damaged proof of leaf %d of %d verifies", i, n)
				}
			}
			if Verify(root, l[i], uint64(i), uint64(n), append(p, root)) {
				t.Fatalf("a longer proof of leaf %d of %d verifies", i, n)
			}
		}
	}
	if _, err := Proof(leaves(3), 3); err == nil {
		t.Error("proof of a leaf outside the tree")
	}
}

func TestNodeIsNoLeaf(t *testing.T) {
	l := leaves(4)
	left, right := nodeHash(leafHash(l[0]), leafHash(l[1])), nodeHash(leafHash(l[2]), leafHash(l[3]))
	if Root([]mesh.Hash{left, right}) == Root(l) {
		t.Error("two inner nodes pass as leaves")
	}
}

func TestChunkRoot(t *testing.T) {
	d := leaves(3)
	const want = "194b34e24e5265423656b7b08f0429088b36eb224f8ac763b107eacbf6bbe4e4"
	if got := ChunkRoot(9<<20, ChunkSize, d).String(); got != want {
		t.Errorf("chunk root: got %s, want %s", got, want)
	}
	base := ChunkRoot(9<<20, ChunkSize, d)
	if ChunkRoot(9<<20+1, ChunkSize, d) == base || ChunkRoot(9<<20, ChunkSize/2, d) == base || ChunkRoot(9<<20, ChunkSize, d[:2]) == base {
		t.Error("size, chunk size and digests must all bind")
	}
	for _, tt := range []struct{ size, want uint64 }{{0, 0}, {1, 1}, {ChunkSize, 1}, {ChunkSize + 1, 2}, {1<<64 - 1, 1 << 42}} {
		if got := Chunks(tt.size, ChunkSize); got != tt.want {
			t.Errorf("chunks of %d bytes: got %d, want %d", tt.size, got, tt.want)
		}
	}
}

func FuzzVerify(f *testing.F) {
	l := leaves(5)
	p, _ := Proof(l, 2)
	var flat []byte
	for _, h := range p {
		flat = append(flat, h[:]...)
	}
	f.Add(uint64(2), uint64(5), flat)
	f.Add(uint64(1<<63), uint64(1<<64-1), flat)
	root := Root(l)
	f.Fuzz(func(t *testing.T, index, count uint64, flat []byte) {
		var proof []mesh.Hash
		for len(flat) >= 32 {
			proof = append(proof, mesh.Hash(flat[:32]))
			flat = flat[32:]
		}
		if Verify(root, l[2], index, count, proof) && index == 2 && count == 5 && len(proof) != len(p) {
			t.Errorf("a proof of %d hashes verifies", len(proof))
		}
	})
}
