package kernel

import (
	"encoding/binary"
	"math"
)

// tile is the number of tokens that a Q8_0 kernel takes at once.
const tile = 4

// Activations are the inputs of matrix products: tokens rows of cols values. Their 8-bit form is made at the first
// product with a quantised matrix and kept until the next Set. The zero value is ready; buffers are reused.
type Activations struct {
	x            []float32
	tokens, cols int
	quantised    bool
	err          error
	bad          []bool // per token: the 8-bit form met a non-finite value
	// The 8-bit form: groups of 4 tokens, then, when tokens%4 is 1, a single one. For each block of 32 columns a
	// group of n has 8 x (n tokens x 4 bytes), then n float32 scales, little-endian.
	q8 []byte
}

// Set points a at x, tokens*cols values. x must stay unchanged while a is in use.
func (a *Activations) Set(x []float32, tokens, cols int) {
	a.x, a.tokens, a.cols = x[:tokens*cols], tokens, cols
	a.quantised, a.err = false, nil
}

// q8Width is the size of the group that starts at token t, which is a multiple of 4.
func (a *Activations) q8Width(t int) int {
	if a.tokens-t == 1 {
		return 1
	}
	return tile
}

// q8Group returns the 8-bit form of the group that starts at token t.
func (a *Activations) q8Group(t int) []byte {
	nb := a.cols / 32
	return a.q8[t*nb*36:][:a.q8Width(t)*nb*36]
}

// quantise makes the 8-bit form, groups of tokens in parallel.
func (a *Activations) quantise(p *Pool) error {
	if a.quantised {
		return a.err
	}
	nb := a.cols / 32
	size := (a.tokens + tile - 1) / tile * tile * nb * 36
	if cap(a.q8) < size {
		a.q8 = make([]byte, size)
	}
	a.q8 = a.q8[:size]
	if cap(a.bad) < a.tokens {
		a.bad = make([]bool, a.tokens)
	}
	a.bad = a.bad[:a.tokens]
	p.quantise = quantiseTask{b: active(), a: a}
	p.run(&p.quantise, (a.tokens+tile-1)/tile, 1)
	a.quantised = true
	var bad []int
	for t, b := range a.bad {
		if b {
			bad = append(bad, t)
		}
	}
	if bad != nil {
		a.err = &NumericError{Tokens: bad}
	}
	return a.err
}

type quantiseTask struct {
	b *backend
	a *Activations
}

func (k *quantiseTask) do(_, lo, hi int) {
	a, nb := k.a, k.a.cols/32
	for g := lo; g < hi; g++ {
		t0 := g * tile
		width := a.q8Width(t0)
		dst := a.q8Group(t0)
		for j := range width {
			if t0+j >= a.tokens {
				zeroLane(dst, nb, j, width)
				continue
			}
			a.bad[t0+j] = !k.b.quantise(a.x[(t0+j)*a.cols:][:a.cols], dst, j, width)
		}
	}
}

func zeroLane(dst []byte, nb, j, width int) {
	for b := range nb {
		d := dst[b*36*width:]
		for q := range 8 {
			binary.LittleEndian.PutUint32(d[(q*width+j)*4:], 0)
		}
		binary.LittleEndian.PutUint32(d[(8*width+j)*4:], 0)
	}
}

// quantisePortable writes the 8-bit form of one token into lane j of a group of width. A block with a non-finite value
// becomes zeros and makes the result false.
func quantisePortable(x []float32, dst []byte, j, width int) bool {
	ok := true
	for b := 0; len(x) > 0; b, x = b+1, x[32:] {
		var amax uint32
		for _, v := range x[:32] {
			amax = max(amax, math.Float32bits(v)&0x7fffffff)
		}
		o := dst[b*36*width:]
		d := math.Float32frombits(amax) / 127
		var inverse float32
		switch {
		case amax >= 0x7f800000:
			ok, d = false, 0
		case d < 0x1p-126:
			d = 0
		default:
			inverse = 1 / d
		}
		binary.LittleEndian.PutUint32(o[(8*width+j)*4:], math.Float32bits(d))
		for q := range 8 {
			var w uint32
			if d != 0 {
				for k, v := range x[q*4 : q*4+4] {
					// 1.5 * 2^23: the sum's low bits are the integer, nearest-even
					i := math.Float32bits(float32(v*inverse) + 12582912)
					w |= uint32(uint8(i)) << (8 * k)
				}
			}
			binary.LittleEndian.PutUint32(o[(q*width+j)*4:], w)
		}
	}
	return ok
}
