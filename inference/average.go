package inference

import "time"

// MeasureOld is the age from which a measure says little of now.
const MeasureOld = 30 * time.Second

// Average is an exponentially weighted mean of what was measured, the latest first;
// its zero value knows nothing. After a pause it begins anew: who was slow before a pause
// would else need many measures to be seen as he is, and gets few.
type Average struct {
	V     float64
	Known bool
	last  time.Time // when Add was called
}

// Add takes a measurement in.
func (a *Average) Add(v float64) {
	now := time.Now()
	if !a.Known || now.Sub(a.last) > MeasureOld {
		*a = Average{v, true, now}
		return
	}
	a.V += 0.2 * (v - a.V)
	a.last = now
}
