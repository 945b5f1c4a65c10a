package model

import (
	"fmt"
	"slices"
)

func wantShape(t *Tensor, shape ...int) error {
	// A vector may be written with trailing dimensions of 1.
	have := t.Shape
	for len(have) > len(shape) && have[len(have)-1] == 1 {
		have = have[:len(have)-1]
	}
	if !slices.Equal(have, shape) {
		return fmt.Errorf("tensor %q has shape %v: want %v", t.Name, t.Shape, shape)
	}
	return nil
}

// matrix checks that a weight matrix is there: rows of in elements.
func (h *header) matrix(name string, in, rows int) error {
	t := h.byName[name]
	if t == nil {
		return fmt.Errorf("tensor %q is missing", name)
	}
	if !t.Format.Supported() {
		return fmt.Errorf("tensor %q is %v: want F32, F16 or Q8_0", name, t.Format)
	}
	return wantShape(t, in, rows)
}

// vector checks a norm or a bias, which are F32 in every GGUF file.
func (h *header) vector(name string, n int) error {
	t := h.byName[name]
	if t == nil {
		return fmt.Errorf("tensor %q is missing", name)
	}
	if t.Format != F32 {
		return fmt.Errorf("tensor %q is %v: want F32", name, t.Format)
	}
	return wantShape(t, n)
}

// validate checks that every tensor of the architecture is there in its shape and
// sets what only the tensors tell: vocabulary, tied output, biases.
func validate(h *header, c *Config) error {
	emb := h.byName["token_embd.weight"]
	if emb == nil {
		return fmt.Errorf("tensor %q is missing", "token_embd.weight")
	}
	if len(emb.Shape) < 2 {
		return fmt.Errorf("tensor %q has shape %v: want [%d vocabulary]", emb.Name, emb.Shape, c.Width)
	}
	c.Vocab = emb.Shape[1]
	if err := h.matrix(emb.Name, c.Width, c.Vocab); err != nil {
		return err
	}
	if n, err := h.integerOr(c.Architecture+".vocab_size", c.Vocab); err != nil || n != c.Vocab {
		return fmt.Errorf("metadata %q is not the %d rows of %q", c.Architecture+".vocab_size", c.Vocab, emb.Name)
	}
	if tokens, ok := h.meta["tokenizer.ggml.tokens"]; ok && tokens.count != c.Vocab {
		return fmt.Errorf("metadata %q has %d tokens, %q has %d rows", "tokenizer.ggml.tokens", tokens.count, emb.Name, c.Vocab)
	}
	if err := h.vector("output_norm.weight", c.Width); err != nil {
		return err
	}
	c.Tied = h.byName["output.weight"] == nil
	if !c.Tied {
		if err := h.matrix("output.weight", c.Width, c.Vocab); err != nil {
			return err
		}
	}
	c.QKVBias = h.byName["blk.0.attn_q.bias"] != nil
	c.OutputBias = h.byName["blk.0.attn_output.bias"] != nil
	for i := range c.Layers {
		if err := c.validateLayer(h, fmt.Sprintf("blk.%d.", i)); err != nil {
			return err
		}
	}
	return c.refuseUnknown(h)
}

func (c *Config) validateLayer(h *header, p string) error {
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	matrices := []struct {
		name     string
		in, rows int
	}{
		{"attn_q", c.Width, q}, {"attn_k", c.Width, kv}, {"attn_v", c.Width, kv}, {"attn_output", q, c.Width},
		{"ffn_gate", c.Width, c.FFN}, {"ffn_up", c.Width, c.FFN}, {"ffn_down", c.FFN, c.Width},
	}
	for _, m := range matrices {
		if err := h.matrix(p+m.name+".weight", m.in, m.rows); err != nil {
			return err
		}
	}
	for _, v := range c.layerVectors() {
		if err := h.vector(p+v.name, v.n); err != nil {
			return err
		}
	}
	return nil
}

type namedLength struct {
	name string
	n    int
}

func (c *Config) layerVectors() []namedLength {
	out := []namedLength{{"attn_norm.weight", c.Width}, {"ffn_norm.weight", c.Width}}
	if c.QKVBias {
		out = append(out, namedLength{"attn_q.bias", c.Heads * c.HeadDim},
			namedLength{"attn_k.bias", c.KVHeads * c.HeadDim}, namedLength{"attn_v.bias", c.KVHeads * c.HeadDim})
	}
	if c.OutputBias {
		out = append(out, namedLength{"attn_output.bias", c.Width})
	}
	if c.QKNorm {
		out = append(out, namedLength{"attn_q_norm.weight", c.HeadDim}, namedLength{"attn_k_norm.weight", c.HeadDim})
	}
	return out
}

// refuseUnknown refuses a tensor that the network does not use: leaving it out
// would compute another model than the file's.
func (c *Config) refuseUnknown(h *header) error {
	n := 2 + c.Layers*(7+len(c.layerVectors()))
	for _, name := range []string{"output.weight", "rope_freqs.weight"} {
		if h.byName[name] != nil {
			n++
		}
	}
	if n == len(h.tensors) {
		return nil
	}
	known := map[string]bool{"token_embd.weight": true, "output_norm.weight": true, "output.weight": true, "rope_freqs.weight": true}
	for i := range c.Layers {
		p := fmt.Sprintf("blk.%d.", i)
		for _, m := range []string{"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"} {
			known[p+m+".weight"] = true
		}
		for _, v := range c.layerVectors() {
			known[p+v.name] = true
		}
	}
	for _, t := range h.tensors {
		if !known[t.Name] {
			return fmt.Errorf("tensor %q is not part of the %s architecture", t.Name, c.Architecture)
		}
	}
	return nil
}
