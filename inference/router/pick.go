package router

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/p2p"
)

const (
	maxAsked      = 5  // candidates looked at per choice
	maxAskedAgain = 20 // and at once where the first ones say that they cannot be paid
	maxOfferBytes = 4 << 10
	warmRunnersUp = 2
	warmFor       = 30 * time.Second
)

var (
	errNoOffer = errors.New("no offer")
	errNobody  = fmt.Errorf("%w: nobody is known", errNoOffer)
	errSmall   = errors.New("no host in reach has the memory")
)

// pick returns the hosts to try, the best first. Offers in hand are used at once and
// renewed in the background; without any, a few candidates are asked and waited for:
// those that have to be connected first, until patience ends. tried gets those that
// cannot be reached. need is how many tokens of context the rest of the answer takes at
// least.
func (q *question) pick(ctx context.Context, tried map[mesh.Address]bool, need int, patience time.Time) ([]ranked, error) {
	return q.pickOf(ctx, tried, need, patience, maxAsked)
}

// pickOf is pick with so many candidates looked at.
func (q *question) pickOf(ctx context.Context, tried map[mesh.Address]bool, need int, patience time.Time, most int) ([]ranked, error) {
	r := q.r
	list, err := q.candidates(ctx, tried, need, most)
	if err != nil {
		return nil, err
	}
	out := q.acceptable(list, true, need)
	if len(out) > 0 {
		r.background(func() { r.askOffers(r.ctx, q, list, patience) })
	} else {
		poor := q.poor(list)
		r.askOffers(ctx, q, list, patience)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if left := r.reachable(q.model, list, patience); len(left) < len(list) {
			for _, c := range list {
				tried[c.Peer] = tried[c.Peer] || !slices.ContainsFunc(left, func(l Candidate) bool { return l.Peer == c.Peer })
			}
			if list = left; len(list) == 0 { // there may be others
				return q.pickOf(ctx, tried, need, patience, most)
			}
		}
		out = q.acceptable(list, true, need)
		if len(out) == 0 && q.poor(list) > poor && time.Now().Before(patience) { // each turn leaves fewer to ask
			return q.pickOf(ctx, tried, need, patience, maxAskedAgain)
		}
		if len(out) == 0 {
			// Nobody answered in time: adverts and history have to do.
			out = q.acceptable(list, false, need)
		}
	}
	if len(out) == 0 {
		if err := q.passed(list); err != nil {
			return nil, err
		}
		if err := q.queues(list, need); err != nil {
			return nil, err
		}
		return nil, q.noOffer(list)
	}
	rank(out)
	again(out, time.Now())
	for _, runner := range out[1:min(len(out), 1+warmRunnersUp)] {
		r.warm(hostKey{runner.peer, q.model})
	}
	return out, nil
}

// candidates returns a handful of hosts to choose from.
func (q *question) candidates(ctx context.Context, tried map[mesh.Address]bool, need, most int) ([]Candidate, error) {
	extras := q.able(large(q.extras(), need))
	cheap := q.cheap(extras)
	list := q.eligible(cheap, tried, most)
	if len(list) > q.poor(list) { // who offered for a task is at hand, and looking for others may take seconds
		return list, nil
	}
	hosts, err := q.r.cfg.Directory.Hosts(ctx, q.model)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look for hosts: %w", err)
	case len(hosts) == 0 && len(cheap) < len(extras):
		return nil, q.tooDear(extras)
	case len(hosts) == 0:
		return nil, errNobody
	}
	q.r.hosts.advertised(q.model, hosts)
	enough := large(hosts, need)
	if len(enough) == 0 {
		return nil, fmt.Errorf("%w for %d tokens of context", errSmall, need)
	}
	able := q.able(enough)
	if len(able) == 0 {
		return nil, q.unable(enough)
	}
	cheap = q.cheap(able)
	list = q.eligible(cheap, tried, most)
	switch {
	case len(list) == 0 && len(cheap) < len(able):
		return nil, q.tooDear(able)
	case len(list) == 0:
		return nil, errNoOffer
	}
	return list, nil
}

