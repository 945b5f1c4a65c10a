package model

import (
	"encoding/binary"
	"math/rand/v2"
)

// A block of Q4_K, Q5_K and Q6_K is 256 elements. Their layouts are those of
// ggml-org/ggml, src/ggml-common.h.

// Standard deviations of what random bytes mean, in steps: nibbles from -7 to 7 with
// two ways to 0, 16, 32 and 64 equal steps.
const (
	q4Std   = 4.1833
	step16  = 4.6098
	step32  = 9.2331
	step64  = 18.473
	fullOfK = 63 // the largest scale of a part of a block
)

// blockRow draws a row in one of the block formats but Q8_0. Where element 0 is
// given, the first block has larger scales, and what shares a scale with element 0
// becomes one of two values about zero.
func (g *weights) blockRow(r *rand.PCG, row []byte, index int) {
	size := g.format.RowBytes(g.format.Block())
	for at := 0; at < len(row); at += size {
		block := row[at : at+size]
		for i := 0; i < size; i += 8 {
			var v [8]byte
			binary.LittleEndian.PutUint64(v[:], r.Uint64())
			copy(block[i:], v[:])
		}
		first := float32(0)
		if at == 0 && g.first != nil {
			first = float32(g.first(index))
		}
		switch g.format {
		case Q4_0:
			g.q4(block, first)
		case Q4_K:
			g.qk(r, block, first, 7.5, step16)
		case Q5_K:
			g.qk(r, block, first, 15.5, step32)
		case Q6_K:
			g.q6k(r, block, first)
		}
	}
}

// q4 makes a Q4_0 block of random bytes: float16 scale, then nibbles less 8.
func (g *weights) q4(block []byte, first float32) {
	scale := g.std / q4Std
	if first != 0 {
		scale = max(first, -first) / 7
		for i := 2; i < len(block); i++ {
			b := block[i]
			block[i] = 0x88 + b&0x11 - b>>1&0x11 // -1, 0, 0 and 1 steps
		}
		block[2] = block[2]&0xF0 | 0x0F
		if first < 0 {
			block[2] = block[2]&0xF0 | 0x01
		}
	}
	binary.LittleEndian.PutUint16(block, half(scale))
	for i := 2; i < len(block); i++ {
		// A nibble of 0 would be -8 and has no counterpart: it becomes 8, a zero.
		if block[i]&0x0F == 0 {
			block[i] |= 0x08
		}
		if block[i]&0xF0 == 0 {
			block[i] |= 0x80
		}
	}
}

// qk makes a Q4_K or Q5_K block of random bytes: value = d·sc·q - dmin·m. dmin is
// the middle of the steps, so that values are about zero where m is near sc.
func (g *weights) qk(r *rand.PCG, block []byte, first, middle, deviation float32) {
	var sc, m [8]byte
	v := r.Uint64()
	d := g.std / (deviation * 40)
	for i := range sc {
		sc[i] = byte(32 + v>>(8*i)&15) // 40 in the mean
		m[i] = sc[i] ^ byte(v>>(8*i+7)&1)
	}
	if first != 0 {
		d = max(first, -first) / (middle * fullOfK)
		for i := range sc {
			sc[i] = 6
			m[i] = 6
		}
		sc[0], m[0] = fullOfK, fullOfK
		g.centre(block, first > 0)
	}
	binary.LittleEndian.PutUint16(block, half(d))
	binary.LittleEndian.PutUint16(block[2:], half(d*middle))
	for i := range 4 {
		block[4+i] = sc[i] | sc[i+4]>>4<<6
		block[8+i] = m[i] | m[i+4]>>4<<6
		block[12+i] = sc[i+4]&15 | m[i+4]<<4
	}
}

// centre gives element 0 of a Q4_K or Q5_K block the largest or the least step and
// the rest of its part one of the two steps in the middle.
func (g *weights) centre(block []byte, largest bool) {
	set := func(i int, low, high byte) { block[i] = block[i]&0xF0 | low }
	if g.format == Q5_K {
		set = func(i int, low, high byte) {
			block[16+i] = block[16+i]&^1 | high
			block[48+i] = block[48+i]&0xF0 | low
		}
	} else {
		plain := set
		set = func(i int, low, high byte) { plain(16+i, low, high) }
	}
	for i := range 32 {
		up := block[len(block)-1-i] & 1 // 15 and 16 of 32, 7 and 8 of 16
		if g.format == Q5_K {
			set(i, 15^(15*up), up)
		} else {
			set(i, 7+up, 0)
		}
	}
	if largest {
		set(0, 15, 1)
	} else {
		set(0, 0, 0)
	}
}

// q6k makes a Q6_K block of random bytes: low nibbles, high pairs of bits, 16 signed
// scales, d; value = d·scale·(q - 32).
func (g *weights) q6k(r *rand.PCG, block []byte, first float32) {
	d := g.std / (step64 * 80)
	v := r.Uint64()
	for i := range 16 {
		s := int8(72 + v>>(4*i)&15) // 80 in the mean, of either sign
		if block[192+i]&1 == 0 {
			s = -s
		}
		block[192+i] = byte(s)
	}
	if first != 0 {
		d = max(first, -first) / (31 * 127)
		for i := range 16 {
			block[192+i] = 14
		}
		block[192] = 127
		for i := range 16 {
			q := byte(30 + int(block[i])&3) // -2 to 1 steps
			if i == 0 {
				q = 63
				if first < 0 {
					q = 1
				}
			}
			block[i] = block[i]&0xF0 | q&15
			block[128+i] = block[128+i]&^3 | q>>4
		}
	}
	binary.LittleEndian.PutUint16(block[208:], half(d))
}
