package jinja

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

var filters = map[string]filter{
	"trim": onText(strip(true, true)), "upper": onText(textMethods["upper"]), "lower": onText(textMethods["lower"]),
	"title": onText(textMethods["title"]), "capitalize": onText(capitalize), "replace": onText(replaceText),
	"string": func(r *run, v any, _ call) (any, error) { return r.text(v) },
	// There is no HTML here, so nothing is escaped and everything is safe.
	"safe":    func(_ *run, v any, _ call) (any, error) { return v, nil },
	"tojson":  toJSON,
	"length":  length,
	"count":   length,
	"default": fallback,
	"d":       fallback,
	"join": func(r *run, v any, c call) (any, error) {
		sep, err := c.text(0, "d", "")
		if err != nil {
			return nil, err
		}
		if name, ok := c.arg(1, "attribute"); ok {
			if v, err = mapItems(r, v, call{named: map[string]any{"attribute": name}}); err != nil {
				return nil, err
			}
		}
		return joinItems(r, v, sep)
	},
	"first": func(r *run, v any, _ call) (any, error) { return end(r, v, 0) },
	"last":  func(r *run, v any, _ call) (any, error) { return end(r, v, -1) },
	"list": func(r *run, v any, _ call) (any, error) {
		items, err := r.iterate(v)
		return NewList(slices.Clone(items)...), err
	},
	"reverse": reverse,
	"items":   items,
	"dictsort": func(r *run, v any, _ call) (any, error) {
		l, err := items(r, v, call{})
		if err != nil {
			return nil, err
		}
		slices.SortStableFunc(l.(*List).items, func(a, b any) int {
			return strings.Compare(strings.ToLower(toText(a.(*List).items[0]).s), strings.ToLower(toText(b.(*List).items[0]).s))
		})
		return l, nil
	},
	"sort": sortItems, "unique": unique, "indent": onText(indent), "map": mapItems,
	"select": choose(false, true), "reject": choose(false, false),
	"selectattr": choose(true, true), "rejectattr": choose(true, false),
	"int": toInt, "float": toFloat, "abs": absolute, "round": round,
}

// onText makes a filter of a method: other values are turned into text first.
func onText(m textMethod) filter {
	return func(r *run, v any, c call) (any, error) {
		t, err := r.text(v)
		if err != nil {
			return nil, err
		}
		return m(r, t, c)
	}
}

func toJSON(r *run, v any, c call) (any, error) {
	n, err := c.integer(-1, "indent", -1)
	if len(c.args) > 0 {
		// In the templates' own tojson the first argument is ensure_ascii.
		n, err = c.integer(1, "indent", n)
	}
	if err != nil || n > 16 {
		return nil, errors.Join(err, fmt.Errorf("tojson with an indent of %d", n))
	}
	return r.json(v, n)
}

func length(r *run, v any, _ call) (any, error) {
	switch x := v.(type) {
	case Text:
		return int64(x.length()), r.charge(len(x.s))
	case *List:
		return int64(len(x.items)), nil
	case *Dict:
		return int64(len(x.keys)), nil
	case undefined:
		return int64(0), nil
	}
	return nil, fmt.Errorf("%s has no length", describe(v))
}

func fallback(_ *run, v any, c call) (any, error) {
	if is[undefined](v) || c.flag(1, "boolean") && !truth(v) {
		if d, ok := c.arg(0, "default_value"); ok {
			return d, nil
		}
		return Text{}, nil
	}
	return v, nil
}

func joinItems(r *run, v any, sep Text) (any, error) {
	items, err := r.iterate(v)
	if err != nil {
		return nil, err
	}
	var b builder
	for i, item := range items {
		t, err := r.text(item)
		if err != nil {
			return nil, err
		}
		if err := r.charge(len(t.s) + len(sep.s) + 1); err != nil {
			return nil, err
		}
		if i > 0 {
			b.addText(sep)
		}
		b.addText(t)
	}
	return b.text(), nil
}

func end(r *run, v any, at int64) (any, error) {
	items, err := r.iterate(v)
	if err != nil {
		return nil, err
	}
	return getItem(NewList(items...), at)
}

func reverse(r *run, v any, _ call) (any, error) {
	return r.slice(v, [3]any{nil, nil, int64(-1)})
}

func items(r *run, v any, _ call) (any, error) {
	switch x := v.(type) {
	case *Dict:
		return pairs(r, x)
	case undefined:
		return NewList(), nil
	}
	return nil, fmt.Errorf("items of %s", describe(v))
}

func sortItems(r *run, v any, c call) (any, error) {
	list, err := r.iterate(v)
	if err != nil {
		return nil, err
	}
	list = slices.Clone(list)
	path, err := c.text(2, "attribute", "")
	if err != nil {
		return nil, err
	}
	fold := !c.flag(1, "case_sensitive")
	key := func(v any) any {
		if path.s != "" {
			if v, err = attributePath(v, path.s); err != nil {
				return nil
			}
		}
		if t, ok := v.(Text); ok && fold {
			return t.mapParts(strings.ToLower)
		}
		return v
	}
	slices.SortStableFunc(list, func(a, b any) int {
		n, e := r.order(key(a), key(b))
		if err == nil {
			err = e
		}
		return n
	})
	if c.flag(0, "reverse") {
		slices.Reverse(list)
	}
	return &List{items: list}, err
}

