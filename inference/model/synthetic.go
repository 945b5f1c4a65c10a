package model

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Shape is the size of a synthetic model.
type Shape struct {
	Name                    string
	Architecture            string // one of Architectures
	Layers, Width, FFN      int    // FFN is that of one expert where there are experts
	Heads, KVHeads, HeadDim int
	Vocab, Context          int // Vocab is at least 1024
	RopeBase                float32
	Tied                    bool
	Experts, ExpertsUsed    int // qwen3moe
	Window                  int // mistral, gemma2 and gemma3
}

var shapes = map[string]Shape{
	// The shape of Qwen2.5-0.5B: 494 million parameters, 528 MB as Q8_0.
	"0.5b": {"0.5b", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, 32768, 1e6, true, 0, 0, 0},
	// The shape of Qwen3-0.6B, whose rows are whole blocks in every format.
	"0.6b": {"0.6b", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 40960, 1e6, true, 0, 0, 0},
	// The shape of Llama-3.2-1B.
	"1b": {"1b", "llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 5e5, true, 0, 0, 0},
	// 26 million parameters: slow enough to watch, fast enough for a test.
	"mid": {"mid", "qwen2", 8, 512, 1408, 8, 4, 64, 2048, 4096, 1e4, false, 0, 0, 0},
	// 226 million parameters, of which a token takes 50 million.
	"mid-moe":       {"mid-moe", "qwen3moe", 8, 512, 256, 8, 4, 64, 2048, 4096, 1e6, false, 64, 8, 0},
	"tiny-llama":    {"tiny-llama", "llama", 2, 128, 352, 4, 2, 32, 1024, 512, 5e5, false, 0, 0, 0},
	"tiny-mistral":  {"tiny-mistral", "mistral", 2, 256, 512, 4, 2, 64, 1024, 512, 1e4, false, 0, 0, 48},
	"tiny-qwen2":    {"tiny-qwen2", "qwen2", 2, 128, 352, 4, 2, 32, 1024, 512, 1e4, true, 0, 0, 0},
	"tiny-qwen3":    {"tiny-qwen3", "qwen3", 2, 128, 352, 4, 2, 64, 1024, 512, 1e6, true, 0, 0, 0},
	"tiny-qwen3moe": {"tiny-qwen3moe", "qwen3moe", 2, 256, 256, 4, 2, 64, 1024, 512, 1e6, false, 8, 2, 0},
	"tiny-gemma":    {"tiny-gemma", "gemma", 2, 256, 512, 2, 1, 128, 1024, 512, 1e4, true, 0, 0, 0},
	"tiny-gemma2":   {"tiny-gemma2", "gemma2", 4, 256, 512, 4, 2, 64, 1024, 512, 1e4, true, 0, 0, 48},
	"tiny-gemma3":   {"tiny-gemma3", "gemma3", 6, 256, 512, 4, 2, 64, 1024, 512, 1e6, true, 0, 0, 48},
}

// ShapeOf returns the shape of this name; an unknown one is told the others.
func ShapeOf(name string) (Shape, error) {
	s, ok := shapes[name]
	if !ok {
		return s, fmt.Errorf("no synthetic model %q: want %s", name, strings.Join(slices.Sorted(maps.Keys(shapes)), ", "))
	}
	return s, nil
}

// Synthesize writes a model of random weights: the same bytes for the same shape,
// format and seed on every platform. Matrices whose rows are not whole blocks of the
// format are Q8_0. The model computes like a real one and says nonsense: logits have
// an rms near 0.5, words are made of syllables, and special tokens are so unlikely
// that an answer ends by length.
func Synthesize(w io.Writer, s Shape, format Format, seed uint64) error {
	if !format.Supported() {
		return fmt.Errorf("synthesize %s: %v is not supported: want %s", s.Name, format, supportedFormats)
	}
	if s.Vocab < 1024 {
		return fmt.Errorf("synthesize %s: vocabulary of %d: want at least 1024", s.Name, s.Vocab)
	}
	tokens, merges := s.tokens()
	if err := Write(w, s.meta(tokens, merges, seed), s.tensors(tokens, format, seed)); err != nil {
		return fmt.Errorf("synthesize %s: %w", s.Name, err)
	}
	return nil
}

// The special tokens stand at the end of the vocabulary.
var syntheticSpecials = []string{"<|endoftext|>", "<|im_start|>", "<|im_end|>"}

const syntheticTemplate = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}" +
	"{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

