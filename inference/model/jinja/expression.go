package jinja

import "strconv"

// tuple parses an expression, or several with commas between them as a list.
func (p *parser) tuple() (expr, error) {
	e, err := p.expression()
	if err != nil || !p.peek().is(",") {
		return e, err
	}
	items := []expr{e}
	for p.accept(",") {
		if e, err = p.expression(); err != nil {
			return nil, err
		}
		items = append(items, e)
	}
	return listOf(items, true), nil
}

func listOf(items []expr, tuple bool) expr {
	return func(f *frame) (any, error) {
		out := make([]any, len(items))
		for i, e := range items {
			var err error
			if out[i], err = e(f); err != nil {
				return nil, err
			}
		}
		return &List{out, tuple}, nil
	}
}

func (p *parser) expression() (expr, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	e, err := p.or()
	for err == nil && p.acceptKeyword("if") {
		e, err = p.conditional(e)
	}
	return e, err
}

func (p *parser) conditional(then expr) (expr, error) {
	cond, err := p.or()
	if err != nil {
		return nil, err
	}
	otherwise := expr(func(*frame) (any, error) { return undefined{"value of an if without else"}, nil })
	if p.acceptKeyword("else") {
		if otherwise, err = p.expression(); err != nil {
			return nil, err
		}
	}
	return func(f *frame) (any, error) {
		v, err := cond(f)
		if err != nil {
			return nil, err
		}
		if truth(v) {
			return then(f)
		}
		return otherwise(f)
	}, nil
}

func (p *parser) or() (expr, error) {
	left, err := p.and()
	for err == nil && p.acceptKeyword("or") {
		left, err = p.lazy(left, p.and, true)
	}
	return left, err
}

func (p *parser) and() (expr, error) {
	left, err := p.not()
	for err == nil && p.acceptKeyword("and") {
		left, err = p.lazy(left, p.not, false)
	}
	return left, err
}

// lazy is and/or: the left value when its truth is enough, else the right one.
func (p *parser) lazy(left expr, operand func() (expr, error), enough bool) (expr, error) {
	right, err := operand()
	if err != nil {
		return nil, err
	}
	return func(f *frame) (any, error) {
		if err := f.run.step(); err != nil {
			return nil, err
		}
		v, err := left(f)
		if err != nil || truth(v) == enough {
			return v, err
		}
		return right(f)
	}, nil
}

