package jinja

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

func (r *run) equal(a, b any) (bool, error) {
	if err := r.step(); err != nil {
		return false, err
	}
	if err := r.enter(); err != nil {
		return false, err
	}
	defer r.leave()
	if x, ok := a.(int64); ok {
		if y, ok := b.(int64); ok {
			return x == y, nil
		}
	}
	if x, ok := number(a); ok {
		y, ok := number(b)
		return ok && x == y, nil
	}
	switch x := a.(type) {
	case nil:
		return b == nil, nil
	case undefined:
		_, ok := b.(undefined)
		return ok, nil
	case Text:
		y, ok := b.(Text)
		return ok && x.s == y.s, r.charge(len(x.s))
	case *List:
		y, ok := b.(*List)
		if !ok || len(x.items) != len(y.items) {
			return false, nil
		}
		for i := range x.items {
			if same, err := r.equal(x.items[i], y.items[i]); err != nil || !same {
				return false, err
			}
		}
		return true, nil
	case *Dict:
		y, ok := b.(*Dict)
		if !ok || len(x.keys) != len(y.keys) {
			return false, nil
		}
		for i, k := range x.keys {
			v, ok := y.get(k.s)
			if !ok {
				return false, nil
			}
			if same, err := r.equal(x.values[i], v); err != nil || !same {
				return false, err
			}
		}
		return true, nil
	}
	return false, nil
}

func (r *run) compare(op string, a, b any) (bool, error) {
	switch op {
	case "==":
		return r.equal(a, b)
	case "!=":
		same, err := r.equal(a, b)
		return !same, err
	case "in":
		return r.contains(b, a)
	case "not in":
		ok, err := r.contains(b, a)
		return !ok, err
	}
	c, err := r.order(a, b)
	switch op {
	case "<":
		return c < 0, err
	case ">":
		return c > 0, err
	case "<=":
		return c <= 0, err
	}
	return c >= 0, err
}

// order compares two numbers or two texts.
func (r *run) order(a, b any) (int, error) {
	x, okX := number(a)
	y, okY := number(b)
	if okX && okY {
		switch {
		case x < y:
			return -1, nil
		case x > y:
			return 1, nil
		}
		return 0, nil
	}
	s, okS := a.(Text)
	t, okT := b.(Text)
	if okS && okT {
		return strings.Compare(s.s, t.s), r.charge(len(s.s))
	}
	return 0, fmt.Errorf("%s and %s have no order", describe(a), describe(b))
}

func (r *run) contains(box, item any) (bool, error) {
	switch x := box.(type) {
	case Text:
		t, ok := item.(Text)
		if !ok {
			return false, fmt.Errorf("text cannot hold %s", describe(item))
		}
		return strings.Contains(x.s, t.s), r.charge(len(x.s))
	case *List:
		for _, v := range x.items {
			if same, err := r.equal(v, item); err != nil || same {
				return same, err
			}
		}
		return false, nil
	case *Dict:
		t, ok := item.(Text)
		if !ok {
			return false, nil
		}
		_, ok = x.get(t.s)
		return ok, nil
	case *namespace:
		return r.contains(x.Dict, item)
	case undefined:
		return false, nil
	}
	return false, fmt.Errorf("%s holds nothing", describe(box))
}

func (r *run) arithmetic(op string, a, b any) (any, error) {
	if op == "~" {
		return r.join(a, b)
	}
	if op == "+" {
		switch x := a.(type) {
		case Text:
			if y, ok := b.(Text); ok {
				return concat(x, y), r.charge(len(x.s) + len(y.s))
			}
		case *List:
			if y, ok := b.(*List); ok {
				items := append(append([]any{}, x.items...), y.items...)
				return &List{items: items}, r.charge(16 * len(items))
			}
		}
	}
	if x, ok := a.(Text); ok && op == "*" {
		n, ok := b.(int64)
		if !ok || n > maxBytes || n > 0 && int64(len(x.s)) > maxBytes/n {
			return nil, errTooLong
		}
		if err := r.charge(int(max(n, 0)) * len(x.s)); err != nil {
			return nil, err
		}
		var out builder
		for range n {
			out.addText(x)
		}
		return out.text(), nil
	}
	i, okI := a.(int64)
	j, okJ := b.(int64)
	if okI && okJ && op != "/" && op != "**" {
		return integers(op, i, j)
	}
	x, okX := number(a)
	y, okY := number(b)
	if !okX || !okY {
		return nil, fmt.Errorf("%s %s %s: want numbers or two texts", describe(a), op, describe(b))
	}
	return floats(op, x, y)
}

func (r *run) join(a, b any) (any, error) {
	x, err := r.text(a)
	if err != nil {
		return nil, err
	}
	y, err := r.text(b)
	if err != nil {
		return nil, err
	}
	return concat(x, y), r.charge(len(x.s) + len(y.s))
}

var errZero = errors.New("division by zero")

func integers(op string, i, j int64) (any, error) {
	switch op {
	case "+":
		return i + j, nil
	case "-":
		return i - j, nil
	case "*":
		return i * j, nil
	}
	if j == 0 {
		return nil, errZero
	}
	// Python rounds down, Go toward zero.
	q, m := i/j, i%j
	if m != 0 && (m < 0) != (j < 0) {
		q, m = q-1, m+j
	}
	if op == "%" {
		return m, nil
	}
	return q, nil
}

func floats(op string, x, y float64) (any, error) {
	switch op {
	case "+":
		return x + y, nil
	case "-":
		return x - y, nil
	case "*":
		return x * y, nil
	case "**":
		return nil, errors.New("powers are not supported")
	}
	if y == 0 {
		return nil, errZero
	}
	switch op {
	case "/":
		return x / y, nil
	case "//":
		return math.Floor(x / y), nil
	}
	m := math.Mod(x, y)
	if m != 0 && (m < 0) != (y < 0) {
		m += y
	}
	return m, nil
}
