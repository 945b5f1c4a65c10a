package receipts

import (
	"crypto/ed25519"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// FuzzKept reads a row of the file, which a disk may have damaged.
func FuzzKept(f *testing.F) {
	const network mesh.NetworkID = "fuzz12345678"
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	hash := mesh.HashOf([]byte("x"))
	signed, err := inference.SignReceipt(network, key, &inferencepb.Receipt{
		Request: hash[:], Model: hash[:], ChainBefore: hash[:], ChainAfter: hash[:], Finish: "eos"})
	if err != nil {
		f.Fatal(err)
	}
	b, err := proto.Marshal(signed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(make([]byte, 8), b...))
	f.Add([]byte{1, 2, 3})
	s := &Store{cfg: Config{Network: network}}
	f.Fuzz(func(t *testing.T, row []byte) {
		if r, err := s.parse(row); err == nil && string(r.Signed.Body) != string(signed.Body) {
			t.Error("a receipt that nobody signed is read")
		}
	})
}
