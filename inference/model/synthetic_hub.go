package model

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// SynthesizeDirectory writes a model of random weights as a directory of safetensors:
// the one that Synthesize writes, its special tokens and its template included. The
// weights are divided among so many files. format is BF16, F16 or F32.
func SynthesizeDirectory(dir string, s Shape, format Format, seed uint64, shards int) error {
	if safetensorFormats[format.String()] != format || shards < 1 || shards > 64 {
		return fmt.Errorf("synthesize %s: %v in %d files: want BF16, F16 or F32 in 1 to 64", s.Name, format, shards)
	}
	var b bytes.Buffer
	if err := Synthesize(&b, s, format, seed); err != nil {
		return err
	}
	f, err := OpenBytes(b.Bytes())
	if err != nil {
		return fmt.Errorf("synthesize %s: %w", s.Name, err)
	}
	files := s.hubFiles(f)
	addWeights(files, hubTensors(f), shards)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("synthesize %s: %w", s.Name, err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return fmt.Errorf("synthesize %s: %w", s.Name, err)
		}
	}
	return nil
}

// addWeights divides tensors among files, with an index where there are several.
func addWeights(files map[string][]byte, all []*Tensor, shards int) {
	if shards == 1 {
		files[weightsName] = writeSafetensors(all)
		return
	}
	where := map[string]string{}
	for i := range shards {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, shards)
		part := all[i*len(all)/shards : (i+1)*len(all)/shards]
		files[name] = writeSafetensors(part)
		for _, t := range part {
			where[t.Name] = name
		}
	}
	files[indexName] = encodeJSON(map[string]any{"metadata": map[string]int{"total_size": 1}, "weight_map": where})
}

// writeSafetensors returns a file with these tensors, which stand in it in this order.
func writeSafetensors(tensors []*Tensor) []byte {
	var head bytes.Buffer
	head.WriteString(`{"__metadata__":{"format":"pt"}`)
	size := 0
	for _, t := range tensors {
		shape := slices.Clone(t.Shape)
		slices.Reverse(shape)
		b := encodeJSON(map[string]any{"dtype": t.Format.String(), "shape": shape, "data_offsets": []int{size, size + len(t.Data)}})
		fmt.Fprintf(&head, ",%q:%s", t.Name, b)
		size += len(t.Data)
	}
	head.WriteByte('}')
	for head.Len()%8 != 0 {
		head.WriteByte(' ')
	}
	out := slices.Grow(binary.LittleEndian.AppendUint64(nil, uint64(head.Len())), head.Len()+size)
	out = append(out, head.Bytes()...)
	for _, t := range tensors {
		out = append(out, t.Data...)
	}
	return out
}

// hubTensors returns the tensors of a GGUF file under Hugging Face names, experts
// apart, gemma's norms less 1.
func hubTensors(f *File) []*Tensor {
	c := &f.Config
	names := slices.Concat(layerNames, normNames)
	if c.PostNorms {
		names = slices.Concat(layerNames, gemmaNames)
	}
	var out []*Tensor
	for _, t := range f.Tensors {
		name := hubName(t.Name, names)
		if t.Experts() > 1 {
			for e := range t.Experts() {
				x := t.Expert(e)
				x.Name = strings.Replace(name, "*", fmt.Sprint(e), 1)
				out = append(out, x)
			}
			continue
		}
		x := &Tensor{Name: name, Format: t.Format, Shape: t.Shape, Data: t.Data}
		if c.Activation == GELUTanh && strings.HasSuffix(name, "norm.weight") {
			v, _ := t.Float32s() // norms are F32
			x.Data = nil
			for _, w := range v {
				x.Data = binary.LittleEndian.AppendUint32(x.Data, math.Float32bits(w-1))
			}
		}
		out = append(out, x)
	}
	return out
}

// hubFiles returns the JSON files that stand beside the weights of f.
func (s *Shape) hubFiles(f *File) map[string][]byte {
	tokens, merges := s.tokens()
	vocab, added := map[string]int{}, []addedToken{}
	for i, text := range tokens {
		if i >= len(tokens)-len(syntheticSpecials) {
			added = append(added, addedToken{ID: int64(i), Content: text, Special: true})
		} else {
			vocab[text] = i
		}
	}
	pattern, ignore := patternQwen2, false
	var normal any = map[string]string{"type": "NFC"}
	if s.Architecture == "llama" || s.Architecture == "mistral" {
		pattern, ignore, normal = patternLlama3, true, nil
	}
	return map[string][]byte{
		"config.json": s.hubConfig(&f.Config),
		"tokenizer.json": encodeJSON(map[string]any{
			"added_tokens": added, "normalizer": normal,
			"pre_tokenizer": map[string]any{"type": "Sequence", "pretokenizers": []any{
				map[string]any{"type": "Split", "pattern": map[string]string{"Regex": pattern}, "behavior": "Isolated", "invert": false},
				map[string]any{"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
			}},
			"decoder": map[string]string{"type": "ByteLevel"},
			"model":   map[string]any{"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": ignore},
		}),
		"tokenizer_config.json": encodeJSON(map[string]any{
			"bos_token": syntheticSpecials[0], "eos_token": map[string]any{"content": syntheticSpecials[2], "lstrip": false}, "chat_template": syntheticTemplate,
		}),
	}
}

func (s *Shape) hubConfig(c *Config) []byte {
	kind := map[string]string{"qwen3moe": "qwen3_moe", "gemma3": "gemma3_text"}[s.Architecture]
	if kind == "" {
		kind = s.Architecture
	}
	config := map[string]any{
		"model_type": kind, "num_hidden_layers": c.Layers, "hidden_size": c.Width, "intermediate_size": s.FFN,
		"num_attention_heads": c.Heads, "num_key_value_heads": c.KVHeads, "head_dim": c.HeadDim, "vocab_size": c.Vocab,
		"max_position_embeddings": c.Context, "rms_norm_eps": 1e-6, "rope_theta": c.RopeBase, "tie_word_embeddings": c.Tied, "sliding_window": nil,
		"eos_token_id": c.Vocab - 1, "torch_dtype": "bfloat16",
	}
	if c.Window > 0 {
		config["sliding_window"] = c.Window
	}
	if c.PostNorms {
		config["query_pre_attn_scalar"] = c.HeadDim
	}
	if c.Experts > 0 {
		config["num_experts"], config["num_experts_per_tok"], config["moe_intermediate_size"] = c.Experts, c.ExpertsUsed, c.ExpertFFN
		config["norm_topk_prob"] = true
	}
	return encodeJSON(config)
}

func encodeJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // what we make ourselves can be encoded
	}
	return b
}
