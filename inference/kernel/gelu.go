package kernel

import "math"

// The constants of GELU in its tanh form: sqrt(2/pi) and 0.044715.
const (
	geluScale = float32(0x1.988454p-1)
	geluCube  = float32(0x1.6e4e26p-5)
)

// Tanh is (1-t)/(1+t) with the sign of x, t = exp(-2|x|). Its error is absolute: below 2^-23.
func Tanh(x float32) float32 {
	return tanhOf(x, Exp(-2*float32(math.Abs(float64(x)))))
}

func tanhOf(x, t float32) float32 {
	y := float32(1-t) / float32(1+t)
	return float32(math.Copysign(float64(y), float64(x)))
}

// GELU is (0.5*x)*(1 + tanh(u)), u = sqrt(2/pi)*fma(0.044715, (x*x)*x, x).
func GELU(x float32) float32 {
	return geluOf(x, Tanh(geluArgument(x)))
}

func geluArgument(x float32) float32 {
	return float32(geluScale * FMA(geluCube, float32(float32(x*x)*x), x))
}

func geluOf(x, tanh float32) float32 {
	return float32(float32(0.5*x) * float32(1+tanh))
}

// strip is how many values a function of exp works on at a time.
const strip = 64

// GELUMul writes gelu(gate)*up to dst, which may be gate or up.
func GELUMul(dst, gate, up []float32) {
	b := active()
	var u, t [strip]float32
	for len(gate) > 0 {
		n := min(strip, len(gate))
		for i, x := range gate[:n] {
			u[i] = geluArgument(x)
			t[i] = -2 * float32(math.Abs(float64(u[i])))
		}
		b.expSub(t[:n], t[:n], 0)
		for i, x := range gate[:n] {
			dst[i] = float32(geluOf(x, tanhOf(u[i], t[i])) * up[i])
		}
		dst, gate, up = dst[n:], gate[n:], up[n:]
	}
}

// SoftCap replaces each x by limit*tanh(x/limit).
func SoftCap(x []float32, limit float32) { softCap(active(), x, limit) }

func softCap(b *backend, x []float32, limit float32) {
	var t [strip]float32
	for len(x) > 0 {
		n := min(strip, len(x))
		for i, v := range x[:n] {
			v = float32(v / limit)
			x[i] = v
			t[i] = -2 * float32(math.Abs(float64(v)))
		}
		b.expSub(t[:n], t[:n], 0)
		for i, v := range x[:n] {
			x[i] = float32(limit * tanhOf(v, t[i]))
		}
		x = x[n:]
	}
}
