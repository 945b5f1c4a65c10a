package kernel

import (
	"fmt"
	"testing"
)

// BenchmarkFormats multiplies 56 matrices of 4864 x 1024 weights, more than the caches hold, with one token, a matrix that
// stays in a cache with one token, and shapes of a feed-forward network with 128 tokens.
func BenchmarkFormats(b *testing.B) {
	r := newRand(b)
	for _, f := range []Format{Q8_0, Q4_0, Q4_K, Q5_K, Q6_K, BF16} {
		for _, c := range []struct {
			name                       string
			rows, cols, tokens, copies int
		}{{"decode", 4864, 1024, 1, 56}, {"cached", 256, 1024, 1, 1}, {"prefill-in", 4864, 1024, 128, 1}, {"prefill-out", 1024, 4864, 128, 1}} {
			data := weights(r, f, c.rows, c.cols, false)
			var ws []*Matrix
			for range c.copies {
				w, err := NewMatrix(f, c.rows, c.cols, data)
				if err != nil {
					b.Fatal(err)
				}
				w.Pack()
				ws = append(ws, w)
			}
			x, dst := values(r, c.tokens*c.cols, false), make([]float32, c.tokens*c.rows)
			for _, threads := range []int{1, 2} {
				p := NewPool(threads)
				var a Activations
				macs := float64(c.copies * c.rows * c.cols * c.tokens)
				bench(b, fmt.Sprintf("%v/%s/%dthr", f, c.name, threads), float64(c.copies*len(data)), macs, func() {
					for _, w := range ws {
						a.Set(x, c.tokens, c.cols)
						if err := p.MatMul(dst, w, &a); err != nil {
							b.Fatal(err)
						}
					}
				})
				p.Close()
			}
		}
	}
}
