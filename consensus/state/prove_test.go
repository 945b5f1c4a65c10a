package state

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	ics23 "github.com/cosmos/ics23/go"

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

// TestAbsenceIsShort: neighbours' values are in no proof of absence, however large.
func TestAbsenceIsShort(t *testing.T) {
	s := mustOpen(t, Config{Memory: true})
	defer s.Close()
	hash := mustCommit(t, s, 1, []ledger.Change{
		{Key: []byte("A1"), Value: bytes.Repeat([]byte{1}, proof.MaxValue)},
		{Key: []byte("A2"), Value: bytes.Repeat([]byte{2}, proof.MaxValue)},
	})
	sides := make(map[[2]bool]bool) // which neighbours there are
	for i := range 16 {
		p, err := s.Prove(fmt.Appendf(nil, "B%d", i), 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, present, err := proof.Verify(hash, p); err != nil || present {
			t.Fatalf("%s: %v, %v", p.Key, present, err)
		}
		if len(p.Commitment) > 1000 {
			t.Errorf("%s: %d bytes", p.Key, len(p.Commitment))
		}
		c := new(ics23.CommitmentProof)
		if err := c.Unmarshal(p.Commitment); err != nil {
			t.Fatal(err)
		}
		sides[[2]bool{c.GetNonexist().GetLeft() != nil, c.GetNonexist().GetRight() != nil}] = true
	}
	if len(sides) != 3 {
		t.Errorf("only neighbours %v", sides)
	}
}

// TestPlaces: a hash in the place of a value proves an absence beside it, and no presence;
// a value there proves neither.
func TestPlaces(t *testing.T) {
	s := mustOpen(t, Config{Memory: true})
	defer s.Close()
	value := bytes.Repeat([]byte{7}, 32) // as long as a hash
	hash := mustCommit(t, s, 1, []ledger.Change{{Key: []byte("A1"), Value: value}})
	absent, err := s.Prove([]byte("B1"), 1)
	if err != nil {
		t.Fatal(err)
	}
	present, err := s.Prove([]byte("A1"), 1)
	if err != nil {
		t.Fatal(err)
	}
	var a, b ics23.CommitmentProof
	if err := errors.Join(a.Unmarshal(absent.Commitment), b.Unmarshal(present.Commitment)); err != nil {
		t.Fatal(err)
	}
	side := &a.GetNonexist().Left
	if *side == nil {
		side = &a.GetNonexist().Right
	}
	hashed, full := *side, b.GetExist()
	encode := func(p proof.Proof, c ics23.CommitmentProof) proof.Proof {
		raw, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		p.Commitment = raw
		return p
	}
	if got, ok, err := proof.Verify(hash, encode(present, ics23.CommitmentProof{Proof: &ics23.CommitmentProof_Exist{Exist: hashed}})); err == nil {
		t.Errorf("a hash is taken for the value: %x, %v", got, ok)
	}
	*side = full
	if _, ok, err := proof.Verify(hash, encode(absent, a)); err == nil {
		t.Errorf("a value stands beside an absent key: %v", ok)
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
