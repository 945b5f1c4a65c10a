package ledger

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

const domainRendezvous mesh.Domain = "mesh/rendezvous/1"

// ImplicitLanes is how many hosts have an implicit lane in an epoch.
const ImplicitLanes = 16

// rendezvous ranks the hosts of an epoch for an escrow: low ranks come first, equal ones
// by address. It is the first 8 bytes of the domain hash of escrow and epoch.
type rendezvous uint64

func rendezvousOf(network mesh.NetworkID, escrow mesh.Hash, epoch uint64) rendezvous {
	h := domainRendezvous.Hash(network, append(escrow[:], be64(epoch)...))
	return rendezvous(binary.BigEndian.Uint64(h[:]))
}

// rank mixes in the first 8 bytes of a host's address. No hash per host, as each line of
// a settlement ranks all of them: for any address the hash of escrow and epoch, which
// nobody else can choose, makes every rank as likely.
// Source: finalizer of SplitMix64 (Steele, Lea, Flood 2014).
func (r rendezvous) rank(host []byte) uint64 {
	z := uint64(r) ^ binary.BigEndian.Uint64(host)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Rendezvous returns the hosts that have an implicit lane of an escrow in an epoch, the
// first 16 by rank, out of all of that epoch.
func Rendezvous(network mesh.NetworkID, escrow mesh.Hash, epoch mesh.Epoch, hosts []mesh.Address) []mesh.Address {
	type ranked struct {
		rank uint64
		host mesh.Address
	}
	r := rendezvousOf(network, escrow, uint64(epoch))
	all := make([]ranked, len(hosts))
	for i, h := range hosts {
		all[i] = ranked{r.rank(h[:]), h}
	}
	slices.SortFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), bytes.Compare(a.host[:], b.host[:]))
	})
	out := make([]mesh.Address, 0, ImplicitLanes)
	for _, a := range all[:min(len(all), ImplicitLanes)] {
		out = append(out, a.host)
	}
	return out
}

// hostSet is the value of tableSet: addresses one after the other, ascending.
type hostSet []byte

func (o *overlay) hostSet(epoch uint64) hostSet { return o.Get(key(tableSet, be64(epoch))) }

func (s hostSet) at(i int) []byte { return s[32*i : 32*i+32] }

func (s hostSet) len() int { return len(s) / 32 }

func (s hostSet) has(host mesh.Address) bool {
	for lo, hi := 0, s.len(); lo < hi; {
		mid := (lo + hi) / 2
		switch bytes.Compare(s.at(mid), host[:]) {
		case 0:
			return true
		case -1:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return false
}

// share returns a host's part of a pool: an equal one for each of the 16 hosts, or of
// all where there are fewer, and none for others. It is as Rendezvous has it, without a
// list.
func (s hostSet) share(network mesh.NetworkID, escrow mesh.Hash, epoch, pool uint64, host mesh.Address) uint64 {
	if pool == 0 || !s.has(host) {
		return 0
	}
	r := rendezvousOf(network, escrow, epoch)
	own, before := r.rank(host[:]), 0
	for i := range s.len() {
		if rank := r.rank(s.at(i)); rank < own || (rank == own && bytes.Compare(s.at(i), host[:]) < 0) {
			if before++; before == ImplicitLanes {
				return 0
			}
		}
	}
	return pool / uint64(min(s.len(), ImplicitLanes))
}

// Lane is what a host can be paid from an escrow.
type Lane struct {
	// Implicit is for the one epoch alone; what the host serves in it counts against
	// this first.
	Implicit mesh.Amount
	// Explicit is what is left in the host's own lane. A settlement of the epoch before
	// takes its part of it, so a host that has not settled yet takes that off.
	Explicit mesh.Amount
}

// Left is all of it.
func (l Lane) Left() mesh.Amount { return l.Implicit + l.Explicit }

// LaneOf returns what a host can be paid for what it serves in an epoch: the one that
// runs, or the one before as long as it is not settled and the host has not sent its
// line for this escrow. It only grows while the epoch runs.
func LaneOf(network mesh.NetworkID, v View, escrow mesh.Hash, host mesh.Address, epoch mesh.Epoch) (Lane, error) {
	state, err := v.Epoch()
	if err != nil {
		return Lane{}, err
	}
	now := state.GetEpoch()
	o := newOverlay(v.r)
	e, ok := o.escrow(escrow, now)
	switch {
	case *o.err != nil:
		return Lane{}, *o.err
	case !ok:
		return Lane{}, fmt.Errorf("there is no escrow %s", escrow.Short())
	case o.Get(hostKey(host)) == nil:
		return Lane{}, fmt.Errorf("%s is not a registered host", host.Short())
	}
	if err := o.pays(escrow, e, uint64(epoch)); err != nil {
		return Lane{}, err
	}
	pool := e.GetPool()
	if paid, ok := o.paidUpTo(); uint64(epoch) != now {
		if uint64(epoch) > now || now-uint64(epoch) > 1 || (ok && paid >= uint64(epoch)) {
			return Lane{}, fmt.Errorf("epoch %d is not open, it is epoch %d", epoch, now)
		}
		pool = e.GetPrevious()
	}
	lane, _ := load[ledgerpb.LaneState](o, laneKey(escrow, host))
	l := Lane{
		Implicit: mesh.Amount(o.hostSet(uint64(epoch)).share(network, escrow, uint64(epoch), pool, host)),
		Explicit: mesh.Amount(o.minus(lane.GetCap(), lane.GetPaid())),
	}
	return l, *o.err
}

// pays refuses receipts of an epoch that an escrow is not for.
func (o *overlay) pays(id mesh.Hash, e *ledgerpb.Escrow, epoch uint64) error {
	switch {
	case epoch < e.GetOpened():
		return refuse("escrow %s was opened in epoch %d and pays nothing of epoch %d", id.Short(), e.GetOpened(), epoch)
	case e.GetClosing() != 0 && epoch > e.GetClosed():
		return refuse("escrow %s was closed in epoch %d and pays nothing of epoch %d", id.Short(), e.GetClosed(), epoch)
	}
	return nil
}

// Lanes returns the lanes of an escrow, ascending by host.
func (v View) Lanes(escrow mesh.Hash, fn func(host mesh.Address, lane *ledgerpb.LaneState)) error {
	return list(v, key(tableLane, escrow[:]), func(k []byte, lane *ledgerpb.LaneState) {
		fn(mesh.AddressOf(k[33:]), lane)
	})
}
