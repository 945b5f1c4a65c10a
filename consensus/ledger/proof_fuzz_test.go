package ledger

import (
	"bytes"
	"testing"
)

// FuzzDecodeProof proves with any bytes: nothing is proven that was not settled, and
// what is decoded encodes back to itself.
func FuzzDecodeProof(f *testing.F) {
	all := receiptsOf(3, 1, 5)
	lines, prover, err := BuildSettlement(all)
	if err != nil {
		f.Fatal(err)
	}
	record := committed(f, lines)
	settled := make(map[string]uint64)
	for _, e := range all {
		for _, r := range e.Receipts {
			settled[string(r.Hash[:])] = uint64(r.Price)
			p, err := prover.Prove(e.Escrow, r.Hash)
			if err != nil {
				f.Fatal(err)
			}
			raw, err := EncodeProof(p)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := DecodeProof(raw)
		if err != nil {
			return
		}
		again, err := EncodeProof(p)
		if err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("the proof does not encode back to itself: %v", err)
		}
		price, known := settled[string(p.GetReceipt())]
		if VerifyReceipt(record, p) == nil && (!known || price != p.GetPrice()) {
			t.Fatalf("a receipt that was not settled is proven: %v", p)
		}
	})
}
