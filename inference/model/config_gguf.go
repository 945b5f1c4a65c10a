package model

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

type field struct {
	key   string
	into  *int
	limit int
}

// ggufKeys are the metadata keys of what Config.check speaks of, behind the
// architecture's prefix. Source: ggml-org/llama.cpp, gguf-py/gguf/constants.py.
var ggufKeys = map[string]string{
	"kv heads": "attention.head_count_kv", "head size": "attention.key_length", "eps": "attention.layer_norm_rms_epsilon",
	"rope base": "rope.freq_base", "local rope base": "rope.freq_base_swa", "rope scale": "rope.scaling.factor",
	"attention scale": "attention.scale", "attention cap": "attn_logit_softcapping", "logit cap": "final_logit_softcapping",
	"window": "attention.sliding_window", "experts": "expert_count", "experts used": "expert_used_count",
	"expert ffn": "expert_feed_forward_length",
}

// newConfig reads the metadata of a GGUF file.
func newConfig(h *header) (Config, error) {
	var c Config
	var err error
	if c.Architecture, err = h.text("general.architecture"); err != nil {
		return c, err
	}
	// Files of mistral say llama.
	if !slices.Contains(Architectures, c.Architecture) || c.Architecture == "mistral" {
		return c, fmt.Errorf("architecture %.40q is not supported: want one of %s", c.Architecture, strings.Join(Architectures, ", "))
	}
	if n, err := h.integerOr("split.count", 1); err != nil || n > 1 {
		return c, fmt.Errorf("metadata %q: the file is one part of several; join them with llama-gguf-split --merge", "split.count")
	}
	if c.Architecture == "llama" {
		c.RopeKind = RopeInterleaved
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
	c.defaults()
	for _, read := range []func(*header, string) error{c.ggufHeads, c.ggufExperts, c.ggufRope, c.ggufWindow, c.ggufScales} {
		if err := read(h, prefix); err != nil {
			return c, err
		}
	}
	if err := c.check(func(field string) string { return fmt.Sprintf("metadata %q", prefix+ggufKeys[field]) }); err != nil {
		return c, err
	}
	if err := c.ggufSameLengths(h, prefix); err != nil {
		return c, err
	}
	return c, c.ggufRopeFactors(h)
}

func (c *Config) ggufHeads(h *header, prefix string) (err error) {
	if c.Eps, err = h.float(prefix + "attention.layer_norm_rms_epsilon"); err != nil {
		return err
	}
	if c.KVHeads, err = h.integerOr(prefix+"attention.head_count_kv", c.Heads); err != nil {
		return err
	}
	key := prefix + "attention.key_length"
	if c.HeadDim, err = h.integerOr(key, c.Width/c.Heads); err != nil {
		return err
	}
	if !h.has(key) && c.Width%c.Heads != 0 {
		return fmt.Errorf("metadata %q is missing and width %d is no multiple of %d heads", key, c.Width, c.Heads)
	}
	return nil
}

// ggufSameLengths refuses heads whose values or rotated part differ in size.
func (c *Config) ggufSameLengths(h *header, prefix string) error {
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

func (c *Config) ggufExperts(h *header, prefix string) (err error) {
	if c.Experts, err = h.integerOr(prefix+"expert_count", 0); err != nil {
		return err
	}
	if c.Architecture != "qwen3moe" {
		if c.Experts != 0 {
			return fmt.Errorf("metadata %q is %d: experts are supported in qwen3moe only", prefix+"expert_count", c.Experts)
		}
		return nil
	}
	if c.ExpertsUsed, err = h.integer(prefix + "expert_used_count"); err != nil {
		return err
	}
	if c.ExpertFFN, err = h.integer(prefix + "expert_feed_forward_length"); err != nil {
		return err
	}
	if n, err := h.integerOr(prefix+"expert_shared_count", 0); err != nil || n != 0 {
		return fmt.Errorf("metadata %q: shared experts are not supported", prefix+"expert_shared_count")
	}
	if c.NormTopK, err = h.boolOr(prefix+"expert_weights_norm", true); err != nil {
		return err
	}
	c.FFN = 0
	return nil
}

func (c *Config) ggufRope(h *header, prefix string) (err error) {
	if c.RopeBase, err = h.floatOr(prefix+"rope.freq_base", 10000); err != nil {
		return err
	}
	kind, err := h.textOr(prefix+"rope.scaling.type", "none")
	if err != nil {
		return err
	}
	switch {
	case kind == "linear":
		c.RopeScale, err = h.float(prefix + "rope.scaling.factor")
	case kind != "none":
		return fmt.Errorf("metadata %q is %.40q: want none or linear", prefix+"rope.scaling.type", kind)
	default:
		c.RopeScale, err = h.floatOr(prefix+"rope.scale_linear", 1)
	}
	return err
}

// ggufWindow reads which layers see a window. Its size may be missing in gemma2
// files, as may be the pattern, which is a period or a list of layers.
func (c *Config) ggufWindow(h *header, prefix string) (err error) {
	period := 0
	switch c.Architecture {
	case "gemma2":
		c.Window, period = 4096, 2
	case "gemma3":
		period, c.LocalRopeBase = 6, 10000
	}
	if c.Window, err = h.integerOr(prefix+"attention.sliding_window", c.Window); err != nil {
		return err
	}
	if c.Window == 0 {
		c.LocalRopeBase = 0
		return nil
	}
	if c.LocalRopeBase, err = h.floatOr(prefix+"rope.freq_base_swa", c.LocalRopeBase); err != nil {
		return err
	}
	key := prefix + "attention.sliding_window_pattern"
	if v, ok := h.meta[key]; ok && v.kind == typeArray {
		if c.Local, err = h.bools(key); err == nil && len(c.Local) != c.Layers {
			err = fmt.Errorf("metadata %q has %d elements: want one for each of %d layers", key, len(c.Local), c.Layers)
		}
		return err
	}
	if period, err = h.integerOr(key, period); err != nil {
		return err
	}
	c.local(period)
	return nil
}

func (c *Config) ggufScales(h *header, prefix string) (err error) {
	dim := c.HeadDim
	// Converters leave out how the largest gemma models scale their queries.
	if c.Architecture == "gemma2" && c.Layers == 46 || c.Architecture == "gemma3" && c.Layers == 62 {
		dim = c.Width / c.Heads
	}
	if c.AttnScale, err = h.floatOr(prefix+"attention.scale", float32(1/math.Sqrt(float64(dim)))); err != nil {
		return err
	}
	if c.Architecture == "gemma2" {
		c.AttnCap, c.LogitCap = 50, 30
	}
	if c.AttnCap, err = h.floatOr(prefix+"attn_logit_softcapping", c.AttnCap); err != nil {
		return err
	}
	c.LogitCap, err = h.floatOr(prefix+"final_logit_softcapping", c.LogitCap)
	return err
}

// ggufRopeFactors reads the divisors that converters of Llama 3 put into a tensor.
func (c *Config) ggufRopeFactors(h *header) error {
	for _, t := range h.tensors {
		if strings.HasPrefix(t.Name, "rope_factors_") {
			return fmt.Errorf("tensor %q: long and short RoPE factors are not supported", t.Name)
		}
	}
	t := h.byName["rope_freqs.weight"]
	if t == nil {
		return nil
	}
	if err := wantShape(t.Name, t, c.HeadDim/2); err != nil {
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
