package kernel

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

// The filters order tokens by weight descending, then id ascending. The weight of a token is the integer part of
// exp(scaled logit - largest) * 2^40. Sums of integers do not depend on their order.

// cut is the last token in that order that survives.
type cut struct {
	most   float32 // largest scaled logit
	weight uint64
	id     int
}

// everything keeps all tokens.
var everything = cut{id: math.MaxInt}

func (c *cut) keeps(scaled float32, id int) bool {
	if c.id == math.MaxInt && c.weight == 0 {
		return true
	}
	w := weight(Exp(scaled - c.most))
	return w > c.weight || w == c.weight && id <= c.id
}

// mayKeep is false only if no token with a scaled logit up to peak survives, whatever the rounding of Exp.
func (c *cut) mayKeep(peak float32) bool {
	return c.weight == 0 || weight(Exp(peak-c.most)*1.001)+1 >= c.weight
}

// weight is e in fixed point, for 0 <= e <= 1.
func weight(e float32) uint64 { return uint64(int64(e * (1 << 40))) }

// A bucket holds the weights whose float32 form shares the exponent and 8 bits of the fraction; bucket 0 those that are 0.
const (
	bucketShift = 15
	bucketBase  = (127-40)<<(23-bucketShift) - 1 // 2^-40 is in bucket 1
	buckets     = 127<<(23-bucketShift) - bucketBase + 1
)

type filter struct {
	e     []float32 // exp(scaled - most), where reach says so
	reach []int     // for each stretch the highest bucket in use; -1: no token of it can survive top-k
	count []uint32
	sum   []uint64
	edge  []weighed

	sorted []float32
}

type weighed struct {
	weight uint64
	id     int
}

// cut applies top-k, then top-p to what is left, then min-p. peaks are scaled already.
func (f *filter) cut(b *backend, logits, peaks []float32, most float32, p *Sampling) cut {
	c := everything
	c.most = most
	topK, topP := p.TopK > 0 && p.TopK < len(logits), p.TopP > 0 && p.TopP < 1
	if topK || topP {
		total := f.weigh(b, logits, peaks, most, f.low(peaks, most, p.TopK), p.Temperature)
		if topK {
			c.weight, c.id, total = f.walk(func(n int, _ uint64) bool { return n >= p.TopK })
		}
		if topP {
			// the shortest prefix that holds at least top_p of the sum, in fixed point of 32 bits
			share := uint64(float64(p.TopP) * (1 << 32))
			wantHigh, wantLow := bits.Mul64(share, total)
			c.weight, c.id, _ = f.walk(func(_ int, s uint64) bool {
				return s>>32 > wantHigh || s>>32 == wantHigh && s<<32 >= wantLow
			})
		}
	}
	if p.MinP > 0 {
		// the likeliest token weighs 2^40
		if least := uint64(float64(p.MinP) * (1 << 40)); least > c.weight {
			c.weight, c.id = least, math.MaxInt
		}
	}
	return c
}

// low is a value of exp below which no token is among the first topK, if that can be told from the peaks; else 0.
//
// topK stretches reach the weight of the topK-th largest peak, so clearly smaller weights are not among the first. Exp
// rounds, and equal weights tie by id, so "clearly" is a thousandth, of a weight with enough bits to show it.
func (f *filter) low(peaks []float32, most float32, topK int) float32 {
	if topK <= 0 || topK > len(peaks) {
		return 0
	}
	f.sorted = append(f.sorted[:0], peaks...)
	slices.Sort(f.sorted)
	if low := 0.999 * Exp(f.sorted[len(peaks)-topK]-most); low >= 0x1p-20 {
		return low
	}
	return 0
}

// weigh computes the weights of all tokens, except where exp is below low, and counts them in buckets.
func (f *filter) weigh(b *backend, logits, peaks []float32, most, low, temperature float32) (total uint64) {
	f.e, f.reach = grow(&f.e, len(logits)), f.reach[:0]
	f.count, f.sum = grow(&f.count, buckets), grow(&f.sum, buckets)
	count, sum := f.count, f.sum
	clear(count)
	clear(sum)
	for s, peak := range peaks {
		reach := -1
		if Exp(peak-most) >= 0.999*low {
			part := f.e[s*stretch : min((s+1)*stretch, len(f.e))]
			b.divide(part, logits[s*stretch:][:len(part)], temperature)
			b.expSub(part, part, most)
			for _, v := range part {
				if v < low {
					continue
				}
				i, w := bucket(v), weight(v)
				count[i]++
				sum[i] += w
				total += w
				reach = max(reach, i)
			}
		}
		f.reach = append(f.reach, reach)
	}
	return total
}

func bucket(e float32) int {
	if e < 0x1p-40 {
		return 0 // weight 0
	}
	return int(math.Float32bits(e)>>bucketShift) - bucketBase
}

// walk goes down the order and stops at the first token where enough(tokens so far, sum of their weights) holds. It
// returns that token and the sum; the last token if it never holds.
func (f *filter) walk(enough func(n int, sum uint64) bool) (uint64, int, uint64) {
	n, s := 0, uint64(0)
	i := buckets - 1
	for ; i > 0 && !enough(n+int(f.count[i]), s+f.sum[i]); i-- {
		n, s = n+int(f.count[i]), s+f.sum[i]
	}
	f.edge = f.edge[:0]
	for c, reach := range f.reach {
		if reach < i {
			continue
		}
		start := c * stretch
		for j, v := range f.e[start:min(start+stretch, len(f.e))] {
			if bucket(v) == i {
				f.edge = append(f.edge, weighed{weight(v), start + j})
			}
		}
	}
	slices.SortFunc(f.edge, func(a, b weighed) int {
		if a.weight != b.weight {
			return cmp.Compare(b.weight, a.weight)
		}
		return cmp.Compare(a.id, b.id)
	})
	for j, t := range f.edge {
		n, s = n+1, s+t.weight
		if enough(n, s) || j == len(f.edge)-1 {
			return t.weight, t.id, s
		}
	}
	return 0, math.MaxInt, s
}