func unique(r *run, v any, _ call) (any, error) {
	list, err := r.iterate(v)
	if err != nil {
		return nil, err
	}
	out := NewList()
	for _, item := range list {
		seen, err := r.contains(out, item)
		if err != nil {
			return nil, err
		}
		if !seen {
			out.items = append(out.items, item)
		}
	}
	return out, nil
}

func indent(r *run, t Text, c call) (any, error) {
	pad, err := c.text(0, "width", "    ")
	if err != nil {
		n, err := c.integer(0, "width", 4)
		if err != nil || n < 0 || n > 64 {
			return nil, errors.New("indent takes a width up to 64")
		}
		pad = Literal(strings.Repeat(" ", n))
	}
	if err := r.charge(16 * len(t.s)); err != nil {
		return nil, err
	}
	var b builder
	for i, line := range t.split("\n", -1) {
		l := line.(Text)
		if err := r.charge(len(pad.s)); err != nil {
			return nil, err
		}
		if i > 0 {
			b.add("\n", false)
		}
		if i == 0 && c.flag(1, "first") || i > 0 && (l.s != "" || c.flag(2, "blank")) {
			b.addText(pad)
		}
		b.addText(l)
	}
	return b.text(), nil
}

func attributePath(v any, path string) (any, error) {
	for _, name := range strings.Split(path, ".") {
		var err error
		if v, err = getItem(v, Literal(name)); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func mapItems(r *run, v any, c call) (any, error) {
	list, err := r.iterate(v)
	if err != nil {
		return nil, err
	}
	apply := func(item any) (any, error) {
		path, err := c.text(-1, "attribute", "")
		if len(c.args) > 0 || err != nil {
			return nil, errors.Join(err, errors.New("map lacks its filter"))
		}
		got, err := attributePath(item, path.s)
		if d, ok := c.named["default"]; ok && is[undefined](got) {
			return d, err
		}
		return got, err
	}
	if len(c.args) > 0 {
		name, err := c.text(0, "filter", "")
		if err != nil {
			return nil, err
		}
		fn, ok := r.filters[name.s]
		if !ok {
			return nil, fmt.Errorf("filter %.30q is not supported", name.s)
		}
		apply = func(item any) (any, error) { return fn(r, item, call{c.args[1:], c.named}) }
	}
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	out := make([]any, len(list))
	for i, item := range list {
		if err := r.step(); err != nil {
			return nil, err
		}
		if out[i], err = apply(item); err != nil {
			return nil, err
		}
	}
	return &List{items: out}, nil
}

// choose is select, reject and their attr forms: items for which a test holds.
func choose(attr, keep bool) filter {
	return func(r *run, v any, c call) (any, error) {
		list, err := r.iterate(v)
		if err != nil {
			return nil, err
		}
		var path Text
		args := c.args
		if attr {
			if path, err = c.text(0, "attribute", ""); err != nil || len(args) == 0 {
				return nil, errors.Join(err, errors.New("selectattr lacks its attribute"))
			}
			args = args[1:]
		}
		check := func(_ *run, v any, _ call) (bool, error) { return truth(v), nil }
		if len(args) > 0 {
			name := toText(args[0]).s
			if name == "==" {
				name = "eq"
			}
			fn, ok := tests[name]
			if !ok {
				return nil, fmt.Errorf("test %.30q is not supported", name)
			}
			check, args = fn, args[1:]
		}
		out := NewList()
		for _, item := range list {
			if err := r.step(); err != nil {
				return nil, err
			}
			value := item
			if attr {
				if value, err = attributePath(item, path.s); err != nil {
					return nil, err
				}
			}
			ok, err := check(r, value, call{args, nil})
			if err != nil {
				return nil, err
			}
			if ok == keep {
				out.items = append(out.items, item)
			}
		}
		return out, nil
	}
}

func toInt(_ *run, v any, c call) (any, error) {
	fallback, err := c.integer(0, "default", 0)
	switch x := v.(type) {
	case bool:
		if x {
			return int64(1), nil
		}
		return int64(0), nil
	case int64:
		return x, nil
	case float64:
		if math.Abs(x) < 1<<62 {
			return int64(x), nil
		}
	case Text:
		if n, err := strconv.ParseInt(strings.TrimSpace(x.s), 10, 64); err == nil {
			return n, nil
		}
		if f, err := strconv.ParseFloat(strings.TrimSpace(x.s), 64); err == nil && math.Abs(f) < 1<<62 {
			return int64(f), nil
		}
	}
	return int64(fallback), err
}

func toFloat(_ *run, v any, _ call) (any, error) {
	if x, ok := number(v); ok {
		return x, nil
	}
	if t, ok := v.(Text); ok {
		if f, err := strconv.ParseFloat(strings.TrimSpace(t.s), 64); err == nil {
			return f, nil
		}
	}
	return 0.0, nil
}

func absolute(_ *run, v any, _ call) (any, error) {
	switch x := v.(type) {
	case int64:
		return max(x, -x), nil
	case float64:
		return math.Abs(x), nil
	}
	return nil, fmt.Errorf("abs of %s", describe(v))
}

func round(_ *run, v any, c call) (any, error) {
	x, ok := number(v)
	n, err := c.integer(0, "precision", 0)
	if !ok || err != nil || n < 0 || n > 15 {
		return nil, errors.Join(err, fmt.Errorf("round of %s", describe(v)))
	}
	s := strconv.FormatFloat(x, 'f', n, 64)
	return strconv.ParseFloat(s, 64)
}
