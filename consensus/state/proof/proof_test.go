package proof

import (
	"bytes"
	"slices"
	"testing"

	ics23 "github.com/cosmos/ics23/go"

	"github.com/gonka-mesh/mesh"
)

// deep returns the proof of a record below so many inner nodes, and the app hash that it
// leads to.
func deep(t *testing.T, key, value []byte, depth int) (Proof, mesh.Hash) {
	t.Helper()
	path := Path(key)
	at := Leaf(path, value)
	e := &ics23.ExistenceProof{Key: key, Value: value, Leaf: ics23.SmtSpec.LeafSpec}
	for level := depth - 1; level >= 0; level-- {
		sibling := mesh.HashOf([]byte{byte(level)})
		op := &ics23.InnerOp{Hash: ics23.HashOp_SHA256, Prefix: []byte{1}}
		if level < 256 && path[level/8]>>(7-level%8)&1 == 1 {
			op.Prefix, at = append(op.Prefix, sibling[:]...), Inner(sibling, at)
		} else {
			op.Suffix, at = slices.Clone(sibling[:]), Inner(at, sibling)
		}
		e.Path = append(e.Path, op)
	}
	raw, err := (&ics23.CommitmentProof{Proof: &ics23.CommitmentProof_Exist{Exist: e}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return Proof{Key: key, Commitment: raw}, AppHash(at, mesh.Hash{})
}

// TestDepth takes proofs as deep as a tree can be, with the largest record, and none
// that is deeper.
func TestDepth(t *testing.T) {
	for _, depth := range []int{1, 128, 129, 200, 256} {
		key := append([]byte("A"), make([]byte, MaxKey-1)...)
		value := bytes.Repeat([]byte{7}, MaxValue)
		p, app := deep(t, key, value, depth)
		again, err := Unmarshal(p.Marshal())
		if err != nil {
			t.Fatalf("%d levels: %v", depth, err)
		}
		got, present, err := Verify(app, again)
		if err != nil || !present || !bytes.Equal(got, value) {
			t.Fatalf("%d levels: %d bytes, %v, %v", depth, len(got), present, err)
		}
		if path := len(p.Commitment) - len(key) - len(value); path > 256*41+64 {
			t.Errorf("%d levels: the path has %d bytes", depth, path)
		}
	}
	p, app := deep(t, []byte("A1"), []byte("x"), 257)
	if _, _, err := Verify(app, p); err == nil {
		t.Fatal("a proof of 257 levels passes")
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(Proof{Key: []byte("A1")}.Marshal())
	f.Add(Proof{Key: []byte("A1"), Commitment: []byte{0x0a, 0x04, 0x0a, 0x02, 'A', '1'}}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Unmarshal(b)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Marshal(), b) {
			t.Fatalf("%x encodes as something else", b)
		}
		if _, _, err := Verify(mesh.Hash{1, 2, 3}, p); err == nil {
			t.Fatalf("%x proves something of a state that nobody knows", b)
		}
	})
}
