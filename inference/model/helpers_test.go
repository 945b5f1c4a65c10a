package model

import (
	"bytes"
	"testing"
)

// synthesize returns a synthetic model file in memory.
func synthesize(t testing.TB, shape string, format Format) []byte {
	t.Helper()
	s, err := ShapeOf(shape)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Synthesize(&b, s, format, 1); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openSynthetic(t testing.TB, shape string, format Format) *File {
	t.Helper()
	f, err := OpenBytes(synthesize(t, shape, format))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// metaHeader returns a header that holds only the given metadata.
func metaHeader(t testing.TB, meta []Meta) *header {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, meta, nil); err != nil {
		t.Fatal(err)
	}
	h, err := parseHeader(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func tokenizerOf(t testing.TB, meta []Meta, vocab int) *Tokenizer {
	t.Helper()
	tok, err := newTokenizer(metaHeader(t, meta), vocab)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}
