package ledger

import (
	"bytes"
	"math"
	"math/bits"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// ModelWeight is the part of a host's weight that comes from work on a model.
type ModelWeight struct {
	Model  mesh.ModelID
	Weight uint64
}

func delegationKey(host mesh.Address, model mesh.ModelID) []byte {
	return key(tableDelegation, host[:], model[:])
}

// delegate hands the sender's vote from work on a model to another host, until it is
// taken back. Without a model it is for all models that have no delegate of their
// own. A host has at most one for each model that was ever approved.
func (c *call) delegate(t *ledgerpb.Delegate) error {
	var model mesh.ModelID
	if len(t.GetModel()) > 0 {
		var err error
		if model, err = hashFrom("model", t.GetModel()); err != nil {
			return err
		}
	}
	k := delegationKey(c.sender, model)
	if len(t.GetTo()) == 0 {
		if c.Get(k) == nil {
			return refuse("there is no delegate to take back")
		}
		c.remove(k)
		return nil
	}
	to, err := addressFrom("delegate", t.GetTo())
	if err != nil {
		return err
	}
	if _, ok := load[ledgerpb.Host](c.overlay, hostKey(c.sender)); !ok {
		return refuse("%s is not a host and has no vote to hand on", c.sender.Short())
	}
	host, ok := load[ledgerpb.Host](c.overlay, hostKey(to))
	switch {
	case to == c.sender:
		return refuse("a host's vote is its own already; to take a delegate back, name none")
	case !ok:
		return refuse("%s is not a host, and only hosts vote", to.Short())
	case host.GetTombstoned():
		return refuse("%s signed two blocks of a height and votes no more", to.Short())
	}
	if record, ok := load[ledgerpb.Model](c.overlay, modelKey(model)); !model.IsZero() && (!ok || record.GetRetired() != 0) {
		return refuse("model %s is not approved", model.Short())
	}
	c.save(k, &ledgerpb.Delegation{To: to[:]})
	return nil
}

// delegateOf returns who votes a host's weight from a model when the host does not.
func (o *overlay) delegateOf(host mesh.Address, model mesh.ModelID) (mesh.Address, bool) {
	d, ok := load[ledgerpb.Delegation](o, delegationKey(host, model))
	if !ok && !model.IsZero() {
		d, ok = load[ledgerpb.Delegation](o, delegationKey(host, mesh.ModelID{}))
	}
	return mesh.AddressOf(d.GetTo()), ok
}

// ByModel returns the work of the genesis file.
func (genesisWork) ByModel(r Reader, epoch mesh.Epoch, host mesh.Address) []ModelWeight {
	o := newOverlay(r)
	record, _ := load[ledgerpb.CommitWork](o, key(tableWork, host[:]))
	var parts []ModelWeight
	for _, w := range record.GetWork() {
		id := mesh.ModelID(bytesOf32(w.GetModel()))
		model, _ := load[ledgerpb.Model](o, modelKey(id))
		hi, lo := bits.Mul64(w.GetCount(), coefficientAt(model, uint64(epoch)))
		weight := uint64(math.MaxUint64)
		if hi < 1000 {
			weight, _ = bits.Div64(hi, lo, 1000)
		}
		if weight > 0 {
			parts = append(parts, ModelWeight{id, weight})
		}
	}
	return parts
}

func bytesOf32(b []byte) (out [32]byte) {
	copy(out[:], b)
	return out
}

// HostDelegation is what a host delegated: its vote from work on a model, or from all
// models without an entry when the model is zero.
type HostDelegation struct {
	Model mesh.ModelID
	To    mesh.Address
}

// Delegations returns what a host delegated, ascending by model.
func (v View) Delegations(host mesh.Address) ([]HostDelegation, error) {
	prefix := key(tableDelegation, host[:])
	var all []HostDelegation
	err := list(v, prefix, func(k []byte, d *ledgerpb.Delegation) {
		all = append(all, HostDelegation{
			mesh.ModelID(bytesOf32(bytes.TrimPrefix(k, prefix))), mesh.AddressOf(d.GetTo()),
		})
	})
	return all, err
}
