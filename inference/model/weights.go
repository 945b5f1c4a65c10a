package model

import (
	"encoding/binary"
	"io"
	"math"
	"math/rand/v2"
)

// weights makes the values of one synthetic tensor. A value of the float formats is
// the sum of four random bytes, centred and scaled: near normal, and exact integer
// arithmetic up to one float32 product, so the same on every platform. The block
// formats get random bytes and scales that give the same deviation.
type weights struct {
	format       Format
	in, rows     int
	std, mean    float32
	seed, stream uint64
	first        func(row int) float64 // value of element 0 of each row; nil: random
	zeroEvery    int                   // each n-th row is zero, from the first on; 0: none
}

// sumStd is the standard deviation of the sum of four random bytes,
// 2·sqrt((256²-1)/12), and byteStd that of one random byte from -127 to 127.
const (
	sumStd  = 147.8005
	byteStd = 73.6
)

func (g *weights) fill(w io.Writer) error {
	r := rand.NewPCG(g.seed, g.stream)
	row := make([]byte, g.format.RowBytes(g.in))
	for i := range g.rows {
		switch {
		case g.zeroEvery > 0 && i%g.zeroEvery == 0:
			clear(row)
		case g.format == Q8_0:
			g.q8Row(r, row, i)
		case g.format.Block() > 1:
			g.blockRow(r, row, i)
		default:
			g.floatRow(r, row, i)
		}
		if _, err := w.Write(row); err != nil {
			return err
		}
	}
	return nil
}

// normals fills x from r.
func (g *weights) normals(r *rand.PCG, x []float32) {
	k := g.std / sumStd
	var v uint64
	for i := range x {
		if i%2 == 0 {
			v = r.Uint64()
		}
		sum := int32(v&0xFF+v>>8&0xFF+v>>16&0xFF+v>>24&0xFF) - 510
		v >>= 32
		x[i] = float32(float32(sum)*k) + g.mean
	}
}

func (g *weights) floatRow(r *rand.PCG, row []byte, index int) {
	var x [256]float32
	for at := 0; at < g.in; at += len(x) {
		part := x[:min(len(x), g.in-at)]
		g.normals(r, part)
		if at == 0 && g.first != nil {
			part[0] = float32(g.first(index))
		}
		for i, v := range part {
			switch g.format {
			case F32:
				binary.LittleEndian.PutUint32(row[4*(at+i):], math.Float32bits(v))
			case BF16:
				binary.LittleEndian.PutUint16(row[2*(at+i):], bfloat(v))
			default:
				binary.LittleEndian.PutUint16(row[2*(at+i):], half(v))
			}
		}
	}
}

// q8Row draws the bytes of whole blocks at once; only a block with a given first
// element is quantised from values.
func (g *weights) q8Row(r *rand.PCG, row []byte, index int) {
	scale := half(g.std / byteStd)
	for b := 0; b < len(row); b += 34 {
		block := row[b : b+34]
		if b == 0 && g.first != nil {
			var x [32]float32
			g.normals(r, x[:])
			x[0] = float32(g.first(index))
			quantise(block, x)
			continue
		}
		binary.LittleEndian.PutUint16(block, scale)
		for i := 2; i < 34; i += 8 {
			v := r.Uint64()
			binary.LittleEndian.PutUint64(block[i:], v&^minusOneTwentyEight(v))
		}
	}
}

// minusOneTwentyEight returns a mask with the top bit of each byte of v that is
// 0x80: clearing it turns -128, which the format's own quantiser never makes, to 0.
func minusOneTwentyEight(v uint64) uint64 {
	const low, top = 0x7F7F7F7F7F7F7F7F, 0x8080808080808080
	return ^((v & low) + low) & v & top
}

// quantise writes x as one Q8_0 block: scale amax/127 as float16.
func quantise(block []byte, x [32]float32) {
	var amax float32
	for _, v := range x {
		amax = max(amax, max(v, -v))
	}
	d := amax / 127
	binary.LittleEndian.PutUint16(block, half(d))
	for i, v := range x {
		q := float32(0)
		if d > 0 {
			q = v / d
		}
		block[2+i] = byte(int8(math.RoundToEven(float64(q))))
	}
}

// half rounds to float16, to nearest even; what is too large becomes infinite.
func half(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b >> 16 & 0x8000)
	b &= 0x7FFFFFFF
	switch {
	case b > 0x7F800000:
		return sign | 0x7E00
	case b >= 0x477FF000:
		return sign | 0x7C00
	case b < 0x38800000:
		// Subnormal: adding 0.5 lets the hardware round at the right bit.
		m := math.Float32bits(math.Float32frombits(b) + 0.5)
		return sign | uint16(m-0x3F000000)
	}
	b += 0xC8000FFF + b>>13&1
	return sign | uint16(b>>13)
}

// bfloat rounds to bfloat16, to nearest even.
func bfloat(f float32) uint16 {
	b := math.Float32bits(f)
	return uint16((b + 0x7FFF + b>>16&1) >> 16)
}
