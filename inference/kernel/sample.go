package kernel

import (
	"fmt"
	"math"
	"math/bits"
)

// Sampling are the parameters of a choice of token. The zero value chooses the largest logit.
type Sampling struct {
	Temperature float32 // 0: the largest logit, no randomness
	TopK        int     // 0: all
	TopP        float32 // 0 or >= 1: all
	MinP        float32 // relative to the likeliest token; 0: all
	Repetition  float32 // divides positive logits of seen tokens, multiplies others; 0 or 1: off
	Frequency   float32 // taken off once for each time a token was given out
	Presence    float32 // taken off if a token was given out
	Bias        []Bias  // added last; tokens distinct

	// Allowed has bit i%64 of word i/64 set if token i is a candidate; tokens beyond it are
	// none. nil: all are.
	Allowed []uint64
}

// Bias is added to the logit of a token.
type Bias struct {
	Token int32
	Value float32
}

// Count tells how often a token occurred so far, for the penalties.
type Count struct {
	Token  int32
	Prompt int32 // times in the prompt: counts for Repetition
	Output int32 // times given out: counts for all three
}

// Check reports parameters that have no meaning.
func (s *Sampling) Check() error {
	for _, f := range []struct {
		name    string
		v, low  float32
		maximum float32
	}{
		{"temperature", s.Temperature, 0, 100}, {"top_p", s.TopP, 0, 1}, {"min_p", s.MinP, 0, 1},
		{"repetition penalty", s.Repetition, 0, 100}, {"frequency penalty", s.Frequency, -100, 100},
		{"presence penalty", s.Presence, -100, 100},
	} {
		if !(f.v >= f.low && f.v <= f.maximum) {
			return fmt.Errorf("%s is %v, must be in %v to %v", f.name, f.v, f.low, f.maximum)
		}
	}
	if s.Temperature > 0 && s.Temperature < 1e-3 {
		return fmt.Errorf("temperature is %v, must be 0 or at least 0.001", s.Temperature)
	}
	if s.TopK < 0 {
		return fmt.Errorf("top_k is %d, must not be negative", s.TopK)
	}
	for _, b := range s.Bias {
		if !(b.Value >= -1000 && b.Value <= 1000) {
			return fmt.Errorf("bias of token %d is %v, must be in -1000 to 1000", b.Token, b.Value)
		}
	}
	return nil
}

// Sampler chooses tokens. It holds buffers: one for each goroutine. The zero value is ready.
type Sampler struct {
	logits  []float32
	allowed []float32 // logits, those that are not allowed -Inf
	peaks   []float32 // the largest logit of each stretch, then that divided by the temperature
	weights []float32
	filter  filter
	gumbel  gumbelSearch
}

// stretch is the number of tokens that are passed over together if none of them can matter.
const stretch = 1024

// Sample chooses a token from logits, which it does not change. tape is the key of the sampling tape and position the
// index of the token in the output. counts may be nil when no penalty is set; its tokens are distinct. ErrNumeric
// reports logits that are not finite, before or after the penalties.
func (s *Sampler) Sample(logits []float32, p *Sampling, counts []Count, tape *[32]byte, position uint32) (int32, error) {
	b := active()
	if p.penalised(counts) {
		s.logits = append(s.logits[:0], logits...)
		logits = s.logits
		p.penalise(logits, counts)
	}
	s.peaks = s.peaks[:0]
	top := float32(math.Inf(-1))
	for i := 0; i < len(logits); i += stretch {
		peak, finite := b.maxFinite(logits[i:min(i+stretch, len(logits))])
		if !finite {
			return 0, fmt.Errorf("sample output position %d: %w", position, ErrNumeric)
		}
		s.peaks = append(s.peaks, peak)
		top = larger(peak, top)
	}
	if len(logits) == 0 {
		return 0, fmt.Errorf("sample output position %d from no logits: %w", position, ErrNumeric)
	}
	if p.Allowed != nil {
		if logits, top = s.restrict(logits, p.Allowed); top == float32(math.Inf(-1)) {
			return 0, fmt.Errorf("sample output position %d: no token is allowed", position)
		}
	}
	likeliest := 0
	for s.peaks[likeliest] != top {
		likeliest++
	}
	likeliest *= stretch
	for logits[likeliest] != top {
		likeliest++
	}
	if p.Temperature == 0 {
		return int32(likeliest), nil
	}
	if most := top / p.Temperature; most-most != 0 {
		return 0, fmt.Errorf("sample output position %d at temperature %v: %w", position, p.Temperature, ErrNumeric)
	}
	for i := range s.peaks {
		s.peaks[i] /= p.Temperature // division is monotonic: still the largest
	}
	cut := everything
	if p.TopK > 0 && p.TopK < len(logits) || p.TopP > 0 && p.TopP < 1 || p.MinP > 0 {
		cut = s.filter.cut(b, logits, s.peaks, top/p.Temperature, p)
	}
	return s.gumbel.search(b, logits, s.peaks, likeliest, p.Temperature, &cut, tape, position), nil
}

// restrict returns the logits with all but the allowed ones at -Inf, sets the peaks accordingly and returns the largest.
//
// -Inf stands for no candidate: it weighs 0, and a token that weighs 0 never wins, for its logit is at least 27.7 below
// the largest and values of Gumbel lie within 25.8 of each other. So it does not matter that top-k counts it.
func (s *Sampler) restrict(logits []float32, allowed []uint64) ([]float32, float32) {
	s.allowed = grow(&s.allowed, len(logits))
	out, top := s.allowed, float32(math.Inf(-1))
	for i := range s.peaks {
		start := i * stretch
		end := min(start+stretch, len(logits))
		peak := float32(math.Inf(-1))
		for j := start; j < end; j += 64 {
			word := uint64(0)
			if j/64 < len(allowed) {
				word = allowed[j/64]
			}
			part := out[j:min(j+64, end)]
			if word == 1<<64-1 {
				copy(part, logits[j:])
			} else {
				for k := range part {
					part[k] = float32(math.Inf(-1))
				}
			}
			for ; word != 0; word &= word - 1 {
				if k := bits.TrailingZeros64(word); k < len(part) {
					part[k] = logits[j+k]
					peak = larger(part[k], peak)
				}
			}
		}
		s.peaks[i] = peak
		top = larger(peak, top)
	}
	return out, top
}

func (p *Sampling) penalised(counts []Count) bool {
	return len(p.Bias) > 0 || len(counts) > 0 &&
		(p.Repetition != 0 && p.Repetition != 1 || p.Frequency != 0 || p.Presence != 0)
}

// penalise changes logits: repetition, frequency, presence, bias, each rounded. Unknown tokens are ignored.
func (p *Sampling) penalise(logits []float32, counts []Count) {
	for _, c := range counts {
		if c.Token < 0 || int(c.Token) >= len(logits) || c.Prompt <= 0 && c.Output <= 0 {
			continue
		}
		l := logits[c.Token]
		if p.Repetition != 0 && p.Repetition != 1 {
			if l > 0 {
				l = l / p.Repetition
			} else {
				l = float32(l * p.Repetition)
			}
		}
		if c.Output > 0 {
			l -= float32(p.Frequency * float32(c.Output))
			l -= p.Presence
		}
		logits[c.Token] = l
	}
	for _, v := range p.Bias {
		if v.Token >= 0 && int(v.Token) < len(logits) {
			logits[v.Token] += v.Value
		}
	}
}
