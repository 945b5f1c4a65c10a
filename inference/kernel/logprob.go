package kernel

import (
	"fmt"
	"math"
)

// LogProb is a token and the logarithm of its probability.
type LogProb struct {
	Token int32
	Value float32
}

// LogProbs appends the n likeliest tokens to dst, likeliest first and ties by ascending id, and returns it with the
// value for token chosen. The logits are those before temperature and penalties:
// value = (logit - largest) - log(sum of exp(logit - largest)).
func (s *Sampler) LogProbs(dst []LogProb, logits []float32, n int, chosen int32) ([]LogProb, float32, error) {
	b := active()
	top, finite := b.maxFinite(logits)
	if !finite || len(logits) == 0 {
		return dst, 0, fmt.Errorf("compute log-probabilities: %w", ErrNumeric)
	}
	e := grow(&s.weights, len(logits))
	b.expSub(e, logits, top)
	norm := Log(b.sum(e))
	value := func(l float32) float32 { return float32(l-top) - norm }
	start := len(dst)
	least := float32(math.Inf(-1)) // the smallest kept, once n are
	for i, l := range logits {
		if l <= least || n <= 0 {
			continue
		}
		kept := dst[start:]
		if len(kept) < n {
			dst = append(dst, LogProb{})
			kept = dst[start:]
		}
		j := len(kept) - 1
		for ; j > 0 && logits[kept[j-1].Token] < l; j-- {
			kept[j] = kept[j-1]
		}
		kept[j] = LogProb{int32(i), value(l)}
		if len(kept) == n {
			least = logits[kept[n-1].Token]
		}
	}
	return dst, value(logits[chosen]), nil
}
