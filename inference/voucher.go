package inference

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// maxVoucherBytes bounds an encoded voucher.
const maxVoucherBytes = 256

// Voucher says how much of an escrow a host may have for what it served in an epoch,
// and how many of its receipts that is for. Both count from the epoch's begin, so the
// last voucher stands for all before it. The ledger takes its parts and signature and
// puts the signed bytes together again, hence there is nothing in them but these.
type Voucher struct {
	Escrow   mesh.Hash
	Host     mesh.Address
	Epoch    mesh.Epoch
	Amount   mesh.Amount
	Receipts uint64
}

// SignedVoucher is a voucher as its payer signed it.
type SignedVoucher struct {
	Voucher
	Signed *inferencepb.Signed
}

// body returns the bytes that are signed.
func (v *Voucher) body(network mesh.NetworkID) ([]byte, error) {
	body, err := encode(&inferencepb.Voucher{
		Network: string(network), Escrow: v.Escrow[:], Host: v.Host[:], Epoch: uint64(v.Epoch),
		Amount: uint64(v.Amount), Receipts: v.Receipts,
	})
	if err != nil {
		return nil, fmt.Errorf("encode voucher: %w", err)
	}
	return body, nil
}

// SignVoucher encodes and signs a voucher with the key of the escrow's owner.
func SignVoucher(network mesh.NetworkID, key ed25519.PrivateKey, v *Voucher) (*inferencepb.Signed, error) {
	body, err := v.body(network)
	if err != nil {
		return nil, err
	}
	return &inferencepb.Signed{Body: body, Signature: domainVoucher.Sign(key, network, body)}, nil
}

// Verify reports whether signature is the owner's, of exactly this voucher.
func (v *Voucher) Verify(network mesh.NetworkID, owner mesh.Address, signature []byte) bool {
	body, err := v.body(network)
	return err == nil && domainVoucher.Verify(owner, network, body, signature)
}

// ParseVoucher checks form and signature. The owner is whom the ledger knows as that
// of the escrow.
func ParseVoucher(network mesh.NetworkID, owner mesh.Address, s *inferencepb.Signed) (*Voucher, error) {
	p, err := decodeVoucher(s)
	if err != nil {
		return nil, err
	}
	v := &Voucher{Epoch: mesh.Epoch(p.GetEpoch()), Amount: mesh.Amount(p.GetAmount()), Receipts: p.GetReceipts()}
	if v.Escrow, err = mesh.HashFromBytes(p.GetEscrow()); err != nil {
		return nil, fmt.Errorf("voucher: escrow: %w", err)
	}
	switch {
	case p.GetNetwork() != string(network):
		return nil, fmt.Errorf("voucher: it is of network %.50q", p.GetNetwork())
	case len(p.GetHost()) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("voucher: host of %d bytes", len(p.GetHost()))
	}
	v.Host = mesh.AddressOf(p.GetHost())
	// A field that this version does not know would be lost on the way to the ledger,
	// and with it the signature's worth.
	body, err := v.body(network)
	switch {
	case err != nil:
		return nil, err
	case !bytes.Equal(body, s.GetBody()):
		return nil, errors.New("voucher: it has more in it than a voucher has")
	case !domainVoucher.Verify(owner, network, body, s.GetSignature()):
		return nil, errors.New("voucher: the signature is not that of the escrow's owner")
	}
	return v, nil
}

// VoucherEscrow returns the escrow that a voucher names, before its owner is known.
func VoucherEscrow(s *inferencepb.Signed) (mesh.Hash, error) {
	p, err := decodeVoucher(s)
	if err != nil {
		return mesh.Hash{}, err
	}
	return mesh.HashFromBytes(p.GetEscrow())
}

func decodeVoucher(s *inferencepb.Signed) (*inferencepb.Voucher, error) {
	if len(s.GetBody()) > maxVoucherBytes {
		return nil, fmt.Errorf("voucher of %d bytes, at most %d", len(s.GetBody()), maxVoucherBytes)
	}
	p := new(inferencepb.Voucher)
	if err := decode(s.GetBody(), p); err != nil {
		return nil, fmt.Errorf("voucher: %w", err)
	}
	return p, nil
}
