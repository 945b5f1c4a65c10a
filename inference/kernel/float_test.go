package kernel

import (
	"math"
	"math/big"
	"testing"
)

// exactFMA is x*y+z by exact arithmetic, rounded once.
func exactFMA(x, y, z float32) float32 {
	p := new(big.Float).SetPrec(1200).Mul(big.NewFloat(float64(x)), big.NewFloat(float64(y)))
	s := p.Add(p, big.NewFloat(float64(z)))
	if s.Sign() == 0 { // big.Float adds opposite numbers to -0 or +0 by its own rule
		return float32(float64(x)*float64(y) + float64(z))
	}
	f, _ := s.Float32()
	return f
}

func TestFMA(t *testing.T) {
	// through a float64 FMA this rounds twice, to 0x3f800002
	x, y, z := float32(0x1p-12*(1+0x1p-16)), float32(0x1p-12*(1-0x1p-16)), float32(1+0x1p-23)
	if got := math.Float32bits(FMA(x, y, z)); got != 0x3f800001 {
		t.Errorf("double rounding: %08x, want 3f800001", got)
	}
	for _, a := range edges {
		for _, b := range edges {
			for _, c := range edges {
				if got, want := FMA(a, b, c), exactFMA(a, b, c); !sameBits(got, want) {
					t.Fatalf("fma(%x, %x, %x) = %x, want %x", a, b, c, got, want)
				}
			}
		}
	}
	r := newRand(t)
	for i := range 200_000 {
		var v [3]float32
		for j := range v {
			u := r.Uint32()
			switch i % 4 {
			case 0: // short fractions, close exponents: many ties
				u = u&0x80000000 | (127-12+u%24)<<23 | u&0x7fe00&^(1<<(u%13))<<4
			case 1: // subnormal results
				u = u&0x80ffffff | (uint32(r.IntN(60))+20)<<23
			}
			v[j] = math.Float32frombits(u)
			if v[j]-v[j] != 0 {
				v[j] = 1
			}
		}
		if i%8 == 5 { // z half a unit above or below the product's grid
			v[2] = float32(v[0]*v[1]) * float32(math.Ldexp(1+float64(r.IntN(3))*0x1p-23, r.IntN(52)-26))
		}
		if v[2]-v[2] != 0 {
			continue
		}
		if got, want := FMA(v[0], v[1], v[2]), exactFMA(v[0], v[1], v[2]); !sameBits(got, want) {
			t.Fatalf("fma(%x, %x, %x) = %x, want %x", v[0], v[1], v[2], got, want)
		}
		if got, want := fmaOdd(v[0], v[1], v[2]), FMA(v[0], v[1], v[2]); !sameBits(got, want) {
			t.Fatalf("fmaOdd(%x, %x, %x) = %x, want %x", v[0], v[1], v[2], got, want)
		}
	}
}

func TestFloat16(t *testing.T) {
	for i := range 1 << 16 {
		h := uint16(i)
		f := F16ToF32(h)
		exp, frac := h>>10&31, h&1023
		if exp == 31 {
			if frac == 0 != math.IsInf(float64(f), 0) || frac != 0 != (f != f) {
				t.Fatalf("%04x widens to %v", h, f)
			}
			continue
		}
		want := math.Ldexp(float64(frac), -24)
		if exp > 0 {
			want = math.Ldexp(1024+float64(frac), int(exp)-25)
		}
		if h>>15 == 1 {
			want = -want
		}
		if float64(f) != want {
			t.Fatalf("%04x widens to %v, want %v", h, f, want)
		}
		if back, ok := F32ToF16(f); back != h || !ok {
			t.Fatalf("%04x comes back as %04x, %v", h, back, ok)
		}
		// between h and its successor: below, at and above the middle
		next := F16ToF32(h + 1)
		if h&0x7fff == 0x7bff {
			continue
		}
		mid := (f + next) / 2
		even := h + h&1
		for _, c := range []struct {
			f    float32
			want uint16
		}{{math.Nextafter32(mid, f), h}, {mid, even}, {math.Nextafter32(mid, next), h + 1}} {
			if got, ok := F32ToF16(c.f); got != c.want || !ok {
				t.Fatalf("%x rounds to %04x, %v, want %04x", c.f, got, ok, c.want)
			}
		}
	}
	for _, c := range []struct {
		f    float32
		want uint16
	}{{65520, 0x7c00}, {-1e9, 0xfc00}, {float32(math.Inf(1)), 0x7c00}} {
		if got, ok := F32ToF16(c.f); got != c.want || ok {
			t.Errorf("%v narrows to %04x, %v", c.f, got, ok)
		}
	}
	if _, ok := F32ToF16(65519.99); !ok {
		t.Error("65519.99 does not fit")
	}
	if _, ok := F32ToF16(float32(math.NaN())); ok {
		t.Error("NaN fits")
	}
}

