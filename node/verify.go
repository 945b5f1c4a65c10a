package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/node/api"
)

// VerifyReceipt checks the receipts of one answer that this node got or gave.
func (n *Node) VerifyReceipt(ctx context.Context, request mesh.Hash) (api.Verification, error) {
	receipts, err := n.receipts.Get(request)
	if err != nil {
		return api.Verification{}, err
	}
	if len(receipts) == 0 {
		return api.Verification{}, fmt.Errorf("receipt %s: %w", request, api.ErrNotFound)
	}
	var signed [][]byte
	for _, r := range receipts {
		signed = append(signed, append(append([]byte(nil), r.Signed.GetBody()...), r.Signed.GetSignature()...))
	}
	return n.VerifySigned(ctx, signed), nil
}

// VerifySigned checks receipts of one answer, as their hosts signed them, in order:
// form and signature, that each goes on where one before it ends, and, of those that
// an escrow pays, what the ledger says.
func (n *Node) VerifySigned(ctx context.Context, signed [][]byte) api.Verification {
	v := api.Verification{OK: true, Segments: []api.SegmentCheck{}}
	var before []*inference.Receipt
	for _, raw := range signed {
		c, r := n.checkForm(raw, before)
		if r != nil {
			if len(before) == 0 {
				v.Request = r.Request
			}
			before = append(before, r)
			if c.State == "" {
				c.State, c.Reason = n.checkSettled(ctx, r, &v)
			}
		}
		switch c.State {
		case api.ReceiptInvalid, api.ReceiptWrongPrice, api.ReceiptAbsent:
			v.OK = false
		}
		v.Segments = append(v.Segments, c)
	}
	return v
}

// checkForm checks one receipt and how it joins those before. The state is set where
// nothing more can be said.
func (n *Node) checkForm(raw []byte, before []*inference.Receipt) (api.SegmentCheck, *inference.Receipt) {
	if len(raw) < ed25519.SignatureSize {
		return api.SegmentCheck{State: api.ReceiptInvalid, Reason: fmt.Sprintf("%d bytes are no receipt", len(raw))}, nil
	}
	body, signature := raw[:len(raw)-ed25519.SignatureSize], raw[len(raw)-ed25519.SignatureSize:]
	r, err := inference.ParseReceipt(n.genesis.Network(), &inferencepb.Signed{Body: body, Signature: signature})
	if err != nil {
		return api.SegmentCheck{State: api.ReceiptInvalid, Reason: err.Error()}, nil
	}
	c := api.SegmentCheck{Choice: int(r.Pb.GetChoice()), First: int(r.Pb.GetFirst()), End: int(r.Pb.GetEnd()), Host: r.Host,
		Price: mesh.Amount(r.Pb.GetPrice()), Epoch: mesh.Epoch(r.Pb.GetEpoch()), Signed: true}
	copy(c.Escrow[:], r.Pb.GetEscrow())
	if len(before) > 0 && before[0].Request != r.Request {
		c.State, c.Reason = api.ReceiptInvalid, "it is of another request than the first"
		return c, r
	}
	if c.Joins = joins(n.genesis.Network(), before, r); !c.Joins {
		c.State, c.Reason = api.ReceiptInvalid, "its chain does not go on where a receipt before it ends"
	}
	return c, r
}

// facts are what the ledger says about the epoch and host of a receipt.
type facts struct {
	now    mesh.Epoch
	keep   uint64               // epochs
	closed bool                 // the receipt's epoch is settled and paid
	record *ledgerpb.Settlement // nil: none
}

