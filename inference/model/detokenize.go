package model

import (
	"strings"
	"unicode/utf8"
)

// Detokenizer turns ids into text as they come. What it has returned after token i
// depends on tokens 0..i only, so a host that continues another's answer feeds the
// tokens so far to a new one and goes on with the same text.
type Detokenizer struct {
	t       *Tokenizer
	pending []byte // start of a character that is not complete, at most 3 bytes
	started bool
}

// NewDetokenizer returns a detokenizer at the start of an answer.
func (t *Tokenizer) NewDetokenizer() *Detokenizer { return &Detokenizer{t: t} }

// Add returns the text that the token completes, always valid UTF-8. The bytes of
// a character that is not complete are held back; bytes that can never become one
// are replaced by U+FFFD.
func (d *Detokenizer) Add(id int32) string {
	if id < 0 || int(id) >= len(d.t.pieces) {
		return ""
	}
	piece := d.t.pieces[id]
	if piece == "" {
		return ""
	}
	if !d.started {
		d.started = true
		if d.t.spacePrefix {
			piece = strings.TrimPrefix(piece, " ")
		}
	}
	b := append(d.pending, piece...)
	n := len(b) - incomplete(b)
	out := strings.ToValidUTF8(string(b[:n]), "\uFFFD")
	d.pending = append(d.pending[:0], b[n:]...)
	return out
}

// Flush returns what is left at the end of the answer: U+FFFD for a character that
// was never completed.
func (d *Detokenizer) Flush() string {
	if len(d.pending) == 0 {
		return ""
	}
	d.pending = d.pending[:0]
	return "\uFFFD"
}

// incomplete returns how many bytes at the end of b may still become a character.
func incomplete(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		tail := b[len(b)-n:]
		if utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}
