package native

import "time"

// cost says how long steps take, from those that were: about base + each*inputs.
type cost struct {
	one  time.Duration // of a step of one input; 0: none was seen
	each time.Duration // of one more input; 0: not known
}

// minInputs is from how many inputs on a step says what one of them takes. A smaller
// one is mostly the reading of the weights.
const minInputs = 8

func (c *cost) observe(inputs int, d time.Duration) {
	switch {
	case inputs == 1:
		follow(&c.one, d)
	case inputs >= minInputs:
		follow(&c.each, d/time.Duration(inputs))
	}
}

func follow(mean *time.Duration, d time.Duration) {
	if *mean == 0 {
		*mean = d
	}
	*mean += (d - *mean) / 8
}

// base is what a step takes beside its inputs, counted in inputs: how many may join
// a step before they double its time.
func (c *cost) base() float64 {
	if c.each == 0 || c.one <= c.each {
		return 0
	}
	return min(float64(c.one)/float64(c.each)-1, 64)
}
