package kernel

import "math"

// RMSNorm writes (x*r)*weight to dst, r = 1/sqrt(mean of squares + eps). dst may be x.
func RMSNorm(dst, x, weight []float32, eps float32) {
	rmsNorm(active(), dst, x, weight, eps)
}

func rmsNorm(b *backend, dst, x, weight []float32, eps float32) {
	mean := b.sumSquares(x) / float32(len(x))
	// a float64 square root rounded again is the float32 square root
	r := 1 / float32(math.Sqrt(float64(float32(mean+eps))))
	b.scale(dst[:len(x)], x, r, weight[:len(x)])
}

type normTask struct {
	b              *backend
	dst, x, weight []float32
	eps            float32
}

func (k *normTask) do(_, lo, hi int) {
	n := len(k.weight)
	for i := lo; i < hi; i++ {
		rmsNorm(k.b, k.dst[i*n:][:n], k.x[i*n:][:n], k.weight, k.eps)
	}
}

// RMSNorm normalises each row of len(weight) values of x into dst: tokens, or heads of tokens. dst may be x.
func (p *Pool) RMSNorm(dst, x, weight []float32, eps float32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.norm = normTask{b: active(), dst: dst, x: x, weight: weight, eps: eps}
	p.run(&p.norm, len(x)/len(weight), 1+8192/len(weight), len(x))
	p.norm = normTask{}
}

// SiLUMul writes silu(gate)*up to dst, which may be gate or up.
func SiLUMul(dst, gate, up []float32) { active().siluMul(dst[:len(gate)], gate, up[:len(gate)]) }

type siluTask struct {
	b             *backend
	dst, gate, up []float32
}

const siluGrain = 1024

func (k *siluTask) do(_, lo, hi int) {
	lo, hi = lo*siluGrain, min(hi*siluGrain, len(k.gate))
	k.b.siluMul(k.dst[lo:hi], k.gate[lo:hi], k.up[lo:hi])
}

// SiLUMul is the function of that name, in parallel.
func (p *Pool) SiLUMul(dst, gate, up []float32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silu = siluTask{b: active(), dst: dst[:len(gate)], gate: gate, up: up[:len(gate)]}
	p.run(&p.silu, (len(gate)+siluGrain-1)/siluGrain, 4, len(gate))
	p.silu = siluTask{}
}

// Add adds x to dst.
func Add(dst, x []float32) { active().add(dst[:len(x)], x) }

// AddBias adds bias to each row of len(bias) values of dst.
func AddBias(dst, bias []float32) {
	b := active()
	for ; len(dst) > 0; dst = dst[len(bias):] {
		b.add(dst[:len(bias)], bias)
	}
}

// Finite tells whether all values are finite.
func Finite(x []float32) bool {
	_, ok := active().maxFinite(x)
	return ok
}

// AddScaled adds x times c to dst, element by element with one rounding: dst = fma(c, x, dst).
func AddScaled(dst, x []float32, c float32) { active().fold(dst[:len(x)], x, 1, c) }

// Softmax replaces finite x by exp(x - largest) / sum.
func Softmax(x []float32) {
	b := active()
	largest, _ := b.maxFinite(x)
	b.expSub(x, x, largest)
	b.divide(x, x, b.sum(x))
}
