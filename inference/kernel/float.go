package kernel

import "math"

// FMA returns x*y+z rounded once to float32.
//
// The product is exact in float64, so s below is the sum rounded to 53 bits. Rounding s again is wrong only where s
// is a midpoint of two float32 values (every such midpoint is a float64, and rounding is monotonic); there, and for
// subnormal results, whose midpoints lie elsewhere, fmaOdd decides.
func FMA(x, y, z float32) float32 {
	s := float64(x)*float64(y) + float64(z)
	b := math.Float64bits(s)
	if b&0x1fffffff == 0x10000000 || b<<1 < 897<<53 {
		return fmaOdd(x, y, z)
	}
	return float32(s)
}

// fmaOdd rounds the exact sum to odd in float64 (error term by TwoSum), which makes the second rounding harmless.
//
//go:noinline
func fmaOdd(x, y, z float32) float32 {
	p, c := float64(x)*float64(y), float64(z)
	s := float64(p + c)
	t := float64(s - p)
	e := float64(p-float64(s-t)) + float64(c-t)
	if e != 0 {
		u := math.Float64bits(s)
		if u&1 == 0 {
			if (e > 0) == (s > 0) {
				u++
			} else {
				u--
			}
			s = math.Float64frombits(u)
		}
	}
	return float32(s)
}

// F16ToF32 widens an IEEE binary16 value exactly.
func F16ToF32(h uint16) float32 {
	if h&0x7c00 == 0x7c00 {
		return wideSpecial(h)
	}
	// the exponent is too small by 112; the product is exact for subnormal values too
	return math.Float32frombits(uint32(int32(int16(h))<<13)&0x8fffe000) * 0x1p112
}

// wideSpecial widens infinities and NaN.
//
//go:noinline
func wideSpecial(h uint16) float32 {
	if h&0x3ff != 0 {
		h |= 0x200 // quiet
	}
	return math.Float32frombits(uint32(h&0x8000)<<16 | 0x7f800000 | uint32(h&0x3ff)<<13)
}

// F32ToF16 rounds to nearest, ties to even. ok is false where the result is not finite: overflow, infinity, NaN.
func F32ToF16(f float32) (h uint16, ok bool) {
	b := math.Float32bits(f)
	sign, a := uint16(b>>16)&0x8000, b&0x7fffffff
	switch {
	case a > 0x7f800000:
		return sign | 0x7e00, false
	case a >= 0x477ff000: // 65520 rounds to 2^16
		return sign | 0x7c00, false
	case a < 0x38800000: // below 2^-14: adding 0.5 rounds to a multiple of 2^-24
		v := math.Float32frombits(a) + 0.5
		return sign | uint16(math.Float32bits(v)-0x3f000000), true
	}
	a += 0xfff + a>>13&1
	return sign | uint16((a>>13)-(112<<10)), true
}
