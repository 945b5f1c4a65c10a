package model

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// tokenKind is the type of a token as GGUF numbers it.
type tokenKind uint8

const (
	kindNormal      tokenKind = 1
	kindUnknown     tokenKind = 2
	kindControl     tokenKind = 3
	kindUserDefined tokenKind = 4
	kindUnused      tokenKind = 5
	kindByte        tokenKind = 6
)

// maxTokenLen bounds the text of a token in bytes, so that looking one up costs
// the same whatever the file says.
const maxTokenLen = 1 << 10

// encoder turns plain text into ids; it knows no special tokens. first says that
// nothing stands before the text. It may stop once dst has more than most tokens.
type encoder interface {
	encode(dst []int32, text string, first bool, most int) []int32
}

// Tokenizer is the tokenizer of a model file. It is safe for concurrent use.
type Tokenizer struct {
	encoder encoder
	texts   []string // as in the file
	kinds   []tokenKind
	pieces  []string         // the bytes each token stands for; empty for control tokens
	longest int              // bytes of the longest text of a token
	ends    map[int32]bool   // tokens that end an answer
	marked  *markers         // tokens that are found as they stand
	byName  map[string]int32 // those that only a template may name, by text

	bos, eos    int32 // -1: none
	addBOS      bool
	spacePrefix bool // SentencePiece: text starts with a space that is not in it
}

func newTokenizer(h *header, vocab int) (*Tokenizer, error) {
	texts, err := h.texts("tokenizer.ggml.tokens")
	if err != nil {
		return nil, err
	}
	if len(texts) != vocab {
		return nil, fmt.Errorf("metadata %q has %d tokens: want %d", "tokenizer.ggml.tokens", len(texts), vocab)
	}
	t := &Tokenizer{texts: texts, kinds: make([]tokenKind, vocab), pieces: make([]string, vocab)}
	for i, s := range texts {
		if len(s) > maxTokenLen {
			return nil, fmt.Errorf("metadata %q element %d has %d bytes: want at most %d", "tokenizer.ggml.tokens", i, len(s), maxTokenLen)
		}
	}
	if err := t.readKinds(h); err != nil {
		return nil, err
	}
	if err := t.readSpecials(h); err != nil {
		return nil, err
	}
	kind, err := h.text("tokenizer.ggml.model")
	if err != nil {
		return nil, err
	}
	switch kind {
	case "gpt2":
		err = t.initBPE(h)
	case "llama":
		err = t.initSPM(h)
	default:
		err = fmt.Errorf("metadata %q is %.40q: want gpt2 or llama", "tokenizer.ggml.model", kind)
	}
	if err != nil {
		return nil, err
	}
	t.mark(nil)
	return t, nil
}

func (t *Tokenizer) readKinds(h *header) error {
	const key = "tokenizer.ggml.token_type"
	kinds, err := h.integers(key)
	if err != nil {
		return err
	}
	if kinds != nil && len(kinds) != len(t.texts) {
		return fmt.Errorf("metadata %q has %d elements: want %d", key, len(kinds), len(t.texts))
	}
	for i := range t.kinds {
		t.kinds[i] = kindNormal
		if kinds == nil {
			continue
		}
		if kinds[i] > int(kindByte) {
			return fmt.Errorf("metadata %q element %d is %d: want at most %d", key, i, kinds[i], kindByte)
		}
		t.kinds[i] = tokenKind(kinds[i])
	}
	return nil
}

