package model

import (
	"fmt"
	"strings"
)

// RopeKind says which dimensions of a head rotate together.
type RopeKind int

const (
	// RopeHalf pairs dimension i with i + HeadDim/2 (qwen2, qwen3).
	RopeHalf RopeKind = iota
	// RopeInterleaved pairs 2i with 2i+1: GGUF files of the llama architecture hold
	// q and k permuted for this form.
	RopeInterleaved
)

// String returns "half" or "interleaved".
func (k RopeKind) String() string {
	if k == RopeInterleaved {
		return "interleaved"
	}
	return "half"
}

// Config describes the network that a model file holds.
type Config struct {
	Architecture string // llama, qwen2 or qwen3
	Name         string // general.name, for people

	Layers, Width, FFN          int
	Heads, KVHeads, HeadDim     int
	Vocab, Context              int
	Eps                         float32 // of every RMSNorm
	RopeBase                    float32
	RopeKind                    RopeKind
	RopeScale                   float32   // linear scaling: positions are divided by it; 1 means none
	RopeFactors                 []float32 // Llama 3: divisor of each inverse frequency; nil means none
	Tied                        bool      // the output matrix is the embedding table
	QKVBias, OutputBias, QKNorm bool      // biases on q, k, v and on the attention output; norms on q and k
}

// Bounds that no real model of these architectures comes near; they keep what is
// derived from a hostile file small.
const (
	maxLayers  = 1 << 10
	maxWidth   = 1 << 17
	maxHeads   = 1 << 10
	maxHeadDim = 1 << 10
	maxContext = 1 << 24
)

type field struct {
	key   string
	into  *int
	limit int
}

func newConfig(h *header) (Config, error) {
	var c Config
	var err error
	if c.Architecture, err = h.text("general.architecture"); err != nil {
		return c, err
	}
	switch c.Architecture {
	case "llama":
		c.RopeKind = RopeInterleaved
	case "qwen2":
	case "qwen3":
		c.QKNorm = true
	default:
		return c, fmt.Errorf("architecture %.40q is not supported: want llama, qwen2 or qwen3", c.Architecture)
	}
	if c.Name, err = h.textOr("general.name", ""); err != nil {
		return c, err
	}
	prefix := c.Architecture + "."
	for _, f := range []field{
		{"block_count", &c.Layers, maxLayers},
		{"embedding_length", &c.Width, maxWidth},
		{"feed_forward_length", &c.FFN, maxWidth * 8},
		{"attention.head_count", &c.Heads, maxHeads},
		{"context_length", &c.Context, maxContext},
	} {
		if *f.into, err = h.integer(prefix + f.key); err != nil {
			return c, err
		}
		if *f.into < 1 || *f.into > f.limit {
			return c, fmt.Errorf("metadata %q is %d: want 1 to %d", prefix+f.key, *f.into, f.limit)
		}
	}
	if err := c.attention(h, prefix); err != nil {
		return c, err
	}
	if c.Eps, err = h.float(prefix + "attention.layer_norm_rms_epsilon"); err != nil {
		return c, err
	}
	if !(c.Eps > 0 && c.Eps < 1) {
		return c, fmt.Errorf("metadata %q is %g: want above 0 and below 1", prefix+"attention.layer_norm_rms_epsilon", c.Eps)
	}
	if n, err := h.integerOr(prefix+"expert_count", 0); err != nil || n != 0 {
		return c, fmt.Errorf("metadata %q: mixtures of experts are not supported", prefix+"expert_count")
	}
	return c, c.rope(h, prefix)
}

func (c *Config) attention(h *header, prefix string) (err error) {
	key := prefix + "attention.head_count_kv"
	if c.KVHeads, err = h.integerOr(key, c.Heads); err != nil {
		return err
	}
	if c.KVHeads < 1 || c.KVHeads > c.Heads || c.Heads%c.KVHeads != 0 {
		return fmt.Errorf("metadata %q is %d: want a divisor of the %d heads", key, c.KVHeads, c.Heads)
	}
	key = prefix + "attention.key_length"
	if c.HeadDim, err = h.integerOr(key, 0); err != nil {
		return err
	}
	if !h.has(key) {
		if c.Width%c.Heads != 0 {
			return fmt.Errorf("metadata %q is missing and width %d is no multiple of %d heads", key, c.Width, c.Heads)
		}
		c.HeadDim = c.Width / c.Heads
	}
	if c.HeadDim < 2 || c.HeadDim > maxHeadDim || c.HeadDim%2 != 0 {
		return fmt.Errorf("metadata %q: a head of %d: want an even number from 2 to %d", key, c.HeadDim, maxHeadDim)
	}
	for _, same := range []string{"attention.value_length", "rope.dimension_count"} {
		n, err := h.integerOr(prefix+same, c.HeadDim)
		if err != nil {
			return err
		}
		if n != c.HeadDim {
			return fmt.Errorf("metadata %q is %d: only the head dimension %d is supported", prefix+same, n, c.HeadDim)
		}
	}
	return nil
}

func (c *Config) rope(h *header, prefix string) (err error) {
	key := prefix + "rope.freq_base"
	if c.RopeBase, err = h.floatOr(key, 10000); err != nil {
		return err
	}
	if !(c.RopeBase > 1 && c.RopeBase <= 1e12) {
		return fmt.Errorf("metadata %q is %g: want above 1 and at most 1e12", key, c.RopeBase)
	}
	c.RopeScale = 1
	kind, err := h.textOr(prefix+"rope.scaling.type", "none")
	if err != nil {
		return err
	}
	key = prefix + "rope.scaling.factor"
	switch {
	case kind == "linear":
		if c.RopeScale, err = h.float(key); err != nil {
			return err
		}
	case kind != "none":
		return fmt.Errorf("metadata %q is %.40q: want none or linear", prefix+"rope.scaling.type", kind)
	case h.has(prefix + "rope.scale_linear"):
		key = prefix + "rope.scale_linear"
		if c.RopeScale, err = h.float(key); err != nil {
			return err
		}
	}
	if !(c.RopeScale > 0 && c.RopeScale <= 1e6) {
		return fmt.Errorf("metadata %q is %g: want above 0 and at most 1e6", key, c.RopeScale)
	}
	return c.ropeFactors(h)
}

// ropeFactors reads the divisors that converters of Llama 3 put into a tensor.
func (c *Config) ropeFactors(h *header) error {
	for name := range h.byName {
		if strings.HasPrefix(name, "rope_factors_") {
			return fmt.Errorf("tensor %q: long and short RoPE factors are not supported", name)
		}
	}
	t := h.byName["rope_freqs.weight"]
	if t == nil {
		return nil
	}
	if err := wantShape(t, c.HeadDim/2); err != nil {
		return err
	}
	f, err := t.Float32s()
	if err != nil {
		return err
	}
	for i, x := range f {
		if !(x >= 1e-6 && x <= 1e6) {
			return fmt.Errorf("tensor %q: factor %d is %g: want 1e-6 to 1e6", t.Name, i, x)
		}
	}
	c.RopeFactors = f
	return nil
}
