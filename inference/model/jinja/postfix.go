package jinja

import (
	"fmt"
	"strconv"
)

// postfix parses attributes, items, slices and calls.
func (p *parser) postfix(e expr) (expr, error) {
	for {
		var err error
		switch {
		case p.accept("."):
			e, err = p.attribute(e)
		case p.accept("["):
			e, err = p.subscript(e)
		case p.accept("("):
			e, err = p.call(e)
		default:
			return e, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (p *parser) attribute(e expr) (expr, error) {
	t := p.next()
	if t.kind != tokenName && t.kind != tokenInt {
		return nil, p.errorf("want a name, not %s", t)
	}
	return func(f *frame) (any, error) {
		v, err := e(f)
		if err != nil {
			return nil, err
		}
		if t.kind == tokenInt {
			n, _ := strconv.ParseInt(t.text, 10, 64)
			return getItem(v, n)
		}
		return getAttribute(v, t.text)
	}, nil
}

func (p *parser) subscript(e expr) (expr, error) {
	var bounds [3]expr
	colons := 0
	for !p.accept("]") {
		if p.accept(":") {
			if colons++; colons > 2 {
				return nil, p.errorf("a slice has at most two colons")
			}
			continue
		}
		if bounds[colons] != nil {
			return nil, p.errorf("want %q, not %s", "]", p.peek())
		}
		var err error
		if bounds[colons], err = p.expression(); err != nil {
			return nil, err
		}
	}
	if colons == 0 && bounds[0] == nil {
		return nil, p.errorf("a subscript is empty")
	}
	return func(f *frame) (any, error) {
		v, err := e(f)
		if err != nil {
			return nil, err
		}
		var at [3]any
		for i, b := range bounds {
			if b == nil {
				continue
			}
			if at[i], err = b(f); err != nil {
				return nil, err
			}
		}
		if colons == 0 {
			return getItem(v, at[0])
		}
		return f.run.slice(v, at)
	}, nil
}

// arguments parses what follows an opening parenthesis.
func (p *parser) arguments() (func(f *frame) ([]any, map[string]any, error), error) {
	var args []expr
	var names []string
	var values []expr
	for first := true; !p.accept(")"); first = false {
		if !first {
			if err := p.expect(","); err != nil {
				return nil, err
			}
			if p.accept(")") {
				break
			}
		}
		name := ""
		if p.peek().kind == tokenName && p.tokens[p.at+1].is("=") {
			name = p.next().text
			p.next()
		}
		e, err := p.expression()
		if err != nil {
			return nil, err
		}
		switch {
		case name != "":
			names, values = append(names, name), append(values, e)
		case len(names) > 0:
			return nil, p.errorf("an argument without a name follows one with a name")
		default:
			args = append(args, e)
		}
	}
	return func(f *frame) ([]any, map[string]any, error) {
		list := make([]any, len(args))
		for i, e := range args {
			var err error
			if list[i], err = e(f); err != nil {
				return nil, nil, err
			}
		}
		named := make(map[string]any, len(names))
		for i, e := range values {
			v, err := e(f)
			if err != nil {
				return nil, nil, err
			}
			named[names[i]] = v
		}
		return list, named, nil
	}, nil
}

func (p *parser) call(e expr) (expr, error) {
	arguments, err := p.arguments()
	if err != nil {
		return nil, err
	}
	return func(f *frame) (any, error) {
		if err := f.run.step(); err != nil {
			return nil, err
		}
		v, err := e(f)
		if err != nil {
			return nil, err
		}
		args, named, err := arguments(f)
		if err != nil {
			return nil, err
		}
		fn, ok := v.(function)
		if !ok {
			return nil, fmt.Errorf("%s is not callable", describe(v))
		}
		return fn(f.run, args, named)
	}, nil
}

// filters parses filters and tests behind a value.
func (p *parser) filters(e expr) (expr, error) {
	for {
		var err error
		switch {
		case p.accept("|"):
			e, err = p.filter(e)
		case p.acceptKeyword("is"):
			e, err = p.test(e)
		case p.peek().is("("):
			p.next()
			e, err = p.call(e)
		default:
			return e, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func noArguments(*frame) ([]any, map[string]any, error) { return nil, nil, nil }

func (p *parser) filter(e expr) (expr, error) {
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	fn, ok := filters[name]
	if !ok {
		return nil, p.errorf("filter %.30q is not supported", name)
	}
	arguments := noArguments
	if p.accept("(") {
		if arguments, err = p.arguments(); err != nil {
			return nil, err
		}
	}
	return func(f *frame) (any, error) {
		if err := f.run.step(); err != nil {
			return nil, err
		}
		v, err := e(f)
		if err != nil {
			return nil, err
		}
		args, named, err := arguments(f)
		if err != nil {
			return nil, err
		}
		return fn(f.run, v, call{args, named})
	}, nil
}

func (p *parser) test(e expr) (expr, error) {
	negate := p.acceptKeyword("not")
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	fn, ok := tests[name]
	if !ok {
		return nil, p.errorf("test %.30q is not supported", name)
	}
	arguments := noArguments
	if p.accept("(") {
		if arguments, err = p.arguments(); err != nil {
			return nil, err
		}
	} else if p.startsArgument() {
		arg, err := p.signed()
		if err != nil {
			return nil, err
		}
		arguments = func(f *frame) ([]any, map[string]any, error) {
			v, err := arg(f)
			return []any{v}, nil, err
		}
	}
	return func(f *frame) (any, error) {
		v, err := e(f)
		if err != nil {
			return nil, err
		}
		args, named, err := arguments(f)
		if err != nil {
			return nil, err
		}
		ok, err := fn(f.run, v, call{args, named})
		return ok != negate, err
	}, nil
}

// startsArgument reports whether a test's argument follows without parentheses.
func (p *parser) startsArgument() bool {
	switch t := p.peek(); t.kind {
	case tokenString, tokenInt, tokenFloat:
		return true
	case tokenName:
		switch t.text {
		case "else", "or", "and", "is", "if", "not", "in":
			return false
		}
		return true
	case tokenOp:
		return t.text == "[" || t.text == "{"
	}
	return false
}
