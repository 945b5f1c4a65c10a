package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// newRand gives a random source and prints its seed if the test fails.
func newRand(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("random seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 1))
}

// each runs f with every backend that this machine has.
func each(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	before := Backend()
	defer Use(before)
	for _, name := range Backends() {
		if err := Use(name); err != nil {
			t.Fatal(err)
		}
		t.Run(name, f)
	}
}

var edges = []float32{0, float32(math.Copysign(0, -1)), 1, -1, 0x1p-149, -0x1p-149, 0x1p-126, 0x1.fffffcp-127, 0x1.fffffep127,
	-0x1.fffffep127, 0x1p-24, 0x1p-25, 65504, 65519.996, 65520, -65520, 88.72, 88.73, -87.33, -87.34, 88.38, 100, -100, 12582912, 0.5, 1.5, 2.5}

// values are n random float32, of many sizes, mixed with edge cases if asked for.
func values(r *rand.Rand, n int, edge bool) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
		if edge {
			switch r.IntN(4) {
			case 0:
				x[i] = edges[r.IntN(len(edges))]
			case 1:
				x[i] = math.Float32frombits(r.Uint32())
				if x[i]-x[i] != 0 {
					x[i] = 0x1p-130
				}
			case 2:
				x[i] *= 30
			}
		}
	}
	return x
}

func sameBits(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

func compare(t *testing.T, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range want {
		if !sameBits(got[i], want[i]) {
			t.Fatalf("%s: value %d of %d is %x (%08x), want %x (%08x)", what, i, len(want),
				got[i], math.Float32bits(got[i]), want[i], math.Float32bits(want[i]))
		}
	}
}

// TestVectorLoops compares every loop over vectors with the portable one.
func TestVectorLoops(t *testing.T) {
	each(t, func(t *testing.T) {
		b, r := active(), newRand(t)
		for round := range 300 {
			n := 1 + r.IntN(200)
			if round%10 == 0 {
				n = 2000 + r.IntN(3000)
			}
			edge := round%2 == 1
			x, y, w, v := values(r, n, edge), values(r, n, edge), values(r, n, edge), values(r, n, edge)
			if edge && round%3 == 0 {
				x[r.IntN(n)] = float32(math.Inf(1 - 2*r.IntN(2)))
				x[r.IntN(n)] = float32(math.NaN())
			}
			got, want := make([]float32, n), make([]float32, n)
			check := func(what string, f func(b *backend, dst []float32)) {
				t.Helper()
				copy(got, y)
				copy(want, y)
				f(b, got)
				f(portable, want)
				compare(t, what, got, want)
			}
			check("sum", func(b *backend, d []float32) { d[0] = b.sum(x) })
			check("sum of squares", func(b *backend, d []float32) { d[0] = b.sumSquares(x) })
			check("exp", func(b *backend, d []float32) { b.expSub(d, x, y[0]) })
			check("exp, raw", func(b *backend, d []float32) { b.expSub(d, x, 0) })
			check("scale", func(b *backend, d []float32) { b.scale(d, x, y[0], w) })
			check("multiply, maximum", func(b *backend, d []float32) { m := b.mulMax(d, w[0]); d[0] = m })
			check("divide", func(b *backend, d []float32) { b.divide(d, x, y[0]) })
			check("silu", func(b *backend, d []float32) { b.siluMul(d, x, w) })
			check("add", func(b *backend, d []float32) { b.add(d, x) })
			check("fold", func(b *backend, d []float32) { b.fold(d, x, w[0], v[0]) })
			check("rotate", func(b *backend, d []float32) {
				u := append([]float32(nil), x...)
				b.rotate(d, u, w, v)
				for i := range d {
					d[i] += 3 * u[i]
				}
			})
			check("maximum", func(b *backend, d []float32) {
				m, ok := b.maxFinite(x)
				d[0], d[n-1] = m, 0
				if ok {
					d[n-1] = 1
				}
			})
			h1, h2 := make([]uint16, n), make([]uint16, n)
			ok1, ok2 := b.narrow(h1, x), portable.narrow(h2, x)
			if ok1 != ok2 {
				t.Fatalf("narrow: %v, want %v", ok1, ok2)
			}
			for i := range h1 {
				if h1[i] != h2[i] && x[i] == x[i] {
					t.Fatalf("narrow %x: %04x, want %04x", x[i], h1[i], h2[i])
				}
			}
		}
	})
}

// TestExpLoop compares the exponential of each 997th float32 with Exp.
func TestExpLoop(t *testing.T) {
	var x, want []float32
	for b := uint64(0); b < 1<<32; b += 997 {
		v := math.Float32frombits(uint32(b))
		x, want = append(x, v), append(want, Exp(v))
	}
	got := make([]float32, len(x))
	each(t, func(t *testing.T) {
		active().expSub(got, x, 0)
		compare(t, "exp", got, want)
	})
}

func TestQuantiseLoop(t *testing.T) {
	each(t, func(t *testing.T) {
		b, r := active(), newRand(t)
		for round := range 500 {
			nb := 1 + r.IntN(9)
			x := values(r, 32*nb, false)
			for i := range nb {
				switch r.IntN(6) {
				case 0:
					copy(x[32*i:], values(r, 32, true))
				case 1:
					scale := float32(math.Ldexp(1, -r.IntN(150)))
					for j := range 32 {
						x[32*i+j] *= scale
					}
				case 2:
					if round%4 == 0 {
						x[32*i+r.IntN(32)] = float32(math.Inf(1))
					}
				case 3:
					if round%4 == 1 {
						x[32*i+r.IntN(32)] = float32(math.NaN())
					}
				case 4:
					// halves of the quantum: ties
					for j := range 32 {
						x[32*i+j] = float32(r.IntN(255)-127) + 0.5
					}
					x[32*i] = 127
				}
			}
			for _, width := range []int{1, 4} {
				got, want := make([]byte, nb*actBlock*width), make([]byte, nb*actBlock*width)
				for j := range width {
					g, w := b.quantise(x, got, j, width), quantisePortable(x, want, j, width)
					if g != w {
						t.Fatalf("finite: %v, want %v", g, w)
					}
				}
				for i := range got {
					if got[i] != want[i] {
						t.Fatalf("width %d: byte %d of %d is %d, want %d", width, i, len(got), got[i], want[i])
					}
					if i%(actBlock*width) < 32*width && got[i] == 0x80 {
						t.Fatal("quantised to -128")
					}
				}
			}
		}
	})
}

func TestVectorLoopsAllocateNothing(t *testing.T) {
	each(t, func(t *testing.T) {
		r := newRand(t)
		x, y, q := values(r, 999, false), values(r, 999, false), make([]byte, 31*actBlock)
		n := testing.AllocsPerRun(20, func() {
			RMSNorm(y, x, x, 1e-6)
			SiLUMul(y, x, y)
			Add(y, x)
			b := active()
			b.expSub(y, x, b.mulMax(y, 0.5))
			b.divide(y, y, b.sum(y))
			b.fold(y, x, 2, 3)
			b.quantise(x[:31*32], q, 0, 1)
		})
		if n >= 1 {
			t.Errorf("%v allocations", n)
		}
	})
}
