// Package mesh holds the nouns that every part of Mesh shares: addresses,
// amounts, hashes, heights, model and network IDs, and the rule by which bytes
// are signed. It imports the standard library only and knows no behaviour.
//
// Mesh is a peer-to-peer network for AI compute: every participant runs the one
// binary in cmd/mesh. Start with the README, then docs/protocol.md.
package mesh

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Version is the version of the software, set by the linker for releases.
var Version = "0.1.0-dev"

// ProtocolVersion is the version of the wire protocol that a hello announces.
// Two nodes talk only when theirs are equal. docs/protocol.md logs each step.
const ProtocolVersion = 1

// Hash is a SHA-256 digest.
type Hash [sha256.Size]byte

// HashOf returns the SHA-256 digest of the parts, one after the other.
func HashOf(parts ...[]byte) Hash {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	var out Hash
	h.Sum(out[:0])
	return out
}

// ParseHash reads 64 hex digits.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if len(s) != hex.EncodedLen(len(h)) {
		return h, fmt.Errorf("hash %.70q: want %d hex digits", s, hex.EncodedLen(len(h)))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return h, fmt.Errorf("hash %q: %w", s, err)
	}
	return h, nil
}

// HashFromBytes returns the hash held in b, which must be 32 bytes long.
func HashFromBytes(b []byte) (Hash, error) {
	var h Hash
	if len(b) != len(h) {
		return h, fmt.Errorf("hash of %d bytes: want %d", len(b), len(h))
	}
	copy(h[:], b)
	return h, nil
}

// String returns 64 hex digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Short returns the first twelve hex digits, for tables and logs.
func (h Hash) Short() string { return hex.EncodeToString(h[:6]) }

// IsZero reports whether the hash was never set.
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText writes hex digits; the zero hash is the empty text.
func (h Hash) MarshalText() ([]byte, error) {
	if h.IsZero() {
		return []byte{}, nil
	}
	return []byte(h.String()), nil
}

// UnmarshalText is the inverse of MarshalText.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*h = Hash{}
		return nil
	}
	v, err := ParseHash(string(text))
	if err == nil {
		*h = v
	}
	return err
}

// ModelID is the SHA-256 of a model's canonical manifest.
type ModelID = Hash

// Height is the height of a ledger block; the first block has height 1.
type Height uint64

// Epoch numbers the epochs of a network from 0.
type Epoch uint64

// NetworkID names a network: the preset's name and the first 8 hex digits of the
// hash of its genesis, so that two networks on one LAN never merge.
type NetworkID string

// NewNetworkID returns the ID of the network with this preset name and genesis.
func NewNetworkID(preset string, genesis Hash) NetworkID {
	return NetworkID(preset + hex.EncodeToString(genesis[:4]))
}

// Validate reports whether the ID has the form of one.
func (n NetworkID) Validate() error {
	name, digits := n, ""
	if len(n) > 8 {
		name, digits = n[:len(n)-8], string(n[len(n)-8:])
	}
	if _, err := hex.DecodeString(digits); err != nil || digits == "" || len(n) > 40 || strings.ToLower(digits) != digits {
		return fmt.Errorf("network ID %.50q: want a name and 8 hex digits", string(n))
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("network ID %q: a name has only a-z, 0-9 and '-'", string(n))
		}
	}
	return nil
}

// Domain is the tag of one kind of signed or hashed bytes. Tags end with a NUL
// byte, as does the network ID that follows, so no two kinds can be confused.
type Domain string

// Preimage returns what is signed: domain tag, network ID, and the bytes exactly
// as they were received.
func (d Domain) Preimage(network NetworkID, body []byte) []byte {
	out := make([]byte, 0, len(d)+len(network)+2+len(body))
	out = append(out, d...)
	out = append(out, 0)
	out = append(out, network...)
	out = append(out, 0)
	return append(out, body...)
}

// Hash returns the SHA-256 of the preimage.
func (d Domain) Hash(network NetworkID, body []byte) Hash {
	return sha256.Sum256(d.Preimage(network, body))
}

// Sign returns the ed25519 signature of the preimage.
func (d Domain) Sign(key ed25519.PrivateKey, network NetworkID, body []byte) []byte {
	return ed25519.Sign(key, d.Preimage(network, body))
}

// Verify reports whether sig is signer's signature of the preimage.
func (d Domain) Verify(signer Address, network NetworkID, body, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize &&
		ed25519.Verify(signer.Key(), d.Preimage(network, body), sig)
}
