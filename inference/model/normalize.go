package model

import (
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// The normal forms are computed here from the character data of x/text. Its own ones
// put a joiner into long rows of marks, as streams need it, and compose some pairs
// that do not belong together once they have sorted marks: U+10413, U+032F, U+0301
// becomes U+0403, U+032F.

func nfc(s string) string  { return normalize(s, norm.NFD, norm.NFC, true) }
func nfd(s string) string  { return normalize(s, norm.NFD, norm.NFD, false) }
func nfkc(s string) string { return normalize(s, norm.NFKD, norm.NFKC, true) }
func nfkd(s string) string { return normalize(s, norm.NFKD, norm.NFKD, false) }

// char is a character with its canonical combining class.
type char struct {
	r     rune
	class uint8
}

// normalize decomposes, sorts marks and composes: Unicode Standard, section 3.11.
// Bytes that are no UTF-8 stay as they are.
func normalize(s string, parts, whole norm.Form, compose bool) string {
	if whole.IsNormalString(s) {
		return s
	}
	var out strings.Builder
	for s != "" {
		n := 0
		for n < len(s) {
			r, size := utf8.DecodeRuneInString(s[n:])
			if r == utf8.RuneError && size == 1 {
				break
			}
			n += size
		}
		chars := decompose(s[:n], parts)
		if compose {
			chars = composed(chars)
		}
		for _, c := range chars {
			out.WriteRune(c.r)
		}
		if n < len(s) {
			out.WriteByte(s[n])
			n++
		}
		s = s[n:]
	}
	return out.String()
}

// Hangul syllables: Unicode Standard, section 3.12.
const (
	hangulS, hangulL, hangulV, hangulT = 0xAC00, 0x1100, 0x1161, 0x11A7
	hangulLs, hangulVs, hangulTs       = 19, 21, 28
)

func decompose(s string, form norm.Form) []char {
	out := make([]char, 0, len(s))
	add := func(r rune) {
		out = append(out, char{r, form.PropertiesString(string(r)).CCC()})
	}
	for _, r := range s {
		if i := r - hangulS; i >= 0 && i < hangulLs*hangulVs*hangulTs {
			add(hangulL + i/(hangulVs*hangulTs))
			add(hangulV + i%(hangulVs*hangulTs)/hangulTs)
			if t := i % hangulTs; t != 0 {
				add(hangulT + t)
			}
			continue
		}
		if d := form.PropertiesString(string(r)).Decomposition(); d != nil {
			for _, p := range string(d) {
				add(p)
			}
			continue
		}
		add(r)
	}
	for i := 0; i < len(out); {
		if out[i].class == 0 {
			i++
			continue
		}
		from := i
		for i < len(out) && out[i].class != 0 {
			i++
		}
		slices.SortStableFunc(out[from:i], func(a, b char) int { return int(a.class) - int(b.class) })
	}
	return out
}

// composed joins each character with the last starter where nothing stands between
// them that blocks it.
func composed(in []char) []char {
	out := in[:0]
	starter := -1
	for _, c := range in {
		if starter >= 0 {
			last := out[len(out)-1].class
			if len(out)-1 == starter || last != 0 && last < c.class {
				if r, ok := composePair(out[starter].r, c.r); ok {
					out[starter].r = r
					continue
				}
			}
		}
		if c.class == 0 {
			starter = len(out)
		}
		out = append(out, c)
	}
	return out
}

func composePair(a, b rune) (rune, bool) {
	if l, v := a-hangulL, b-hangulV; l >= 0 && l < hangulLs && v >= 0 && v < hangulVs {
		return hangulS + (l*hangulVs+v)*hangulTs, true
	}
	if i, t := a-hangulS, b-hangulT; i >= 0 && i < hangulLs*hangulVs*hangulTs && i%hangulTs == 0 && t > 0 && t < hangulTs {
		return a + t, true
	}
	r, ok := compositions()[[2]rune{a, b}]
	return r, ok
}

// compositions are the pairs that compose: of each character that is its own
// composed form, all but the last character of its decomposition, and that one.
var compositions = sync.OnceValue(func() map[[2]rune]rune {
	byParts := map[string]rune{}
	for r := rune(0xC0); r < 0x1E000; r++ {
		switch r {
		case 0x3400:
			r = 0xA000 // ideographs and, below, syllables and surrogates have none
		case hangulS:
			r = 0xF900
		}
		s := string(r)
		if d := norm.NFD.PropertiesString(s).Decomposition(); d != nil && norm.NFC.String(s) == s {
			byParts[string(d)] = r
		}
	}
	out := make(map[[2]rune]rune, len(byParts))
	for parts, r := range byParts {
		last, n := utf8.DecodeLastRuneInString(parts)
		head := parts[:len(parts)-n]
		if a, ok := byParts[head]; ok {
			out[[2]rune{a, last}] = r
		} else if a, size := utf8.DecodeRuneInString(head); size == len(head) && size > 0 {
			out[[2]rune{a, last}] = r
		}
	}
	return out
})
