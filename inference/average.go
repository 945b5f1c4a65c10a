package inference

// Average is an exponentially weighted mean of what was measured, the latest first;
// its zero value knows nothing.
type Average struct {
	V     float64
	Known bool
}

// Add takes a measurement in.
func (a *Average) Add(v float64) {
	if !a.Known {
		a.V, a.Known = v, true
		return
	}
	a.V += 0.2 * (v - a.V)
}
