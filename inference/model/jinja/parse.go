package jinja

import (
	"errors"
	"fmt"
	"slices"
)

// expr evaluates to a value; stmt renders or changes variables. Both are closures
// made once by the parser.
type expr func(f *frame) (any, error)

type stmt func(f *frame) error

type block []stmt

func (b block) exec(f *frame) error {
	for _, s := range b {
		if err := f.run.step(); err != nil {
			return err
		}
		if err := s(f); err != nil {
			return err
		}
	}
	return nil
}

// capture renders the block into a text of its own.
func (b block) capture(f *frame) (Text, error) {
	saved := f.run.out
	defer func() { f.run.out = saved }()
	f.run.out = &builder{}
	err := b.exec(f)
	return f.run.out.text(), err
}

type parser struct {
	tokens []token
	at     int
	depth  int
}

func (p *parser) peek() token { return p.tokens[p.at] }

func (p *parser) next() token {
	t := p.tokens[p.at]
	if t.kind != tokenEnd {
		p.at++
	}
	return t
}

func (p *parser) errorf(format string, args ...any) error {
	return fmt.Errorf("line %d: %s", p.peek().line, fmt.Sprintf(format, args...))
}

func (p *parser) accept(op string) bool {
	if p.peek().is(op) {
		p.at++
		return true
	}
	return false
}

func (p *parser) acceptKeyword(w string) bool {
	if p.peek().keyword(w) {
		p.at++
		return true
	}
	return false
}

func (p *parser) expect(op string) error {
	if !p.accept(op) {
		return p.errorf("want %q, not %s", op, p.peek())
	}
	return nil
}

func (p *parser) expectKind(kind tokenType, what string) (string, error) {
	if p.peek().kind != kind {
		return "", p.errorf("want %s, not %s", what, p.peek())
	}
	return p.next().text, nil
}

func (p *parser) name() (string, error) { return p.expectKind(tokenName, "a name") }

func (p *parser) tagEnd() error {
	_, err := p.expectKind(tokenTagEnd, "the end of the tag")
	return err
}

func (p *parser) enter() error {
	if p.depth++; p.depth > maxDepth {
		return p.errorf("nested deeper than %d", maxDepth)
	}
	return nil
}

func (p *parser) leave() { p.depth-- }

// body parses up to one of the given tags, which it leaves at its name, or to the
// end of the template.
func (p *parser) body(until ...string) (block, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	var out block
	for {
		switch t := p.next(); t.kind {
		case tokenEnd:
			if len(until) > 0 {
				return nil, p.errorf("want {%% %s %%} before the end of the template", until[0])
			}
			return out, nil
		case tokenData:
			text := Literal(t.text)
			out = append(out, func(f *frame) error { return f.emit(text) })
		case tokenOutput:
			e, err := p.tuple()
			if err != nil {
				return nil, err
			}
			if _, err := p.expectKind(tokenOutputEnd, "the end of the tag"); err != nil {
				return nil, err
			}
			line := t.line
			out = append(out, func(f *frame) error {
				v, err := e(f)
				if err != nil {
					return atLine(line, err)
				}
				t, err := f.run.text(v)
				if err != nil {
					return atLine(line, err)
				}
				return f.emit(t)
			})
		case tokenTag:
			if p.peek().kind == tokenName && slices.Contains(until, p.peek().text) {
				return out, nil
			}
			s, err := p.statement()
			if err != nil {
				return nil, err
			}
			out = append(out, s)
		default:
			return nil, p.errorf("unexpected %s", t)
		}
	}
}

// atLine names the line of an error once, and leaves refusals and loop exits alone.
func atLine(line int, err error) error {
	var refusal *Refusal
	var placed *lineError
	if errors.Is(err, errBreak) || errors.Is(err, errContinue) || errors.As(err, &refusal) || errors.As(err, &placed) {
		return err
	}
	return &lineError{line, err}
}

type lineError struct {
	line int
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e *lineError) Unwrap() error { return e.err }

func (f *frame) emit(t Text) error {
	if err := f.run.charge(len(t.s)); err != nil {
		return err
	}
	if f.run.out == nil {
		f.run.out = &builder{}
	}
	if len(f.run.out.b)+len(t.s) > maxOutput {
		return errTooLong
	}
	f.run.out.addText(t)
	return nil
}

func (p *parser) statement() (stmt, error) {
	line := p.peek().line
	word, err := p.name()
	if err != nil {
		return nil, err
	}
	var s stmt
	switch word {
	case "if":
		s, err = p.ifTag()
	case "for":
		s, err = p.forTag()
	case "set":
		s, err = p.setTag()
	case "macro":
		s, err = p.macroTag()
	case "generation":
		s, err = p.generationTag()
	case "break", "continue":
		s, err = func(*frame) error { return errBreak }, p.tagEnd()
		if word == "continue" {
			s = func(*frame) error { return errContinue }
		}
	case "do":
		s, err = p.doTag()
	default:
		return nil, fmt.Errorf("line %d: {%% %.30s %%} is not supported", line, word)
	}
	if err != nil {
		return nil, err
	}
	return func(f *frame) error {
		if err := s(f); err != nil {
			return atLine(line, err)
		}
		return nil
	}, nil
}

