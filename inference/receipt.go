package inference

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// MaxReceiptBytes bounds an encoded receipt.
const MaxReceiptBytes = 2048

// Receipt is a parsed receipt. Signed holds it as it came.
type Receipt struct {
	Pb      *inferencepb.Receipt
	Signed  *inferencepb.Signed
	Request mesh.Hash
	Model   mesh.ModelID
	Host    mesh.Address
	Before  Chain
	After   Chain
	Finish  FinishReason
}

// GetSigned returns the receipt as it came; nil for no receipt.
func (r *Receipt) GetSigned() *inferencepb.Signed {
	if r == nil {
		return nil
	}
	return r.Signed
}

// Whole reports whether the answer came to its end here. Vouchers count these alone: what
// a lost stream or a cancelled answer came to may be known to the host and not to the payer,
// and is paid by amount.
func (r *Receipt) Whole() bool {
	switch r.Finish {
	case FinishOpen, FinishAborted, FinishCancelled:
		return false
	}
	return true
}

// SignReceipt encodes and signs a receipt with the host's key. It fills in network
// and host.
func SignReceipt(network mesh.NetworkID, key ed25519.PrivateKey, r *inferencepb.Receipt) (*inferencepb.Signed, error) {
	host := mesh.AddressOf(key.Public().(ed25519.PublicKey))
	r.Network, r.Host = string(network), host[:]
	body, err := encode(r)
	if err != nil {
		return nil, fmt.Errorf("encode receipt: %w", err)
	}
	return &inferencepb.Signed{Body: body, Signature: domainReceipt.Sign(key, network, body)}, nil
}

// ParseReceipt checks form and the host's signature.
func ParseReceipt(network mesh.NetworkID, s *inferencepb.Signed) (*Receipt, error) {
	if len(s.GetBody()) > MaxReceiptBytes {
		return nil, fmt.Errorf("receipt of %d bytes, at most %d", len(s.GetBody()), MaxReceiptBytes)
	}
	p := new(inferencepb.Receipt)
	if err := decode(s.GetBody(), p); err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	r := &Receipt{Pb: p, Signed: s, Finish: FinishReason(p.GetFinish())}
	var err error
	for _, f := range []struct {
		name string
		from []byte
		to   *mesh.Hash
	}{
		{"request", p.GetRequest(), &r.Request}, {"model", p.GetModel(), &r.Model},
		{"chain before", p.GetChainBefore(), &r.Before.H}, {"chain after", p.GetChainAfter(), &r.After.H},
	} {
		if *f.to, err = mesh.HashFromBytes(f.from); err != nil {
			return nil, fmt.Errorf("receipt: %s: %w", f.name, err)
		}
	}
	r.Before.Next, r.After.Next = p.GetFirst(), p.GetEnd()
	switch {
	case p.GetNetwork() != string(network):
		return nil, fmt.Errorf("receipt: it is of network %.50q", p.GetNetwork())
	case len(p.GetHost()) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("receipt: host of %d bytes", len(p.GetHost()))
	case p.GetEnd() < p.GetFirst() || p.GetOutputTokens() != p.GetEnd()-p.GetFirst():
		return nil, errors.New("receipt: counts do not fit its range")
	case !r.Finish.Valid():
		return nil, fmt.Errorf("receipt: finish %.20q", p.GetFinish())
	case len(p.GetPrefixHost()) != 0 && len(p.GetPrefixHost()) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("receipt: prefix host of %d bytes", len(p.GetPrefixHost()))
	}
	r.Host = mesh.AddressOf(p.GetHost())
	if !domainReceipt.Verify(r.Host, network, s.GetBody(), s.GetSignature()) {
		return nil, errors.New("receipt: the signature is not the host's")
	}
	return r, nil
}

// Joins reports why b is not the segment that follows a, or nil: same request,
// choice and model, and b begins at the chain value where a ended.
func (a *Receipt) Joins(b *Receipt) error {
	switch {
	case a.Request != b.Request || a.Pb.GetChoice() != b.Pb.GetChoice():
		return errors.New("the receipts are of two answers")
	case a.Model != b.Model:
		return errors.New("the receipts are of two models")
	case a.After.Next != b.Before.Next:
		return fmt.Errorf("one ends before token %d, the next begins at %d", a.After.Next, b.Before.Next)
	case a.After.H != b.Before.H:
		return fmt.Errorf("the chains differ at token %d", a.After.Next)
	}
	return nil
}

// Price returns what a segment costs: the tokens that were there before it, those of
// the prompt and of the prefix that was handed over, at the price of prompt tokens, and
// its own output tokens at theirs. What was there before costs nothing where the host
// broke off, and where the payer cancelled before a token came: who waits in vain owes
// nothing for it. An overflow is an error.
func Price(c *inferencepb.Capability, prompt, prefix, output int, finish FinishReason) (mesh.Amount, error) {
	before := uint64(prompt) + uint64(prefix)
	if finish == FinishAborted || finish == FinishOpen || finish == FinishCancelled && output == 0 {
		before = 0
	}
	p, err := mesh.Amount(c.GetPricePrompt()).Mul(before)
	if err != nil {
		return 0, err
	}
	o, err := mesh.Amount(c.GetPriceOutput()).Mul(uint64(output))
	if err != nil {
		return 0, err
	}
	return p.Add(o)
}