// checkSettled says what became of a receipt on the ledger.
func (n *Node) checkSettled(ctx context.Context, r *inference.Receipt, v *api.Verification) (state, reason string) {
	switch {
	case len(r.Pb.GetEscrow()) == 0:
		return api.ReceiptFree, "no escrow pays it, so there is nothing to settle"
	case r.Pb.GetPrice() == 0:
		return api.ReceiptFree, "it costs nothing, so there is nothing to settle"
	case r.Pb.GetFinish() == "":
		return api.ReceiptFree, "its host was lost before the end, so this receipt is in no settlement; what the payer acknowledged of it is paid up to the receipt with which the host ended the answer itself, if it did"
	}
	epoch := mesh.Epoch(r.Pb.GetEpoch())
	f, err := n.factsOf(ctx, epoch, r.Host, v)
	if err != nil {
		return api.ReceiptUnknown, "the ledger cannot be read: " + err.Error()
	}
	if state, reason := f.without(epoch); state != "" {
		return state, reason
	}
	raw, err := n.core.Router.Proof(ctx, r.Host, ledger.HashReceipt(r.Signed))
	if err != nil {
		return api.ReceiptUnproven, "its host settled the epoch, and gives no proof that this receipt is in it: " + err.Error()
	}
	return f.judge(n.genesis.Network(), r, raw)
}

func (n *Node) factsOf(ctx context.Context, epoch mesh.Epoch, host mesh.Address, v *api.Verification) (facts, error) {
	reader, err := n.read(ctx)
	if err != nil {
		return facts{}, err
	}
	now, err := reader.Epoch()
	params, err2 := reader.Params()
	result, err3 := reader.EpochResult(epoch)
	record, err4 := reader.Settlement(epoch, host)
	height, ended := reader.end()
	if err := errors.Join(ended, err, err2, err3, err4); err != nil {
		return facts{}, err
	}
	v.Height, v.Proven = height, reader.proven
	return facts{now: mesh.Epoch(now.GetEpoch()), keep: params.GetKeepEpochs(), closed: result != nil, record: record}, nil
}

// without says what is known where the ledger has no settlement; "" where it has one.
func (f facts) without(epoch mesh.Epoch) (state, reason string) {
	switch {
	case f.record != nil:
		return "", ""
	case epoch > f.now:
		return api.ReceiptInvalid, fmt.Sprintf("it is of epoch %d, and it is epoch %d", epoch, f.now)
	case epoch == f.now:
		return api.ReceiptPending, fmt.Sprintf("not settled yet: epoch %d still runs", epoch)
	case f.closed:
		return api.ReceiptUnsettled, fmt.Sprintf("its host did not settle epoch %d, so nothing was paid for it", epoch)
	case uint64(f.now-epoch) >= f.keep:
		return api.ReceiptPruned, fmt.Sprintf("the ledger keeps settlements of %d epochs, and epoch %d is older", f.keep, epoch)
	}
	return api.ReceiptPending, fmt.Sprintf("not settled yet: epoch %d has ended, and its host may still settle it", epoch)
}

// judge checks the proof of a receipt against the settlement.
func (f facts) judge(network mesh.NetworkID, r *inference.Receipt, raw []byte) (state, reason string) {
	epoch := mesh.Epoch(r.Pb.GetEpoch())
	proof, err := ledger.DecodeProof(raw)
	if err == nil {
		err = ledger.VerifySignedReceipt(network, r.Host, epoch, f.record, r.Signed, proof)
	}
	hash := ledger.HashReceipt(r.Signed)
	switch {
	case err == nil:
		return api.ReceiptSettled, fmt.Sprintf("settled in epoch %d for %s", epoch, mesh.Amount(r.Pb.GetPrice()))
	case string(proof.GetReceipt()) == string(hash[:]) && proof.GetPrice() != r.Pb.GetPrice() && ledger.VerifyReceipt(f.record, proof) == nil:
		return api.ReceiptWrongPrice, fmt.Sprintf("the settlement of epoch %d has %s for it, and the receipt says %s",
			epoch, mesh.Amount(proof.GetPrice()), mesh.Amount(r.Pb.GetPrice()))
	case !f.closed:
		return api.ReceiptPending, fmt.Sprintf("not settled yet: epoch %d is being settled", epoch)
	}
	return api.ReceiptAbsent, fmt.Sprintf("it is not in its host's settlement of epoch %d: %s", epoch, err)
}
