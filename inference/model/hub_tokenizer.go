package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// tokenizerJSON is tokenizer.json. Format: huggingface/tokenizers; what has no
// meaning for ids of one text (truncation, padding, offsets) is left out.
type tokenizerJSON struct {
	Added   []addedToken    `json:"added_tokens"`
	Normal  json.RawMessage `json:"normalizer"`
	Pre     json.RawMessage `json:"pre_tokenizer"`
	Post    json.RawMessage `json:"post_processor"`
	Decoder json.RawMessage `json:"decoder"`
	Model   json.RawMessage `json:"model"`
}

// addedToken is a token that is found before the rest is encoded.
type addedToken struct {
	ID         int64  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// modelJSON is the part "model".
type modelJSON struct {
	Type         string           `json:"type"`
	Vocab        map[string]int64 `json:"vocab"`
	Merges       json.RawMessage  `json:"merges"`
	Dropout      *float64         `json:"dropout"`
	Unknown      *string          `json:"unk_token"`
	Prefix       *string          `json:"continuing_subword_prefix"`
	Suffix       *string          `json:"end_of_word_suffix"`
	FuseUnknown  bool             `json:"fuse_unk"`
	ByteFallback bool             `json:"byte_fallback"`
	IgnoreMerges bool             `json:"ignore_merges"`
}

// component is a step of the pipeline: its type, and its fields as they stand.
type component struct {
	Type string `json:"type"`
	raw  json.RawMessage
}

// components returns the steps of a part: none for null, those inside a Sequence.
func components(raw json.RawMessage, list string) ([]component, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	c := component{raw: raw}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	if c.Type != "Sequence" {
		return []component{c}, nil
	}
	var fields map[string]json.RawMessage
	var parts []json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(fields[list], &parts); err != nil || len(parts) > 64 {
		return nil, fmt.Errorf("a Sequence without %q, or with more than 64 parts", list)
	}
	var out []component
	for _, p := range parts {
		inner := component{raw: p}
		if err := json.Unmarshal(p, &inner); err != nil {
			return nil, err
		}
		if inner.Type == "Sequence" {
			return nil, errors.New("a Sequence inside a Sequence")
		}
		out = append(out, inner)
	}
	return out, nil
}

// newTokenizer builds the tokenizer of tokenizer.json.
func (h *hub) newTokenizer() (*Tokenizer, error) {
	var j tokenizerJSON
	if err := json.Unmarshal(h.tokenizer, &j); err != nil {
		return nil, err
	}
	var m modelJSON
	if err := json.Unmarshal(j.Model, &m); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	vocab := h.config.Vocab
	t := &Tokenizer{texts: make([]string, vocab), kinds: make([]tokenKind, vocab), pieces: make([]string, vocab), bos: -1, eos: -1, ends: map[int32]bool{}}
	ids, err := t.hubVocabulary(&m)
	if err != nil {
		return nil, fmt.Errorf("model.%w", err)
	}
	added, inner, err := t.hubAdded(j.Added, ids)
	if err != nil {
		return nil, fmt.Errorf("added_tokens: %w", err)
	}
	e := &bpe{}
	if err := e.hubNormalizer(j.Normal); err != nil {
		return nil, fmt.Errorf("normalizer: %w", err)
	}
	byteLevel, err := e.hubPreTokenizer(j.Pre)
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	if err := e.hubModel(&m, ids, byteLevel); err != nil {
		return nil, fmt.Errorf("model.%w", err)
	}
	t.encoder = e
	if err := t.hubDecoder(j.Decoder); err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	if m.IgnoreMerges {
		e.hubWords(t, ids, byteLevel)
	}
	if err := t.hubSpecials(h, j.Post, ids); err != nil {
		return nil, err
	}
	t.mark(added)
	t.markNormalized(e, inner)
	return t, nil
}

// markNormalized moves tokens that are found in normalized text to where that is
// known. Marks stay where they are: what is a user's is forgotten there.
func (t *Tokenizer) markNormalized(e *bpe, list []marker) {
	var inner []marker
	for _, k := range list {
		if _, named := t.byName[k.text]; named || t.kinds[k.id] != kindUserDefined {
			continue
		}
		delete(t.marked.byText, k.text)
		for _, f := range e.normal {
			k.text = f(k.text)
		}
		inner = append(inner, k)
	}
	if len(inner) > 0 {
		e.inner = newMarkers(inner)
	}
}

// hubVocabulary fills texts and kinds with the vocabulary of the model.
func (t *Tokenizer) hubVocabulary(m *modelJSON) (map[string]int32, error) {
	if m.Type != "BPE" && !(m.Type == "" && m.Merges != nil) {
		return nil, fmt.Errorf("type is %.40q: want BPE", m.Type)
	}
	ids := make(map[string]int32, len(m.Vocab))
	for text, id := range m.Vocab {
		switch {
		case id < 0 || id >= int64(len(t.texts)):
			return nil, fmt.Errorf("vocab: token %.80q has the id %d: the model has %d rows", text, id, len(t.texts))
		case len(text) > maxTokenLen || text == "":
			return nil, fmt.Errorf("vocab: token %.80q has %d bytes: want 1 to %d", text, len(text), maxTokenLen)
		case t.texts[id] != "":
			return nil, fmt.Errorf("vocab: the tokens %.80q and %.80q share the id %d", t.texts[id], text, id)
		}
		ids[text], t.texts[id], t.kinds[id] = int32(id), text, kindNormal
	}
	for i := range t.kinds {
		if t.texts[i] == "" {
			t.kinds[i] = kindUnused
		}
	}
	return ids, nil
}

// hubAdded enters the added tokens. What it returns says how they are found: special
// tokens and those that are taken from the text as it is, and those that are found
// once it is normalized.
func (t *Tokenizer) hubAdded(added []addedToken, ids map[string]int32) (options map[int32]marker, inner []marker, err error) {
	options = map[int32]marker{}
	for _, a := range added {
		if a.ID >= int64(len(t.texts)) {
			continue // for images, in models that share a tokenizer with some that see
		}
		switch old, known := ids[a.Content]; {
		case a.ID < 0:
			return nil, nil, fmt.Errorf("token %.80q has the id %d", a.Content, a.ID)
		case len(a.Content) > maxTokenLen || a.Content == "":
			return nil, nil, fmt.Errorf("token %.80q has %d bytes: want 1 to %d", a.Content, len(a.Content), maxTokenLen)
		case known && old != int32(a.ID) || !known && t.texts[a.ID] != "":
			return nil, nil, fmt.Errorf("token %.80q with the id %d is not what the vocabulary says", a.Content, a.ID)
		}
		id := int32(a.ID)
		ids[a.Content], t.texts[id], t.kinds[id] = id, a.Content, kindUserDefined
		if a.Special {
			t.kinds[id] = kindControl
		}
		k := marker{text: a.Content, id: id, word: a.SingleWord, eatL: a.LStrip, eatR: a.RStrip}
		options[id] = k
		if a.Normalized && !a.Special {
			inner = append(inner, k)
		}
	}
	return options, inner, nil
}

// hubModel reads the merges and the tokens of single characters.
func (e *bpe) hubModel(m *modelJSON, ids map[string]int32, byteLevel bool) error {
	switch {
	case m.Dropout != nil && *m.Dropout != 0:
		return errors.New("dropout: only 0 is supported")
	case or(m.Prefix, "") != "":
		return errors.New("continuing_subword_prefix is not supported")
	case or(m.Suffix, "") != "":
		return errors.New("end_of_word_suffix is not supported")
	}
	for b, r := range byteRunes {
		e.bytes[b] = -1
		if id, ok := ids[string(r)]; ok {
			e.bytes[b] = id
		}
	}
	if !byteLevel || or(m.Unknown, "") != "" || m.ByteFallback {
		if byteLevel {
			return errors.New("unk_token and byte_fallback do not go with ByteLevel")
		}
		c := &chars{ids: map[string]int32{}, unknown: -1, fuse: m.FuseUnknown}
		for text, id := range ids {
			if len([]rune(text)) == 1 {
				c.ids[text] = id
			}
		}
		for b := range c.bytes {
			id, ok := ids[fmt.Sprintf("<0x%02X>", b)]
			if !ok || !m.ByteFallback {
				id = -1
			}
			c.bytes[b] = id
		}
		if u := or(m.Unknown, ""); u != "" {
			id, ok := ids[u]
			if !ok {
				return fmt.Errorf("unk_token %.80q is no token", u)
			}
			c.unknown = id
		}
		e.chars = c
	}
	return e.hubMerges(m.Merges, ids)
}

// hubMerges reads merges as texts with a space between, or as pairs.
func (e *bpe) hubMerges(raw json.RawMessage, ids map[string]int32) error {
	var pairs [][2]string
	var lines []string
	if json.Unmarshal(raw, &lines) == nil {
		for i, l := range lines {
			left, right, ok := strings.Cut(l, " ")
			if !ok || strings.Contains(right, " ") {
				return fmt.Errorf("merges element %d, %.80q: want two tokens and a space between", i, l)
			}
			pairs = append(pairs, [2]string{left, right})
		}
	} else {
		var lists [][]string
		if err := json.Unmarshal(raw, &lists); err != nil {
			return errors.New("merges is no list of texts or of pairs")
		}
		for i, l := range lists {
			if len(l) != 2 {
				return fmt.Errorf("merges element %d has %d parts: want 2", i, len(l))
			}
			pairs = append(pairs, [2]string(l))
		}
	}
	e.merges = make(map[uint64]merge, len(pairs))
	for i, p := range pairs {
		a, okA := ids[p[0]]
		b, okB := ids[p[1]]
		ab, ok := ids[p[0]+p[1]]
		if !okA || !okB || !ok {
			return fmt.Errorf("merges element %d, %.40q and %.40q: its parts or its result are no tokens", i, p[0], p[1])
		}
		e.merges[pair(a, b)] = merge{int32(i), ab} // of equal ones the last counts
	}
	return nil
}

// hubWords enters the words that need no merges.
func (e *bpe) hubWords(t *Tokenizer, ids map[string]int32, byteLevel bool) {
	e.words = make(map[string]int32, len(ids))
	for text, id := range ids {
		switch {
		case t.kinds[id] != kindNormal:
		case byteLevel:
			e.words[decodeAlphabet(text)] = id
		default:
			e.words[text] = id
		}
	}
}

// hubSpecials finds the tokens that begin and end a text, and whether the first is
// put before every text.
func (t *Tokenizer) hubSpecials(h *hub, post json.RawMessage, ids map[string]int32) error {
	for _, s := range []struct {
		key  string
		name tokenName
		into *int32
	}{{"bos_token", h.options.BOS, &t.bos}, {"eos_token", h.options.EOS, &t.eos}} {
		if s.name == "" {
			continue
		}
		id, ok := ids[string(s.name)]
		if !ok {
			return fmt.Errorf("tokenizer_config.json: %s %.80q is no token", s.key, string(s.name))
		}
		*s.into = id
		if t.kinds[id] == kindNormal || t.kinds[id] == kindUserDefined {
			t.kinds[id] = kindControl
		}
	}
	if t.eos >= 0 {
		t.ends[t.eos] = true
	} else if len(h.ends) > 0 {
		t.eos = h.ends[0]
	}
	for _, id := range h.ends {
		t.ends[id] = true
		if t.kinds[id] == kindNormal {
			t.kinds[id] = kindControl
		}
	}
	for i, text := range t.texts {
		if t.kinds[i] == kindControl && slices.Contains(endTexts, text) {
			t.ends[int32(i)] = true
		}
	}
	first, err := firstToken(post)
	if err != nil {
		return fmt.Errorf("post_processor: %w", err)
	}
	switch id, ok := ids[first]; {
	case first == "":
		t.addBOS = or(h.options.AddBOS, false) && (len(post) == 0 || string(post) == "null")
	case !ok:
		return fmt.Errorf("post_processor: %.80q is no token", first)
	case t.bos < 0:
		t.bos, t.addBOS = id, true
	case id == t.bos:
		t.addBOS = true
	default:
		return fmt.Errorf("post_processor begins with %.80q, and bos_token is %.80q", first, t.texts[t.bos])
	}
	for i := range t.pieces {
		if t.kinds[i] == kindControl || t.kinds[i] == kindUnused {
			t.pieces[i] = ""
		}
	}
	return nil
}

// firstToken returns the token that the post-processor puts before a text.
func firstToken(post json.RawMessage) (string, error) {
	steps, err := components(post, "processors")
	if err != nil {
		return "", err
	}
	first := ""
	for _, s := range steps {
		switch s.Type {
		case "ByteLevel": // about offsets only
		case "TemplateProcessing":
			var template struct {
				Single []struct {
					SpecialToken *struct{ ID string }
					Sequence     *struct{ ID string }
				} `json:"single"`
			}
			if err := json.Unmarshal(s.raw, &template); err != nil {
				return "", err
			}
			list := template.Single
			if len(list) == 2 && list[0].SpecialToken != nil && list[1].Sequence != nil && first == "" {
				first = list[0].SpecialToken.ID
			} else if len(list) != 1 || list[0].Sequence == nil {
				return "", errors.New("TemplateProcessing: want one token, or none, and the text behind it")
			}
		default:
			return "", fmt.Errorf("type %.40q is not supported: want TemplateProcessing or ByteLevel", s.Type)
		}
	}
	return first, nil
}
