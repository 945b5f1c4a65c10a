package jinja

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

type tokenType int

const (
	tokenEnd       tokenType = iota
	tokenData                // text outside tags
	tokenOutput              // {{
	tokenOutputEnd           // }}
	tokenTag                 // {%
	tokenTagEnd              // %}
	tokenName
	tokenString
	tokenInt
	tokenFloat
	tokenOp
)

type token struct {
	kind tokenType
	text string
	line int
}

func (t token) String() string {
	switch t.kind {
	case tokenEnd:
		return "end of template"
	case tokenOutputEnd, tokenTagEnd:
		return "end of tag"
	}
	return fmt.Sprintf("%.30q", t.text)
}

func (t token) is(op string) bool     { return t.kind == tokenOp && t.text == op }
func (t token) keyword(w string) bool { return t.kind == tokenName && t.text == w }

type lexer struct {
	src    string
	at     int
	line   int
	tokens []token
}

func lex(src string) ([]token, error) {
	src = strings.ReplaceAll(src, "\r\n", "\n")
	src = strings.TrimSuffix(src, "\n")
	l := &lexer{src: src, line: 1}
	stripNext, trimNext := false, false
	for {
		i := nextTag(l.src[l.at:])
		data := l.src[l.at:]
		if i >= 0 {
			data = data[:i]
		}
		whole := data
		if stripNext {
			data = strings.TrimLeft(data, " \t\n\r\v\f")
		} else if trimNext {
			data = strings.TrimPrefix(data, "\n")
		}
		if i < 0 {
			l.push(tokenData, data)
			l.push(tokenEnd, "")
			return l.tokens, nil
		}
		kind := l.src[l.at+i+1]
		mark := byte(0)
		if l.at+i+2 < len(l.src) {
			mark = l.src[l.at+i+2]
		}
		switch {
		case mark == '-':
			data = strings.TrimRight(data, " \t\n\r\v\f")
		case mark != '+' && kind != '{':
			data = l.stripLine(data, whole)
		}
		l.push(tokenData, data)
		l.line += strings.Count(whole, "\n")
		l.at += i + 2
		if mark == '-' || mark == '+' && kind != '{' {
			l.at++
		}
		var err error
		if stripNext, trimNext, err = l.tag(kind); err != nil {
			return nil, fmt.Errorf("line %d: %w", l.line, err)
		}
	}
}

// nextTag returns where the next {{, {% or {# stands, or -1.
func nextTag(s string) int {
	for at := 0; ; {
		i := strings.IndexByte(s[at:], '{')
		if i < 0 || at+i+1 >= len(s) {
			return -1
		}
		if c := s[at+i+1]; c == '{' || c == '%' || c == '#' {
			return at + i
		}
		at += i + 1
	}
}

// stripLine is lstrip_blocks: blanks between the start of a line and a block go.
func (l *lexer) stripLine(data, whole string) string {
	cut := strings.TrimRight(data, " \t")
	if strings.HasSuffix(cut, "\n") {
		return cut
	}
	// Nothing but blanks since the tag before: the line start must be the template's
	// own, or a line end that this data had and that was trimmed from it.
	if cut == "" && (len(whole) > len(data) && strings.HasSuffix(whole[:len(whole)-len(data)], "\n") || l.at == 0) {
		return cut
	}
	return data
}

func (l *lexer) push(kind tokenType, text string) {
	if kind == tokenData && text == "" {
		return
	}
	l.tokens = append(l.tokens, token{kind, text, l.line})
}

// tag reads up to the end of a tag; strip and trim say what it does to the data
// behind it.
func (l *lexer) tag(kind byte) (strip, trim bool, err error) {
	if kind == '#' {
		i := strings.Index(l.src[l.at:], "#}")
		if i < 0 {
			return false, false, errors.New("a comment has no end")
		}
		body := l.src[l.at : l.at+i]
		l.line += strings.Count(body, "\n")
		l.at += i + 2
		return strings.HasSuffix(body, "-"), !strings.HasSuffix(body, "+"), nil
	}
	open, end, closer := tokenOutput, tokenOutputEnd, "}}"
	if kind == '%' {
		open, end, closer = tokenTag, tokenTagEnd, "%}"
	}
	l.push(open, "")
	depth := 0
	for {
		l.blanks()
		rest := l.src[l.at:]
		if rest == "" {
			return false, false, errors.New("a tag has no end")
		}
		if depth == 0 || kind == '%' {
			switch {
			case strings.HasPrefix(rest, closer):
				l.at += 2
				l.push(end, "")
				return false, kind == '%', nil
			case rest[0] == '-' && strings.HasPrefix(rest[1:], closer):
				l.at += 3
				l.push(end, "")
				return true, false, nil
			case rest[0] == '+' && kind == '%' && strings.HasPrefix(rest[1:], closer):
				l.at += 3
				l.push(end, "")
				return false, false, nil
			}
		}
		switch rest[0] {
		case '{', '[', '(':
			depth++
		case '}', ']', ')':
			depth--
		}
		if err := l.inside(rest); err != nil {
			return false, false, err
		}
	}
}

