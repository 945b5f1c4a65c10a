package grammar

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
)

// Digits of a number before the point, and after it.
const maxDigits = 16

var digit = class{{'0', '9'}}

// anyNumber is any number, or any integer.
func (c *schema) anyNumber(integer bool) expr {
	if integer {
		return c.once("integer", func() expr { return seq{repeat{literal("-"), 0, 1}, c.natural()} })
	}
	return c.once("number", func() expr {
		exponent := seq{class{{'E', 'E'}, {'e', 'e'}}, repeat{class{{'+', '+'}, {'-', '-'}}, 0, 1}, digit, repeat{digit, 0, 1}}
		return seq{repeat{literal("-"), 0, 1}, c.natural(), c.fraction(), repeat{exponent, 0, 1}}
	})
}

func (c *schema) natural() expr {
	return alt{literal("0"), seq{class{{'1', '9'}}, repeat{digit, 0, maxDigits - 1}}}
}

func (c *schema) fraction() expr {
	return repeat{seq{literal("."), repeat{digit, 1, maxDigits}}, 0, 1}
}

// limit is a bound of a number.
type limit struct {
	at   int64
	open bool // the bound itself is out
}

// number reads bounds, which are whole numbers.
func (c *schema) number(o *object, path string, integer bool) (expr, error) {
	most := int64(math.Pow10(maxDigits)) - 1
	lo, hi := limit{at: -most}, limit{at: most}
	bounded := false
	for _, k := range []struct {
		key  string
		into *limit
		open bool
	}{{"minimum", &lo, false}, {"exclusiveMinimum", &lo, true}, {"maximum", &hi, false}, {"exclusiveMaximum", &hi, true}} {
		v, has := o.values[k.key]
		if !has {
			continue
		}
		n, _ := v.(json.Number)
		f, err := n.Float64()
		if err != nil || f != math.Trunc(f) || math.Abs(f) > float64(1<<53) {
			return nil, fault(under(path, k.key), "want a whole number of at most 2^53")
		}
		bounded = true
		b := limit{int64(f), k.open}
		switch {
		case k.into == &lo && (b.at > lo.at || b.at == lo.at && b.open), k.into == &hi && (b.at < hi.at || b.at == hi.at && b.open):
			*k.into = b
		}
	}
	if !bounded {
		return c.anyNumber(integer), nil
	}
	if integer {
		if lo.open {
			lo = limit{at: lo.at + 1}
		}
		if hi.open {
			hi = limit{at: hi.at - 1}
		}
	}
	if lo.at > hi.at || lo.at == hi.at && (lo.open || hi.open) {
		return nil, fault(path, "no number is in the bounds")
	}
	out := alt{}
	// From 0 up, and below 0 as what it is without its sign.
	if hi.at > 0 || hi.at == 0 && !hi.open {
		from := lo
		if lo.at < 0 {
			from = limit{}
		}
		out = append(out, c.magnitude(from, hi, integer))
	}
	if lo.at < 0 {
		from := limit{at: -hi.at, open: hi.open}
		if hi.at >= 0 {
			from = limit{at: 0, open: true} // no -0
		}
		out = append(out, seq{literal("-"), c.magnitude(from, limit{at: -lo.at, open: lo.open}, integer)})
	}
	return out, nil
}

// magnitude is a number from lo to hi, both at least 0.
func (c *schema) magnitude(lo, hi limit, integer bool) expr {
	out := alt{}
	if integer {
		if lo.open {
			lo.at++
		}
		if lo.at <= hi.at {
			out = append(out, c.between(lo.at, hi.at))
		}
		return out
	}
	low := lo.at
	if lo.open {
		// The bound's own digits, and something after the point.
		if low++; lo.at < hi.at {
			some := seq{repeat{digit, 0, maxDigits - 1}, class{{'1', '9'}}}
			out = append(out, seq{literal(strconv.FormatInt(lo.at, 10) + "."), some})
		}
	}
	if low <= hi.at-1 {
		out = append(out, seq{c.between(low, hi.at-1), c.fraction()})
	}
	if !hi.open && (hi.at > lo.at || !lo.open) {
		zeros := repeat{seq{literal("."), repeat{literal("0"), 1, maxDigits}}, 0, 1}
		out = append(out, seq{literal(strconv.FormatInt(hi.at, 10)), zeros})
	}
	return out
}

// between is a natural number from lo to hi.
func (c *schema) between(lo, hi int64) expr {
	out := alt{}
	for lo <= hi {
		a := strconv.FormatInt(lo, 10)
		last := min(hi, int64(math.Pow10(len(a)))-1) // the largest of as many digits
		out = append(out, digits(a, strconv.FormatInt(last, 10)))
		lo = last + 1
	}
	return out
}

// digits is a number from a to b, which have as many digits.
func digits(a, b string) expr {
	n := len(a)
	switch {
	case n == 0:
		return literal("")
	case a[0] == b[0]:
		return seq{literal(a[:1]), digits(a[1:], b[1:])}
	}
	out := alt{}
	low, high := rune(a[0]), rune(b[0])
	if zeros := strings.Repeat("0", n-1); a[1:] != zeros {
		out = append(out, seq{literal(a[:1]), digits(a[1:], strings.Repeat("9", n-1))})
		low++
	}
	if nines := strings.Repeat("9", n-1); b[1:] != nines {
		out = append(out, seq{literal(b[:1]), digits(strings.Repeat("0", n-1), b[1:])})
		high--
	}
	if low <= high {
		out = append(out, seq{class{{low, high}}, repeat{digit, n - 1, n - 1}})
	}
	return out
}
