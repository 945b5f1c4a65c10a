package kernel

import (
	"cmp"
	"errors"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestPhilox(t *testing.T) {
	// known answers of the authors' Random123 library
	f := uint32(0xffffffff)
	for _, c := range []struct {
		key   [2]uint32
		ctr   [4]uint32
		wants [4]uint32
	}{
		{[2]uint32{}, [4]uint32{}, [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{[2]uint32{f, f}, [4]uint32{f, f, f, f}, [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{[2]uint32{0xa4093822, 0x299f31d0}, [4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
			[4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	} {
		if got := philox(c.key, c.ctr); got != c.wants {
			t.Errorf("philox(%x, %x) = %x, want %x", c.key, c.ctr, got, c.wants)
		}
	}
}

func TestGumbel(t *testing.T) {
	check := func(r uint32) {
		v := math.Min(math.Max(float64(float32(r)), 0.5)*0x1p-32, 1-0x1p-24)
		want := -math.Log(-math.Log1p(-v))
		got := Gumbel(r)
		if math.Abs(float64(got)-want) > 1e-6*(1+math.Abs(want)) {
			t.Fatalf("gumbel(%08x) is %v, want %v", r, got, want)
		}
	}
	rnd := newRand(t)
	for range 50_000 {
		check(rnd.Uint32() >> rnd.IntN(32))
	}
	for _, r := range []uint32{0, 1, 2, 0x7fffffff, 0x80000000, 0xfffffeff, 0xffffff00, 0xffffffff} {
		check(r)
	}
	// the bound that lets gumbel skip tokens
	for n := range gumbelBound {
		for range 2000 {
			var r uint32
			if n < 32 {
				r = (1<<31 | rnd.Uint32()&^(1<<31)) >> n
			}
			if g := Gumbel(r); g > gumbelBound[n] {
				t.Fatalf("gumbel(%08x) is %v, above its bound %v", r, g, gumbelBound[n])
			}
		}
		if n < 32 {
			if g := Gumbel(1 << (31 - n)); g > gumbelBound[n] {
				t.Fatalf("gumbel of the least value with %d leading zeros is %v, above %v", n, g, gumbelBound[n])
			}
		}
	}
}

// plainSample is the definition: penalties, weights, sorted filters, every Gumbel value.
func plainSample(logits []float32, p *Sampling, counts []Count, tape *[32]byte, position uint32) int32 {
	l := slices.Clone(logits)
	for _, c := range counts {
		v := l[c.Token]
		if c.Prompt+c.Output > 0 && p.Repetition != 0 && p.Repetition != 1 {
			if v > 0 {
				v /= p.Repetition
			} else {
				v = float32(v * p.Repetition)
			}
		}
		if c.Output > 0 {
			v = v - float32(p.Frequency*float32(c.Output))
			v = v - p.Presence
		}
		l[c.Token] = v
	}
	for _, b := range p.Bias {
		l[b.Token] += b.Value
	}
	ids := make([]int, len(l))
	for i := range ids {
		ids[i] = i
	}
	if p.Allowed != nil {
		ids = slices.DeleteFunc(ids, func(i int) bool { return i/64 >= len(p.Allowed) || p.Allowed[i/64]>>(i%64)&1 == 0 })
	}
	if p.Temperature == 0 {
		return int32(slices.MaxFunc(ids, func(a, b int) int { return cmp.Or(cmp.Compare(l[a], l[b]), b-a) }))
	}
	for i := range l {
		l[i] /= p.Temperature
	}
	most := l[ids[0]]
	for _, i := range ids {
		most = max(most, l[i])
	}
	w := make([]uint64, len(l))
	for _, i := range ids {
		w[i] = uint64(math.Floor(math.Ldexp(float64(Exp(l[i]-most)), 40)))
	}
	slices.SortFunc(ids, func(a, b int) int { return cmp.Or(cmp.Compare(w[b], w[a]), a-b) })
	if p.TopK > 0 {
		ids = ids[:min(p.TopK, len(ids))]
	}
	if p.TopP > 0 && p.TopP < 1 {
		total := new(big.Int)
		for _, i := range ids {
			total.Add(total, new(big.Int).SetUint64(w[i]))
		}
		want := total.Mul(total, big.NewInt(int64(math.Floor(float64(p.TopP)*(1<<32)))))
		sum := new(big.Int)
		for n, i := range ids {
			sum.Add(sum, new(big.Int).SetUint64(w[i]))
			if new(big.Int).Lsh(sum, 32).Cmp(want) >= 0 {
				ids = ids[:n+1]
				break
			}
		}
	}
	ids = slices.DeleteFunc(ids, func(i int) bool { return float64(w[i]) < math.Floor(float64(p.MinP)*(1<<40)) })
	chosen, best := -1, float32(0)
	slices.Sort(ids)
	for _, i := range ids {
		le := func(o int) uint32 {
			return uint32(tape[o]) | uint32(tape[o+1])<<8 | uint32(tape[o+2])<<16 | uint32(tape[o+3])<<24
		}
		r := philox([2]uint32{le(0), le(4)}, [4]uint32{uint32(i / 4), position, le(8), le(12)})[i%4]
		if s := l[i] + Gumbel(r); chosen < 0 || s > best {
			chosen, best = i, s
		}
	}
	return int32(chosen)
}

func randomSampling(r *rand.Rand, n int) (*Sampling, []Count) {
	p := &Sampling{Temperature: []float32{0, 0.1, 0.7, 1, 2.5}[r.IntN(5)]}
	if r.IntN(2) == 0 {
		p.TopK = r.IntN(n + 3)
	}
	if r.IntN(2) == 0 {
		p.TopP = float32(r.Float64())
	}
	if r.IntN(3) == 0 {
		p.MinP = float32(r.Float64() * r.Float64())
	}
	var counts []Count
	if r.IntN(2) == 0 {
		p.Repetition, p.Frequency, p.Presence = float32(0.8+r.Float64()), float32(r.NormFloat64()), float32(r.NormFloat64())
		for i := range n {
			if r.IntN(4) == 0 {
				counts = append(counts, Count{int32(i), int32(r.IntN(3)), int32(r.IntN(3))})
			}
		}
	}
	if r.IntN(3) == 0 {
		p.Bias = []Bias{{int32(r.IntN(n)), float32(r.NormFloat64() * 5)}}
	}
	if r.IntN(2) == 0 {
		p.Allowed = make([]uint64, (n+63)/64)
		some := 1 + r.IntN(n)
		for range 1 + r.IntN(2*n) {
			i := r.IntN(some)
			p.Allowed[i/64] |= 1 << (i % 64)
		}
		if r.IntN(4) == 0 {
			p.Allowed = p.Allowed[: (some+63)/64 : (some+63)/64]
		}
		if r.IntN(4) == 0 {
			p.Allowed[0] = math.MaxUint64
		}
	}
	return p, counts
}

func TestSample(t *testing.T) {
	each(t, func(t *testing.T) {
		r := newRand(t)
		var s Sampler
		for round := range 1000 {
			n := 1 + r.IntN(300)
			if round%20 < 5 {
				n = 900 + r.IntN(5000)
			}
			logits := values(r, n, false)
			switch round % 5 {
			case 3: // one unit in the last place apart: equal weights of unequal logits
				for i := range logits {
					logits[i] = 3 + float32(r.IntN(5))*0x1p-22
				}
			case 1: // many ties
				for i := range logits {
					logits[i] = float32(math.Round(float64(logits[i])))
				}
			case 2: // weights far below 2^-40
				for i := range logits {
					logits[i] *= 30
				}
			}
			p, counts := randomSampling(r, n)
			if err := p.Check(); err != nil {
				t.Fatal(err)
			}
			var tape [32]byte
			for i := range tape {
				tape[i] = byte(r.Uint32())
			}
			position := r.Uint32()
			before := slices.Clone(logits)
			got, err := s.Sample(logits, p, counts, &tape, position)
			if err != nil {
				t.Fatal(err)
			}
			if want := plainSample(logits, p, counts, &tape, position); got != want {
				t.Fatalf("round %d: %d of %d tokens with %+v, want %d", round, got, n, *p, want)
			}
			if !slices.Equal(before, logits) {
				t.Fatal("logits changed")
			}
		}
	})
}

// TestSampleDistribution draws many tokens and compares their frequencies with the probabilities.
func TestSampleDistribution(t *testing.T) {
	logits := []float32{0, 1, 2, 0.5, -1, 1.5}
	var s Sampler
	var tape [32]byte
	p := &Sampling{Temperature: 0.8}
	count := make([]int, len(logits))
	const n = 100_000
	for i := range n {
		id, err := s.Sample(logits, p, nil, &tape, uint32(i))
		if err != nil {
			t.Fatal(err)
		}
		count[id]++
	}
	var total float64
	for _, l := range logits {
		total += math.Exp(float64(l) / 0.8)
	}
	for i, l := range logits {
		want := math.Exp(float64(l)/0.8) / total
		if got := float64(count[i]) / n; math.Abs(got-want) > 5*math.Sqrt(want/n) {
			t.Errorf("token %d: %v, want %v", i, got, want)
		}
	}
}

func TestSampleNumeric(t *testing.T) {
	each(t, func(t *testing.T) {
		var s Sampler
		var tape [32]byte
		for _, v := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
			for _, n := range []int{3, 40} {
				logits := make([]float32, n)
				logits[1] = v
				for _, temp := range []float32{0, 1} {
					if _, err := s.Sample(logits, &Sampling{Temperature: temp}, nil, &tape, 0); !errors.Is(err, ErrNumeric) {
						t.Errorf("%d logits with %v: %v", n, v, err)
					}
				}
				if _, _, err := s.LogProbs(nil, logits, 2, 0); !errors.Is(err, ErrNumeric) {
					t.Errorf("log-probabilities of %d logits with %v: %v", n, v, err)
				}
			}
		}
		for _, allowed := range [][]uint64{{}, {0}, {1 << 60}} {
			for _, temp := range []float32{0, 1} {
				if id, err := s.Sample([]float32{1, 2}, &Sampling{Temperature: temp, Allowed: allowed}, nil, &tape, 0); err == nil {
					t.Errorf("token %d with the candidates %x", id, allowed)
				}
			}
		}
		if _, err := s.Sample(nil, &Sampling{}, nil, &tape, 0); !errors.Is(err, ErrNumeric) {
			t.Error("no logits:", err)
		}
		if _, err := s.Sample([]float32{1e38, 0}, &Sampling{Temperature: 0.01}, nil, &tape, 0); !errors.Is(err, ErrNumeric) {
			t.Error("overflow by temperature:", err)
		}
	})
}

func TestSamplingCheck(t *testing.T) {
	for _, p := range []Sampling{{Temperature: -1}, {Temperature: 1e-5}, {TopP: 1.5}, {MinP: -0.1}, {TopK: -1}, {Repetition: -2},
		{Frequency: float32(math.NaN())}, {Presence: 1e9}, {Bias: []Bias{{0, float32(math.Inf(1))}}}} {
		if p.Check() == nil {
			t.Errorf("%+v is accepted", p)
		}
	}
	if err := (&Sampling{Temperature: 1, TopP: 1, TopK: 5, MinP: 0.1, Repetition: 1.1}).Check(); err != nil {
		t.Error(err)
	}
}

func TestLogProbs(t *testing.T) {
	each(t, func(t *testing.T) {
		r := newRand(t)
		var s Sampler
		for round := range 300 {
			n := 1 + r.IntN(5000)
			logits := values(r, n, false)
			if round%2 == 0 {
				for i := range logits {
					logits[i] = float32(math.Round(float64(logits[i])))
				}
			}
			chosen := int32(r.IntN(n))
			top := r.IntN(21)
			got, value, err := s.LogProbs(nil, logits, top, chosen)
			if err != nil {
				t.Fatal(err)
			}
			ids := make([]int32, n)
			var sum float64
			for i := range ids {
				ids[i] = int32(i)
				sum += math.Exp(float64(logits[i]))
			}
			slices.SortFunc(ids, func(a, b int32) int { return cmp.Or(cmp.Compare(logits[b], logits[a]), cmp.Compare(a, b)) })
			if len(got) != min(top, n) {
				t.Fatalf("%d entries, want %d", len(got), min(top, n))
			}
			for i, g := range append(got, LogProb{chosen, value}) {
				if i < len(got) && g.Token != ids[i] {
					t.Fatalf("entry %d is token %d, want %d", i, g.Token, ids[i])
				}
				if want := float64(logits[g.Token]) - math.Log(sum); math.Abs(float64(g.Value)-want) > 1e-5 {
					t.Fatalf("token %d: %v, want %v", g.Token, g.Value, want)
				}
			}
		}
	})
}
