package model

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// maxHeaderLen bounds the header of a safetensors file, as the format does.
const maxHeaderLen = 100 << 20

// maxTensors bounds the tensors of one file: experts stand alone, so there are many.
const maxTensors = 1 << 18

var safetensorFormats = map[string]Format{"F32": F32, "F16": F16, "BF16": BF16}

// parseSafetensors reads the header of a safetensors file and lays the tensors over
// b; they fill its data without gap or overlap. Shapes come back in GGUF order, names
// as they stand in the file. Format: huggingface/safetensors, README.md.
func parseSafetensors(b []byte) ([]*Tensor, error) {
	if len(b) < 8 {
		return nil, errors.New("not a safetensors file: the header's length is missing")
	}
	n := binary.LittleEndian.Uint64(b)
	if n < 2 || n > maxHeaderLen || n > uint64(len(b)-8) {
		return nil, fmt.Errorf("header of %d bytes in a file of %d: want at most %d and inside the file", n, len(b), maxHeaderLen)
	}
	head, data := b[8:8+n], b[8+n:]
	if head[0] != '{' {
		return nil, errors.New("not a safetensors file: the header is no JSON object")
	}
	var tensors []*Tensor
	seen := map[string]bool{}
	err := eachField(head, func(name string, raw json.RawMessage) error {
		if seen[name] {
			return fmt.Errorf("tensor %.80q stands twice", name)
		}
		seen[name] = true
		if name == "__metadata__" {
			return nil
		}
		if len(name) == 0 || len(name) > maxNameLen {
			return fmt.Errorf("a name of %d bytes: want 1 to %d", len(name), maxNameLen)
		}
		if len(tensors) == maxTensors {
			return fmt.Errorf("more than %d tensors", maxTensors)
		}
		t, err := parseSafetensor(name, raw)
		if err != nil {
			return fmt.Errorf("tensor %.200q: %w", name, err)
		}
		tensors = append(tensors, t)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	return tensors, placeSafetensors(tensors, data)
}

// safetensor is the description of one tensor.
type safetensor struct {
	Dtype   string   `json:"dtype"`
	Shape   []int64  `json:"shape"`
	Offsets []uint64 `json:"data_offsets"`
}

func parseSafetensor(name string, raw json.RawMessage) (*Tensor, error) {
	var s safetensor
	if err := strictJSON(raw, &s); err != nil {
		return nil, err
	}
	format, ok := safetensorFormats[s.Dtype]
	if !ok {
		return nil, fmt.Errorf("dtype is %.20q: want F32, F16 or BF16", s.Dtype)
	}
	if len(s.Shape) < 1 || len(s.Shape) > 4 {
		return nil, fmt.Errorf("shape has %d dimensions: want 1 to 4", len(s.Shape))
	}
	t := &Tensor{Name: name, Format: format, Shape: make([]int, len(s.Shape))}
	for i, d := range s.Shape {
		if d < 1 || d > math.MaxInt32 {
			return nil, fmt.Errorf("shape %v: want dimensions from 1 to %d", s.Shape, math.MaxInt32)
		}
		t.Shape[len(s.Shape)-1-i] = int(d)
	}
	var err error
	if t.size, err = format.size(t.Shape); err != nil {
		return nil, err
	}
	if len(s.Offsets) != 2 || s.Offsets[1] < s.Offsets[0] || s.Offsets[1]-s.Offsets[0] != t.size {
		return nil, fmt.Errorf("data_offsets %v: want the two ends of %d bytes", s.Offsets, t.size)
	}
	t.offset = s.Offsets[0]
	return t, nil
}

// placeSafetensors gives every tensor its bytes.
func placeSafetensors(tensors []*Tensor, data []byte) error {
	order := slices.SortedFunc(slices.Values(tensors), byOffset)
	at := uint64(0)
	for i, t := range order {
		switch {
		case t.offset < at:
			return fmt.Errorf("tensors %q and %q: data_offsets overlap", order[i-1].Name, t.Name)
		case t.offset > at:
			return fmt.Errorf("tensor %q: data_offsets leave %d bytes before it unused", t.Name, t.offset-at)
		case t.size > uint64(len(data))-at:
			return fmt.Errorf("tensor %q: data_offsets end at %d, the data at %d", t.Name, at+t.size, len(data))
		}
		at += t.size
		t.Data = data[t.offset:at:at]
	}
	if at != uint64(len(data)) {
		return fmt.Errorf("%d bytes behind the last tensor", uint64(len(data))-at)
	}
	return nil
}

// eachField calls f for each field of a JSON object, in its order.
func eachField(object []byte, f func(name string, raw json.RawMessage) error) error {
	dec := json.NewDecoder(bytes.NewReader(object))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.New("no JSON object")
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		name, ok := key.(string)
		if !ok {
			return errors.New("no JSON object")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return fmt.Errorf("%.80q: %w", name, err)
		}
		if err := f(name, raw); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something stands behind the JSON object")
	}
	return nil
}

// strictJSON decodes an object that has no other fields than those of v.
func strictJSON(raw []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}

func byOffset(a, b *Tensor) int {
	switch {
	case a.offset < b.offset:
		return -1
	case a.offset > b.offset:
		return 1
	}
	return 0
}
