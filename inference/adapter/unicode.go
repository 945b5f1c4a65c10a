package adapter

import (
	"fmt"
	"unicode/utf8"

	"github.com/gonka-mesh/mesh/inference"
)

// Ollama neither takes nor tells token ids. So that its answers have a chain that is
// signed, and prompts are ids as everywhere, its models have a vocabulary of their
// own: a token is a Unicode code point, its id the code point's number.
const unicodeVocab = utf8.MaxRune + 1

// runes returns the ids of a text.
func runes(s string) []int32 {
	out := make([]int32, 0, len(s))
	for _, r := range s {
		out = append(out, r)
	}
	return out
}

// unrune returns the text of ids.
func unrune(ids []int32) (string, error) {
	b := make([]byte, 0, len(ids))
	for i, id := range ids {
		if !utf8.ValidRune(id) {
			return "", fmt.Errorf("%w: token %d is %d, no code point", inference.ErrInvalid, i, id)
		}
		b = utf8.AppendRune(b, id)
	}
	return string(b), nil
}

// codePoints is the detokenizer of that vocabulary.
type codePoints struct{}

func (codePoints) Add(id int32) string {
	if !utf8.ValidRune(id) {
		return ""
	}
	return string(id)
}

func (codePoints) Flush() string { return "" }
