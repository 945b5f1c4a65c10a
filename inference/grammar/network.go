package grammar

import (
	"errors"
	"fmt"
	"math"
)

// kind is what an edge of the network asks for.
type kind uint8

const (
	byteEdge kind = iota // a byte from lo to hi
	skipEdge             // nothing
	callEdge             // what a rule matches
	endEdge              // nothing: the rule ends here
)

// edge leads from a state to another.
type edge struct {
	kind   kind
	tail   bool // of a call: its rule's end is also the end of the calling rule
	lo, hi byte
	rule   int32
	to     int32
}

// endless stands for any number of plain code points.
const endless = math.MaxInt32

// network is what a constraint is compiled to: for each rule states of its own.
type network struct {
	names []string
	start []int32 // state in which a rule begins
	edges [][]edge
	free  []int32
	// need is how many rules must be entered inside of each other, beyond those that
	// are, until the rule of a state can end; over MaxDepth: it cannot.
	need []int32

	classOf [256]uint8 // bytes that no edge tells apart have one class
	classes int
	sample  []byte // a byte of each class
}

func newNetwork(r *rules) (*network, error) {
	b := &builder{rules: r}
	var start []int32
	for i := 0; i < len(r.bodies) && b.err == nil; i++ { // repetitions add rules
		from, to := b.state(), b.state()
		start = append(start, from)
		if b.err != nil {
			break
		}
		b.put(r.bodies[i], from, to)
		b.edge(to, edge{kind: endEdge})
	}
	if b.err != nil {
		return nil, b.err
	}
	n := &network{names: r.names, start: start, edges: b.edges, free: b.free}
	n.markTails()
	if err := n.checkLeft(); err != nil {
		return nil, err
	}
	n.measure()
	if n.need[n.start[0]] > MaxDepth {
		return nil, fmt.Errorf("no finite answer satisfies the constraint, or only one that is nested more than %d deep", MaxDepth)
	}
	n.classify()
	return n, nil
}

// markTails finds calls after which a rule has nothing left to do.
func (n *network) markTails() {
	const unknown, yes, no = 0, 1, 2
	ends := make([]uint8, len(n.edges))
	var atEnd func(s int32) bool
	atEnd = func(s int32) bool {
		if ends[s] == unknown {
			ends[s] = no // also while it is looked at: a loop is no end
			if e := n.edges[s]; len(e) == 1 && (e[0].kind == endEdge || e[0].kind == skipEdge && atEnd(e[0].to)) {
				ends[s] = yes
			}
		}
		return ends[s] == yes
	}
	for _, edges := range n.edges {
		for i := range edges {
			edges[i].tail = edges[i].kind == callEdge && atEnd(edges[i].to)
		}
	}
}

// checkLeft refuses rules that begin with themselves: they would be entered forever.
func (n *network) checkLeft() error {
	empty := n.nullable()
	begins := make([][]int32, len(n.start)) // rules that a rule may begin with
	seen := make([]bool, len(n.edges))
	for r := range n.start {
		todo := []int32{n.start[r]}
		for len(todo) > 0 {
			s := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if seen[s] {
				continue
			}
			seen[s] = true
			for _, e := range n.edges[s] {
				if e.kind == callEdge {
					begins[r] = append(begins[r], e.rule)
				}
				if e.kind == skipEdge || e.kind == callEdge && empty[n.start[e.rule]] {
					todo = append(todo, e.to)
				}
			}
		}
	}
	const open, closed = 1, 2
	state := make([]uint8, len(n.start))
	var visit func(r int32) error
	visit = func(r int32) error {
		state[r] = open
		for _, next := range begins[r] {
			switch state[next] {
			case open:
				return fmt.Errorf("the rule %q begins with itself (left recursion), which is not supported", n.names[next])
			case closed:
			default:
				if err := visit(next); err != nil {
					return err
				}
			}
		}
		state[r] = closed
		return nil
	}
	for r := range n.start {
		if state[r] == 0 {
			if err := visit(int32(r)); err != nil {
				return err
			}
		}
	}
	return nil
}

// backward lists for each state from where it is reached by an edge, or called.
func (n *network) backward() [][]int32 {
	back := make([][]int32, len(n.edges))
	for s, edges := range n.edges {
		for _, e := range edges {
			if e.kind != endEdge {
				back[e.to] = append(back[e.to], int32(s))
			}
			if e.kind == callEdge {
				back[n.start[e.rule]] = append(back[n.start[e.rule]], int32(s))
			}
		}
	}
	return back
}

// nullable tells for each state whether its rule may end without another byte.
func (n *network) nullable() []bool {
	back, out := n.backward(), make([]bool, len(n.edges))
	holds := func(s int32) bool {
		for _, e := range n.edges[s] {
			switch {
			case e.kind == endEdge, e.kind == skipEdge && out[e.to], e.kind == callEdge && out[n.start[e.rule]] && out[e.to]:
				return true
			}
		}
		return false
	}
	var todo []int32
	for s := range n.edges {
		todo = append(todo, int32(s))
	}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !out[s] && holds(s) {
			out[s] = true
			todo = append(todo, back[s]...)
		}
	}
	return out
}

// measure computes need, smallest first: that of a state follows from smaller ones.
func (n *network) measure() {
	back := n.backward()
	n.need = make([]int32, len(n.edges))
	for i := range n.need {
		n.need[i] = MaxDepth + 1
	}
	of := func(s int32) int32 {
		least := int32(MaxDepth + 1)
		for _, e := range n.edges[s] {
			v := int32(0)
			switch {
			case e.kind == byteEdge, e.kind == skipEdge:
				v = n.need[e.to]
			case e.kind == callEdge && e.tail:
				v = n.need[n.start[e.rule]]
			case e.kind == callEdge:
				v = max(n.need[n.start[e.rule]]+1, n.need[e.to])
			}
			least = min(least, v)
		}
		return least
	}
	levels := make([][]int32, MaxDepth+1)
	for s := range n.edges {
		if of(int32(s)) == 0 {
			levels[0] = append(levels[0], int32(s))
		}
	}
	for v := range levels {
		for len(levels[v]) > 0 {
			s := levels[v][len(levels[v])-1]
			levels[v] = levels[v][:len(levels[v])-1]
			if n.need[s] <= int32(v) {
				continue
			}
			n.need[s] = int32(v)
			for _, p := range back[s] {
				if w := of(p); w <= MaxDepth && w < n.need[p] {
					levels[w] = append(levels[w], p)
				}
			}
		}
	}
}

// classify puts bytes together that no edge tells apart.
func (n *network) classify() {
	var begins [257]bool
	for _, edges := range n.edges {
		for _, e := range edges {
			if e.kind == byteEdge {
				begins[e.lo], begins[int(e.hi)+1] = true, true
			}
		}
	}
	for c := range 256 {
		if begins[c] || c == 0 {
			n.classes++
			n.sample = append(n.sample, byte(c))
		}
		n.classOf[c] = uint8(n.classes - 1)
	}
}

var errDeadEnd = errors.New("no token continues the answer: the vocabulary cannot spell what the constraint wants")