// eligible drops candidates that were tried and, where others are left, those that
// failed lately or said that the request's escrow has nothing for them. It returns a
// handful: hosts with an offer in hand first, and at least one drawn from the rest.
func (q *question) eligible(list []Candidate, tried map[mesh.Address]bool, most int) []Candidate {
	now, r, from := time.Now(), q.r, q.funds()
	r.hosts.mu.Lock()
	defer r.hosts.mu.Unlock()
	var good, rest, avoided, poor []Candidate
	seen := make(map[mesh.Address]bool)
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for _, c := range list {
		if seen[c.Peer] || tried[c.Peer] {
			continue
		}
		seen[c.Peer] = true
		rec := r.hosts.at(hostKey{c.Peer, q.model})
		switch {
		case now.Before(rec.until) && rec.liar:
		case rec.cannotPay(from, now):
			poor = append(poor, c)
		case now.Before(rec.until):
			avoided = append(avoided, c)
		case r.usable(c.Peer, rec, from, now):
			good = append(good, c)
		default:
			rest = append(rest, c)
		}
	}
	rest = q.likelyFirst(rest, slices.Concat(good, rest, avoided))
	if len(rest) > 0 && len(good) >= most {
		good = good[:most-1]
	}
	out := append(good, rest...)
	if len(out) == 0 {
		out = avoided
	}
	if len(out) == 0 {
		out, most = poor, maxAskedAgain
	}
	return out[:min(len(out), most)]
}

// usable reports whether a call may be sent on the strength of the offer in hand. It
// says nothing of a peer whose connection has ended since: that one may be gone, and
// dialling would tell only after seconds. Nor of one that was asked for other funds.
func (r *Router) usable(peer mesh.Address, rec *record, from funds, now time.Time) bool {
	return rec.offer != nil && now.Sub(rec.offered) < offerUsable && r.connected(peer) && from.like(rec.from)
}

func (r *Router) connected(peer mesh.Address) bool { return peer == r.self || r.cfg.Connected(peer) }

// reachable drops candidates that are not connected and, asked for an offer, could not
// be connected: a call would dial them once more, and wait once more.
func (r *Router) reachable(model mesh.ModelID, list []Candidate, patience time.Time) []Candidate {
	over := !time.Now().Before(patience)
	r.hosts.mu.Lock()
	defer r.hosts.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(list), func(c Candidate) bool {
		rec := r.hosts.at(hostKey{c.Peer, model})
		return !r.connected(c.Peer) && (rec.failures > 0 || over)
	})
}

// inquire says how to get a fresh offer: ended is closed when the one that is asked for
// came or failed, and mine tells the caller to ask. Nil: there is no need. The offer of
// a connection that has ended is not fresh.
func (r *Router) inquire(k hostKey, from funds) (ended chan struct{}, mine bool) {
	now, connected := time.Now(), r.connected(k.peer)
	r.hosts.update(k, func(rec *record) {
		fresh := from.like(rec.askedFor) && now.Sub(rec.asked) < offerFresh ||
			from.like(rec.from) && rec.offer != nil && now.Sub(rec.offered) < offerFresh
		if mine = rec.asking == nil && !(fresh && connected); mine {
			rec.asked, rec.askedFor, rec.asking = now, from, make(chan struct{})
		}
		ended = rec.asking
	})
	return ended, mine
}

// holds reports whether a host has the memory for an answer that takes so many tokens
// of context. What is too long for the model itself is for a host to say.
func holds(c *inferencepb.Capability, need int) bool {
	return c == nil || int(c.GetContext()) >= min(need, inference.OwnContext(c))
}

// large returns the candidates whose memory holds the answer, as far as they say.
func large(list []Candidate, need int) []Candidate {
	return slices.DeleteFunc(slices.Clone(list), func(c Candidate) bool { return !holds(c.Capability, need) })
}

// dearer reports whether an offer asks for more than the advert of its host says.
func dearer(offer, advert *inferencepb.Capability) bool {
	return advert != nil && (offer.GetPricePrompt() > advert.GetPricePrompt() || offer.GetPriceOutput() > advert.GetPriceOutput())
}

// acceptable rates the candidates that would take the question at their advertised
// price. With offers set, only those that made a usable offer.
func (q *question) acceptable(list []Candidate, offers bool, need int) []ranked {
	now, from := time.Now(), q.funds()
	hosts := q.r.hosts
	hosts.mu.Lock()
	defer hosts.mu.Unlock()
	var out []ranked
	cheapest, fastest := uint64(0), unmeasured
	for _, c := range list {
		if rec := hosts.at(hostKey{c.Peer, q.model}); rec.ttft.Known && rec.token.Known {
			if p := rec.measured(fastest); fastest == unmeasured || p.first+p.token < fastest.first+fastest.token {
				fastest = p
			}
		}
	}
	for _, c := range list {
		rec := hosts.at(hostKey{c.Peer, q.model})
		has := q.r.usable(c.Peer, rec, from, now)
		if has && !rec.offer.GetAccept() || offers && !has || rec.cannotPay(from, now) {
			continue
		}
		k := ranked{peer: c.Peer, capability: c.Capability, cost: rec.finish(max(1, int(q.ask.GetMaxTokens())), fastest), called: rec.called}
		if has {
			k.capability, k.offered = rec.offer.GetCapability(), true
		}
		switch {
		case k.capability == nil && c.Peer != q.r.self: // its price is not known
			continue
		case q.overCap(c.Peer, k.capability), dearer(k.capability, rec.advert), !holds(k.capability, need), !q.suits(k.capability):
			continue
		}
		if k.price() > 0 && (cheapest == 0 || k.price() < cheapest) {
			cheapest = k.price()
		}
		out = append(out, k)
	}
	// An answer without a length of its own may take the whole context.
	whole := func(k ranked) bool { return holds(k.capability, inference.MaxTokens) }
	if q.ask.GetMaxTokens() == inference.MaxTokens && slices.ContainsFunc(out, whole) {
		out = slices.DeleteFunc(out, func(k ranked) bool { return !whole(k) })
	}
	for i := range out {
		if cheapest > 0 {
			out[i].cost *= 0.8 + 0.2*min(float64(out[i].price())/float64(cheapest), 20)
		}
	}
	return out
}

