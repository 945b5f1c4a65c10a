package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

var blockFormats = []Format{Q8_0, Q4_0, Q4_K, Q5_K, Q6_K}

// blockWeights makes n weights in a block format of any bytes. Without edge, scales are small positive numbers.
func blockWeights(r *rand.Rand, f Format, n int, edge bool) []byte {
	var data []byte
	for range n / f.BlockSize() {
		blk := make([]byte, f.BlockBytes())
		for i := range blk {
			blk[i] = byte(r.Uint32())
		}
		fill := byte(0xff)
		switch {
		case edge && r.IntN(4) == 0: // all ones or all zeros
			if r.IntN(2) == 0 {
				fill = 0
			}
			for i := range blk {
				blk[i] = fill
			}
		case edge && r.IntN(4) == 0: // ones and zeros mixed
			for i := range blk {
				blk[i] = byte(-r.IntN(2))
			}
		case edge && f == Q6_K && r.IntN(2) == 0:
			for i := range 16 {
				blk[192+i] = 0x80
			}
		}
		for _, at := range f.halves() {
			d := uint16(0x1000 | r.IntN(0x0fff))
			if edge {
				d = uint16(r.IntN(0x7c00)) | uint16(r.IntN(2))<<15
				if r.IntN(4) == 0 {
					d = uint16(r.IntN(0x400)) // subnormal
				}
			}
			binary.LittleEndian.PutUint16(blk[at:], d)
		}
		data = append(data, blk...)
	}
	return data
}

// fileValue is one weight as the format's description says: d*factor*q - dmin*least.
type fileValue struct {
	q, factor, least int32
	d, dmin          float32
}

// fileRow reads a row column by column.
func fileRow(f Format, row []byte) []fileValue {
	var out []fileValue
	for b := row; len(b) > 0; b = b[f.BlockBytes():] {
		bits := func(at, shift, width int) int32 { return int32(b[at]) >> shift & (1<<width - 1) }
		var n [2]float32
		for i, at := range f.halves() {
			n[i] = F16ToF32(uint16(b[at]) | uint16(b[at+1])<<8)
		}
		for i := range f.BlockSize() {
			v := fileValue{factor: 1, d: n[0], dmin: n[1]}
			switch f {
			case Q8_0:
				v.q = int32(int8(b[2+i]))
			case Q4_0:
				v.q = bits(2+i%16, i/16*4, 4) - 8
			case Q4_K, Q5_K:
				if s := i / 32; s < 4 {
					v.factor, v.least = bits(4+s, 0, 6), bits(8+s, 0, 6)
				} else {
					v.factor = bits(8+s, 0, 4) | bits(s, 6, 2)<<4
					v.least = bits(8+s, 4, 4) | bits(4+s, 6, 2)<<4
				}
				if f == Q4_K {
					v.q = bits(16+i/64*32+i%32, i/32%2*4, 4)
				} else {
					v.q = bits(48+i/64*32+i%32, i/32%2*4, 4) | bits(16+i%32, i/32, 1)<<4
				}
			case Q6_K:
				v.factor = int32(int8(b[192+i/16]))
				j := i % 128 // the block is two halves
				v.q = bits(i/128*64+j%64, j/64*4, 4) | bits(128+i/128*32+j%32, j/32*2, 2)<<4
				v.q -= 32
			}
			out = append(out, v)
		}
	}
	return out
}

// blockProduct is the definition of one output. exact is the value without any rounding but that of the 8-bit form, size
// the sum of the magnitudes of its terms.
func blockProduct(f Format, row []fileValue, x []float32) (acc float32, exact, size float64) {
	for ; len(x) > 0; x, row = x[32:], row[32:] {
		v, dx := quantiseBlock(x[:32])
		var dot, scaled, sum int32
		for i, u := range v {
			w := row[i]
			dot += w.q * u
			scaled += w.factor * w.q * u
			sum += u
			term := float64(w.d)*float64(w.factor)*float64(w.q) - float64(w.dmin)*float64(w.least)
			exact += term * float64(u) * float64(dx)
			size += math.Abs(term * float64(u) * float64(dx))
		}
		w := row[0]
		switch f {
		case Q4_K, Q5_K:
			dw, dm := float32(w.d*float32(w.factor)), float32(w.dmin*float32(w.least))
			acc = fmaOdd(float32(dot), float32(dw*dx), acc)
			acc = fmaOdd(-dm, float32(dx*float32(sum)), acc)
		default:
			acc = fmaOdd(float32(scaled), float32(w.d*dx), acc)
		}
	}
	return acc, exact, size
}

// weight is the value as ggml's dequantise functions compute it.
func (v *fileValue) weight(f Format) float32 {
	switch f {
	case Q4_K, Q5_K:
		return float32(float32(v.d*float32(v.factor))*float32(v.q)) - float32(v.dmin*float32(v.least))
	case Q6_K:
		return float32(float32(v.d*float32(v.factor)) * float32(v.q))
	}
	return float32(float32(v.q) * v.d)
}

