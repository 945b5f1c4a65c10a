package model

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// smallTokenizer is a tokenizer.json with a few tokens.
const smallTokenizer = `{"added_tokens":[{"id":6,"content":"<s>","special":true},{"id":7,"content":"<end>","special":true},
 {"id":8,"content":"<tool>","special":false},{"id":9,"content":"word","special":false,"single_word":true},{"id":4096,"content":"abab"}],
 "normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},
 "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}]},
 "decoder":{"type":"ByteLevel"},
 "model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"Ġ":3,"Ġab":4,"w":5},"merges":["a b",["Ġ","ab"]]}}`

func small(t testing.TB, change func(j map[string]any)) ([]byte, error) {
	t.Helper()
	var j map[string]any
	if err := json.Unmarshal([]byte(strings.Replace(smallTokenizer, `["Ġ","ab"]`, `"Ġ ab"`, 1)), &j); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(j)
	}
	return json.Marshal(j)
}

func TestHubTokenizer(t *testing.T) {
	raw, err := small(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := hubTokenizer(raw, tokenizerConfig{EOS: "<end>"})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string][]int32{
		"ab ab":        {2, 4},
		"abx":          {2},             // a byte without a token is left out, as the reference does
		"word a words": {9, 3, 0, 3, 5}, // of words only w has a token
		"<s>a<tool>":   {0},             // neither special tokens nor marks come from text
		"":             {},
	} {
		if got := tok.Encode(text); !slices.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
	bos, _ := tok.BOS()
	eos, _ := tok.EOS()
	if bos != 6 || eos != 7 || !tok.AddBOS() || !tok.IsEnd(7) || tok.IsEnd(6) || !tok.IsSpecial(8) || tok.IsSpecial(9) || tok.IsSpecial(2000) {
		t.Errorf("bos %d, eos %d", bos, eos)
	}
	if got := tok.Decode([]int32{6, 4, 8, 9, 7, 2000}); got != " ab<tool>word" {
		t.Errorf("decodes to %q", got)
	}
}

func TestHubTokenizerRefuses(t *testing.T) {
	type object = map[string]any
	part := func(name string, v any) func(object) { return func(j object) { j[name] = v } }
	model := func(name string, v any) func(object) { return func(j object) { j["model"].(object)[name] = v } }
	split := func(regex string) func(object) {
		return part("pre_tokenizer", object{"type": "Split", "pattern": object{"Regex": regex}, "behavior": "Isolated"})
	}
	tests := []struct {
		name   string
		change func(object)
		want   string
	}{
		{"model", model("type", "Unigram"), `type is "Unigram"`},
		{"id outside", model("vocab", object{"a": 4096}), "vocab"},
		{"negative id", model("vocab", object{"a": -1}), "vocab"},
		{"id twice", model("vocab", object{"a": 1, "b": 1}), "share the id 1"},
		{"long token", model("vocab", object{strings.Repeat("a", 2000): 1}), "2000 bytes"},
		{"merge", model("merges", []string{"a q"}), "merges element 0"},
		{"merge of three", model("merges", []string{"a b w"}), "merges element 0"},
		{"merge of one", model("merges", [][]string{{"a"}}), "merges element 0"},
		{"merges", model("merges", 7), "merges"},
		{"dropout", model("dropout", 0.1), "dropout"},
		{"prefix", model("continuing_subword_prefix", "##"), "continuing_subword_prefix"},
		{"suffix", model("end_of_word_suffix", "</w>"), "end_of_word_suffix"},
		{"unknown", model("unk_token", "<unk>"), "unk_token"},
		{"added outside", part("added_tokens", []object{{"id": -1, "content": "x"}}), "added_tokens"},
		{"added twice", part("added_tokens", []object{{"id": 1, "content": "x"}}), "added_tokens"},
		{"empty added", part("added_tokens", []object{{"id": 100, "content": ""}}), "added_tokens"},
		{"normalizer", part("normalizer", object{"type": "Precompiled"}), `normalizer: type "Precompiled"`},
		{"replacement", part("normalizer", object{"type": "Replace", "pattern": object{"String": "a"}, "content": strings.Repeat("x", 65)}), "normalizer"},
		{"no pattern", part("normalizer", object{"type": "Replace", "pattern": object{"String": ""}, "content": "x"}), "pattern"},
		{"nested", part("normalizer", object{"type": "Sequence", "normalizers": []object{{"type": "Sequence"}}}), "Sequence"},
		{"pre-tokenizer", part("pre_tokenizer", object{"type": "BertPreTokenizer"}), "BertPreTokenizer"},
		{"behaviour", part("pre_tokenizer", object{"type": "Split", "pattern": object{"String": "a"}, "behavior": "x"}), "behavior"},
		{"look-behind", split(`(?<=a)b`), "(?<"},
		{"look-ahead", split(`a(?=b)`), "(?="},
		{"possessive", split(`a++`), "quantifier"},
		{"back reference", split(`(a)\1`), "not supported"},
		{"anchor", split(`^a`), "not supported"},
		{"dot", split(`a.`), "not supported"},
		{"word class", split(`\w+`), "not supported"},
		{"set operation", split(`[\p{L}&&[a-z]]`), "set"},
		{"empty", split(`a*`), "matches nothing"},
		{"no pattern", split(`[`), "no regular expression"},
		{"unknown property", split(`\p{Nonsense}`), "no regular expression"},
		{"huge", split(strings.Repeat("a", 5000)), "too long"},
		{"last", part("pre_tokenizer", object{"type": "Sequence", "pretokenizers": []object{{"type": "ByteLevel"}, {"type": "Digits"}}}), "last"},
		{"metaspace", part("pre_tokenizer", object{"type": "Metaspace", "replacement": "", "prepend_scheme": "always"}), "Metaspace"},
		{"post-processor", part("post_processor", object{"type": "BertProcessing"}), "BertProcessing"},
		{"end in the template", part("post_processor", object{"type": "TemplateProcessing", "single": []object{
			{"Sequence": object{"id": "A"}}, {"SpecialToken": object{"id": "<end>"}}}}), "TemplateProcessing"},
		{"other start", part("post_processor", object{"type": "TemplateProcessing", "single": []object{
			{"SpecialToken": object{"id": "<q>"}}, {"Sequence": object{"id": "A"}}}}), "<q>"},
		{"decoder", part("decoder", object{"type": "WordPiece"}), "WordPiece"},
		{"strip", part("decoder", object{"type": "Strip", "content": "x", "start": 1}), "Strip"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw, err := small(t, tt.change)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := hubTokenizer(raw, tokenizerConfig{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error that names %s", err, tt.want)
			}
		})
	}
	raw, _ := small(t, nil)
	if _, err := hubTokenizer(raw, tokenizerConfig{BOS: "a"}); err == nil || !strings.Contains(err.Error(), "bos_token") {
		t.Errorf("another BOS: %v", err)
	}
	if _, err := hubTokenizer(raw, tokenizerConfig{EOS: "nosuch"}); err == nil || !strings.Contains(err.Error(), "eos_token") {
		t.Errorf("an EOS that is no token: %v", err)
	}
}

// TestHubLongTexts bounds the time of texts that make naive tokenizers quadratic.
func TestHubLongTexts(t *testing.T) {
	g := readGolden(t)
	texts := []string{strings.Repeat("a", 1<<16), strings.Repeat(" ", 1<<15), strings.Repeat("\n", 1<<15), strings.Repeat("e\u0301", 1<<14),
		"e" + strings.Repeat("\u0301", 1<<15), strings.Repeat("<|im_start|", 1<<13), strings.Repeat("\xf0\x9f", 1<<14), strings.Repeat("▁", 1<<14),
		strings.Repeat("don't 123 ", 1<<12)}
	for name, raw := range g.Tokenizers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tok, err := hubTokenizer(raw, tokenizerConfig{})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range texts {
				if ids := tok.Encode(s); len(ids) > 4*len(s) {
					t.Errorf("%d tokens for %d bytes", len(ids), len(s))
				}
			}
		})
	}
}

