package host

import (
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// Calls beside answers cost nothing, and streams are kept open for them, so that the rate
// of new streams does not bound them. One that is refused may come again.
const (
	sideRate  = 200 // a second of one peer, as of its streams
	sideBurst = 400
	proofCost = 20     // calls that a proof counts as: it may take a processor for a while
	maxRates  = 10_000 // peers that are remembered
	sideWait  = time.Second
)

// aside bounds how often one peer makes calls that cost nothing. Each counts as cost of them.
func (h *Host) aside(cost int, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		peer, err := callerOf(r)
		if err == nil && peer != h.self && !h.rateOf(peer).AllowN(time.Now(), cost) {
			err = &inference.Refusal{Code: inference.CodeBusy, WaitMs: sideWait.Milliseconds(), Message: "this peer makes too many calls at once"}
		}
		if err != nil {
			refuse(w, err)
			return
		}
		next(w, r)
	}
}

// rateOf returns the limit of a peer. One that has been quiet is as good as new, and makes
// room for another; where there is none, any does.
func (h *Host) rateOf(peer mesh.Address) *rate.Limiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l := h.rates[peer]; l != nil {
		return l
	}
	if len(h.rates) >= maxRates {
		makeRoom(h.rates, maxRates, func(l *rate.Limiter) bool { return l.Tokens() >= sideBurst })
	}
	l := rate.NewLimiter(sideRate, sideBurst)
	h.rates[peer] = l
	return l
}

// makeRoom forgets those peers of whom there is nothing to remember and then, until they
// are fewer than most, any.
func makeRoom[V any](peers map[mesh.Address]V, most int, nothing func(V) bool) {
	for a, v := range peers {
		if nothing(v) {
			delete(peers, a)
		}
	}
	for a := range peers {
		if len(peers) < most {
			return
		}
		delete(peers, a)
	}
}
