package jinja

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// call holds the arguments of a filter, a test or a method.
type call struct {
	args  []any
	named map[string]any
}

// arg returns argument i or the one of this name.
func (c call) arg(i int, name string) (any, bool) {
	if i >= 0 && i < len(c.args) {
		return c.args[i], true
	}
	v, ok := c.named[name]
	return v, ok
}

func (c call) text(i int, name, fallback string) (Text, error) {
	v, ok := c.arg(i, name)
	if !ok || v == nil {
		return Literal(fallback), nil
	}
	t, ok := v.(Text)
	if !ok {
		return Text{}, fmt.Errorf("argument %s is %s: want text", name, describe(v))
	}
	return t, nil
}

func (c call) integer(i int, name string, fallback int) (int, error) {
	v, ok := c.arg(i, name)
	if !ok || v == nil {
		return fallback, nil
	}
	n, ok := v.(int64)
	if !ok || n > 1<<31 || n < -1<<31 {
		return 0, fmt.Errorf("argument %s is %s: want a number", name, describe(v))
	}
	return int(n), nil
}

func (c call) flag(i int, name string) bool {
	v, _ := c.arg(i, name)
	return truth(v)
}

// globals are the functions every template sees. There is no clock: strftime_now
// is undefined, and templates that ask for it first use their fixed date.
var globals = map[string]function{
	"raise_exception": func(r *run, args []any, _ map[string]any) (any, error) {
		message := "the template refuses the messages"
		if len(args) > 0 {
			message = toText(args[0]).s
		}
		return nil, &Refusal{message}
	},
	"namespace": func(_ *run, args []any, named map[string]any) (any, error) {
		ns := &namespace{NewDict()}
		for _, a := range args {
			d, ok := a.(*Dict)
			if !ok {
				return nil, fmt.Errorf("namespace of %s", describe(a))
			}
			for i, k := range d.keys {
				ns.set(k, d.values[i])
			}
		}
		setNamed(ns.Dict, named)
		return ns, nil
	},
	"dict": func(_ *run, _ []any, named map[string]any) (any, error) {
		d := NewDict()
		setNamed(d, named)
		return d, nil
	},
	"range": rangeOf,
}

// setNamed sets keyword arguments in the order of their names: the order they were
// written in is not kept, and nothing may depend on that of a map.
func setNamed(d *Dict, named map[string]any) {
	names := make([]string, 0, len(named))
	for name := range named {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		d.Set(name, named[name])
	}
}

func rangeOf(r *run, args []any, _ map[string]any) (any, error) {
	n := [3]int64{0, 0, 1}
	for i, a := range args {
		x, ok := a.(int64)
		if !ok || i > 2 {
			return nil, errors.New("range takes 1 to 3 numbers")
		}
		n[i] = x
	}
	switch len(args) {
	case 0:
		return nil, errors.New("range takes 1 to 3 numbers")
	case 1:
		n[0], n[1] = 0, n[0]
	}
	if n[2] == 0 {
		return nil, errors.New("range with a step of 0")
	}
	l := NewList()
	for i := n[0]; n[2] > 0 && i < n[1] || n[2] < 0 && i > n[1]; i += n[2] {
		if len(l.items) >= 100000 {
			return nil, errTooLong
		}
		l.items = append(l.items, i)
	}
	return l, r.charge(16 * len(l.items))
}

type filter func(r *run, v any, c call) (any, error)

type test func(r *run, v any, c call) (bool, error)

