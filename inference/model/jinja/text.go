package jinja

import (
	"iter"
	"strings"
	"unicode/utf8"
)

// Text is a string that knows which of its bytes came from a user.
type Text struct {
	s    string
	user []span // ascending, disjoint, not adjacent
}

type span struct{ from, to int }

// Literal returns text of the template's side.
func Literal(s string) Text { return Text{s: s} }

// User returns text that a user supplied.
func User(s string) Text {
	if s == "" {
		return Text{}
	}
	return Text{s, []span{{0, len(s)}}}
}

// String returns the text.
func (t Text) String() string { return t.s }

// Parts yields the stretches of the text in order, with whether a user supplied them.
func (t Text) Parts() iter.Seq2[string, bool] {
	return func(yield func(string, bool) bool) {
		at := 0
		for _, u := range t.user {
			if at < u.from && !yield(t.s[at:u.from], false) {
				return
			}
			if !yield(t.s[u.from:u.to], true) {
				return
			}
			at = u.to
		}
		if at < len(t.s) {
			yield(t.s[at:], false)
		}
	}
}

// slice returns bytes i to j.
func (t Text) slice(i, j int) Text {
	out := Text{s: t.s[i:j]}
	for _, u := range t.user {
		from, to := max(u.from, i), min(u.to, j)
		if from < to {
			out.user = append(out.user, span{from - i, to - i})
		}
	}
	return out
}

// mapParts applies f to each stretch.
func (t Text) mapParts(f func(string) string) Text {
	var b builder
	for s, user := range t.Parts() {
		b.add(f(s), user)
	}
	return b.text()
}

func (t Text) trim(left, right bool, cut func(rune) bool) Text {
	i, j := 0, len(t.s)
	if left {
		i = len(t.s) - len(strings.TrimLeftFunc(t.s, cut))
	}
	if right {
		j = max(i, len(strings.TrimRightFunc(t.s, cut)))
	}
	return t.slice(i, j)
}

// runes returns the byte offset of every character, and the length at the end.
func (t Text) runes() []int {
	at := make([]int, 0, len(t.s)+1)
	for i := range t.s {
		at = append(at, i)
	}
	return append(at, len(t.s))
}

func (t Text) length() int { return utf8.RuneCountInString(t.s) }

// split cuts at sep, at most n times (n < 0: everywhere).
func (t Text) split(sep string, n int) []any {
	var out []any
	at := 0
	for n != 0 {
		i := strings.Index(t.s[at:], sep)
		if i < 0 {
			break
		}
		out = append(out, t.slice(at, at+i))
		at += i + len(sep)
		n--
	}
	return append(out, t.slice(at, len(t.s)))
}

func (t Text) replace(old string, with Text, n int) Text {
	if old == "" {
		return t
	}
	var b builder
	for i, part := range t.split(old, n) {
		if i > 0 {
			b.addText(with)
		}
		b.addText(part.(Text))
	}
	return b.text()
}

func concat(parts ...Text) Text {
	var b builder
	for _, p := range parts {
		b.addText(p)
	}
	return b.text()
}

// builder makes a text piece by piece.
type builder struct {
	b    []byte
	user []span
}

func (b *builder) add(s string, user bool) {
	if s == "" {
		return
	}
	from := len(b.b)
	b.b = append(b.b, s...)
	if !user {
		return
	}
	if last := len(b.user) - 1; last >= 0 && b.user[last].to == from {
		b.user[last].to = len(b.b)
		return
	}
	b.user = append(b.user, span{from, len(b.b)})
}

func (b *builder) addText(t Text) {
	for s, user := range t.Parts() {
		b.add(s, user)
	}
}

func (b *builder) text() Text {
	if b == nil {
		return Text{}
	}
	return Text{string(b.b), b.user}
}
