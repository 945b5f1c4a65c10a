package kernel

import (
	"fmt"
	"testing"
	"time"
	"unsafe"
)

// bench runs f for each backend and reports work per second: bytes of weights and multiply-adds of one call.
func bench(b *testing.B, name string, bytes, macs float64, f func()) {
	before := Backend()
	defer Use(before)
	for _, backend := range Backends() {
		if err := Use(backend); err != nil {
			b.Fatal(err)
		}
		b.Run(backend+"/"+name, func(b *testing.B) {
			f()
			b.ResetTimer()
			for range b.N {
				f()
			}
			s := b.Elapsed().Seconds() / float64(b.N)
			if bytes > 0 {
				b.ReportMetric(bytes/s/1e9, "GB/s")
			}
			if macs > 0 {
				b.ReportMetric(macs/s/1e9, "GMAC/s")
			}
		})
	}
}

// roof gives the bytes per second that threads read when they add up 256 MB of touched float32, the best of five times.
func roof(p *Pool, x []float32) float64 {
	best := 0.0
	for range 5 {
		begin := time.Now()
		p.Run(len(x)/segment, 16, func(lo, hi int) { active().sum(x[lo*segment : hi*segment]) })
		best = max(best, 4*float64(len(x))/time.Since(begin).Seconds())
	}
	return best
}