var tests = map[string]test{
	"defined":   func(_ *run, v any, _ call) (bool, error) { return !is[undefined](v), nil },
	"undefined": func(_ *run, v any, _ call) (bool, error) { return is[undefined](v), nil },
	"none":      func(_ *run, v any, _ call) (bool, error) { return v == nil, nil },
	"string":    func(_ *run, v any, _ call) (bool, error) { return is[Text](v), nil },
	"boolean":   func(_ *run, v any, _ call) (bool, error) { return is[bool](v), nil },
	"integer":   func(_ *run, v any, _ call) (bool, error) { return is[int64](v), nil },
	"float":     func(_ *run, v any, _ call) (bool, error) { return is[float64](v), nil },
	"number":    func(_ *run, v any, _ call) (bool, error) { _, ok := number(v); return ok, nil },
	"mapping":   func(_ *run, v any, _ call) (bool, error) { return is[*Dict](v), nil },
	"callable":  func(_ *run, v any, _ call) (bool, error) { return is[function](v), nil },
	"sequence":  func(_ *run, v any, _ call) (bool, error) { return is[Text](v) || is[*List](v) || is[*Dict](v), nil },
	"iterable": func(_ *run, v any, _ call) (bool, error) {
		return is[Text](v) || is[*List](v) || is[*Dict](v) || is[undefined](v), nil
	},
	"true":  func(_ *run, v any, _ call) (bool, error) { return v == any(true), nil },
	"false": func(_ *run, v any, _ call) (bool, error) { return v == any(false), nil },
	"odd":   func(_ *run, v any, _ call) (bool, error) { n, ok := v.(int64); return ok && n%2 != 0, nil },
	"even":  func(_ *run, v any, _ call) (bool, error) { n, ok := v.(int64); return ok && n%2 == 0, nil },
	"divisibleby": func(_ *run, v any, c call) (bool, error) {
		n, ok := v.(int64)
		d, err := c.integer(0, "num", 0)
		return ok && d != 0 && n%int64(d) == 0, err
	},
	"equalto": compareTest("=="), "eq": compareTest("=="), "ne": compareTest("!="), "in": compareTest("in"),
	"lt": compareTest("<"), "le": compareTest("<="), "gt": compareTest(">"), "ge": compareTest(">="),
}

func is[T any](v any) bool { _, ok := v.(T); return ok }

func compareTest(op string) test {
	return func(r *run, v any, c call) (bool, error) {
		other, ok := c.arg(0, "other")
		if !ok {
			return false, errors.New("a test lacks its argument")
		}
		return r.compare(op, v, other)
	}
}

// strip removes white space, or the characters of the argument, at the ends.
func strip(left, right bool) func(r *run, t Text, c call) (any, error) {
	return func(r *run, t Text, c call) (any, error) {
		chars, err := c.text(0, "chars", "")
		if err != nil {
			return nil, err
		}
		cut := unicode.IsSpace
		if chars.s != "" {
			cut = func(x rune) bool { return strings.ContainsRune(chars.s, x) }
		}
		return t.trim(left, right, cut), r.charge(len(t.s))
	}
}

type textMethod func(r *run, t Text, c call) (any, error)

var textMethods = map[string]textMethod{
	"strip": strip(true, true), "lstrip": strip(true, false), "rstrip": strip(false, true),
	"upper": mapText(strings.ToUpper), "lower": mapText(strings.ToLower),
	"title": mapText(title), "capitalize": capitalize,
	"startswith": affix(strings.HasPrefix), "endswith": affix(strings.HasSuffix),
	"removeprefix": func(r *run, t Text, c call) (any, error) {
		p, err := c.text(0, "prefix", "")
		if err == nil && strings.HasPrefix(t.s, p.s) {
			t = t.slice(len(p.s), len(t.s))
		}
		return t, err
	},
	"removesuffix": func(r *run, t Text, c call) (any, error) {
		p, err := c.text(0, "suffix", "")
		if err == nil && strings.HasSuffix(t.s, p.s) {
			t = t.slice(0, len(t.s)-len(p.s))
		}
		return t, err
	},
	"split": splitText, "splitlines": splitLines, "replace": replaceText,
	"find": func(r *run, t Text, c call) (any, error) {
		sub, err := c.text(0, "sub", "")
		i := strings.Index(t.s, sub.s)
		if i > 0 {
			i = t.slice(0, i).length()
		}
		return int64(i), errors.Join(err, r.charge(len(t.s)))
	},
	"count": func(r *run, t Text, c call) (any, error) {
		sub, err := c.text(0, "sub", "")
		return int64(strings.Count(t.s, sub.s)), errors.Join(err, r.charge(len(t.s)))
	},
	"isdigit": func(r *run, t Text, _ call) (any, error) {
		return t.s != "" && strings.IndexFunc(t.s, func(x rune) bool { return !unicode.IsDigit(x) }) < 0, r.charge(len(t.s))
	},
	"join": func(r *run, t Text, c call) (any, error) {
		v, _ := c.arg(0, "iterable")
		return joinItems(r, v, t)
	},
}

func mapText(f func(string) string) textMethod {
	return func(r *run, t Text, _ call) (any, error) { return t.mapParts(f), r.charge(2 * len(t.s)) }
}

