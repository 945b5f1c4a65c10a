package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"runtime"
	"slices"
	"testing"
	"time"
)

// TestPackedLayout fails when the packed layout changes: raise PackedLayout with it, or
// weights that were kept packed give wrong answers.
func TestPackedLayout(t *testing.T) {
	sum := sha256.New()
	for f := Format(0); f.BlockSize() > 0; f++ {
		rows, cols := 37, 3*max(f.BlockSize(), 32)
		raw := make([]byte, rows*cols/f.BlockSize()*f.BlockBytes())
		for i := range raw {
			raw[i] = byte(i*7 + i>>8)
		}
		m, err := NewMatrix(f, rows, cols, raw)
		if err != nil {
			t.Fatal(err)
		}
		m.Pack()
		sum.Write(m.PackedBytes())

		// What is wrapped again is the same matrix.
		again, err := NewPacked(f, rows, cols, aligned64(m.PackedBytes()))
		if err != nil {
			t.Fatal(err)
		}
		a, b := make([]float32, cols), make([]float32, cols)
		for i := range rows {
			m.Row(i, a)
			again.Row(i, b)
			if !slices.EqualFunc(a, b, func(x, y float32) bool { return x == y || x != x && y != y }) {
				t.Fatalf("%v: row %d differs", f, i)
			}
		}
		for _, short := range [][]byte{nil, m.PackedBytes()[:len(m.PackedBytes())-1], append(bytes.Clone(m.PackedBytes()), 0)} {
			if _, err := NewPacked(f, rows, cols, aligned64(short)); err == nil {
				t.Errorf("%v: %d bytes for %d", f, len(short), len(m.PackedBytes()))
			}
		}
	}
	const want = "15add8c4bd7515056dcb0aedf73de4d58d15ee62a06b578d6b38f96e526bfa87"
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		t.Errorf("layout %d has hash %s, want %s", PackedLayout, got, want)
	}
}

// TestParts holds that a matrix in parts is the matrix, raw and packed.
func TestParts(t *testing.T) {
	for f := Format(0); f.BlockSize() > 0; f++ {
		rows, cols := 37, 2*max(f.BlockSize(), 32)
		row := cols / f.BlockSize() * f.BlockBytes()
		w := words{stream: 9}
		raw := make([]byte, rows*row)
		for i := range raw {
			raw[i] = byte(w.word()) & 0x3f // no infinities
		}
		whole, err := NewMatrix(f, rows, cols, raw)
		if err != nil {
			t.Fatal(err)
		}
		parts, err := NewMatrix(f, rows, cols, raw[:5*row], raw[5*row:6*row], nil, raw[6*row:])
		if err != nil {
			t.Fatal(err)
		}
		a, b := make([]float32, cols), make([]float32, cols)
		for i := range rows {
			whole.Row(i, a)
			parts.Row(i, b)
			if !slices.Equal(a, b) {
				t.Fatalf("%v: row %d differs", f, i)
			}
		}
		whole.Pack()
		parts.Pack()
		if !bytes.Equal(whole.PackedBytes(), parts.PackedBytes()) {
			t.Errorf("%v: packed, they differ", f)
		}
		if _, err := NewMatrix(f, rows, cols, raw[:row-1], raw[row-1:]); err == nil {
			t.Errorf("%v: a row in two parts", f)
		}
	}
}

// TestPages holds that packed weights stay while a copy of their matrix does: they are
// memory of their own, and reading what went back to the system would end the process.
func TestPages(t *testing.T) {
	raw := make([]byte, 1<<20)
	for i := range raw {
		raw[i] = byte(i * 7)
	}
	m, err := NewMatrix(F32, 256, 1024, raw)
	if err != nil {
		t.Fatal(err)
	}
	m.Pack()
	want, kept := sha256.Sum256(m.PackedBytes()), *m
	m = nil
	for range 3 {
		runtime.GC()
		time.Sleep(time.Millisecond) // for cleanups
	}
	if got := sha256.Sum256(kept.PackedBytes()); got != want {
		t.Error("the weights have changed")
	}
	runtime.KeepAlive(&kept)
}

func aligned64(b []byte) []byte {
	buf := make([]byte, len(b)+1<<16) // large ones begin on a page
	return append(buf[:0], b...)
}
