package grammar

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// compileGBNF reads a grammar as llama.cpp does: rules "name ::= alternatives" with
// literals "...", classes [...], any code point ".", names, groups (...) and the
// repetitions * + ? {n} {n,} {n,m}; # begins a comment. A rule ends with its line,
// except inside of a group and after "|" or "::=".
func compileGBNF(b *rules, text string) error {
	p := &gbnf{text: text, rules: b, byName: map[string]ref{}, defined: map[ref]bool{}}
	p.rule("root")
	p.space(true)
	for p.at < len(p.text) && p.err == nil {
		p.definition()
		p.space(true)
	}
	if p.err != nil {
		return p.err
	}
	for id, name := range b.names {
		if !p.defined[ref(id)] {
			return fmt.Errorf("grammar: the rule %q is not defined", name)
		}
	}
	return nil
}

type gbnf struct {
	*rules
	text    string
	at      int
	byName  map[string]ref
	defined map[ref]bool
	err     error
}

func (p *gbnf) fail(format string, args ...any) {
	if p.err == nil {
		line := 1 + strings.Count(p.text[:min(p.at, len(p.text))], "\n")
		p.err = fmt.Errorf("grammar line %d: %s", line, fmt.Sprintf(format, args...))
		p.at = len(p.text)
	}
}

func (p *gbnf) rule(name string) ref {
	id, ok := p.byName[name]
	if !ok {
		id = p.add(name, nil)
		p.byName[name] = id
	}
	return id
}

// space passes over spaces and comments, and over line ends if lines says so.
func (p *gbnf) space(lines bool) {
	for ; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; {
		case c == ' ', c == '\t', lines && (c == '\n' || c == '\r'):
		case c == '#':
			for p.at+1 < len(p.text) && p.text[p.at+1] != '\n' && p.text[p.at+1] != '\r' {
				p.at++
			}
		default:
			return
		}
	}
}

func (p *gbnf) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

// take passes over a text if it stands here.
func (p *gbnf) take(s string) bool {
	if !strings.HasPrefix(p.text[p.at:], s) {
		return false
	}
	p.at += len(s)
	return true
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

func (p *gbnf) name() string {
	from := p.at
	for p.at < len(p.text) && isWord(p.text[p.at]) {
		p.at++
	}
	if from == p.at {
		p.fail("want the name of a rule at %.20q", p.text[from:])
	}
	return p.text[from:p.at]
}

func (p *gbnf) definition() {
	id := p.rule(p.name())
	p.space(false)
	if !p.take("::=") {
		p.fail("want ::= after the name of a rule")
	}
	p.space(true)
	if p.defined[id] {
		p.fail("the rule %q is defined twice", p.names[id])
	}
	p.defined[id] = true
	p.bodies[id] = p.alternatives(0)
	if c := p.peek(); c != 0 && c != '\n' && c != '\r' && p.err == nil {
		p.fail("unexpected %.20q", p.text[p.at:])
	}
}

func (p *gbnf) alternatives(depth int) expr {
	if depth > maxNest {
		p.fail("groups are nested more than %d deep", maxNest)
	}
	out := alt{p.sequence(depth)}
	for p.err == nil && p.take("|") {
		p.space(true)
		out = append(out, p.sequence(depth))
	}
	if len(out) == 1 {
		return out[0]
	}
	return out
}

func (p *gbnf) sequence(depth int) expr {
	out := seq{}
	for p.err == nil {
		var e expr
		switch c := p.peek(); {
		case c == '"':
			e = p.literal()
		case c == '[':
			e = p.class()
		case c == '.':
			p.at++
			e = class{}.not()
		case c == '(':
			p.at++
			p.space(true)
			e = p.alternatives(depth + 1)
			if !p.take(")") {
				p.fail("a group is not closed")
			}
		case isWord(c):
			e = p.rule(p.name())
		default:
			if len(out) == 1 {
				return out[0]
			}
			return out
		}
		p.space(depth > 0)
		for p.err == nil {
			again, ok := p.quantifier(e)
			if !ok {
				break
			}
			e = again
			p.space(depth > 0)
		}
		out = append(out, e)
	}
	return out
}

// quantifier reads a repetition of e, if one stands here.
func (p *gbnf) quantifier(e expr) (expr, bool) {
	switch p.peek() {
	case '*':
		p.at++
		return repeat{e, 0, -1}, true
	case '+':
		p.at++
		return repeat{e, 1, -1}, true
	case '?':
		p.at++
		return repeat{e, 0, 1}, true
	case '{':
		p.at++
		return p.counts(e), true
	}
	return nil, false
}

func (p *gbnf) counts(e expr) expr {
	p.space(true)
	least := p.number()
	p.space(true)
	most := least
	if p.take(",") {
		p.space(true)
		most = -1
		if p.peek() != '}' {
			most = p.number()
			p.space(true)
		}
	}
	if !p.take("}") {
		p.fail("a repetition is not closed")
	}
	if most >= 0 && most < least {
		p.fail("a repetition from %d to %d", least, most)
	}
	return repeat{e, least, most}
}

func (p *gbnf) number() int {
	from := p.at
	for p.peek() >= '0' && p.peek() <= '9' {
		p.at++
	}
	n, err := strconv.Atoi(p.text[from:p.at])
	if err != nil || n > MaxRepeat {
		p.fail("want a number up to %d in a repetition", MaxRepeat)
		return 0
	}
	return n
}

func (p *gbnf) literal() expr {
	p.at++
	var s strings.Builder
	for p.err == nil && !p.take(`"`) {
		s.WriteRune(p.char())
	}
	return literal(s.String())
}

func (p *gbnf) class() expr {
	p.at++
	negative := p.take("^")
	var c class
	for p.err == nil && !p.take("]") {
		lo := p.char()
		hi := lo
		if p.peek() == '-' && !strings.HasPrefix(p.text[p.at:], "-]") {
			p.at++
			hi = p.char()
		}
		if hi < lo {
			p.fail("a range from %q to %q", lo, hi)
		}
		c = append(c, span{lo, hi})
	}
	c = c.normal()
	if negative {
		return c.not()
	}
	return c
}

// char reads a code point of a literal or class.
func (p *gbnf) char() rune {
	if p.at >= len(p.text) || p.text[p.at] == '\n' {
		p.fail("a literal or class is not closed")
		return 0
	}
	r, size := utf8.DecodeRuneInString(p.text[p.at:])
	p.at += size
	if r != '\\' {
		return r
	}
	c := p.peek()
	p.at++
	switch c {
	case 'x':
		return p.hex(2)
	case 'u':
		return p.hex(4)
	case 'U':
		return p.hex(8)
	case 't':
		return '\t'
	case 'r':
		return '\r'
	case 'n':
		return '\n'
	case '\\', '"', '[', ']', '-', '^', '/':
		return rune(c)
	}
	p.fail("unknown escape \\%c", c)
	return 0
}

func (p *gbnf) hex(digits int) rune {
	end := min(p.at+digits, len(p.text))
	n, err := strconv.ParseUint(p.text[p.at:end], 16, 32)
	if err != nil || end-p.at < digits || !utf8.ValidRune(rune(n)) {
		p.fail("want %d hexadecimal digits of a code point", digits)
		return 0
	}
	p.at = end
	return rune(n)
}
