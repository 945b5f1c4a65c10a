package model

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// valueType is the type tag of a metadata value in a GGUF file.
type valueType uint32

const (
	typeUint8 valueType = iota
	typeInt8
	typeUint16
	typeInt16
	typeUint32
	typeInt32
	typeFloat32
	typeBool
	typeString
	typeArray
	typeUint64
	typeInt64
	typeFloat64
)

// fixedSize is the size in bytes of a value of each fixed-size type.
var fixedSize = map[valueType]int{
	typeUint8: 1, typeInt8: 1, typeUint16: 2, typeInt16: 2, typeUint32: 4, typeInt32: 4,
	typeFloat32: 4, typeBool: 1, typeUint64: 8, typeInt64: 8, typeFloat64: 8,
}

// value is one metadata value, still in the bytes of the file. For an array, elem
// and count describe the elements and raw starts at the first of them. encoded is
// the value with its type tags and lengths.
type value struct {
	kind    valueType
	elem    valueType
	count   int
	raw     []byte
	encoded []byte
}

// reader walks the header of a GGUF file; every read is checked against its end.
type reader struct {
	b []byte
	p int
}

var errShort = errors.New("the file ends too early")

func (r *reader) left() int { return len(r.b) - r.p }

func (r *reader) take(n int) ([]byte, error) {
	if n < 0 || n > r.left() {
		return nil, errShort
	}
	out := r.b[r.p : r.p+n : r.p+n]
	r.p += n
	return out, nil
}

