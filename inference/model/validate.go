package model

import (
	"fmt"
	"slices"
)

func wantShape(name string, t *Tensor, shape ...int) error {
	// A vector may be written with trailing dimensions of 1.
	have := t.Shape
	for len(have) > len(shape) && have[len(have)-1] == 1 {
		have = have[:len(have)-1]
	}
	if !slices.Equal(have, shape) {
		return fmt.Errorf("tensor %q has shape %v: want %v", name, t.Shape, shape)
	}
	return nil
}

// called returns the name of a tensor as the file has it.
func (tb *table) called(name string) string {
	if tb.say == nil {
		return name
	}
	return tb.say(name)
}

// need is a tensor that the network has to find: a vector (norm or bias) where rows
// is 0, otherwise a matrix, or experts of them where experts is not 0.
type need struct {
	name              string
	in, rows, experts int
}

// require checks that a tensor is there and fits. Vectors are F32 in every GGUF
// file; safetensors hold them as they hold matrices.
func (tb *table) require(n need, floats bool) error {
	t, name := tb.byName[n.name], tb.called(n.name)
	if t == nil {
		return fmt.Errorf("tensor %q is missing", name)
	}
	switch {
	case n.rows == 0:
		if t.Format != F32 && !(floats && (t.Format == F16 || t.Format == BF16)) {
			return fmt.Errorf("tensor %q is %v: want F32", name, t.Format)
		}
		return wantShape(name, t, n.in)
	case !t.Format.Supported():
		return fmt.Errorf("tensor %q is %v: want %s", name, t.Format, supportedFormats)
	case n.experts == 0:
		return wantShape(name, t, n.in, n.rows)
	case !slices.Equal(t.Shape, []int{n.in, n.rows, n.experts}):
		return fmt.Errorf("tensor %q has shape %v: want %v", name, t.Shape, []int{n.in, n.rows, n.experts})
	}
	return nil
}

const embeddingName = "token_embd.weight"

// validate checks that every tensor of the architecture is there in its shape and
// sets what only the tensors tell: vocabulary, tied output, biases.
func (c *Config) validate(tb *table, floats bool) error {
	emb := tb.byName[embeddingName]
	if emb == nil {
		return fmt.Errorf("tensor %q is missing", tb.called(embeddingName))
	}
	if len(emb.Shape) < 2 {
		return fmt.Errorf("tensor %q has shape %v: want [%d vocabulary]", tb.called(emb.Name), emb.Shape, c.Width)
	}
	c.Vocab = emb.Shape[1]
	c.Tied = tb.byName["output.weight"] == nil
	c.QKVBias = tb.byName["blk.0.attn_q.bias"] != nil
	c.OutputBias = tb.byName["blk.0.attn_output.bias"] != nil
	ends := []need{{embeddingName, c.Width, c.Vocab, 0}, {"output_norm.weight", c.Width, 0, 0}}
	if !c.Tied {
		ends = append(ends, need{"output.weight", c.Width, c.Vocab, 0})
	}
	layer := c.layerNeeds()
	count := len(ends) + c.Layers*len(layer)
	for _, n := range ends {
		if err := tb.require(n, floats); err != nil {
			return err
		}
	}
	for i := range c.Layers {
		p := fmt.Sprintf("blk.%d.", i)
		for _, n := range layer {
			n.name = p + n.name
			if err := tb.require(n, floats); err != nil {
				return err
			}
		}
	}
	if tb.byName["rope_freqs.weight"] != nil {
		count++
	}
	if count == len(tb.tensors) {
		return nil
	}
	return c.refuseUnknown(tb, ends, layer)
}

// layerNeeds lists the tensors of a layer, without its prefix.
func (c *Config) layerNeeds() []need {
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	out := []need{
		{"attn_norm.weight", c.Width, 0, 0}, {"ffn_norm.weight", c.Width, 0, 0},
		{"attn_q.weight", c.Width, q, 0}, {"attn_k.weight", c.Width, kv, 0}, {"attn_v.weight", c.Width, kv, 0},
		{"attn_output.weight", q, c.Width, 0},
	}
	if c.Experts > 0 {
		out = append(out, need{"ffn_gate_inp.weight", c.Width, c.Experts, 0}, need{"ffn_gate_exps.weight", c.Width, c.ExpertFFN, c.Experts},
			need{"ffn_up_exps.weight", c.Width, c.ExpertFFN, c.Experts}, need{"ffn_down_exps.weight", c.ExpertFFN, c.Width, c.Experts})
	} else {
		out = append(out, need{"ffn_gate.weight", c.Width, c.FFN, 0}, need{"ffn_up.weight", c.Width, c.FFN, 0},
			need{"ffn_down.weight", c.FFN, c.Width, 0})
	}
	if c.QKVBias {
		out = append(out, need{"attn_q.bias", q, 0, 0}, need{"attn_k.bias", kv, 0, 0}, need{"attn_v.bias", kv, 0, 0})
	}
	if c.OutputBias {
		out = append(out, need{"attn_output.bias", c.Width, 0, 0})
	}
	if c.QKNorm {
		out = append(out, need{"attn_q_norm.weight", c.HeadDim, 0, 0}, need{"attn_k_norm.weight", c.HeadDim, 0, 0})
	}
	if c.PostNorms {
		out = append(out, need{"post_attention_norm.weight", c.Width, 0, 0}, need{"post_ffw_norm.weight", c.Width, 0, 0})
	}
	return out
}

// refuseUnknown refuses a tensor that the network does not use: leaving it out
// would compute another model than the file's.
func (c *Config) refuseUnknown(tb *table, ends, layer []need) error {
	known := map[string]bool{"rope_freqs.weight": true}
	for _, n := range ends {
		known[n.name] = true
	}
	for i := range c.Layers {
		p := fmt.Sprintf("blk.%d.", i)
		for _, n := range layer {
			known[p+n.name] = true
		}
	}
	for _, t := range tb.tensors {
		if !known[t.Name] {
			return fmt.Errorf("tensor %q is not part of the %s architecture", tb.called(t.Name), c.Architecture)
		}
	}
	return nil
}

// ggufVocabulary checks what the metadata says of the vocabulary.
func (h *header) ggufVocabulary(c *Config) error {
	key := c.Architecture + ".vocab_size"
	if n, err := h.integerOr(key, c.Vocab); err != nil || n != c.Vocab {
		return fmt.Errorf("metadata %q is not the %d rows of %q", key, c.Vocab, embeddingName)
	}
	if tokens, ok := h.meta["tokenizer.ggml.tokens"]; ok && tokens.count != c.Vocab {
		return fmt.Errorf("metadata %q has %d tokens, %q has %d rows", "tokenizer.ggml.tokens", tokens.count, embeddingName, c.Vocab)
	}
	return nil
}
