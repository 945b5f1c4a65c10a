// Package proof says how the ledger's app hash is made and checks that an entry is,
// or is not, part of the state that an app hash stands for. It is all that a light
// peer needs of the state: no database, no CometBFT.
//
// Proven entries are the leaves of a sparse Merkle tree over SHA-256(key), as ICS-23
// describes under the name SmtSpec: leaf = H(0 ‖ H(key) ‖ H(value)), inner node =
// H(1 ‖ left ‖ right), an empty subtree is 32 zero bytes, and a subtree with one leaf
// is that leaf. So the root depends on the entries alone, not on their history.
package proof

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	ics23 "github.com/cosmos/ics23/go"

	"github.com/gonka-mesh/mesh"
)

const (
	// MaxKey and MaxValue bound an entry of the state, in bytes.
	MaxKey   = 1 << 10
	MaxValue = 1 << 20
	// MaxSize bounds an encoded proof: one value, and two keys with their paths.
	MaxSize = MaxValue + 2*(MaxKey+256*80) + 4096
	// MaxDepth bounds a path from the root to a leaf: all bits of SHA-256. Two keys that
	// share n leading bits cost whoever chooses both only 2^(n/2) hashes, so no fewer
	// would do; a tree or a proof is as deep as what was really found.
	MaxDepth = 8 * hashLen

	format  = 1
	hashLen = sha256.Size
)

// appDomain tags the hash that goes into block headers.
const appDomain mesh.Domain = "mesh/app/1"

// NeighbourSpec is SmtSpec for the records beside an absent key: their proofs carry
// SHA-256 of the value in the value's place. Nobody asked for the values, and two of them
// may be more than a peer takes in one answer.
var NeighbourSpec = &ics23.ProofSpec{
	LeafSpec: &ics23.LeafOp{
		Hash:         ics23.SmtSpec.LeafSpec.Hash,
		PrehashKey:   ics23.SmtSpec.LeafSpec.PrehashKey,
		PrehashValue: ics23.HashOp_NO_HASH,
		Length:       ics23.SmtSpec.LeafSpec.Length,
		Prefix:       ics23.SmtSpec.LeafSpec.Prefix,
	},
	InnerSpec:                  ics23.SmtSpec.InnerSpec,
	MaxDepth:                   ics23.SmtSpec.MaxDepth,
	PrehashKeyBeforeComparison: ics23.SmtSpec.PrehashKeyBeforeComparison,
}

// AppHash joins the root of the proven entries with the hash of all others.
func AppHash(root, flat mesh.Hash) mesh.Hash {
	return mesh.HashOf([]byte(appDomain), []byte{0}, root[:], flat[:])
}

// Path returns where a key lies in the tree: one bit a level, the highest first.
func Path(key []byte) mesh.Hash { return sha256.Sum256(key) }

// Leaf returns the hash of an entry whose path is known.
func Leaf(path mesh.Hash, value []byte) mesh.Hash { return leafOf(path, sha256.Sum256(value)) }

func leafOf(path, value mesh.Hash) mesh.Hash {
	var b [1 + 2*hashLen]byte
	copy(b[1:], path[:])
	copy(b[1+hashLen:], value[:])
	return sha256.Sum256(b[:])
}

// Inner returns the hash of an inner node.
func Inner(left, right mesh.Hash) mesh.Hash {
	var b [1 + 2*hashLen]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+hashLen:], right[:])
	return sha256.Sum256(b[:])
}

// Proof says what the value of a key is at one height, or that there is none.
type Proof struct {
	Key        []byte
	Flat       mesh.Hash // of the entries outside the tree; with the root it makes the app hash
	Commitment []byte    // an ICS-23 CommitmentProof; empty when the tree is
}

// Marshal encodes the proof: format, flat hash, length and bytes of the key, commitment.
func (p Proof) Marshal() []byte {
	out := make([]byte, 0, 1+hashLen+binary.MaxVarintLen16+len(p.Key)+len(p.Commitment))
	out = append(out, format)
	out = append(out, p.Flat[:]...)
	out = binary.BigEndian.AppendUint16(out, uint16(len(p.Key)))
	out = append(out, p.Key...)
	return append(out, p.Commitment...)
}

// Unmarshal decodes a proof. It does not check what the proof says: Verify does.
func Unmarshal(b []byte) (Proof, error) {
	const head = 1 + hashLen + 2
	if len(b) < head || len(b) > MaxSize {
		return Proof{}, fmt.Errorf("proof of %d bytes", len(b))
	}
	if b[0] != format {
		return Proof{}, fmt.Errorf("proof of format %d: this version knows %d", b[0], format)
	}
	var p Proof
	copy(p.Flat[:], b[1:])
	n := int(binary.BigEndian.Uint16(b[1+hashLen:]))
	if n == 0 || n > MaxKey || n > len(b)-head {
		return Proof{}, fmt.Errorf("proof names a key of %d bytes", n)
	}
	p.Key = bytes.Clone(b[head : head+n])
	p.Commitment = bytes.Clone(b[head+n:])
	return p, nil
}

