package kernel

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// Gumbel is -log(-log1p(-v)), v = min(max(float32(r), 0.5) * 2^-32, 1 - 2^-24).
func Gumbel(r uint32) float32 {
	v := min(float32(max(float32(r), 0.5)*0x1p-32), 1-0x1p-24)
	return -Log(-Log1p(-v))
}

// gumbelBound[n] is at least Gumbel(r) for every r with n leading zeros: there v >= 2^-(n+1), and -log1p(-v) >= v, so
// the value is at most (n+1)*log 2; 0.01 is far more than the error of Gumbel.
var gumbelBound = func() (t [33]float32) {
	for i := range t {
		t[i] = float32(float32(i+1)*0.693148) + 0.01
	}
	return t
}()

// screenPortable and the AVX2 form, which has a closer bound, may differ in which tokens they let through: a token that
// is not let through cannot win.
func screenPortable(mask []byte, x []float32, r []uint32, best float32) {
	for i := range len(x) / 8 {
		var m byte
		for j := range 8 {
			if x[8*i+j]+gumbelBound[bits.LeadingZeros32(r[8*i+j])] >= best {
				m |= 1 << j
			}
		}
		mask[i] = m
	}
}

// gumbelSearch finds argmax of logit/T + Gumbel(r) over the tokens that the filters keep, ties to the lower id.
//
// It starts with the likeliest token and passes over tokens where even a bound on the Gumbel value cannot reach the best
// so far. Rounded addition is monotonic, so a token passed over is truly smaller; it never shows in the result.
//
// The closer bound, in assembly: with f = float32(r>>1) and b its bits as an integer, log2(f) >= b/2^23 - 127 (the
// fraction of a float lies below the logarithm), so -log(v) <= (158 - b/2^23) * log 2.
type gumbelSearch struct {
	scaled [stretch]float32
	words  [stretch]uint32
	mask   [stretch / 8]byte
}

func (g *gumbelSearch) search(b *backend, logits, peaks []float32, likeliest int, temperature float32, cut *cut, tape *[32]byte, position uint32) int32 {
	key := [2]uint32{binary.LittleEndian.Uint32(tape[0:]), binary.LittleEndian.Uint32(tape[4:])}
	counter := [4]uint32{uint32(likeliest) / 4, position, binary.LittleEndian.Uint32(tape[8:]), binary.LittleEndian.Uint32(tape[12:])}
	best, chosen := float32(math.Inf(-1)), len(logits)
	// one of equal weight and lower id can push it out
	if v := logits[likeliest] / temperature; cut.keeps(v, likeliest) {
		best, chosen = v+Gumbel(philox(key, counter)[likeliest%4]), likeliest
	}
	for c, peak := range peaks {
		if peak+gumbelBound[32] < best || !cut.mayKeep(peak) {
			continue
		}
		start := c * stretch
		part := logits[start:min(start+stretch, len(logits))]
		n := (len(part) + 31) / 32 * 32
		scaled, words, mask := g.scaled[:n], g.words[:n], g.mask[:n/8]
		b.divide(scaled, part, temperature)
		for i := len(part); i < n; i++ {
			scaled[i] = float32(math.Inf(-1))
		}
		counter[0] = uint32(start) / 4
		b.philox(words, key, counter)
		b.screen(mask, scaled, words, best)
		for i, m := range mask {
			for ; m != 0; m &= m - 1 {
				j := 8*i + bits.TrailingZeros8(m)
				v, r := scaled[j], words[j]
				if v+gumbelBound[bits.LeadingZeros32(r)] < best || !cut.keeps(v, start+j) {
					continue
				}
				if s := v + Gumbel(r); s > best || s == best && start+j < chosen {
					best, chosen = s, start+j
				}
			}
		}
	}
	return int32(chosen)
}
