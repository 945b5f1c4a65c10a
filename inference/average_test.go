package inference

import (
	"math"
	"testing"
)

func TestAverage(t *testing.T) {
	var a Average
	if a.Known {
		t.Error("it knows something before the first measurement")
	}
	for i, want := range []float64{10, 8, 6.4} {
		a.Add(map[bool]float64{true: 10, false: 0}[i == 0])
		if !a.Known || math.Abs(a.V-want) > 1e-12 {
			t.Errorf("after %d: %g, want %g", i+1, a.V, want)
		}
	}
}
