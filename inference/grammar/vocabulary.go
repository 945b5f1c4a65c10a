package grammar

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// Vocabulary is the tokens of a model, ordered so that those with a common beginning
// are looked at together. It is safe for concurrent use.
type Vocabulary struct {
	size   int
	pieces []string // empty: never allowed, or an end token
	ends   []int32
	isEnd  map[int32]bool
	words  int // of a mask

	// Tokens of plain code points alone (the last may be incomplete) are allowed together
	// wherever so many are free.
	text, rest trie
	plain      []uint64 // all tokens of text
	byLength   [][]int32
}

// NewVocabulary orders the tokens 0 to size-1. piece returns the bytes that a token
// stands for; special and ends are ids that stand for none, the latter end an answer.
func NewVocabulary(size int, piece func(id int32) []byte, special, ends []int32) (*Vocabulary, error) {
	v := &Vocabulary{size: size, pieces: make([]string, size), isEnd: map[int32]bool{}, words: (size + 63) / 64}
	for id := range v.pieces {
		v.pieces[id] = string(piece(int32(id)))
	}
	for _, list := range [][]int32{special, ends} {
		for _, id := range list {
			if id < 0 || int(id) >= size {
				return nil, fmt.Errorf("special token %d: the vocabulary has %d tokens", id, size)
			}
			v.pieces[id] = ""
		}
	}
	for _, id := range ends {
		v.isEnd[id] = true
	}
	if v.ends = slices.Clone(ends); len(ends) == 0 {
		return nil, errors.New("the vocabulary has no token that ends an answer")
	}
	var text, rest []int32
	lengths := make([]int, size)
	v.plain = make([]uint64, v.words)
	for id, s := range v.pieces {
		if s == "" {
			continue
		}
		n := plainLength(s)
		if n == 0 {
			rest = append(rest, int32(id))
			continue
		}
		text = append(text, int32(id))
		lengths[id] = n
		for len(v.byLength) <= n {
			v.byLength = append(v.byLength, nil)
		}
		v.byLength[n] = append(v.byLength[n], int32(id))
		v.plain[id/64] |= 1 << (id % 64)
	}
	v.text, v.rest = newTrie(v.pieces, text, lengths), newTrie(v.pieces, rest, lengths)
	return v, nil
}

// plainLength counts the code points of a piece of plain ones alone, of which the last
// may be incomplete; 0 for any other piece.
func plainLength(s string) (n int) {
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		n++
		switch {
		case r == utf8.RuneError && size == 1:
			if utf8.FullRuneInString(s) {
				return 0
			}
			return n
		case r < ' ' || r == '"' || r == '\\' || r == 0x7F:
			return 0
		}
		s = s[size:]
	}
	return n
}

// trie holds tokens by their bytes. A node is a byte of a beginning; those below it
// follow it at once, up to its end.
type trie struct {
	byte   []byte
	depth  []uint16 // of the node, from 0
	end    []int32  // index after the nodes below
	most   []int32  // code points of the longest token at or below the node
	tokens []int32  // all, in the order of nodes
	first  []int32  // index of the node's first token; those up to the next node's are its
	height int      // greatest depth + 1
}

func newTrie(pieces []string, ids []int32, lengths []int) trie {
	slices.SortFunc(ids, func(a, b int32) int {
		if c := strings.Compare(pieces[a], pieces[b]); c != 0 {
			return c
		}
		return int(a - b)
	})
	t := trie{tokens: ids}
	var path []int32 // nodes from the root to the last one
	last := ""
	for i, id := range ids {
		s := pieces[id]
		common := 0
		for common < min(len(last), len(s)) && last[common] == s[common] {
			common++
		}
		for len(path) > common {
			t.end[path[len(path)-1]] = int32(len(t.byte))
			path = path[:len(path)-1]
		}
		for d := common; d < len(s); d++ {
			path = append(path, int32(len(t.byte)))
			t.byte, t.depth = append(t.byte, s[d]), append(t.depth, uint16(min(d, math.MaxUint16)))
			t.end, t.most, t.first = append(t.end, 0), append(t.most, 0), append(t.first, int32(i))
		}
		for _, n := range path {
			t.most[n] = max(t.most[n], int32(lengths[id]))
		}
		t.height = max(t.height, len(s))
		last = s
	}
	for _, n := range path {
		t.end[n] = int32(len(t.byte))
	}
	t.first = append(t.first, int32(len(ids)))
	return t
}
