package kernel

import "math"

// The constants of contract mk1, as hexadecimal floats in docs/numerics.md. Errors are stated there and tested.
const (
	log2e   = float32(0x1.715476p+0)
	ln2High = float32(0x1.62e43p-1)
	ln2Low  = float32(-0x1.05c610p-29)
	// rounder added and subtracted rounds to the nearest integer, ties to even.
	rounder = float32(0x1.8p23)

	expLow  = float32(-87.33) // below, exp is +0
	expHigh = float32(88.72)  // above, exp is +Inf
	expC2   = float32(0x1p-1)
	expC3   = float32(0x1.5554dep-3)
	expC4   = float32(0x1.55551ap-5)
	expC5   = float32(0x1.120b64p-7)
	expC6   = float32(0x1.6d10fep-10)
)

var logC = [9]float32{0x1.555554p-2, -0x1.fffffcp-3, 0x1.999d5ap-3, -0x1.555b4ap-3, 0x1.23d214p-3, -0x1.fcf4a8p-4,
	0x1.dea2c0p-4, -0x1.d636d0p-4, 0x1.1d8f60p-4}

// Exp is e^x, at most 1 unit in the last place off; +0 below -87.33, +Inf above 88.72, NaN for NaN.
func Exp(x float32) float32 {
	switch {
	case x < expLow:
		return 0
	case x > expHigh:
		return float32(math.Inf(1))
	case x != x:
		return x
	}
	z := FMA(x, log2e, rounder)
	n := z - rounder
	r := FMA(-n, ln2High, x)
	r = FMA(-n, ln2Low, r)
	p := FMA(expC6, r, expC5)
	p = FMA(p, r, expC4)
	p = FMA(p, r, expC3)
	p = FMA(p, r, expC2)
	p = FMA(p, r, 1)
	p = FMA(p, r, 1)
	// two exact powers of two: one alone would not hold 2^128
	k := int32(n)
	h := k >> 1
	return float32(float32(p*power2(h)) * power2(k-h))
}

func power2(k int32) float32 { return math.Float32frombits(uint32(k+127) << 23) }

// Log is the natural logarithm of a normal positive x, at most 1 unit in the last place off; -Inf for 0 and subnormal
// values, NaN for negative ones, x itself for +Inf and NaN.
func Log(x float32) float32 {
	b := math.Float32bits(x)
	switch {
	case x < 0:
		return float32(math.NaN())
	case b >= 0x7f800000 && b<<1 != 0:
		return x
	case b < 0x00800000 || b == 1<<31:
		return float32(math.Inf(-1))
	}
	// x = 2^k * m with m in [sqrt(1/2), sqrt(2))
	b += 0x3f800000 - 0x3f3504f3
	k := float32(int32(b>>23) - 127)
	f := math.Float32frombits(b&0x7fffff+0x3f3504f3) - 1
	z := float32(f * f)
	q := logC[8]
	for i := 7; i >= 0; i-- {
		q = FMA(q, f, logC[i])
	}
	y := float32(float32(f*z) * q)
	y = FMA(k, ln2Low, y)
	y = FMA(-0.5, z, y)
	return FMA(k, ln2High, float32(f+y))
}

// Log1p is log(1+x) for x > -1, at most 2 units in the last place off.
func Log1p(x float32) float32 {
	u := float32(1 + x)
	c := float32(x - float32(u-1))
	return Log(u) + float32(c/u)
}

// Sigmoid is 1/(1+exp(-x)).
func Sigmoid(x float32) float32 { return 1 / (1 + Exp(-x)) }

// SiLU is x/(1+exp(-x)).
func SiLU(x float32) float32 { return x / (1 + Exp(-x)) }
