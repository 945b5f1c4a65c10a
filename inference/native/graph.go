package native

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"
	"slices"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
)

// input is one token of a step.
type input struct {
	token    int32
	embedded []float32 // [width], in the place of the token's embedding; nil: the token's
	position int
	cache    []*kernel.Cache // of its sequence, one for each layer
	logits   bool            // wanted
}

// graph computes steps. It belongs to one goroutine at a time; its buffers grow to
// the largest step and are used again. T is the number of inputs of a step.
type graph struct {
	net  *network
	pool *kernel.Pool

	inputs []input
	x      []float32 // [T][width], the residual stream
	y      []float32 // [T][width]
	qkv    []float32 // [T][heads*dim + 2*kvHeads*dim]
	mixed  []float32 // [T][heads*dim], out of attention
	ffn    []float32 // [T][2*ffn], gate and up
	act    []float32 // [T][ffn]
	angles []float32 // [T][dim], cosines then sines
	local  []float32 // [T][dim], those of layers with a window of their own frequencies
	picked []float32 // [wanted][width], hidden states whose logits are wanted
	mix    mixture
	part   []float32 // one matrix of a product that is not stacked
	acts   kernel.Activations
	query  []kernel.Query
	runs   [][2]int // first and last+1 of the inputs of each sequence

	// The results of the last step.
	bad    []bool      // [T]: a value left the numeric contract
	states []float32   // [T][width], after the last norm
	leaves []mesh.Hash // [T]: H(little-endian bits of the state)
	logits []float32   // [wanted][vocab]

	bits  []byte
	layer int // that rotate and store work on
	units int // hidden units that gate works on
	// The work on rows, as functions that are made once: made in a step, they would
	// be garbage.
	embedFn, rotateFn, storeFn, gateFn, leafFn, routeFn, mixFn func(lo, hi int)
}

func newGraph(net *network, pool *kernel.Pool) *graph {
	g := &graph{net: net, pool: pool}
	g.embedFn, g.rotateFn, g.storeFn, g.gateFn, g.leafFn = g.embed, g.rotate, g.store, g.gate, g.leaf
	g.routeFn, g.mixFn = g.route, g.mixRows
	return g
}

// resize returns n elements of a buffer; their values are undefined.
func resize[T any](buf *[]T, n int) []T {
	*buf = slices.Grow((*buf)[:0], n)[:n]
	return *buf
}

// step computes g.inputs. Tokens of one sequence stand in ascending order of
// position, and the positions before the first one are in its cache. A token for
// which bad is set poisons its sequence and no other.
func (g *graph) step() {
	n, t := g.net, len(g.inputs)
	clear(resize(&g.bad, t))
	resize(&g.x, t*n.Width)
	resize(&g.y, t*n.Width)
	resize(&g.qkv, t*n.stride())
	resize(&g.mixed, t*n.Heads*n.HeadDim)
	resize(&g.angles, t*n.HeadDim)
	resize(&g.local, t*2*len(n.local.Frequencies))
	resize(&g.bits, t*n.Width*4)
	resize(&g.leaves, t)
	g.runs = g.runs[:0]
	for i := range g.inputs {
		if i == 0 || &g.inputs[i].cache[0] != &g.inputs[i-1].cache[0] {
			g.runs = append(g.runs, [2]int{i, i})
		}
		g.runs[len(g.runs)-1][1]++
	}
	g.pool.Run(t, 8, g.embedFn)
	for i := range n.layers {
		g.layer = i
		g.attention(&n.layers[i])
		g.feedForward(&n.layers[i])
	}
	g.states = g.y
	g.pool.RMSNorm(g.states, g.x, n.norm, n.Eps)
	g.pool.Run(t, 8, g.leafFn)
	g.head()
}

// stride is the length of a row of q, k and v.
func (n *network) stride() int { return (n.Heads + 2*n.KVHeads) * n.HeadDim }

