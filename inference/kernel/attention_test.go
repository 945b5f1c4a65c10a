package kernel

import (
	"errors"
	"fmt"
	"math"
	"testing"
)

// attend is the definition of attention for one head, in plain loops over keys and values [position][dim], of which
// those from first on are visible.
func attend(q []float32, keys, values [][]float32, first int, scale, limit float32) []float32 {
	dim := len(q)
	var o []float32
	var m, l float32
	for start := first / 256 * 256; start < len(keys); start += 256 {
		n := min(256, len(keys)-start)
		s := make([]float32, n)
		mc := float32(math.Inf(-1))
		hidden := max(first-start, 0)
		for i := hidden; i < n; i++ {
			var acc float32
			for d := range dim {
				acc = fmaOdd(keys[start+i][d], q[d], acc)
			}
			s[i] = float32((0 + acc) * scale)
			if limit != 0 {
				s[i] = limit * Tanh(s[i]/limit)
			}
			mc = max(mc, s[i])
		}
		var lane [32]float32
		for i := hidden; i < n; i++ {
			s[i] = Exp(s[i] - mc)
			lane[i%32] += s[i]
		}
		for h := 16; h > 0; h /= 2 {
			for i := range h {
				lane[i] = lane[i] + lane[i+h]
			}
		}
		lc := lane[0]
		oc := make([]float32, dim)
		for d := range dim {
			for i := hidden; i < n; i++ {
				oc[d] = fmaOdd(values[start+i][d], s[i], oc[d])
			}
			oc[d] = 0 + oc[d]
		}
		if o == nil {
			o, m, l = oc, mc, lc
			continue
		}
		top := max(m, mc)
		a, b := Exp(m-top), Exp(mc-top)
		m, l = top, fmaOdd(b, lc, float32(a*l))
		for d := range o {
			o[d] = fmaOdd(b, oc[d], float32(a*o[d]))
		}
	}
	for d := range o {
		o[d] /= l
	}
	return o
}

func TestAttention(t *testing.T) {
	each(t, func(t *testing.T) {
		for _, c := range []struct {
			f                 Format
			heads, kvHeads, d int
			n                 int
			window            int
			limit             float32
		}{
			{F16, 14, 2, 64, 300, 0, 0}, {F32, 4, 2, 32, 513, 0, 0}, {F16, 3, 3, 80, 17, 0, 0}, {F32, 9, 1, 20, 260, 0, 0},
			{F16, 4, 1, 256, 520, 0, 0}, {F16, 2, 2, 1, 258, 0, 0}, {F16, 4, 2, 32, 300, 1, 0}, {F16, 2, 1, 64, 600, 48, 2},
			{F32, 2, 1, 32, 800, 257, 0.5}, {F16, 2, 2, 32, 300, 0, 30},
		} {
			t.Run(fmt.Sprint(c), func(t *testing.T) {
				r := newRand(t)
				cache, err := NewCache(c.f, c.kvHeads, c.d)
				if err != nil {
					t.Fatal(err)
				}
				keys, vals := make([][][]float32, c.kvHeads), make([][][]float32, c.kvHeads)
				var queries []Query
				for pos := range c.n {
					k, v := values(r, c.kvHeads*c.d, false), values(r, c.kvHeads*c.d, false)
					if err := cache.Store(pos, k, v); err != nil {
						t.Fatal(err)
					}
					if c.f == F16 {
						for _, x := range [][]float32{k, v} {
							for i := range x {
								h, _ := F32ToF16(x[i])
								x[i] = F16ToF32(h)
							}
						}
					}
					for h := range c.kvHeads {
						keys[h] = append(keys[h], k[h*c.d:(h+1)*c.d])
						vals[h] = append(vals[h], v[h*c.d:(h+1)*c.d])
					}
					if pos < 3 || pos%97 == 0 || pos%256 > 253 || pos%256 < 2 || pos == c.n-1 {
						first := 0
						if c.window > 0 {
							first = max(0, pos-c.window+1)
						}
						queries = append(queries, Query{Cache: cache, First: first, Position: pos,
							Q: values(r, c.heads*c.d, false), Out: make([]float32, c.heads*c.d)})
					}
				}
				scale := float32(1 / math.Sqrt(float64(c.d)))
				for _, threads := range []int{1, 2, 4} {
					p := NewPool(threads)
					p.Attention(queries, c.heads, scale, c.limit)
					p.Close()
					for _, q := range queries {
						for h := range c.heads {
							kv := h * c.kvHeads / c.heads
							want := attend(q.Q[h*c.d:][:c.d], keys[kv][:q.Position+1], vals[kv][:q.Position+1], q.First, scale, c.limit)
							compare(t, fmt.Sprintf("%d threads, position %d, head %d", threads, q.Position, h), q.Out[h*c.d:][:c.d], want)
						}
						clear(q.Out)
					}
				}
				// a copy of the pages gives the same, and the original may go
				last := queries[len(queries)-1]
				p := NewPool(1)
				defer p.Close()
				p.Attention([]Query{last}, c.heads, scale, c.limit)
				want := append([]float32(nil), last.Out...)
				last.Cache = cache.Clone(c.n)
				cache.Truncate(0)
				p.Attention([]Query{last}, c.heads, scale, c.limit)
				compare(t, "clone", last.Out, want)
			})
		}
	})
}

