package ledger

import (
	"encoding/binary"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// View reads the records of a state. Records that are absent come as nil, unless
// said otherwise.
type View struct{ r Reader }

// NewView returns a view of a state.
func NewView(r Reader) View { return View{r} }

func read[T any, P message[T]](v View, key []byte) (P, error) {
	o := newOverlay(v.r)
	record, ok := load[T, P](o, key)
	if !ok {
		record = nil
	}
	return record, *o.err
}

// list reads all records of a prefix, ascending by key.
func list[T any, P message[T]](v View, prefix []byte, fn func(key []byte, record P)) error {
	o := newOverlay(v.r)
	scan(o, prefix, fn)
	return *o.err
}

// Height returns the height of the state.
func (v View) Height() (mesh.Height, error) { return heightOf(newOverlay(v.r)) }

func heightOf(o *overlay) (mesh.Height, error) {
	b := o.Get(miscKey(miscHeight))
	if len(b) != 8 {
		return 0, &damage{"it has no height"}
	}
	return mesh.Height(binary.BigEndian.Uint64(b)), nil
}

// Account returns an account; one that nobody paid into yet is empty.
func (v View) Account(a mesh.Address) (*ledgerpb.Account, error) {
	o := newOverlay(v.r)
	account := o.account(a)
	return account, *o.err
}

// Params returns the parameters in force.
func (v View) Params() (*ledgerpb.Params, error) { return read[ledgerpb.Params](v, ParamsKey()) }

// Epoch returns where the chain stands.
func (v View) Epoch() (*ledgerpb.EpochState, error) {
	return read[ledgerpb.EpochState](v, miscKey(miscEpoch))
}

// Totals returns the sums of money outside accounts.
func (v View) Totals() (*ledgerpb.Totals, error) {
	return read[ledgerpb.Totals](v, miscKey(miscTotals))
}

// AccountKey is the key of an account, which can be proven.
func AccountKey(a mesh.Address) []byte { return accountKey(a) }

// ParamsKey is the key of the parameters, which migrations change.
func ParamsKey() []byte { return key(tableParams) }
