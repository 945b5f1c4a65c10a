package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"unsafe"
)

// lanes is the number of rows that the packed layout interleaves.
const lanes = 16

// Matrix is a matrix of weights, rows x cols: a product has one output per row. It is safe for concurrent reading.
type Matrix struct {
	format     Format
	rows, cols int
	raw        [][]byte // row-major, as in the file, rows one part after the other; nil once packed
	packed     []byte   // groups of 16 rows, interleaved
	owner      *pages   // of packed; nil: the garbage collector, or the caller of NewPacked
}

// NewMatrix wraps row-major GGUF data without copying it. Matrices that are to stand one below the other come as several
// parts. data must stay unchanged until Pack, or for ever.
func NewMatrix(f Format, rows, cols int, data ...[]byte) (*Matrix, error) {
	if f.BlockSize() == 0 {
		return nil, fmt.Errorf("make matrix: unknown format %v", f)
	}
	if rows <= 0 || cols <= 0 || cols%f.BlockSize() != 0 {
		return nil, fmt.Errorf("make matrix: %d x %d weights do not fit format %v", rows, cols, f)
	}
	rowBytes := cols / f.BlockSize() * f.BlockBytes()
	size, whole := 0, true
	for _, part := range data {
		size += len(part)
		whole = whole && len(part)%rowBytes == 0
	}
	if !whole || size/rowBytes != rows {
		return nil, fmt.Errorf("make matrix: %d x %d weights in %v need %d bytes a row, got %d bytes", rows, cols, f, rowBytes, size)
	}
	return &Matrix{format: f, rows: rows, cols: cols, raw: data}, nil
}

// PackedLayout numbers the layout of packed weights, which all backends share. It is raised with every change of it,
// so that what was packed before is not taken for what it is not.
const PackedLayout = 1

// PackedAlign is where packed weights have to start in memory, in bytes: kernels read whole cache lines of them.
const PackedAlign = 64

// NewPacked wraps what PackedBytes of a matrix of equal format and size returned, without copying it. packed must stay
// unchanged for ever and start at a multiple of PackedAlign.
func NewPacked(f Format, rows, cols int, packed []byte) (*Matrix, error) {
	if f.BlockSize() == 0 || rows <= 0 || cols <= 0 || cols%f.BlockSize() != 0 {
		return nil, fmt.Errorf("make packed matrix: %d x %d weights do not fit format %v", rows, cols, f)
	}
	m := &Matrix{format: f, rows: rows, cols: cols, packed: packed}
	if len(packed)%m.groups() != 0 || len(packed)/m.groups() != m.groupBytes() {
		return nil, fmt.Errorf("make packed matrix: %d x %d weights in %v do not fit %d bytes", rows, cols, f, len(packed))
	}
	if uintptr(unsafe.Pointer(unsafe.SliceData(packed)))%PackedAlign != 0 {
		return nil, fmt.Errorf("make packed matrix: it does not start at a multiple of %d bytes", PackedAlign)
	}
	return m, nil
}

// PackedBytes is the packed layout, nil before Pack. It must not be changed, nor used when m is gone.
func (m *Matrix) PackedBytes() []byte { return m.packed }

// Format tells how the weights are stored.
func (m *Matrix) Format() Format { return m.format }

// Rows is the number of outputs.
func (m *Matrix) Rows() int { return m.rows }

// Cols is the number of inputs.
func (m *Matrix) Cols() int { return m.cols }

// Packed tells whether Pack was called.
func (m *Matrix) Packed() bool { return m.packed != nil }

// rawRow returns row i as in the file.
func (m *Matrix) rawRow(i int) []byte {
	rb := m.rowBytes()
	for _, part := range m.raw {
		if n := len(part) / rb; i >= n {
			i -= n
			continue
		}
		return part[i*rb:][:rb]
	}
	panic("kernel: a row past the last one")
}

func (m *Matrix) rowBytes() int { return m.cols / m.format.BlockSize() * m.format.BlockBytes() }

// groupBytes is the size of a packed group of 16 rows.
func (m *Matrix) groupBytes() int {
	cols, size := m.format.unit()
	return (m.cols + cols - 1) / cols * size * lanes
}

func (m *Matrix) groups() int { return (m.rows + lanes - 1) / lanes }

