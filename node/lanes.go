package node

import (
	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/inference"
)

// Pays implements host.Till. It keeps nothing: who only asks is owed no memory.
func (t *till) Pays(payer mesh.Address, escrow mesh.Hash, epoch mesh.Epoch, least mesh.Amount) error {
	a := account{escrow, t.self, epoch}
	lane, err := t.lane(a, payer)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if epoch < t.closed {
		return unpaid("the request is of epoch %d, which is being settled", epoch)
	}
	at := tab{implicit: lane.Implicit, explicit: lane.Explicit}
	if known := t.open[a]; known != nil {
		at.served = known.served // what running answers hold they may give back
	}
	if room := t.room(a, &at); room < least {
		return unpaid("escrow %s has %s for this host in epoch %d: %d hosts of an epoch share its pool, and `mesh wallet escrow lane` sets money aside for one",
			escrow.Short(), room, epoch, ledger.ImplicitLanes)
	}
	return nil
}

// Affords implements host.Till. Of an account that was looked at lately no ledger is asked.
func (t *till) Affords(req *inference.Request, least mesh.Amount) error {
	if len(req.Pb.GetEscrow()) == 0 {
		return t.lends(req.Payer, least)
	}
	id, err := mesh.HashFromBytes(req.Pb.GetEscrow())
	if err != nil {
		return unpaid("escrow: %v", err)
	}
	a := account{id, t.self, mesh.Epoch(req.Pb.GetEpoch())}
	if t.fresh(a, req.Payer) && t.has(a, least) {
		return nil
	}
	return t.Pays(req.Payer, id, a.epoch, least)
}

// has reports whether a known account has so much, what running answers hold included.
func (t *till) has(a account, least mesh.Amount) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.open[a]
	if known == nil || a.epoch < t.closed {
		return false
	}
	return t.room(a, &tab{implicit: known.implicit, explicit: known.explicit, served: known.served}) >= least
}

// Likely implements router.Purse. Of all hosts of an epoch the first 16 by rank have a
// part of an escrow's pool. Which hosts that are a light node cannot prove; among those
// that it knows they come first, too. Lanes are beside it: a host that has one says so.
func (p *purse) Likely(escrow mesh.Hash, epoch mesh.Epoch, hosts []mesh.Address) []mesh.Address {
	return ledger.Rendezvous(p.network, escrow, epoch, hosts)
}
