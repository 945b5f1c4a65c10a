package kernel

import (
	"encoding/binary"
	"math"
)

func panelPortable(f Format, w []byte, n int, x []float32, xStride, tokens int, out []float32, stride int) {
	var acc [4][lanes]float32
	var row [lanes]float32
	for k := range n {
		src := w[k*f.BlockBytes()*lanes:][:f.BlockBytes()*lanes]
		for r := range row {
			switch f {
			case F32:
				row[r] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*r:]))
			case F16:
				row[r] = F16ToF32(binary.LittleEndian.Uint16(src[2*r:]))
			case BF16:
				row[r] = bf16ToF32(binary.LittleEndian.Uint16(src[2*r:]))
			}
		}
		for t := range tokens {
			v, a := x[t*xStride+k], &acc[t]
			for r, u := range row {
				// FMA, written out: the call would take most of the time
				s := float64(u)*float64(v) + float64(a[r])
				if b := math.Float64bits(s); b&0x1fffffff == 0x10000000 || b<<1 < 897<<53 {
					a[r] = fmaOdd(u, v, a[r])
				} else {
					a[r] = float32(s)
				}
			}
		}
	}
	for t := range tokens {
		for r, v := range acc[t] {
			out[t*stride+r] += v
		}
	}
}

const segment = 2048

// sumLanes adds the 32 lanes of a segment by the tree 16, 8, 4, 2, 1. It destroys them.
func sumLanes(l *[32]float32) float32 {
	for h := 16; h > 0; h /= 2 {
		for i := range h {
			l[i] += l[i+h]
		}
	}
	return l[0]
}

func sumPortable(x []float32) float32 {
	var total float32
	for len(x) > 0 {
		n := min(len(x), segment)
		var l [32]float32
		for i, v := range x[:n] {
			l[i%32] += v
		}
		total += sumLanes(&l)
		x = x[n:]
	}
	return total
}

func sumSquaresPortable(x []float32) float32 {
	var total float32
	for len(x) > 0 {
		n := min(len(x), segment)
		var l [32]float32
		for i, v := range x[:n] {
			l[i%32] = FMA(v, v, l[i%32])
		}
		total += sumLanes(&l)
		x = x[n:]
	}
	return total
}

func expSubPortable(dst, x []float32, m float32) {
	for i, v := range x {
		dst[i] = Exp(v - m)
	}
}

func scalePortable(dst, x []float32, r float32, w []float32) {
	for i, v := range x {
		dst[i] = float32(float32(v*r) * w[i])
	}
}

func mulMaxPortable(x []float32, c float32) float32 {
	m := float32(math.Inf(-1))
	for i, v := range x {
		x[i] = float32(v * c)
		m = larger(x[i], m)
	}
	return m
}

// larger is v if v > m, else m, without a negative zero: backends meet the values in different orders.
func larger(v, m float32) float32 {
	if v > m {
		m = v
	}
	if m == 0 {
		return 0
	}
	return m
}

func maxFinitePortable(x []float32) (largest float32, finite bool) {
	m, bits := float32(math.Inf(-1)), uint32(0)
	for _, v := range x {
		bits = max(bits, math.Float32bits(v)&0x7fffffff)
		m = larger(v, m)
	}
	return m, bits < 0x7f800000
}

func dividePortable(dst, x []float32, d float32) {
	for i, v := range x {
		dst[i] = v / d
	}
}

func siluMulPortable(dst, gate, up []float32) {
	for i, v := range gate {
		dst[i] = float32(float32(v/(1+Exp(-v))) * up[i])
	}
}

func addPortable(dst, x []float32) {
	for i, v := range x {
		dst[i] += v
	}
}

func foldPortable(o, c []float32, a, b float32) {
	for i, v := range c {
		o[i] = FMA(b, v, float32(a*o[i]))
	}
}

func rotatePortable(x0, x1, cos, sin []float32) {
	for i, c := range cos {
		s, u, v := sin[i], x0[i], x1[i]
		x0[i] = FMA(u, c, -float32(v*s))
		x1[i] = FMA(v, c, float32(u*s))
	}
}

func rotateInterleavedPortable(x, cos, sin []float32) {
	for i, c := range cos {
		s, u, v := sin[i], x[2*i], x[2*i+1]
		x[2*i] = FMA(u, c, -float32(v*s))
		x[2*i+1] = FMA(v, c, float32(u*s))
	}
}

func narrowPortable(dst []uint16, x []float32) bool {
	ok := true
	for i, v := range x {
		h, fits := F32ToF16(v)
		dst[i], ok = h, ok && fits
	}
	return ok
}