func (l *lexer) blanks() {
	for l.at < len(l.src) && strings.IndexByte(" \t\n\r", l.src[l.at]) >= 0 {
		if l.src[l.at] == '\n' {
			l.line++
		}
		l.at++
	}
}

var operators = []string{"**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", "(", ")", "[", "]", "{", "}", ".", ",", ":", "|"}

func isNameByte(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func (l *lexer) inside(rest string) error {
	c := rest[0]
	switch {
	case c == '\'' || c == '"':
		return l.quoted(rest)
	case c >= '0' && c <= '9':
		l.number(rest)
		return nil
	case isNameByte(c):
		n := 1
		for n < len(rest) && isNameByte(rest[n]) {
			n++
		}
		l.push(tokenName, rest[:n])
		l.at += n
		return nil
	}
	for _, op := range operators {
		if strings.HasPrefix(rest, op) {
			l.push(tokenOp, op)
			l.at += len(op)
			return nil
		}
	}
	return fmt.Errorf("unexpected character %.4q", rest[:min(4, len(rest))])
}

func (l *lexer) number(rest string) {
	n, kind := 0, tokenInt
	digits := func() {
		for n < len(rest) && (rest[n] >= '0' && rest[n] <= '9' || rest[n] == '_') {
			n++
		}
	}
	digits()
	if n+1 < len(rest) && rest[n] == '.' && rest[n+1] >= '0' && rest[n+1] <= '9' {
		kind = tokenFloat
		n++
		digits()
	}
	if e := n + 1; n < len(rest) && rest[n]|0x20 == 'e' {
		if e < len(rest) && (rest[e] == '+' || rest[e] == '-') {
			e++
		}
		if e < len(rest) && rest[e] >= '0' && rest[e] <= '9' {
			kind, n = tokenFloat, e
			digits()
		}
	}
	l.push(kind, strings.ReplaceAll(rest[:n], "_", ""))
	l.at += n
}

// quoted reads a string with Python's escapes.
func (l *lexer) quoted(rest string) error {
	quote := rest[0]
	var b strings.Builder
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; c {
		case quote:
			l.push(tokenString, b.String())
			l.at += i + 1
			l.line += strings.Count(rest[:i], "\n")
			return nil
		case '\\':
			n, err := unescape(&b, rest[i+1:])
			if err != nil {
				return err
			}
			i += n
		default:
			b.WriteByte(c)
		}
	}
	return errors.New("a string has no end")
}

var escapes = map[byte]string{'n': "\n", 't': "\t", 'r': "\r", '\\': "\\", '\'': "'", '"': "\"", 'b': "\b", 'f': "\f", 'v': "\v", 'a': "\a", '0': "\x00", '\n': ""}

// unescape writes the escape that s begins with and returns its length.
func unescape(b *strings.Builder, s string) (int, error) {
	if s == "" {
		return 0, errors.New("a string has no end")
	}
	if e, ok := escapes[s[0]]; ok {
		b.WriteString(e)
		return 1, nil
	}
	digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[s[0]]
	if digits == 0 {
		b.WriteByte('\\')
		return 0, nil
	}
	if len(s) <= digits {
		return 0, errors.New("a string has an escape that is too short")
	}
	n, err := strconv.ParseUint(s[1:1+digits], 16, 32)
	if err != nil || !utf8.ValidRune(rune(n)) {
		return 0, fmt.Errorf("a string has the escape \\%s, which is no character", s[:1+digits])
	}
	b.WriteRune(rune(n))
	return 1 + digits, nil
}
