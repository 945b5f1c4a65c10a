package kernel

import "fmt"

// Query is one token that attends to the positions of a cache up to its own.
type Query struct {
	Cache    *Cache
	First    int       // positions First..Position are visible
	Position int       // positions 0..Position are stored
	Q        []float32 // heads*headDim, after RoPE
	Out      []float32 // heads*headDim
}

// headsAtOnce is the largest number of query heads of one group that share the reading of keys and values.
const headsAtOnce = 8

type attendTask struct {
	p       *Pool
	b       *backend
	queries []Query
	heads   int // query heads
	at      int // query heads at once
	blocks  int // pieces of a query: groups of heads that share keys and values
	scale   float32
	limit   float32 // of scores; 0: none
}

type attendScratch struct {
	scores [headsAtOnce * chunk]float32
	part   [headsAtOnce * maxHeadDim]float32 // o_c
	sum    [headsAtOnce * maxHeadDim]float32 // o
	m, l   [headsAtOnce]float32

	factors [2 * headsAtOnce]float32 // a and b of each head
}

// Attention computes softmax(scale * q k) v for every query and head; heads must be a multiple of the cache's heads,
// query head h reads key head h*kvHeads/heads. With a limit other than 0 the scores go through SoftCap before the softmax.
// Non-finite scores make non-finite outputs.
func (p *Pool) Attention(queries []Query, heads int, scale, limit float32) {
	if len(queries) == 0 {
		return
	}
	work, blocks := 0, 0
	at := headsAtOnce
	if len(queries)*queries[0].Cache.heads < 2*p.threads {
		at /= 2 // more pieces for the threads
	}
	for i := range queries {
		q := &queries[i]
		c := q.Cache
		if heads%c.heads != 0 || len(q.Q) < heads*c.dim || len(q.Out) < heads*c.dim || q.First < 0 || q.Position < q.First || q.Position/chunk >= len(c.pages) {
			panic(fmt.Sprintf("kernel: attention of %d heads (%d, %d values) at position %d over %d heads of %d, %d pages",
				heads, len(q.Q), len(q.Out), q.Position, c.heads, c.dim, len(c.pages)))
		}
		group := heads / c.heads
		blocks = max(blocks, c.heads*((group+at-1)/at))
		work += heads * c.dim * (q.Position + 1 - q.First)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attend = attendTask{p: p, b: active(), queries: queries, heads: heads, at: at, blocks: blocks, scale: scale, limit: limit}
	n := len(queries) * blocks
	p.run(&p.attend, n, 1+n*(32<<10)/work, n)
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
		per := (group + k.at - 1) / k.at
		kv, first := i%k.blocks/per, i%k.blocks%per*k.at
		if kv < q.Cache.heads {
			k.block(s, q, kv, kv*group+first, min(k.at, group-first))
		}
	}
}

// block computes n query heads from head h on, which all read key head kv.
func (k *attendTask) block(s *attendScratch, query *Query, kv, h, n int) {
	c, b := query.Cache, k.b
	dim := c.dim
	padded := (dim + lanes - 1) / lanes * lanes
	q := query.Q[h*dim : (h+n)*dim]
	begin := query.First / chunk * chunk
	for start := begin; start <= query.Position; start += chunk {
		hidden, visible := max(query.First-start, 0), min(chunk, query.Position+1-start)
		page := c.pages[start/chunk]
		keys := page.keys[kv*c.keyBytes():][:c.keyBytes()]
		values := page.values[kv*c.valueBytes():][:c.valueBytes()]
		for j := range n {
			clear(s.scores[j*chunk:][:(visible+lanes-1)/lanes*lanes])
		}
		size := dim * lanes * c.format.BlockBytes()
		for g := hidden / lanes; g*lanes < visible; g++ {
			b.panels(c.format, keys[g*size:][:size], dim, q, dim, n, s.scores[g*lanes:], chunk)
		}
		var m, l [headsAtOnce]float32
		for j := range n {
			all := s.scores[j*chunk:][:visible]
			clear(all[:hidden]) // zeros add nothing to sums and chains
			p := all[hidden:]
			m[j] = b.mulMax(p, k.scale)
			if k.limit != 0 {
				softCap(b, p, k.limit)
				m[j] = b.mulMax(p, 1)
			}
			b.expSub(p, p, m[j])
			l[j] = b.sum(all)
		}
		part := s.part[:n*padded]
		if start == begin {
			part = s.sum[:n*padded]
		}
		clear(part)
		size = chunk * lanes * c.format.BlockBytes()
		for g := 0; g*lanes < dim; g++ {
			b.panels(c.format, values[g*size:][:size], visible, s.scores[:], chunk, n, part[g*lanes:], padded)
		}
		if start == begin {
			s.m, s.l = m, l
			continue
		}
		s.merge(b, part, n, dim, padded, &m, &l)
	}
	for j := range n {
		b.divide(query.Out[(h+j)*dim:][:dim], s.sum[j*padded:][:dim], s.l[j])
	}
}

// merge adds what a chunk gives, relative to its own maxima m, to what those before it gave.
func (s *attendScratch) merge(b *backend, part []float32, n, dim, padded int, m, l *[headsAtOnce]float32) {
	factors := s.factors[:2*n]
	for j := range n {
		top := max(s.m[j], m[j])
		factors[2*j], factors[2*j+1] = s.m[j]-top, m[j]-top
		s.m[j] = top
	}
	b.expSub(factors, factors, 0)
	for j := range n {
		x, y := factors[2*j], factors[2*j+1]
		s.l[j] = FMA(y, l[j], float32(x*s.l[j]))
		b.fold(s.sum[j*padded:][:dim], part[j*padded:][:dim], x, y)
	}
}
