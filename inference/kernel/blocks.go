package kernel

import (
	"encoding/binary"
	"math"
)

// A packed block interleaves one file block of each of n rows; n is 16, or 1 where a single row is wanted. Rows are the
// innermost dimension throughout: "4 bytes" below means n times 4 bytes. Weights are in quads, four neighbouring columns.
//
//	Q8_0: two neighbouring blocks of the file: 8 quads of the first, 8 of the second, one byte a weight, 128 added; then
//	      n scales of the first, n of the second; that makes 17 cache lines of 16 rows. An odd last block leaves a gap.
//	Q4_0: nibbles; n binary16 scales
//	Q4_K: n scales, n minimums (binary16), the 12 bytes of 6-bit factors as in the file; then 8 times: nibbles
//	Q5_K: the same with 4 bytes of fifth bits after the nibbles: bit 8k+j belongs to weight k of quad j
//	Q6_K: n scales; then 8 times: nibbles, 8 bytes of upper bits, of which bits 8k+2j and 8k+2j+1 of the first four
//	      belong to weight k of quad j and those of the others to quad j+4, and n times two signed factors
//
// Nibbles are 16 bytes: byte 4j+k has weight k of quad j in its lower half and that of quad j+4 in the upper one.

const nibble = 0x0f0f0f0f

// q8Flip makes signed bytes unsigned by adding 128, which is what VPDPBUSD takes.
const q8Flip = 0x80808080

// unit is the number of columns in a packed block, and its bytes for one row.
func (f Format) unit() (cols, size int) {
	if f == Q8_0 {
		return 64, 68
	}
	return f.BlockSize(), f.BlockBytes()
}

// layout tells where the parts of a packed block lie, in bytes for one row.
func (f Format) layout() (header, step int) {
	switch f {
	case Q4_K:
		return 16, 16
	case Q5_K:
		return 16, 20
	case Q6_K:
		return 2, 26
	}
	return 0, f.BlockBytes()
}

// packBlock writes a block of the file as row r of a packed block of n rows; s is its place there, 1 for a second of Q8_0.
func packBlock(f Format, dst, src []byte, s, r, n int) {
	header, step := f.layout()
	half := func(at int, b []byte) { copy(dst[n*at+2*r:][:2], b) }
	word := func(at int, v uint32) { binary.LittleEndian.PutUint32(dst[n*at+4*r:], v) }
	switch f {
	case Q8_0:
		half(64+2*s, src)
		for q := range 8 {
			word(32*s+4*q, binary.LittleEndian.Uint32(src[2+4*q:])^q8Flip)
		}
	case Q4_0:
		half(16, src)
		for j := range 4 {
			word(4*j, binary.LittleEndian.Uint32(src[2+4*j:]))
		}
	case Q4_K, Q5_K:
		half(0, src)
		half(2, src[2:])
		for i := range 3 {
			word(4+4*i, binary.LittleEndian.Uint32(src[4+4*i:]))
		}
		quants := src[f.BlockBytes()-128:]
		for s := 0; s < 8; s += 2 { // two sub-blocks share 32 bytes of the file
			for j := range 4 {
				a, b := binary.LittleEndian.Uint32(quants[16*s+4*j:]), binary.LittleEndian.Uint32(quants[16*s+16+4*j:])
				word(header+s*step+4*j, a&nibble|b&nibble<<4)
				word(header+(s+1)*step+4*j, a>>4&nibble|b&^nibble)
			}
		}
		if f == Q5_K { // bit s of byte i belongs to weight i of sub-block s
			var high [8]uint32
			for j := range 8 {
				v := binary.LittleEndian.Uint32(src[16+4*j:])
				for s := range high {
					high[s] |= v >> s & 0x01010101 << j
				}
			}
			for s, v := range high {
				word(header+s*step+16, v)
			}
		}
	case Q6_K:
		half(0, src[208:])
		for s := range 8 {
			// sub-blocks 0 to 3 share the first half of the file's block: 64 bytes of lower bits, 32 of upper ones
			lower, upper := src[s/4*64+s%2*32:], src[128+s/4*32:]
			shift, pair := s/2%2*4, s%4*2
			var high [2]uint32
			for j := range 4 {
				a, b := binary.LittleEndian.Uint32(lower[4*j:])>>shift, binary.LittleEndian.Uint32(lower[16+4*j:])>>shift
				word(header+s*step+4*j, a&nibble|b&nibble<<4)
				high[0] |= binary.LittleEndian.Uint32(upper[4*j:]) >> pair & 0x03030303 << (2 * j)
				high[1] |= binary.LittleEndian.Uint32(upper[16+4*j:]) >> pair & 0x03030303 << (2 * j)
			}
			word(header+s*step+16, high[0])
			word(header+s*step+20, high[1])
			copy(dst[n*(header+s*step+24)+2*r:][:2], src[192+2*s:])
		}
	}
}

// piece is 32 columns of one row: weight i is d*factor[i/16]*q[i] - least.
type piece struct {
	q        [32]int8
	d, least float32
	factor   [2]int32
}

