// Package bls signs with BLS12-381: public keys in G1 (48 bytes), signatures in G2
// (96 bytes), as draft-irtf-cfrg-bls-signature-05 defines the scheme with proofs of
// possession. A signature is unique: one key, one message, one signature. Signatures
// of one message add up to one.
//
// Arithmetic is gnark-crypto's, which is not constant in time: the key signs public
// facts once a block, where nobody can measure it often.
package bls

import (
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"

	bls12381 "github.com/consensys/gnark-crypto/ecc/bls12-381"
	"github.com/consensys/gnark-crypto/ecc/bls12-381/fr"
)

// Sizes in bytes.
const (
	PublicKeySize = bls12381.SizeOfG1AffineCompressed
	SignatureSize = bls12381.SizeOfG2AffineCompressed
	SeedSize      = 32
)

// Domain separation tags of the ciphersuite BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_.
var (
	signTag  = []byte("BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_")
	proofTag = []byte("BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_")
)

var _, _, generator, _ = bls12381.Generators()

// SecretKey signs.
type SecretKey struct {
	scalar big.Int
	public PublicKey
}

// PublicKey verifies. It is on the curve, in the subgroup, and not the identity.
type PublicKey struct {
	point bls12381.G1Affine
}

// NewSecretKey derives a key from a secret seed of 32 bytes or more (KeyGen of the
// draft, section 2.3, without key info).
func NewSecretKey(seed []byte) (*SecretKey, error) {
	if len(seed) < SeedSize {
		return nil, fmt.Errorf("BLS key: seed of %d bytes, at least %d", len(seed), SeedSize)
	}
	salt := sha256.Sum256([]byte("BLS-SIG-KEYGEN-SALT-"))
	const size = 48 // ceil(3 * ceil(log2(r)) / 16)
	k := new(SecretKey)
	for {
		prk, err := hkdf.Extract(sha256.New, append(append([]byte{}, seed...), 0), salt[:])
		if err != nil {
			return nil, fmt.Errorf("BLS key: %w", err)
		}
		okm, err := hkdf.Expand(sha256.New, prk, string([]byte{0, size}), size)
		if err != nil {
			return nil, fmt.Errorf("BLS key: %w", err)
		}
		k.scalar.SetBytes(okm).Mod(&k.scalar, fr.Modulus())
		if k.scalar.Sign() != 0 {
			break
		}
		salt = sha256.Sum256(salt[:])
	}
	k.public.point.ScalarMultiplication(&generator, &k.scalar)
	return k, nil
}

// Public returns the public key.
func (k *SecretKey) Public() *PublicKey { return &k.public }

// Sign returns the one signature of a message.
func (k *SecretKey) Sign(message []byte) ([]byte, error) { return k.sign(message, signTag) }

// Prove returns a proof of possession of the secret key, for a purpose that context
// names: without one, a key could be made that cancels those of others.
func (k *SecretKey) Prove(context []byte) ([]byte, error) {
	return k.sign(k.public.possession(context), proofTag)
}

func (k *SecretKey) sign(message, tag []byte) ([]byte, error) {
	h, err := bls12381.HashToG2(message, tag)
	if err != nil {
		return nil, fmt.Errorf("BLS sign: %w", err)
	}
	var s bls12381.G2Affine
	s.ScalarMultiplication(&h, &k.scalar)
	b := s.Bytes()
	return b[:], nil
}

// ParsePublicKey reads the compressed form; only the one encoding of a valid key passes.
func ParsePublicKey(b []byte) (*PublicKey, error) {
	if len(b) != PublicKeySize {
		return nil, fmt.Errorf("BLS key of %d bytes, want %d", len(b), PublicKeySize)
	}
	p := new(PublicKey)
	if b[0]&0x80 == 0 {
		return nil, errors.New("BLS key: not in compressed form")
	}
	if _, err := p.point.SetBytes(b); err != nil { // checks the subgroup too
		return nil, fmt.Errorf("BLS key: %w", err)
	}
	if p.point.IsInfinity() {
		return nil, errors.New("BLS key: the identity is no key")
	}
	if again := p.point.Bytes(); string(again[:]) != string(b) {
		return nil, errors.New("BLS key: not in canonical form")
	}
	return p, nil
}

// Bytes returns the compressed form.
func (p *PublicKey) Bytes() []byte {
	b := p.point.Bytes()
	return b[:]
}

// Verify reports whether signature is this key's of message.
func (p *PublicKey) Verify(message, signature []byte) bool {
	return verify(&p.point, message, signature, signTag)
}

// VerifyProof reports whether proof is one of possession, for this purpose.
func (p *PublicKey) VerifyProof(context, proof []byte) bool {
	return verify(&p.point, p.possession(context), proof, proofTag)
}

func (p *PublicKey) possession(context []byte) []byte { return append(p.Bytes(), context...) }

func verify(key *bls12381.G1Affine, message, signature, tag []byte) bool {
	s, err := parseSignature(signature)
	if err != nil {
		return false
	}
	h, err := bls12381.HashToG2(message, tag)
	if err != nil {
		return false
	}
	var minus bls12381.G1Affine
	minus.Neg(&generator)
	ok, err := bls12381.PairingCheck([]bls12381.G1Affine{*key, minus}, []bls12381.G2Affine{h, *s})
	return err == nil && ok
}

func parseSignature(b []byte) (*bls12381.G2Affine, error) {
	if len(b) != SignatureSize {
		return nil, fmt.Errorf("BLS signature of %d bytes, want %d", len(b), SignatureSize)
	}
	if b[0]&0x80 == 0 {
		return nil, errors.New("BLS signature: not in compressed form")
	}
	s := new(bls12381.G2Affine)
	if _, err := s.SetBytes(b); err != nil { // checks the subgroup too
		return nil, fmt.Errorf("BLS signature: %w", err)
	}
	if again := s.Bytes(); string(again[:]) != string(b) {
		return nil, errors.New("BLS signature: not in canonical form")
	}
	return s, nil
}

// Aggregate adds signatures up. It and FastAggregateVerify are for the verdicts of
// disputes, which the ledger has none of yet: only tests and benchmarks call them.
func Aggregate(signatures [][]byte) ([]byte, error) {
	if len(signatures) == 0 {
		return nil, errors.New("BLS aggregate: no signatures")
	}
	var sum bls12381.G2Jac
	for i, b := range signatures {
		s, err := parseSignature(b)
		if err != nil {
			return nil, fmt.Errorf("BLS aggregate: signature %d: %w", i, err)
		}
		sum.AddMixed(s)
	}
	var out bls12381.G2Affine
	out.FromJacobian(&sum)
	b := out.Bytes()
	return b[:], nil
}

// FastAggregateVerify reports whether an aggregate is that of all these keys' signatures
// of one message. Each key's possession has to have been proven before.
func FastAggregateVerify(keys []*PublicKey, message, aggregate []byte) bool {
	if len(keys) == 0 {
		return false
	}
	var sum bls12381.G1Jac
	for _, k := range keys {
		sum.AddMixed(&k.point)
	}
	var key bls12381.G1Affine
	key.FromJacobian(&sum)
	return !key.IsInfinity() && verify(&key, message, aggregate, signTag)
}
