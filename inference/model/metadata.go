package model

import (
	"encoding/binary"
	"fmt"
	"math"
)

// The accessors of metadata. Each names the key in its error; the ones that take a
// fallback return it only when the key is absent, never for a value of another type.

func (h *header) has(key string) bool {
	_, ok := h.meta[key]
	return ok
}

func (h *header) find(key string) (value, error) {
	v, ok := h.meta[key]
	if !ok {
		return v, fmt.Errorf("metadata %q is missing", key)
	}
	return v, nil
}

// integer reads an integer of any width that is from 0 to 2^31-1.
func (h *header) integer(key string) (int, error) {
	v, err := h.find(key)
	if err != nil {
		return 0, err
	}
	n, ok := v.integerAt(v.kind, 0)
	if !ok {
		return 0, fmt.Errorf("metadata %q is no integer from 0 to %d", key, math.MaxInt32)
	}
	return n, nil
}

func (h *header) integerOr(key string, fallback int) (int, error) {
	if !h.has(key) {
		return fallback, nil
	}
	return h.integer(key)
}

// integerAt reads element i of the given integer type.
func (v value) integerAt(kind valueType, i int) (int, bool) {
	size := fixedSize[kind]
	if size == 0 || len(v.raw) < (i+1)*size {
		return 0, false
	}
	b := v.raw[i*size:]
	var n int64
	switch kind {
	case typeUint8:
		n = int64(b[0])
	case typeInt8:
		n = int64(int8(b[0]))
	case typeUint16:
		n = int64(binary.LittleEndian.Uint16(b))
	case typeInt16:
		n = int64(int16(binary.LittleEndian.Uint16(b)))
	case typeUint32:
		n = int64(binary.LittleEndian.Uint32(b))
	case typeInt32:
		n = int64(int32(binary.LittleEndian.Uint32(b)))
	case typeUint64, typeInt64:
		n = int64(binary.LittleEndian.Uint64(b))
	default:
		return 0, false
	}
	return int(n), n >= 0 && n <= math.MaxInt32
}

func (h *header) float(key string) (float32, error) {
	v, err := h.find(key)
	if err != nil {
		return 0, err
	}
	var f float32
	switch v.kind {
	case typeFloat32:
		f = math.Float32frombits(binary.LittleEndian.Uint32(v.raw))
	case typeFloat64:
		f = float32(math.Float64frombits(binary.LittleEndian.Uint64(v.raw)))
	default:
		return 0, fmt.Errorf("metadata %q is no float", key)
	}
	if f != f || math.IsInf(float64(f), 0) {
		return 0, fmt.Errorf("metadata %q is not finite", key)
	}
	return f, nil
}

func (h *header) floatOr(key string, fallback float32) (float32, error) {
	if !h.has(key) {
		return fallback, nil
	}
	return h.float(key)
}

func (h *header) text(key string) (string, error) {
	v, err := h.find(key)
	if err != nil {
		return "", err
	}
	if v.kind != typeString {
		return "", fmt.Errorf("metadata %q is no text", key)
	}
	return string(v.raw), nil
}

func (h *header) textOr(key, fallback string) (string, error) {
	if !h.has(key) {
		return fallback, nil
	}
	return h.text(key)
}

func (h *header) boolOr(key string, fallback bool) (bool, error) {
	v, ok := h.meta[key]
	if !ok {
		return fallback, nil
	}
	if v.kind != typeBool {
		return false, fmt.Errorf("metadata %q is no bool", key)
	}
	return v.raw[0] != 0, nil
}

// texts reads an array of texts; the strings are copies, in one allocation.
func (h *header) texts(key string) ([]string, error) {
	v, err := h.find(key)
	if err != nil {
		return nil, err
	}
	if v.kind != typeArray || v.elem != typeString {
		return nil, fmt.Errorf("metadata %q is no array of texts", key)
	}
	all := string(v.raw)
	out, p := make([]string, v.count), 0
	for i := range out {
		n := int(binary.LittleEndian.Uint64(v.raw[p:]))
		out[i] = all[p+8 : p+8+n]
		p += 8 + n
	}
	return out, nil
}

// integers reads an array of integers from 0 to 2^31-1; absent is nil.
func (h *header) integers(key string) ([]int, error) {
	v, ok := h.meta[key]
	if !ok {
		return nil, nil
	}
	if v.kind != typeArray {
		return nil, fmt.Errorf("metadata %q is no array of integers", key)
	}
	out := make([]int, v.count)
	for i := range out {
		if out[i], ok = v.integerAt(v.elem, i); !ok {
			return nil, fmt.Errorf("metadata %q element %d is no integer from 0 to %d", key, i, math.MaxInt32)
		}
	}
	return out, nil
}

// floats reads an array of float32; absent is nil.
func (h *header) floats(key string) ([]float32, error) {
	v, ok := h.meta[key]
	if !ok {
		return nil, nil
	}
	if v.kind != typeArray || v.elem != typeFloat32 {
		return nil, fmt.Errorf("metadata %q is no array of float32", key)
	}
	out := make([]float32, v.count)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(v.raw[4*i:]))
	}
	return out, nil
}

// bools reads an array of bools, or of integers where 0 means false.
func (h *header) bools(key string) ([]bool, error) {
	v, err := h.find(key)
	if err != nil {
		return nil, err
	}
	if v.kind != typeArray || v.elem != typeBool && fixedSize[v.elem] == 0 {
		return nil, fmt.Errorf("metadata %q is no array of bools", key)
	}
	out := make([]bool, v.count)
	for i := range out {
		if v.elem == typeBool {
			out[i] = v.raw[i] != 0
			continue
		}
		n, ok := v.integerAt(v.elem, i)
		if !ok {
			return nil, fmt.Errorf("metadata %q element %d is no bool", key, i)
		}
		out[i] = n != 0
	}
	return out, nil
}