func (p *parser) ifTag() (stmt, error) {
	cond, err := p.tuple()
	if err != nil {
		return nil, err
	}
	if err := p.tagEnd(); err != nil {
		return nil, err
	}
	then, err := p.body("elif", "else", "endif")
	if err != nil {
		return nil, err
	}
	var otherwise block
	switch p.next().text {
	case "elif":
		// Each elif is an if in the else of the one before; they count as nesting.
		if err := p.enter(); err != nil {
			return nil, err
		}
		defer p.leave()
		s, err := p.ifTag()
		if err != nil {
			return nil, err
		}
		otherwise = block{s}
	case "else":
		if err := p.tagEnd(); err != nil {
			return nil, err
		}
		if otherwise, err = p.body("endif"); err != nil {
			return nil, err
		}
		p.next()
		err = p.tagEnd()
	default:
		err = p.tagEnd()
	}
	if err != nil {
		return nil, err
	}
	return func(f *frame) error {
		v, err := cond(f)
		if err != nil {
			return err
		}
		if truth(v) {
			return then.exec(f)
		}
		return otherwise.exec(f)
	}, nil
}

func (p *parser) generationTag() (stmt, error) {
	if err := p.tagEnd(); err != nil {
		return nil, err
	}
	b, err := p.body("endgeneration")
	if err != nil {
		return nil, err
	}
	p.next()
	return b.exec, p.tagEnd()
}

func (p *parser) doTag() (stmt, error) {
	e, err := p.tuple()
	if err != nil {
		return nil, err
	}
	return func(f *frame) error {
		_, err := e(f)
		return err
	}, p.tagEnd()
}

// target is what can be assigned to: a name, a name of a namespace, or a list of names.
func (p *parser) target() (func(f *frame, v any) error, error) {
	var names []string
	for {
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		names = append(names, name)
		if len(names) == 1 && p.accept(".") {
			field, err := p.name()
			if err != nil {
				return nil, err
			}
			return func(f *frame, v any) error {
				ns, ok := f.lookup(name).(*namespace)
				if !ok {
					return fmt.Errorf("%s is no namespace", name)
				}
				ns.set(Literal(field), v)
				return nil
			}, nil
		}
		if !p.accept(",") {
			break
		}
	}
	if len(names) == 1 {
		return func(f *frame, v any) error {
			f.set(names[0], v)
			return nil
		}, nil
	}
	return func(f *frame, v any) error {
		items, err := f.run.iterate(v)
		if err != nil {
			return err
		}
		if len(items) != len(names) {
			return fmt.Errorf("%d values for %d names", len(items), len(names))
		}
		for i, name := range names {
			f.set(name, items[i])
		}
		return nil
	}, nil
}

func (p *parser) setTag() (stmt, error) {
	assign, err := p.target()
	if err != nil {
		return nil, err
	}
	if p.accept("=") {
		e, err := p.tuple()
		if err != nil {
			return nil, err
		}
		return func(f *frame) error {
			v, err := e(f)
			if err != nil {
				return err
			}
			return assign(f, v)
		}, p.tagEnd()
	}
	if err := p.tagEnd(); err != nil {
		return nil, err
	}
	b, err := p.body("endset")
	if err != nil {
		return nil, err
	}
	p.next()
	return func(f *frame) error {
		t, err := b.capture(&frame{run: f.run, parent: f})
		if err != nil {
			return err
		}
		return assign(f, t)
	}, p.tagEnd()
}

type param struct {
	name     string
	fallback expr
}

func (p *parser) params() ([]param, error) {
	if err := p.expect("("); err != nil {
		return nil, err
	}
	var out []param
	for !p.accept(")") {
		if len(out) > 0 {
			if err := p.expect(","); err != nil {
				return nil, err
			}
		}
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		a := param{name: name}
		if p.accept("=") {
			if a.fallback, err = p.expression(); err != nil {
				return nil, err
			}
		}
		out = append(out, a)
	}
	return out, nil
}

func (p *parser) macroTag() (stmt, error) {
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	params, err := p.params()
	if err != nil {
		return nil, err
	}
	if err := p.tagEnd(); err != nil {
		return nil, err
	}
	b, err := p.body("endmacro")
	if err != nil {
		return nil, err
	}
	p.next()
	return func(f *frame) error {
		f.set(name, function(func(run *run, args []any, named map[string]any) (any, error) {
			return callMacro(run, name, params, b, args, named)
		}))
		return nil
	}, p.tagEnd()
}

func callMacro(run *run, name string, params []param, b block, args []any, named map[string]any) (any, error) {
	if err := run.enter(); err != nil {
		return nil, err
	}
	defer run.leave()
	if len(args) > len(params) {
		return nil, fmt.Errorf("%s takes %d arguments, not %d", name, len(params), len(args))
	}
	f := &frame{run: run, parent: run.root}
	for i, a := range params {
		v, ok := named[a.name]
		switch {
		case i < len(args):
			v = args[i]
		case ok:
		case a.fallback != nil:
			var err error
			if v, err = a.fallback(f); err != nil {
				return nil, err
			}
		default:
			v = undefined{a.name}
		}
		f.set(a.name, v)
	}
	return b.capture(f)
}
