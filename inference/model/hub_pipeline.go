package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// patternJSON is what a step looks for.
type patternJSON struct {
	String *string
	Regex  *string
}

// finder returns what finds the pattern.
func (p *patternJSON) finder() (finder, error) {
	switch {
	case p.String != nil && *p.String != "":
		text := *p.String
		return func(s string, from int) (int, int, bool) {
			i := strings.Index(s[from:], text)
			return from + i, from + i + len(text), i >= 0
		}, nil
	case p.Regex != nil:
		return newFinder(*p.Regex)
	}
	return nil, errors.New("pattern: want a String or a Regex")
}

// maxContentLen bounds what one match may be replaced with.
const maxContentLen = 64

// hubNormalizer reads what is done to a text before it is split.
func (e *bpe) hubNormalizer(raw json.RawMessage) error {
	steps, err := components(raw, "normalizers")
	if err != nil {
		return err
	}
	for _, s := range steps {
		var f struct {
			Prepend, Content string
			Pattern          patternJSON
			Left             *bool `json:"strip_left"`
			Right            *bool `json:"strip_right"`
		}
		if err := json.Unmarshal(s.raw, &f); err != nil {
			return fmt.Errorf("%.40s: %w", s.Type, err)
		}
		if len(f.Prepend) > maxContentLen || len(f.Content) > maxContentLen {
			return fmt.Errorf("%.40s: a text of more than %d bytes", s.Type, maxContentLen)
		}
		switch s.Type {
		case "NFC":
			e.normal = append(e.normal, nfc)
		case "NFD":
			e.normal = append(e.normal, nfd)
		case "NFKC":
			e.normal = append(e.normal, nfkc)
		case "NFKD":
			e.normal = append(e.normal, nfkd)
		case "Lowercase":
			e.normal = append(e.normal, lowercase)
		case "Prepend":
			e.normal = append(e.normal, func(s string) string {
				if s == "" {
					return s
				}
				return f.Prepend + s
			})
		case "Strip":
			e.normal = append(e.normal, strip(or(f.Left, false), or(f.Right, false)))
		case "Replace":
			next, err := f.Pattern.finder()
			if err != nil {
				return fmt.Errorf("normalizer Replace: %w", err)
			}
			e.normal = append(e.normal, replacer(next, f.Content))
		default:
			return fmt.Errorf("type %.40q is not supported: want NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace or Strip", s.Type)
		}
	}
	return nil
}

// lowercase maps each character to its full lower-case form, whatever stands beside
// it.
func lowercase(s string) string {
	var out strings.Builder
	for _, r := range s {
		if r == 'İ' {
			out.WriteString("i̇")
		} else {
			out.WriteRune(unicode.ToLower(r))
		}
	}
	return out.String()
}

func strip(left, right bool) func(string) string {
	return func(s string) string {
		if left {
			s = strings.TrimLeftFunc(s, unicode.IsSpace)
		}
		if right {
			s = strings.TrimRightFunc(s, unicode.IsSpace)
		}
		return s
	}
}

func replacer(next finder, with string) func(string) string {
	return func(s string) string {
		var out strings.Builder
		at := 0
		for at < len(s) {
			a, b, ok := next(s, at)
			if !ok {
				break
			}
			out.WriteString(s[at:a])
			out.WriteString(with)
			at = b
		}
		out.WriteString(s[at:])
		return out.String()
	}
}

// preTokenizerJSON has the settings of all kinds of steps.
type preTokenizerJSON struct {
	Pattern     patternJSON
	Behaviour   string `json:"behavior"`
	Invert      bool
	AddPrefix   *bool   `json:"add_prefix_space"`
	UseRegex    *bool   `json:"use_regex"`
	Individual  bool    `json:"individual_digits"`
	Replacement string  `json:"replacement"`
	Scheme      *string `json:"prepend_scheme"`
	Split       *bool
}

// hubPreTokenizer reads how a text is split into words, and whether tokens are
// written in the alphabet of bytes.
func (e *bpe) hubPreTokenizer(raw json.RawMessage) (byteLevel bool, err error) {
	steps, err := components(raw, "pretokenizers")
	if err != nil {
		return false, err
	}
	for i, s := range steps {
		var f preTokenizerJSON
		if err := json.Unmarshal(s.raw, &f); err != nil {
			return false, fmt.Errorf("%.40s: %w", s.Type, err)
		}
		if byteLevel {
			return false, errors.New("ByteLevel: want it last")
		}
		switch s.Type {
		case "ByteLevel":
			byteLevel = true
			e.stages = append(e.stages, byteLevelStages(or(f.AddPrefix, true), or(f.UseRegex, true))...)
		case "Split":
			how, ok := behaviours[f.Behaviour]
			if !ok {
				return false, fmt.Errorf("pre-tokenizer Split: behavior %.40q is unknown", f.Behaviour)
			}
			st, err := splitStage(&f.Pattern, how, f.Invert)
			if err != nil {
				return false, fmt.Errorf("pre-tokenizer Split: %w", err)
			}
			e.stages = append(e.stages, st)
		case "Digits":
			pattern := `\p{N}+`
			if f.Individual {
				pattern = `\p{N}`
			}
			next, err := newFinder(pattern)
			if err != nil {
				return false, err
			}
			e.stages = append(e.stages, splitBy(next, isolated, false))
		case "Metaspace":
			scheme := or(f.Scheme, "always")
			if f.AddPrefix != nil && !*f.AddPrefix && f.Scheme == nil { // the older field
				scheme = "never"
			}
			if f.Replacement == "" || len(f.Replacement) > 8 || scheme != "always" && scheme != "first" && scheme != "never" {
				return false, fmt.Errorf("pre-tokenizer Metaspace: replacement %.20q or prepend_scheme %.20q is not supported", f.Replacement, scheme)
			}
			e.stages = append(e.stages, metaspace(f.Replacement, scheme, or(f.Split, true)))
		default:
			return false, fmt.Errorf("type %.40q (step %d) is not supported: want Split, ByteLevel, Digits or Metaspace", s.Type, i)
		}
	}
	return byteLevel, nil
}

