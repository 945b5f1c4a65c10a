package model

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// spaceMark is how SentencePiece writes a space.
const spaceMark = "\u2581"

// spm is the SentencePiece encoder: characters merged into the piece of the best
// score, leftmost first among equals; a character without a piece becomes bytes.
type spm struct {
	ids     map[string]int32 // normal pieces, and added ones that are text
	scores  []float32
	bytes   [256]int32 // -1: none
	unknown int32      // -1: none
	longest int
	prefix  bool
}

func (t *Tokenizer) initSPM(h *header) error {
	e := &spm{ids: make(map[string]int32, len(t.texts)), unknown: -1}
	var err error
	if e.scores, err = h.floats("tokenizer.ggml.scores"); err != nil {
		return err
	}
	if len(e.scores) != len(t.texts) {
		return fmt.Errorf("metadata %q has %d elements: want %d", "tokenizer.ggml.scores", len(e.scores), len(t.texts))
	}
	if e.prefix, err = h.boolOr("tokenizer.ggml.add_space_prefix", true); err != nil {
		return err
	}
	if t.addBOS, err = h.boolOr("tokenizer.ggml.add_bos_token", true); err != nil {
		return err
	}
	t.spacePrefix = e.prefix
	for b := range e.bytes {
		e.bytes[b] = -1
	}
	for i, text := range t.texts {
		id := int32(i)
		kind := t.kinds[i]
		if kind == kindUserDefined && !isMark(text) {
			kind = kindNormal // rows of spaces, which merges reach too
		}
		switch kind {
		case kindNormal:
			if e.scores[i] != e.scores[i] {
				return fmt.Errorf("metadata %q element %d is not a number", "tokenizer.ggml.scores", i)
			}
			if _, ok := e.ids[text]; !ok && text != "" {
				e.ids[text] = id
				e.longest = max(e.longest, len(text))
			}
			t.pieces[i] = strings.ReplaceAll(text, spaceMark, " ")
		case kindUserDefined:
			t.pieces[i] = strings.ReplaceAll(text, spaceMark, " ")
		case kindByte:
			var b byte
			if _, err := fmt.Sscanf(text, "<0x%02X>", &b); err != nil {
				return fmt.Errorf("metadata %q element %d, %.10q, is no byte token", "tokenizer.ggml.tokens", i, text)
			}
			e.bytes[b] = id
			t.pieces[i] = string([]byte{b})
		case kindUnknown:
			e.unknown = id
		}
	}
	if e.unknown < 0 {
		for b, id := range e.bytes {
			if id < 0 {
				return fmt.Errorf("metadata %q: no unknown token, and byte 0x%02x has none of its own", "tokenizer.ggml.tokens", b)
			}
		}
	}
	t.encoder = e
	return nil
}

// spmSymbol is a stretch of the text; n is 0 once it was merged into its left one.
type spmSymbol struct {
	start, n   int32
	prev, next int32
}

type spmCandidate struct {
	score float32
	left  int32
	n     int32 // bytes of the merged piece: stale when the symbols no longer add up
}

func (c spmCandidate) Less(d spmCandidate) bool {
	return c.score > d.score || c.score == d.score && c.left < d.left
}

func (e *spm) encode(dst []int32, text string, _ bool, _ int) []int32 {
	if text == "" {
		return dst
	}
	if e.prefix {
		text = " " + text
	}
	text = strings.ReplaceAll(text, " ", spaceMark)
	symbols := make([]spmSymbol, 0, len(text))
	for p := 0; p < len(text); {
		_, n := utf8.DecodeRuneInString(text[p:])
		i := int32(len(symbols))
		symbols = append(symbols, spmSymbol{int32(p), int32(n), i - 1, i + 1})
		p += n
	}
	symbols[len(symbols)-1].next = -1
	var queue heap[spmCandidate]
	offer := func(i int32) {
		s := symbols[i]
		n := s.n + symbols[s.next].n
		if int(n) > e.longest {
			return
		}
		if id, ok := e.ids[text[s.start:s.start+n]]; ok {
			queue.push(spmCandidate{e.scores[id], i, n})
		}
	}
	for i := range len(symbols) - 1 {
		offer(int32(i))
	}
	for len(queue) > 0 {
		c := queue.pop()
		left := &symbols[c.left]
		if left.n == 0 || left.next < 0 || left.n+symbols[left.next].n != c.n {
			continue
		}
		right := &symbols[left.next]
		left.n, left.next = c.n, right.next
		right.n = 0
		if left.next >= 0 {
			symbols[left.next].prev = c.left
			offer(c.left)
		}
		if left.prev >= 0 {
			offer(left.prev)
		}
	}
	for i := int32(0); i >= 0; i = symbols[i].next {
		s := symbols[i]
		dst = e.emit(dst, text[s.start:s.start+s.n])
	}
	return dst
}

// emit appends the id of a piece, or those of its bytes.
func (e *spm) emit(dst []int32, piece string) []int32 {
	if id, ok := e.ids[piece]; ok {
		return append(dst, id)
	}
	for i := range len(piece) {
		id := e.bytes[piece[i]]
		if id < 0 {
			// One unknown token stands for the whole character.
			return append(dst, e.unknown)
		}
		dst = append(dst, id)
	}
	return dst
}
