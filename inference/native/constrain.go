package native

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/grammar"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// keptForms is how many compiled constraints are kept for the next request.
const keptForms = 16

var _ inference.Constrainer = (*Engine)(nil)

// forms are the compiled constraints of an engine.
type forms struct {
	once  sync.Once
	vocab *grammar.Vocabulary
	err   error

	mu   sync.Mutex
	kept []form // guarded by mu; the last used one is the last
}

type form struct {
	key     [sha256.Size]byte
	grammar *grammar.Grammar
}

// Constrain reports whether answers can be held to a constraint.
func (e *Engine) Constrain(c *inferencepb.Constraint) error {
	_, err := e.grammar(c)
	return err
}

// vocabulary is made when it is wanted first, which takes some tenths of a second.
func (e *Engine) vocabulary() (*grammar.Vocabulary, error) {
	f := &e.forms
	f.once.Do(func() {
		var special, ends []int32
		for id := range int32(e.net.Vocab) {
			switch {
			case e.isEnd(id):
				ends = append(ends, id)
			case e.tokenizer.IsSpecial(id):
				special = append(special, id)
			}
		}
		if f.vocab, f.err = grammar.NewVocabulary(e.net.Vocab, e.tokenizer.Piece, special, ends); f.err != nil {
			f.err = fmt.Errorf("%w: model %s cannot be held to a constraint: %w", inference.ErrInvalid, e.info.Name, f.err)
		}
	})
	return f.vocab, f.err
}

// grammar compiles a constraint and finds out with which tokens an answer may begin.
func (e *Engine) grammar(c *inferencepb.Constraint) (*grammar.Grammar, error) {
	vocab, err := e.vocabulary()
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256([]byte(c.GetKind() + "\x00" + c.GetText()))
	f := &e.forms
	f.mu.Lock()
	i := slices.IndexFunc(f.kept, func(k form) bool { return k.key == key })
	if i >= 0 {
		k := f.kept[i]
		f.kept = append(slices.Delete(f.kept, i, i+1), k)
		f.mu.Unlock()
		return k.grammar, nil
	}
	f.mu.Unlock()
	g, err := grammar.Compile(grammar.Kind(c.GetKind()), c.GetText())
	if err == nil {
		_, err = grammar.NewMatcher(g, vocab).Mask()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", inference.ErrInvalid, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.kept) >= keptForms {
		f.kept = slices.Delete(f.kept, 0, 1)
	}
	f.kept = append(f.kept, form{key, g})
	return g, nil
}

// matcher returns what holds an answer to its constraint, after its prefix.
func (e *Engine) matcher(g inference.Generation) (*grammar.Matcher, error) {
	if g.IgnoreEOS {
		return nil, fmt.Errorf("%w: an answer with a constraint cannot go on after its end", inference.ErrInvalid)
	}
	compiled, err := e.grammar(g.Constraint)
	if err != nil {
		return nil, err
	}
	m := grammar.NewMatcher(compiled, e.forms.vocab)
	for i, id := range g.Prefix {
		if err := m.Accept(id); err != nil {
			return nil, fmt.Errorf("%w: output token %d: %w", inference.ErrInvalid, i, err)
		}
	}
	return m, nil
}
