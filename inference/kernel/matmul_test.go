package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// weights makes row-major data of a matrix. Edge cases are blocks of -128, subnormal and large scales.
func weights(r *rand.Rand, f Format, rows, cols int, edge bool) []byte {
	var data []byte
	switch f {
	case F32:
		for _, v := range values(r, rows*cols, edge) {
			if edge && math.Abs(float64(v)) > 1e18 {
				v = 1e-40
			}
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
		}
	case F16:
		for range rows * cols {
			h := uint16(r.Uint32())
			if h>>10&31 > 20 {
				h &^= 0x4000
			}
			data = binary.LittleEndian.AppendUint16(data, h)
		}
	case BF16:
		for _, v := range values(r, rows*cols, false) {
			if edge && r.IntN(3) == 0 {
				v *= 0x1p-120
			}
			data = binary.LittleEndian.AppendUint16(data, uint16(math.Float32bits(v)>>16))
		}
	case Q4_0, Q4_K, Q5_K, Q6_K:
		return blockWeights(r, f, rows*cols, edge)
	case Q8_0:
		for range rows * cols / 32 {
			d := uint16(0x1000 | r.IntN(0x0fff))
			if edge {
				d = uint16(r.IntN(0x7c00)) | uint16(r.IntN(2))<<15
			}
			data = binary.LittleEndian.AppendUint16(data, d)
			all := edge && r.IntN(5) == 0
			for range 32 {
				w := byte(r.Uint32())
				if all || edge && r.IntN(4) == 0 {
					w = 0x80
				}
				data = append(data, w)
			}
		}
	}
	return data
}

// product is the definition of one output of a float format, on row-major data.
func product(f Format, row []byte, x []float32) float32 {
	var total float32
	for c := 0; c < len(x); c += 256 {
		var acc float32
		for k := c; k < min(c+256, len(x)); k++ {
			var w float32
			switch f {
			case F32:
				w = math.Float32frombits(binary.LittleEndian.Uint32(row[4*k:]))
			case BF16:
				w = math.Float32frombits(uint32(row[2*k])<<16 | uint32(row[2*k+1])<<24)
			default:
				w = F16ToF32(binary.LittleEndian.Uint16(row[2*k:]))
			}
			acc = fmaOdd(w, x[k], acc)
		}
		total = total + acc
	}
	return total
}

func quantiseBlock(x []float32) (q [32]int32, d float32) {
	var amax float32
	for _, v := range x {
		amax = max(amax, float32(math.Abs(float64(v))))
	}
	d = amax / 127
	if d < 0x1p-126 {
		return q, 0
	}
	inverse := 1 / d
	for i, v := range x {
		q[i] = int32(math.RoundToEven(float64(float32(v * inverse))))
	}
	return q, d
}

var allFormats = []Format{F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K}

func TestMatMul(t *testing.T) {
	each(t, func(t *testing.T) {
		for _, f := range allFormats {
			t.Run(f.String(), func(t *testing.T) { testMatMul(t, f) })
		}
	})
}

func testMatMul(t *testing.T, f Format) {
	r := newRand(t)
	var pools []*Pool
	for _, n := range []int{1, 2, 4} {
		p := NewPool(n)
		defer p.Close()
		pools = append(pools, p)
	}
	shapes := [][3]int{{1, 32, 1}, {16, 32, 2}, {17, 64, 3}, {31, 96, 4}, {32, 256, 5}, {50, 288, 6}, {129, 544, 9}, {32, 4864, 3}, {128, 896, 9}}
	switch f.BlockSize() {
	case 256:
		shapes = [][3]int{{1, 256, 1}, {16, 256, 2}, {17, 512, 3}, {31, 768, 4}, {32, 256, 5}, {50, 1024, 6}, {65, 1280, 9}, {17, 4864, 3}, {48, 2304, 5}}
	case 1:
		shapes = append(shapes, [3]int{19, 1, 4}, [3]int{33, 255, 7}, [3]int{16, 257, 2}, [3]int{48, 513, 1})
	}
	for i, s := range shapes {
		rows, cols, tokens := s[0], s[1], s[2]
		data := weights(r, f, rows, cols, i%2 == 1)
		x := values(r, tokens*cols, false)
		if i%3 == 1 {
			for j := range x {
				x[j] *= float32(math.Ldexp(1, r.IntN(80)-60))
			}
		}
		want := make([]float32, tokens*rows)
		rb := len(data) / rows
		var file []fileValue
		for row := range rows {
			src := data[row*rb:][:rb]
			if f.quantised() {
				file = fileRow(f, src)
			}
			for t := range tokens {
				if x := x[t*cols:][:cols]; f.quantised() {
					want[t*rows+row], _, _ = blockProduct(f, file, x)
				} else {
					want[t*rows+row] = product(f, src, x)
				}
			}
		}
		raw, err := NewMatrix(f, rows, cols, data)
		if err != nil {
			t.Fatal(err)
		}
		packed, _ := NewMatrix(f, rows, cols, data)
		packed.Pack()
		for _, w := range []*Matrix{raw, packed} {
			for _, p := range pools {
				name := fmt.Sprintf("%v packed %v, %d threads", s, w.Packed(), p.Threads())
				var a Activations
				got := make([]float32, tokens*rows)
				a.Set(x, tokens, cols)
				if err := p.MatMul(got, w, &a); err != nil {
					t.Fatal(name, err)
				}
				compare(t, name, got, want)
				for tok := range tokens { // alone as in company
					a.Set(x[tok*cols:], 1, cols)
					if err := p.MatMul(got[:rows], w, &a); err != nil {
						t.Fatal(name, err)
					}
					compare(t, name+", alone", got[:rows], want[tok*rows:][:rows])
				}
			}
			row := make([]float32, cols)
			for i := range rows {
				w.Row(i, row)
				if f.quantised() {
					file = fileRow(f, data[i*rb:][:rb])
				}
				for c, v := range row {
					var u float32
					switch f {
					case F32:
						u = math.Float32frombits(binary.LittleEndian.Uint32(data[i*rb+4*c:]))
					case F16:
						u = F16ToF32(binary.LittleEndian.Uint16(data[i*rb+2*c:]))
					case BF16:
						u = math.Float32frombits(uint32(binary.LittleEndian.Uint16(data[i*rb+2*c:])) << 16)
					default:
						u = file[c].weight(f)
					}
					if !sameBits(u, v) {
						t.Fatalf("%v row %d, column %d: %x, want %x", s, i, c, v, u)
					}
				}
			}
		}
	}
}

