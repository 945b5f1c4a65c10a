package ledger

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// receiptsOf gives each escrow as many receipts as its number says.
func receiptsOf(counts ...int) (all []EscrowReceipts) {
	for i, n := range counts {
		e := EscrowReceipts{Escrow: mesh.HashOf([]byte(fmt.Sprint("escrow", i)))}
		for j := range n {
			e.Receipts = append(e.Receipts, ReceiptEntry{mesh.HashOf([]byte(fmt.Sprint(i, " ", j))), mesh.Amount(10*i + j)})
		}
		all = append(all, e)
	}
	return all
}

// committed is the record that the ledger keeps of lines.
func committed(t testing.TB, lines []*ledgerpb.SettleLine) *ledgerpb.Settlement {
	t.Helper()
	var tree merkle.SumBuilder
	for _, l := range lines {
		if err := tree.Append(lineLeaf(l)); err != nil {
			t.Fatal(err)
		}
	}
	root := tree.Root()
	return &ledgerpb.Settlement{Root: root.Hash[:], Total: root.Sum, Lines: tree.Len()}
}

func TestReceiptProofs(t *testing.T) {
	all := receiptsOf(1, 7, 2, 16, 3)
	lines, prover, err := BuildSettlement(all)
	if err != nil {
		t.Fatal(err)
	}
	s := committed(t, lines)
	if s.GetLines() != 5 || s.GetTotal() != 0+(70+21)+(40+1)+(480+120)+(120+3) {
		t.Errorf("settlement %v", s)
	}
	const want = "470cae856be8b708f02bf406c2b21a5123648f5a211fbacce86a85df764b5f71" // pinned: light peers of other makes rely on it
	if got := fmt.Sprintf("%x", s.GetRoot()); got != want {
		t.Errorf("root %s, want %s", got, want)
	}
	for i, l := range lines {
		if i > 0 && bytes.Compare(lines[i-1].GetEscrow(), l.GetEscrow()) >= 0 {
			t.Errorf("lines do not ascend")
		}
		// What the host wants for them does not change what it committed to.
		l.Amount, l.Voucher, l.Acknowledged, l.Signature = 1, 2, 1, make([]byte, 64)
	}
	if got := committed(t, lines); !proto.Equal(got, s) {
		t.Errorf("with vouchers: %v, want %v", got, s)
	}
	for _, e := range all {
		for _, r := range e.Receipts {
			p, err := prover.Prove(e.Escrow, r.Hash)
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyReceipt(s, p); err != nil {
				t.Errorf("escrow %s, receipt %s: %v", e.Escrow.Short(), r.Hash.Short(), err)
			}
			for _, tt := range []struct {
				what   string
				change func(s *ledgerpb.Settlement, p *ledgerpb.ReceiptProof)
			}{
				{"another price", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) { p.Price++ }},
				{"another receipt", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) { p.Receipt[9] ^= 1 }},
				{"no receipt", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) { p.Receipt = nil }},
				{"another place", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) { p.Index++ }},
				{"another line", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) { p.LineIndex++ }},
				{"another escrow", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) { p.Line.Escrow[0] ^= 1 }},
				{"another total of the line", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) { p.Line.Total++ }},
				{"another count", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) { p.Line.Receipts++ }},
				{"no line", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) { p.Line = nil }},
				{"a longer path", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) {
					p.LinePath = append(p.LinePath, p.LinePath[0])
				}},
				{"a step that is no hash", func(_ *ledgerpb.Settlement, p *ledgerpb.ReceiptProof) {
					p.LinePath[0].Hash = p.LinePath[0].Hash[1:]
				}},
				{"another root", func(s *ledgerpb.Settlement, _ *ledgerpb.ReceiptProof) { s.Root[0] ^= 1 }},
				{"another total", func(s *ledgerpb.Settlement, _ *ledgerpb.ReceiptProof) { s.Total++ }},
				{"no settlement", func(s *ledgerpb.Settlement, _ *ledgerpb.ReceiptProof) { proto.Reset(s) }},
			} {
				badS, badP := clonePb(s), clonePb(p)
				tt.change(badS, badP)
				if VerifyReceipt(badS, badP) == nil {
					t.Errorf("escrow %s, receipt %s: with %s it verifies", e.Escrow.Short(), r.Hash.Short(), tt.what)
				}
			}
		}
	}
	if VerifyReceipt(nil, nil) == nil {
		t.Error("nothing verifies")
	}
	for _, tt := range []struct{ escrow, receipt mesh.Hash }{
		{all[0].Escrow, all[1].Receipts[0].Hash}, {mesh.HashOf(nil), all[0].Receipts[0].Hash},
	} {
		if _, err := prover.Prove(tt.escrow, tt.receipt); err == nil {
			t.Error("proof of a receipt that is not there")
		}
	}
}

