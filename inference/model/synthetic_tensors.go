package model

import (
	"fmt"
	"math"
)

// synthesis makes the tensors of a synthetic model, each with a random stream of its
// own.
type synthesis struct {
	shape  *Shape
	format Format
	seed   uint64
	out    []TensorSource
}

func (y *synthesis) add(g *weights, name string, shape ...int) {
	g.seed, g.stream = y.seed, uint64(len(y.out))
	y.out = append(y.out, TensorSource{name, g.format, shape, g.fill})
}

// fitting is the format for rows of n elements.
func (y *synthesis) fitting(n int) Format {
	switch {
	case n%y.format.Block() == 0:
		return y.format
	case n%Q8_0.Block() == 0:
		return Q8_0
	}
	return F16
}

func (y *synthesis) matrix(name string, in, rows int, std float64, first func(row int) float64, zeroRow bool) {
	g := &weights{format: y.fitting(in), in: in, rows: rows, std: float32(std), first: first}
	if zeroRow {
		g.zeroEvery = rows
	}
	y.add(g, name, in, rows)
}

func (y *synthesis) vector(name string, n int, first, mean, std float64) {
	y.add(&weights{format: F32, in: n, rows: 1, std: float32(std), mean: float32(mean), first: func(int) float64 { return first }}, name, n)
}

// experts makes the matrices of all experts of a layer.
func (y *synthesis) experts(name string, in, rows int, std float64, zeroRow bool) {
	n := y.shape.Experts
	g := &weights{format: y.fitting(in), in: in, rows: rows * n, std: float32(std)}
	if zeroRow {
		g.zeroEvery = rows
	}
	y.add(g, name, in, rows, n)
}

func inverseRoot(n int) float64 { return 1 / math.Sqrt(float64(n)) }

// Dimension 0 of the residual stream carries a constant c > 0 through the whole
// network: no layer reads it (norm weight 0) or writes it (zero rows), and the
// output norm lifts it. Output rows hold c there too, or -c for tokens that should
// stay out of answers: their logits are about 2·logitGap lower.
const logitGap = 10

func (s *Shape) tensors(tokens []string, format Format, seed uint64) []TensorSource {
	y := &synthesis{shape: s, format: format, seed: seed}
	c := Config{Architecture: s.Architecture, Width: s.Width}
	c.defaults()
	scale := float64(c.EmbedScale)
	std := 0.5 * inverseRoot(s.Width)
	constant := 16 * std
	special := func(row int) bool { return row >= len(tokens)-len(syntheticSpecials) }
	hidden := func(row int) bool {
		// With an output matrix of its own, bytes that are no visible text go too.
		return special(row) || !s.Tied && row < len(byteRunes) && (row < ' ' || row > '~')
	}
	sign := func(off func(int) bool) func(int) float64 {
		return func(row int) float64 {
			if off(row) {
				return -constant / scale
			}
			return constant / scale
		}
	}
	none := func(int) bool { return false }
	if s.Tied {
		y.matrix(embeddingName, s.Width, s.Vocab, std/scale, sign(special), false)
	} else {
		y.matrix(embeddingName, s.Width, s.Vocab, std/scale, sign(none), false)
		y.matrix("output.weight", s.Width, s.Vocab, std/scale, sign(hidden), false)
	}
	y.vector("output_norm.weight", s.Width, scale*logitGap/(constant*constant), scale, 0)
	for i := range s.Layers {
		p := fmt.Sprintf("blk.%d.", i)
		y.attention(p, &c)
		y.feedForward(p)
		if c.PostNorms {
			y.vector(p+"post_attention_norm.weight", s.Width, 0, inverseRoot(2*s.Layers), 0.05)
			y.vector(p+"post_ffw_norm.weight", s.Width, 0, inverseRoot(2*s.Layers), 0.05)
		}
	}
	return y.out
}

func (y *synthesis) attention(p string, c *Config) {
	s := y.shape
	q, kv := s.Heads*s.HeadDim, s.KVHeads*s.HeadDim
	y.vector(p+"attn_norm.weight", s.Width, 0, 1, 0)
	y.vector(p+"ffn_norm.weight", s.Width, 0, 1, 0)
	y.matrix(p+"attn_q.weight", s.Width, q, inverseRoot(s.Width), nil, false)
	y.matrix(p+"attn_k.weight", s.Width, kv, inverseRoot(s.Width), nil, false)
	y.matrix(p+"attn_v.weight", s.Width, kv, inverseRoot(s.Width), nil, false)
	if s.Architecture == "qwen2" {
		y.vector(p+"attn_q.bias", q, 0, 0, 0.1)
		y.vector(p+"attn_k.bias", kv, 0, 0, 0.1)
		y.vector(p+"attn_v.bias", kv, 0, 0, 0.1)
	}
	if c.QKNorm {
		y.vector(p+"attn_q_norm.weight", s.HeadDim, 1, 1, 0.1)
		y.vector(p+"attn_k_norm.weight", s.HeadDim, 1, 1, 0.1)
	}
	y.matrix(p+"attn_output.weight", q, s.Width, inverseRoot(q)*inverseRoot(2*s.Layers), nil, true)
}

func (y *synthesis) feedForward(p string) {
	s := y.shape
	down := inverseRoot(s.FFN) * inverseRoot(2*s.Layers)
	if s.Experts == 0 {
		y.matrix(p+"ffn_gate.weight", s.Width, s.FFN, inverseRoot(s.Width), nil, false)
		y.matrix(p+"ffn_up.weight", s.Width, s.FFN, inverseRoot(s.Width), nil, false)
		y.matrix(p+"ffn_down.weight", s.FFN, s.Width, down, nil, true)
		return
	}
	// Converters keep the router in F32.
	y.add(&weights{format: F32, in: s.Width, rows: s.Experts, std: float32(inverseRoot(s.Width))}, p+"ffn_gate_inp.weight", s.Width, s.Experts)
	y.experts(p+"ffn_gate_exps.weight", s.Width, s.FFN, inverseRoot(s.Width), false)
	y.experts(p+"ffn_up_exps.weight", s.Width, s.FFN, inverseRoot(s.Width), false)
	y.experts(p+"ffn_down_exps.weight", s.FFN, s.Width, down, true)
}
