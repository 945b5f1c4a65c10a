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
	Q4_0 Format = 2
	Q8_0 Format = 8
	Q4_K Format = 12
	Q5_K Format = 13
	Q6_K Format = 14
	BF16 Format = 30
)

// Formats lists them.
var Formats = []Format{F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K}

const supportedFormats = "F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K or Q6_K"

// layout is the block of a format: elements, and bytes that hold them.
type layout struct {
	name  string
	block int
	bytes int
}

var layouts = map[Format]layout{
	F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, BF16: {"BF16", 1, 2}, Q8_0: {"Q8_0", 32, 34}, Q4_0: {"Q4_0", 32, 18},
	Q4_K: {"Q4_K", 256, 144}, Q5_K: {"Q5_K", 256, 176}, Q6_K: {"Q6_K", 256, 210},
	// Known by size, so that a file with them gets an exact error.
	3: {"Q4_1", 32, 20}, 6: {"Q5_0", 32, 22}, 7: {"Q5_1", 32, 24}, 10: {"Q2_K", 256, 84}, 11: {"Q3_K", 256, 110}, 15: {"Q8_K", 256, 292},
}

// String returns the name as GGUF tools write it.
func (f Format) String() string {
	if l, ok := layouts[f]; ok {
		return l.name
	}
	return fmt.Sprintf("format %d", uint32(f))
}

// FormatOf returns the supported format of this name.
func FormatOf(name string) (Format, error) {
	for _, f := range Formats {
		if f.String() == name {
			return f, nil
		}
	}
	return 0, fmt.Errorf("no format %.20q: want %s", name, supportedFormats)
}

// Block returns how many elements one block holds; rows are whole blocks.
func (f Format) Block() int { return layouts[f].block }

// RowBytes returns the bytes of a row of n elements, n a multiple of Block.
func (f Format) RowBytes(n int) int {
	l := layouts[f]
	return n / l.block * l.bytes
}

// Supported reports whether the exact class computes with the format.
func (f Format) Supported() bool {
	switch f {
	case F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K:
		return true
	}
	return false
}

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

// Tensor is one tensor of a model. Shape is in GGUF order: the first dimension is
// the contiguous one. Data is the file's memory: read-only, valid until Close, and
// aligned to 32 bytes at least when a GGUF file's own alignment is; safetensors
// promise no alignment.
//
// The matrices of experts are one tensor with a third dimension, whose Data is nil
// where the file holds them apart: Expert gives each.
type Tensor struct {
	Name   string
	Format Format
	Shape  []int
	Data   []byte

	experts      [][]byte // where the file holds them apart
	plusOne      bool     // the vector stands for its elements + 1
	offset, size uint64
}

// In returns the length of a row.
func (t *Tensor) In() int { return t.Shape[0] }

// Rows returns the number of rows, of all experts together.
func (t *Tensor) Rows() int {
	n := 1
	for _, d := range t.Shape[1:] {
		n *= d
	}
	return n
}

// Row returns the bytes of row i of a tensor with Data.
func (t *Tensor) Row(i int) []byte {
	n := t.Format.RowBytes(t.In())
	return t.Data[i*n : (i+1)*n : (i+1)*n]
}

// Experts returns the third dimension: the number of matrices in the tensor.
func (t *Tensor) Experts() int {
	if len(t.Shape) < 3 {
		return 1
	}
	return t.Shape[2]
}

// Expert returns the matrix of expert e as a tensor of its own; a matrix is its own
// expert 0.
func (t *Tensor) Expert(e int) *Tensor {
	m := &Tensor{Name: fmt.Sprintf("%s[%d]", t.Name, e), Format: t.Format, Shape: t.Shape[:2:2]}
	if t.experts != nil {
		m.Data = t.experts[e]
		return m
	}
	n := len(t.Data) / t.Experts()
	m.Data = t.Data[e*n : (e+1)*n : (e+1)*n]
	return m
}

// Float32s returns all elements of a vector (norm, bias), widened, as the network
// uses them: norm weights of gemma safetensors have had 1 added, as in GGUF files.
func (t *Tensor) Float32s() ([]float32, error) {
	var out []float32
	switch t.Format {
	case F32:
		out = make([]float32, len(t.Data)/4)
		for i := range out {
			out[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:]))
		}
	case BF16, F16:
		out = make([]float32, len(t.Data)/2)
		for i := range out {
			x := binary.LittleEndian.Uint16(t.Data[2*i:])
			if t.Format == BF16 {
				out[i] = math.Float32frombits(uint32(x) << 16)
			} else {
				out[i] = widen(x)
			}
		}
	default:
		return nil, fmt.Errorf("tensor %q is %v: want F32, F16 or BF16", t.Name, t.Format)
	}
	if t.plusOne {
		for i := range out {
			out[i]++
		}
	}
	return out, nil
}

// widen returns the value of a float16.
func widen(h uint16) float32 {
	sign, exp, frac := uint32(h&0x8000)<<16, uint32(h>>10&0x1F), uint32(h&0x3FF)
	switch exp {
	case 0: // zero or subnormal: frac·2^-24
		f := float32(frac) * 0x1p-24
		return math.Float32frombits(math.Float32bits(f) | sign)
	case 31:
		return math.Float32frombits(sign | 0x7F800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}
