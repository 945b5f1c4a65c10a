package ledger

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// lineLeaf is a line in the tree of its settlement: what the host says of its receipts,
// without what it wants for them.
func lineLeaf(line *ledgerpb.SettleLine) merkle.SumNode {
	b, _ := encode(&ledgerpb.SettleLine{ // numbers and bytes always encode
		Escrow: line.GetEscrow(), Receipts: line.GetReceipts(), Total: line.GetTotal(), Root: line.GetRoot(),
	})
	return merkle.SumNode{Hash: mesh.HashOf(b), Sum: line.GetTotal()}
}

// ReceiptEntry is a receipt in a settlement.
type ReceiptEntry struct {
	Hash  mesh.Hash // of the signed body, see HashReceipt
	Price mesh.Amount
}

// HashReceipt names a receipt in a settlement: the SHA-256 of its signed body.
func HashReceipt(s *inferencepb.Signed) mesh.Hash { return mesh.HashOf(s.GetBody()) }

// EscrowReceipts are the receipts that a host gave under one escrow in an epoch.
type EscrowReceipts struct {
	Escrow   mesh.Hash
	Receipts []ReceiptEntry
}

// Prover proves that receipts are in the settlement that was built with it. Each proof
// hashes a small part of it: anybody may ask for many.
type Prover struct {
	escrows []EscrowReceipts // ascending, as are the receipts in each
	trees   []*merkle.SumTree
	lines   []*ledgerpb.SettleLine
	over    *merkle.SumTree // of the lines
	index   []indexed       // ascending
}

// indexed says under which escrow a receipt with such a hash is.
type indexed struct {
	hash   uint64 // its first 8 bytes
	escrow int
}

// BuildSettlement returns the lines of a host's settlement, ascending by escrow and
// without vouchers and amounts, and what proves the receipts in them. Receipts come in
// any order; one that comes twice is refused, as it pays once.
func BuildSettlement(all []EscrowReceipts) ([]*ledgerpb.SettleLine, *Prover, error) {
	p := new(Prover)
	for _, e := range all {
		own := slices.Clone(e.Receipts)
		slices.SortFunc(own, func(a, b ReceiptEntry) int { return bytes.Compare(a.Hash[:], b.Hash[:]) })
		p.escrows = append(p.escrows, EscrowReceipts{e.Escrow, own})
	}
	slices.SortFunc(p.escrows, func(a, b EscrowReceipts) int { return bytes.Compare(a.Escrow[:], b.Escrow[:]) })
	for i, e := range p.escrows {
		switch {
		case i > 0 && p.escrows[i-1].Escrow == e.Escrow:
			return nil, nil, fmt.Errorf("settlement: escrow %s is there twice", e.Escrow.Short())
		case len(e.Receipts) == 0:
			return nil, nil, fmt.Errorf("settlement: no receipts under escrow %s", e.Escrow.Short())
		}
		for j := range e.Receipts[1:] {
			if e.Receipts[j].Hash == e.Receipts[j+1].Hash {
				return nil, nil, fmt.Errorf("settlement: receipt %s is there twice", e.Receipts[j].Hash.Short())
			}
		}
		tree, err := merkle.NewSumTree(receiptLeaves(e.Receipts))
		if err != nil {
			return nil, nil, fmt.Errorf("settlement: escrow %s: %w", e.Escrow.Short(), err)
		}
		p.trees = append(p.trees, tree)
		for _, r := range e.Receipts {
			p.index = append(p.index, indexed{binary.BigEndian.Uint64(r.Hash[:8]), i})
		}
		root := tree.Root()
		p.lines = append(p.lines, &ledgerpb.SettleLine{
			Escrow: e.Escrow[:], Receipts: uint64(len(e.Receipts)), Total: root.Sum, Root: root.Hash[:],
		})
	}
	slices.SortFunc(p.index, func(a, b indexed) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.escrow, b.escrow))
	})
	lines, leaves := make([]*ledgerpb.SettleLine, len(p.lines)), make([]merkle.SumNode, len(p.lines))
	for i, l := range p.lines {
		leaves[i] = lineLeaf(l)
		lines[i] = &ledgerpb.SettleLine{Escrow: l.GetEscrow(), Receipts: l.GetReceipts(), Total: l.GetTotal(), Root: l.GetRoot()}
	}
	var err error
	if p.over, err = merkle.NewSumTree(leaves); err != nil {
		return nil, nil, fmt.Errorf("settlement: the lines: %w", err)
	}
	return lines, p, nil
}

func receiptLeaves(receipts []ReceiptEntry) []merkle.SumNode {
	leaves := make([]merkle.SumNode, len(receipts))
	for i, r := range receipts {
		leaves[i] = r.leaf()
	}
	return leaves
}

func (r ReceiptEntry) leaf() merkle.SumNode {
	return merkle.SumNode{Hash: r.Hash, Sum: uint64(r.Price)}
}

// Escrow returns the escrow that a receipt is under. A prover of nothing has none.
func (p *Prover) Escrow(receipt mesh.Hash) (mesh.Hash, bool) {
	if p == nil {
		return mesh.Hash{}, false
	}
	first := binary.BigEndian.Uint64(receipt[:8])
	at, _ := slices.BinarySearchFunc(p.index, first, func(i indexed, h uint64) int { return cmp.Compare(i.hash, h) })
	for ; at < len(p.index) && p.index[at].hash == first; at++ {
		e := p.escrows[p.index[at].escrow]
		if _, ok := find(e.Receipts, receipt); ok {
			return e.Escrow, true
		}
	}
	return mesh.Hash{}, false
}

func find(receipts []ReceiptEntry, hash mesh.Hash) (int, bool) {
	return slices.BinarySearchFunc(receipts, hash, func(r ReceiptEntry, h mesh.Hash) int { return bytes.Compare(r.Hash[:], h[:]) })
}

