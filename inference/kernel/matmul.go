package kernel

import "fmt"

// panelCols is the number of columns that one chain of a float product spans.
const panelCols = 256

const (
	// maxSpan groups of rows are taken at once at most.
	maxSpan = 3
	// chunkBlocks blocks of them fit the nearest cache, for the tokens to pass by.
	chunkBlocks = 32
)

type matmulTask struct {
	p   *Pool
	b   *backend
	dst []float32
	w   *Matrix
	a   *Activations

	span int // groups of rows taken at once
}

// MatMul computes dst[t*rows+r] = row r of w times token t of a. It returns a NumericError for tokens that the 8-bit
// form cannot hold; their outputs mean nothing, those of the other tokens are valid.
func (p *Pool) MatMul(dst []float32, w *Matrix, a *Activations) error {
	if a.cols != w.cols || len(dst) < a.tokens*w.rows {
		panic(fmt.Sprintf("kernel: product of %d x %d weights with %d columns into %d values for %d tokens",
			w.rows, w.cols, a.cols, len(dst), a.tokens))
	}
	if a.tokens == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	if w.format.quantised() {
		err = a.quantise(p)
	}
	span := p.span(w, a.tokens)
	p.matmul = matmulTask{p: p, b: active(), dst: dst, w: w, a: a, span: span}
	// A piece is worth waking a worker for: 32 KiB of weights, or as much work on several tokens. Of one token it is read in
	// less time than a worker looks for more, or the one that ends first would sleep after most products.
	items, item := (w.groups()+span-1)/span, span*w.groupBytes()
	most := items
	if a.tokens == 1 {
		most = 128 << 10 / item
	}
	p.run(&p.matmul, items, 1+32<<10/(item*a.tokens), most)
	p.matmul = matmulTask{}
	return err
}

// span is the number of groups of rows that a worker takes together: several for kernels that keep the values of four
// tokens in registers, as long as all threads have work.
func (p *Pool) span(w *Matrix, tokens int) int {
	if !w.format.quantised() {
		return 1
	}
	if tokens == 1 { // enough not to notice the way in and out
		return max(1, min(maxSpan, w.groups()/(16*p.threads)))
	}
	return max(1, min(maxSpan, w.groups()/p.threads))
}

func (k *matmulTask) do(worker, lo, hi int) {
	w, s := k.w, &k.p.scratch[worker]
	size := w.groupBytes()
	for g, end := lo*k.span, min(hi*k.span, w.groups()); g < end; g += k.span {
		n := min(k.span, end-g)
		var weights []byte
		if w.packed != nil {
			weights = w.packed[g*size:][:n*size]
		} else {
			weights = grow(&s.weights, n*size)
			for i := range n {
				w.packGroup(weights[i*size:][:size], g+i)
			}
		}
		if w.format.quantised() {
			var next []byte
			if w.packed != nil {
				next = w.packed[(g+n)*size:][:min(k.span, end-g-n)*size]
			}
			k.blocks(s, weights, next, g, g == lo*k.span)
		} else {
			k.float(s, weights, g*lanes, min(lanes, w.rows-g*lanes))
		}
	}
}

