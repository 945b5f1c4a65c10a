package inference

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/gonka-mesh/mesh"
)

// Chain is the running hash over an answer's tokens: h_0 binds request and choice,
// and each token i from 0 gives h = SHA-256(h ‖ be32(i) ‖ be32(token)).
type Chain struct {
	Next uint32 // index of the next token
	H    mesh.Hash
}

// NewChain returns the chain of one choice before its first token.
func NewChain(network mesh.NetworkID, request mesh.Hash, choice uint32) Chain {
	return Chain{H: domainChain.Hash(network, binary.BigEndian.AppendUint32(request[:], choice))}
}

// Add extends the chain by one token.
func (c *Chain) Add(token int32) {
	var b [sha256.Size + 8]byte
	copy(b[:], c.H[:])
	binary.BigEndian.PutUint32(b[sha256.Size:], c.Next)
	binary.BigEndian.PutUint32(b[sha256.Size+4:], uint32(token))
	c.H = sha256.Sum256(b[:])
	c.Next++
}