func (r *reader) u32() (uint32, error) {
	b, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (r *reader) u64() (uint64, error) {
	b, err := r.take(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

func (r *reader) bytes() ([]byte, error) {
	n, err := r.u64()
	if err != nil {
		return nil, err
	}
	if n > uint64(r.left()) {
		return nil, fmt.Errorf("a text of %d bytes: %w", n, errShort)
	}
	return r.take(int(n))
}

func (r *reader) name(limit int) (string, error) {
	b, err := r.bytes()
	if err != nil {
		return "", err
	}
	if len(b) == 0 || len(b) > limit {
		return "", fmt.Errorf("a name of %d bytes: want 1 to %d", len(b), limit)
	}
	return string(b), nil
}

func (r *reader) value() (value, error) {
	from := r.p
	tag, err := r.u32()
	if err != nil {
		return value{}, err
	}
	v := value{kind: valueType(tag)}
	start := r.p
	switch size := fixedSize[v.kind]; {
	case size > 0:
		_, err = r.take(size)
	case v.kind == typeString:
		start += 8
		_, err = r.bytes()
	case v.kind == typeArray:
		err = r.array(&v)
		start += 12
	default:
		err = fmt.Errorf("value type %d is unknown", tag)
	}
	if err != nil {
		return value{}, err
	}
	v.raw, v.encoded = r.b[start:r.p:r.p], r.b[from:r.p:r.p]
	return v, nil
}

func (r *reader) array(v *value) error {
	tag, err := r.u32()
	if err != nil {
		return err
	}
	n, err := r.u64()
	if err != nil {
		return err
	}
	v.elem = valueType(tag)
	if n > uint64(r.left()) {
		return fmt.Errorf("an array of %d elements: %w", n, errShort)
	}
	v.count = int(n)
	if size := fixedSize[v.elem]; size > 0 {
		if v.count > r.left()/size {
			return fmt.Errorf("an array of %d elements: %w", n, errShort)
		}
		_, err = r.take(v.count * size)
		return err
	}
	if v.elem != typeString {
		return fmt.Errorf("array element type %d is not supported", tag)
	}
	for i := range v.count {
		if _, err := r.bytes(); err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
	}
	return nil
}

// table is the tensors of a model under their GGUF names. say returns the name that
// stands in the file; nil: the same.
type table struct {
	tensors []*Tensor
	byName  map[string]*Tensor
	say     func(name string) string
}

// header is what a GGUF file says before its tensor data.
type header struct {
	table
	meta map[string]value
}

const (
	maxNameLen   = 1 << 10
	maxAlignment = 1 << 20
)

// parseHeader reads metadata and tensor table of a GGUF file, version 2 or 3, and
// lays the tensors over b. Format: ggml-org/ggml, docs/gguf.md.
func parseHeader(b []byte) (*header, error) {
	r := &reader{b: b}
	magic, err := r.take(4)
	if err != nil || string(magic) != "GGUF" {
		return nil, errors.New("not a GGUF file: magic is missing")
	}
	version, err := r.u32()
	if err != nil {
		return nil, fmt.Errorf("GGUF version: %w", err)
	}
	if version != 2 && version != 3 {
		return nil, fmt.Errorf("GGUF version %d is not supported: want 2 or 3", version)
	}
	tensors, err := r.u64()
	if err != nil {
		return nil, fmt.Errorf("tensor count: %w", err)
	}
	keys, err := r.u64()
	if err != nil {
		return nil, fmt.Errorf("metadata count: %w", err)
	}
	h := &header{meta: map[string]value{}, table: table{byName: map[string]*Tensor{}}}
	for i := range keys {
		key, err := r.name(maxNameLen)
		if err != nil {
			return nil, fmt.Errorf("metadata key %d of %d: %w", i, keys, err)
		}
		if _, ok := h.meta[key]; ok {
			return nil, fmt.Errorf("metadata key %q stands twice", key)
		}
		if h.meta[key], err = r.value(); err != nil {
			return nil, fmt.Errorf("metadata %q: %w", key, err)
		}
	}
	align, err := h.alignment()
	if err != nil {
		return nil, err
	}
	for i := range tensors {
		if err := h.tensorInfo(r, align); err != nil {
			return nil, fmt.Errorf("tensor %d of %d: %w", i, tensors, err)
		}
	}
	return h, h.place(b, r.p, align)
}

func (h *header) alignment() (int, error) {
	const key = "general.alignment"
	if _, ok := h.meta[key]; !ok {
		return 32, nil
	}
	n, err := h.integer(key)
	if err != nil {
		return 0, err
	}
	if n < 8 || n > maxAlignment || n&(n-1) != 0 {
		return 0, fmt.Errorf("metadata %q is %d: want a power of two from 8 to %d", key, n, maxAlignment)
	}
	return n, nil
}

// tensorInfo reads one line of the tensor table; the offset waits in t.offset.
func (h *header) tensorInfo(r *reader, align int) error {
	name, err := r.name(maxNameLen)
	if err != nil {
		return err
	}
	dims, err := r.u32()
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if dims < 1 || dims > 4 {
		return fmt.Errorf("%q has %d dimensions: want 1 to 4", name, dims)
	}
	if _, ok := h.byName[name]; ok {
		return fmt.Errorf("%q stands twice", name)
	}
	t := &Tensor{Name: name, Shape: make([]int, dims)}
	for i := range t.Shape {
		n, err := r.u64()
		if err != nil {
			return fmt.Errorf("%q dimension %d: %w", name, i, err)
		}
		if n < 1 || n > math.MaxInt32 {
			return fmt.Errorf("%q dimension %d is %d: want 1 to %d", name, i, n, math.MaxInt32)
		}
		t.Shape[i] = int(n)
	}
	format, err := r.u32()
	if err != nil {
		return fmt.Errorf("%q format: %w", name, err)
	}
	t.Format = Format(format)
	if t.size, err = t.Format.size(t.Shape); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if t.offset, err = r.u64(); err != nil {
		return fmt.Errorf("%q offset: %w", name, err)
	}
	if t.offset%uint64(align) != 0 {
		return fmt.Errorf("%q offset %d is not a multiple of the alignment %d", name, t.offset, align)
	}
	h.tensors = append(h.tensors, t)
	h.byName[name] = t
	return nil
}

// place gives every tensor its bytes. Tensors must not overlap: a small file
// could otherwise stand for a model of any size.
func (h *header) place(b []byte, end, align int) error {
	start := (uint64(end) + uint64(align) - 1) &^ (uint64(align) - 1)
	if start > uint64(len(b)) {
		start = uint64(len(b))
	}
	data := b[start:]
	for _, t := range h.tensors {
		if t.offset > uint64(len(data)) || t.size > uint64(len(data))-t.offset {
			return fmt.Errorf("tensor %q: %d bytes at %d lie outside the %d bytes of tensor data", t.Name, t.size, t.offset, len(data))
		}
		t.Data = data[t.offset : t.offset+t.size : t.offset+t.size]
	}
	order := slices.SortedFunc(slices.Values(h.tensors), byOffset)
	for i := 1; i < len(order); i++ {
		if a, b := order[i-1], order[i]; a.offset+a.size > b.offset {
			return fmt.Errorf("tensors %q and %q overlap", a.Name, b.Name)
		}
	}
	return nil
}
