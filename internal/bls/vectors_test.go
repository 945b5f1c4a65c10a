package bls

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/big"
	"slices"
	"testing"

	curve "github.com/consensys/gnark-crypto/ecc/bls12-381"
	"github.com/consensys/gnark-crypto/ecc/bls12-381/fp"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hashed is the key whose seed is SHA-256(n).
func hashed(t testing.TB, n byte) *SecretKey {
	t.Helper()
	seed := sha256.Sum256([]byte{n})
	k, err := NewSecretKey(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// withSecret is the key with this secret.
func withSecret(scalar *big.Int) *SecretKey {
	k := new(SecretKey)
	k.scalar.Set(scalar)
	k.public.point.ScalarMultiplication(&generator, scalar)
	return k
}

func prove(t testing.TB, k *SecretKey, context []byte) []byte {
	t.Helper()
	p, err := k.Prove(context)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestKeyGenOfEIP2333 has the vectors of EIP-2333: a master secret key is KeyGen of its
// seed.
func TestKeyGenOfEIP2333(t *testing.T) {
	for _, v := range []struct{ seed, secret string }{
		{
			"c55257c360c07c72029aebc1b53c05ed0362ada38ead3e3e9efa3708e53495531f09a6987599d18264c1e1c92f2cf141630c7a3c4ab7c81b2f001698e7463b04",
			"6083874454709270928345386274498605044986640685124978867557563392430687146096",
		},
		{"3141592653589793238462643383279502884197169399375105820974944592", "29757020647961307431480504535336562678282505419141012933316116377660817309383"},
		{"0099ff991111002299dd7744ee3355bbdd8844115566cc55663355668888cc00", "27580842291869792442942448775674722299803720648445448686099262467207037398656"},
		{"d4e56740f876aef8c010b86a40d5f56745a118d0906a34e69aec8c0db1cb8fa3", "19022158461524446591288038168518313374041767046816487870552872741050760015818"},
	} {
		k, err := NewSecretKey(unhex(t, v.seed))
		if err != nil {
			t.Fatal(err)
		}
		if k.scalar.String() != v.secret {
			t.Errorf("seed %s gives %s, want %s", v.seed, &k.scalar, v.secret)
		}
	}
	for _, size := range []int{0, 31} {
		if _, err := NewSecretKey(make([]byte, size)); err == nil {
			t.Errorf("a seed of %d bytes is taken", size)
		}
	}
}

// TestBesideBlst has what blst v0.3.17 computes from the seeds SHA-256(n): public key,
// proof of possession, the same with a context, and a signature of "mesh".
func TestBesideBlst(t *testing.T) {
	for n, v := range []struct{ secret, public, proof, bound, signature string }{
		{"481912c5b9a60ac0f0233b96850ee77e46ba8aaec6ce563563ec797f34465592", "8ee82c1bd6cfc1adbf64402270252fecfdce573a89dd642500279db96b226e859f3321f9de3a6a72494367db87378b72", "9214b573af2c66512168e4c8455939a05f8520b0229b9dc855eb23cb3efe5fbf761e1b8ccefa8b3f01bec6be62ecd128146cae596fff67dee4aa8a5b8d480391ab120f7ab5a62e7ba3b238bd524f3dada420aac0d221e0baff5cc1df3ed9ef51", "93186b881ee1db0a4ea4967e5a5f479366845353bf891f7f3e51329005098965ca0e63bf8355775f4d3288426d1c476d0f6475ab00f092d17c9d07cc36625349327b19f1684dc57d27d5164b6f0dbe8ab99ce6619e365d1fa6d306f6b5e702e9", "8486171d2cdf8d55bf8bbaa7177b477abb4ce0cbc2ca6c0e7a97d822bf6979d6fae0a9c8fa77590dbd22cfda06a079a00bdb9af063e23b47e3e5774b2e1ec25748184ad65bcbaa713adcc46039f2a1530aeba06e996321343f9032a379af6e7d"},
		{"6051a89df4004573240ab7f5535bc14c2b7588ac18a4aed773bfb45818db2ea9", "a079dd34581ae79a3cb638e29017742d3747d26665e3e716c6d4c40f1ab0c602db8d8d3950152020d7631ad9bf6bb2b2", "923dde6f35f135e29cbd104b4354be34752ae6ee3d11067fe430668bdac3c0e2c67a928d596967b2cff42e6248e085b001ba676cc845afbdfa79680bd325f69563267780c0254f22a3ccc33e05eebd3a85cc999cde7c77c48c1d0fe7c40ac15c", "b34c584e604aa1d5ab6fdd4941e668d84123e3200c140b1b68e4d1634d2d6cac2391caf22a4a55029cc1abc0c2e643f40f01588297d14924e3bcc1d134a332f3f8e0b9e826cf625c2e1ed527215572b6745b43e2472a5f3a9210055350e25828", "8de3ce60b848cf8edf2204ef8610d72507f3b4b569be9964b5d8559da9a85c9a6147df96127e83c911da1867cc63adab06c23e5ddfa2fbe3fffab98390d2c7d61702c179d29a10b1984c3d6655f55e56d786c82691956a8bea5f3f3f5dc0efbb"},
		{"41bd4cade27e42fc2fde068b1dcca4bf8e677d9b181b2ba4056fabc1b6a3be77", "b458072886941b1acc10347f9feff631cda1fc26bd0d32f8307f3e06845b358017ab60b79b23a4f332f3c0c1c6e95039", "b4eb1fc90b0c382442d226b81177386435d9ea4edeb7797c8b2d8bd1dde45c953ac1d70f95d8c42867f58c301a7a532417e788d8133e971a00a690a4a15203086231cc3e4d6392a84ebfc349528ae828065eeb43c235077f56ab40c7a48a7f3b", "94bfae91a75f84eaa5315557bacae050140dae416a6fde39f0d2bd8018ad431cf88f0791027d8678a327175922aef9f605d637489a12da14fb813794eeeddb741d9f92c53a050678d3cbd8a097a9f8f219ed757ec2c63206a18f68d3526c90b5", "85f726626e13774da0f85abb7391a7af57461d94337307f3ac943aa9379b8d312102d08d5b0a385f705ce421a985afd308f0abb7e2ed01471e2816819521c3931a44629b3703de929712ec71972065f6bf3ecf967642f16ef63383665fe4577f"},
	} {
		k := hashed(t, byte(n))
		for _, c := range []struct {
			what string
			got  []byte
			want string
		}{
			{"secret", k.scalar.FillBytes(make([]byte, 32)), v.secret},
			{"public key", k.Public().Bytes(), v.public},
			{"proof", prove(t, k, nil), v.proof},
			{"proof with a context", prove(t, k, []byte("context")), v.bound},
			{"signature", sign(t, k, "mesh"), v.signature},
		} {
			if hex.EncodeToString(c.got) != c.want {
				t.Errorf("key %d: %s is %x, want %s", n, c.what, c.got, c.want)
			}
		}
		public, err := ParsePublicKey(unhex(t, v.public))
		if err != nil {
			t.Fatal(err)
		}
		if !public.VerifyProof(nil, unhex(t, v.proof)) || !public.VerifyProof([]byte("context"), unhex(t, v.bound)) || !public.Verify([]byte("mesh"), unhex(t, v.signature)) {
			t.Errorf("key %d: what blst signed does not verify", n)
		}
	}
}

// Secrets, public keys and signatures of the consensus tests of Ethereum, whose
// ciphersuite this is.
var ethereum = struct {
	secrets, publics [3]string
	message          string
	signatures       [3]string
	aggregate        string
}{
	secrets: [3]string{
		"263dbd792f5b1be47ed85f8938c0f29586af0d3ac7b977f21c278fe1462040e3",
		"47b8192d77bf871b62e87859d653922725724a5c031afeabc60bcef5ff665138",
		"328388aff0d4a5b7dc9205abd374e7e98f3cd9f3418edb4eafda5fb16473d216",
	},
	publics: [3]string{
		"a491d1b0ecd9bb917989f0e74f0dea0422eac4a873e5e2644f368dffb9a6e20fd6e10c1b77654d067c0618f6e5a7f79a",
		"b301803f8b5ac4a1133581fc676dfedc60d891dd5fa99028805e5ea5b08d3491af75d0707adab3b70c6a6a580217bf81",
		"b53d21a4cfd562c469cc81514d4ce5a6b577d8403d32a394dc265dd190b47fa9f829fdd7963afdf972e5e77854051f6f",
	},
	message: "abababababababababababababababababababababababababababababababab",
	signatures: [3]string{
		"91347bccf740d859038fcdcaf233eeceb2a436bcaaee9b2aa3bfb70efe29dfb2677562ccbea1c8e061fb9971b0753c240622fab78489ce96768259fc01360346da5b9f579e5da0d941e4c6ba18a0e64906082375394f337fa1af2b7127b0d121",
		"9674e2228034527f4c083206032b020310face156d4a4685e2fcaec2f6f3665aa635d90347b6ce124eb879266b1e801d185de36a0a289b85e9039662634f2eea1e02e670bc7ab849d006a70b2f93b84597558a05b879c8d445f387a5d5b653df",
		"ae82747ddeefe4fd64cf9cedb9b04ae3e8a43420cd255e3c7cd06a8d88b7c7f8638543719981c5d16fa3527c468c25f0026704a6951bde891360c7e8d12ddee0559004ccdbe6046b55bae1b257ee97f7cdb955773d7cf29adf3ccbb9975e4eb9",
	},
	aggregate: "9712c3edd73a209c742b8250759db12549b3eaf43b5ca61376d9f30e2747dbcf842d8b2ac0901d2a093713e20284a7670fcf6954e9ab93de991bb9b313e664785a075fc285806fa5224c82bde146561b446ccfc706a64b8579513cfc4ff1d930",
}

func TestVectorsOfEthereum(t *testing.T) {
	message := unhex(t, ethereum.message)
	var publics []*PublicKey
	var signatures [][]byte
	for i, s := range ethereum.secrets {
		k := withSecret(new(big.Int).SetBytes(unhex(t, s)))
		if got := hex.EncodeToString(k.Public().Bytes()); got != ethereum.publics[i] {
			t.Errorf("public key %d is %s", i, got)
		}
		if got := hex.EncodeToString(sign(t, k, string(message))); got != ethereum.signatures[i] {
			t.Errorf("signature %d is %s", i, got)
		}
		publics = append(publics, k.Public())
		signatures = append(signatures, sign(t, k, string(message)))
	}
	sum, err := Aggregate(signatures)
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(sum) != ethereum.aggregate {
		t.Errorf("the sum is %x", sum)
	}
	if !FastAggregateVerify(publics, message, sum) {
		t.Error("the sum does not verify")
	}
	if publics[0].VerifyProof(nil, prove(t, hashed(t, 1), nil)) || publics[0].Verify(message, signatures[1]) || FastAggregateVerify(append(slices.Clone(publics), publics[0]), message, sum) {
		t.Error("another's proof, another's signature or a key twice verifies")
	}
}

// TestKeysThatCancelOut: the sum of s and -s is infinity, under which the point at
// infinity would be a signature of everything.
func TestKeysThatCancelOut(t *testing.T) {
	a := hashed(t, 1)
	order, _ := new(big.Int).SetString("73eda753299d7d483339d80809a1d80553bda402fffe5bfeffffffff00000001", 16)
	b := withSecret(new(big.Int).Sub(order, &a.scalar))
	infinity := append([]byte{0xc0}, make([]byte, 95)...)
	sum, err := Aggregate([][]byte{sign(t, a, "x"), sign(t, b, "x")})
	if err != nil || !bytes.Equal(sum, infinity) {
		t.Fatalf("the sum is %x, %v", sum, err)
	}
	if FastAggregateVerify([]*PublicKey{a.Public(), b.Public()}, []byte("anything"), infinity) {
		t.Error("keys that cancel out sign anything")
	}
}

// offSubgroup finds points on the curves outside the subgroups: almost all are.
func offSubgroup(t testing.TB) (g1, g2 []byte) {
	t.Helper()
	for x := uint64(1); g1 == nil || g2 == nil; x++ {
		if x == 100 {
			t.Fatal("no point is found")
		}
		var one curve.G1Affine
		one.X.SetUint64(x)
		var square fp.Element
		square.Square(&one.X).Mul(&square, &one.X)
		square.Add(&square, new(fp.Element).SetUint64(4))
		if one.Y.Sqrt(&square) != nil && !one.IsInSubGroup() && g1 == nil {
			b := one.Bytes()
			g1 = b[:]
		}
		var two curve.G2Affine
		two.X.A0.SetUint64(x)
		y := two.X
		y.Square(&two.X).Mul(&y, &two.X)
		four := two.X
		four.A0.SetUint64(4)
		four.A1.SetUint64(4)
		y.Add(&y, &four)
		if y.Legendre() == 1 && g2 == nil {
			two.Y.Sqrt(&y)
			if two.IsOnCurve() && !two.IsInSubGroup() {
				b := two.Bytes()
				g2 = b[:]
			}
		}
	}
	return g1, g2
}

func TestEncodingsThatAreRefused(t *testing.T) {
	public, signature := hashed(t, 1).Public().Bytes(), sign(t, hashed(t, 1), "x")
	change := func(b []byte, at int, to byte) []byte {
		c := slices.Clone(b)
		c[at] = to
		return c
	}
	modulus := fp.Modulus().FillBytes(make([]byte, 48))
	modulus[0] |= 0x80
	off1, off2 := offSubgroup(t)
	raw1 := hashed(t, 1).public.point.RawBytes()
	for name, b := range map[string][]byte{
		"nothing": nil, "short": public[:47], "long": append(slices.Clone(public), 0),
		"infinity":                              append([]byte{0xc0}, make([]byte, 47)...),
		"infinity with a sign":                  append([]byte{0xe0}, make([]byte, 47)...),
		"infinity with a number":                append(append([]byte{0xc0}, make([]byte, 46)...), 1),
		"without the mark":                      change(public, 0, public[0]&0x7f),
		"the first half of an uncompressed one": raw1[:48], "uncompressed": raw1[:],
		"modulus": modulus, "all ones": bytes.Repeat([]byte{0xff}, 48),
		"outside the subgroup": off1,
	} {
		if _, err := ParsePublicKey(b); err == nil {
			t.Errorf("public key, %s: taken", name)
		}
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "short": signature[:95], "long": append(slices.Clone(signature), 0),
		"without the mark":     change(signature, 0, signature[0]&0x7f),
		"all ones":             bytes.Repeat([]byte{0xff}, 96),
		"modulus":              append(slices.Clone(modulus), make([]byte, 48)...),
		"outside the subgroup": off2,
	} {
		if _, err := parseSignature(b); err == nil {
			t.Errorf("signature, %s: taken", name)
		}
	}
}
