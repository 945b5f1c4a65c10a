package ledger

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// Domains of what the ledger signs and hashes.
const (
	domainTx     mesh.Domain = "mesh/tx/1"
	domainHost   mesh.Domain = "mesh/host/1"
	domainEscrow mesh.Domain = "mesh/escrow/1"
	domainRun    mesh.Domain = "mesh/run/1"
	domainRand   mesh.Domain = "mesh/rand/1"
)

// MaxTxBytes bounds an encoded transaction. A settlement of 500 payers fits.
const MaxTxBytes = 256 << 10

// ErrRefused marks every reason why a transaction is not carried out.
var ErrRefused = errors.New("refused")

// ErrMalformed marks, besides, what no state of the ledger would make a transaction: bytes
// that are none, or a signature that is not the sender's. No honest node hands it on.
var ErrMalformed = errors.New("malformed")

// ErrNoRoom marks, besides, what there is no room for in a pool: another may have some.
var ErrNoRoom = errors.New("no room")

// refusal is a reason in words for the sender.
type refusal struct {
	reason string
	kind   error // ErrMalformed, ErrNoRoom, or nil
}

func (r *refusal) Error() string { return r.reason }

func (r *refusal) Is(t error) bool { return t == ErrRefused || t == r.kind }

func refuse(format string, args ...any) error {
	return &refusal{reason: fmt.Sprintf(format, args...)}
}

func malformed(format string, args ...any) error {
	return &refusal{fmt.Sprintf(format, args...), ErrMalformed}
}

func noRoom(format string, args ...any) error {
	return &refusal{fmt.Sprintf(format, args...), ErrNoRoom}
}

// Tx is a parsed transaction.
type Tx struct {
	ID        mesh.Hash
	Sender    mesh.Address
	Pb        *ledgerpb.Tx
	body      []byte
	signature []byte
	size      int // bytes as it travels
}

// SignTx encodes and signs a transaction. It fills in the sender.
func SignTx(network mesh.NetworkID, key ed25519.PrivateKey, tx *ledgerpb.Tx) ([]byte, error) {
	sender := mesh.AddressOf(key.Public().(ed25519.PublicKey))
	tx.Sender = sender[:]
	body, err := encode(tx)
	if err != nil {
		return nil, fmt.Errorf("encode transaction: %w", err)
	}
	return encode(&ledgerpb.SignedTx{Body: body, Signature: domainTx.Sign(key, network, body)})
}

// FeeOf returns a fee that is enough for an action under these parameters, whoever sends
// it with whatever number: that of the longest transaction that it can be in. The fee is
// in the transaction itself, and counts with the most digits that one can have.
func FeeOf(p *ledgerpb.Params, tx *ledgerpb.Tx) (mesh.Amount, error) {
	body, err := encode(&ledgerpb.Tx{Sender: make([]byte, len(mesh.Address{})), Nonce: math.MaxUint64, Fee: math.MaxUint64, Action: tx.GetAction()})
	if err != nil {
		return 0, fmt.Errorf("encode transaction: %w", err)
	}
	whole := &ledgerpb.SignedTx{Body: body, Signature: make([]byte, ed25519.SignatureSize)}
	return mesh.Amount(uint64(proto.Size(whole)) * p.GetFeePerByte()), nil
}

// mostFees is how many times the least fee one may be: a pool asks for 16 times that at
// most, and far more is a slip.
const mostFees = 100

// FeeFor returns the fee of an action: what is asked for, where that is more than FeeOf.
func FeeFor(p *ledgerpb.Params, tx *ledgerpb.Tx, asked mesh.Amount) (mesh.Amount, error) {
	least, err := FeeOf(p, tx)
	if err != nil {
		return 0, err
	}
	if most, err := least.Mul(mostFees); err == nil && least > 0 && asked > most {
		return 0, refuse("a fee of %s is more than %d times the least, %s, and taken for a slip", asked, mostFees, least)
	}
	return max(least, asked), nil
}

// feeTooLow is why a fee is refused that is less than the least.
const feeTooLow = "fee of %d ngonka, at least %d for %d bytes"

// RaisedFee returns the least fee of a transaction by what its refusal says of the price
// of a byte; false where that is not why. It is a claim of who refuses: FeeFor bounds it.
func RaisedFee(refusal string, tx *ledgerpb.Tx) (mesh.Amount, bool) {
	perByte, ok := feeWanted(refusal)
	if !ok {
		return 0, false
	}
	fee, err := FeeOf(&ledgerpb.Params{FeePerByte: perByte}, tx)
	return fee, err == nil
}

// feeWanted reads from a refusal what a byte of a transaction costs, where that is why.
func feeWanted(refusal string) (perByte uint64, ok bool) {
	first, _, _ := strings.Cut(feeTooLow, "%")
	at := strings.Index(refusal, first)
	if at < 0 {
		return 0, false
	}
	var fee, least, size uint64
	if _, err := fmt.Sscanf(refusal[at:], feeTooLow, &fee, &least, &size); err != nil || size == 0 || least%size != 0 {
		return 0, false
	}
	return least / size, true
}

// ParseTx checks form and bounds of a transaction, not its signature.
func ParseTx(network mesh.NetworkID, b []byte) (*Tx, error) {
	if len(b) > MaxTxBytes {
		return nil, refuse("transaction of %d bytes, at most %d", len(b), MaxTxBytes)
	}
	signed, pb := new(ledgerpb.SignedTx), new(ledgerpb.Tx)
	if err := decodeTx("transaction", b, signed); err != nil {
		return nil, err
	}
	if err := decodeTx("body of transaction", signed.GetBody(), pb); err != nil {
		return nil, err
	}
	sender, err := addressFrom("sender", pb.GetSender())
	if err != nil {
		return nil, err
	}
	if pb.GetAction() == nil {
		return nil, refuse("transaction without an action that this version knows")
	}
	return &Tx{
		ID: domainTx.Hash(network, signed.GetBody()), Sender: sender, Pb: pb,
		body: signed.GetBody(), signature: signed.GetSignature(), size: len(b),
	}, nil
}

// decodeTx decodes a part of a transaction whose wire form was looked at before.
func decodeTx(what string, b []byte, m proto.Message) error {
	err := checkWire(m.ProtoReflect().Descriptor(), b)
	switch {
	case errors.Is(err, errUnknown), errors.Is(err, ErrRefused): // a later version may take it
		return refuse("%s: %v", what, err)
	case err == nil:
		err = decode(b, m)
	}
	if err != nil {
		return malformed("%s: %v", what, err)
	}
	return nil
}

// Key names the signed transaction, for a memory of signatures that were verified.
func (t *Tx) Key() mesh.Hash { return mesh.HashOf(t.ID[:], t.signature) }

// Verify reports whether the signature is the sender's.
func (t *Tx) Verify(network mesh.NetworkID) bool {
	return domainTx.Verify(t.Sender, network, t.body, t.signature)
}

// Kind names the action, as the field in ledger.proto is named.
func (t *Tx) Kind() string { return kindOf(t.Pb) }
