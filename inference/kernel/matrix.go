package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Format is how a matrix stores its weights.
type Format uint8

// The formats of contract mk1.
const (
	F32  Format = iota // 4 bytes a weight
	F16                // 2 bytes a weight, IEEE binary16
	Q8_0               // blocks of 32: a binary16 scale, then 32 signed bytes
)

var formats = [...]struct {
	name        string
	block, size int
}{F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, Q8_0: {"Q8_0", 32, 34}}

func (f Format) String() string {
	if int(f) >= len(formats) {
		return fmt.Sprintf("Format(%d)", uint8(f))
	}
	return formats[f].name
}

// BlockSize is the number of weights in a block, 0 for an unknown format.
func (f Format) BlockSize() int {
	if int(f) >= len(formats) {
		return 0
	}
	return formats[f].block
}

// BlockBytes is the number of bytes of a block.
func (f Format) BlockBytes() int { return formats[f].size }

// lanes is the number of rows that the packed layout interleaves.
const lanes = 16

// Matrix is a matrix of weights, rows x cols: a product has one output per row. It is safe for concurrent reading.
type Matrix struct {
	format     Format
	rows, cols int
	raw        []byte // row-major, as in the file; nil once packed
	packed     []byte // groups of 16 rows, interleaved
}

// NewMatrix wraps row-major GGUF data without copying it. data must stay unchanged until Pack, or for ever.
func NewMatrix(f Format, rows, cols int, data []byte) (*Matrix, error) {
	if f.BlockSize() == 0 {
		return nil, fmt.Errorf("make matrix: unknown format %v", f)
	}
	if rows <= 0 || cols <= 0 || cols%f.BlockSize() != 0 {
		return nil, fmt.Errorf("make matrix: %d x %d weights do not fit format %v", rows, cols, f)
	}
	rowBytes := cols / f.BlockSize() * f.BlockBytes()
	if len(data)%rowBytes != 0 || len(data)/rowBytes != rows {
		return nil, fmt.Errorf("make matrix: %d x %d weights in %v need %d bytes a row, got %d bytes", rows, cols, f, rowBytes, len(data))
	}
	return &Matrix{format: f, rows: rows, cols: cols, raw: data}, nil
}

// Format tells how the weights are stored.
func (m *Matrix) Format() Format { return m.format }

// Rows is the number of outputs.
func (m *Matrix) Rows() int { return m.rows }

// Cols is the number of inputs.
func (m *Matrix) Cols() int { return m.cols }

// Packed tells whether Pack was called.
func (m *Matrix) Packed() bool { return m.packed != nil }

func (m *Matrix) rowBytes() int { return m.cols / m.format.BlockSize() * m.format.BlockBytes() }

func (m *Matrix) groups() int { return (m.rows + lanes - 1) / lanes }

// Pack copies the weights into the layout that products are fast in and forgets the original data. Results do not
// change. It must not run while the matrix is in use.
func (m *Matrix) Pack() {
	if m.packed != nil {
		return
	}
	size := m.rowBytes() * lanes
	packed := make([]byte, m.groups()*size)
	for g := range m.groups() {
		m.packGroup(packed[g*size:(g+1)*size], g)
	}
	m.packed, m.raw = packed, nil
}

// packGroup writes rows 16g to 16g+15 interleaved: for F32 and F16 column by column, 16 weights each; for Q8_0 block by
// block, 8 x (16 rows x 4 bytes), then 16 scales. Rows past the last are zero.
func (m *Matrix) packGroup(dst []byte, g int) {
	rb := m.rowBytes()
	n := min(lanes, m.rows-g*lanes)
	if n < lanes {
		clear(dst)
	}
	for r := range n {
		src := m.raw[(g*lanes+r)*rb:][:rb]
		switch m.format {
		case F32:
			for i, o := 0, 4*r; i < len(src); i, o = i+4, o+4*lanes {
				binary.LittleEndian.PutUint32(dst[o:], binary.LittleEndian.Uint32(src[i:]))
			}
		case F16:
			for i, o := 0, 2*r; i < len(src); i, o = i+2, o+2*lanes {
				binary.LittleEndian.PutUint16(dst[o:], binary.LittleEndian.Uint16(src[i:]))
			}
		case Q8_0:
			for d := dst; len(src) > 0; src, d = src[34:], d[544:] {
				s, d := src[:34:34], d[:544:544]
				binary.LittleEndian.PutUint16(d[512+2*r:], binary.LittleEndian.Uint16(s))
				for q := range 8 {
					binary.LittleEndian.PutUint32(d[q*64+r*4:], binary.LittleEndian.Uint32(s[2+4*q:]))
				}
			}
		}
	}
}

// Row widens row i into dst, cols long. A Q8_0 weight is its scale times the integer, rounded once.
func (m *Matrix) Row(i int, dst []float32) {
	if i < 0 || i >= m.rows {
		panic(fmt.Sprintf("kernel: row %d of %d", i, m.rows))
	}
	dst = dst[:m.cols]
	// base, step: where weight j of a float format lies; a Q8_0 block is found by its own rule.
	src, r, n := m.raw, 0, 1
	base := i * m.rowBytes()
	if m.packed != nil {
		src, r, n = m.packed, i%lanes, lanes
		base = i / lanes * lanes * m.rowBytes()
	}
	switch m.format {
	case F32:
		for j := range dst {
			dst[j] = math.Float32frombits(binary.LittleEndian.Uint32(src[base+4*(j*n+r):]))
		}
	case F16:
		for j := range dst {
			dst[j] = F16ToF32(binary.LittleEndian.Uint16(src[base+2*(j*n+r):]))
		}
	case Q8_0:
		for b := range m.cols / 32 {
			blk := src[base+b*34*n:][:34*n]
			scale, quads := blk, blk[2:]
			if n == lanes {
				scale, quads = blk[512+2*r:], blk[4*r:]
			}
			d := F16ToF32(binary.LittleEndian.Uint16(scale))
			for q := range 8 {
				for k := range 4 {
					dst[b*32+q*4+k] = float32(d * float32(int8(quads[q*4*n+k])))
				}
			}
		}
	}
}
