// Package grammar holds an answer to a form: a JSON schema or a grammar in the
// notation of llama.cpp (GBNF). A constraint becomes a network of states over bytes
// whose rules may call each other (expr.go, network.go); its states are put together
// as an answer goes on and kept (automaton.go); and with the vocabulary of a model it
// says which tokens may come next (vocabulary.go, matcher.go).
//
// What is allowed is a pure function of the constraint's bytes, the bytes of the
// tokens and the output so far, errors included: any host continues any other's
// answer, and a checker repeats it. Constraints come from strangers, so their size,
// their depth and the work of a step are bounded.
package grammar

import (
	"errors"
	"fmt"
	"sync"
	"unicode/utf8"
)

// Kind is what a constraint's text is.
type Kind string

// The kinds of constraints.
const (
	Schema Kind = "json_schema" // a JSON schema
	Object Kind = "json_object" // no text: any JSON object
	GBNF   Kind = "gbnf"        // a grammar whose first rule is named root
)

// Bounds of a constraint.
const (
	MaxText   = 64 << 10 // bytes
	MaxStates = 1 << 16
	MaxRepeat = 1 << 14 // of a counted repetition
	MaxDepth  = 256     // rules that are inside of each other in an answer
	maxNest   = 64      // of the text of a constraint
	maxFan    = 512     // ways to go on at one place
)

// ErrTooComplex reports a constraint that leaves open too much at once to be followed.
var ErrTooComplex = errors.New("the constraint is too ambiguous to be followed")

// Grammar is a compiled constraint. It is safe for concurrent use.
type Grammar struct {
	net *network

	mu    sync.Mutex
	auto  *automaton // guarded by mu
	masks int        // bytes of masks that auto keeps; guarded by mu
}

// Compile reads a constraint. Its errors say what is wrong with the text and where.
func Compile(kind Kind, text string) (*Grammar, error) {
	switch {
	case len(text) > MaxText:
		return nil, fmt.Errorf("constraint of %d bytes: at most %d are allowed", len(text), MaxText)
	case !utf8.ValidString(text):
		return nil, errors.New("constraint is not valid UTF-8")
	}
	b := new(rules)
	var err error
	switch kind {
	case Schema:
		err = compileSchema(b, text)
	case Object:
		if text != "" {
			return nil, fmt.Errorf("constraint of kind %s has a text", kind)
		}
		err = compileSchema(b, `{"type":"object"}`)
	case GBNF:
		err = compileGBNF(b, text)
	default:
		return nil, fmt.Errorf("constraint of kind %.40q: %s, %s and %s are known", kind, Schema, Object, GBNF)
	}
	if err != nil {
		return nil, err
	}
	net, err := newNetwork(b)
	if err != nil {
		return nil, err
	}
	g := &Grammar{net: net, auto: newAutomaton(net)}
	if g.auto.first == nil {
		return nil, g.auto.err
	}
	return g, nil
}

// Match reports whether text is the start of an answer, and whether it is a whole one.
func (g *Grammar) Match(text []byte) (start, whole bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refresh()
	s := g.auto.first
	for _, c := range text {
		if s = g.auto.step(s, g.net.classOf[c]); s == nil {
			return false, false, g.auto.err
		}
	}
	return true, s.accepting, nil
}

// refresh begins anew when what is kept has grown too large. Called with mu held.
func (g *Grammar) refresh() bool {
	if g.auto.spent <= maxSpent && g.masks <= maxMaskBytes {
		return false
	}
	g.auto, g.masks = newAutomaton(g.net), 0
	return true
}
