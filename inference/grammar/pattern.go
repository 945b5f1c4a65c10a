package grammar

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"unicode"
)

// pattern turns a regular expression into what stands between the quotes of a JSON
// string that matches it. As JSON Schema has it, a match may be anywhere in the string
// unless ^ and $ bind it. Each character has one spelling: itself, or its shortest
// escape.
func (c *schema) pattern(text string) (expr, error) {
	re, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, err
	}
	return c.anchored(re)
}

// anchored handles ^ and $, which are allowed at the ends of each alternative alone.
func (c *schema) anchored(re *syntax.Regexp) (expr, error) {
	for re.Op == syntax.OpCapture {
		re = re.Sub[0]
	}
	if re.Op == syntax.OpAlternate {
		out := alt{}
		for _, sub := range re.Sub {
			e, err := c.anchored(sub)
			if err != nil {
				return nil, err
			}
			out = append(out, e)
		}
		return out, nil
	}
	parts := []*syntax.Regexp{re}
	if re.Op == syntax.OpConcat {
		parts = re.Sub
	}
	out := seq{}
	if len(parts) > 0 && parts[0].Op == syntax.OpBeginText {
		parts = parts[1:]
	} else {
		out = append(out, repeat{c.char(), 0, -1})
	}
	open := true
	if n := len(parts); n > 0 && parts[n-1].Op == syntax.OpEndText {
		parts, open = parts[:n-1], false
	}
	for _, sub := range parts {
		e, err := c.regular(sub)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	if open {
		out = append(out, repeat{c.char(), 0, -1})
	}
	return out, nil
}

func (c *schema) regular(re *syntax.Regexp) (expr, error) {
	subs := func() ([]expr, error) {
		out := make([]expr, len(re.Sub))
		for i, sub := range re.Sub {
			var err error
			if out[i], err = c.regular(sub); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	switch re.Op {
	case syntax.OpEmptyMatch:
		return seq{}, nil
	case syntax.OpLiteral:
		out := seq{}
		for _, r := range re.Rune {
			one := class{{r, r}}
			if re.Flags&syntax.FoldCase != 0 {
				for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
					one = append(one, span{f, f})
				}
			}
			out = append(out, spelled(one.normal()))
		}
		return out, nil
	case syntax.OpCharClass:
		var one class
		for i := 0; i < len(re.Rune); i += 2 {
			one = append(one, span{re.Rune[i], re.Rune[i+1]})
		}
		return c.shared(one.normal()), nil
	case syntax.OpAnyCharNotNL:
		return c.shared(class{{'\n', '\n'}}.not()), nil
	case syntax.OpAnyChar:
		return c.shared(class{}.not()), nil
	case syntax.OpCapture:
		return c.regular(re.Sub[0])
	case syntax.OpConcat:
		out, err := subs()
		return seq(out), err
	case syntax.OpAlternate:
		out, err := subs()
		return alt(out), err
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		body, err := c.regular(re.Sub[0])
		if err != nil {
			return nil, err
		}
		switch re.Op {
		case syntax.OpStar:
			return repeat{body, 0, -1}, nil
		case syntax.OpPlus:
			return repeat{body, 1, -1}, nil
		case syntax.OpQuest:
			return repeat{body, 0, 1}, nil
		}
		return repeat{body, re.Min, re.Max}, nil
	case syntax.OpBeginText, syntax.OpEndText, syntax.OpBeginLine, syntax.OpEndLine:
		return nil, fmt.Errorf("^ and $ are supported at the ends of a pattern only")
	}
	return nil, fmt.Errorf("%s is not supported", re)
}

// shared makes a large class a rule that all its uses call.
func (c *schema) shared(one class) expr {
	e := spelled(one)
	if len(one) <= 4 && len(one) > 0 && one[len(one)-1].hi < 0x80 {
		return e
	}
	return c.once(fmt.Sprint("class ", one), func() expr { return e })
}

// spelled is a class as it stands in a JSON string.
func spelled(c class) expr {
	out := alt{}
	if p := c.and(plain); len(p) > 0 {
		out = append(out, p)
	}
	for _, s := range c.and(class{{0, 0x1F}, {'"', '"'}, {'\\', '\\'}}) {
		for r := s.lo; r <= s.hi; r++ {
			text := quote(string(r))
			out = append(out, literal(text[1:len(text)-1]))
		}
	}
	// DEL is no plain code point, for some grammars leave it out, but stands for itself.
	if d := c.and(class{{0x7F, 0x7F}}); len(d) > 0 {
		out = append(out, d)
	}
	if len(out) == 1 {
		return out[0]
	}
	return out
}

// The formats of strings, as patterns.
const (
	fullDate = `(?:\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))` +
		`|(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)`
	fullTime = `(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)`
	octet    = `(?:\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])`
	label    = `[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?`
)

var formats = map[string]string{
	"date":      `^` + fullDate + `$`,
	"time":      `^` + fullTime + `$`,
	"date-time": `^` + fullDate + `T` + fullTime + `$`,
	"uuid":      `^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`,
	"email":     `^[A-Za-z0-9_+-]{1,32}(?:\.[A-Za-z0-9_+-]{1,32}){0,3}@` + label + `(?:\.` + label + `){1,4}$`,
	"ipv4":      `^` + octet + `(?:\.` + octet + `){3}$`,
	"hostname":  `^` + label + `(?:\.` + label + `){0,4}$`,
}

func formatNames() []string {
	var out []string
	for name := range formats {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