// open reads sub-block s of row r of a packed block of n rows.
func (p *piece) open(f Format, blk []byte, s, r, n int) {
	header, step := f.layout()
	half := func(at int) float32 { return F16ToF32(binary.LittleEndian.Uint16(blk[n*at+2*r:])) }
	sub := blk[n*(header+s*step):]
	word := func(at int) uint32 { return binary.LittleEndian.Uint32(sub[n*at+4*r:]) }
	p.least, p.factor = 0, [2]int32{1, 1}
	if f == Q8_0 {
		for j := range 8 {
			p.quad(j, binary.LittleEndian.Uint32(blk[n*(32*s+4*j)+4*r:])^q8Flip)
		}
		p.d = half(64 + 2*s)
		return
	}
	for j := range 4 {
		v := word(4 * j)
		p.quad(j, v&nibble)
		p.quad(j+4, v>>4&nibble)
	}
	switch f {
	case Q4_0:
		p.d = half(16)
		for i := range p.q {
			p.q[i] -= 8
		}
	case Q4_K, Q5_K:
		if f == Q5_K {
			for i := range p.q {
				p.q[i] |= int8(word(16)>>(8*(i%4)+i/4)&1) << 4
			}
		}
		var factors [12]byte
		for i := range 3 {
			copy(factors[4*i:], blk[n*(4+4*i)+4*r:][:4])
		}
		scale, least := sixBits(&factors, s)
		// exact: 11 bits times 6
		p.d, p.least = float32(half(0)*float32(scale)), float32(half(2)*float32(least))
	case Q6_K:
		for i := range p.q {
			p.q[i] |= int8(word(16+i/16*4)>>(8*(i%4)+i%16/4*2)&3) << 4
			p.q[i] -= 32
		}
		p.d = half(0)
		for i := range p.factor {
			p.factor[i] = int32(int8(sub[n*24+2*r+i]))
		}
	}
}

func (p *piece) quad(j int, v uint32) {
	for k := range 4 {
		p.q[4*j+k] = int8(v >> (8 * k))
	}
}

// sixBits gives the factors of the scale and of the minimum of sub-block s of Q4_K and Q5_K.
func sixBits(b *[12]byte, s int) (scale, least uint8) {
	if s < 4 {
		return b[s] & 63, b[s+4] & 63
	}
	return b[s+4]&15 | b[s-4]>>6<<4, b[s+4]>>4 | b[s]>>6<<4
}

func (p *piece) widen(dst []float32) {
	for i, q := range p.q {
		// the products are exact
		dst[i] = float32(float32(p.d*float32(p.factor[i/16]))*float32(q)) - p.least
	}
}

func bf16ToF32(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// blocksPortable continues the chains in out[t*stride+16*i+row] with nb blocks of 32 columns of packed rows: groups groups of
// 16, group i at w[i*step:], times a group of width tokens in 8-bit form.
func blocksPortable(f Format, w []byte, step, groups int, x []byte, nb, width int, _, fresh bool, out []float32, stride int) {
	if fresh {
		startChains(groups, width, out, stride)
	}
	for g := range groups {
		groupPortable(f, w[g*step:], x, nb, width, out[g*lanes:], stride)
	}
}

func startChains(groups, width int, out []float32, stride int) {
	for t := range width {
		clear(out[t*stride:][:groups*lanes])
	}
}

func groupPortable(f Format, w, x []byte, nb, width int, out []float32, stride int) {
	subs, size := f.unit()
	subs, size = subs/32, size*lanes
	var rows [lanes]piece
	for b := range nb {
		for r := range rows {
			rows[r].open(f, w[b/subs*size:][:size], b%subs, r, lanes)
		}
		act := x[b*actBlock*width:][:actBlock*width]
		for t := range width {
			var v [32]int32
			for i := range v {
				v[i] = int32(int8(act[(i/4*width+t)*4+i%4]))
			}
			dx := math.Float32frombits(binary.LittleEndian.Uint32(act[(actScale*width+t)*4:]))
			sx := math.Float32frombits(binary.LittleEndian.Uint32(act[(actSum*width+t)*4:]))
			acc := out[t*stride:][:lanes]
			for r := range rows {
				p := &rows[r]
				var low, high int32
				for i := range 16 {
					low += int32(p.q[i]) * v[i]
					high += int32(p.q[16+i]) * v[16+i]
				}
				acc[r] = FMA(float32(p.factor[0]*low+p.factor[1]*high), float32(p.d*dx), acc[r])
				if f == Q4_K || f == Q5_K {
					acc[r] = FMA(-p.least, sx, acc[r])
				}
			}
		}
	}
}

const (
	leastStep = 640 // bytes of an unpacked block of 32 columns of Q4_K and Q5_K
	halfStep  = 704 // of Q6_K
)

// unpacked is the form that f is unpacked to, and the bytes that 16 rows of nb blocks of 32 columns take in it; 0 if
// products take f as it is packed.
func unpacked(f Format, nb int) (Format, int) {
	switch f {
	case Q4_0:
		return Q8_0, (nb + 1) / 2 * 1088
	case Q4_K, Q5_K:
		return f, nb * leastStep
	case Q6_K:
		return f, nb * halfStep
	}
	return f, 0
}