// tokens returns a byte-level vocabulary and the merges that reach every token of
// it: bytes, syllables, then words of one, two and three syllables.
func (s *Shape) tokens() (tokens, merges []string) {
	for _, r := range byteRunes {
		tokens = append(tokens, string(r))
	}
	room := s.Vocab - len(tokens) - len(syntheticSpecials)
	add := func(left, right string) bool {
		if len(merges) == room {
			return false
		}
		tokens = append(tokens, left+right)
		merges = append(merges, left+" "+right)
		return true
	}
	var syllables []string
	for _, c := range "bcdfghjklmnprstvwxyz" {
		for _, v := range "aeiou" {
			syllables = append(syllables, string(c)+string(v))
			add(string(c), string(v))
		}
	}
	words := []string{string(byteRunes[' '])}
	for len(merges) < room {
		var longer []string
		for _, word := range words {
			for _, syllable := range syllables {
				if !add(word, syllable) {
					return append(tokens, syntheticSpecials...), merges
				}
				longer = append(longer, word+syllable)
			}
		}
		words = longer
	}
	return append(tokens, syntheticSpecials...), merges
}

func (s *Shape) meta(tokens, merges []string, seed uint64) []Meta {
	kinds := make([]int32, len(tokens))
	for i := range kinds {
		kinds[i] = int32(kindNormal)
		if i >= len(tokens)-len(syntheticSpecials) {
			kinds[i] = int32(kindControl)
		}
	}
	pre, arch := "qwen2", s.Architecture
	switch arch {
	case "llama":
		pre = "llama-bpe"
	case "mistral":
		pre, arch = "llama-bpe", "llama"
	}
	p, last := arch+".", uint32(len(tokens)-1)
	out := []Meta{
		{"general.architecture", arch},
		{"general.name", fmt.Sprintf("synthetic-%s-%d", s.Name, seed)},
		{p + "block_count", uint32(s.Layers)},
		{p + "context_length", uint32(s.Context)},
		{p + "embedding_length", uint32(s.Width)},
		{p + "feed_forward_length", uint32(s.FFN)},
		{p + "attention.head_count", uint32(s.Heads)},
		{p + "attention.head_count_kv", uint32(s.KVHeads)},
		{p + "attention.key_length", uint32(s.HeadDim)},
		{p + "attention.value_length", uint32(s.HeadDim)},
		{p + "attention.layer_norm_rms_epsilon", float32(1e-6)},
		{p + "rope.freq_base", s.RopeBase},
		{"tokenizer.ggml.model", "gpt2"},
		{"tokenizer.ggml.pre", pre},
		{"tokenizer.ggml.tokens", tokens},
		{"tokenizer.ggml.token_type", kinds},
		{"tokenizer.ggml.merges", merges},
		{"tokenizer.ggml.eos_token_id", last},
		{"tokenizer.ggml.bos_token_id", last - 2},
		{"tokenizer.ggml.add_bos_token", false},
		{chatTemplateKey, syntheticTemplate},
	}
	if s.Experts > 0 {
		out = append(out, Meta{p + "expert_count", uint32(s.Experts)}, Meta{p + "expert_used_count", uint32(s.ExpertsUsed)},
			Meta{p + "expert_feed_forward_length", uint32(s.FFN)})
	}
	if s.Window > 0 {
		out = append(out, Meta{p + "attention.sliding_window", uint32(s.Window)})
	}
	return out
}
