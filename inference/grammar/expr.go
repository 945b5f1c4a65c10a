package grammar

import (
	"errors"
	"fmt"
	"slices"
	"sort"
)

// expr is a part of a rule: a literal, class, seq, alt, ref or repeat.
type expr any

type (
	literal string   // these bytes
	class   []span   // one code point
	seq     []expr   // one after the other
	alt     []expr   // one of them; none: nothing matches
	ref     int      // a rule
	repeat  struct { // min to max times, without end for max < 0
		body     expr
		min, max int
	}
)

// span is a range of code points, both ends included.
type span struct{ lo, hi rune }

// rules are the front end's form of a constraint. Rule 0 is where an answer begins.
type rules struct {
	names  []string
	bodies []expr
	made   map[string]ref // of those that are made when first wanted
}

func (r *rules) add(name string, body expr) ref {
	r.names, r.bodies = append(r.names, name), append(r.bodies, body)
	return ref(len(r.bodies) - 1)
}

// once returns the rule of a name, which body makes when it is wanted first. The body
// may want the rule itself.
func (r *rules) once(name string, body func() expr) ref {
	if id, ok := r.made[name]; ok {
		return id
	}
	if r.made == nil {
		r.made = map[string]ref{}
	}
	id := r.add(name, nil)
	r.made[name] = id
	r.bodies[id] = body()
	return id
}

// plain are the code points that stand for themselves in a JSON string. Control
// characters are escaped, and surrogates are no code points of UTF-8.
var plain = class{{' ', '!'}, {'#', '['}, {']', '~'}, {0x80, 0xD7FF}, {0xE000, 0x10FFFF}}

// normal sorts and joins spans and takes out surrogates.
func (c class) normal() class {
	c = slices.Clone(c)
	sort.Slice(c, func(i, j int) bool { return c[i].lo < c[j].lo })
	var out class
	for _, s := range c {
		switch n := len(out); {
		case s.lo > s.hi:
		case n > 0 && s.lo <= out[n-1].hi+1:
			out[n-1].hi = max(out[n-1].hi, s.hi)
		default:
			out = append(out, s)
		}
	}
	return out.and(class{{0, 0xD7FF}, {0xE000, 0x10FFFF}})
}

// and intersects two normal classes.
func (c class) and(d class) class {
	var out class
	for i, j := 0, 0; i < len(c) && j < len(d); {
		if lo, hi := max(c[i].lo, d[j].lo), min(c[i].hi, d[j].hi); lo <= hi {
			out = append(out, span{lo, hi})
		}
		if c[i].hi < d[j].hi {
			i++
		} else {
			j++
		}
	}
	return out
}

// not returns all code points that are not in a normal class.
func (c class) not() class {
	var out class
	next := rune(0)
	for _, s := range c {
		out = append(out, span{next, s.lo - 1})
		next = s.hi + 1
	}
	return append(out, span{next, 0x10FFFF}).normal()
}

// freeDepth is through how many rules it is looked for plain code points.
const freeDepth = 2

// coversPlain reports whether each plain code point matches e by itself.
func (r *rules) coversPlain(e expr, depth int) bool {
	switch e := e.(type) {
	case class:
		return slices.Equal(e.and(plain), plain)
	case alt:
		for _, x := range e {
			if r.coversPlain(x, depth) {
				return true
			}
		}
	case ref:
		return depth > 0 && r.coversPlain(r.bodies[e], depth-1)
	}
	return false
}

// builder makes states of rules.
type builder struct {
	*rules
	edges [][]edge
	count int // of edges
	// free[s]: at state s that many plain code points may follow, whatever they are.
	free []int32
	err  error
}

func (b *builder) state() int32 {
	if len(b.edges) >= MaxStates {
		b.fail(fmt.Errorf("the constraint needs more than %d states", MaxStates))
		return 0
	}
	b.edges, b.free = append(b.edges, nil), append(b.free, 0)
	return int32(len(b.edges) - 1)
}

