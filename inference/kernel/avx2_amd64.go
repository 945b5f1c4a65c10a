package kernel

import "math"

//go:generate go run ./internal/asmgen

// Lengths: n counts groups of 8 values (32 in the sums, columns in the panels) and is at least 1; strides are in bytes.

//go:noescape
func avx2Q8Single(w, x *byte, nb int, from, out *float32)

//go:noescape
func avx2Q8SingleCold(w, x *byte, nb int, from, out *float32)

//go:noescape
func avx2Q8Tile(w, s, x *byte, nb int, from *float32, fromStride int, out *float32, stride int)

//go:noescape
func avx2PanelF32x1(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx2PanelF32x2(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx2PanelF32x4(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx2PanelF16x1(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx2PanelF16x2(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx2PanelF16x4(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx2PanelBF16x1(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx2PanelBF16x2(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx2PanelBF16x4(w *byte, x *float32, xStride, n int, out *float32, stride int)

//go:noescape
func avx2Fetch(w *byte, step, pieces, n int)

//go:noescape
func avx2Quantise(x *float32, nb int, dst *byte, quadStride, blockStride int) int

//go:noescape
func avx2Sum(x *float32, n int, lanes *[32]float32)

//go:noescape
func avx2SumSquares(x *float32, n int, lanes *[32]float32)

//go:noescape
func avx2ExpSub(dst, x *float32, n int, m *float32)

//go:noescape
func avx2SiluMul(dst, gate, up *float32, n int)

//go:noescape
func avx2Scale(dst, x, w *float32, n int, r *float32)

//go:noescape
func avx2Divide(dst, x *float32, n int, d *float32)

//go:noescape
func avx2Add(dst, x *float32, n int)

//go:noescape
func avx2Fold(o, c *float32, n int, a, b *float32)

//go:noescape
func avx2Rotate(x0, x1, cos, sin *float32, n int)

//go:noescape
func avx2RotateInterleaved(x, cos, sin *float32, n int)

//go:noescape
func avx2MaxFinite(x *float32, n int, out *[16]float32)

//go:noescape
func avx2MulMax(x *float32, n int, c *float32, out *[8]float32)

//go:noescape
func avx2Narrow(dst *uint16, x *float32, n int) int

//go:noescape
func avx2Philox(dst *uint32, n int, keys *[20]uint32, counter *[4]uint32)

//go:noescape
func avx2Screen(mask *byte, x *float32, r *uint32, n int, best *float32)

// The wrappers below hand whole registers to the assembly and the rest to the portable loops. Indexing the last element
// first keeps a wrong length a panic.

// noChains is where fresh chains come from.
var noChains [maxSpan * lanes]float32

var avx2 = &backend{
	name: "avx2",
	wide: 4,
	fetch: func(w []byte, step, pieces, n int) {
		_ = w[(pieces-1)*step+n-1]
		if n >= 64 {
			avx2Fetch(&w[0], step, pieces, n/64)
		}
	},
	blocks: func(f Format, w []byte, step, groups int, x []byte, nb, width int, cold, fresh bool, out []float32, stride int) {
		if f != Q8_0 {
			if fresh {
				startChains(groups, width, out, stride)
			}
			avx2Unpacked(f, w, step, groups, x, nb, width, out, stride)
			return
		}
		_, _, _ = w[(groups-1)*step+(nb-1)/2*1088+1087], x[nb*actBlock*width-1], out[(width-1)*stride+groups*lanes-1]
		for i := range groups {
			w, out := w[i*step:], out[i*lanes:]
			from, fromStride := out, 4*stride
			if fresh {
				from, fromStride = noChains[:], 0
			}
			switch {
			case width == 1 && fetchesAhead:
				avx2Q8SingleCold(&w[0], &x[0], nb, &from[0], &out[0])
				continue
			case width == 1:
				avx2Q8Single(&w[0], &x[0], nb, &from[0], &out[0])
				continue
			}
			avx2Q8Tile(&w[0], &w[1024], &x[0], nb, &from[0], fromStride, &out[0], 4*stride)
			avx2Q8Tile(&w[32], &w[1040], &x[0], nb, &from[8], fromStride, &out[8], 4*stride)
		}
	},
	alone:  avx2Alone,
	unpack: (&unpackers{avx2UnpackQ4_0, avx2UnpackQ4_K, avx2UnpackQ5_K, avx2UnpackQ6_K}).unpack,
	panel: func(f Format, w []byte, n int, x []float32, xStride, tokens int, out []float32, stride int) {
		_, _, _ = w[n*lanes*f.BlockBytes()-1], x[(tokens-1)*xStride+n-1], out[(tokens-1)*stride+lanes-1]
		switch {
		case f == F32 && tokens == 4:
			avx2PanelF32x4(&w[0], &x[0], 4*xStride, n, &out[0], 4*stride)
		case f == F32 && tokens == 2:
			avx2PanelF32x2(&w[0], &x[0], 4*xStride, n, &out[0], 4*stride)
		case f == F32:
			avx2PanelF32x1(&w[0], &x[0], 4*xStride, n, &out[0], 4*stride)
		case f == BF16 && tokens == 4:
			avx2PanelBF16x4(&w[0], &x[0], 4*xStride, n, &out[0], 4*stride)
		case f == BF16 && tokens == 2:
			avx2PanelBF16x2(&w[0], &x[0], 4*xStride, n, &out[0], 4*stride)
		case f == BF16:
			avx2PanelBF16x1(&w[0], &x[0], 4*xStride, n, &out[0], 4*stride)
		case tokens == 4:
			avx2PanelF16x4(&w[0], &x[0], 4*xStride, n, &out[0], 4*stride)
		case tokens == 2:
			avx2PanelF16x2(&w[0], &x[0], 4*xStride, n, &out[0], 4*stride)
		default:
			avx2PanelF16x1(&w[0], &x[0], 4*xStride, n, &out[0], 4*stride)
		}
	},
	quantise: func(x []float32, dst []byte, j, width int) bool {
		nb := len(x) / 32
		_ = dst[nb*actBlock*width-1]
		return avx2Quantise(&x[0], nb, &dst[4*j], 4*width, actBlock*width) == 0
	},
	sum:        func(x []float32) float32 { return avx2Segments(x, false) },
	sumSquares: func(x []float32) float32 { return avx2Segments(x, true) },
	expSub: func(dst, x []float32, m float32) {
		dst = dst[:len(x)]
		n := len(x) / 8
		if n > 0 {
			avx2ExpSub(&dst[0], &x[0], n, &m)
		}
		expSubPortable(dst[8*n:], x[8*n:], m)
	},
	scale: func(dst, x []float32, r float32, w []float32) {
		dst, w = dst[:len(x)], w[:len(x)]
		n := len(x) / 8
		if n > 0 {
			avx2Scale(&dst[0], &x[0], &w[0], n, &r)
		}
		scalePortable(dst[8*n:], x[8*n:], r, w[8*n:])
	},
	mulMax: func(x []float32, c float32) float32 {
		var top [8]float32
		for i := range top {
			top[i] = float32(math.Inf(-1))
		}
		n := len(x) / 8
		if n > 0 {
			avx2MulMax(&x[0], n, &c, &top)
		}
		m := mulMaxPortable(x[8*n:], c)
		for _, v := range top {
			m = larger(v, m)
		}
		return m
	},
	maxFinite: func(x []float32) (float32, bool) {
		n := len(x) / 8
		m, ok := maxFinitePortable(x[8*n:])
		if n > 0 {
			var out [16]float32
			avx2MaxFinite(&x[0], n, &out)
			for i, v := range out[:8] {
				m = larger(v, m)
				ok = ok && math.Float32bits(out[8+i]) < 0x7f800000
			}
		}
		return m, ok
	},
	divide: func(dst, x []float32, d float32) {
		dst = dst[:len(x)]
		n := len(x) / 8
		if n > 0 {
			avx2Divide(&dst[0], &x[0], n, &d)
		}
		dividePortable(dst[8*n:], x[8*n:], d)
	},
	siluMul: func(dst, gate, up []float32) {
		dst, up = dst[:len(gate)], up[:len(gate)]
		n := len(gate) / 8
		if n > 0 {
			avx2SiluMul(&dst[0], &gate[0], &up[0], n)
		}
		siluMulPortable(dst[8*n:], gate[8*n:], up[8*n:])
	},
	add: func(dst, x []float32) {
		dst = dst[:len(x)]
		n := len(x) / 8
		if n > 0 {
			avx2Add(&dst[0], &x[0], n)
		}
		addPortable(dst[8*n:], x[8*n:])
	},
	fold: func(o, c []float32, a, b float32) {
		o = o[:len(c)]
		n := len(c) / 8
		if n > 0 {
			avx2Fold(&o[0], &c[0], n, &a, &b)
		}
		foldPortable(o[8*n:], c[8*n:], a, b)
	},
	rotate: func(x0, x1, cos, sin []float32) {
		x0, x1, sin = x0[:len(cos)], x1[:len(cos)], sin[:len(cos)]
		n := len(cos) / 8
		if n > 0 {
			avx2Rotate(&x0[0], &x1[0], &cos[0], &sin[0], n)
		}
		rotatePortable(x0[8*n:], x1[8*n:], cos[8*n:], sin[8*n:])
	},
	rotateInterleaved: func(x, cos, sin []float32) {
		x, sin = x[:2*len(cos)], sin[:len(cos)]
		n := len(cos) / 8
		if n > 0 {
			avx2RotateInterleaved(&x[0], &cos[0], &sin[0], n)
		}
		rotateInterleavedPortable(x[16*n:], cos[8*n:], sin[8*n:])
	},
	philox: func(dst []uint32, key [2]uint32, counter [4]uint32) {
		var keys [20]uint32
		for i := range 10 {
			keys[2*i], keys[2*i+1] = key[0], key[1]
			key[0], key[1] = key[0]+philoxWeyl0, key[1]+philoxWeyl1
		}
		avx2Philox(&dst[0], len(dst)/32, &keys, &counter)
	},
	screen: func(mask []byte, x []float32, r []uint32, best float32) {
		_, _ = mask[len(x)/8-1], r[len(x)-1]
		avx2Screen(&mask[0], &x[0], &r[0], len(x)/8, &best)
	},
	narrow: func(dst []uint16, x []float32) bool {
		dst = dst[:len(x)]
		n := len(x) / 8
		ok := n == 0 || avx2Narrow(&dst[0], &x[0], n) == 0
		return narrowPortable(dst[8*n:], x[8*n:]) && ok
	},
}

// avx2Segments is sumPortable, or sumSquaresPortable, with whole groups of 32 in assembly.
func avx2Segments(x []float32, squares bool) float32 {
	var total float32
	for len(x) > 0 {
		n := min(len(x), segment)
		var l [32]float32
		whole := n / 32
		switch {
		case whole == 0:
		case squares:
			avx2SumSquares(&x[0], whole, &l)
		default:
			avx2Sum(&x[0], whole, &l)
		}
		for i, v := range x[32*whole : n] {
			if squares {
				l[i] = FMA(v, v, l[i])
			} else {
				l[i] += v
			}
		}
		total += sumLanes(&l)
		x = x[n:]
	}
	return total
}
