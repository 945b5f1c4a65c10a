package kernel

import (
	"math"
	"testing"
)

func TestTanh(t *testing.T) {
	worst := 0.0
	for bits := uint32(0); bits < 0x7f800000; bits += 997 {
		x := math.Float32frombits(bits)
		y := Tanh(x)
		if Tanh(-x) != -y {
			t.Fatalf("tanh(-%g) is not -%g", x, y)
		}
		worst = max(worst, math.Abs(float64(y)-math.Tanh(float64(x))))
	}
	if worst > 0x1p-23 {
		t.Errorf("error of %g", worst)
	}
	for _, c := range [][2]float32{{0, 0}, {100, 1}, {float32(math.Inf(1)), 1}, {float32(math.Inf(-1)), -1}} {
		if y := Tanh(c[0]); y != c[1] {
			t.Errorf("tanh(%g) = %g", c[0], y)
		}
	}
	if y := Tanh(float32(math.NaN())); y == y {
		t.Errorf("tanh(NaN) = %g", y)
	}
}

func TestGELU(t *testing.T) {
	for x := -12.0; x < 12; x += 0x1p-10 {
		want := 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
		if got := GELU(float32(x)); math.Abs(float64(got)-want) > 1e-6*max(1, math.Abs(x)) {
			t.Fatalf("gelu(%g) = %g, want %g", x, got, want)
		}
	}
	for _, c := range [][2]float32{{0, 0}, {1e30, 1e30}, {-1e30, 0}} {
		if y := GELU(c[0]); y != c[1] {
			t.Errorf("gelu(%g) = %g", c[0], y)
		}
	}
}

// TestGELUMul compares strips with the definition, value by value.
func TestGELUMul(t *testing.T) {
	each(t, func(t *testing.T) {
		r := newRand(t)
		for _, n := range []int{0, 1, 7, 63, 64, 65, 200} {
			gate, up := values(r, n, false), values(r, n, false)
			want, capped := make([]float32, n), make([]float32, n)
			for i := range want {
				want[i] = float32(GELU(gate[i]) * up[i])
				capped[i] = float32(3 * Tanh(gate[i]/3))
			}
			got := make([]float32, n)
			GELUMul(got, gate, up)
			compare(t, "gelu", got, want)
			SoftCap(gate, 3)
			compare(t, "soft cap", gate, capped)
		}
	})
}
