package kernel

import (
	"crypto/sha256"
	_ "embed" // golden holds the results of mk1
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

//go:embed testdata/mk1.txt
var golden string

// SelfTest runs the golden vectors of the contract on every backend of this machine. An error names the first operation
// that differs: such a machine must not serve in the exact class. It takes some tens of milliseconds.
func SelfTest() error {
	before := Backend()
	defer Use(before)
	for _, name := range Backends() {
		if err := Use(name); err != nil {
			return err
		}
		if err := SelfTestActive(); err != nil {
			return err
		}
	}
	return nil
}

// SelfTestActive is SelfTest for the backend in use alone. Engines ask it before they claim the contract.
func SelfTestActive() error {
	got := strings.SplitAfter(vectors(), "\n")
	want := strings.SplitAfter(golden, "\n")
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			line := "end of the list"
			if i < len(got) {
				line = strings.TrimSpace(got[i])
			}
			return fmt.Errorf("contract %s, backend %s: result %d differs from its golden vector: got %s", Contract, Backend(), i+1, line)
		}
	}
	return nil
}

// words are the inputs of the golden vectors: word i of stream s is word i%4 of philox(key (s, 0), counter (i/4, 0, 0, 0)).
type words struct {
	stream, next uint32
	four         [4]uint32 // of which next is one, if it is not the first
}

func (w *words) word() uint32 {
	if w.next%4 == 0 {
		w.four = philox([2]uint32{w.stream, 0}, [4]uint32{w.next / 4})
	}
	v := w.four[w.next%4]
	w.next++
	return v
}

// floats are n values float32(int32(word)) * 2^exponent / 2^31.
func (w *words) floats(n, exponent int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(int32(w.word())) * float32(math.Ldexp(1, exponent-31))
	}
	return x
}

// matrix has float weights in -1..1, rounded to F16 for that format. Each block of Q8_0 takes one word for the scale,
// 0x1000 + its low 11 bits as a binary16, and eight for the weights, little-endian; every seventh block is all -128.
func (w *words) matrix(f Format, rows, cols int) *Matrix {
	var data []byte
	switch f {
	case Q8_0:
		for b := range rows * cols / 32 {
			data = binary.LittleEndian.AppendUint16(data, 0x1000+uint16(w.word()&0x7ff))
			for range 8 {
				q := w.word()
				if b%7 == 6 {
					q = 0x80808080
				}
				data = binary.LittleEndian.AppendUint32(data, q)
			}
		}
	default:
		for _, v := range w.floats(rows*cols, 0) {
			if f == F32 {
				data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
			} else {
				h, _ := F32ToF16(v)
				data = binary.LittleEndian.AppendUint16(data, h)
			}
		}
	}
	m, err := NewMatrix(f, rows, cols, data)
	if err != nil {
		panic(err)
	}
	return m
}

// vectors computes all cases: a line each with name, number of values, SHA-256 of the bits of the values (little-endian),
// and the first four. docs/numerics.md describes them.
func vectors() string {
	var s strings.Builder
	stream := uint32(0)
	in := func() *words { stream++; return &words{stream: stream} }
	line := func(name string, x []float32) {
		h := sha256.New()
		var b [4]byte
		for _, v := range x {
			binary.LittleEndian.PutUint32(b[:], math.Float32bits(v))
			h.Write(b[:])
		}
		fmt.Fprintf(&s, "%s %d %x", name, len(x), h.Sum(nil))
		for _, v := range x[:min(4, len(x))] {
			fmt.Fprintf(&s, " %08x", math.Float32bits(v))
		}
		s.WriteByte('\n')
	}
	scalarVectors(in, line)
	vectorVectors(in, line)
	matmulVectors(in, line)
	attentionVectors(in, line)
	sampleVectors(in, line)
	formatVectors(line)
	return s.String()
}

type (
	inputs func() *words
	output func(name string, x []float32)
)

func scalarVectors(in inputs, line output) {
	w := in()
	x := []float32{FMA(0x1.0001p-12, 0x1.fffep-13, 0x1.000002p+0)}
	for range 500 {
		v := w.floats(3, 0)
		// a sum that cancels, and one near half a unit in the last place
		x = append(x, FMA(v[0], v[1], v[2]), FMA(v[0], v[1], -float32(v[0]*v[1])), FMA(v[0]*0x1p-24, v[1], v[2]))
	}
	line("fma", x)
	for _, f := range []struct {
		name     string
		exponent int
		f        func(float32) float32
	}{
		{"exp", 7, Exp}, {"sigmoid", 6, Sigmoid}, {"silu", 6, SiLU}, {"log", 0, func(v float32) float32 { return Log(float32(v*v) + 0x1p-40) }},
		{"log1p", 0, func(v float32) float32 { return Log1p(-float32(v * v)) }},
		{"f16", 17, func(v float32) float32 { h, _ := F32ToF16(float32(v * 0.5)); return F16ToF32(h) }},
		{"f16-small", -13, func(v float32) float32 { h, _ := F32ToF16(v); return F16ToF32(h) }},
	} {
		x := in().floats(1000, f.exponent)
		for i, v := range x {
			x[i] = f.f(v)
		}
		line(f.name, x)
	}
}