func TestCacheRejects(t *testing.T) {
	each(t, func(t *testing.T) {
		for _, c := range []struct {
			f    Format
			h, d int
		}{{Q8_0, 1, 32}, {F16, 0, 32}, {F16, 1, 0}, {F32, 1, 257}} {
			if _, err := NewCache(c.f, c.h, c.d); err == nil {
				t.Errorf("%+v is accepted", c)
			}
		}
		for _, f := range []Format{F16, F32} {
			for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(-1)), 65520} {
				for i := range 2 {
					c, _ := NewCache(f, 2, 10)
					x := [2][]float32{make([]float32, 20), make([]float32, 20)}
					x[i][3+16*i] = bad
					err := c.Store(5, x[0], x[1])
					if want := f == F16 || bad != 65520; errors.Is(err, ErrNumeric) != want {
						t.Errorf("%v stores %v: %v", f, bad, err)
					}
				}
			}
		}
	})
}

func TestRope(t *testing.T) {
	each(t, func(t *testing.T) {
		for _, base := range []float64{10000, 1e6, 500000} {
			freqs := Frequencies(base, 128, nil)
			for i, f := range freqs {
				want := math.Pow(base, -2*float64(i)/128)
				if math.Abs(float64(f)-want) > want*0x1p-24*1.0001 {
					t.Errorf("frequency %d of base %v is %v, want %v", i, base, f, want)
				}
			}
			r := Rope{Frequencies: freqs}
			angles := make([]float32, 128)
			for _, pos := range []int{0, 1, 2, 100, 4095, 131071, 1 << 20} {
				r.Angles(angles, pos)
				for i, f := range freqs {
					s, c := math.Sincos(float64(pos) * float64(f))
					if math.Abs(float64(angles[i])-c) > 0x1p-24 || math.Abs(float64(angles[64+i])-s) > 0x1p-24 {
						t.Fatalf("position %d, pair %d: %v %v, want %v %v", pos, i, angles[i], angles[64+i], c, s)
					}
				}
			}
		}
		rnd := newRand(t)
		for _, pairs := range []int{1, 8, 13, 32, 40} {
			headDim := 2*pairs + 6
			x, angles := values(rnd, 3*headDim, false), values(rnd, 2*pairs, false)
			for _, inter := range []bool{false, true} {
				r := Rope{Frequencies: make([]float32, pairs), Interleaved: inter}
				got, want := append([]float32(nil), x...), append([]float32(nil), x...)
				r.Rotate(got, headDim, angles)
				for h := range 3 {
					for i := range pairs {
						a, b := h*headDim+i, h*headDim+i+pairs
						if inter {
							a, b = h*headDim+2*i, h*headDim+2*i+1
						}
						c, s := angles[i], angles[pairs+i]
						want[a] = fmaOdd(x[a], c, -float32(x[b]*s))
						want[b] = fmaOdd(x[b], c, float32(x[a]*s))
					}
				}
				compare(t, fmt.Sprint(pairs, inter), got, want)
			}
		}
		factors := Frequencies(10000, 4, []float32{1, 8})
		if plain := Frequencies(10000, 4, nil); factors[0] != plain[0] || factors[1] != plain[1]/8 {
			t.Errorf("factors give %v, without %v", factors, plain)
		}
	})
}

func TestRMSNorm(t *testing.T) {
	each(t, func(t *testing.T) {
		r := newRand(t)
		p := NewPool(2)
		defer p.Close()
		for _, n := range []int{1, 31, 64, 896, 2048, 2049, 5000} {
			x, w := values(r, 20*n, false), values(r, n, false)
			got, want := make([]float32, 20*n), make([]float32, 20*n)
			for i := range 20 {
				var total float32
				for s := 0; s < n; s += 2048 {
					var lane [32]float32
					for j := s; j < min(s+2048, n); j++ {
						lane[j%32] = fmaOdd(x[i*n+j], x[i*n+j], lane[j%32])
					}
					for h := 16; h > 0; h /= 2 {
						for i := range h {
							lane[i] = lane[i] + lane[i+h]
						}
					}
					total += lane[0]
				}
				c := 1 / float32(math.Sqrt(float64(total/float32(n)+1e-6)))
				for j := range n {
					want[i*n+j] = float32(x[i*n+j]*c) * w[j]
				}
			}
			p.RMSNorm(got, x, w, 1e-6)
			one := make([]float32, n)
			RMSNorm(one, x[:n], w, 1e-6)
			compare(t, fmt.Sprint("one row of ", n), one, got[:n])
			compare(t, fmt.Sprint("rows of ", n), got, want)
		}
	})
}