// ulps is the distance of got from want in units of the last place of a float32 of that size.
func ulps(got float32, want float64) float64 {
	_, e := math.Frexp(want)
	return math.Abs(float64(got)-want) / math.Ldexp(1, max(e, -125)-24)
}

func TestElementary(t *testing.T) {
	worst := func(name string, limit float64, lo, hi uint32, f func(float32) float32, ref func(float64) float64) {
		t.Helper()
		var most float64
		var at float32
		for u := lo; u < hi; u += 997 {
			x := math.Float32frombits(u)
			for _, x := range []float32{x, -x} {
				if want := ref(float64(x)); !math.IsNaN(want) && !math.IsInf(want, 0) && math.Abs(want) < math.MaxFloat32 {
					if e := ulps(f(x), want); e > most {
						most, at = e, x
					}
				}
			}
		}
		t.Logf("%s: at most %.3f units in the last place, at %x", name, most, at)
		if most > limit {
			t.Errorf("%s(%x) is %.3f units off, at most %v is stated", name, at, most, limit)
		}
	}
	bitsOf := math.Float32bits
	worst("exp", 1, bitsOf(1e-9), bitsOf(87.33), Exp, math.Exp)
	worst("log", 1, 0x00800000, 0x7f800000, func(x float32) float32 { return Log(max(x, 0x1p-126)) },
		func(x float64) float64 { return math.Log(max(x, 0x1p-126)) })
	worst("log1p", 2, 0x00800000, bitsOf(1-0x1p-24), Log1p, math.Log1p)
	worst("sigmoid", 3, bitsOf(1e-9), bitsOf(87), Sigmoid, func(x float64) float64 { return 1 / (1 + math.Exp(-x)) })
	worst("silu", 3, bitsOf(1e-9), bitsOf(87), SiLU, func(x float64) float64 { return x / (1 + math.Exp(-x)) })

	inf := float32(math.Inf(1))
	for _, c := range []struct {
		name      string
		got, want float32
	}{
		{"exp(0)", Exp(0), 1}, {"exp(-87.34)", Exp(-87.34), 0}, {"exp(-inf)", Exp(-inf), 0}, {"exp(88.73)", Exp(88.73), inf},
		{"exp(inf)", Exp(inf), inf}, {"log(1)", Log(1), 0}, {"log(0)", Log(0), -inf}, {"log(inf)", Log(inf), inf},
		{"silu(-200)", SiLU(-200), float32(math.Copysign(0, -1))}, {"log1p(0)", Log1p(0), 0}, {"log1p(2^-33)", Log1p(0x1p-33), 0x1p-33},
	} {
		if !sameBits(c.got, c.want) {
			t.Errorf("%s is %v, want %v", c.name, c.got, c.want)
		}
	}
	for _, v := range []float32{Exp(float32(math.NaN())), Log(-1), Log(float32(math.NaN()))} {
		if v == v {
			t.Errorf("%v, want NaN", v)
		}
	}
	if e := Exp(88.72); ulps(e, math.Exp(float64(float32(88.72)))) > 1 {
		t.Errorf("exp(88.72) is %v", e)
	}
}
