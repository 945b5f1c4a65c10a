package kernel

import "math"

// Rope is a rotary position embedding: pair i of a head turns by position * frequency i.
type Rope struct {
	Frequencies []float32 // one for each pair; the first 2*len dimensions of a head are rotated
	Interleaved bool      // pairs are (2i, 2i+1), as in llama GGUF files; else (i, i+len)
}

// Frequencies returns base^(-2i/dim), i < dim/2, divided by factors[i] if there are any, for a model whose manifest
// lists none: in float64 by a fixed formula, rounded once.
func Frequencies(base float64, dim int, factors []float32) []float32 {
	f := make([]float32, dim/2)
	l := log64(base)
	for i := range f {
		v := exp64(-float64(float64(2*i)/float64(dim)) * l)
		if factors != nil {
			v /= float64(factors[i])
		}
		f[i] = float32(v)
	}
	return f
}

// Angles writes the cosines, then the sines of all pairs at a position; dst holds 2*len(Frequencies) values.
func (r *Rope) Angles(dst []float32, position int) {
	n := len(r.Frequencies)
	for i, f := range r.Frequencies {
		s, c := sincos64(float64(position) * float64(f)) // exact below 2^29 positions
		dst[i], dst[n+i] = float32(c), float32(s)
	}
}

// Rotate turns every head of headDim values in x by angles, as Angles wrote them.
func (r *Rope) Rotate(x []float32, headDim int, angles []float32) {
	b, n := active(), len(r.Frequencies)
	cos, sin := angles[:n], angles[n:2*n]
	for ; len(x) > 0; x = x[headDim:] {
		if r.Interleaved {
			b.rotateInterleaved(x[:2*n], cos, sin)
		} else {
			b.rotate(x[:n], x[n:2*n], cos, sin)
		}
	}
}

const (
	twoOverPi = 0x1.45f306dc9c883p-1
	piHalf1   = 0x1.921fb54442d18p+0  // pi/2 rounded
	piHalf2   = 0x1.1a62633145c07p-54 // the rest of it
)

var (
	sinC = [6]float64{-0x1.5555555555555p-3, 0x1.1111111110bb2p-7, -0x1.a01a019e83aaep-13, 0x1.71de37968a024p-19,
		-0x1.ae600b02a7c74p-26, 0x1.5e0b19f38405ap-33}
	cosC = [6]float64{0x1.5555555555555p-5, -0x1.6c16c16c16967p-10, 0x1.a01a019f4eb00p-16, -0x1.27e4fa17da030p-22,
		0x1.1eeb68e934339p-29, -0x1.907da36274fc5p-37}
)

// sincos64 is the sine and cosine of t >= 0, below 2^31, by float64 operations in a fixed order.
func sincos64(t float64) (sin, cos float64) {
	n := math.RoundToEven(float64(t * twoOverPi))
	r := math.FMA(-n, piHalf1, t)
	r = math.FMA(-n, piHalf2, r)
	z := float64(r * r)
	s, c := sinC[5], cosC[5]
	for i := 4; i >= 0; i-- {
		s = math.FMA(s, z, sinC[i])
		c = math.FMA(c, z, cosC[i])
	}
	s = math.FMA(float64(s*z), r, r)
	c = math.FMA(c, z, -0.5)
	c = math.FMA(c, z, 1)
	switch uint64(n) & 3 {
	case 0:
		return s, c
	case 1:
		return c, -s
	case 2:
		return -s, -c
	}
	return -c, s
}

const (
	ln2High64 = 0x1.62e42fefa39efp-1
	ln2Low64  = 0x1.abc9e3b39803fp-56
)

// log64 is the logarithm of a normal positive x: x = 2^k*m, log m = 2*atanh(s), s = (m-1)/(m+1), by its series.
func log64(x float64) float64 {
	m, e := math.Frexp(x)
	if m < math.Sqrt2/2 {
		m, e = 2*m, e-1
	}
	s := float64((m - 1) / (m + 1))
	z := float64(s * s)
	p := 0.0
	for i := 23; i >= 1; i -= 2 {
		p = math.FMA(p, z, 1/float64(i))
	}
	p = float64(2 * float64(p*s))
	return math.FMA(float64(e), ln2High64, math.FMA(float64(e), ln2Low64, p))
}

// exp64 is e^x for |x| < 700: reduction by ln 2, then the series to r^14.
func exp64(x float64) float64 {
	n := math.RoundToEven(float64(x * (1 / ln2High64)))
	r := math.FMA(-n, ln2Low64, math.FMA(-n, ln2High64, x))
	p := 1.0
	for i := 14; i >= 1; i-- {
		p = math.FMA(p, float64(r/float64(i)), 1)
	}
	return math.Ldexp(p, int(n))
}
