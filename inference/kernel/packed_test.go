package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"testing"
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

func aligned64(b []byte) []byte {
	buf := make([]byte, len(b)+1<<16) // large ones begin on a page
	return append(buf[:0], b...)
}
