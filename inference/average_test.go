package inference

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
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

// TestAverageAfterAPause: what was measured before a pause does not count beside what is
// measured after it.
func TestAverageAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a Average
		a.Add(100)
		time.Sleep(MeasureOld)
		if a.Add(50); a.V != 90 {
			t.Errorf("without a pause %v, want 90", a.V)
		}
		time.Sleep(MeasureOld + 1)
		if a.Add(2); a.V != 2 {
			t.Errorf("after a pause %v, want 2", a.V)
		}
	})
}
