package model

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
)

// hubConfig is config.json, and what it says of the tensors.
type hubConfig struct {
	Config
	tied, qkvBias, outputBias bool
	bos, eos                  json.RawMessage
}

// configJSON is config.json with the fields that matter to the architectures here.
type configJSON struct {
	ModelType    string          `json:"model_type"`
	Quantization json.RawMessage `json:"quantization_config"`

	Layers  *int `json:"num_hidden_layers"`
	Width   *int `json:"hidden_size"`
	FFN     *int `json:"intermediate_size"`
	Heads   *int `json:"num_attention_heads"`
	KVHeads *int `json:"num_key_value_heads"`
	HeadDim *int `json:"head_dim"`
	Vocab   *int `json:"vocab_size"`
	Context *int `json:"max_position_embeddings"`

	Eps           *float64 `json:"rms_norm_eps"`
	Act           *string  `json:"hidden_act"`
	Activation    *string  `json:"hidden_activation"` // gemma
	QueryScalar   *float64 `json:"query_pre_attn_scalar"`
	AttnCap       given    `json:"attn_logit_softcapping"`
	LogitCap      given    `json:"final_logit_softcapping"`
	Tied          *bool    `json:"tie_word_embeddings"`
	AttentionBias *bool    `json:"attention_bias"`
	MLPBias       *bool    `json:"mlp_bias"`
	Bidirectional *bool    `json:"use_bidirectional_attention"`

	RopeBase       *float64        `json:"rope_theta"`
	RopeLocalBase  *float64        `json:"rope_local_base_freq"`
	RopeScaling    json.RawMessage `json:"rope_scaling"`
	RopeParameters json.RawMessage `json:"rope_parameters"` // newer: all of RoPE
	PartialRotary  *float64        `json:"partial_rotary_factor"`

	Window      given    `json:"sliding_window"`
	UseWindow   *bool    `json:"use_sliding_window"`
	WindowFrom  *int     `json:"max_window_layers"`
	LayerTypes  []string `json:"layer_types"`
	WindowEvery *int     `json:"sliding_window_pattern"`

	Experts     *int  `json:"num_experts"`
	ExpertsUsed *int  `json:"num_experts_per_tok"`
	ExpertFFN   *int  `json:"moe_intermediate_size"`
	NormTopK    *bool `json:"norm_topk_prob"`
	SparseStep  *int  `json:"decoder_sparse_step"`
	DenseLayers []int `json:"mlp_only_layers"`

	BOS json.RawMessage `json:"bos_token_id"`
	EOS json.RawMessage `json:"eos_token_id"`
}

// given is a number whose absence means a default, while null means none.
type given struct {
	there bool
	value float64 // 0 for null
}

// UnmarshalJSON is called for null as well.
func (g *given) UnmarshalJSON(b []byte) error {
	g.there = true
	return json.Unmarshal(b, &g.value)
}

func (g given) or(otherwise float64) float64 {
	if g.there {
		return g.value
	}
	return otherwise
}