func (b *builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// edge adds e once. Work on a network grows with the square of the edges of a state, so
// those are bounded, as all are.
func (b *builder) edge(from int32, e edge) {
	switch {
	case slices.Contains(b.edges[from], e):
	case len(b.edges[from]) >= maxFan:
		b.fail(fmt.Errorf("the constraint has more than %d ways to go on at one place", maxFan))
	case b.count >= 4*MaxStates:
		b.fail(fmt.Errorf("the constraint needs more than %d steps between its states", 4*MaxStates))
	default:
		b.edges[from] = append(b.edges[from], e)
		b.count++
	}
}

// put makes what leads by e from one state to another. Nothing may lead back to from,
// except where both are the same.
func (b *builder) put(e expr, from, to int32) {
	if b.err != nil {
		return
	}
	switch e := e.(type) {
	case literal:
		b.alternatives(from, to, []string{string(e)})
	case class:
		b.class(e, from, to)
	case ref:
		b.edge(from, edge{kind: callEdge, rule: int32(e), to: to})
	case seq:
		b.seq(e, from, to)
	case alt:
		var texts []string
		for _, x := range e {
			if s, ok := x.(literal); ok {
				texts = append(texts, string(s))
			} else {
				b.put(x, from, to)
			}
		}
		b.alternatives(from, to, texts)
	case repeat:
		b.repeat(e, from, to)
	default:
		b.fail(errors.New("a part of a rule is missing"))
	}
}

func (b *builder) seq(e seq, from, to int32) {
	if len(e) == 0 {
		b.edge(from, edge{kind: skipEdge, to: to})
		return
	}
	for _, x := range e[:len(e)-1] {
		next := b.state()
		b.put(x, from, next)
		from = next
	}
	b.put(e[len(e)-1], from, to)
}

// alternatives puts texts, of which those that begin alike share their beginning.
func (b *builder) alternatives(from, to int32, texts []string) {
	if len(texts) == 1 {
		s := texts[0]
		for ; len(s) > 1; s = s[1:] {
			next := b.state()
			b.edge(from, edge{kind: byteEdge, lo: s[0], hi: s[0], to: next})
			from = next
		}
		if s != "" {
			b.edge(from, edge{kind: byteEdge, lo: s[0], hi: s[0], to: to})
		} else {
			b.edge(from, edge{kind: skipEdge, to: to})
		}
		return
	}
	sort.Strings(texts)
	for i := 0; i < len(texts) && b.err == nil; {
		if texts[i] == "" {
			b.edge(from, edge{kind: skipEdge, to: to})
			for i < len(texts) && texts[i] == "" {
				i++
			}
			continue
		}
		c := texts[i][0]
		var rest []string
		for ; i < len(texts) && texts[i][0] == c; i++ {
			rest = append(rest, texts[i][1:])
		}
		if rest[len(rest)-1] == "" {
			b.edge(from, edge{kind: byteEdge, lo: c, hi: c, to: to})
			continue
		}
		next := b.state()
		b.edge(from, edge{kind: byteEdge, lo: c, hi: c, to: next})
		b.alternatives(next, to, rest)
	}
}

// class puts the UTF-8 forms of a class. Those that end alike share their end.
func (b *builder) class(c class, from, to int32) {
	ends := map[string]int32{}
	for _, s := range c {
		for _, form := range utf8Forms(s) {
			at := to
			for i := len(form) - 1; i > 0; i-- {
				key := fmt.Sprint(form[i:])
				next, ok := ends[key]
				if !ok {
					next = b.state()
					b.edge(next, edge{kind: byteEdge, lo: form[i].lo, hi: form[i].hi, to: at})
					ends[key] = next
				}
				at = next
			}
			b.edge(from, edge{kind: byteEdge, lo: form[0].lo, hi: form[0].hi, to: at})
		}
	}
}

func (b *builder) repeat(e repeat, from, to int32) {
	if e.min > MaxRepeat || e.max > MaxRepeat {
		b.fail(fmt.Errorf("a repetition of %d times: at most %d are allowed", max(e.min, e.max), MaxRepeat))
		return
	}
	body := e.body
	if e.min > 1 || e.max > 1 {
		body = b.asRule(body)
	}
	free := b.coversPlain(body, freeDepth)
	left := func(done int) int32 {
		switch {
		case !free:
			return 0
		case e.max < 0:
			return endless
		}
		return int32(e.max - done)
	}
	at := b.state()
	b.edge(from, edge{kind: skipEdge, to: at})
	done := 0
	for ; done < e.min && b.err == nil; done++ {
		b.free[at] = left(done)
		next := b.state()
		b.put(body, at, next)
		at = next
	}
	if e.max < 0 {
		loop := b.state()
		b.edge(at, edge{kind: skipEdge, to: loop})
		b.free[loop] = left(done)
		b.put(body, loop, loop)
		b.edge(loop, edge{kind: skipEdge, to: to})
		return
	}
	for ; done < e.max && b.err == nil; done++ {
		b.free[at] = left(done)
		b.edge(at, edge{kind: skipEdge, to: to})
		next := b.state()
		b.put(body, at, next)
		at = next
	}
	b.edge(at, edge{kind: skipEdge, to: to})
}

// asRule makes a body that is put many times one rule, unless it is small.
func (b *builder) asRule(e expr) expr {
	switch x := e.(type) {
	case ref:
		return x
	case class:
		if len(x) == 1 && x[0].hi < 0x80 {
			return x
		}
	}
	return b.add("part of a repetition", e)
}

// byteSpan is a range of bytes.
type byteSpan struct{ lo, hi byte }

// utf8Forms splits a span into sequences of byte ranges that together match just the
// UTF-8 of its code points.
func utf8Forms(s span) (out [][]byteSpan) {
	if s.lo > s.hi {
		return nil
	}
	split := func(at rune) [][]byteSpan { // the first part ends with at
		return append(utf8Forms(span{s.lo, at}), utf8Forms(span{at + 1, s.hi})...)
	}
	for _, edge := range []rune{0x7F, 0x7FF, 0xFFFF} {
		if s.lo <= edge && s.hi > edge {
			return split(edge)
		}
	}
	if s.hi > 0x7F {
		for i := 1; i < 4; i++ {
			low := rune(1)<<(6*i) - 1
			if s.lo&^low == s.hi&^low {
				continue
			}
			if s.lo&low != 0 {
				return split(s.lo | low)
			}
			if s.hi&low != low {
				return split(s.hi&^low - 1)
			}
		}
	}
	lo, hi := []byte(string(s.lo)), []byte(string(s.hi))
	form := make([]byteSpan, len(lo))
	for i := range lo {
		form[i] = byteSpan{lo[i], hi[i]}
	}
	return [][]byteSpan{form}
}
