package inference

import (
	"crypto/ed25519"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

func testAddress(n byte) mesh.Address {
	return mesh.AddressOf(testKey(n).Public().(ed25519.PublicKey))
}

func sampleVoucher() *Voucher {
	return &Voucher{Escrow: mesh.HashOf([]byte("escrow")), Host: testAddress(2), Epoch: 7, Amount: 1_234_567_890, Receipts: 42}
}

func TestVoucher(t *testing.T) {
	v := sampleVoucher()
	s, err := SignVoucher(network, testKey(1), v)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseVoucher(network, testAddress(1), s)
	if err != nil || *got != *v {
		t.Fatalf("got %+v, %v", got, err)
	}
	if !v.Verify(network, testAddress(1), s.Signature) {
		t.Error("the owner's signature does not verify")
	}
	if zero, err := ParseVoucher(network, testAddress(1), mustSign(t, &Voucher{})); err != nil || *zero != (Voucher{}) {
		t.Errorf("a voucher of zeros: %+v, %v", zero, err)
	}
	for _, tt := range []struct {
		name   string
		change func(v *Voucher)
	}{
		{"escrow", func(v *Voucher) { v.Escrow[0] ^= 1 }},
		{"host", func(v *Voucher) { v.Host[0] ^= 1 }},
		{"epoch", func(v *Voucher) { v.Epoch++ }},
		{"amount", func(v *Voucher) { v.Amount++ }},
		{"receipts", func(v *Voucher) { v.Receipts-- }},
	} {
		other := *v
		tt.change(&other)
		if other.Verify(network, testAddress(1), s.Signature) {
			t.Errorf("the signature holds for another %s", tt.name)
		}
	}
	if v.Verify("dev00000000", testAddress(1), s.Signature) || v.Verify(network, testAddress(2), s.Signature) {
		t.Error("the signature holds on another network or for another owner")
	}
}

func mustSign(t testing.TB, v *Voucher) *inferencepb.Signed {
	t.Helper()
	s, err := SignVoucher(network, testKey(1), v)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVoucherRefused(t *testing.T) {
	base, v := mustSign(t, sampleVoucher()), sampleVoucher()
	pb := func(change func(p *inferencepb.Voucher)) []byte {
		p := &inferencepb.Voucher{Network: string(network), Escrow: v.Escrow[:], Host: v.Host[:], Epoch: 7}
		change(p)
		return marshal(t, p)
	}
	for _, tt := range []struct {
		name, want string
		body       []byte
	}{
		{"network", "of network", pb(func(p *inferencepb.Voucher) { p.Network = "main00000000" })},
		{"escrow", "escrow", pb(func(p *inferencepb.Voucher) { p.Escrow = p.Escrow[1:] })},
		{"host", "host of 0 bytes", pb(func(p *inferencepb.Voucher) { p.Host = nil })},
		{"size", "at most 256", make([]byte, 257)},
		{"not canonical", "canonical", append([]byte{0x30, 1}, base.Body...)},
		{"a field that nobody knows", "more in it", append(append([]byte{}, base.Body...), 0x98, 0x06, 1)},
	} {
		_, err := ParseVoucher(network, testAddress(1), resign(domainVoucher, 1, tt.body))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	wrong := proto.Clone(base).(*inferencepb.Signed)
	wrong.Signature[5] ^= 1
	if _, err := ParseVoucher(network, testAddress(1), wrong); err == nil || !strings.Contains(err.Error(), "owner") {
		t.Errorf("a wrong signature: got %v", err)
	}
	if _, err := ParseVoucher(network, testAddress(2), base); err == nil {
		t.Error("taken as another owner's")
	}
}

func FuzzParseVoucher(f *testing.F) {
	f.Add(mustSign(f, sampleVoucher()).Body)
	f.Add(mustSign(f, &Voucher{}).Body)
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, body []byte) {
		s := resign(domainVoucher, 1, body)
		v, err := ParseVoucher(network, testAddress(1), s)
		if err != nil {
			return
		}
		if !v.Verify(network, testAddress(1), s.Signature) {
			t.Errorf("accepted, and its parts do not make the signed bytes: %+v", v)
		}
	})
}
