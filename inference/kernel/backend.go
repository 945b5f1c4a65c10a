package kernel

// backend is one implementation of the inner loops. All give equal bits; lengths are the caller's business.
type backend struct {
	name string
	wide int

	// blocks continues the chains in out[t*stride+16*i+row] with nb blocks of 32 columns of up to 3 groups of 16
	// packed rows, group i at w[i*step:], times a group of width tokens (1 or 4) in 8-bit form. Fresh chains start at +0,
	// whatever out holds. cold tells that the weights come from memory.
	blocks func(f Format, w []byte, step, groups int, x []byte, nb, width int, cold, fresh bool, out []float32, stride int)
	// unpack, unless nil, writes nb blocks of 32 columns of 16 packed rows of f to dst in the form that blocks takes then;
	// unpacked tells which.
	unpack func(f Format, dst, src []byte, nb int)
	// alone is blocks for one token and packed Q4_K, Q5_K and Q6_K; nil where unpack is.
	alone func(f Format, w []byte, step, groups int, x []byte, nb int, out []float32)
	// fetch brings n bytes of each of some pieces, step bytes apart, nearer to the core.
	fetch func(w []byte, step, pieces, n int)
	// panel adds to out[t*stride+row] the chains of n <= 256 columns of 16 packed F32, F16 or BF16 rows, for tokens whose
	// values start at x[t*xStride]: 1, 2 or 4, or any number to wide if that is 8.
	panel func(f Format, w []byte, n int, x []float32, xStride, tokens int, out []float32, stride int)
	// quantise is quantisePortable: 8-bit form of one token into lane j of a group of width tokens.
	quantise func(x []float32, dst []byte, j, width int) bool

	sum        func(x []float32) float32                        // in the order of sums
	sumSquares func(x []float32) float32                        // the same, terms entering by fma(x, x, lane)
	expSub     func(dst, x []float32, m float32)                // dst = exp(x - m)
	scale      func(dst, x []float32, r float32, w []float32)   // dst = (x*r)*w
	mulMax     func(x []float32, c float32) float32             // x *= c; the largest
	maxFinite  func(x []float32) (largest float32, finite bool) // over all values
	divide     func(dst, x []float32, d float32)                // dst = x/d
	siluMul    func(dst, gate, up []float32)                    // dst = silu(gate)*up
	add        func(dst, x []float32)                           // dst += x
	fold       func(o, c []float32, a, b float32)               // o = fma(b, c, a*o)
	rotate     func(x0, x1, cos, sin []float32)                 // the rotation of RoPE, pair i = x0[i], x1[i]
	// rotateInterleaved is rotate for pairs x[2i], x[2i+1].
	rotateInterleaved func(x, cos, sin []float32)

	// philox writes the words of len(dst)/4 counters, the first word of the counter rising by one; len(dst)%32 is 0.
	philox func(dst []uint32, key [2]uint32, counter [4]uint32)
	// screen sets bit i of mask if x[i] plus the Gumbel value of r[i] may reach best; len(x)%8 is 0.
	screen func(mask []byte, x []float32, r []uint32, best float32)

	narrow func(dst []uint16, x []float32) bool // round to binary16; false on overflow
}

var portable = &backend{
	name:              "portable",
	wide:              4,
	fetch:             func([]byte, int, int, int) {},
	blocks:            blocksPortable,
	panel:             panelPortable,
	quantise:          quantisePortable,
	sum:               sumPortable,
	sumSquares:        sumSquaresPortable,
	expSub:            expSubPortable,
	scale:             scalePortable,
	mulMax:            mulMaxPortable,
	maxFinite:         maxFinitePortable,
	divide:            dividePortable,
	siluMul:           siluMulPortable,
	add:               addPortable,
	fold:              foldPortable,
	rotate:            rotatePortable,
	rotateInterleaved: rotateInterleavedPortable,
	philox:            philoxPortable,
	screen:            screenPortable,
	narrow:            narrowPortable,
}
