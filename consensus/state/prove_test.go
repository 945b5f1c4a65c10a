package state

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/state/proof"
)

// TestMutatedProofs flips each bit of proofs of presence and absence, in trees of
// several sizes: none is taken for a proof of something else.
func TestMutatedProofs(t *testing.T) {
	for _, size := range []int{0, 1, 2, 50} {
		s := mustOpen(t, Config{Memory: true})
		changes := []ledger.Change{}
		for i := range size {
			changes = append(changes, ledger.Change{Key: fmt.Appendf(nil, "A%02d", i), Value: fmt.Appendf(nil, "value %d", i)})
		}
		changes = append(changes, ledger.Change{Key: []byte("b"), Value: []byte("flat")})
		hash := mustCommit(t, s, 1, changes)
		for _, key := range []string{"A00", "A01", "A49", "A77", "A78", "B"} {
			p, err := s.Prove([]byte(key), 1)
			if err != nil {
				t.Fatal(err)
			}
			value, present, err := proof.Verify(hash, p)
			if want := s.Get([]byte(key)); err != nil || present != (want != nil) || string(value) != string(want) {
				t.Fatalf("%d entries, %s: %q %v %v", size, key, value, present, err)
			}
			if _, _, err := proof.Verify(mesh.Hash{1}, p); err == nil {
				t.Fatalf("%d entries, %s: proves to any app hash", size, key)
			}
			encoded := p.Marshal()
			for bit := range 8 * len(encoded) {
				bad := slices.Clone(encoded)
				bad[bit/8] ^= 1 << (bit % 8)
				checkMutated(t, hash, bad, s)
			}
			for n := range encoded {
				checkMutated(t, hash, encoded[:n], s)
			}
			checkMutated(t, hash, append(slices.Clone(encoded), 0), s)
		}
		if _, err := s.Prove([]byte("b"), 1); err == nil {
			t.Fatal("a flat entry was proven")
		}
		if _, err := s.Prove([]byte("A"), 2); err == nil {
			t.Fatal("a height to come was proven")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// checkMutated accepts a mutated proof only if what it says is true: the proof of an
// absence holds for other absent keys in the same gap.
func checkMutated(t *testing.T, hash mesh.Hash, encoded []byte, s *Store) {
	t.Helper()
	p, err := proof.Unmarshal(encoded)
	if err != nil {
		return
	}
	value, present, err := proof.Verify(hash, p)
	if err != nil {
		return
	}
	if want := s.Get(p.Key); present || want != nil {
		t.Fatalf("a mutated proof says of %q: %q %v, the state says %q", p.Key, value, present, want)
	}
}

// TestVectors pins the bytes that two nodes must agree on.
func TestVectors(t *testing.T) {
	s := mustOpen(t, Config{Memory: true})
	defer s.Close()
	if got := s.AppHash().String(); got != "a88cd5a77e277f2971d0edbef736d49c608156cccad7aca512a763f6f48657dd" {
		t.Errorf("empty state: %s", got)
	}
	var changes []ledger.Change
	for _, k := range []string{"A1", "A2", "A3", "a1", "a2"} {
		changes = append(changes, ledger.Change{Key: []byte(k), Value: []byte("value of " + k)})
	}
	if got := mustCommit(t, s, 1, changes).String(); got != "31b1071643d3d0ff18da00704f6fdae17014afc83e1faf01b1370b9920a44042" {
		t.Errorf("five entries: %s", got)
	}
	if got := s.head.root.String(); got != "d6223b6088d5b248ce3cb89f9cc69401448b46fb02ed73233a7fff37659ef3e6" {
		t.Errorf("root: %s", got)
	}
	if err := s.TakeSnapshot(); err != nil {
		t.Fatal(err)
	}
	list, err := s.Snapshots()
	if err != nil {
		t.Fatal(err)
	}
	if got := list[0].Hash.String(); got != "1b3417f7ef5571dfd8ab5c7553a0fc7e013f6f234199975def7bbe732fa7bb3d" {
		t.Errorf("snapshot: %s", got)
	}
}
