package model

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
)

// Shape is the size of a synthetic model.
type Shape struct {
	Name                    string
	Architecture            string // llama, qwen2 or qwen3
	Layers, Width, FFN      int
	Heads, KVHeads, HeadDim int
	Vocab, Context          int // Vocab is at least 1024
	RopeBase                float32
	Tied                    bool
}

var shapes = map[string]Shape{
	// The shape of Qwen2.5-0.5B: 494 million parameters, 528 MB as Q8_0.
	"0.5b": {"0.5b", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, 32768, 1e6, true},
	// 26 million parameters: slow enough to watch, fast enough for a test.
	"mid":        {"mid", "qwen2", 8, 512, 1408, 8, 4, 64, 2048, 4096, 1e4, false},
	"tiny-llama": {"tiny-llama", "llama", 2, 128, 352, 4, 2, 32, 1024, 512, 5e5, false},
	"tiny-qwen2": {"tiny-qwen2", "qwen2", 2, 128, 352, 4, 2, 32, 1024, 512, 1e4, true},
	"tiny-qwen3": {"tiny-qwen3", "qwen3", 2, 128, 352, 4, 2, 64, 1024, 512, 1e6, true},
}

// ShapeOf returns the shape of this name: 0.5b, mid, tiny-llama, tiny-qwen2 or
// tiny-qwen3.
func ShapeOf(name string) (Shape, error) {
	s, ok := shapes[name]
	if !ok {
		return s, fmt.Errorf("no synthetic model %q: want %s", name, strings.Join(slices.Sorted(maps.Keys(shapes)), ", "))
	}
	return s, nil
}

// Synthesize writes a model of random weights: the same bytes for the same shape,
// format (F32, F16 or Q8_0) and seed on every platform. It computes like a real
// model and says nonsense: logits have an rms near 0.5, words are made of
// syllables, and special tokens are so unlikely that an answer ends by length.
func Synthesize(w io.Writer, s Shape, format Format, seed uint64) error {
	if !format.Supported() {
		return fmt.Errorf("synthesize %s: %v is not supported: want F32, F16 or Q8_0", s.Name, format)
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
	pre := "qwen2"
	if s.Architecture == "llama" {
		pre = "llama-bpe"
	}
	p, last := s.Architecture+".", uint32(len(tokens)-1)
	return []Meta{
		{"general.architecture", s.Architecture},
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
}

// Dimension 0 of the residual stream carries a constant c > 0 through the whole
// network: no layer reads it (norm weight 0) or writes it (zero rows), and the
// output norm lifts it. Output rows hold c there too, or -c for tokens that should
// stay out of answers: their logits are about 2·logitGap lower.
const logitGap = 10

func (s *Shape) tensors(tokens []string, format Format, seed uint64) []TensorSource {
	var out []TensorSource
	matrix := func(name string, in, rows int, std float64, first func(row int) float64, zeroRow bool) {
		g := &weights{format: format, in: in, rows: rows, std: float32(std), seed: seed, stream: uint64(len(out)), first: first, zeroRow: zeroRow}
		out = append(out, TensorSource{name, format, []int{in, rows}, g.fill})
	}
	vector := func(name string, n int, first, mean, std float64) {
		g := &weights{format: F32, in: n, rows: 1, std: float32(std), mean: float32(mean), seed: seed, stream: uint64(len(out)),
			first: func(int) float64 { return first }}
		out = append(out, TensorSource{name, F32, []int{n}, g.fill})
	}
	inv := func(n int) float64 { return 1 / math.Sqrt(float64(n)) }
	std := 0.5 * inv(s.Width)
	c := 16 * std
	special := func(row int) bool { return row >= len(tokens)-len(syntheticSpecials) }
	hidden := func(row int) bool {
		// With an output matrix of its own, bytes that are no visible text go too.
		return special(row) || !s.Tied && row < len(byteRunes) && (row < ' ' || row > '~')
	}
	sign := func(off func(int) bool) func(int) float64 {
		return func(row int) float64 {
			if off(row) {
				return -c
			}
			return c
		}
	}
	none := func(int) bool { return false }
	if s.Tied {
		matrix("token_embd.weight", s.Width, s.Vocab, std, sign(special), false)
	} else {
		matrix("token_embd.weight", s.Width, s.Vocab, std, sign(none), false)
		matrix("output.weight", s.Width, s.Vocab, std, sign(hidden), false)
	}
	vector("output_norm.weight", s.Width, logitGap/(c*c), 1, 0)
	q, kv := s.Heads*s.HeadDim, s.KVHeads*s.HeadDim
	out2 := 1 / math.Sqrt(float64(2*s.Layers))
	for i := range s.Layers {
		p := fmt.Sprintf("blk.%d.", i)
		vector(p+"attn_norm.weight", s.Width, 0, 1, 0)
		vector(p+"ffn_norm.weight", s.Width, 0, 1, 0)
		matrix(p+"attn_q.weight", s.Width, q, inv(s.Width), nil, false)
		matrix(p+"attn_k.weight", s.Width, kv, inv(s.Width), nil, false)
		matrix(p+"attn_v.weight", s.Width, kv, inv(s.Width), nil, false)
		if s.Architecture == "qwen2" {
			vector(p+"attn_q.bias", q, 0, 0, 0.1)
			vector(p+"attn_k.bias", kv, 0, 0, 0.1)
			vector(p+"attn_v.bias", kv, 0, 0, 0.1)
		}
		if s.Architecture == "qwen3" {
			vector(p+"attn_q_norm.weight", s.HeadDim, 1, 1, 0.1)
			vector(p+"attn_k_norm.weight", s.HeadDim, 1, 1, 0.1)
		}
		matrix(p+"attn_output.weight", q, s.Width, inv(q)*out2, nil, true)
		matrix(p+"ffn_gate.weight", s.Width, s.FFN, inv(s.Width), nil, false)
		matrix(p+"ffn_up.weight", s.Width, s.FFN, inv(s.Width), nil, false)
		matrix(p+"ffn_down.weight", s.FFN, s.Width, inv(s.FFN)*out2, nil, true)
	}
	return out
}
