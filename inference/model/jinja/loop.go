package jinja

import "errors"

var (
	errBreak    = errors.New("break")
	errContinue = errors.New("continue")
)

type loop struct {
	assign    func(f *frame, v any) error
	items     expr
	only      expr // nil: all
	body      block
	otherwise block
}

func (p *parser) forTag() (stmt, error) {
	var l loop
	var err error
	if l.assign, err = p.target(); err != nil {
		return nil, err
	}
	if !p.acceptKeyword("in") {
		return nil, p.errorf("want in, not %s", p.peek())
	}
	// The items are no conditional expression: its if would be the loop's own.
	if l.items, err = p.or(); err != nil {
		return nil, err
	}
	if p.acceptKeyword("if") {
		if l.only, err = p.expression(); err != nil {
			return nil, err
		}
	}
	if err := p.tagEnd(); err != nil {
		return nil, err
	}
	if l.body, err = p.body("else", "endfor"); err != nil {
		return nil, err
	}
	if p.next().text == "else" {
		if err := p.tagEnd(); err != nil {
			return nil, err
		}
		if l.otherwise, err = p.body("endfor"); err != nil {
			return nil, err
		}
		p.next()
	}
	return l.exec, p.tagEnd()
}

func (l *loop) exec(f *frame) error {
	v, err := l.items(f)
	if err != nil {
		return err
	}
	items, err := f.run.iterate(v)
	if err != nil {
		return err
	}
	if items, err = l.filter(f, items); err != nil {
		return err
	}
	if len(items) == 0 {
		return l.otherwise.exec(f)
	}
	for i := range items {
		if err := f.run.step(); err != nil {
			return err
		}
		inner := &frame{run: f.run, parent: f}
		if err := l.assign(inner, items[i]); err != nil {
			return err
		}
		inner.set("loop", &loopVars{items, i})
		err := l.body.exec(inner)
		if errors.Is(err, errBreak) {
			return nil
		}
		if err != nil && !errors.Is(err, errContinue) {
			return err
		}
	}
	return nil
}

func (l *loop) filter(f *frame, items []any) ([]any, error) {
	if l.only == nil {
		return items, nil
	}
	var out []any
	for _, item := range items {
		inner := &frame{run: f.run, parent: f}
		if err := l.assign(inner, item); err != nil {
			return nil, err
		}
		v, err := l.only(inner)
		if err != nil {
			return nil, err
		}
		if truth(v) {
			out = append(out, item)
		}
	}
	return out, nil
}

// loopVars is what the name loop stands for in a body.
type loopVars struct {
	items []any
	i     int
}

func (l *loopVars) get(name string) any {
	n := len(l.items)
	switch name {
	case "index":
		return int64(l.i + 1)
	case "index0":
		return int64(l.i)
	case "revindex":
		return int64(n - l.i)
	case "revindex0":
		return int64(n - l.i - 1)
	case "first":
		return l.i == 0
	case "last":
		return l.i == n-1
	case "length":
		return int64(n)
	case "previtem":
		if l.i > 0 {
			return l.items[l.i-1]
		}
	case "nextitem":
		if l.i < n-1 {
			return l.items[l.i+1]
		}
	case "cycle":
		return function(func(_ *run, args []any, _ map[string]any) (any, error) {
			if len(args) == 0 {
				return nil, errors.New("loop.cycle takes at least 1 argument")
			}
			return args[l.i%len(args)], nil
		})
	}
	return undefined{"loop." + name}
}