// Verify checks the proof against the app hash of a header and returns the value of
// p.Key, or present false when the proof shows that there is none. The app hash of
// the state at height h is in the header of height h+1.
func Verify(appHash mesh.Hash, p Proof) (value []byte, present bool, err error) {
	defer func() {
		// The library panics on some paths that no tree has.
		if r := recover(); r != nil {
			value, present, err = nil, false, fmt.Errorf("check proof: %v", r)
		}
	}()
	if len(p.Key) == 0 || len(p.Key) > MaxKey {
		return nil, false, fmt.Errorf("proof of a key of %d bytes", len(p.Key))
	}
	if p.Key[0] < 'A' || p.Key[0] > 'Z' {
		// The tree has none of these, which says nothing about the state.
		return nil, false, fmt.Errorf("proof of a key of table %q, which is not in the tree", p.Key[0])
	}
	if len(p.Commitment) == 0 { // the tree is empty
		if AppHash(mesh.Hash{}, p.Flat) != appHash {
			return nil, false, errors.New("proof of an empty tree does not lead to the app hash")
		}
		return nil, false, nil
	}
	if len(p.Commitment) > MaxSize {
		return nil, false, fmt.Errorf("proof of %d bytes", len(p.Commitment))
	}
	var c ics23.CommitmentProof
	if err := c.Unmarshal(p.Commitment); err != nil {
		return nil, false, fmt.Errorf("decode proof: %w", err)
	}
	if again, err := c.Marshal(); err != nil || !bytes.Equal(again, p.Commitment) {
		return nil, false, errors.New("proof is not encoded as it should be")
	}
	switch {
	case c.GetExist() != nil:
		if err := verifyPresent(appHash, p, c.GetExist()); err != nil {
			return nil, false, err
		}
		return c.GetExist().Value, true, nil
	case c.GetNonexist() != nil:
		return nil, false, verifyAbsent(appHash, p, c.GetNonexist())
	}
	return nil, false, errors.New("proof is neither of presence nor of absence")
}

func verifyPresent(appHash mesh.Hash, p Proof, e *ics23.ExistenceProof) error {
	if len(e.Value) == 0 || len(e.Value) > MaxValue {
		return errors.New("proof has a value of no possible size")
	}
	root, err := rootOf(e, ics23.SmtSpec, sha256.Sum256(e.Value))
	if err != nil {
		return err
	}
	if AppHash(root, p.Flat) != appHash {
		return errors.New("proof does not lead to the app hash")
	}
	if err := e.Verify(ics23.SmtSpec, root[:], p.Key, e.Value); err != nil {
		return fmt.Errorf("check proof: %w", err)
	}
	return nil
}

func verifyAbsent(appHash mesh.Hash, p Proof, n *ics23.NonExistenceProof) error {
	root, err := rootOfNeighbours(n)
	if err != nil {
		return err
	}
	if AppHash(root, p.Flat) != appHash {
		return errors.New("proof does not lead to the app hash")
	}
	if !bytes.Equal(n.Key, p.Key) {
		return errors.New("proof is of another key")
	}
	if err := n.Verify(NeighbourSpec, root[:], p.Key); err != nil {
		return fmt.Errorf("check proof: %w", err)
	}
	return nil
}

func rootOfNeighbours(n *ics23.NonExistenceProof) (mesh.Hash, error) {
	var roots []mesh.Hash
	for _, e := range []*ics23.ExistenceProof{n.Left, n.Right} {
		if e == nil {
			continue
		}
		value, err := mesh.HashFromBytes(e.Value)
		if err != nil {
			return mesh.Hash{}, fmt.Errorf("value of a neighbour: %w", err)
		}
		root, err := rootOf(e, NeighbourSpec, value)
		if err != nil {
			return mesh.Hash{}, err
		}
		roots = append(roots, root)
	}
	if len(roots) == 0 || roots[0] != roots[len(roots)-1] {
		return mesh.Hash{}, errors.New("proof of absence has no neighbours with one root")
	}
	return roots[0], nil
}

// rootOf computes the root from a leaf whose value has this hash. It is stricter than ICS-23 on form: every step is the one
// that a tree of ours would have, on the side that the key's path says.
func rootOf(e *ics23.ExistenceProof, spec *ics23.ProofSpec, value mesh.Hash) (mesh.Hash, error) {
	var none mesh.Hash
	switch {
	case len(e.Key) == 0 || len(e.Key) > MaxKey:
		return none, errors.New("proof has a key of no possible size")
	case len(e.Path) > MaxDepth:
		return none, fmt.Errorf("proof is %d levels deep", len(e.Path))
	case !isLeaf(e.Leaf, spec.LeafSpec):
		return none, errors.New("proof has another kind of leaf")
	}
	path := Path(e.Key)
	at := leafOf(path, value)
	for i, op := range e.Path {
		level := len(e.Path) - 1 - i
		right := path[level/8]>>(7-level%8)&1 == 1
		var sibling mesh.Hash
		switch {
		case op.Hash != ics23.HashOp_SHA256 || len(op.Prefix) == 0 || op.Prefix[0] != 1:
			return none, errors.New("proof has another kind of node")
		case right && len(op.Prefix) == 1+hashLen && len(op.Suffix) == 0:
			copy(sibling[:], op.Prefix[1:])
			at = Inner(sibling, at)
		case !right && len(op.Prefix) == 1 && len(op.Suffix) == hashLen:
			copy(sibling[:], op.Suffix)
			at = Inner(at, sibling)
		default:
			return none, errors.New("proof turns where its key does not")
		}
	}
	return at, nil
}

func isLeaf(op, spec *ics23.LeafOp) bool {
	return op != nil && op.Hash == spec.Hash && op.PrehashKey == spec.PrehashKey &&
		op.PrehashValue == spec.PrehashValue && op.Length == spec.Length && bytes.Equal(op.Prefix, spec.Prefix)
}
