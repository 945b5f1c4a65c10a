package model

import (
	"cmp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// marker is a token that is found in a text as it stands, before the rest is
// encoded: special tokens, and what was added to a vocabulary by hand.
type marker struct {
	text       string
	id         int32
	trusted    bool // only where no byte of it is a user's
	word       bool // not inside a word
	eatL, eatR bool // takes the white space before it, behind it
}

// markers finds them: at each place the longest.
type markers struct {
	lengths [256][]int // by first byte, descending
	byText  map[string]marker
}

func newMarkers(list []marker) *markers {
	m := &markers{byText: make(map[string]marker, len(list))}
	for _, k := range list {
		if _, ok := m.byText[k.text]; ok || k.text == "" {
			continue
		}
		m.byText[k.text] = k
		if l := &m.lengths[k.text[0]]; !slices.Contains(*l, len(k.text)) {
			*l = append(*l, len(k.text))
		}
	}
	for _, l := range m.lengths {
		slices.SortFunc(l, func(a, b int) int { return cmp.Compare(b, a) })
	}
	return m
}

// at returns the longest marker that text starts with; trusted says for how many
// bytes from its start on it is not a user's.
func (m *markers) at(text string, trusted int) (marker, bool) {
	for _, n := range m.lengths[text[0]] {
		if n > len(text) {
			continue
		}
		if k, ok := m.byText[text[:n]]; ok && (!k.trusted || n <= trusted) {
			return k, true
		}
	}
	return marker{}, false
}

// split calls plain for the stretches of text between markers, in order, and found
// for each marker. limits are the places where trusted and users' bytes take turns,
// ascending, trusted ones first; none means that all bytes are the user's.
func (m *markers) split(text string, limits []int, plain func(s string, first bool), found func(id int32)) {
	start, turn := 0, 0
	for i := 0; i < len(text); {
		for turn < len(limits) && limits[turn] <= i {
			turn++
		}
		trusted := 0
		if turn < len(limits) && turn%2 == 0 {
			trusted = limits[turn] - i
		}
		k, ok := m.at(text[i:], trusted)
		if !ok {
			i++
			for i < len(text) && !utf8.RuneStart(text[i]) {
				i++
			}
			continue
		}
		end := i + len(k.text)
		if k.word && (endsWord(text[:i]) || startsWord(text[end:])) {
			i = end
			continue
		}
		before := text[start:i]
		if k.eatL {
			before = strings.TrimRightFunc(before, unicode.IsSpace)
		}
		if k.eatR {
			end = len(text) - len(strings.TrimLeftFunc(text[end:], unicode.IsSpace))
		}
		if before != "" {
			plain(before, start == 0)
		}
		found(k.id)
		i, start = end, end
	}
	if start < len(text) {
		plain(text[start:], start == 0)
	}
}

func isWord(r rune) bool {
	return unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic, unicode.Join_Control)
}

func endsWord(s string) bool {
	r, n := utf8.DecodeLastRuneInString(s)
	return n > 0 && isWord(r)
}

func startsWord(s string) bool {
	r, n := utf8.DecodeRuneInString(s)
	return n > 0 && isWord(r)
}
