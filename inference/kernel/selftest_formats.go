package kernel

import (
	"encoding/binary"
	"fmt"
)

// blocks are the bytes of n weights in a block format: each block takes words, little-endian, the last one cut, and then a
// word for each of its binary16 numbers, 0x1000 + the low 11 bits. Every seventh block is all ones but for those, every
// eleventh has 0x80 in all bytes.
func (w *words) blocks(f Format, n int) []byte {
	var data []byte
	for b := range n / f.BlockSize() {
		var blk []byte
		for len(blk) < f.BlockBytes() {
			v := w.word()
			if b%7 == 6 {
				v = 0xffffffff
			} else if b%11 == 10 {
				v = 0x80808080
			}
			blk = binary.LittleEndian.AppendUint32(blk, v)
		}
		blk = blk[:f.BlockBytes()]
		for _, at := range f.halves() {
			binary.LittleEndian.PutUint16(blk[at:], 0x1000+uint16(w.word()&0x7ff))
		}
		data = append(data, blk...)
	}
	return data
}

// halves lists where a block of the file has its binary16 numbers.
func (f Format) halves() []int {
	switch f {
	case Q4_K, Q5_K:
		return []int{0, 2}
	case Q6_K:
		return []int{208}
	}
	return []int{0}
}

// formatVectors has input streams of its own, from 1000 on, so that other groups may grow.
func formatVectors(line output) {
	p := NewPool(1)
	defer p.Close()
	stream := uint32(1000)
	for _, f := range []Format{BF16, Q4_0, Q4_K, Q5_K, Q6_K} {
		for _, s := range [][3]int{{7, 256, 1}, {37, 1280, 6}} {
			w := &words{stream: stream}
			stream++
			rows, cols, tokens := s[0], s[1], s[2]
			var data []byte
			if f == BF16 { // the upper halves of words, without numbers of 2 and more
				for range rows * cols {
					data = binary.LittleEndian.AppendUint16(data, uint16(w.word()>>16)&0xbfff)
				}
			} else {
				data = w.blocks(f, rows*cols)
			}
			m, err := NewMatrix(f, rows, cols, data)
			if err != nil {
				panic(err)
			}
			x, dst := w.floats(cols*tokens, 2), make([]float32, rows*tokens)
			row := make([]float32, cols)
			var a Activations
			for range 2 { // row-major, then packed
				a.Set(x, tokens, cols)
				if err := p.MatMul(dst, m, &a); err != nil {
					panic(err)
				}
				line(fmt.Sprintf("matmul-%v-%dx%dx%d", f, rows, cols, tokens), dst)
				m.Row(rows-1, row)
				line(fmt.Sprintf("row-%v", f), row)
				m.Pack()
			}
		}
	}
}
