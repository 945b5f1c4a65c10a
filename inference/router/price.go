package router

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// passedOver is why hosts that would answer are not asked to. There may be others.
type passedOver struct {
	as  error // inference.ErrUnpaid or ErrTooDear
	why string
}

func (e *passedOver) Error() string   { return e.as.Error() + ": " + e.why }
func (e *passedOver) Unwrap() []error { return []error{errNoOffer, e.as} }

// usualTimes is how many times as much as is usual a token may cost where no cap is set.
const usualTimes = 5

// lower returns the lower of two caps, of which 0 is none.
func lower(a, b mesh.Amount) mesh.Amount {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// dearest is what the dearer of prompt and answer costs, a token.
func dearest(c *inferencepb.Capability) uint64 { return max(c.GetPricePrompt(), c.GetPriceOutput()) }

// usualCap is the cap where none is set: so many times the lower median of those that ask
// for money; nothing, where most of them ask for none. ok: somebody says what he asks.
func usualCap(list []Candidate) (most uint64, ok bool) {
	var asked []uint64
	free := 0
	for _, c := range list {
		switch p := dearest(c.Capability); {
		case c.Capability == nil:
		case p == 0:
			free++
		default:
			asked = append(asked, p)
		}
	}
	if free > len(asked) || len(asked) == 0 {
		return 0, free > 0
	}
	slices.Sort(asked)
	middle := asked[(len(asked)-1)/2]
	if middle > math.MaxUint64/usualTimes {
		return math.MaxUint64, true
	}
	return usualTimes * middle, true
}

// tokenCap returns what a token may cost: as was set, or by the adverts of the model's
// hosts, or by the offers of those that only a task found. ok: there is a cap. The hosts'
// lock is held.
func (q *question) tokenCap() (most uint64, ok bool) {
	if q.cap > 0 {
		return uint64(q.cap), true
	}
	if most, ok = q.r.hosts.usual[q.model]; ok {
		return most, true
	}
	return usualCap(q.extras())
}

// overCap reports whether a host asks for more than a token may cost. This node pays
// nothing to itself. The hosts' lock is held.
func (q *question) overCap(peer mesh.Address, c *inferencepb.Capability) bool {
	most, ok := q.tokenCap()
	return ok && peer != q.r.self && dearest(c) > most
}

// cheap returns the candidates that do not ask for more than a token may cost, as far as
// they say.
func (q *question) cheap(list []Candidate) []Candidate {
	q.r.hosts.mu.Lock()
	defer q.r.hosts.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(list), func(c Candidate) bool { return q.overCap(c.Peer, c.Capability) })
}

// tooDear says that candidates are passed over for their price.
func (q *question) tooDear(list []Candidate) error {
	q.r.hosts.mu.Lock()
	defer q.r.hosts.mu.Unlock()
	most, _ := q.tokenCap()
	least := uint64(math.MaxUint64)
	for _, c := range list {
		if q.overCap(c.Peer, c.Capability) {
			least = min(least, dearest(c.Capability))
		}
	}
	from := "as was set"
	if q.cap == 0 {
		from = fmt.Sprintf("%d times what hosts usually ask", usualTimes)
	}
	return &passedOver{inference.ErrTooDear, fmt.Sprintf(
		"for a token hosts of %s ask %d ngonka and more, and the cap is %d, %s; `mesh up --price-cap N`, or mesh_price_cap in a request, sets another",
		q.model.Short(), least, most, from)}
}

// passed says why none of the candidates was taken, where it is that the request's escrow
// has nothing for any of them, or that all others offered for more than a token may cost.
// Nil: it is something else.
func (q *question) passed(list []Candidate) error {
	now, from, why := time.Now(), q.funds(), ""
	var dear []Candidate
	q.r.hosts.mu.Lock()
	for _, c := range list {
		rec := q.r.hosts.at(hostKey{c.Peer, q.model})
		if offered := rec.offer.GetCapability(); offered != nil {
			c.Capability = offered
		}
		switch {
		case rec.cannotPay(from, now):
			why = rec.broke.why
		case q.overCap(c.Peer, c.Capability):
			dear = append(dear, c)
		default:
			q.r.hosts.mu.Unlock()
			return nil
		}
	}
	q.r.hosts.mu.Unlock()
	if len(dear) > 0 {
		return q.tooDear(dear)
	}
	return &passedOver{inference.ErrUnpaid, fmt.Sprintf("no host of %s that answers can be paid; the last: %.300s", q.model.Short(), why)}
}

// likelyFirst brings those candidates to the front that most likely have a part of the
// request's escrow. Which hosts the epoch has a light node cannot know: it goes by the
// rank among those that it knows, all of them given too.
func (q *question) likelyFirst(list, all []Candidate) []Candidate {
	id, err := mesh.HashFromBytes(q.ask.GetEscrow())
	if err != nil || q.r.cfg.Purse == nil {
		return list
	}
	peers := make([]mesh.Address, len(all))
	for i, c := range all {
		peers[i] = c.Peer
	}
	likely := make(map[mesh.Address]int)
	for _, p := range q.r.cfg.Purse.Likely(id, mesh.Epoch(q.ask.GetEpoch()), peers) {
		likely[p] = 1
	}
	slices.SortStableFunc(list, func(a, b Candidate) int { return likely[b.Peer] - likely[a.Peer] })
	return list
}

// poor counts the candidates that said that the request's escrow has nothing for them.
func (q *question) poor(list []Candidate) int {
	now, from, n := time.Now(), q.funds(), 0
	q.r.hosts.mu.Lock()
	defer q.r.hosts.mu.Unlock()
	for _, c := range list {
		if q.r.hosts.at(hostKey{c.Peer, q.model}).cannotPay(from, now) {
			n++
		}
	}
	return n
}
