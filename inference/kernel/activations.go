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
	// The 8-bit form: groups of 4 tokens, then, when tokens%4 is 1, a single one.
	q8 []byte
}

// In the 8-bit form a block of 32 columns of a group of n tokens takes actBlock*n bytes, little-endian: 8 quads of
// n tokens x 4 bytes, then for each token 4 bytes of
const (
	actBias  = 8  // -128 times the sum of the integers, which undoes the 128 that packing adds to weights of Q8_0
	actScale = 9  // the scale dx
	actSum   = 10 // dx times the sum, rounded
	actHalf  = 11 // the sums of the first and of the last 16, 2 bytes each
	actBlock = 48
)

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
	return a.q8[t*nb*actBlock:][:a.q8Width(t)*nb*actBlock]
}

// quantise makes the 8-bit form, groups of tokens in parallel.
func (a *Activations) quantise(p *Pool) error {
	if a.quantised {
		return a.err
	}
	nb := a.cols / 32
	a.q8 = grow(&a.q8, (a.tokens+tile-1)/tile*tile*nb*actBlock)
	a.bad = grow(&a.bad, a.tokens)
	p.quantise = quantiseTask{b: active(), a: a}
	p.run(&p.quantise, (a.tokens+tile-1)/tile, 1, a.tokens)
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
		storeLane(dst[b*actBlock*width:], &[32]int8{}, 0, j, width)
	}
}

// storeLane writes one block of one token.
func storeLane(dst []byte, q *[32]int8, d float32, j, width int) {
	word := func(at int, v uint32) { binary.LittleEndian.PutUint32(dst[(at*width+j)*4:], v) }
	var sum [2]int32
	for i := range 8 {
		var w uint32
		for k, v := range q[4*i : 4*i+4] {
			w |= uint32(uint8(v)) << (8 * k)
			sum[i/4] += int32(v)
		}
		word(i, w)
	}
	all := sum[0] + sum[1]
	word(actBias, uint32(-128*all))
	word(actScale, math.Float32bits(d))
	word(actSum, math.Float32bits(float32(d*float32(all))))
	word(actHalf, uint32(uint16(sum[0]))|uint32(sum[1])<<16)
}

// quantisePortable writes the 8-bit form of one token into lane j of a group of width. A block with a non-finite value
// becomes zeros and makes the result false.
func quantisePortable(x []float32, dst []byte, j, width int) bool {
	ok := true
	for ; len(x) > 0; x, dst = x[32:], dst[actBlock*width:] {
		var amax uint32
		for _, v := range x[:32] {
			amax = max(amax, math.Float32bits(v)&0x7fffffff)
		}
		var q [32]int8
		d := math.Float32frombits(amax) / 127
		switch {
		case amax >= 0x7f800000:
			ok, d = false, 0
		case d < 0x1p-126:
			d = 0
		default:
			inverse := 1 / d
			for i, v := range x[:32] {
				// 1.5 * 2^23: the sum's low bits are the integer, nearest-even
				q[i] = int8(math.Float32bits(float32(v*inverse) + 12582912))
			}
		}
		storeLane(dst, &q, d, j, width)
	}
	return ok
}
