package jinja

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A value is nil (none), bool, int64, float64, Text, *List, *Dict, *namespace,
// *loopVars, function or undefined.

// List is a list. It does not change once made.
type List struct {
	items []any
	tuple bool // prints with round brackets
}

// NewList returns a list of the values.
func NewList(items ...any) *List { return &List{items: items} }

// All yields the items in order.
func (l *List) All() iter.Seq[any] { return slices.Values(l.items) }

// Dict is a mapping from text that keeps the order of its keys.
type Dict struct {
	keys   []Text
	values []any
	index  map[string]int
}

// NewDict returns an empty mapping.
func NewDict() *Dict { return &Dict{index: map[string]int{}} }

// Set sets a key of the template's side.
func (d *Dict) Set(key string, v any) { d.set(Literal(key), v) }

// Get returns the value of a key, nil where there is none.
func (d *Dict) Get(key string) any {
	v, _ := d.get(key)
	return v
}

func (d *Dict) set(key Text, v any) {
	if i, ok := d.index[key.s]; ok {
		d.values[i] = v
		return
	}
	d.index[key.s] = len(d.keys)
	d.keys = append(d.keys, key)
	d.values = append(d.values, v)
}

func (d *Dict) get(key string) (any, bool) {
	i, ok := d.index[key]
	if !ok {
		return nil, false
	}
	return d.values[i], true
}

// namespace is the one thing that a template can change from inside a loop.
type namespace struct{ *Dict }

type function func(run *run, args []any, named map[string]any) (any, error)

// undefined is what a name stands for that was never set.
type undefined struct{ name string }

func describe(v any) string {
	switch x := v.(type) {
	case nil:
		return "none"
	case undefined:
		return fmt.Sprintf("%.40q, which is undefined,", x.name)
	case Text:
		return "text"
	case bool, int64, float64:
		return fmt.Sprint(x)
	case *List:
		return "a list"
	case *Dict, *namespace, *loopVars:
		return "a mapping"
	}
	return "a function"
}

func truth(v any) bool {
	switch x := v.(type) {
	case bool:
		return x
	case int64:
		return x != 0
	case float64:
		return x != 0
	case Text:
		return x.s != ""
	case *List:
		return len(x.items) > 0
	case *Dict:
		return len(x.keys) > 0
	case *namespace, *loopVars, function:
		return true
	}
	return false
}

func number(v any) (float64, bool) {
	switch x := v.(type) {
	case bool:
		if x {
			return 1, true
		}
		return 0, true
	case int64:
		return float64(x), true
	case float64:
		return x, true
	}
	return 0, false
}

// iterate returns the items that a loop over v sees. The caller does not change them.
func (r *run) iterate(v any) ([]any, error) {
	switch x := v.(type) {
	case *List:
		return x.items, nil
	case *Dict:
		out := make([]any, len(x.keys))
		for i, k := range x.keys {
			out[i] = k
		}
		return out, r.charge(16 * len(out))
	case Text:
		at := x.runes()
		if err := r.charge(64 * len(at)); err != nil {
			return nil, err
		}
		out := make([]any, len(at)-1)
		for i := range out {
			out[i] = x.slice(at[i], at[i+1])
		}
		return out, nil
	case undefined:
		return nil, nil
	}
	return nil, fmt.Errorf("%s cannot be looped over", describe(v))
}

// getItem is v[key].
func getItem(v, key any) (any, error) {
	switch k := key.(type) {
	case int64:
		switch x := v.(type) {
		case *List:
			if i, ok := position(k, len(x.items)); ok {
				return x.items[i], nil
			}
			return undefined{fmt.Sprintf("item %d", k)}, nil
		case Text:
			at := x.runes()
			if i, ok := position(k, len(at)-1); ok {
				return x.slice(at[i], at[i+1]), nil
			}
			return undefined{fmt.Sprintf("character %d", k)}, nil
		}
	case Text:
		switch x := v.(type) {
		case *Dict:
			if item, ok := x.get(k.s); ok {
				return item, nil
			}
		case *namespace:
			if item, ok := x.get(k.s); ok {
				return item, nil
			}
		}
		return getAttribute(v, k.s)
	}
	if u, ok := v.(undefined); ok {
		return nil, fmt.Errorf("%.40q is undefined", u.name)
	}
	return undefined{"item"}, nil
}

