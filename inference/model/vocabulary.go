package model

import (
	"hash/maphash"
	"math/bits"
)

// vocabulary finds tokens by text. Making one of 150,000 tokens is a good part of a
// start, and a map of strings spends it waiting for memory: this table is a quarter of
// its size.
type vocabulary struct {
	texts []string
	slots []vocabularySlot // open addressing, at most half full
	seed  maphash.Seed
	added []bool // by id
	twice bool   // some text stood twice
}

type vocabularySlot struct {
	hash uint32
	id   uint32 // plus 1; 0: empty
}

// newVocabulary makes room for all texts; none is in it yet.
func newVocabulary(texts []string) *vocabulary {
	return &vocabulary{
		texts: texts, slots: make([]vocabularySlot, 2<<bits.Len(uint(len(texts)))), added: make([]bool, len(texts)), seed: maphash.MakeSeed(),
	}
}

// slot returns where a text is, or would be.
func (v *vocabulary) slot(text string) (*vocabularySlot, uint32) {
	h := maphash.String(v.seed, text)
	short, mask := uint32(h>>32), uint64(len(v.slots)-1)
	for i := h & mask; ; i = (i + 1) & mask {
		s := &v.slots[i]
		if s.id == 0 || s.hash == short && v.texts[s.id-1] == text {
			return s, short
		}
	}
}

// add puts in a token; the first one with its text counts.
func (v *vocabulary) add(id int) {
	s, h := v.slot(v.texts[id])
	if s.id != 0 {
		v.twice = true
		return
	}
	v.added[id] = true
	*s = vocabularySlot{h, uint32(id) + 1}
}

func (v *vocabulary) find(text string) (int32, bool) {
	s, _ := v.slot(text)
	return int32(s.id) - 1, s.id != 0
}

// joined reports whether find would return id for two texts put together, and may
// say no where it would: it is the quick way.
func (v *vocabulary) joined(id int32, left, right string) bool {
	if v.twice || id < 0 || int(id) >= len(v.texts) || !v.added[id] {
		return false
	}
	text := v.texts[id]
	return len(text) == len(left)+len(right) && text[:len(left)] == left && text[len(left):] == right
}
