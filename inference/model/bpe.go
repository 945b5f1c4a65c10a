package model

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// byteRunes is the alphabet of GPT-2: the character that stands for each byte.
// Source: openai/gpt-2, encoder.py, bytes_to_unicode.
var byteRunes = func() (table [256]rune) {
	next := rune(256)
	for b := range table {
		if b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE {
			table[b] = rune(b)
		} else {
			table[b] = next
			next++
		}
	}
	return table
}()

var runeBytes = func() map[rune]byte {
	m := make(map[rune]byte, 256)
	for b, r := range byteRunes {
		m[r] = byte(b)
	}
	return m
}()

type merge struct {
	rank int32
	id   int32
}

// bpe is the byte-level encoder: text is split into words and each word merged
// from its bytes, lowest rank first, leftmost first among equals.
type bpe struct {
	split  splitter
	nfc    bool
	bytes  [256]int32
	merges map[uint64]merge
	words  map[string]int32 // words that are tokens as they stand; nil: merge them too
}

func pair(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

func (t *Tokenizer) initBPE(h *header) error {
	pre, err := h.textOr("tokenizer.ggml.pre", "default")
	if err != nil {
		return err
	}
	e := &bpe{}
	whole, bos := false, false
	switch pre {
	case "default", "gpt-2", "gpt2":
		e.split = splitGPT2
	case "llama-bpe", "llama3", "llama-v3":
		e.split, whole, bos = splitLlama3, true, true
	case "qwen2", "qwen3", "deepseek-r1-qwen":
		e.split, e.nfc = splitQwen2, true
	default:
		return fmt.Errorf("metadata %q is %.40q: want qwen2, llama-bpe or gpt-2", "tokenizer.ggml.pre", pre)
	}
	if t.addBOS, err = h.boolOr("tokenizer.ggml.add_bos_token", bos); err != nil {
		return err
	}
	ids := make(map[string]int32, len(t.texts))
	for i, text := range t.texts {
		switch t.kinds[i] {
		case kindNormal:
			if _, ok := ids[text]; !ok {
				ids[text] = int32(i)
			}
			t.pieces[i] = decodeAlphabet(text)
		case kindUserDefined:
			t.pieces[i] = text
		}
	}
	for b, r := range byteRunes {
		id, ok := ids[string(r)]
		if !ok {
			return fmt.Errorf("metadata %q: byte 0x%02x has no token", "tokenizer.ggml.tokens", b)
		}
		e.bytes[b] = id
	}
	if err := e.readMerges(h, ids); err != nil {
		return err
	}
	if whole {
		e.words = make(map[string]int32, len(ids))
		for _, id := range ids {
			e.words[t.pieces[id]] = id
		}
	}
	t.encoder = e
	return nil
}

func (e *bpe) readMerges(h *header, ids map[string]int32) error {
	const key = "tokenizer.ggml.merges"
	merges, err := h.texts(key)
	if err != nil {
		return err
	}
	e.merges = make(map[uint64]merge, len(merges))
	for i, m := range merges {
		left, right, ok := strings.Cut(m, " ")
		a, okA := ids[left]
		b, okB := ids[right]
		ab, okAB := ids[left+right]
		if !ok || !okA || !okB || !okAB {
			return fmt.Errorf("metadata %q element %d, %.40q: its parts or its result are no tokens", key, i, m)
		}
		if _, ok := e.merges[pair(a, b)]; !ok {
			e.merges[pair(a, b)] = merge{int32(i), ab}
		}
	}
	return nil
}

// decodeAlphabet turns the text of a token into the bytes it stands for.
func decodeAlphabet(text string) string {
	out := make([]byte, 0, len(text))
	for _, r := range text {
		if b, ok := runeBytes[r]; ok {
			out = append(out, b)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return string(out)
}

func (e *bpe) encode(dst []int32, text string) []int32 {
	if e.nfc {
		text = norm.NFC.String(text)
	}
	var m merger
	for len(text) > 0 {
		n := e.split(text)
		word := text[:n]
		text = text[n:]
		if id, ok := e.words[word]; ok {
			dst = append(dst, id)
			continue
		}
		dst = m.word(dst, e, word)
	}
	return dst
}

// symbol is a piece of a word on the way to its tokens: a doubly linked list in a
// slice, so that merging two of them moves nothing.
type symbol struct {
	id         int32
	prev, next int32 // -1: none
}

// candidate is a merge that was possible when it was queued; it is stale when one
// of its symbols has changed since.
type candidate struct {
	order     uint64 // rank, then position
	left      int32
	idL, idR  int32
	resulting int32
}

// merger holds the memory of one word's merging, reused from word to word.
type merger struct {
	symbols []symbol
	queue   heap[candidate]
}

func (c candidate) Less(d candidate) bool { return c.order < d.order }

func (m *merger) word(dst []int32, e *bpe, word string) []int32 {
	m.symbols = m.symbols[:0]
	for i := range len(word) {
		m.symbols = append(m.symbols, symbol{e.bytes[word[i]], int32(i) - 1, int32(i) + 1})
	}
	m.symbols[len(word)-1].next = -1
	m.queue = m.queue[:0]
	for i := range len(word) - 1 {
		m.offer(e, int32(i))
	}
	for len(m.queue) > 0 {
		c := m.queue.pop()
		left := &m.symbols[c.left]
		if left.id != c.idL || left.next < 0 || m.symbols[left.next].id != c.idR {
			continue
		}
		right := &m.symbols[left.next]
		left.id, left.next = c.resulting, right.next
		right.id = -1
		if right.next >= 0 {
			m.symbols[right.next].prev = c.left
			m.offer(e, c.left)
		}
		if left.prev >= 0 {
			m.offer(e, left.prev)
		}
	}
	for i := int32(0); i >= 0; i = m.symbols[i].next {
		dst = append(dst, m.symbols[i].id)
	}
	return dst
}

// offer queues the merge of the symbol at i with the one after it, if there is one.
func (m *merger) offer(e *bpe, i int32) {
	l := m.symbols[i]
	r := m.symbols[l.next].id
	if to, ok := e.merges[pair(l.id, r)]; ok {
		m.queue.push(candidate{uint64(to.rank)<<32 | uint64(uint32(i)), i, l.id, r, to.id})
	}
}