func position(k int64, n int) (int, bool) {
	if k < 0 {
		k += int64(n)
	}
	return int(k), k >= 0 && k < int64(n)
}

// getAttribute is v.name: a method first, then an item.
func getAttribute(v any, name string) (any, error) {
	switch x := v.(type) {
	case undefined:
		return nil, fmt.Errorf("%.40q is undefined", x.name)
	case Text:
		if m, ok := textMethods[name]; ok {
			return function(func(r *run, args []any, named map[string]any) (any, error) {
				return m(r, x, call{args, named})
			}), nil
		}
	case *Dict:
		if m, ok := dictMethods[name]; ok {
			return function(func(r *run, args []any, named map[string]any) (any, error) {
				return m(r, x, call{args, named})
			}), nil
		}
		if item, ok := x.get(name); ok {
			return item, nil
		}
	case *namespace:
		if item, ok := x.get(name); ok {
			return item, nil
		}
	case *loopVars:
		return x.get(name), nil
	}
	return undefined{name}, nil
}

// slice is v[from:to:step] of a list or a text.
func (r *run) slice(v any, at [3]any) (any, error) {
	var n int
	var offsets []int
	list, isList := v.(*List)
	text, isText := v.(Text)
	switch {
	case isList:
		n = len(list.items)
	case isText:
		offsets = text.runes()
		n = len(offsets) - 1
	default:
		return nil, fmt.Errorf("%s cannot be sliced", describe(v))
	}
	if err := r.charge(16 * n); err != nil {
		return nil, err
	}
	from, to, step, err := bounds(at, n)
	if err != nil {
		return nil, err
	}
	if isText && step == 1 {
		from = min(from, max(to, 0))
		return text.slice(offsets[from], offsets[max(from, to)]), nil
	}
	var items []any
	var out builder
	for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
		if isList {
			items = append(items, list.items[i])
		} else {
			out.addText(text.slice(offsets[i], offsets[i+1]))
		}
	}
	if isList {
		return &List{items: items}, nil
	}
	return out.text(), nil
}

// bounds resolves a slice as Python does; step is clipped to the length.
func bounds(at [3]any, n int) (from, to, step int, err error) {
	get := func(v any, fallback int) int {
		switch x := v.(type) {
		case nil:
			return fallback
		case int64:
			if x < 0 {
				x += int64(n)
			}
			low, high := 0, n
			if step < 0 {
				low, high = -1, n-1
			}
			return int(min(max(x, int64(low)), int64(high)))
		}
		err = fmt.Errorf("a slice bound is %s: want a number", describe(v))
		return fallback
	}
	step = 1
	if s, ok := at[2].(int64); ok {
		if s == 0 {
			return 0, 0, 0, errors.New("a slice step is 0")
		}
		step = int(min(max(s, int64(-n-1)), int64(n+1)))
	} else if at[2] != nil {
		return 0, 0, 0, errors.New("a slice step is no number")
	}
	if step > 0 {
		from, to = get(at[0], 0), get(at[1], n)
	} else {
		from, to = get(at[0], n-1), get(at[1], -1)
	}
	return from, to, step, err
}

// formatFloat writes a float as Python does.
func formatFloat(x float64) string {
	switch {
	case math.IsNaN(x):
		return "nan"
	case math.IsInf(x, 0):
		return strings.Replace(strconv.FormatFloat(x, 'g', -1, 64), "+Inf", "inf", 1)
	}
	if a := math.Abs(x); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(x, 'e', -1, 64)
	}
	s := strconv.FormatFloat(x, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}