func (g *graph) embed(lo, hi int) {
	n, w, d, local := g.net, g.net.Width, g.net.HeadDim, 2*len(g.net.local.Frequencies)
	for t := lo; t < hi; t++ {
		in, row := &g.inputs[t], g.x[t*w:(t+1)*w]
		if in.embedded != nil {
			copy(row, in.embedded)
		} else {
			n.embed.Row(int(in.token), row)
			if n.EmbedScale != 1 {
				for i := range row {
					row[i] *= n.EmbedScale
				}
			}
		}
		n.rope.Angles(g.angles[t*d:(t+1)*d], in.position)
		n.local.Angles(g.local[t*local:(t+1)*local], in.position)
	}
}

// attention adds the first half of a layer to x.
func (g *graph) attention(l *layer) {
	n, t := g.net, len(g.inputs)
	g.pool.RMSNorm(g.y, g.x, l.attnNorm, n.Eps)
	g.mul(g.qkv, &l.qkv, g.y, n.Width)
	g.pool.Run(t, 8, g.rotateFn)
	g.pool.Run(len(g.runs), 4, g.storeFn)
	q, stride := n.Heads*n.HeadDim, n.stride()
	g.query = g.query[:0]
	for j := range g.inputs {
		in := &g.inputs[j]
		first := 0
		if l.local {
			first = max(0, in.position-n.Window+1)
		}
		g.query = append(g.query, kernel.Query{
			Cache: in.cache[g.layer], First: first, Position: in.position, Q: g.qkv[j*stride:][:q], Out: g.mixed[j*q:][:q],
		})
	}
	g.pool.Attention(g.query, n.Heads, n.AttnScale, n.AttnCap)
	g.mul(g.y, &l.out, g.mixed, q)
	if l.outBias != nil {
		kernel.AddBias(g.y, l.outBias)
	}
	g.addResidual(l.postAttnNorm)
}

// addResidual adds y, normed if there are weights for that, to x.
func (g *graph) addResidual(norm []float32) {
	if norm != nil {
		g.pool.RMSNorm(g.y, g.y, norm, g.net.Eps)
	}
	kernel.Add(g.x, g.y)
}

// rotate applies biases, norms of heads and RoPE to rows of q, k and v.
func (g *graph) rotate(lo, hi int) {
	n, l := g.net, &g.net.layers[g.layer]
	q, k, stride := n.Heads*n.HeadDim, (n.Heads+n.KVHeads)*n.HeadDim, n.stride()
	rope, angles := &n.rope, g.angles
	if l.local && n.local.Frequencies != nil {
		rope, angles = &n.local, g.local
	}
	for t := lo; t < hi; t++ {
		row := g.qkv[t*stride : (t+1)*stride]
		if l.qkvBias != nil {
			kernel.Add(row, l.qkvBias)
		}
		if l.qNorm != nil {
			normHeads(row[:q], l.qNorm, n.Eps)
			normHeads(row[q:k], l.kNorm, n.Eps)
		}
		rope.Rotate(row[:k], n.HeadDim, angles[t*n.HeadDim:(t+1)*n.HeadDim])
	}
}

// store keeps the keys and values of sequences; a cache has one writer at a time.
func (g *graph) store(lo, hi int) {
	n := g.net
	q, kv, stride := n.Heads*n.HeadDim, n.KVHeads*n.HeadDim, n.stride()
	for _, run := range g.runs[lo:hi] {
		for t := run[0]; t < run[1]; t++ {
			in, row := &g.inputs[t], g.qkv[t*stride:(t+1)*stride]
			cache := in.cache[g.layer]
			if cache.Store(in.position, row[q:q+kv], row[q+kv:]) == nil {
				continue
			}
			g.bad[t] = true
			clear(row) // what is stored and read stays finite
			if err := cache.Store(in.position, row[q:q+kv], row[q+kv:]); err != nil {
				panic(err) // zeros have a place in every format
			}
		}
	}
}

func normHeads(x, weight []float32, eps float32) {
	for ; len(x) > 0; x = x[len(weight):] {
		head := x[:len(weight)]
		kernel.RMSNorm(head, head, weight, eps)
	}
}