// BenchmarkDecode multiplies one token with 256 MB of weights, more than any cache holds. roof is what a plain stream reads
// just before.
func BenchmarkDecode(b *testing.B) {
	r := newRand(b)
	stream := make([]float32, 64<<20)
	for i := range stream {
		stream[i] = 1
	}
	hugePages(unsafe.Slice((*byte)(unsafe.Pointer(&stream[0])), 4*len(stream)))
	for _, f := range []Format{Q8_0, F16, F32} {
		const cols, n = 896, 8
		rows := 256 << 20 / n / (cols * f.BlockBytes() / f.BlockSize())
		data := weights(r, f, 256, cols, false)
		for len(data) < rows*cols/f.BlockSize()*f.BlockBytes() {
			data = append(data, data...)
		}
		data = data[:rows*cols/f.BlockSize()*f.BlockBytes()]
		var ws [n]*Matrix
		for i := range ws {
			ws[i], _ = NewMatrix(f, rows, cols, data)
			ws[i].Pack()
		}
		x, dst := values(r, cols*4, false), make([]float32, rows*4)
		for _, tokens := range []int{1, 4} {
			for _, threads := range []int{1, 2} {
				p := NewPool(threads)
				var a Activations
				b.Run(fmt.Sprintf("roof/%dthr", threads), func(b *testing.B) {
					for b.Loop() {
						b.ReportMetric(roof(p, stream)/1e9, "GB/s")
					}
				})
				bench(b, fmt.Sprintf("%v/%dtok/%dthr", f, tokens, threads), float64(n*len(data)), float64(n*rows*cols*tokens), func() {
					for _, w := range ws {
						a.Set(x, tokens, cols)
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

// BenchmarkPrefill multiplies 128 tokens with matrices of a 0.5B model.
func BenchmarkPrefill(b *testing.B) {
	r := newRand(b)
	for _, f := range []Format{Q8_0, F16, F32} {
		for _, s := range [][2]int{{896, 896}, {4864, 896}, {896, 4864}} {
			w, _ := NewMatrix(f, s[0], s[1], weights(r, f, s[0], s[1], false))
			w.Pack()
			x, dst := values(r, 128*s[1], false), make([]float32, 128*s[0])
			for _, threads := range []int{1, 2} {
				p := NewPool(threads)
				var a Activations
				bench(b, fmt.Sprintf("%v/%dx%d/%dthr", f, s[0], s[1], threads), 0, float64(128*s[0]*s[1]), func() {
					a.Set(x, 128, s[1])
					if err := p.MatMul(dst, w, &a); err != nil {
						b.Fatal(err)
					}
				})
				p.Close()
			}
		}
	}
}

func BenchmarkUnpacked(b *testing.B) {
	r := newRand(b)
	w, _ := NewMatrix(Q8_0, 4864, 896, weights(r, Q8_0, 4864, 896, false))
	p := NewPool(1)
	defer p.Close()
	for _, tokens := range []int{1, 128} {
		x, dst := values(r, tokens*896, false), make([]float32, tokens*4864)
		var a Activations
		bench(b, fmt.Sprintf("%dtok", tokens), 4864*896*34/32, float64(tokens*4864*896), func() {
			a.Set(x, tokens, 896)
			if err := p.MatMul(dst, w, &a); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkAttention is one layer of a 0.5B model: 14 heads of 64, 2 of keys, one token.
func BenchmarkAttention(b *testing.B) {
	r := newRand(b)
	for _, n := range []int{128, 2048} {
		c, _ := NewCache(F16, 2, 64)
		for i := range n {
			if err := c.Store(i, values(r, 128, false), values(r, 128, false)); err != nil {
				b.Fatal(err)
			}
		}
		q := []Query{{Cache: c, Position: n - 1, Q: values(r, 896, false), Out: make([]float32, 896)}}
		for _, threads := range []int{1, 2} {
			p := NewPool(threads)
			bench(b, fmt.Sprintf("%d/%dthr", n, threads), 0, float64(2*n*896), func() { p.Attention(q, 14, 0.125, 0) })
			p.Close()
		}
	}
}

func BenchmarkVector(b *testing.B) {
	r := newRand(b)
	x, y, w := values(r, 4864, false), values(r, 4864, false), values(r, 4864, false)
	dst := make([]float32, 4864)
	bench(b, "RMSNorm/896", 896*4, 0, func() { RMSNorm(dst[:896], x[:896], w[:896], 1e-6) })
	bench(b, "SiLUMul/4864", 4864*4, 0, func() { SiLUMul(dst, x, y) })
	bench(b, "Add/896", 896*4, 0, func() { Add(dst[:896], x[:896]) })
	q := make([]byte, 4864/32*actBlock)
	bench(b, "quantise/4864", 4864*4, 0, func() { active().quantise(x, q, 0, 1) })
	rope := Rope{Frequencies: Frequencies(1e6, 64, nil)}
	angles := make([]float32, 64)
	bench(b, "angles/32", 0, 0, func() { rope.Angles(angles, 1234) })
	bench(b, "rotate/16x64", 16*64*4, 0, func() { rope.Rotate(x[:16*64], 64, angles) })
	rope.Interleaved = true
	bench(b, "rotate/16x64/interleaved", 16*64*4, 0, func() { rope.Rotate(x[:16*64], 64, angles) })
	c, _ := NewCache(F16, 2, 64)
	bench(b, "store/128", 0, 0, func() { c.Store(3, x[:128], y[:128]) })
}

func BenchmarkSample(b *testing.B) {
	r := newRand(b)
	logits := values(r, 151936, false)
	for i := range logits {
		logits[i] *= 3
	}
	var s Sampler
	var tape [32]byte
	position := uint32(0)
	for _, c := range []struct {
		name string
		p    Sampling
	}{{"greedy", Sampling{}}, {"T1", Sampling{Temperature: 1}}, {"T2", Sampling{Temperature: 2}}, {"topk40", Sampling{Temperature: 1, TopK: 40}},
		{"topp0.95", Sampling{Temperature: 1, TopP: 0.95}}, {"minp0.05", Sampling{Temperature: 1, MinP: 0.05}}, {"bias", Sampling{Bias: []Bias{{5, 1}}}}} {
		bench(b, c.name, 0, 0, func() {
			if _, err := s.Sample(logits, &c.p, nil, &tape, position); err != nil {
				b.Fatal(err)
			}
			position++
		})
	}
	var top []LogProb
	bench(b, "logprobs20", 0, 0, func() { top, _, _ = s.LogProbs(top[:0], logits, 20, 7) })
}