func FuzzSafetensors(f *testing.F) {
	m, file := hubOf(f, "tiny-qwen2", BF16)
	f.Add(m[weightsName][:2000])
	f.Add(writeSafetensors(hubTensors(file)[:2]))
	f.Add([]byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tensors, err := parseSafetensors(b)
		if err != nil {
			return
		}
		total := uint64(0)
		for _, x := range tensors {
			if uint64(len(x.Data)) != x.size || x.Rows()*x.Format.RowBytes(x.In()) != len(x.Data) {
				t.Errorf("tensor %q has %d bytes of %d", x.Name, len(x.Data), x.size)
			}
			total += x.size
		}
		if total > uint64(len(b)) {
			t.Errorf("%d bytes of tensors in a file of %d", total, len(b))
		}
	})
}

func FuzzConfigJSON(f *testing.F) {
	for _, shape := range []string{"tiny-llama", "tiny-gemma3", "tiny-qwen3moe", "tiny-mistral"} {
		m, _ := hubOf(f, shape, BF16)
		f.Add(m["config.json"], m["tokenizer_config.json"])
	}
	f.Add([]byte(`{"rope_scaling":{"rope_type":"llama3"}}`), []byte(`{"chat_template":[]}`))
	f.Fuzz(func(t *testing.T, config, options []byte) {
		h := &hub{}
		if h.read(map[string][]byte{"config.json": config, "tokenizer_config.json": options}) != nil {
			return
		}
		c := &h.config.Config
		if c.Layers < 1 || c.HeadDim < 2 || c.Heads%c.KVHeads != 0 || c.Local != nil && len(c.Local) != c.Layers || !(c.AttnScale > 0) {
			t.Errorf("config %+v", c)
		}
	})
}

func FuzzTokenizerJSON(f *testing.F) {
	f.Add([]byte(strings.Replace(smallTokenizer, `["Ġ","ab"]`, `"Ġ ab"`, 1)), "ab word <s>\xff")
	for _, raw := range readGolden(f).Tokenizers {
		f.Add([]byte(raw), "Hello, wörld 123\n\n")
	}
	f.Fuzz(func(t *testing.T, b []byte, text string) {
		tok, err := hubTokenizer(b, tokenizerConfig{})
		if err != nil {
			return
		}
		unknown := int32(-1) // is a special token that text may yield
		if c := tok.encoder.(*bpe).chars; c != nil {
			unknown = c.unknown
		}
		for _, id := range tok.Encode(text) {
			if id < 0 || int(id) >= tok.Vocab() || tok.IsSpecial(id) && id != unknown {
				t.Errorf("%q gives token %d", text, id)
			}
		}
	})
}

// FuzzPattern compares the hand-written splitters with the translated patterns.
func FuzzPattern(f *testing.F) {
	for _, s := range goldenStrings(50, 3) {
		f.Add(s)
	}
	finders := map[string]finder{}
	for p := range knownPatterns {
		next, err := newFinder(p)
		if err != nil {
			f.Fatal(err)
		}
		finders[p] = next
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			return
		}
		for p, split := range knownPatterns {
			got, want := words(split)(nil, s, true), splitBy(finders[p], isolated, false)(nil, s, true)
			if !slices.Equal(got, want) {
				t.Errorf("%q by %q:\n got %q\nwant %q", s, p, got, want)
			}
		}
	})
}