// endTexts are control tokens that end an answer whatever the metadata says.
var endTexts = []string{"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "</s>"}

func (t *Tokenizer) readSpecials(h *header) error {
	t.bos, t.eos, t.ends = -1, -1, map[int32]bool{}
	for _, s := range []struct {
		key  string
		into *int32
		end  bool
	}{
		{"bos", &t.bos, false}, {"eos", &t.eos, true}, {"eot", nil, true}, {"eom", nil, true},
	} {
		key := "tokenizer.ggml." + s.key + "_token_id"
		if !h.has(key) {
			continue
		}
		id, err := h.integer(key)
		if err != nil {
			return err
		}
		if id >= len(t.texts) {
			return fmt.Errorf("metadata %q is %d: the vocabulary has %d tokens", key, id, len(t.texts))
		}
		if t.kinds[id] == kindNormal {
			t.kinds[id] = kindControl
		}
		if s.into != nil {
			*s.into = int32(id)
		}
		if s.end {
			t.ends[int32(id)] = true
		}
	}
	for i, text := range t.texts {
		if t.kinds[i] == kindControl && slices.Contains(endTexts, text) {
			t.ends[int32(i)] = true
		}
	}
	return nil
}

// mark collects the tokens that are found as they stand. Control tokens come from a
// template only, and so do those added to the vocabulary that look like marks: they
// have a meaning that no user may forge. All other added ones are text.
// A control token that starts with a letter, a digit or a space is left out: it could
// not be told from plain text. options holds what a tokenizer file says of some.
func (t *Tokenizer) mark(options map[int32]marker) {
	t.byName = map[string]int32{}
	var list []marker
	t.longest = 1
	for i, text := range t.texts {
		t.longest = max(t.longest, len(text))
		kind := t.kinds[i]
		if kind != kindControl && kind != kindUserDefined || text == "" {
			continue
		}
		k := options[int32(i)]
		k.text, k.id, k.trusted = text, int32(i), kind == kindControl || isMark(text)
		first, _ := utf8.DecodeRuneInString(text)
		if k.trusted && (first == utf8.RuneError || unicode.In(first, unicode.L, unicode.N, unicode.White_Space)) {
			continue
		}
		if _, ok := t.byName[text]; k.trusted && !ok {
			t.byName[text] = k.id
		}
		list = append(list, k)
	}
	t.marked = newMarkers(list)
}

// htmlNames are elements whose tags some vocabularies (gemma) hold as text.
var htmlNames = []string{"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "h1", "h2", "h3", "h4", "h5", "h6",
	"blockquote", "strong", "em", "b", "i", "u", "s", "sub", "sup", "code"}

// isMark reports whether an added token looks like <this> or [that] and is no HTML.
func isMark(text string) bool {
	if len(text) < 3 {
		return false
	}
	first, last := text[0], text[len(text)-1]
	if !(first == '<' && last == '>' || first == '[' && last == ']') {
		return false
	}
	return !slices.Contains(htmlNames, strings.TrimPrefix(text[1:len(text)-1], "/"))
}

// Vocab returns the number of tokens.
func (t *Tokenizer) Vocab() int { return len(t.texts) }

// BOS returns the token that starts a text; ok is false where there is none.
func (t *Tokenizer) BOS() (id int32, ok bool) { return t.bos, t.bos >= 0 }

// AddBOS reports whether the model expects BOS in front of plain text.
func (t *Tokenizer) AddBOS() bool { return t.addBOS && t.bos >= 0 }

// EOS returns the token that ends a text; ok is false where there is none.
func (t *Tokenizer) EOS() (id int32, ok bool) { return t.eos, t.eos >= 0 }

// IsEnd reports whether the token ends an answer (EOS, end of turn).
func (t *Tokenizer) IsEnd(id int32) bool { return t.ends[id] }

// Special returns the id of the special token with this text.
func (t *Tokenizer) Special(text string) (id int32, ok bool) {
	id, ok = t.byName[text]
	return id, ok
}

// IsSpecial reports whether the id is one that Encode never yields; some vocabularies
// call the token for unknown characters special too, which it does yield.
func (t *Tokenizer) IsSpecial(id int32) bool {
	if id < 0 || int(id) >= len(t.kinds) {
		return false
	}
	_, named := t.byName[t.texts[id]]
	return t.kinds[id] == kindControl || t.kinds[id] == kindUserDefined && named
}

// Encode returns the ids of plain text, without BOS. No part of the text becomes a
// special token, whatever it says. Time is near linear in the length of the text.
func (t *Tokenizer) Encode(text string) []int32 {
	ids, _ := t.EncodeMost(text, math.MaxInt)
	return ids
}

// EncodeMost is Encode for who has no use for more than most tokens: ok is false where
// the text has more, which costs less than to count them.
func (t *Tokenizer) EncodeMost(text string, most int) (ids []int32, ok bool) {
	return t.encode(text, nil, most)
}

// maxShrink is by how much a text may shrink before it is split, at most: a composed
// character has a third of the bytes. (A tokenizer.json may have texts shrink more by
// leaving things out; such a text counts as too long too early.)
const maxShrink = 3

// encode returns the ids of a text; limits as in markers.split, most as in EncodeMost.
func (t *Tokenizer) encode(text string, limits []int, most int) (ids []int32, ok bool) {
	if len(text)/(maxShrink*t.longest) > most {
		return nil, false
	}
	ids = make([]int32, 0, len(text)/3+1)
	t.marked.split(text, limits,
		func(s string, first bool) {
			if len(ids) <= most {
				ids = t.encoder.encode(ids, s, first, most)
			}
		},
		func(id int32) { ids = append(ids, id) })
	return ids, len(ids) <= most
}

// Piece returns the bytes that a token stands for in a text: nothing for control
// tokens and for ids outside the vocabulary.
func (t *Tokenizer) Piece(id int32) []byte {
	if id < 0 || int(id) >= len(t.pieces) {
		return nil
	}
	return []byte(t.pieces[id])
}

// Decode returns the text of the ids.
func (t *Tokenizer) Decode(ids []int32) string {
	d := t.NewDetokenizer()
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(d.Add(id))
	}
	b.WriteString(d.Flush())
	return b.String()
}
