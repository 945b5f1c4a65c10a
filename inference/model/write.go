package model

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// Meta is one metadata entry for Write. Value is a string, uint32, uint64, float32,
// bool, or a slice of string, int32 or float32.
type Meta struct {
	Key   string
	Value any
}

// TensorSource is a tensor for Write: Fill writes its bytes, exactly as many as the
// format takes for the shape.
type TensorSource struct {
	Name   string
	Format Format
	Shape  []int
	Fill   func(w io.Writer) error
}

const writeAlignment = 32

// countingWriter counts what was written and keeps the first error.
type countingWriter struct {
	w   *bufio.Writer
	n   uint64
	err error
}

func (c *countingWriter) Write(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.w.Write(p)
	c.n += uint64(n)
	c.err = err
	return n, err
}

func (c *countingWriter) u32(v uint32) { c.Write(binary.LittleEndian.AppendUint32(nil, v)) }
func (c *countingWriter) u64(v uint64) { c.Write(binary.LittleEndian.AppendUint64(nil, v)) }
func (c *countingWriter) text(s string) {
	c.u64(uint64(len(s)))
	c.Write([]byte(s))
}

func (c *countingWriter) pad() {
	if rest := c.n % writeAlignment; rest != 0 {
		c.Write(make([]byte, writeAlignment-rest))
	}
}

// Write writes a GGUF file, version 3. Tensors stream: no more than a buffer is held.
func Write(w io.Writer, meta []Meta, tensors []TensorSource) error {
	c := &countingWriter{w: bufio.NewWriterSize(w, 1<<20)}
	c.Write([]byte("GGUF"))
	c.u32(3)
	c.u64(uint64(len(tensors)))
	c.u64(uint64(len(meta)))
	for _, m := range meta {
		c.text(m.Key)
		if err := c.value(m.Value); err != nil {
			return fmt.Errorf("write metadata %q: %w", m.Key, err)
		}
	}
	sizes, offset := make([]uint64, len(tensors)), uint64(0)
	for i, t := range tensors {
		size, err := t.Format.size(t.Shape)
		if err != nil {
			return fmt.Errorf("write tensor %q: %w", t.Name, err)
		}
		c.text(t.Name)
		c.u32(uint32(len(t.Shape)))
		for _, d := range t.Shape {
			c.u64(uint64(d))
		}
		c.u32(uint32(t.Format))
		c.u64(offset)
		sizes[i] = size
		offset = (offset + size + writeAlignment - 1) &^ (writeAlignment - 1)
	}
	c.pad()
	for i, t := range tensors {
		before := c.n
		if err := t.Fill(c); err != nil {
			return fmt.Errorf("write tensor %q: %w", t.Name, err)
		}
		if got := c.n - before; c.err == nil && got != sizes[i] {
			return fmt.Errorf("write tensor %q: %d bytes: want %d", t.Name, got, sizes[i])
		}
		c.pad()
	}
	if c.err == nil {
		c.err = c.w.Flush()
	}
	return c.err
}

func (c *countingWriter) value(v any) error {
	kind := func(t valueType) { c.u32(uint32(t)) }
	array := func(t valueType, n int) {
		kind(typeArray)
		kind(t)
		c.u64(uint64(n))
	}
	switch x := v.(type) {
	case string:
		kind(typeString)
		c.text(x)
	case uint32:
		kind(typeUint32)
		c.u32(x)
	case uint64:
		kind(typeUint64)
		c.u64(x)
	case float32:
		kind(typeFloat32)
		c.u32(math.Float32bits(x))
	case bool:
		kind(typeBool)
		b := byte(0)
		if x {
			b = 1
		}
		c.Write([]byte{b})
	case []string:
		array(typeString, len(x))
		for _, s := range x {
			c.text(s)
		}
	case []int32:
		array(typeInt32, len(x))
		for _, n := range x {
			c.u32(uint32(n))
		}
	case []float32:
		array(typeFloat32, len(x))
		for _, f := range x {
			c.u32(math.Float32bits(f))
		}
	default:
		return fmt.Errorf("a %T has no GGUF type", v)
	}
	return nil
}