// splitStage makes the stage of a Split, a hand-written one where the pattern is
// known and its words are kept as they are.
func splitStage(p *patternJSON, how behaviour, invert bool) (stage, error) {
	if p.Regex != nil {
		if split, ok := knownPatterns[*p.Regex]; ok && (how == isolated || how == removed && invert) {
			return words(split), nil
		}
	}
	next, err := p.finder()
	if err != nil {
		return nil, err
	}
	return splitBy(next, how, invert), nil
}

func byteLevelStages(prefix, split bool) (out []stage) {
	if prefix {
		out = append(out, func(dst []string, piece string, _ bool) []string {
			if !strings.HasPrefix(piece, " ") {
				piece = " " + piece
			}
			return append(dst, piece)
		})
	}
	if split {
		out = append(out, words(splitGPT2))
	}
	return out
}

// metaspace writes spaces as mark, puts one before a text as scheme says, and with
// split begins a piece at each.
func metaspace(mark, scheme string, split bool) stage {
	return func(dst []string, piece string, first bool) []string {
		piece = strings.ReplaceAll(piece, " ", mark)
		if (scheme == "always" || scheme == "first" && first) && !strings.HasPrefix(piece, mark) {
			piece = mark + piece
		}
		if !split {
			return append(dst, piece)
		}
		for piece != "" {
			n := len(piece)
			if i := strings.Index(piece[1:], mark); i >= 0 {
				n = 1 + i
			}
			dst = append(dst, piece[:n])
			piece = piece[n:]
		}
		return dst
	}
}

// hubDecoder reads what text a token stands for.
func (t *Tokenizer) hubDecoder(raw json.RawMessage) error {
	steps, err := components(raw, "decoders")
	if err != nil {
		return err
	}
	copy(t.pieces, t.texts)
	// Added tokens are text as they stand.
	normal := func(f func(string) string) {
		for i := range t.pieces {
			if t.kinds[i] == kindNormal || t.kinds[i] == kindByte {
				t.pieces[i] = f(t.pieces[i])
			}
		}
	}
	for _, s := range steps {
		var f struct {
			Content     string
			Start, Stop int
			Pattern     patternJSON
			Replacement string
			Scheme      *string `json:"prepend_scheme"`
			AddPrefix   *bool   `json:"add_prefix_space"`
		}
		if err := json.Unmarshal(s.raw, &f); err != nil {
			return fmt.Errorf("%.40s: %w", s.Type, err)
		}
		switch s.Type {
		case "ByteLevel":
			normal(decodeAlphabet)
		case "Fuse":
		case "ByteFallback":
			normal(byteToken)
		case "Replace":
			next, err := f.Pattern.finder()
			if err != nil || len(f.Content) > maxContentLen {
				return fmt.Errorf("decoder Replace: its pattern or its content is not supported")
			}
			normal(replacer(next, f.Content))
		case "Strip":
			if f.Content != " " || f.Start > 1 || f.Stop != 0 {
				return errors.New("decoder Strip: want one space at the start")
			}
			t.spacePrefix = f.Start == 1
		case "Metaspace":
			if f.Replacement == "" {
				return errors.New("decoder Metaspace: replacement is missing")
			}
			normal(func(s string) string { return strings.ReplaceAll(s, f.Replacement, " ") })
			t.spacePrefix = or(f.Scheme, "always") != "never" && or(f.AddPrefix, true)
		default:
			return fmt.Errorf("type %.40q is not supported: want ByteLevel, ByteFallback, Fuse, Replace, Strip or Metaspace", s.Type)
		}
	}
	return nil
}

// byteToken returns the byte that a token like <0x41> stands for, and any other
// text as it is.
func byteToken(s string) string {
	var b byte
	if len(s) != 6 || !strings.HasPrefix(s, "<0x") {
		return s
	}
	if n, err := fmt.Sscanf(s, "<0x%02X>", &b); n != 1 || err != nil {
		return s
	}
	return string([]byte{b})
}
