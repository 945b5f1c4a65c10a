package node

import (
	"slices"
	"testing"
)

// TestPlainName names the models of servers.
func TestPlainName(t *testing.T) {
	for _, c := range []struct {
		name  string
		taken []string
		want  string
	}{
		{"toy", nil, "toy"},
		{"toy.gguf", nil, "toy"},
		{"/models/toy.gguf", nil, "toy"},
		{"/models/toy/", nil, "toy"},
		{`C:\models\toy.gguf`, nil, "toy"},
		{"Qwen/Qwen3-8B", nil, "Qwen3-8B"},
		{"Qwen/Qwen3-8B", []string{"Qwen3-8B"}, "Qwen-Qwen3-8B"},
		{"/models/toy.gguf", []string{"toy"}, "models-toy.gguf"},
		{"hf.co/me/toy:Q8_0", nil, "toy:Q8_0"},
		{"llama3:8b", nil, "llama3:8b"},
	} {
		got := plainName(c.name, func(name string) bool { return slices.Contains(c.taken, name) })
		if got != c.want || !validName(got) {
			t.Errorf("%s, %v taken: %s, want %s", c.name, c.taken, got, c.want)
		}
	}
}
