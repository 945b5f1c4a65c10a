// Package jinja renders chat templates: the part of the Jinja 2 language that
// templates of chat models use, with the settings of the library that models are
// made with (trim_blocks, lstrip_blocks, loop controls, an immutable sandbox).
//
// It differs from a general engine in three ways. Text remembers which of its bytes
// came from a user, through every operation, so that the caller can refuse to read
// special tokens there. Rendering is bounded in steps and in bytes. And a template
// reaches nothing outside its input: no files, no clock, no randomness.
//
// Language: https://jinja.palletsprojects.com/en/stable/templates/. Left out:
// include, import, extends, block, call, filter blocks, raw, recursive loops.
package jinja

import (
	"errors"
	"fmt"
)

// Bounds of templates and of one rendering.
const (
	maxSource = 1 << 20  // bytes of a template
	maxDepth  = 100      // nesting of expressions, blocks and macro calls
	maxSteps  = 2 << 20  // evaluated nodes
	maxBytes  = 64 << 20 // bytes of text handled in all
	maxOutput = 8 << 20  // bytes rendered
)

// Refusal is the error of a template that calls raise_exception: it does not accept
// the messages it was given.
type Refusal struct{ Message string }

func (r *Refusal) Error() string { return r.Message }

// Template is a compiled template. It is safe for concurrent use.
type Template struct{ body block }

// Compile parses a template.
func Compile(source string) (*Template, error) {
	if len(source) > maxSource {
		return nil, fmt.Errorf("template of %d bytes: want at most %d", len(source), maxSource)
	}
	tokens, err := lex(source)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	body, err := p.body()
	if err != nil {
		return nil, err
	}
	if p.peek().kind != tokenEnd {
		return nil, p.errorf("unexpected %s", p.peek())
	}
	return &Template{body}, nil
}

// Render renders the template with the given variables: values made by Literal,
// User, NewList, NewDict and ParseJSON, and plain bool, int64, float64 and nil.
func (t *Template) Render(vars map[string]any) (Text, error) {
	run := &run{filters: filters}
	root := &frame{run: run, vars: make(map[string]any, len(vars)+4)}
	run.root = root
	for name, fn := range globals {
		root.vars[name] = fn
	}
	for name, v := range vars {
		root.vars[name] = v
	}
	err := t.body.exec(root)
	if errors.Is(err, errBreak) || errors.Is(err, errContinue) {
		err = errors.New("break or continue outside a loop")
	}
	if err != nil {
		return Text{}, err
	}
	return run.out.text(), nil
}

// run is the state of one rendering.
type run struct {
	root    *frame
	out     *builder
	filters map[string]filter // for the filters that call filters
	steps   int
	bytes   int
	depth   int
}

var errTooLong = errors.New("the template takes too long or makes too much text")

func (r *run) step() error {
	if r.steps++; r.steps > maxSteps {
		return errTooLong
	}
	return nil
}

// charge accounts for n bytes of text about to be read or made.
func (r *run) charge(n int) error {
	if r.bytes += n; n < 0 || r.bytes > maxBytes {
		return errTooLong
	}
	return nil
}

func (r *run) enter() error {
	if r.depth++; r.depth > maxDepth {
		return errors.New("the template nests too deep")
	}
	return nil
}

func (r *run) leave() { r.depth-- }

// frame is a scope: variables set in a loop or a macro end with it.
type frame struct {
	run    *run
	parent *frame
	vars   map[string]any
}

func (f *frame) lookup(name string) any {
	for s := f; s != nil; s = s.parent {
		if v, ok := s.vars[name]; ok {
			return v
		}
	}
	return undefined{name}
}

func (f *frame) set(name string, v any) {
	if f.vars == nil {
		f.vars = map[string]any{}
	}
	f.vars[name] = v
}