func vectorVectors(in inputs, line output) {
	for _, n := range []int{5, 896, 5000} {
		w := in()
		x, weight := w.floats(n, 1), w.floats(n, 0)
		RMSNorm(x, x, weight, 1e-6)
		line(fmt.Sprintf("rmsnorm-%d", n), x)
	}
	w := in()
	gate, up := w.floats(1003, 5), w.floats(1003, 0)
	SiLUMul(gate, gate, up)
	line("silu-mul", gate)

	x := in().floats(10*32, 3)
	clear(x[64:96])
	for i := range 32 {
		x[32+i] *= 0x1p-130
	}
	q := make([]byte, 10*actBlock)
	active().quantise(x, q, 0, 1)
	var y []float32
	for b := range 10 {
		y = append(y, math.Float32frombits(binary.LittleEndian.Uint32(q[b*actBlock+4*actScale:])))
		for _, v := range q[b*actBlock:][:32] {
			y = append(y, float32(int8(v)))
		}
	}
	line("quantise", y)

	rope := Rope{Frequencies: Frequencies(1e6, 64, nil)}
	line("frequencies", rope.Frequencies)
	angles := make([]float32, 64)
	var all []float32
	for _, p := range []int{0, 1, 7, 1000, 131071} {
		rope.Angles(angles, p)
		all = append(all, angles...)
	}
	line("angles", all)
	x = in().floats(3*80, 1)
	rope.Rotate(x, 80, angles)
	line("rotate-half", x)
	rope.Interleaved = true
	rope.Rotate(x, 80, angles)
	line("rotate-interleaved", x)
}

func matmulVectors(in inputs, line output) {
	p := NewPool(1)
	defer p.Close()
	for _, f := range []Format{F32, F16, Q8_0} {
		for _, s := range [][3]int{{7, 32, 1}, {37, 544, 6}} {
			w := in()
			m, x := w.matrix(f, s[0], s[1]), w.floats(s[1]*s[2], 2)
			dst := make([]float32, s[0]*s[2])
			var a Activations
			for range 2 { // row-major, then packed
				a.Set(x, s[2], s[1])
				if err := p.MatMul(dst, m, &a); err != nil {
					panic(err)
				}
				line(fmt.Sprintf("matmul-%v-%dx%dx%d", f, s[0], s[1], s[2]), dst)
				m.Pack()
			}
			m.Row(s[0]-1, x[:s[1]])
			line(fmt.Sprintf("row-%v", f), x[:s[1]])
		}
	}
}

func attentionVectors(in inputs, line output) {
	p := NewPool(1)
	defer p.Close()
	for _, f := range []Format{F32, F16} {
		w := in()
		c, err := NewCache(f, 2, 24)
		if err != nil {
			panic(err)
		}
		for i := range 300 {
			if err := c.Store(i, w.floats(48, 1), w.floats(48, 1)); err != nil {
				panic(err)
			}
		}
		var out []float32
		for _, at := range []int{0, 31, 255, 256, 299} {
			q := Query{Cache: c, Position: at, Q: w.floats(6*24, 2), Out: make([]float32, 6*24)}
			p.Attention([]Query{q}, 6, 0.25, 0)
			out = append(out, q.Out...)
		}
		line(fmt.Sprintf("attention-%v", f), out)
	}
}

func sampleVectors(in inputs, line output) {
	w := in()
	var x []float32
	for range 1000 {
		x = append(x, Gumbel(w.word()))
	}
	line("gumbel", x)
	w = in()
	logits := w.floats(3000, 3)
	var tape [32]byte
	for i := range tape {
		tape[i] = byte(i * 11)
	}
	var s Sampler
	counts := []Count{{Token: 5, Prompt: 2}, {Token: 17, Output: 3}, {Token: 2999, Prompt: 1, Output: 1}}
	for _, c := range []struct {
		name string
		p    Sampling
	}{
		{"greedy", Sampling{}}, {"temperature", Sampling{Temperature: 0.8}}, {"top-k", Sampling{Temperature: 1.5, TopK: 12}},
		{"top-p", Sampling{Temperature: 1, TopP: 0.7}}, {"min-p", Sampling{Temperature: 2, MinP: 0.3}},
		{"all", Sampling{Temperature: 1.1, TopK: 200, TopP: 0.9, MinP: 0.01, Repetition: 1.2, Frequency: 0.3, Presence: -0.4,
			Bias: []Bias{{Token: 40, Value: 2.5}, {Token: 41, Value: -3}}}},
	} {
		var ids []float32
		for position := range uint32(60) {
			id, err := s.Sample(logits, &c.p, counts, &tape, position)
			if err != nil {
				panic(err)
			}
			ids = append(ids, float32(id))
		}
		line("sample-"+c.name, ids)
	}
	top, chosen, err := s.LogProbs(nil, logits, 10, 77)
	if err != nil {
		panic(err)
	}
	x = []float32{chosen}
	for _, t := range top {
		x = append(x, float32(t.Token), t.Value)
	}
	line("log-probabilities", x)
}
