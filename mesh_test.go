package mesh

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
)

// The peer ID of a key made from 32 bytes of value 1, as libp2p writes it
// (checked against peer.IDFromPublicKey in package p2p).
func testKey(b byte) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	for i := range seed {
		seed[i] = b
	}
	return ed25519.NewKeyFromSeed(seed)
}

func TestAddressText(t *testing.T) {
	for b := range byte(20) {
		a := AddressOf(testKey(b).Public().(ed25519.PublicKey))
		s := a.String()
		if !strings.HasPrefix(s, "12D3KooW") || len(s) != 52 {
			t.Fatalf("address %q has not the form of an ed25519 peer ID", s)
		}
		back, err := ParseAddress(s)
		if err != nil || back != a {
			t.Fatalf("ParseAddress(%q) = %v, %v", s, back, err)
		}
	}
}

func TestAddressRefuses(t *testing.T) {
	good := AddressOf(testKey(1).Public().(ed25519.PublicKey)).String()
	for name, s := range map[string]string{
		"empty":       "",
		"no base58":   strings.Replace(good, "1", "0", 1),
		"cut":         good[:51],
		"longer":      good + "1",
		"endless":     strings.Repeat("z", 1000),
		"other key":   "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
		"with spaces": " " + good,
	} {
		t.Run(name, func(t *testing.T) {
			if a, err := ParseAddress(s); err == nil {
				t.Fatalf("ParseAddress(%q) = %v, want an error", s, a)
			}
		})
	}
}

func TestJSONForms(t *testing.T) {
	type doc struct {
		A Address `json:"a"`
		H Hash    `json:"h"`
	}
	for _, want := range []doc{{}, {AddressOf(testKey(2).Public().(ed25519.PublicKey)), HashOf([]byte("x"))}} {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got doc
		if err := json.Unmarshal(b, &got); err != nil || got != want {
			t.Fatalf("%s reads back as %v, %v", b, got, err)
		}
	}
}

func TestAmountText(t *testing.T) {
	for s, want := range map[string]Amount{
		"0": 0, "1": GNK, "1.5": GNK * 3 / 2, "1.5 GNK": GNK * 3 / 2, "20GNK": 20 * GNK,
		"0.000000001": 1, "1000000000": MaxSupply, "18446744073.709551615": math.MaxUint64,
	} {
		if got, err := ParseAmount(s); err != nil || got != want {
			t.Errorf("ParseAmount(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", ".", "1.", ".5", "-1", "+1", "1e3", "1_0", "0.0000000001", "18446744073.709551616", "99999999999999999999", "1 0", "GNK"} {
		if got, err := ParseAmount(s); err == nil {
			t.Errorf("ParseAmount(%q) = %d, want an error", s, got)
		}
	}
}

func TestAmountArithmetic(t *testing.T) {
	const top = Amount(math.MaxUint64)
	if _, err := top.Add(1); !errors.Is(err, ErrOverflow) {
		t.Errorf("top + 1: %v", err)
	}
	if _, err := Amount(1).Sub(2); !errors.Is(err, ErrOverflow) {
		t.Errorf("1 - 2: %v", err)
	}
	if _, err := top.Mul(2); !errors.Is(err, ErrOverflow) {
		t.Errorf("top * 2: %v", err)
	}
	if v, err := Amount(3).Mul(4); v != 12 || err != nil {
		t.Errorf("3 * 4 = %d, %v", v, err)
	}
}

func TestNetworkID(t *testing.T) {
	id := NewNetworkID("dev", HashOf([]byte("genesis")))
	if err := id.Validate(); err != nil || !strings.HasPrefix(string(id), "dev") || len(id) != 11 {
		t.Fatalf("%s: %v", id, err)
	}
	for _, bad := range []NetworkID{"", "dev", "dev1234567", "dev1234567G", "devABCDEF01", "DEV12345678", "a/b12345678", NetworkID(strings.Repeat("a", 33) + "12345678")} {
		if bad.Validate() == nil {
			t.Errorf("network ID %q passes", bad)
		}
	}
}

// TestDomainsDiffer moves a byte over each border of the preimage.
func TestDomainsDiffer(t *testing.T) {
	key := testKey(3)
	who := AddressOf(key.Public().(ed25519.PublicKey))
	sig := Domain("mesh/a").Sign(key, "dev12345678", []byte("body"))
	if !Domain("mesh/a").Verify(who, "dev12345678", []byte("body"), sig) {
		t.Fatal("own signature refused")
	}
	for _, c := range []struct {
		d Domain
		n NetworkID
		b string
	}{
		{"mesh/", "adev12345678", "body"}, {"mesh/ad", "ev12345678", "body"}, {"mesh/a", "dev12345678b", "ody"},
		{"mesh/a", "dev1234567", "8body"}, {"mesh/a", "dev12345678", "bodz"}, {"mesh/a", "dev12345679", "body"},
	} {
		if c.d.Verify(who, c.n, []byte(c.b), sig) {
			t.Errorf("%q %q %q has the same signature", c.d, c.n, c.b)
		}
	}
	if Domain("mesh/a").Verify(who, "dev12345678", []byte("body"), sig[:63]) {
		t.Error("a short signature passes")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("12D3KooWGSSqSZ5NwVzvb2gDWSTLUgNXXBYfKFhqcWVbnxBPdWDT")
	f.Add("1.5 GNK")
	f.Add("dev12345678")
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := ParseAddress(s); err == nil && a.String() != s {
			t.Errorf("address %q reads back as %q", s, a)
		}
		if h, err := ParseHash(s); err == nil && h.String() != strings.ToLower(s) {
			t.Errorf("hash %q reads back as %q", s, h)
		}
		if a, err := ParseAmount(s); err == nil {
			if b, err := ParseAmount(a.String()); err != nil || a != b {
				t.Errorf("amount %q reads back as %v, %v", s, b, err)
			}
		}
		_ = NetworkID(s).Validate()
	})
}
