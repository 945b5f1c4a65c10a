package kernel

import "fmt"

// panelCols is the number of columns that one chain of a float product spans.
const panelCols = 256

type matmulTask struct {
	p   *Pool
	b   *backend
	dst []float32
	w   *Matrix
	a   *Activations
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
	if w.format == Q8_0 {
		err = a.quantise(p)
	}
	p.matmul = matmulTask{p: p, b: active(), dst: dst, w: w, a: a}
	// A piece is worth waking a worker for: 32 KiB of weights, or as much work on several tokens.
	p.run(&p.matmul, w.groups(), 1+32<<10/(w.rowBytes()*lanes*a.tokens))
	p.matmul = matmulTask{}
	return err
}

func (k *matmulTask) do(worker, lo, hi int) {
	w, s := k.w, &k.p.scratch[worker]
	size := w.rowBytes() * lanes
	for g := lo; g < hi; g++ {
		var weights []byte
		if w.packed != nil {
			weights = w.packed[g*size:][:size]
		} else {
			weights = grow(&s.weights, size)
			w.packGroup(weights, g)
		}
		rows := min(lanes, w.rows-g*lanes)
		if w.format == Q8_0 {
			k.q8(s, weights, g*lanes, rows)
		} else {
			k.float(s, weights, g*lanes, rows)
		}
	}
}

// q8 multiplies the group of rows that starts at row with all tokens.
func (k *matmulTask) q8(s *workerScratch, weights []byte, row, rows int) {
	nb, n := k.a.cols/32, k.w.rows
	for t := 0; t < k.a.tokens; t += tile {
		width := k.a.q8Width(t)
		x := k.a.q8Group(t)
		if rows == lanes && t+width <= k.a.tokens {
			k.b.q8(weights, x, nb, width, k.dst[t*n+row:], n)
			continue
		}
		out := grow(&s.out, tile*lanes)
		k.b.q8(weights, x, nb, width, out, lanes)
		for j := range min(width, k.a.tokens-t) {
			copy(k.dst[(t+j)*n+row:][:rows], out[j*lanes:])
		}
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
		m := 4
		for m > tokens-t {
			m /= 2
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