// Prove returns the proof of a receipt under an escrow.
func (p *Prover) Prove(escrow, receipt mesh.Hash) (*ledgerpb.ReceiptProof, error) {
	at, ok := slices.BinarySearchFunc(p.escrows, escrow, func(e EscrowReceipts, h mesh.Hash) int { return bytes.Compare(e.Escrow[:], h[:]) })
	if !ok {
		return nil, fmt.Errorf("prove receipt: escrow %s is not in the settlement", escrow.Short())
	}
	receipts := p.escrows[at].Receipts
	index, ok := find(receipts, receipt)
	if !ok {
		return nil, fmt.Errorf("prove receipt: %s is not in the settlement under escrow %s", receipt.Short(), escrow.Short())
	}
	path, err := p.trees[at].Proof(index, func(i int) merkle.SumNode { return receipts[i].leaf() })
	if err != nil {
		return nil, fmt.Errorf("prove receipt: %w", err)
	}
	linePath, err := p.over.Proof(at, func(i int) merkle.SumNode { return lineLeaf(p.lines[i]) })
	if err != nil {
		return nil, fmt.Errorf("prove receipt: %w", err)
	}
	return &ledgerpb.ReceiptProof{
		Receipt: receipt[:], Price: uint64(receipts[index].Price), Index: uint64(index), Path: steps(path),
		Line: p.lines[at], LineIndex: uint64(at), LinePath: steps(linePath),
	}, nil
}

func steps(path []merkle.SumNode) (out []*ledgerpb.SumStep) {
	for _, n := range path {
		out = append(out, &ledgerpb.SumStep{Hash: n.Hash[:], Sum: n.Sum})
	}
	return out
}

func nodes(path []*ledgerpb.SumStep) (out []merkle.SumNode, err error) {
	for _, s := range path {
		h, err := mesh.HashFromBytes(s.GetHash())
		if err != nil {
			return nil, err
		}
		out = append(out, merkle.SumNode{Hash: h, Sum: s.GetSum()})
	}
	return out, nil
}

// VerifyReceipt says why a proof does not show its receipt in a settlement, or nil. The
// settlement is the ledger's record of the host and epoch that the receipt names.
func VerifyReceipt(settlement *ledgerpb.Settlement, proof *ledgerpb.ReceiptProof) error {
	receipt, err := mesh.HashFromBytes(proof.GetReceipt())
	if err != nil {
		return fmt.Errorf("receipt proof: receipt: %w", err)
	}
	line := proof.GetLine()
	leaf := merkle.SumNode{Hash: receipt, Sum: proof.GetPrice()}
	if err := verifyStep(line.GetRoot(), line.GetTotal(), leaf, proof.GetIndex(), line.GetReceipts(), proof.GetPath()); err != nil {
		return fmt.Errorf("receipt proof: the receipt in its line: %w", err)
	}
	if err := verifyStep(settlement.GetRoot(), settlement.GetTotal(), lineLeaf(line), proof.GetLineIndex(), settlement.GetLines(), proof.GetLinePath()); err != nil {
		return fmt.Errorf("receipt proof: the line in the settlement: %w", err)
	}
	return nil
}

func verifyStep(root []byte, total uint64, leaf merkle.SumNode, index, count uint64, path []*ledgerpb.SumStep) error {
	h, err := mesh.HashFromBytes(root)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	siblings, err := nodes(path)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	if !merkle.VerifySum(merkle.SumNode{Hash: h, Sum: total}, leaf, index, count, siblings) {
		return errors.New("it is not there with this amount")
	}
	return nil
}

// VerifySignedReceipt does the same for a receipt as its host signed it, which has to be
// of this host and epoch, under the escrow and with the price that the proof shows.
func VerifySignedReceipt(network mesh.NetworkID, host mesh.Address, epoch mesh.Epoch, settlement *ledgerpb.Settlement,
	receipt *inferencepb.Signed, proof *ledgerpb.ReceiptProof) error {
	r, err := inference.ParseReceipt(network, receipt)
	if err != nil {
		return fmt.Errorf("receipt proof: %w", err)
	}
	h := HashReceipt(receipt)
	switch {
	case r.Host != host || r.Pb.GetEpoch() != uint64(epoch):
		return fmt.Errorf("receipt proof: the receipt is of host %s and epoch %d", r.Host.Short(), r.Pb.GetEpoch())
	case !bytes.Equal(h[:], proof.GetReceipt()):
		return errors.New("receipt proof: it is of another receipt")
	case !bytes.Equal(r.Pb.GetEscrow(), proof.GetLine().GetEscrow()):
		return errors.New("receipt proof: the receipt is of another escrow")
	case r.Pb.GetPrice() != proof.GetPrice():
		return fmt.Errorf("receipt proof: the receipt costs %s, the settlement has %s for it", mesh.Amount(r.Pb.GetPrice()), mesh.Amount(proof.GetPrice()))
	}
	return VerifyReceipt(settlement, proof)
}

// EncodeProof encodes a proof for its way to the payer.
func EncodeProof(p *ledgerpb.ReceiptProof) ([]byte, error) { return encode(p) }

// maxProof bounds an encoded proof: two paths of 64 steps and a line.
const maxProof = 16 << 10

// DecodeProof reads a proof of a peer.
func DecodeProof(b []byte) (*ledgerpb.ReceiptProof, error) {
	if len(b) > maxProof {
		return nil, fmt.Errorf("receipt proof of %d bytes, at most %d", len(b), maxProof)
	}
	p := new(ledgerpb.ReceiptProof)
	if err := decode(b, p); err != nil {
		return nil, fmt.Errorf("receipt proof: %w", err)
	}
	return p, nil
}