func TestMatMulNumeric(t *testing.T) {
	each(t, func(t *testing.T) {
		r := newRand(t)
		p := NewPool(2)
		defer p.Close()
		w, err := NewMatrix(Q8_0, 40, 64, weights(r, Q8_0, 40, 64, false))
		if err != nil {
			t.Fatal(err)
		}
		x := values(r, 7*64, false)
		var a Activations
		want, got := make([]float32, 7*40), make([]float32, 7*40)
		a.Set(x, 7, 64)
		if err := p.MatMul(want, w, &a); err != nil {
			t.Fatal(err)
		}
		x[2*64+5], x[6*64+63] = float32(math.NaN()), float32(math.Inf(-1))
		for range 2 { // the second product meets the kept 8-bit form
			a.Set(x, 7, 64)
			err = p.MatMul(got, w, &a)
			var numeric *NumericError
			if !errors.As(err, &numeric) || !errors.Is(err, ErrNumeric) || !slices.Equal(numeric.Tokens, []int{2, 6}) {
				t.Fatalf("error %v, want tokens 2 and 6", err)
			}
			for _, tok := range []int{0, 1, 3, 4, 5} {
				compare(t, fmt.Sprint("token ", tok), got[tok*40:][:40], want[tok*40:][:40])
			}
		}
	})
}

func TestNewMatrixRejects(t *testing.T) {
	for _, c := range []struct {
		f                Format
		rows, cols, size int
	}{{Format(9), 1, 32, 34}, {Q8_0, 1, 31, 34}, {Q8_0, 0, 32, 0}, {Q8_0, 2, 32, 34}, {F32, 2, 2, 17}, {F16, -1, 2, 4}, {F32, 1, 0, 0}} {
		if m, err := NewMatrix(c.f, c.rows, c.cols, make([]byte, c.size)); err == nil {
			t.Errorf("%+v makes %v", c, m)
		}
	}
}

func TestMatMulAllocatesNothing(t *testing.T) {
	each(t, func(t *testing.T) {
		p := NewPool(2)
		defer p.Close()
		r := newRand(t)
		var a Activations
		x, dst := values(r, 5*256, false), make([]float32, 5*50)
		for _, f := range allFormats {
			w, _ := NewMatrix(f, 50, 256, weights(r, f, 50, 256, false))
			w.Pack()
			n := testing.AllocsPerRun(50, func() {
				a.Set(x, 5, 256)
				if err := p.MatMul(dst, w, &a); err != nil {
					t.Fatal(err)
				}
			})
			if n >= 1 {
				t.Errorf("%v: %v allocations", f, n)
			}
		}
	})
}

// TestQ8EveryLength compares the assembly with portable Go for each number of blocks, with rows, tokens and threads of all
// kinds. Every fifth matrix holds nothing but -128.
func TestQ8EveryLength(t *testing.T) {
	r := newRand(t)
	var pools []*Pool
	for _, n := range []int{1, 2, 4} {
		p := NewPool(n)
		defer p.Close()
		pools = append(pools, p)
	}
	before := Backend()
	defer Use(before)
	for nb := 1; nb <= 152; nb++ {
		rows, tokens := 1+r.IntN(70), 1+r.IntN(10)
		if nb > 60 {
			tokens = 1 + r.IntN(5)
		}
		data := weights(r, Q8_0, rows, 32*nb, nb%2 == 0)
		for i := range data {
			if nb%5 == 0 && i%34 > 1 {
				data[i] = 0x80
			}
		}
		w, err := NewMatrix(Q8_0, rows, 32*nb, data)
		if err != nil {
			t.Fatal(err)
		}
		w.Pack()
		x := values(r, tokens*32*nb, false)
		if nb%5 == 0 { // the largest sums
			for i := range x {
				x[i] = 127
			}
		}
		var want []float32
		for i := len(backends()) - 1; i >= 0; i-- {
			if err := Use(backends()[i].name); err != nil {
				t.Fatal(err)
			}
			for j, p := range pools {
				got := make([]float32, rows*tokens)
				var a Activations
				a.Set(x, tokens, 32*nb)
				if err := p.MatMul(got, w, &a); err != nil {
					t.Fatal(err)
				}
				if want == nil {
					want = got
				}
				compare(t, fmt.Sprintf("%s, %d threads, %d x %d, %d tokens", Backend(), p.Threads(), rows, 32*nb, tokens), got, want)
				if i == len(backends())-1 && j == 0 {
					break
				}
			}
		}
	}
}
