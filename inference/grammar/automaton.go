package grammar

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// Bounds of the work for one state, in units of about 8 bytes or 8 nanoseconds, and of
// what is kept. An automaton that has spent more starts anew; a step for which a new
// one does not suffice is an error, so that whether it is one depends on nothing that
// happened before.
const (
	maxThreads = 512 // places of the network in which an answer may be at once
	maxSpent   = 1 << 20

	visitCost = 4
)

// thread is a place in the network, with the rules that called its rule. Equal ones
// are one and the same.
type thread struct {
	state int32
	depth int32   // rules that wait for this one to end
	up    *thread // where the calling rule goes on; nil: none called
	id    int32
	mark  uint32
}

type threadKey struct {
	state int32
	up    *thread
}

// point is what an answer's bytes lead to: all places in which it may be.
type point struct {
	threads   []*thread // those that want a byte, by id
	next      []*point  // by class of the byte; nil: not known yet
	accepting bool      // the answer may end here
	free      int32     // that many plain code points may follow
	masks     []mask
}

// dead stands for a byte that cannot follow.
var dead = new(point)

// automaton makes points of a network as they are reached. The grammar guards it.
type automaton struct {
	net     *network
	threads map[threadKey]*thread
	points  map[string]*point
	first   *point
	spent   int
	err     error // of the last operation

	serial uint32
	visits int
	found  []*thread
	accept bool
	free   int32
	key    []byte
}

func newAutomaton(n *network) *automaton {
	a := &automaton{net: n, threads: map[threadKey]*thread{}, points: map[string]*point{}}
	a.open()
	a.enter(n.start[0], nil)
	a.first = a.close()
	return a
}

func (a *automaton) open() {
	a.serial++
	a.err, a.visits, a.found, a.accept, a.free = nil, 0, a.found[:0], false, 0
}

func (a *automaton) thread(state int32, up *thread) *thread {
	k := threadKey{state, up}
	t := a.threads[k]
	if t == nil {
		t = &thread{state: state, up: up, id: int32(len(a.threads))}
		if up != nil {
			t.depth = up.depth + 1
		}
		a.threads[k] = t
		a.spent += 16
	}
	return t
}

// enter adds a state and those that follow from it without a byte. States from which
// the answer could not end within MaxDepth are left out, so none leads nowhere.
func (a *automaton) enter(state int32, up *thread) {
	depth := int32(0)
	if up != nil {
		depth = up.depth + 1
	}
	if a.net.need[state]+depth > MaxDepth || a.err != nil {
		return
	}
	t := a.thread(state, up)
	if t.mark == a.serial {
		return
	}
	t.mark = a.serial
	a.spent += visitCost
	if a.visits++; a.visits > 16*maxThreads {
		a.err = ErrTooComplex
		return
	}
	if depth+freeDepth < MaxDepth {
		a.free = max(a.free, a.net.free[state])
	}
	wants := false
	for _, e := range a.net.edges[state] {
		switch {
		case e.kind == byteEdge:
			wants = true
		case e.kind == skipEdge:
			a.enter(e.to, up)
		case e.kind == callEdge && e.tail:
			a.enter(a.net.start[e.rule], up)
		case e.kind == callEdge:
			if a.net.need[e.to]+depth <= MaxDepth && a.net.need[a.net.start[e.rule]]+depth+1 <= MaxDepth {
				a.enter(a.net.start[e.rule], a.thread(e.to, up))
			}
		case up == nil:
			a.accept = true
		default:
			a.enter(up.state, up.up)
		}
	}
	if wants {
		a.found = append(a.found, t)
	}
}

// close returns the point of what was entered; nil if that is nothing or too much.
func (a *automaton) close() *point {
	if len(a.found) > maxThreads {
		a.err = ErrTooComplex
	}
	if a.err != nil {
		return nil
	}
	if len(a.found) == 0 && !a.accept {
		return dead
	}
	slices.SortFunc(a.found, func(x, y *thread) int { return cmp.Compare(x.id, y.id) })
	// What may follow freely is not a matter of the places alone: a count may lie between.
	a.key = binary.LittleEndian.AppendUint32(a.key[:0], uint32(a.free))
	if a.accept {
		a.key = append(a.key, 1)
	}
	for _, t := range a.found {
		a.key = binary.LittleEndian.AppendUint32(a.key, uint32(t.id))
	}
	p := a.points[string(a.key)]
	if p == nil {
		p = &point{threads: slices.Clone(a.found), accepting: a.accept, free: a.free, next: make([]*point, a.net.classes)}
		a.points[string(a.key)] = p
		a.spent += 24 + 2*len(p.threads) + len(p.next)
	}
	return p
}

// step returns the point after a byte of a class; nil if none, or on an error.
func (a *automaton) step(p *point, class uint8) *point {
	next := p.next[class]
	if next == nil {
		a.open()
		c := a.net.sample[class]
		for _, t := range p.threads {
			for _, e := range a.net.edges[t.state] {
				if e.kind == byteEdge && e.lo <= c && c <= e.hi {
					a.enter(e.to, t.up)
				}
			}
		}
		if next = a.close(); next == nil {
			return nil
		}
		p.next[class] = next
	}
	if next == dead {
		a.err = nil
		return nil
	}
	return next
}

// adopt returns the point of another automaton of the same network as one of this.
func (a *automaton) adopt(p *point) *point {
	var own func(t *thread) *thread
	own = func(t *thread) *thread {
		if t == nil {
			return nil
		}
		return a.thread(t.state, own(t.up))
	}
	a.open()
	a.accept, a.free = p.accepting, p.free
	for _, t := range p.threads {
		a.found = append(a.found, own(t))
	}
	return a.close()
}
