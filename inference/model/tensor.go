package model

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Format is the storage format of a tensor, numbered as in GGUF.
type Format uint32

// The formats that the exact class computes with.
const (
	F32  Format = 0
	F16  Format = 1
	Q8_0 Format = 8
)

// layout is the block of a format: elements, and bytes that hold them.
type layout struct {
	name  string
	block int
	bytes int
}

var layouts = map[Format]layout{
	F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, Q8_0: {"Q8_0", 32, 34},
	// Known by size, so that a file with them gets an exact error.
	2: {"Q4_0", 32, 18}, 3: {"Q4_1", 32, 20}, 6: {"Q5_0", 32, 22}, 7: {"Q5_1", 32, 24},
	10: {"Q2_K", 256, 84}, 11: {"Q3_K", 256, 110}, 12: {"Q4_K", 256, 144}, 13: {"Q5_K", 256, 176},
	14: {"Q6_K", 256, 210}, 15: {"Q8_K", 256, 292}, 30: {"BF16", 1, 2},
}

// String returns the name as GGUF tools write it.
func (f Format) String() string {
	if l, ok := layouts[f]; ok {
		return l.name
	}
	return fmt.Sprintf("format %d", uint32(f))
}

// Block returns how many elements one block holds; rows are whole blocks.
func (f Format) Block() int { return layouts[f].block }

// RowBytes returns the bytes of a row of n elements, n a multiple of Block.
func (f Format) RowBytes(n int) int {
	l := layouts[f]
	return n / l.block * l.bytes
}

// Supported reports whether the exact class computes with the format.
func (f Format) Supported() bool { return f == F32 || f == F16 || f == Q8_0 }

// size returns the bytes of a tensor of this shape, or why there is no such tensor.
func (f Format) size(shape []int) (uint64, error) {
	l, ok := layouts[f]
	if !ok {
		return 0, fmt.Errorf("%v is unknown", f)
	}
	if shape[0]%l.block != 0 {
		return 0, fmt.Errorf("rows of %d elements are not whole %s blocks of %d", shape[0], l.name, l.block)
	}
	n := uint64(1)
	for _, d := range shape {
		// Dimensions are below 2^31, so the product stays in 64 bits when n < 2^33.
		if n >= 1<<33 {
			return 0, fmt.Errorf("shape %v is too large", shape)
		}
		n *= uint64(d)
	}
	if n > math.MaxInt64/uint64(l.bytes) {
		return 0, fmt.Errorf("shape %v is too large", shape)
	}
	return n / uint64(l.block) * uint64(l.bytes), nil
}

// Tensor is one tensor of a file. Shape is in GGUF order: the first dimension is
// the contiguous one. Data is the file's memory: read-only, valid until Close, and
// aligned to 32 bytes at least when the file's own alignment is.
type Tensor struct {
	Name   string
	Format Format
	Shape  []int
	Data   []byte

	offset, size uint64
}

// In returns the length of a row.
func (t *Tensor) In() int { return t.Shape[0] }

// Rows returns the number of rows.
func (t *Tensor) Rows() int {
	n := 1
	for _, d := range t.Shape[1:] {
		n *= d
	}
	return n
}

// Row returns the bytes of row i.
func (t *Tensor) Row(i int) []byte {
	n := t.Format.RowBytes(t.In())
	return t.Data[i*n : (i+1)*n : (i+1)*n]
}

// Float32s returns all elements of an F32 tensor (norms, biases) as a copy.
func (t *Tensor) Float32s() ([]float32, error) {
	if t.Format != F32 {
		return nil, fmt.Errorf("tensor %q is %v: want F32", t.Name, t.Format)
	}
	out := make([]float32, len(t.Data)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:]))
	}
	return out, nil
}
