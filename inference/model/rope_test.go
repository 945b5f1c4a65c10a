package model

import (
	"math"
	"testing"
)

func TestInvFreqGolden(t *testing.T) {
	// Values from an independent computation with 60 decimal digits.
	tests := []struct {
		base float32
		dim  int
		want map[int]uint32
	}{
		{10000, 64, map[int]uint32{0: 0x3f800000, 1: 0x3f3ff911, 2: 0x3f0ff59a, 3: 0x3ed7e89b, 8: 0x3dcccccd, 16: 0x3c23d70a, 30: 0x393a7753, 31: 0x390bd472}},
		{500000, 128, map[int]uint32{0: 0x3f800000, 1: 0x3f508ac1, 2: 0x3f29e1c5, 3: 0x3f0a6384, 16: 0x3d1a08c8, 32: 0x3ab95d22, 62: 0x364a41b0, 63: 0x3624c2ff}},
		{1000000, 64, map[int]uint32{0: 0x3f800000, 1: 0x3f263de0, 2: 0x3ed7e89b, 3: 0x3e8c3504, 8: 0x3d0186e2, 16: 0x3a83126f, 30: 0x361f23e4, 31: 0x35ceaf79}},
		{1000000, 128, map[int]uint32{0: 0x3f800000, 1: 0x3f4e4bac, 2: 0x3f263de0, 3: 0x3f05f6ee, 16: 0x3d0186e2, 32: 0x3a83126f, 62: 0x35ceaf79, 63: 0x35a68e4c}},
		{10000, 80, map[int]uint32{0: 0x3f800000, 1: 0x3f4b5918, 2: 0x3f21866c, 3: 0x3f004dce, 10: 0x3dcccccd, 20: 0x3c23d70a, 38: 0x39263027, 39: 0x39040206}},
	}
	for _, tt := range tests {
		c := Config{HeadDim: tt.dim, RopeBase: tt.base, RopeScale: 1}
		got := c.InvFreq()
		if len(got) != tt.dim/2 {
			t.Fatalf("%d frequencies for a head of %d", len(got), tt.dim)
		}
		for i, want := range tt.want {
			if bits := math.Float32bits(got[i]); bits != want {
				t.Errorf("base %g, head %d, frequency %d: got %08x, want %08x", tt.base, tt.dim, i, bits, want)
			}
		}
	}
}

func TestInvFreqNearPow(t *testing.T) {
	for _, base := range []float32{1.5, 10000, 500000, 1e6, 1e12} {
		for _, dim := range []int{2, 64, 80, 96, 128, 256} {
			c := Config{HeadDim: dim, RopeBase: base, RopeScale: 4}
			for i, x := range c.InvFreq() {
				want := math.Pow(float64(base), -2*float64(i)/float64(dim)) / 4
				if math.Abs(float64(x)/want-1) > 1e-7 {
					t.Errorf("base %g, head %d, frequency %d: got %g, want %g", base, dim, i, x, want)
				}
			}
		}
	}
}
