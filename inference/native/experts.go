package native

import (
	"cmp"
	"slices"

	"github.com/gonka-mesh/mesh/inference/kernel"
)

// mixture is the work on the experts of a layer. T is the number of inputs of a step,
// K of experts that compute each.
type mixture struct {
	logits  []float32 // [T][experts]
	chosen  []choice  // [T][K], likeliest first
	order   []choice  // by expert, then input
	rows    []float32 // [of an expert][width], what it is given
	outputs []float32 // [T][K][width]
	back    []float32 // [of an expert][width], what comes out
}

// choice is an expert that computes an input.
type choice struct {
	expert int
	row    int // input*K + rank
	weight float32
}

// mixExperts replaces the rows of y by the mixture of their experts. An expert computes
// all its rows of the step at once; a row's outputs are added in the order of its own
// experts, so that company does not change its bits.
func (g *graph) mixExperts(l *layer) {
	n, m, t, w := g.net, &g.mix, len(g.inputs), g.net.Width
	resize(&m.logits, t*n.Experts)
	g.mul(m.logits, &l.router, g.y, w)
	resize(&m.chosen, t*n.ExpertsUsed)
	g.pool.Run(t, 16, g.routeFn)
	m.order = append(m.order[:0], m.chosen...)
	slices.SortFunc(m.order, func(a, b choice) int {
		return cmp.Or(a.expert-b.expert, a.row-b.row)
	})
	resize(&m.outputs, t*n.ExpertsUsed*w)
	for rest := m.order; len(rest) > 0; {
		k := 1
		for k < len(rest) && rest[k].expert == rest[0].expert {
			k++
		}
		g.expert(&l.experts[rest[0].expert], rest[:k])
		rest = rest[k:]
	}
	g.pool.Run(t, 16, g.mixFn)
}

// expert computes the rows that chose it.
func (g *graph) expert(e *mlp, rows []choice) {
	n, m, w := g.net, &g.mix, g.net.Width
	m.rows = m.rows[:0]
	for _, c := range rows {
		t := c.row / n.ExpertsUsed
		m.rows = append(m.rows, g.y[t*w:(t+1)*w]...)
	}
	resize(&m.back, len(rows)*w)
	for _, i := range g.gated(m.back, m.rows, e, len(rows), n.ExpertFFN) {
		g.bad[rows[i].row/n.ExpertsUsed] = true
	}
	for i, c := range rows {
		copy(m.outputs[c.row*w:(c.row+1)*w], m.back[i*w:])
	}
}

// route chooses the experts of rows: those of the largest logits, the lower index of
// equal ones, with their parts of the softmax over all as weights.
func (g *graph) route(lo, hi int) {
	n, m, k := g.net, &g.mix, g.net.ExpertsUsed
	for t := lo; t < hi; t++ {
		logits, chosen := m.logits[t*n.Experts:(t+1)*n.Experts], m.chosen[t*k:(t+1)*k]
		if !kernel.Finite(logits) {
			g.bad[t] = true
			clear(logits)
		}
		for rank := range chosen {
			best := -1
			for e, x := range logits {
				taken := slices.ContainsFunc(chosen[:rank], func(c choice) bool { return c.expert == e })
				if !taken && (best < 0 || x > logits[best]) {
					best = e
				}
			}
			chosen[rank] = choice{expert: best, row: t*k + rank}
		}
		kernel.Softmax(logits)
		sum := float32(0)
		for i := range chosen {
			chosen[i].weight = logits[chosen[i].expert]
			sum += chosen[i].weight
		}
		for i := range chosen {
			if n.NormTopK {
				chosen[i].weight /= sum
			}
		}
	}
}

// mixRows adds the outputs of the experts of rows, likeliest first.
func (g *graph) mixRows(lo, hi int) {
	m, k, w := &g.mix, g.net.ExpertsUsed, g.net.Width
	for t := lo; t < hi; t++ {
		row := g.y[t*w : (t+1)*w]
		clear(row)
		for _, c := range m.chosen[t*k : (t+1)*k] {
			kernel.AddScaled(row, m.outputs[c.row*w:(c.row+1)*w], c.weight)
		}
	}
}
