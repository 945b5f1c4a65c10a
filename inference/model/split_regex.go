package model

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// stage splits one piece of a text into smaller ones, which together are the piece
// unless the stage adds or removes something. first says that the text starts with it.
type stage func(dst []string, piece string, first bool) []string

// words makes a stage of a splitter.
func words(split splitter) stage {
	return func(dst []string, piece string, _ bool) []string {
		for len(piece) > 0 {
			n := split(piece)
			dst = append(dst, piece[:n])
			piece = piece[n:]
		}
		return dst
	}
}

// The patterns that are hand-written in split.go, as tokenizer files state them.
const (
	patternGPT2   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	patternLlama3 = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternQwen2  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

var knownPatterns = map[string]splitter{patternGPT2: splitGPT2, patternLlama3: splitLlama3, patternQwen2: splitQwen2}

// finder finds the first match in text at or after from.
type finder func(text string, from int) (start, end int, ok bool)

// tail says how a pattern ends that treats the last space of a run specially.
type tail int

const (
	tailNone  tail = iota
	tailBack       // |\s+(?!\S): a run of spaces leaves its last one to the word behind it
	tailSpace      // |\s+(?!\S)|\s+: so, but a single space is a match
)

const maxPatternLen = 4 << 10

// newFinder compiles a pattern of the dialect of Hugging Face tokenizers
// (Oniguruma). It accepts what means the same in Go's regular expressions, which
// take time linear in the text, and one kind of look-ahead, at the end.
func newFinder(pattern string) (finder, error) {
	refuse := func(why string) (finder, error) {
		return nil, fmt.Errorf("pattern %.80q is not supported: %s", pattern, why)
	}
	if len(pattern) > maxPatternLen {
		return refuse("it is too long")
	}
	body, end := pattern, tailNone
	if s, ok := strings.CutSuffix(pattern, `|\s+(?!\S)|\s+`); ok {
		body, end = s, tailSpace
	} else if s, ok := strings.CutSuffix(pattern, `|\s+(?!\S)`); ok {
		body, end = s, tailBack
	}
	expr, err := translate(body)
	if err != nil {
		return refuse(err.Error())
	}
	expr = "(?:" + expr + ")"
	if end != tailNone {
		expr += `|([` + spaceSet + `]+)`
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return refuse("it is no regular expression")
	}
	if re.MatchString("") {
		return refuse("it matches nothing")
	}
	return func(text string, from int) (int, int, bool) { return find(re, end, text, from) }, nil
}

func find(re *regexp.Regexp, end tail, text string, from int) (int, int, bool) {
	for from < len(text) {
		m := re.FindStringSubmatchIndex(text[from:])
		if m == nil {
			return 0, 0, false
		}
		a, b := from+m[0], from+m[1]
		if end == tailNone || m[2] < 0 || b == len(text) {
			return a, b, true
		}
		_, last := utf8.DecodeLastRuneInString(text[a:b])
		switch {
		case b-a > last:
			return a, b - last, true
		case end == tailSpace:
			return a, b, true
		}
		from = b
	}
	return 0, 0, false
}

// spaceSet is \s: the characters with the property White_Space.
const spaceSet = `\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}`

// translate writes a pattern in Go's syntax, or says what has no equal there.
func translate(p string) (string, error) {
	var out strings.Builder
	class, start, quantified := false, 0, false
	for i := 0; i < len(p); {
		r, n := utf8.DecodeRuneInString(p[i:])
		rest, was := p[i:], quantified
		quantified = false
		switch {
		case r == '\\':
			s, width, err := translateEscape(rest, class)
			if err != nil {
				return "", err
			}
			out.WriteString(s)
			n = width
		case class:
			if r == '[' || strings.HasPrefix(rest, "&&") {
				return "", fmt.Errorf("%q inside a set", rest[:1])
			}
			first := i == start+1 || i == start+2 && p[i-1] == '^'
			if r == ']' && !first {
				class = false
			}
			out.WriteString(rest[:n])
		case r == '[':
			class, start = true, i
			out.WriteByte('[')
		case r == '(':
			switch {
			case strings.HasPrefix(rest, "(?:"), strings.HasPrefix(rest, "(?i:"):
				n = strings.IndexByte(rest, ':') + 1
				out.WriteString(rest[:n])
			case strings.HasPrefix(rest, "(?"):
				return "", fmt.Errorf("%q", rest[:min(3, len(rest))])
			default:
				out.WriteString("(?:")
			}
		case r == '^' || r == '.':
			return "", fmt.Errorf("%q", rest[:1])
		case r == '$':
			out.WriteString("(?m:$)") // the end of any line
		case r == '?' || r == '*' || r == '+' || r == '{':
			if was {
				return "", fmt.Errorf("%q behind another quantifier", rest[:1])
			}
			if r == '{' {
				n = strings.IndexByte(rest, '}') + 1
				if n < 3 {
					return "", fmt.Errorf("%q", rest[:1])
				}
			}
			quantified = true
			out.WriteString(rest[:n])
		default:
			out.WriteString(rest[:n])
		}
		i += n
	}
	return out.String(), nil
}

// translateEscape returns an escape in Go's syntax and its length in the pattern.
func translateEscape(rest string, class bool) (string, int, error) {
	if len(rest) < 2 {
		return "", 0, fmt.Errorf("a lone backslash")
	}
	switch c := rest[1]; {
	case c == 's' && class:
		return spaceSet, 2, nil
	case c == 's':
		return "[" + spaceSet + "]", 2, nil
	case c == 'S' && !class:
		return "[^" + spaceSet + "]", 2, nil
	case c == 'd':
		return `\p{Nd}`, 2, nil
	case c == 'r' || c == 'n' || c == 't' || c == 'f' || c == 'v':
		return rest[:2], 2, nil
	case c == 'p' || c == 'P':
		n := strings.IndexByte(rest, '}') + 1
		if n < 5 || rest[2] != '{' || rest[3] == '^' {
			return "", 0, fmt.Errorf("%q", rest[:2])
		}
		return rest[:n], n, nil
	case c < utf8.RuneSelf && strings.IndexByte("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ", c) >= 0:
		if c == '<' || c == '>' || c == ' ' || c == '\'' || c == '"' || c == '`' || c == '@' {
			return regexp.QuoteMeta(string(c)), 2, nil
		}
		return rest[:2], 2, nil
	}
	return "", 0, fmt.Errorf("%q", rest[:2])
}

// behaviour says what becomes of the matches of a split.
type behaviour int

const (
	isolated behaviour = iota
	removed
	mergedWithPrevious
	mergedWithNext
	contiguous
)

var behaviours = map[string]behaviour{"Isolated": isolated, "Removed": removed, "MergedWithPrevious": mergedWithPrevious,
	"MergedWithNext": mergedWithNext, "Contiguous": contiguous}

// splitBy makes a stage that splits at the matches of a finder; inverted, what does
// not match counts as the matches.
func splitBy(next finder, how behaviour, invert bool) stage {
	return func(dst []string, piece string, _ bool) []string {
		from := len(dst)
		var flags []bool
		add := func(s string, match bool) {
			if s != "" {
				dst, flags = append(dst, s), append(flags, match != invert)
			}
		}
		at := 0
		for at < len(piece) {
			a, b, ok := next(piece, at)
			if !ok {
				break
			}
			add(piece[at:a], false)
			add(piece[a:b], true)
			at = b
		}
		add(piece[at:], false)
		if how == isolated {
			return dst
		}
		return rejoin(dst, from, flags, how)
	}
}

// rejoin joins the pieces from dst[from] on, which are neighbours in one text.
func rejoin(dst []string, from int, flags []bool, how behaviour) []string {
	out := dst[:from]
	join := func(s string) { out[len(out)-1] = out[len(out)-1] + s }
	pending := "" // matches that wait for what follows
	previous := false
	for i, s := range dst[from:] {
		match := flags[i]
		switch {
		case how == removed:
			if !match {
				out = append(out, s)
			}
		case how == contiguous && i > 0 && match == previous:
			join(s)
		case how == mergedWithPrevious && match && i > 0 && !previous:
			join(s)
		case how == mergedWithNext && match:
			if pending != "" {
				out = append(out, pending)
			}
			pending = s
		case how == mergedWithNext:
			out = append(out, pending+s)
			pending = ""
		default:
			out = append(out, s)
		}
		previous = match
	}
	if pending != "" {
		out = append(out, pending)
	}
	return out
}