// title makes each word start with a capital.
func title(s string) string {
	start := true
	return strings.Map(func(c rune) rune {
		was := start
		start = !unicode.IsLetter(c)
		if was {
			return unicode.ToTitle(c)
		}
		return unicode.ToLower(c)
	}, s)
}

func capitalize(r *run, t Text, _ call) (any, error) {
	at := t.runes()
	if len(at) < 2 {
		return t, nil
	}
	return concat(t.slice(0, at[1]).mapParts(strings.ToUpper), t.slice(at[1], len(t.s)).mapParts(strings.ToLower)), r.charge(16 * len(at))
}

// affix is startswith and endswith: the argument is a text or a list of them.
func affix(has func(s, part string) bool) textMethod {
	return func(r *run, t Text, c call) (any, error) {
		v, _ := c.arg(0, "prefix")
		options := []any{v}
		if l, ok := v.(*List); ok {
			options = l.items
		}
		for _, o := range options {
			p, ok := o.(Text)
			if !ok {
				return nil, fmt.Errorf("argument is %s: want text", describe(o))
			}
			if has(t.s, p.s) {
				return true, nil
			}
		}
		return false, r.charge(len(options))
	}
}

func splitText(r *run, t Text, c call) (any, error) {
	sep, err := c.text(0, "sep", "")
	if err != nil {
		return nil, err
	}
	n, err := c.integer(1, "maxsplit", -1)
	if err != nil {
		return nil, err
	}
	if err := r.charge(16 * len(t.s)); err != nil {
		return nil, err
	}
	if sep.s != "" {
		return NewList(t.split(sep.s, n)...), nil
	}
	if v, ok := c.arg(0, "sep"); ok && v != nil {
		return nil, errors.New("split at an empty text")
	}
	// Without a separator words are what stands between white space.
	out := NewList()
	for at := 0; at < len(t.s); {
		rest := strings.TrimLeftFunc(t.s[at:], unicode.IsSpace)
		if at = len(t.s) - len(rest); rest == "" {
			break
		}
		end := strings.IndexFunc(rest, unicode.IsSpace)
		if end < 0 || n >= 0 && len(out.items) == n {
			end = len(rest)
		}
		out.items = append(out.items, t.slice(at, at+end))
		at += end
	}
	return out, nil
}

func splitLines(r *run, t Text, _ call) (any, error) {
	if t.s == "" {
		return NewList(), nil
	}
	trimmed := t.slice(0, len(strings.TrimSuffix(t.s, "\n")))
	out := NewList()
	for _, line := range trimmed.split("\n", -1) {
		l := line.(Text)
		out.items = append(out.items, l.slice(0, len(strings.TrimSuffix(l.s, "\r"))))
	}
	return out, r.charge(16 * len(t.s))
}

func replaceText(r *run, t Text, c call) (any, error) {
	old, err := c.text(0, "old", "")
	if err != nil {
		return nil, err
	}
	with, err := c.text(1, "new", "")
	if err != nil {
		return nil, err
	}
	n, err := c.integer(2, "count", -1)
	if err != nil {
		return nil, err
	}
	if old.s == "" {
		return nil, errors.New("replace of an empty text")
	}
	if err := r.charge(16*len(t.s) + strings.Count(t.s, old.s)*len(with.s)); err != nil {
		return nil, err
	}
	return t.replace(old.s, with, n), nil
}

var dictMethods = map[string]func(r *run, d *Dict, c call) (any, error){
	"keys": func(r *run, d *Dict, _ call) (any, error) {
		items, err := r.iterate(d)
		return NewList(items...), err
	},
	"values": func(r *run, d *Dict, _ call) (any, error) {
		return NewList(slices.Clone(d.values)...), r.charge(16 * len(d.values))
	},
	"items": func(r *run, d *Dict, _ call) (any, error) { return pairs(r, d) },
	"get": func(_ *run, d *Dict, c call) (any, error) {
		key, err := c.text(0, "key", "")
		if err != nil {
			return nil, err
		}
		if v, ok := d.get(key.s); ok {
			return v, nil
		}
		v, _ := c.arg(1, "default")
		return v, nil
	},
}

func pairs(r *run, d *Dict) (*List, error) {
	l := NewList()
	for i, k := range d.keys {
		l.items = append(l.items, &List{[]any{k, d.values[i]}, true})
	}
	return l, r.charge(64 * len(d.keys))
}
