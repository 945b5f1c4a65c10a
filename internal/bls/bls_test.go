package bls

import (
	"bytes"
	"testing"

	bls12381 "github.com/consensys/gnark-crypto/ecc/bls12-381"
)

func key(t testing.TB, n byte) *SecretKey {
	t.Helper()
	k, err := NewSecretKey(bytes.Repeat([]byte{n}, SeedSize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, k *SecretKey, message string) []byte {
	t.Helper()
	s, err := k.Sign([]byte(message))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSignatures(t *testing.T) {
	a, b := key(t, 1), key(t, 2)
	s := sign(t, a, "block 7")
	if !a.Public().Verify([]byte("block 7"), s) {
		t.Error("a good signature is refused")
	}
	if !bytes.Equal(s, sign(t, a, "block 7")) {
		t.Error("two signatures of one message differ")
	}
	proof, err := a.Prove([]byte("net"))
	if err != nil {
		t.Fatal(err)
	}
	if !a.Public().VerifyProof([]byte("net"), proof) {
		t.Error("a good proof is refused")
	}
	infinity := make([]byte, SignatureSize)
	infinity[0] = 0xc0
	for name, ok := range map[string]bool{
		"another message":         a.Public().Verify([]byte("block 8"), s),
		"another key":             b.Public().Verify([]byte("block 7"), s),
		"a proof as signature":    a.Public().Verify(a.Public().possession([]byte("net")), proof),
		"a signature as proof":    a.Public().VerifyProof([]byte("net"), sign(t, a, string(a.Public().possession([]byte("net"))))),
		"a proof of another use":  a.Public().VerifyProof([]byte("other"), proof),
		"the identity":            a.Public().Verify([]byte("block 7"), infinity),
		"half":                    a.Public().Verify([]byte("block 7"), s[:48]),
		"nothing":                 a.Public().Verify([]byte("block 7"), nil),
		"an aggregate of no keys": FastAggregateVerify(nil, []byte("block 7"), infinity),
	} {
		if ok {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestAggregate(t *testing.T) {
	var keys []*PublicKey
	var all [][]byte
	for n := range byte(10) {
		k := key(t, n+1)
		keys, all = append(keys, k.Public()), append(all, sign(t, k, "guilty"))
	}
	sum, err := Aggregate(all)
	if err != nil {
		t.Fatal(err)
	}
	if !FastAggregateVerify(keys, []byte("guilty"), sum) {
		t.Error("a good aggregate is refused")
	}
	if FastAggregateVerify(keys[1:], []byte("guilty"), sum) || FastAggregateVerify(keys, []byte("innocent"), sum) {
		t.Error("a wrong aggregate is accepted")
	}
	if _, err := Aggregate(nil); err == nil {
		t.Error("an aggregate of nothing")
	}
}

func TestParsePublicKey(t *testing.T) {
	good := key(t, 1).Public().Bytes()
	flipped := bytes.Clone(good)
	flipped[47] ^= 1
	if p, err := ParsePublicKey(good); err != nil || !bytes.Equal(p.Bytes(), good) {
		t.Errorf("a good key: %v", err)
	}
	if p, err := ParsePublicKey(flipped); err == nil && bytes.Equal(p.Bytes(), good) {
		t.Error("two encodings of one key")
	}
}

func FuzzPublicKey(f *testing.F) {
	f.Add(key(f, 1).Public().Bytes())
	f.Add(make([]byte, PublicKeySize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ParsePublicKey(b); err == nil && !bytes.Equal(p.Bytes(), b) {
			t.Errorf("%x encodes to %x", b, p.Bytes())
		}
	})
}

func FuzzSignature(f *testing.F) {
	f.Add(sign(f, key(f, 1), "x"))
	f.Add(make([]byte, SignatureSize))
	public := key(f, 1).Public()
	good := sign(f, key(f, 1), "x")
	f.Fuzz(func(t *testing.T, b []byte) {
		if public.Verify([]byte("x"), b) && !bytes.Equal(b, good) {
			t.Errorf("a second signature: %x", b)
		}
	})
}

// BenchmarkFastAggregateVerify is of 100 signers; the bar is 10 ms.
func BenchmarkFastAggregateVerify(b *testing.B) {
	var keys []*PublicKey
	var sum bls12381.G2Jac
	for n := range byte(100) {
		k := key(b, n+1)
		keys = append(keys, k.Public())
		s, err := parseSignature(sign(b, k, "guilty"))
		if err != nil {
			b.Fatal(err)
		}
		sum.AddMixed(s)
	}
	var a bls12381.G2Affine
	a.FromJacobian(&sum)
	aggregate := a.Bytes()
	for b.Loop() {
		if !FastAggregateVerify(keys, []byte("guilty"), aggregate[:]) {
			b.Fatal("refused")
		}
	}
}
