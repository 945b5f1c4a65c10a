package ledger

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gonka-mesh/mesh"
)

// MaxLanes is how many lanes a transaction may open.
const MaxLanes = 500

// most is how often each repeated field of a transaction may be there. It is counted
// before anything is decoded: a message without content takes two bytes as it travels and
// a hundred times as much as a structure.
var most = map[protoreflect.FullName]int{
	"mesh.ledger.v1.OpenEscrow.lanes": MaxLanes,
	"mesh.ledger.v1.Settle.lines":     MaxSettleLines,
	"mesh.ledger.v1.CommitWork.work":  maxWork,
	"mesh.ledger.v1.ParamsChange.set": len(bounds),
}

var (
	errWire    = errors.New("not a message")
	errOrder   = errors.New("fields that do not ascend, or one of them twice")
	errUnknown = errors.New("fields that this version does not know")
)

// checkWire looks at the fields of a message, and of those in it, as they travel: they
// ascend, each that is not repeated is there once, and those that are no more often than
// they may be. It takes no memory. What it lets pass is decoded and compared.
func checkWire(t protoreflect.MessageDescriptor, b []byte) error {
	fields, last, times := t.Fields(), protowire.Number(0), 0
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return errWire
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
			return errWire
		}
		value := b[:size]
		b = b[size:]
		field := fields.ByNumber(n)
		if field == nil {
			return errUnknown
		}
		if n != last {
			times = 0
		}
		times++
		switch {
		case n < last, times > 1 && !field.IsList():
			return errOrder
		case field.IsList() && times > most[field.FullName()]:
			return refuse("more than %d %s", most[field.FullName()], field.Name())
		}
		last = n
		if field.Kind() != protoreflect.MessageKind {
			continue
		}
		inner, size := protowire.ConsumeBytes(value)
		if kind != protowire.BytesType || size < 0 {
			return errWire
		}
		if err := checkWire(field.Message(), inner); err != nil {
			return err
		}
	}
	return nil
}

// head is what the pool and a proposer sort transactions by.
type head struct {
	sender     mesh.Address
	nonce, fee uint64
	size       int              // bytes as it travels
	action     protowire.Number // its field in Tx
}

// peek reads the head of a transaction without decoding it. Of one that ParseTx takes it is
// what is in it; of any other it may be anything.
func peek(b []byte) (h head, err error) {
	h.size = len(b)
	n, kind, size := protowire.ConsumeTag(b)
	if size < 0 || n != 1 || kind != protowire.BytesType {
		return h, refuse("transaction: %v", errWire)
	}
	body, size := protowire.ConsumeBytes(b[size:])
	if size < 0 {
		return h, refuse("transaction: %v", errWire)
	}
	var sender []byte
	for len(body) > 0 {
		n, kind, size := protowire.ConsumeTag(body)
		if size < 0 {
			return h, refuse("body of transaction: %v", errWire)
		}
		if n > 3 {
			h.action = n
			break
		}
		body = body[size:]
		switch {
		case n == 1 && kind == protowire.BytesType:
			sender, size = protowire.ConsumeBytes(body)
		case n == 2 && kind == protowire.VarintType:
			h.nonce, size = protowire.ConsumeVarint(body)
		case n == 3 && kind == protowire.VarintType:
			h.fee, size = protowire.ConsumeVarint(body)
		default:
			size = -1
		}
		if size < 0 {
			return h, refuse("body of transaction: %v", errWire)
		}
		body = body[size:]
	}
	h.sender, err = addressFrom("sender", sender)
	return h, err
}

// Fields of Tx that the pool knows by their numbers.
const (
	actionRegister protowire.Number = 11
	actionUnjail   protowire.Number = 14
	actionSettle   protowire.Number = 24
)
