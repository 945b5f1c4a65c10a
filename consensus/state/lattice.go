package state

import (
	"crypto/sha256"
	"crypto/sha3"
	"encoding/binary"

	"github.com/gonka-mesh/mesh"
)

// lattice is LtHash16, the hash of a set that is updated entry by entry (Lewi et al.
// 2019, "Securing update propagation with homomorphic hashing"): 1024 lanes of 16
// bits, to which each entry adds its own pseudo-random 1024. It covers the part of the
// state that is not in the tree, at the price of one expansion a write and without a
// byte on disk per entry; a snapshot of that part can be checked against it.
type lattice [1024]uint16

const (
	latticeSize   = 2 * len(lattice{})
	latticeDomain = "mesh/lattice/1\x00"
)

// add puts an entry into the set, remove takes it out.
func (l *lattice) add(key, value []byte) {
	b := expand(key, value)
	for i := range l {
		l[i] += binary.LittleEndian.Uint16(b[2*i:])
	}
}

func (l *lattice) remove(key, value []byte) {
	b := expand(key, value)
	for i := range l {
		l[i] -= binary.LittleEndian.Uint16(b[2*i:])
	}
}

// expand hashes an entry, with the length of its key before it, to as many bytes as
// there are in a lattice.
func expand(key, value []byte) *[latticeSize]byte {
	h := sha3.NewSHAKE128()
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(len(key)))
	for _, part := range [][]byte{[]byte(latticeDomain), n[:], key, value} {
		h.Write(part) // never fails
	}
	var out [latticeSize]byte
	h.Read(out[:])
	return &out
}

func (l *lattice) append(b []byte) []byte {
	for _, lane := range l {
		b = binary.LittleEndian.AppendUint16(b, lane)
	}
	return b
}

// decode reads what append wrote, latticeSize bytes.
func (l *lattice) decode(b []byte) {
	for i := range l {
		l[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
}

// hash returns what goes into the app hash.
func (l *lattice) hash() mesh.Hash {
	return sha256.Sum256(l.append(make([]byte, 0, latticeSize)))
}
