package kernel

import "fmt"

// Query is one token that attends to the positions of a cache up to its own.
type Query struct {
	Cache    *Cache
	Position int       // positions 0..Position are visible and stored
	Q        []float32 // heads*headDim, after RoPE
	Out      []float32 // heads*headDim
}

// headsAtOnce is the number of query heads of one group that share the reading of keys and values.
const headsAtOnce = 4

type attendTask struct {
	p       *Pool
	b       *backend
	queries []Query
	heads   int // query heads
	blocks  int // pieces of a query: groups of heads that share keys and values
	scale   float32
}

type attendScratch struct {
	scores [headsAtOnce * chunk]float32
	part   [headsAtOnce * maxHeadDim]float32 // o_c
	sum    [headsAtOnce * maxHeadDim]float32 // o
	m, l   [headsAtOnce]float32
}

// Attention computes softmax(scale * q k) v for every query and head; heads must be a multiple of the cache's heads,
// query head h reads key head h*kvHeads/heads. Non-finite scores make non-finite outputs.
func (p *Pool) Attention(queries []Query, heads int, scale float32) {
	if len(queries) == 0 {
		return
	}
	work, blocks := 0, 0
	for i := range queries {
		q := &queries[i]
		c := q.Cache
		if heads%c.heads != 0 || len(q.Q) < heads*c.dim || len(q.Out) < heads*c.dim || q.Position < 0 || q.Position/chunk >= len(c.keys) {
			panic(fmt.Sprintf("kernel: attention of %d heads (%d, %d values) at position %d over %d heads of %d, %d pages",
				heads, len(q.Q), len(q.Out), q.Position, c.heads, c.dim, len(c.keys)))
		}
		group := heads / c.heads
		blocks = max(blocks, c.heads*((group+headsAtOnce-1)/headsAtOnce))
		work += heads * c.dim * (q.Position + 1)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attend = attendTask{p: p, b: active(), queries: queries, heads: heads, blocks: blocks, scale: scale}
	n := len(queries) * blocks
	p.run(&p.attend, n, 1+n*(32<<10)/work)
	p.attend = attendTask{}
}

func (k *attendTask) do(worker, lo, hi int) {
	s := k.p.scratch[worker].attend
	if s == nil {
		s = new(attendScratch)
		k.p.scratch[worker].attend = s
	}
	for i := lo; i < hi; i++ {
		q := &k.queries[i/k.blocks]
		group := k.heads / q.Cache.heads
		per := (group + headsAtOnce - 1) / headsAtOnce
		kv, first := i%k.blocks/per, i%k.blocks%per*headsAtOnce
		if kv < q.Cache.heads {
			k.block(s, q, kv, kv*group+first, min(headsAtOnce, group-first))
		}
	}
}

// block computes n query heads from head h on, which all read key head kv.
func (k *attendTask) block(s *attendScratch, query *Query, kv, h, n int) {
	c, b := query.Cache, k.b
	dim := c.dim
	padded := (dim + lanes - 1) / lanes * lanes
	q := query.Q[h*dim : (h+n)*dim]
	for start := 0; start <= query.Position; start += chunk {
		visible := min(chunk, query.Position+1-start)
		keys := c.keys[start/chunk][kv*c.keyBytes():][:c.keyBytes()]
		values := c.values[start/chunk][kv*c.valueBytes():][:c.valueBytes()]
		clear(s.scores[:n*chunk])
		size := dim * lanes * c.format.BlockBytes()
		for g := 0; g*lanes < visible; g++ {
			b.panels(c.format, keys[g*size:][:size], dim, q, dim, n, s.scores[g*lanes:], chunk)
		}
		var m, l [headsAtOnce]float32
		for j := range n {
			p := s.scores[j*chunk:][:visible]
			m[j] = b.mulMax(p, k.scale)
			b.expSub(p, p, m[j])
			l[j] = b.sum(p)
		}
		part := s.part[:n*padded]
		if start == 0 {
			part = s.sum[:n*padded]
		}
		clear(part)
		size = chunk * lanes * c.format.BlockBytes()
		for g := 0; g*lanes < dim; g++ {
			b.panels(c.format, values[g*size:][:size], visible, s.scores[:], chunk, n, part[g*lanes:], padded)
		}
		if start == 0 {
			s.m, s.l = m, l
			continue
		}
		for j := range n {
			top := max(s.m[j], m[j])
			x, y := Exp(s.m[j]-top), Exp(m[j]-top)
			s.m[j], s.l[j] = top, FMA(y, l[j], float32(x*s.l[j]))
			b.fold(s.sum[j*padded:][:dim], part[j*padded:][:dim], x, y)
		}
	}
	for j := range n {
		out := query.Out[(h+j)*dim:][:dim]
		for d, v := range s.sum[j*padded:][:dim] {
			out[d] = v / s.l[j]
		}
	}
}