// Pack copies the weights into the layout that products are fast in and forgets the original data. Results do not
// change. It must not run while the matrix is in use.
func (m *Matrix) Pack() {
	if m.packed != nil {
		return
	}
	size := m.groupBytes()
	packed, owner := newPages(m.groups() * size)
	for g := range m.groups() {
		m.packGroup(packed[g*size:(g+1)*size], g)
	}
	m.packed, m.owner, m.raw = packed, owner, nil
}

// packGroup writes rows 16g to 16g+15 interleaved: float formats column by column, 16 weights each, the others block by
// block as packBlock does. Rows past the last are zero.
func (m *Matrix) packGroup(dst []byte, g int) {
	n := min(lanes, m.rows-g*lanes)
	if cols, _ := m.format.unit(); n < lanes || m.cols%cols != 0 {
		clear(dst)
	}
	for r := range n {
		if m.format == Q8_0 {
			packQ8(dst[4*r:], dst[1024+2*r:], m.rawRow(g*lanes+r))
			continue
		}
		m.packRow(dst, g*lanes+r, r, lanes)
	}
}

// packQ8 is packRow for Q8_0 and 16 rows, which starting a host spends most of its time in: weights and scales of a lane.
func packQ8(weights, scales, src []byte) {
	for b := 0; len(src) >= 34; b++ {
		s := src[:34:34]
		d := weights[b/2*1088+b%2*512:][:452]
		for q := range 8 {
			binary.LittleEndian.PutUint32(d[64*q:][:4], binary.LittleEndian.Uint32(s[2+4*q:])^q8Flip)
		}
		copy(scales[b/2*1088+b%2*32:][:2], s)
		src = src[34:]
	}
}

// packRow writes row i as lane r of n. Float weights are n apart.
func (m *Matrix) packRow(dst []byte, i, r, n int) {
	src := m.rawRow(i)
	switch m.format {
	case F32:
		for i, o := 0, 4*r; i < len(src); i, o = i+4, o+4*n {
			binary.LittleEndian.PutUint32(dst[o:], binary.LittleEndian.Uint32(src[i:]))
		}
	case F16, BF16:
		for i, o := 0, 2*r; i < len(src); i, o = i+2, o+2*n {
			binary.LittleEndian.PutUint16(dst[o:], binary.LittleEndian.Uint16(src[i:]))
		}
	default:
		size := m.format.BlockBytes()
		cols, unit := m.format.unit()
		per := cols / m.format.BlockSize()
		for b := 0; len(src) > 0; b, src = b+1, src[size:] {
			packBlock(m.format, dst[b/per*unit*n:][:unit*n], src[:size], b%per, r, n)
		}
	}
}

// Row widens row i into dst, cols long: the scale times the integer, and where the format has a minimum less that, each
// weight rounded once.
func (m *Matrix) Row(i int, dst []float32) {
	if i < 0 || i >= m.rows {
		panic(fmt.Sprintf("kernel: row %d of %d", i, m.rows))
	}
	defer runtime.KeepAlive(m) // and with it what src is part of
	dst = dst[:m.cols]
	// weight j of a float format lies at base + j*n + r
	var src []byte
	r, n, base := 0, 1, 0
	if m.packed != nil {
		src, r, n = m.packed, i%lanes, lanes
		base = i / lanes * m.groupBytes()
	} else {
		src = m.rawRow(i)
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
	case BF16:
		for j := range dst {
			dst[j] = bf16ToF32(binary.LittleEndian.Uint16(src[base+2*(j*n+r):]))
		}
	default:
		m.widenBlocks(dst, src[base:], r, n)
	}
}

// widenBlocks is Row for formats in blocks: lane r of n of a packed group, or of raw data where n is 1.
func (m *Matrix) widenBlocks(dst []float32, src []byte, r, n int) {
	cols, size := m.format.unit()
	var one [210]byte // the largest packed block of a single row
	for c := 0; c < m.cols; c += cols {
		blk := one[:size]
		if n == 1 {
			per, file := m.format.BlockSize(), m.format.BlockBytes()
			for s := 0; s*per < min(cols, m.cols-c); s++ {
				packBlock(m.format, blk, src[(c/per+s)*file:][:file], s, 0, 1)
			}
		} else {
			blk = src[c/cols*size*n:][:size*n]
		}
		var p piece
		for s := 0; s*32 < min(cols, m.cols-c); s++ {
			p.open(m.format, blk, s, r, n)
			p.widen(dst[c+32*s:][:32])
		}
	}
}
