package router

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

const (
	offerFresh  = time.Second      // an offer this old is as good as asked now
	offerUsable = 10 * time.Second // one this old serves while a new one is fetched
	maxRecords  = 4096
	liarBackoff = 10 * time.Minute
	unpaidFor   = 2 * time.Minute
)

// hosts is what this router measured itself about hosts, per model.
type hosts struct {
	mu    sync.Mutex
	book  map[hostKey]*record     // guarded by mu, as are the records
	usual map[mesh.ModelID]uint64 // what a token may cost by the adverts; guarded by mu
}

type hostKey struct {
	peer  mesh.Address
	model mesh.ModelID
}

// record is one host of one model.
type record struct {
	advert   *inferencepb.Capability // what it advertised last; nil: nothing
	offer    *inferencepb.Offer      // the last one; nil: none
	offered  time.Time               // when it came
	asked    time.Time               // when it was last asked for
	askedFor funds                   // and for which funds
	asking   chan struct{}           // closed when it has answered that; nil: it has
	since    int                     // calls started since the offer
	called   time.Time               // when it was last sent a call or measured, or got to be known
	ttft     inference.Average       // seconds to the first token of an answer, queue included
	token    inference.Average       // seconds between tokens
	failures int                     // in a row
	until    time.Time               // avoided until then
	from     funds                   // that the ask for it named
	broke    broke                   // what has nothing for it
	liar     bool                    // it signed what is not so
	warmed   time.Time               // when its connection last carried something
	used     time.Time
}

func newHosts() *hosts {
	return &hosts{book: make(map[hostKey]*record), usual: make(map[mesh.ModelID]uint64)}
}

// at returns the record of a host; mu is held.
func (h *hosts) at(k hostKey) *record {
	r := h.book[k]
	if r == nil {
		if len(h.book) >= maxRecords {
			h.evict()
		}
		r = &record{called: time.Now()}
		h.book[k] = r
	}
	r.used = time.Now()
	return r
}

// evict forgets the half of the records that was used longest ago.
func (h *hosts) evict() {
	var times []time.Time
	for _, r := range h.book {
		times = append(times, r.used)
	}
	slices.SortFunc(times, time.Time.Compare)
	limit := times[len(times)/2]
	for k, r := range h.book {
		if !r.used.After(limit) {
			delete(h.book, k)
		}
	}
}

func (h *hosts) update(k hostKey, f func(r *record)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h.at(k))
}

// funds is what a request draws on.
type funds struct {
	escrow string // empty: nothing
	epoch  uint64
}

// like reports whether an offer for other funds is as good for these.
func (f funds) like(other funds) bool { return f.escrow == "" || f == other }

// broke is a host's word that funds have nothing for it. It is no fault of the host's, and
// it is not called: an offer tells when that has changed.
type broke struct {
	from  funds
	until time.Time // believed until then
	why   string
}

// offered notes what a host answered to an ask, or a task, that named these funds.
func (h *hosts) offered(k hostKey, from funds, o *inferencepb.Offer) {
	h.update(k, func(r *record) {
		if o.GetUnpaid() && from.escrow != "" {
			r.offer, r.broke = nil, broke{from, time.Now().Add(unpaidFor), o.GetReason()}
			return
		}
		r.offer, r.from, r.offered, r.since = o, from, time.Now(), 0
		if r.broke.from == from {
			r.broke = broke{}
		}
	})
}

// cannotPay reports whether a host has said that nothing of these funds is for it.
func (r *record) cannotPay(from funds, now time.Time) bool {
	return from.escrow != "" && r.broke.from == from && now.Before(r.broke.until)
}

// accepts reports whether a host has made an offer since then that it would keep.
func (h *hosts) accepts(k hostKey, since time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.at(k)
	return r.offer.GetAccept() && !r.offered.Before(since)
}

// advertised notes what candidates say in public. Their offers may not ask for more.
func (h *hosts) advertised(model mesh.ModelID, list []Candidate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range list {
		if c.Capability != nil {
			h.at(hostKey{c.Peer, model}).advert = c.Capability
		}
	}
	if most, ok := usualCap(list); ok {
		if len(h.usual) >= maxRecords {
			clear(h.usual)
		}
		h.usual[model] = most
	}
}

// failed notes that a host was late, gone or wrong, and how long to avoid it.
func (h *hosts) failed(k hostKey, liar bool) {
	h.update(k, func(r *record) {
		r.failures++
		r.offer, r.warmed = nil, time.Time{}
		if r.liar && time.Now().Before(r.until) {
			return // that its other streams broke does not shorten it
		}
		wait := time.Second << min(r.failures-1, 6)
		if r.liar = liar; liar {
			wait = liarBackoff
		}
		r.until = time.Now().Add(wait)
	})
}

