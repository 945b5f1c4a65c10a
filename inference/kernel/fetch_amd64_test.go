package kernel

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestFetchesAhead: fetching weights ahead changes nothing, whichever the machine at hand prefers.
func TestFetchesAhead(t *testing.T) {
	defer func(was bool) { fetchesAhead = was }(fetchesAhead)
	const rows, cols = 48, 96
	r := rand.New(rand.NewPCG(1, 2))
	raw := make([]byte, rows*cols/32*34)
	for i := range raw {
		raw[i] = byte(r.Uint32())
		if i%34 == 1 {
			raw[i] = 0x1c // the high half of a scale: finite
		}
	}
	x := make([]float32, cols)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	defer func(was string) { _ = Use(was) }(Backend())
	for _, name := range Backends() {
		if err := Use(name); err != nil {
			t.Fatal(err)
		}
		m, err := NewMatrix(Q8_0, rows, cols, raw)
		if err != nil {
			t.Fatal(err)
		}
		m.Pack()
		pool := NewPool(1)
		var in Activations
		in.Set(x, 1, cols)
		var outs [2][]float32
		for i := range outs {
			fetchesAhead = i == 1
			outs[i] = make([]float32, rows)
			if err := pool.MatMul(outs[i], m, &in); err != nil {
				t.Fatal(err)
			}
		}
		pool.Close()
		if !slices.Equal(outs[0], outs[1]) || slices.Max(outs[0]) == 0 {
			t.Errorf("%s: %v without, %v with", name, outs[0][:3], outs[1][:3])
		}
	}
}
