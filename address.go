package mesh

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/big"
)

// Address is the ed25519 public key of a node. It is the node's identity on the
// network and its account on the ledger. Its text form is the libp2p peer ID:
// base58 of the identity multihash of the key's protobuf encoding (12D3Koo…).
type Address [ed25519.PublicKeySize]byte

// addressPrefix is what stands before the raw key in a peer ID: identity
// multihash of 36 bytes holding {type: Ed25519, data: 32 bytes}.
// Source: libp2p peer-ids specification.
var addressPrefix = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}

const base58Alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

// AddressOf returns the address of an ed25519 public key.
func AddressOf(key ed25519.PublicKey) Address {
	var a Address
	copy(a[:], key)
	return a
}

// ParseAddress reads the text form of an address.
func ParseAddress(s string) (Address, error) {
	var a Address
	// 38 bytes take at most 52 base58 digits; a longer text is refused unread.
	if len(s) == 0 || len(s) > 60 {
		return a, fmt.Errorf("address %.70q: not a peer ID", s)
	}
	raw, err := base58Decode(s)
	if err != nil {
		return a, fmt.Errorf("address %q: %w", s, err)
	}
	if len(raw) != len(addressPrefix)+len(a) || !bytes.HasPrefix(raw, addressPrefix) {
		return a, fmt.Errorf("address %q: not an ed25519 peer ID", s)
	}
	copy(a[:], raw[len(addressPrefix):])
	return a, nil
}

// String returns the peer ID form.
func (a Address) String() string {
	return base58Encode(append(append([]byte{}, addressPrefix...), a[:]...))
}

// Short returns the last eight characters of the text form, for tables and logs.
func (a Address) Short() string {
	s := a.String()
	return s[len(s)-8:]
}

// IsZero reports whether the address was never set.
func (a Address) IsZero() bool { return a == Address{} }

// Key returns the public key.
func (a Address) Key() ed25519.PublicKey { return ed25519.PublicKey(a[:]) }

// MarshalText writes the peer ID form; the zero address is the empty text.
func (a Address) MarshalText() ([]byte, error) {
	if a.IsZero() {
		return []byte{}, nil
	}
	return []byte(a.String()), nil
}

// UnmarshalText is the inverse of MarshalText.
func (a *Address) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*a = Address{}
		return nil
	}
	v, err := ParseAddress(string(text))
	if err == nil {
		*a = v
	}
	return err
}

func base58Encode(b []byte) string {
	zeros := 0
	for zeros < len(b) && b[zeros] == 0 {
		zeros++
	}
	n, rem, radix := new(big.Int).SetBytes(b), new(big.Int), big.NewInt(58)
	var out []byte
	for n.Sign() > 0 {
		n.DivMod(n, radix, rem)
		out = append(out, base58Alphabet[rem.Int64()])
	}
	for range zeros {
		out = append(out, base58Alphabet[0])
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return string(out)
}

func base58Decode(s string) ([]byte, error) {
	n, radix := new(big.Int), big.NewInt(58)
	zeros, leading := 0, true
	for i := range len(s) {
		d := bytes.IndexByte([]byte(base58Alphabet), s[i])
		if d < 0 {
			return nil, errors.New("not base58")
		}
		if leading && d == 0 {
			zeros++
		} else {
			leading = false
		}
		n.Mul(n, radix).Add(n, big.NewInt(int64(d)))
	}
	return append(make([]byte, zeros), n.Bytes()...), nil
}