// busy notes that a host has no room now, and that it is there: it has refused a call.
func (h *hosts) busy(k hostKey, wait time.Duration) {
	h.update(k, func(r *record) {
		r.offer = nil
		if r.liar && time.Now().Before(r.until) {
			return
		}
		r.failures = 0
		r.until = time.Now().Add(min(max(wait, 100*time.Millisecond), 5*time.Second))
	})
}

// well reports whether nothing is held against a host but that it may be busy.
func (h *hosts) well(k hostKey) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.at(k)
	return r.failures == 0 && !r.liar
}

// unpaid notes that a host does not serve this node for want of money, which is no fault
// of its own: others come first for a while.
func (h *hosts) unpaid(k hostKey) {
	h.update(k, func(r *record) {
		if until := time.Now().Add(unpaidFor); r.until.Before(until) {
			r.until = until
		}
	})
}

// started notes that a call was sent.
func (h *hosts) started(k hostKey) {
	h.update(k, func(r *record) { r.since, r.called = r.since+1, time.Now() })
}

// spoke notes the time to the first token of a call, and that the host is well.
func (h *hosts) spoke(k hostKey, ttft time.Duration) {
	h.update(k, func(r *record) {
		r.called = time.Now()
		r.ttft.Add(ttft.Seconds())
		if r.liar && time.Now().Before(r.until) {
			return
		}
		r.failures, r.until, r.liar, r.warmed = 0, time.Time{}, false, time.Now()
	})
}

// paced notes the time per token of an ended call.
func (h *hosts) paced(k hostKey, perToken time.Duration) {
	h.update(k, func(r *record) {
		r.token.Add(perToken.Seconds())
		r.warmed, r.called = time.Now(), time.Now()
	})
}

// pace is how fast a host is, in seconds: to the first token and per token.
type pace struct{ first, token float64 }

// unmeasured is the pace of hosts when none was measured and none says.
var unmeasured = pace{first: 0, token: 0.05}

// measured returns the pace that this router saw of a host, where it saw any, and
// otherwise the host's own word or the given one.
func (r *record) measured(other pace) pace {
	if us := r.offer.GetTokenUs(); us > 0 {
		other.token = float64(us) / 1e6
	}
	if r.token.Known {
		other.token = r.token.V
	}
	if r.ttft.Known {
		other.first = r.ttft.V
	}
	return other
}

// finish estimates the seconds until a call of that many tokens would end. A host
// that was never measured counts as fast as the fastest that was, so that it is.
func (r *record) finish(tokens int, fastest pace) float64 {
	p := r.measured(fastest)
	wait := max(p.first, float64(r.offer.GetWaitMs())/1e3)
	answer := float64(min(tokens, 256)) * p.token
	slots := max(1, int(r.offer.GetCapability().GetSlots()))
	if over := int(r.offer.GetActive()+r.offer.GetQueued()) + r.since + 1 - slots; over > 0 {
		wait += float64(over) / float64(slots) * answer
	}
	return wait + answer
}

// ranked is a host that made an acceptable offer.
type ranked struct {
	peer       mesh.Address
	capability *inferencepb.Capability
	offered    bool // its price is from an offer, not from an advert
	cost       float64
	called     time.Time // last
}

// nearBest is by how much a host may cost more than the best and still be drawn.
const nearBest = 1.5

// rank orders offers by expected finish time and price. To the front it brings the
// better of two drawn at random among the good ones (the power of two choices), so
// that many routers with the same view do not run to one host.
func rank(list []ranked) {
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b ranked) int { return cmp.Compare(a.cost, b.cost) })
	good := 0
	for good < len(list) && list[good].cost <= nearBest*list[0].cost {
		good++
	}
	if good < 3 {
		return
	}
	i := min(rand.IntN(good), rand.IntN(good))
	best := list[i]
	copy(list[1:i+1], list[:i])
	list[0] = best
}

// Of againEvery choices one looks at who was not called for againAfter. A host may have been
// busy with the last call for a while: by then what it measured itself is old for it, too.
const (
	againEvery = 20
	againAfter = 3 * inference.MeasureOld / 2
)

// again brings now and then to the front whom this router has not called for longest. Who
// was slow once, or says so himself, is otherwise never called, and so never measured, again.
// One who is dear stays where he is: no call makes him cheaper.
func again(list []ranked, now time.Time) {
	if len(list) == 0 || rand.IntN(againEvery) > 0 {
		return
	}
	least := float64(list[0].price())
	for _, k := range list {
		least = min(least, float64(k.price()))
	}
	oldest := 0
	for i, k := range list {
		if float64(k.price()) <= nearBest*least && k.called.Before(list[oldest].called) {
			oldest = i
		}
	}
	if now.Sub(list[oldest].called) <= againAfter {
		return
	}
	k := list[oldest]
	copy(list[1:oldest+1], list[:oldest])
	list[0] = k
}
