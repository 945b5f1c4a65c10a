package blob

import (
	"slices"
	"time"
)

// plan decides who fetches which chunk. It is a pure rule: time comes in as an
// argument, and the caller guards it.
type plan struct {
	todo     []int // chunks that nobody fetches; the next one is last
	holds    []hold
	done     []bool
	left     int           // chunks not done
	checking int           // chunks being checked on disk
	pace     time.Duration // moving mean from request to verified chunk; 0 before the first
}

// hold says that a source was asked for a chunk. A chunk has two at most: the
// second is the end game, in which idle sources repeat what slow ones have not
// brought.
type hold struct {
	chunk, source int
	since         time.Time
}

// newPlan plans n chunks. Those that are being checked on disk are in nobody's
// hands until confirm or giveBack.
func newPlan(n int, checking []bool) *plan {
	p := &plan{done: make([]bool, n), left: n}
	for i := n - 1; i >= 0; i-- {
		if checking[i] {
			p.checking++
		} else {
			p.todo = append(p.todo, i)
		}
	}
	return p
}

// take picks the next chunk for a source. When there is none it returns after
// how long the source should ask again; 0 means not before something changes.
func (p *plan) take(source int, now time.Time) (chunk int, again time.Duration, ok bool) {
	if n := len(p.todo); n > 0 {
		chunk, p.todo = p.todo[n-1], p.todo[:n-1]
		p.holds = append(p.holds, hold{chunk, source, now})
		return chunk, 0, true
	}
	best := -1
	for i, h := range p.holds {
		if p.mayRepeat(h, source) && (best < 0 || h.since.Before(p.holds[best].since)) {
			best = i
		}
	}
	if best < 0 {
		return 0, 0, false
	}
	if wait := p.patience() - now.Sub(p.holds[best].since); wait > 0 {
		return 0, wait, false
	}
	chunk = p.holds[best].chunk
	p.holds = append(p.holds, hold{chunk, source, now})
	return chunk, 0, true
}

// mayRepeat reports whether the source may ask for a chunk that another was
// asked for and nobody else repeats.
func (p *plan) mayRepeat(h hold, source int) bool {
	if h.source == source {
		return false
	}
	for _, other := range p.holds {
		if other.chunk == h.chunk && other.source != h.source {
			return false
		}
	}
	return true
}

// patience is how long a chunk may be under way before another source repeats it.
func (p *plan) patience() time.Duration {
	return max(300*time.Millisecond, 2*p.pace)
}

// settle marks a chunk as verified and written. It reports whether that is news.
func (p *plan) settle(chunk int, now time.Time) bool {
	if p.done[chunk] {
		return false
	}
	p.done[chunk] = true
	p.left--
	p.holds = slices.DeleteFunc(p.holds, func(h hold) bool {
		if h.chunk != chunk {
			return false
		}
		took := now.Sub(h.since)
		if p.pace == 0 {
			p.pace = took
		}
		p.pace += (took - p.pace) / 8
		return true
	})
	return true
}

// giveBack puts a chunk that was checked on disk and found wanting up for fetching.
func (p *plan) giveBack(chunk int) {
	p.checking--
	p.todo = append(p.todo, chunk)
}

// confirm marks a chunk that was checked on disk and found right.
func (p *plan) confirm(chunk int) {
	p.checking--
	p.done[chunk] = true
	p.left--
}

// drop takes everything out of the hands of a source.
func (p *plan) drop(source int) {
	var lost []int
	p.holds = slices.DeleteFunc(p.holds, func(h hold) bool {
		if h.source == source {
			lost = append(lost, h.chunk)
		}
		return h.source == source
	})
	// In reverse, so that the chunk asked for first is fetched first again.
	for _, chunk := range slices.Backward(lost) {
		if !slices.ContainsFunc(p.holds, func(h hold) bool { return h.chunk == chunk }) {
			p.todo = append(p.todo, chunk)
		}
	}
}
