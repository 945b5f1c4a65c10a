package kernel

import "math"

// The AVX-512 backend: what gains from wider registers or from VPDPBUSD. The rest is AVX2.

//go:noescape
func avx512Q8Single(w, x *byte, nb int, from, out *float32)

//go:noescape
func avx512Q8SingleCold(w, x *byte, nb int, from, out *float32)

//go:noescape
func avx512Q8x16(w *byte, step int, x *byte, nb int, from *float32, fromStride int, out *float32, stride int)

//go:noescape
func avx512Q8x16Cold(w *byte, step int, x *byte, nb int, from *float32, fromStride int, out *float32, stride int)

//go:noescape
func avx512Q8x32(w *byte, step int, x *byte, nb int, from *float32, fromStride int, out *float32, stride int)

//go:noescape
func avx512Q8x32Cold(w *byte, step int, x *byte, nb int, from *float32, fromStride int, out *float32, stride int)

//go:noescape
func avx512Q8x48(w *byte, step int, x *byte, nb int, from *float32, fromStride int, out *float32, stride int)

//go:noescape
func avx512Q8x48Cold(w *byte, step int, x *byte, nb int, from *float32, fromStride int, out *float32, stride int)

//go:noescape
func avx512PanelF32x1(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF32x2(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF32x3(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF32x4(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF32x5(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF32x6(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF32x7(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF32x8(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF16x1(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF16x2(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF16x3(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF16x4(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF16x5(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF16x6(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF16x7(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelF16x8(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelBF16x1(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelBF16x2(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelBF16x3(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelBF16x4(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelBF16x5(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelBF16x6(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelBF16x7(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512PanelBF16x8(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx512ExpSub(dst, x *float32, n int, m *float32)

//go:noescape
func avx512SiluMul(dst, gate, up *float32, n int)

//go:noescape
func avx512Scale(dst, x, w *float32, n int, r *float32)

//go:noescape
func avx512Divide(dst, x *float32, n int, d *float32)

//go:noescape
func avx512Add(dst, x *float32, n int)

//go:noescape
func avx512Fold(o, c *float32, n int, a, b *float32)

//go:noescape
func avx512MulMax(x *float32, n int, c, out *float32)

//go:noescape
func avx512Sum(x *float32, n int, out *float32)

//go:noescape
func avx512SumSquares(x *float32, n int, out *float32)

type panel512 func(w *byte, x *float32, xStride, n int, out *float32, stride int)

var panels512 = [...][8]panel512{
	F32:  {avx512PanelF32x1, avx512PanelF32x2, avx512PanelF32x3, avx512PanelF32x4, avx512PanelF32x5, avx512PanelF32x6, avx512PanelF32x7, avx512PanelF32x8},
	F16:  {avx512PanelF16x1, avx512PanelF16x2, avx512PanelF16x3, avx512PanelF16x4, avx512PanelF16x5, avx512PanelF16x6, avx512PanelF16x7, avx512PanelF16x8},
	BF16: {avx512PanelBF16x1, avx512PanelBF16x2, avx512PanelBF16x3, avx512PanelBF16x4, avx512PanelBF16x5, avx512PanelBF16x6, avx512PanelBF16x7, avx512PanelBF16x8},
}

var avx512 = func() *backend {
	b := *avx2
	b.name = "avx512"
	b.blocks = blocksAVX512
	b.alone = avx512Alone
	b.unpack = (&unpackers{avx512UnpackQ4_0, avx512UnpackQ4_K, avx512UnpackQ5_K, avx512UnpackQ6_K}).unpack
	b.wide = 8
	b.panel = func(f Format, w []byte, n int, x []float32, xStride, tokens int, out []float32, stride int) {
		_, _, _ = w[n*lanes*f.BlockBytes()-1], x[(tokens-1)*xStride+n-1], out[(tokens-1)*stride+lanes-1]
		panels512[f][tokens-1](&w[0], &x[0], 4*xStride, n, &out[0], 4*stride)
	}
	b.sum = func(x []float32) float32 { return segments512(x, false) }
	b.sumSquares = func(x []float32) float32 { return segments512(x, true) }
	b.expSub = func(dst, x []float32, m float32) {
		if dst = dst[:len(x)]; len(x) > 0 {
			avx512ExpSub(&dst[0], &x[0], len(x), &m)
		}
	}
	b.scale = func(dst, x []float32, r float32, w []float32) {
		if dst, w = dst[:len(x)], w[:len(x)]; len(x) > 0 {
			avx512Scale(&dst[0], &x[0], &w[0], len(x), &r)
		}
	}
	b.mulMax = func(x []float32, c float32) float32 {
		m := float32(math.Inf(-1))
		if len(x) > 0 {
			avx512MulMax(&x[0], len(x), &c, &m)
		}
		return larger(m, m)
	}
	b.divide = func(dst, x []float32, d float32) {
		if dst = dst[:len(x)]; len(x) > 0 {
			avx512Divide(&dst[0], &x[0], len(x), &d)
		}
	}
	b.siluMul = func(dst, gate, up []float32) {
		if dst, up = dst[:len(gate)], up[:len(gate)]; len(gate) > 0 {
			avx512SiluMul(&dst[0], &gate[0], &up[0], len(gate))
		}
	}
	b.add = func(dst, x []float32) {
		if dst = dst[:len(x)]; len(x) > 0 {
			avx512Add(&dst[0], &x[0], len(x))
		}
	}
	b.fold = func(o, c []float32, x, y float32) {
		if o = o[:len(c)]; len(c) > 0 {
			avx512Fold(&o[0], &c[0], len(c), &x, &y)
		}
	}
	return &b
}()

// segments512 adds up the sums of segments.
func segments512(x []float32, squares bool) float32 {
	var total, part float32
	for len(x) > 0 {
		n := min(len(x), segment)
		if squares {
			avx512SumSquares(&x[0], n, &part)
		} else {
			avx512Sum(&x[0], n, &part)
		}
		total += part
		x = x[n:]
	}
	return total
}

func blocksAVX512(f Format, w []byte, step, groups int, x []byte, nb, width int, cold, fresh bool, out []float32, stride int) {
	if f != Q8_0 {
		if fresh {
			startChains(groups, width, out, stride)
		}
		avx512Unpacked(f, w, step, groups, x, nb, width, out, stride)
		return
	}
	_, _, _ = w[(groups-1)*step+(nb-1)/2*1088+1087], x[nb*actBlock*width-1], out[(width-1)*stride+groups*lanes-1]
	from, fromStride := &out[0], 4*stride
	if fresh {
		from, fromStride = &noChains[0], 0
	}
	switch {
	case width == 1:
		for i := range groups {
			from := from
			if !fresh {
				from = &out[i*lanes]
			}
			if fetchesAhead {
				avx512Q8SingleCold(&w[i*step], &x[0], nb, from, &out[i*lanes])
			} else {
				avx512Q8Single(&w[i*step], &x[0], nb, from, &out[i*lanes])
			}
		}
	case groups == 1 && cold:
		avx512Q8x16Cold(&w[0], step, &x[0], nb, from, fromStride, &out[0], 4*stride)
	case groups == 1:
		avx512Q8x16(&w[0], step, &x[0], nb, from, fromStride, &out[0], 4*stride)
	case groups == 2 && cold:
		avx512Q8x32Cold(&w[0], step, &x[0], nb, from, fromStride, &out[0], 4*stride)
	case groups == 2:
		avx512Q8x32(&w[0], step, &x[0], nb, from, fromStride, &out[0], 4*stride)
	case cold:
		avx512Q8x48Cold(&w[0], step, &x[0], nb, from, fromStride, &out[0], 4*stride)
	default:
		avx512Q8x48(&w[0], step, &x[0], nb, from, fromStride, &out[0], 4*stride)
	}
}