// price is what an output token and a prompt token cost together.
func (k *ranked) price() uint64 {
	p, o := k.capability.GetPricePrompt(), k.capability.GetPriceOutput()
	if p > 1<<62 || o > 1<<62 {
		return 1 << 63
	}
	return p + o
}

// askOffers asks candidates at once and returns when all answered, when the time is
// over, or, once one has accepted, a little later than that took. Where none is
// connected, the time is until patience ends.
func (r *Router) askOffers(ctx context.Context, q *question, list []Candidate, patience time.Time) {
	if slices.ContainsFunc(list, func(c Candidate) bool { return r.connected(c.Peer) }) {
		patience = time.Now().Add(r.cfg.OfferWait)
	}
	ctx, cancel := context.WithDeadline(ctx, patience)
	defer cancel()
	start := time.Now()
	answers, asked := make(chan bool, len(list)), 0
	for _, c := range list {
		k := hostKey{c.Peer, q.model}
		ended, mine := r.inquire(k, q.funds())
		if ended == nil {
			continue
		}
		asked++
		r.background(func() {
			if mine {
				r.askOffer(k, q.ask)
				close(ended)
			}
			select {
			case <-ended:
				answers <- r.hosts.accepts(k, start)
			case <-ctx.Done():
			}
		})
	}
	var grace <-chan time.Time
	for range asked {
		select {
		case accepted := <-answers:
			if accepted && grace == nil {
				grace = time.After(5*time.Millisecond + 3*time.Since(start))
			}
		case <-grace:
			return
		case <-ctx.Done():
			return
		}
	}
}

// askOffer asks one host for an offer, and notes it.
func (r *Router) askOffer(k hostKey, ask *inferencepb.OfferAsk) {
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.OfferWait+r.cfg.Connect)
	defer cancel()
	defer r.hosts.update(k, func(rec *record) { rec.asking = nil })
	o, err := r.exchange(ctx, k.peer, ask)
	if err == nil {
		err = checkOffer(o, k.model)
	}
	if err != nil {
		if r.ctx.Err() == nil {
			r.hosts.failed(k, false)
			r.cfg.Log.Debug("no offer", "host", k.peer, "error", err)
		}
		return
	}
	r.hosts.offered(k, funds{string(ask.GetEscrow()), ask.GetEpoch()}, o)
}

func (r *Router) exchange(ctx context.Context, peer mesh.Address, ask *inferencepb.OfferAsk) (*inferencepb.Offer, error) {
	c, err := r.dial(ctx, peer, "offer")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if at, ok := ctx.Deadline(); ok {
		c.SetDeadline(at)
	}
	if err := p2p.WriteMessage(c, &inferencepb.OfferCall{Ask: ask}); err != nil {
		return nil, fmt.Errorf("ask for an offer: %w", err)
	}
	o := new(inferencepb.Offer)
	if err := p2p.ReadMessage(c, maxOfferBytes, o); err != nil {
		return nil, fmt.Errorf("read the offer: %w", err)
	}
	return o, nil
}

// checkOffer checks an offer of a peer; one that does not accept says nothing more.
func checkOffer(o *inferencepb.Offer, model mesh.ModelID) error {
	if !o.GetAccept() {
		return nil
	}
	got, err := mesh.HashFromBytes(o.GetCapability().GetModel())
	if err != nil || got != model {
		return errors.New("the offer is of another model")
	}
	return nil
}

// warm opens a pooled stream to a host that was not in use lately.
func (r *Router) warm(k hostKey) {
	now, cold := time.Now(), false
	r.hosts.update(k, func(rec *record) {
		if cold = now.Sub(rec.warmed) > warmFor; cold {
			rec.warmed = now
		}
	})
	if !cold {
		return
	}
	r.background(func() {
		if err := r.ping(k.peer); err != nil {
			r.cfg.Log.Debug("a host in reserve does not answer", "host", k.peer, "error", err)
		}
	})
}
