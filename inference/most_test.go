package inference

import (
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// TestMostTokens: a text may have as many tokens as its longest normal form has bytes, and
// no alphabet is thereby believed to have ten times what it has.
func TestMostTokens(t *testing.T) {
	for _, tt := range []struct {
		text        string
		least, most int // of a character
	}{
		{"a", 1, 1}, {"я", 2, 3}, {"中", 3, 5}, {"각", 9, 14}, {"\ufdfa", 33, 50}, {"Ⱥ", 3, 3}, {"\U0001d1c0", 12, 18},
	} {
		const n = 100
		got := MostPrompt(&inferencepb.Question{Prompt: strings.Repeat(tt.text, n)}) - plainTokens
		if got < n*tt.least || got > n*tt.most {
			t.Errorf("%q: %d for %d of them, want %d to %d for each", tt.text, got, n, tt.least, tt.most)
		}
	}
}