func (p *parser) not() (expr, error) {
	if !p.acceptKeyword("not") {
		return p.compare()
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	e, err := p.not()
	if err != nil {
		return nil, err
	}
	return func(f *frame) (any, error) {
		v, err := e(f)
		return !truth(v), err
	}, nil
}

// compare parses a chain: a < b < c holds when each pair does.
func (p *parser) compare() (expr, error) {
	e, err := p.sum()
	if err != nil {
		return nil, err
	}
	operands, ops := []expr{e}, []string(nil)
	for {
		op := p.compareOp()
		if op == "" {
			break
		}
		if e, err = p.sum(); err != nil {
			return nil, err
		}
		operands, ops = append(operands, e), append(ops, op)
	}
	if len(ops) == 0 {
		return e, nil
	}
	return func(f *frame) (any, error) {
		left, err := operands[0](f)
		if err != nil {
			return nil, err
		}
		for i, op := range ops {
			right, err := operands[i+1](f)
			if err != nil {
				return nil, err
			}
			ok, err := f.run.compare(op, left, right)
			if err != nil || !ok {
				return false, err
			}
			left = right
		}
		return true, nil
	}, nil
}

func (p *parser) compareOp() string {
	t := p.peek()
	switch {
	case t.kind == tokenOp:
		switch t.text {
		case "==", "!=", "<", ">", "<=", ">=":
			return p.next().text
		}
	case t.keyword("in"):
		return p.next().text
	case t.keyword("not") && p.tokens[p.at+1].keyword("in"):
		p.at += 2
		return "not in"
	}
	return ""
}

// binary parses a left-associative chain of the given operators.
func (p *parser) binary(operand func() (expr, error), ops ...string) (expr, error) {
	left, err := operand()
	for err == nil {
		op := ""
		for _, o := range ops {
			if p.accept(o) {
				op = o
				break
			}
		}
		if op == "" {
			return left, nil
		}
		var right expr
		if right, err = operand(); err != nil {
			return nil, err
		}
		a := left
		left = func(f *frame) (any, error) {
			if err := f.run.step(); err != nil {
				return nil, err
			}
			x, err := a(f)
			if err != nil {
				return nil, err
			}
			y, err := right(f)
			if err != nil {
				return nil, err
			}
			return f.run.arithmetic(op, x, y)
		}
	}
	return nil, err
}

func (p *parser) sum() (expr, error)     { return p.binary(p.joined, "+", "-") }
func (p *parser) joined() (expr, error)  { return p.binary(p.product, "~") }
func (p *parser) product() (expr, error) { return p.binary(p.power, "*", "//", "/", "%") }
func (p *parser) power() (expr, error)   { return p.binary(p.unary, "**") }

func (p *parser) unary() (expr, error) {
	e, err := p.signed()
	if err != nil {
		return nil, err
	}
	return p.filters(e)
}

func (p *parser) signed() (expr, error) {
	minus := p.accept("-")
	if !minus && !p.accept("+") {
		e, err := p.primary()
		if err != nil {
			return nil, err
		}
		return p.postfix(e)
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	e, err := p.signed()
	if err != nil || !minus {
		return e, err
	}
	return func(f *frame) (any, error) {
		v, err := e(f)
		if err != nil {
			return nil, err
		}
		return f.run.arithmetic("-", int64(0), v)
	}, nil
}

func constant(v any) expr { return func(*frame) (any, error) { return v, nil } }

func (p *parser) primary() (expr, error) {
	t := p.peek()
	switch t.kind {
	case tokenString:
		s := ""
		for p.peek().kind == tokenString {
			s += p.next().text
		}
		return constant(Literal(s)), nil
	case tokenInt:
		n, err := strconv.ParseInt(t.text, 10, 64)
		if err != nil {
			return nil, p.errorf("number %.30s is too large", t.text)
		}
		p.next()
		return constant(n), nil
	case tokenFloat:
		x, err := strconv.ParseFloat(t.text, 64)
		if err != nil {
			return nil, p.errorf("number %.30s is too large", t.text)
		}
		p.next()
		return constant(x), nil
	case tokenName:
		p.next()
		switch t.text {
		case "true", "True":
			return constant(true), nil
		case "false", "False":
			return constant(false), nil
		case "none", "None":
			return constant(nil), nil
		}
		return func(f *frame) (any, error) { return f.lookup(t.text), f.run.step() }, nil
	}
	switch {
	case p.accept("("):
		return p.parenthesis()
	case p.accept("["):
		items, err := p.items("]")
		return listOf(items, false), err
	case p.accept("{"):
		return p.dict()
	}
	return nil, p.errorf("want a value, not %s", t)
}

func (p *parser) parenthesis() (expr, error) {
	if p.accept(")") {
		return listOf(nil, true), nil
	}
	e, err := p.expression()
	if err != nil {
		return nil, err
	}
	if p.accept(",") {
		items, err := p.items(")")
		return listOf(append([]expr{e}, items...), true), err
	}
	return e, p.expect(")")
}

func (p *parser) items(closer string) ([]expr, error) {
	var out []expr
	for !p.accept(closer) {
		if len(out) > 0 {
			if err := p.expect(","); err != nil {
				return nil, err
			}
			if p.accept(closer) {
				break
			}
		}
		e, err := p.expression()
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

func (p *parser) dict() (expr, error) {
	var keys, values []expr
	for !p.accept("}") {
		if len(keys) > 0 {
			if err := p.expect(","); err != nil {
				return nil, err
			}
			if p.accept("}") {
				break
			}
		}
		k, err := p.expression()
		if err != nil {
			return nil, err
		}
		if err := p.expect(":"); err != nil {
			return nil, err
		}
		v, err := p.expression()
		if err != nil {
			return nil, err
		}
		keys, values = append(keys, k), append(values, v)
	}
	return func(f *frame) (any, error) {
		d := NewDict()
		for i := range keys {
			k, err := keys[i](f)
			if err != nil {
				return nil, err
			}
			v, err := values[i](f)
			if err != nil {
				return nil, err
			}
			d.set(toText(k), v)
		}
		return d, nil
	}, nil
}