func TestBuildSettlementRefused(t *testing.T) {
	twice := receiptsOf(2)
	twice[0].Receipts[1] = twice[0].Receipts[0]
	for _, tt := range []struct {
		name, want string
		all        []EscrowReceipts
	}{
		{"a receipt twice", "is there twice", twice},
		{"an escrow twice", "is there twice", append(receiptsOf(1), receiptsOf(1)...)},
		{"an escrow without receipts", "no receipts", receiptsOf(1, 0)},
		{"prices that overflow", "out of range", []EscrowReceipts{{Receipts: []ReceiptEntry{{mesh.Hash{1}, 1 << 63}, {mesh.Hash{2}, 1 << 63}}}}},
	} {
		if _, _, err := BuildSettlement(tt.all); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
}

// TestSignedReceipt follows a receipt from the host's key to the ledger's record.
func TestSignedReceipt(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	host := mesh.AddressOf(key.Public().(ed25519.PublicKey))
	escrow := mesh.HashOf([]byte("escrow"))
	var signed []*inferencepb.Signed
	e := EscrowReceipts{Escrow: escrow}
	for i := range 5 {
		s, err := inference.SignReceipt(escrowNetwork, key, &inferencepb.Receipt{
			Request: escrow[:], Model: escrow[:], ChainBefore: escrow[:], ChainAfter: escrow[:], Choice: uint32(i),
			Finish: "eos", Price: uint64(100 + i), Escrow: escrow[:], Epoch: 4,
		})
		if err != nil {
			t.Fatal(err)
		}
		signed = append(signed, s)
		e.Receipts = append(e.Receipts, ReceiptEntry{HashReceipt(s), mesh.Amount(100 + i)})
	}
	lines, prover, err := BuildSettlement([]EscrowReceipts{e})
	if err != nil {
		t.Fatal(err)
	}
	s := committed(t, lines)
	p, err := prover.Prove(escrow, HashReceipt(signed[3]))
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifySignedReceipt(escrowNetwork, host, 4, s, signed[3], p); err != nil {
		t.Error(err)
	}
	forged := clonePb(signed[3])
	forged.Signature[0] ^= 1
	cheaper, otherEscrow := clonePb(p), clonePb(p)
	cheaper.Price--
	otherEscrow.Line.Escrow[0] ^= 1
	for _, tt := range []struct {
		name, want string
		host       mesh.Address
		epoch      mesh.Epoch
		receipt    *inferencepb.Signed
		proof      *ledgerpb.ReceiptProof
	}{
		{"another host's settlement", "is of host", mesh.Address{1}, 4, signed[3], p},
		{"another epoch's", "epoch 4", host, 5, signed[3], p},
		{"another receipt", "another receipt", host, 4, signed[2], p},
		{"a forged receipt", "signature", host, 4, forged, p},
		{"a lower price", "the receipt costs", host, 4, signed[3], cheaper},
		{"another escrow", "another escrow", host, 4, signed[3], otherEscrow},
	} {
		if err := VerifySignedReceipt(escrowNetwork, tt.host, tt.epoch, s, tt.receipt, tt.proof); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func FuzzReceiptProof(f *testing.F) {
	lines, prover, err := BuildSettlement(receiptsOf(3, 5, 2))
	if err != nil {
		f.Fatal(err)
	}
	s := committed(f, lines)
	genuine := make(map[string]bool)
	for _, e := range prover.escrows {
		for _, r := range e.Receipts {
			p, err := prover.Prove(e.Escrow, r.Hash)
			if err != nil {
				f.Fatal(err)
			}
			b, err := encode(p)
			if err != nil {
				f.Fatal(err)
			}
			genuine[fmt.Sprint(e.Escrow, r.Hash, uint64(r.Price))] = true
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := new(ledgerpb.ReceiptProof)
		if proto.Unmarshal(b, p) != nil || VerifyReceipt(s, p) != nil {
			return
		}
		if !genuine[fmt.Sprint(mesh.Hash(p.GetLine().GetEscrow()), mesh.Hash(p.GetReceipt()), p.GetPrice())] {
			t.Errorf("a receipt that is not there verifies: %v", p)
		}
	})
}

// TestProverFinds finds receipts whose hashes begin alike, under any escrow.
func TestProverFinds(t *testing.T) {
	var all []EscrowReceipts
	for e := range 3 {
		one := EscrowReceipts{Escrow: mesh.HashOf([]byte{byte(e)})}
		for i := range 3 {
			h := mesh.HashOf([]byte("the same 8 bytes"))
			h[8], h[9] = byte(e), byte(i)
			one.Receipts = append(one.Receipts, ReceiptEntry{h, 5})
		}
		all = append(all, one)
	}
	lines, prover, err := BuildSettlement(all)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		for _, r := range e.Receipts {
			escrow, ok := prover.Escrow(r.Hash)
			if !ok || escrow != e.Escrow {
				t.Fatalf("receipt %s is under %s: %v", r.Hash, escrow, ok)
			}
			proof, err := prover.Prove(escrow, r.Hash)
			if err == nil {
				err = VerifyReceipt(committed(t, lines), proof)
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
	other := all[0].Receipts[0].Hash
	other[9] = 99
	if _, ok := prover.Escrow(other); ok {
		t.Error("a receipt that is not there")
	}
}
