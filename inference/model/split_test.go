package model

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dlclark/regexp2"
)

// The patterns as the models' own tokenizers have them: the oracle of the splitters.
var patterns = []struct {
	name    string
	split   splitter
	pattern string
}{
	{"gpt-2", splitGPT2, `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`},
	{"llama-bpe", splitLlama3, `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`},
	{"qwen2", splitQwen2, `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`},
}

func splitAll(split splitter, text string) []string {
	var out []string
	for len(text) > 0 {
		n := split(text)
		out = append(out, text[:n])
		text = text[n:]
	}
	return out
}

func regexpAll(t *testing.T, pattern, text string) []string {
	t.Helper()
	re := regexp2.MustCompile(pattern, regexp2.None)
	var out []string
	m, err := re.FindStringMatch(text)
	for ; m != nil && err == nil; m, err = re.FindNextMatch(m) {
		out = append(out, m.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSplitEqualsPattern(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	// Characters of every class that the patterns tell apart, and their neighbours.
	alphabet := []rune("aZéßжΩ中あ한ªʰ 'sStTrReEvVmMlLdD0123٣Ⅷ²½-_.!?#$€😀\u0301\u200b\u200d\t\n\r\v\f\u0085\u00a0\u1680\u2003\u2028\u3000\ufeff\x00\x1c\x7f")
	for _, p := range patterns {
		t.Run(p.name, func(t *testing.T) {
			for range 1500 {
				text := make([]rune, r.IntN(14))
				for i := range text {
					text[i] = alphabet[r.IntN(len(alphabet))]
					if i > 0 && r.IntN(3) == 0 {
						text[i] = text[i-1]
					}
				}
				s := string(text)
				if got, want := splitAll(p.split, s), regexpAll(t, p.pattern, s); !slices.Equal(got, want) {
					t.Fatalf("seed %d: %q\n got %q\nwant %q", seed, s, got, want)
				}
			}
		})
	}
}

func TestSplit(t *testing.T) {
	tests := []struct{ text, gpt2, llama, qwen string }{
		{"Hello, world", "Hello|,| world", "Hello|,| world", "Hello|,| world"},
		{"I'm don'T we'LL", "I|'m| don|'|T| we|'|LL", "I|'m| don|'T| we|'LL", "I|'m| don|'T| we|'LL"},
		{"2024 years", "2024| years", "202|4| years", "2|0|2|4| years"},
		{"a   b", "a|  | b", "a|  | b", "a|  | b"},
		{"a \n\n b", "a| \n\n| b", "a| \n\n| b", "a| \n\n| b"},
		{"x=(y)\n\nz", "x|=(|y|)|\n|\n|z", "x|=(|y|)\n\n|z", "x|=(|y|)\n\n|z"},
		{"end  ", "end|  ", "end|  ", "end|  "},
		{"it'ſ", "it|'|ſ", "it|'ſ", "it|'ſ"}, // (?i) folds ſ to s
		{"\xff\xfeé", "\xff\xfe|é", "\xff\xfe|é", "\xff\xfe|é"},
	}
	for _, tt := range tests {
		for i, want := range []string{tt.gpt2, tt.llama, tt.qwen} {
			if got := strings.Join(splitAll(patterns[i].split, tt.text), "|"); got != want {
				t.Errorf("%s of %q: got %q, want %q", patterns[i].name, tt.text, got, want)
			}
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add("Hello  there's 123\r\n\n x")
	f.Fuzz(func(t *testing.T, text string) {
		for _, p := range patterns {
			if got := strings.Join(splitAll(p.split, text), ""); got != text {
				t.Errorf("%s: words of %q make %q", p.name, text, got)
			}
		}
	})
}