// blocks multiplies the groups of rows in weights, from group g on, with all tokens. Where there are several tiles of
// tokens, weights are taken in chunks of columns that stay in the nearest cache while the tokens pass by, and the chunk that
// follows, at last of the groups in next, is fetched meanwhile. cold tells that the first chunk was not.
func (k *matmulTask) blocks(s *workerScratch, weights, next []byte, g int, cold bool) {
	a, f, b, size := k.a, k.w.format, k.b, k.w.groupBytes()
	nb, n := a.cols/32, len(weights)/size
	dst, stride, row := k.dst, k.w.rows, g*lanes
	rows := min(n*lanes, stride-row)
	// Groups of rows and of tokens that are not full go through a buffer, tokens from direct on.
	direct := a.tokens
	if rows < n*lanes {
		direct = 0
	} else if a.q8Width(a.tokens/tile*tile) != 1 {
		direct -= a.tokens % tile
	}
	out := grow(&s.out, (a.tokens-direct+tile-1)/tile*tile*n*lanes)
	if a.tokens == 1 && b.alone != nil && f.BlockSize() == 256 {
		to := out
		if direct == 1 {
			to = dst[row:][:rows]
		}
		clear(to)
		b.alone(f, weights, size, n, a.q8Group(0), nb, to)
		copy(dst[row:][:rows], to)
		return
	}
	chunk := nb
	form, step := unpacked(f, chunkBlocks) // what products take
	unpack := step > 0 && b.unpack != nil
	if !unpack {
		form, step = f, size
	}
	if a.tokens > tile || unpack {
		chunk = chunkBlocks
	}
	cols, unit := f.unit()
	at := func(block int) int { return block * 32 / cols * unit * lanes }
	for c := 0; c < nb; c += chunk {
		w, m := weights[at(c):], min(chunk, nb-c)
		follow, bytes := next, at(min(chunk, nb))
		if c+chunk < nb {
			follow, bytes = weights[at(c+chunk):], at(min(chunk, nb-c-chunk))
		}
		pieces := (len(follow) + size - 1) / size
		if unpack {
			w = grow(&s.unpacked, n*step)
			for i := range n {
				b.unpack(f, w[i*step:], weights[i*size+at(c):], m)
			}
		}
		for t := 0; t < a.tokens; t += tile {
			width := a.q8Width(t)
			x := a.q8Group(t)[c*actBlock*width:]
			var to []float32
			toStride := n * lanes
			if t < direct {
				to, toStride = dst[t*stride+row:], stride
			} else {
				to = out[(t-direct)*n*lanes:]
			}
			b.blocks(form, w, step, n, x, m, width, cold && t == 0 && !unpack, c == 0, to, toStride)
			if a.tokens > tile && pieces > 0 {
				from, end := t*bytes/a.tokens&^63, min(t+tile, a.tokens)*bytes/a.tokens&^63
				if end > from {
					b.fetch(follow[from:], size, pieces, end-from)
				}
			}
		}
		cold = a.tokens <= tile
	}
	for t := direct; t < a.tokens; t++ {
		copy(dst[t*stride+row:][:rows], out[(t-direct)*n*lanes:])
	}
}

func (k *matmulTask) float(s *workerScratch, weights []byte, row, rows int) {
	a, n := k.a, k.w.rows
	out, stride := k.dst[row:], n
	if rows < lanes {
		out, stride = grow(&s.out, a.tokens*lanes), lanes
	}
	for t := range a.tokens {
		clear(out[t*stride:][:lanes])
	}
	step := lanes * k.w.format.BlockBytes()
	for c := 0; c < a.cols; c += panelCols {
		m := min(panelCols, a.cols-c)
		k.b.panels(k.w.format, weights[c*step:][:m*step], m, a.x[c:], a.cols, a.tokens, out, stride)
	}
	if rows < lanes {
		for t := range a.tokens {
			copy(k.dst[t*n+row:][:rows], out[t*lanes:])
		}
	}
}

// panels is panel for any number of tokens.
func (b *backend) panels(f Format, w []byte, n int, x []float32, xStride, tokens int, out []float32, stride int) {
	for t := 0; t < tokens; {
		m := min(b.wide, tokens-t)
		if b.wide < 8 && m == 3 {
			m = 2
		}
		b.panel(f, w, n, x[t*xStride:], xStride, m, out[t*stride:], stride)
		t += m
	}
}

// grow returns n elements of a buffer that is reused; their values are undefined.
func grow[T any](buf *[]T, n int) []T {
	if cap(*buf) < n {
		*buf = make([]T, n)
	}
	return (*buf)[:n]
}
