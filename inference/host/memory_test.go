package host

import (
	"testing"
	"testing/synctest"

	"github.com/gonka-mesh/mesh/inference"
)

// TestMemory serves a model of which less fits the memory than its context: what was
// asked for either comes whole or not at all, and an answer without a length of its
// own is broken off, not ended.
func TestMemory(t *testing.T) {
	for _, tt := range []struct {
		name    string
		asked   int
		prefix  int
		refused string
		tokens  int
		finish  inference.FinishReason
	}{
		{"it fits", 95, 0, "", 95, inference.FinishLength},
		{"one too many", 96, 0, inference.CodeTooSmall, 0, ""},
		{"over the model's own", 1<<20 - 4, 0, inference.CodeTooLong, 0, ""},
		{"as many as fit the model", inference.MaxTokens, 0, "", 95, inference.FinishAborted},
		{"the same, begun elsewhere", inference.MaxTokens, 90, "", 5, inference.FinishAborted},
		{"the same, begun elsewhere and too long", inference.MaxTokens, 95, inference.CodeTooSmall, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &engine{slots: 1, holds: 100}, Config{})
				defer b.close()
				if c := b.host.Capabilities()[0]; c.GetContext() != 100 || c.GetModelContext() != 1<<20 {
					t.Errorf("the advert says %d of %d", c.GetContext(), c.GetModelContext())
				}
				_, signed := request(t, 2, "hello", tt.asked, nil)
				prefix := make([]int32, tt.prefix)
				for i := range prefix {
					prefix[i] = int32('a' + i%26)
				}
				s := b.post(2, "/v1/infer", callBody(t, signed, prefix...))
				if tt.refused != "" {
					if r := s.refusal(t); r.Code != tt.refused {
						t.Errorf("refused with %s: %s", r.Code, r.Message)
					}
					return
				}
				if n, _, finish, _ := s.rest(t); n != tt.tokens || finish != tt.finish {
					t.Errorf("%d tokens, %s", n, finish)
				}
			})
		})
	}
}