// modelTypes are the values of model_type and what they are called here.
var modelTypes = map[string]string{"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe",
	"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}

// hubKeys are the fields of what Config.check speaks of.
var hubKeys = map[string]string{
	"kv heads": "num_key_value_heads", "head size": "head_dim", "eps": "rms_norm_eps", "rope base": "rope_theta",
	"local rope base": "rope_local_base_freq", "rope scale": "rope_scaling.factor", "attention scale": "query_pre_attn_scalar",
	"attention cap": "attn_logit_softcapping", "logit cap": "final_logit_softcapping", "window": "sliding_window",
	"experts": "num_experts", "experts used": "num_experts_per_tok", "expert ffn": "moe_intermediate_size",
}

func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

func readHubConfig(b []byte) (hubConfig, error) {
	var j configJSON
	var c hubConfig
	if err := json.Unmarshal(b, &j); err != nil {
		return c, err
	}
	var ok bool
	if c.Architecture, ok = modelTypes[j.ModelType]; !ok {
		return c, fmt.Errorf("model_type %.40q is not supported: want llama, mistral, qwen2, qwen3, qwen3_moe, gemma, gemma2 or gemma3_text", j.ModelType)
	}
	if len(j.Quantization) > 0 && string(j.Quantization) != "null" {
		return c, fmt.Errorf("quantization_config: only F32, F16 and BF16 weights are supported")
	}
	for _, f := range []struct {
		key   string
		value *int
		into  *int
		limit int
	}{
		{"num_hidden_layers", j.Layers, &c.Layers, maxLayers}, {"hidden_size", j.Width, &c.Width, maxWidth},
		{"intermediate_size", j.FFN, &c.FFN, maxWidth * 8}, {"num_attention_heads", j.Heads, &c.Heads, maxHeads},
		{"vocab_size", j.Vocab, &c.Vocab, math.MaxInt32}, {"max_position_embeddings", j.Context, &c.Context, maxContext},
	} {
		if f.value == nil {
			return c, fmt.Errorf("%s is missing", f.key)
		}
		if *f.into = *f.value; *f.into < 1 || *f.into > f.limit {
			return c, fmt.Errorf("%s is %d: want 1 to %d", f.key, *f.into, f.limit)
		}
	}
	c.defaults()
	for _, read := range []func(*configJSON) error{c.hubRefusals, c.hubHeads, c.hubExperts, c.hubRope, c.hubWindow} {
		if err := read(&j); err != nil {
			return c, err
		}
	}
	if err := c.check(func(field string) string { return hubKeys[field] }); err != nil {
		return c, err
	}
	return c, c.hubLlama3(&j)
}

// hubRefusals refuses what would need another network.
func (c *hubConfig) hubRefusals(j *configJSON) error {
	gemma := strings.HasPrefix(c.Architecture, "gemma")
	act, want := or(j.Act, "silu"), []string{"silu"}
	key := "hidden_act"
	switch {
	case c.Architecture == "gemma": // whose files say gelu and mean the other
		act, want = or(j.Activation, or(j.Act, "gelu_pytorch_tanh")), []string{"gelu_pytorch_tanh", "gelu"}
	case gemma:
		key, act, want = "hidden_activation", or(j.Activation, "gelu_pytorch_tanh"), []string{"gelu_pytorch_tanh"}
	}
	switch {
	case !slices.Contains(want, act):
		return fmt.Errorf("%s is %.40q: want %s", key, act, want[0])
	case or(j.MLPBias, false):
		return fmt.Errorf("mlp_bias is true: biases of the feed-forward network are not supported")
	case or(j.Bidirectional, false):
		return fmt.Errorf("use_bidirectional_attention is true: only causal models are supported")
	case or(j.PartialRotary, 1) != 1:
		return fmt.Errorf("partial_rotary_factor is %g: want 1", *j.PartialRotary)
	}
	c.tied = or(j.Tied, gemma)
	bias := or(j.AttentionBias, false)
	c.qkvBias, c.outputBias = bias || c.Architecture == "qwen2", bias && c.Architecture != "qwen2"
	c.bos, c.eos = j.BOS, j.EOS
	return nil
}

func (c *hubConfig) hubHeads(j *configJSON) error {
	if j.KVHeads == nil && c.Architecture != "llama" {
		return fmt.Errorf("num_key_value_heads is missing")
	}
	if j.Eps == nil {
		return fmt.Errorf("rms_norm_eps is missing")
	}
	c.KVHeads, c.Eps = or(j.KVHeads, c.Heads), float32(*j.Eps)
	dim := c.Width / c.Heads
	switch c.Architecture { // what the reference takes where the file says nothing
	case "qwen3", "qwen3moe":
		dim = 128
	case "gemma", "gemma2", "gemma3":
		dim = 256
	default:
		if j.HeadDim == nil && c.Width%c.Heads != 0 {
			return fmt.Errorf("head_dim is missing and hidden_size %d is no multiple of %d heads", c.Width, c.Heads)
		}
	}
	c.HeadDim = or(j.HeadDim, dim)
	scalar := float64(c.HeadDim)
	switch c.Architecture {
	case "gemma2":
		scalar = or(j.QueryScalar, 256)
		c.AttnCap, c.LogitCap = float32(j.AttnCap.or(50)), float32(j.LogitCap.or(30))
	case "gemma3":
		scalar = or(j.QueryScalar, 256)
		c.AttnCap, c.LogitCap = float32(j.AttnCap.or(0)), float32(j.LogitCap.or(0))
	}
	c.AttnScale = float32(1 / math.Sqrt(scalar))
	return nil
}

func (c *hubConfig) hubExperts(j *configJSON) error {
	if c.Architecture != "qwen3moe" {
		return nil
	}
	switch {
	case j.Experts == nil || j.ExpertsUsed == nil || j.ExpertFFN == nil:
		return fmt.Errorf("num_experts, num_experts_per_tok or moe_intermediate_size is missing")
	case or(j.SparseStep, 1) != 1:
		return fmt.Errorf("decoder_sparse_step is %d: want experts in every layer", *j.SparseStep)
	case len(j.DenseLayers) > 0:
		return fmt.Errorf("mlp_only_layers has %d layers: want experts in every layer", len(j.DenseLayers))
	}
	c.Experts, c.ExpertsUsed, c.ExpertFFN, c.FFN = *j.Experts, *j.ExpertsUsed, *j.ExpertFFN, 0
	c.NormTopK = or(j.NormTopK, false)
	return nil
}

// ropeJSON is one setting of RoPE.
type ropeJSON struct {
	Type    string   `json:"rope_type"`
	OldType string   `json:"type"`
	Base    *float64 `json:"rope_theta"`
	Factor  *float64 `json:"factor"`
	Low     *float64 `json:"low_freq_factor"`
	High    *float64 `json:"high_freq_factor"`
	Context *float64 `json:"original_max_position_embeddings"`
	Partial *float64 `json:"partial_rotary_factor"`

	Full  *ropeJSON `json:"full_attention"`
	Local *ropeJSON `json:"sliding_attention"`
}

func (r *ropeJSON) kind() string {
	switch {
	case r.Type != "":
		return r.Type
	case r.OldType != "":
		return r.OldType
	}
	return "default"
}

// hubRopes reads the setting of the layers that see everything and of the others.
func hubRopes(j *configJSON) (full, local ropeJSON, err error) {
	read := func(key string, raw json.RawMessage) error {
		if len(raw) == 0 || string(raw) == "null" {
			return nil
		}
		if err := json.Unmarshal(raw, &full); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return nil
	}
	if err := read("rope_scaling", j.RopeScaling); err != nil {
		return full, local, err
	}
	if err := read("rope_parameters", j.RopeParameters); err != nil {
		return full, local, err
	}
	if full.Local != nil {
		local = *full.Local
	}
	if full.Full != nil {
		full = *full.Full
	}
	return full, local, nil
}

func (c *hubConfig) hubRope(j *configJSON) error {
	full, local, err := hubRopes(j)
	if err != nil {
		return err
	}
	base := 10000.0
	if c.Architecture == "gemma3" {
		base = 1e6
		c.LocalRopeBase = float32(or(local.Base, or(j.RopeLocalBase, 10000)))
	}
	c.RopeBase = float32(or(full.Base, or(j.RopeBase, base)))
	switch full.kind() {
	case "default", "llama3":
	case "linear":
		if full.Factor == nil {
			return fmt.Errorf("rope_scaling.factor is missing")
		}
		c.RopeScale = float32(*full.Factor)
	default:
		return fmt.Errorf("rope_scaling.rope_type is %.40q: want default, linear or llama3", full.kind())
	}
	if or(full.Partial, 1) != 1 || or(local.Partial, 1) != 1 {
		return fmt.Errorf("rope_parameters.partial_rotary_factor: want 1")
	}
	if k := local.kind(); k != "default" {
		return fmt.Errorf("rope_parameters.sliding_attention.rope_type is %.40q: want default", k)
	}
	return nil
}

// hubLlama3 computes the factors of Llama 3.1 and later.
func (c *hubConfig) hubLlama3(j *configJSON) error {
	r, _, err := hubRopes(j)
	if err != nil || r.kind() != "llama3" {
		return err
	}
	for _, f := range []struct {
		key   string
		value *float64
	}{{"factor", r.Factor}, {"low_freq_factor", r.Low}, {"high_freq_factor", r.High}, {"original_max_position_embeddings", r.Context}} {
		if f.value == nil || !(*f.value >= 1e-3 && *f.value <= maxContext) {
			return fmt.Errorf("rope_scaling.%s: want a number from 0.001 to %d", f.key, maxContext)
		}
	}
	if *r.High <= *r.Low {
		return fmt.Errorf("rope_scaling.high_freq_factor is %g: want more than low_freq_factor, %g", *r.High, *r.Low)
	}
	c.RopeFactors = c.llama3Factors(*r.Factor, *r.Low, *r.High, *r.Context)
	return nil
}

// hubWindow reads which layers see a window.
func (c *hubConfig) hubWindow(j *configJSON) error {
	period, window := 0, j.Window.or(0)
	switch c.Architecture {
	case "gemma2":
		period = 2
	case "gemma3":
		period = or(j.WindowEvery, 6)
	case "qwen2", "qwen3", "qwen3moe":
		if !or(j.UseWindow, false) {
			window = 0
		}
	case "mistral":
		window = j.Window.or(4096)
	default:
		window = 0
	}
	if !(window >= 0 && window <= maxContext) || window != math.Trunc(window) {
		return fmt.Errorf("sliding_window is %g: want a whole number from 0 to %d", window, maxContext)
	}
	c.Window = int(window)
	if c.PostNorms && c.Window == 0 {
		return fmt.Errorf("sliding_window is missing")
	}
	if c.Window == 0 {
		return nil
	}
	c.local(period)
	if period == 0 && c.Architecture != "mistral" {
		for i := range min(or(j.WindowFrom, 28), c.Layers) {
			c.Local[max(i, 0)] = false
		}
	}
	if j.LayerTypes == nil {
		return nil
	}
	if len(j.LayerTypes) != c.Layers {
		return fmt.Errorf("layer_types has %d elements: want %d", len(j.LayerTypes), c.Layers)
	}
	for i, kind := range j.LayerTypes {
		if kind != "full_attention" && kind != "sliding_attention" {
			return fmt.Errorf("layer_types element %d is %.40q: want full_attention or sliding_attention", i, kind)
		}
		c.Local[i] = kind == "sliding_attention"
	}
	return nil
}
