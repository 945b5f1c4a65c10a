package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"
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

// runeBytes is byteRunes the other way; -1: the character stands for no byte.
var runeBytes = func() (table [256 + 68]int16) {
	for r := range table {
		table[r] = -1
	}
	for b, r := range byteRunes {
		table[r] = int16(b)
	}
	return table
}()

type merge struct {
	rank int32
	id   int32
}

// bpe is the encoder by merges: text is split into words and each word merged from
// its characters, lowest rank first, leftmost first among equals.
type bpe struct {
	normal []func(string) string
	inner  *markers // found after normalization; nil: none
	stages []stage

	bytes  [256]int32 // byte-level: the token of each byte; -1: it is left out
	chars  *chars     // not byte-level; nil otherwise
	merges map[uint64]merge
	words  map[string]int32 // words that are tokens as they stand; nil: merge them too
}

// chars is the first step of a vocabulary of characters: one without a token becomes
// bytes, or the unknown token.
type chars struct {
	ids     map[string]int32
	bytes   [256]int32 // -1: none
	unknown int32      // -1: what is unknown is left out
	fuse    bool       // a run of unknown characters is one token
}

func pair(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

// preTokenizer is what a name in the metadata of a GGUF file stands for.
type preTokenizer struct {
	patterns []string // each splits the pieces of the one before
	nfc      bool
	whole    bool // a word that is a token needs no merges
	bos      bool // add_bos_token where the file does not say
}

// preTokenizers are the names of ggml-org/llama.cpp, src/llama-vocab.cpp, for models
// of the architectures here.
var preTokenizers = map[string]preTokenizer{
	"gpt-2":       {patterns: []string{patternGPT2}},
	"gpt2":        {patterns: []string{patternGPT2}},
	"llama-bpe":   {patterns: []string{patternLlama3}, whole: true, bos: true},
	"llama3":      {patterns: []string{patternLlama3}, whole: true, bos: true},
	"llama-v3":    {patterns: []string{patternLlama3}, whole: true, bos: true},
	"qwen2":       {patterns: []string{patternQwen2}, nfc: true},
	"qwen3":       {patterns: []string{patternQwen2}, nfc: true},
	"megrez":      {patterns: []string{patternQwen2}, nfc: true},
	"smollm":      {patterns: []string{`\p{N}`, patternGPT2}},
	"tekken":      {patterns: []string{patternTekken}, whole: true, bos: true},
	"falcon3":     {patterns: []string{patternLlama3}, whole: true, bos: true},
	"smaug-bpe":   {patterns: []string{patternLlama3}},
	"chatglm-bpe": {patterns: []string{patternLlama3}},
	"default":     {patterns: []string{`[\p{P}\$\+<=>\^~\|]+`, strings.TrimSuffix(patternGPT2, `|\s+`), `\p{N}+`, `[0-9][0-9][0-9]`}},
	"deepseek-llm": {patterns: []string{`[\r\n]`, patternDeepSeekLetters, `\s?[!-/:-~！-／：-～‘-‟　-。]+`, `\s+$`,
		`[一-龥ࠀ-一가-퟿]+`, `\p{N}+`}},
	"deepseek-coder":   {patterns: []string{`[\r\n]`, `\s?\p{L}+`, `\s?\p{P}+`, `[一-龥ࠀ-一가-퟿]+`, `\p{N}`}},
	"deepseek-v3":      {patterns: []string{`\p{N}{1,3}`, `[一-龥぀-ゟ゠-ヿ]+`, patternDeepSeek3}},
	"deepseek-r1-qwen": {patterns: []string{patternQwen2}, nfc: true},
}

const (
	patternTekken = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|` +
		`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternDeepSeek3 = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|" +
		`[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternDeepSeekLetters = `\s?[` +
		"A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF\u0370-\u0373\u0376\u0377" +
		"\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1\u03A3-\u03F5\u03F7-\u0481\u048A-\u052F\u0531-\u0556" +
		"\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77\u1D79-\u1D9A\u1E00-\u1F15" +
		"\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE" +
		"\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102\u2107\u210A-\u2113" +
		"\u2115\u2119-\u211D\u2124\u2126\u2128\u212A-\u212D\u212F-\u2134\u2139\u213C-\u213F\u2145-\u2149\u214E\u2183\u2184" +
		"\u2C00-\u2C7B\u2C7E-\u2CE4\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E" +
		"\uAB70-\uABBF\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A\U00010400-\U0001044F\U000104B0-\U000104D3" +
		"\U000104D8-\U000104FB\U00010C80-\U00010CB2\U00010CC0-\U00010CF2\U000118A0-\U000118DF\U0001E900-\U0001E943" + `]+`
)

// stagesOf compiles patterns that split one after the other, keeping what they match.
func stagesOf(patterns []string) ([]stage, error) {
	var out []stage
	for _, p := range patterns {
		if split, ok := knownPatterns[p]; ok {
			out = append(out, words(split))
			continue
		}
		f, err := newFinder(p)
		if err != nil {
			return nil, err
		}
		out = append(out, splitBy(f, isolated, false))
	}
	return out, nil
}

func (t *Tokenizer) initBPE(h *header) error {
	name, err := h.textOr("tokenizer.ggml.pre", "default")
	if err != nil {
		return err
	}
	pre, ok := preTokenizers[name]
	if !ok {
		return fmt.Errorf("metadata %q is %.40q: want one of %s", "tokenizer.ggml.pre", name,
			strings.Join(slices.Sorted(maps.Keys(preTokenizers)), ", "))
	}
	e := &bpe{}
	if e.stages, err = stagesOf(pre.patterns); err != nil {
		return err
	}
	if pre.nfc {
		e.normal = append(e.normal, nfc)
	}
	if t.addBOS, err = h.boolOr("tokenizer.ggml.add_bos_token", pre.bos); err != nil {
		return err
	}
	ids := newVocabulary(t.texts)
	var pieces errgroup.Group // one processor makes them while another reads merges
	pieces.Go(func() error { t.decodePieces(); return nil })
	defer func() { _ = pieces.Wait() }()
	for i := range t.texts {
		if t.kinds[i] == kindNormal {
			ids.add(i)
		}
	}
	for b, r := range byteRunes {
		id, ok := ids.find(string(r))
		if !ok {
			return fmt.Errorf("metadata %q: byte 0x%02x has no token", "tokenizer.ggml.tokens", b)
		}
		e.bytes[b] = id
	}
	if err := e.readMerges(h, ids); err != nil {
		return err
	}
	_ = pieces.Wait()
	if pre.whole {
		e.words = make(map[string]int32, len(t.texts))
		for i, text := range t.texts {
			if id, ok := ids.find(text); ok && int(id) == i {
				e.words[t.pieces[i]] = id
			}
		}
	}
	t.encoder = e
	return nil
}

// decodePieces fills in what the tokens stand for: their own text, or a part of one
// long text.
func (t *Tokenizer) decodePieces() {
	var all []byte
	ends := make([]int, len(t.texts))
	for i, text := range t.texts {
		switch {
		case t.kinds[i] == kindUserDefined || t.kinds[i] == kindNormal && ownPiece(text):
			t.pieces[i] = text
		case t.kinds[i] == kindNormal:
			all = appendDecoded(all, text)
		}
		ends[i] = len(all)
	}
	long, start := string(all), 0
	for i, end := range ends {
		if end > start {
			t.pieces[i] = long[start:end]
		}
		start = end
	}
}

// ownPiece reports whether all characters of a text stand for themselves.
func ownPiece(text string) bool {
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

func (e *bpe) readMerges(h *header, ids *vocabulary) error {
	const key = "tokenizer.ggml.merges"
	merges, err := h.texts(key)
	if err != nil {
		return err
	}
	e.merges = make(map[uint64]merge, len(merges))
	// From the last one on, so that of equal ones the first stays.
	next := int32(len(ids.texts) - 1) // the token that likely results: they stand in the order of merges
	for i := len(merges) - 1; i >= 0; i-- {
		left, right, ok := strings.Cut(merges[i], " ")
		a, okA := ids.find(left)
		b, okB := ids.find(right)
		ab, okAB := next, ids.joined(next, left, right)
		if !okAB {
			ab, okAB = ids.find(left + right)
		}
		next = ab - 1
		if !ok || !okA || !okB || !okAB {
			return fmt.Errorf("metadata %q element %d, %.40q: its parts or its result are no tokens", key, i, merges[i])
		}
		e.merges[pair(a, b)] = merge{int32(i), ab}
	}
	return nil
}

// decodeAlphabet turns the text of a token into the bytes it stands for.
func decodeAlphabet(text string) string {
	return string(appendDecoded(make([]byte, 0, len(text)), text))
}

func appendDecoded(dst []byte, text string) []byte {
	for _, r := range text {
		if int(r) < len(runeBytes) && runeBytes[r] >= 0 {
			dst = append(dst, byte(runeBytes[r]))
		} else {
			dst = utf8.AppendRune(dst, r)
		}
	}
	return dst
}

func (e *bpe) encode(dst []int32, text string, first bool, most int) []int32 {
	for _, f := range e.normal {
		text = f(text)
	}
	if e.inner == nil {
		return e.pieces(dst, text, first, most)
	}
	e.inner.split(text, nil,
		func(s string, start bool) { dst = e.pieces(dst, s, first && start, most) },
		func(id int32) { dst = append(dst, id) })
	return dst
}

// pieces splits a normalized text into words and appends their tokens.
func (e *bpe) pieces(dst []int32, text string, first bool, most int) []int32 {
	list, next := []string{text}, []string(nil)
	for _, s := range e.stages {
		next = next[:0]
		for i, piece := range list {
			next = s(next, piece, first && i == 0)
		}
		list, next = next, list
	}
	var m merger
	for _, word := range list {
		if len(dst) > most {
			return dst
		}
		if id, ok := e.words[word]; ok {
			dst = append(dst, id)
		} else if word != "" {
			dst = m.word(dst, e, word)
		}
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

func (m *merger) add(id int32) {
	i := int32(len(m.symbols))
	m.symbols = append(m.symbols, symbol{id, i - 1, i + 1})
}

// start appends the symbols of a word, one for each character or byte of one.
func (c *chars) start(m *merger, word string) {
	unknown := false // one waits
	flush := func() {
		if unknown {
			m.add(c.unknown)
			unknown = false
		}
	}
	for len(word) > 0 {
		_, n := utf8.DecodeRuneInString(word)
		char := word[:n]
		word = word[n:]
		if id, ok := c.ids[char]; ok {
			flush()
			m.add(id)
			continue
		}
		if c.addBytes(m, char) || c.unknown < 0 {
			continue
		}
		if !c.fuse {
			flush()
		}
		unknown = true
	}
	flush()
}

// addBytes adds the byte tokens of a character if there are all of them.
func (c *chars) addBytes(m *merger, char string) bool {
	for i := range len(char) {
		if c.bytes[char[i]] < 0 {
			return false
		}
	}
	for i := range len(char) {
		m.add(c.bytes[char[i]])
	}
	return true
}

func (m *merger) word(dst []int32, e *bpe, word string) []int32 {
	m.symbols = m.symbols[:0]
	if e.chars != nil {
		e.chars.start(m, word)
	} else {
		for i := range len(word) {
			if id := e.bytes[word[i]]; id >= 0 {
				m.add(id)
			}
		}
	}
	n := len(m.symbols)
	if n == 0 {
		return dst
	}
	m.symbols[n-1].next = -1
	m.queue = m.queue[:0]
	for i := range n - 1 {
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
