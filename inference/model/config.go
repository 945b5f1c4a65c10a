package model

import (
	"fmt"
	"math"
)

// RopeKind says which dimensions of a head rotate together.
type RopeKind int

const (
	// RopeHalf pairs dimension i with i + HeadDim/2.
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

// Activation is the function on the gate of a feed-forward unit.
type Activation int

const (
	// SiLU is x/(1 + exp(-x)).
	SiLU Activation = iota
	// GELUTanh is 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
	GELUTanh
)

// String returns "silu" or "gelu-tanh".
func (a Activation) String() string {
	if a == GELUTanh {
		return "gelu-tanh"
	}
	return "silu"
}

// Config describes the network that a model holds, completely: who computes it
// needs no other knowledge of the architecture.
type Config struct {
	Architecture string // one of Architectures, for people
	Name         string // for people

	Layers, Width           int
	FFN                     int // hidden units of the feed-forward network; 0 with experts
	Heads, KVHeads, HeadDim int
	Vocab, Context          int
	Eps                     float32 // of every RMSNorm

	// A mixture of experts: the router's softmax over all of them, the ExpertsUsed
	// likeliest compute, ExpertFFN hidden units each. With NormTopK their weights are
	// divided by their sum. All 0: none.
	Experts, ExpertsUsed, ExpertFFN int
	NormTopK                        bool

	Activation Activation
	EmbedScale float32 // embeddings are multiplied by it; 1 but for gemma: √Width
	AttnScale  float32 // scores are multiplied by it: 1/√HeadDim unless the model says other
	AttnCap    float32 // scores become cap·tanh(s/cap) after the scale; 0: none
	LogitCap   float32 // so do logits; 0: none

	RopeBase    float32
	RopeKind    RopeKind
	RopeScale   float32   // linear scaling: positions are divided by it; 1 means none
	RopeFactors []float32 // Llama 3: divisor of each inverse frequency; nil means none

	// Where Local[layer] is true, a position p sees p-Window+1 to p only, and rotates
	// by LocalRopeBase (unscaled) if that is not 0. Local is nil where Window is 0.
	Window        int
	Local         []bool
	LocalRopeBase float32

	Tied                bool // the output matrix is the embedding table
	QKVBias, OutputBias bool // biases on q, k, v and on the attention output
	QKNorm              bool // norms on each head of q and k, before they rotate
	PostNorms           bool // norms on what attention and feed-forward add
}

// Architectures lists what Open accepts.
var Architectures = []string{"llama", "mistral", "qwen2", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3"}

// Bounds that no real model of these architectures comes near; they keep what is
// derived from a hostile file small.
const (
	maxLayers  = 1 << 10
	maxWidth   = 1 << 17
	maxHeads   = 1 << 10
	maxHeadDim = 1 << 10
	maxContext = 1 << 24
	maxExperts = 1 << 12
)

// IsLocal reports whether the layer sees a window only.
func (c *Config) IsLocal(layer int) bool { return layer < len(c.Local) && c.Local[layer] }

// defaults sets what the architecture alone decides.
func (c *Config) defaults() {
	c.EmbedScale, c.RopeScale = 1, 1
	switch c.Architecture {
	case "qwen3", "qwen3moe":
		c.QKNorm = true
		c.NormTopK = c.Architecture == "qwen3moe"
	case "gemma", "gemma2", "gemma3":
		c.Activation = GELUTanh
		c.EmbedScale = float32(math.Sqrt(float64(c.Width)))
		c.PostNorms = c.Architecture != "gemma"
		c.QKNorm = c.Architecture == "gemma3"
	}
}

// local makes every period-th layer see everything and the others the window;
// period 0 means that all see the window.
func (c *Config) local(period int) {
	c.Local = make([]bool, c.Layers)
	for i := range c.Local {
		c.Local[i] = period == 0 || i%period < period-1
	}
}

// check verifies what both file formats leave to it; key names a field in the
// words of the format.
func (c *Config) check(key func(string) string) error {
	refuse := func(field, format string, args ...any) error {
		return fmt.Errorf("%s %s", key(field), fmt.Sprintf(format, args...))
	}
	switch {
	case c.KVHeads < 1 || c.KVHeads > c.Heads || c.Heads%c.KVHeads != 0:
		return refuse("kv heads", "is %d: want a divisor of the %d heads", c.KVHeads, c.Heads)
	case c.HeadDim < 2 || c.HeadDim > maxHeadDim || c.HeadDim%2 != 0:
		return refuse("head size", "gives heads of %d: want an even number from 2 to %d", c.HeadDim, maxHeadDim)
	case !(c.Eps > 0 && c.Eps < 1):
		return refuse("eps", "is %g: want above 0 and below 1", c.Eps)
	case !validBase(c.RopeBase):
		return refuse("rope base", "is %g: want above 1 and at most 1e12", c.RopeBase)
	case c.LocalRopeBase != 0 && !validBase(c.LocalRopeBase):
		return refuse("local rope base", "is %g: want above 1 and at most 1e12", c.LocalRopeBase)
	case !(c.RopeScale > 0 && c.RopeScale <= 1e6):
		return refuse("rope scale", "is %g: want above 0 and at most 1e6", c.RopeScale)
	case !(c.AttnScale > 0 && c.AttnScale <= 1e3):
		return refuse("attention scale", "gives %g: want above 0 and at most 1e3", c.AttnScale)
	case !(c.AttnCap >= 0 && c.AttnCap <= 1e6):
		return refuse("attention cap", "is %g: want 0 to 1e6", c.AttnCap)
	case !(c.LogitCap >= 0 && c.LogitCap <= 1e6):
		return refuse("logit cap", "is %g: want 0 to 1e6", c.LogitCap)
	case c.Window < 0 || c.Window > maxContext:
		return refuse("window", "is %d: want 0 to %d", c.Window, maxContext)
	}
	if c.Architecture != "qwen3moe" {
		return nil
	}
	switch {
	case c.Experts < 1 || c.Experts > maxExperts:
		return refuse("experts", "is %d: want 1 to %d", c.Experts, maxExperts)
	case c.ExpertsUsed < 1 || c.ExpertsUsed > c.Experts:
		return refuse("experts used", "is %d: want 1 to the %d experts", c.ExpertsUsed, c.Experts)
	case c.ExpertFFN < 1 || c.ExpertFFN > maxWidth*8:
		return refuse("expert ffn", "is %d: want 1 to %d", c.ExpertFFN, maxWidth*8)
	}
	return nil
}

func validBase(b float32) bool { return b > 1 && b <= 1e12 }
