package native

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/gonka-mesh/mesh"
)

// Groups, which are payers, share the engine in equal parts, whatever they ask for.
// The part is of the work of each step and not of a second, for a newcomer who asks
// for little has to get it soon. A group that asks for less than its part leaves the
// rest to the others.

const (
	// companyFor is how long after another group was served one that is alone has
	// to go on in small steps, so that the other, when it asks again, waits little.
	companyFor = time.Second
	// aging is the time of waiting that is worth twice the fee.
	aging = 5 * time.Second
	// maxWeight bounds how much larger a part a fee can buy.
	maxWeight = 4
)

// group is the requests of one payer.
type group struct {
	key     mesh.Address
	members int // guarded by Engine.mu; requests that wait or run
	active  int // guarded by Engine.mu; of them in the batch
	turn    int // guarded by Engine.mu; when one last entered the batch

	// The rest belongs to the scheduler.
	step     int         // for which what follows was set
	decoding []*sequence // that need one token computed
	prompts  []*sequence // that need more; oldest first
	flip     bool        // prompts went first, where the part is too small for both
	fee      mesh.Amount // the lowest of its requests
	part
}

// part is the portion of a group of one step, in inputs.
type part struct {
	weight int
	want   int
	get    int
}

func (g *group) begin(step int) {
	g.step, g.fee, g.want, g.get = step, math.MaxUint64, 0, 0
	clear(g.decoding)
	clear(g.prompts)
	g.decoding, g.prompts = g.decoding[:0], g.prompts[:0]
}

// weightOf is the part of a group that bids a fee where the lowest bid is low: one
// more for each doubling.
func weightOf(fee, low mesh.Amount) int {
	fee, low = min(fee, math.MaxUint64-1), min(low, math.MaxUint64-1)
	ratio := (uint64(fee) + 1) / (uint64(low) + 1)
	return min(max(bits.Len64(ratio), 1), maxWeight)
}

// divide gives every group its part of a step, base being what the step takes
// itself, in inputs. The step is as long as it may be for no group to be slower than
// its part of the engine would make it: alone, the one that wants least would take
// base + want, so that with it in company a step may take that times all parts over
// its own. What one does not want goes to the others. Groups are sorted by what they
// want for their weight.
func divide(groups []*group, base float64) {
	slices.SortStableFunc(groups, func(a, b *group) int { return cmp.Compare(a.want*b.weight, b.want*a.weight) })
	all := 0
	for _, g := range groups {
		all += g.weight
	}
	least := groups[0]
	left := (base+float64(least.want))*float64(all)/float64(least.weight) - base
	for _, g := range groups {
		g.get = min(g.want, max(1, int(left*float64(g.weight)/float64(all)+1e-9)))
		left, all = left-float64(g.get), all-g.weight
	}
}

// next returns the place in the queue of the request to serve next, or -1 when all
// wait for their readers. Groups take turns: the one with least in the batch for its
// weight comes first. Within a group the highest bid does, and waiting raises it.
func next(queue []*sequence, now time.Time) int {
	low := mesh.Amount(math.MaxUint64)
	for _, q := range queue {
		low = min(low, q.g.Fee)
	}
	best, bestBid := -1, 0.0
	for i, q := range queue {
		if q.out.full() {
			continue
		}
		bid := q.bid(now)
		if best < 0 || before(q, queue[best], low, bid, bestBid) {
			best, bestBid = i, bid
		}
	}
	return best
}

func before(a, b *sequence, low mesh.Amount, bidA, bidB float64) bool {
	order := 0
	if a.group != b.group {
		order = cmp.Or(
			cmp.Compare(a.group.active*weightOf(b.g.Fee, low), b.group.active*weightOf(a.g.Fee, low)),
			cmp.Compare(a.group.turn, b.group.turn))
	}
	return cmp.Or(order, cmp.Compare(bidB, bidA), cmp.Compare(a.number, b.number)) < 0
}

// bid is the logarithm of the fee, and of what waiting adds to it.
func (s *sequence) bid(now time.Time) float64 {
	return math.Log2(1+float64(s.g.Fee)) + float64(now.Sub(s.since))/float64(aging)
}

// yields reports whether a gives way to b when there is no room for both: one whose
// reader does not read, then the lower fee, then the younger.
func yields(a, b *sequence) bool {
	stalledA, stalledB := a.out.full(), b.out.full()
	if stalledA != stalledB {
		return stalledA
	}
	return cmp.Or(cmp.Compare(a.g.Fee, b.g.Fee), cmp.Compare(b.number, a.number)) < 0
}