// feedForward adds the second half of a layer to x.
func (g *graph) feedForward(l *layer) {
	n := g.net
	g.pool.RMSNorm(g.y, g.x, l.ffnNorm, n.Eps)
	if l.experts != nil {
		g.mixExperts(l)
	} else {
		for _, t := range g.gated(g.y, g.y, &l.mlp, len(g.inputs), n.FFN) {
			g.bad[t] = true
		}
	}
	g.addResidual(l.postFFNNorm)
}

// gated runs rows of x through a feed-forward network of that many hidden units and
// returns those that the 8-bit form cannot hold. dst may be x.
func (g *graph) gated(dst, x []float32, m *mlp, rows, units int) (bad []int) {
	resize(&g.ffn, rows*2*units)
	resize(&g.act, rows*units)
	g.acts.Set(x, rows, g.net.Width)
	bad = g.product(g.ffn, &m.gateUp, rows)
	g.units = units
	g.pool.Run(rows, max(1, 8192/units), g.gateFn)
	g.acts.Set(g.act, rows, units)
	return append(bad, g.product(dst, &m.down, rows)...)
}

// gate writes the activation of gate, times up, of rows.
func (g *graph) gate(lo, hi int) {
	f := g.units
	for t := lo; t < hi; t++ {
		row := g.ffn[t*2*f : (t+1)*2*f]
		if g.net.Activation == model.GELUTanh {
			kernel.GELUMul(g.act[t*f:(t+1)*f], row[:f], row[f:])
		} else {
			kernel.SiLUMul(g.act[t*f:(t+1)*f], row[:f], row[f:])
		}
	}
}

// head computes the logits that are wanted.
func (g *graph) head() {
	n, w := g.net, g.net.Width
	g.picked = g.picked[:0]
	for t := range g.inputs {
		if g.inputs[t].logits {
			g.picked = append(g.picked, g.states[t*w:(t+1)*w]...)
		}
	}
	wanted := len(g.picked) / w
	resize(&g.logits, wanted*n.Vocab)
	if wanted == 0 {
		return
	}
	g.acts.Set(g.picked, wanted, w)
	for _, t := range g.product(g.logits, &n.head, wanted) {
		g.bad[g.nthWanted(t)] = true
	}
	if n.LogitCap != 0 {
		kernel.SoftCap(g.logits, n.LogitCap)
	}
}

// nthWanted is the input whose logits stand at index k.
func (g *graph) nthWanted(k int) int {
	for t := range g.inputs {
		if g.inputs[t].logits {
			if k == 0 {
				return t
			}
			k--
		}
	}
	return len(g.inputs) - 1
}

// mul multiplies all rows of x, cols long, with p.
func (g *graph) mul(dst []float32, p *product, x []float32, cols int) {
	g.acts.Set(x, len(g.inputs), cols)
	for _, t := range g.product(dst, p, len(g.inputs)) {
		g.bad[t] = true
	}
}

// product multiplies the rows that were set with p and returns those that the
// 8-bit form cannot hold.
func (g *graph) product(dst []float32, p *product, rows int) (bad []int) {
	if len(p.parts) == 1 {
		return badTokens(g.pool.MatMul(dst, p.parts[0], &g.acts))
	}
	at := 0
	for _, m := range p.parts {
		part := resize(&g.part, rows*m.Rows())
		bad = append(bad, badTokens(g.pool.MatMul(part, m, &g.acts))...)
		for t := range rows {
			copy(dst[t*p.rows+at:], part[t*m.Rows():(t+1)*m.Rows()])
		}
		at += m.Rows()
	}
	return bad
}

func badTokens(err error) []int {
	if err == nil {
		return nil
	}
	var numeric *kernel.NumericError
	if !errors.As(err, &numeric) {
		panic(err) // MatMul has no other
	}
	return numeric.Tokens
}

// leaf hashes hidden states.
func (g *graph) leaf(lo, hi int) {
	w := g.net.Width
	for t := lo; t < hi; t++ {
		row := g.states[t*w : (t+1)*w]
		if !kernel.Finite(row) {
			g.bad[t] = true
		}
		b := g.bits[t*w*4 : (t+1)*w*4]
		for i, v := range row {
			binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
		}
		g.leaves[t] = sha256.Sum256(b)
	}
}