// TestBlocksAgainstFloat64 compares products with the same sums in float64.
func TestBlocksAgainstFloat64(t *testing.T) {
	r := newRand(t)
	p := NewPool(1)
	defer p.Close()
	const rows, cols, tokens = 5, 1024, 3
	for _, f := range blockFormats {
		data := blockWeights(r, f, rows*cols, false)
		w, err := NewMatrix(f, rows, cols, data)
		if err != nil {
			t.Fatal(err)
		}
		x, dst := values(r, tokens*cols, false), make([]float32, tokens*rows)
		var a Activations
		a.Set(x, tokens, cols)
		if err := p.MatMul(dst, w, &a); err != nil {
			t.Fatal(err)
		}
		rb := len(data) / rows
		for i, v := range dst {
			_, exact, size := blockProduct(f, fileRow(f, data[i%rows*rb:][:rb]), x[i/rows*cols:][:cols])
			// cols/32 rounded steps of the accumulator, two in a step, and the rounded factors
			if diff := math.Abs(float64(v) - exact); diff > size*0x1p-24*2*(cols/32+2) || size == 0 {
				t.Errorf("%v output %d: %g, want %g, off by %g of %g", f, i, v, exact, diff, size)
			}
		}
	}
}

// TestBlocksNotFinite: scales of the file that are not finite, or too large, give outputs that are not, on every backend alike.
func TestBlocksNotFinite(t *testing.T) {
	r := newRand(t)
	p := NewPool(2)
	defer p.Close()
	const rows, cols = 20, 512
	for _, f := range append([]Format{BF16}, blockFormats...) {
		for _, h := range []uint16{0x7c00, 0xfc00, 0x7e00, 0x7c01} {
			data := make([]byte, rows*cols*2)
			for i := range rows * cols {
				binary.LittleEndian.PutUint16(data[2*i:], 0x3f80)
			}
			at := []int{0}
			if f == BF16 {
				h = h&0x8000 | 0x7f80 | h&0x300>>3
			} else {
				data, at = blockWeights(r, f, rows*cols, false), f.halves()
			}
			rb := len(data) / rows
			for i, o := range at {
				binary.LittleEndian.PutUint16(data[(3+i)*rb+o:], h)
			}
			x := values(r, 5*cols, false)
			var want []float32
			each(t, func(t *testing.T) {
				w, err := NewMatrix(f, rows, cols, data)
				if err != nil {
					t.Fatal(err)
				}
				for range 2 {
					got := make([]float32, 5*rows)
					var a Activations
					a.Set(x, 5, cols)
					if err := p.MatMul(got, w, &a); err != nil {
						t.Fatal(err)
					}
					if want == nil {
						want = got
					}
					compare(t, fmt.Sprintf("%v with %04x", f, h), got, want)
					for i, v := range got {
						if bad := v-v != 0; bad != (i%rows >= 3 && i%rows < 3+len(at)) {
							t.Fatalf("%v with %04x: output %d is %g", f, h, i, v)
						}
					}
					// what is done with such values next says so
					a.Set(append(append([]float32(nil), got[:rows]...), make([]float32, 12)...), 1, 32)
					q, _ := NewMatrix(Q8_0, 1, 32, make([]byte, 34))
					if err := p.MatMul(make([]float32, 1), q, &a); !errors.Is(err, ErrNumeric) {
						t.Fatalf("error %v after a product that is not finite", err)
					}
					w.Pack()
				}
			})
		}
	}
}

// FuzzBlocks compares backends, packed and not, one token and several, on any bytes of weights.
func FuzzBlocks(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for i, format := range blockFormats {
		f.Add(uint8(i), blockWeights(r, format, 1024, true), uint64(i))
	}
	f.Add(uint8(2), make([]byte, 144*3), uint64(9))
	pool := NewPool(1)
	f.Fuzz(func(t *testing.T, which uint8, data []byte, seed uint64) {
		format := blockFormats[int(which)%len(blockFormats)]
		size := format.BlockBytes()
		// a few rows of one or two blocks
		per := 1 + int(seed%2)
		rows := min(len(data)/(size*per), 40)
		if rows == 0 {
			return
		}
		cols := per * format.BlockSize()
		data = data[:rows*per*size]
		x := values(rand.New(rand.NewPCG(seed, 3)), 6*cols, false)
		want := make([]float32, 6*rows)
		last := fileRow(format, data[(rows-1)*per*size:])
		for i := range rows {
			row := fileRow(format, data[i*per*size:][:per*size])
			for tok := range 6 {
				want[tok*rows+i], _, _ = blockProduct(format, row, x[tok*cols:][:cols])
			}
		}
		each2(t, func(name string) {
			w, err := NewMatrix(format, rows, cols, data)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]float32, 6*rows)
			var a Activations
			for range 2 {
				a.Set(x, 6, cols)
				if err := pool.MatMul(got, w, &a); err != nil {
					t.Fatal(err)
				}
				compare(t, name, got, want)
				a.Set(x[5*cols:], 1, cols)
				if err := pool.MatMul(got, w, &a); err != nil {
					t.Fatal(err)
				}
				compare(t, name+", alone", got[:rows], want[5*rows:])
				row := make([]float32, cols)
				w.Row(rows-1, row)
				for i, v := range row {
					if u := last[i].weight(format); !sameBits(u, v) {
						t.Fatalf("%s: weight %d is %x, want %x", name, i, v, u)
					}
				}
				w.Pack()
			}
		})
	})
}

// each2 is each without subtests, which a fuzz function may not have.
func each2(t *testing.T, f func(name string)) {
	before := Backend()
	defer Use(before)
	for _, name := range Backends() {
		if err := Use(name); err != nil {
			t.Fatal(err)
		}
		f(name)
	}
}
