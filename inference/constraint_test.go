package inference

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

func TestConstraint(t *testing.T) {
	make16 := make([]byte, 16)
	tapes := map[string]bool{}
	for _, tt := range []struct {
		name  string
		c     *inferencepb.Constraint
		on    bool // ignore_eos
		valid bool
	}{
		{"none", nil, true, true},
		{"object", &inferencepb.Constraint{Kind: "json_object"}, false, true},
		{"grammar", &inferencepb.Constraint{Kind: "gbnf", Text: "a"}, false, true},
		{"another", &inferencepb.Constraint{Kind: "gbnf", Text: "b"}, false, true},
		{"kind of a newer version", &inferencepb.Constraint{Kind: "regex", Text: "a"}, false, true},
		{"largest", &inferencepb.Constraint{Kind: "gbnf", Text: strings.Repeat("a", MaxConstraint)}, false, true},
		{"too large", &inferencepb.Constraint{Kind: "gbnf", Text: strings.Repeat("a", MaxConstraint+1)}, false, false},
		{"no kind", &inferencepb.Constraint{Text: "a"}, false, false},
		{"long kind", &inferencepb.Constraint{Kind: strings.Repeat("k", 33)}, false, false},
		{"ignore eos", &inferencepb.Constraint{Kind: "json_object"}, true, false},
	} {
		q := &inferencepb.Question{Model: make([]byte, 32), Prompt: "x", Constraint: tt.c}
		r, _, err := NewRequest(network, testKey(1), q, &inferencepb.Request{Choices: 1, MaxTokens: 1, Nonce: make16, IgnoreEos: tt.on})
		if (err == nil) != tt.valid || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err != nil {
			continue
		}
		if tape := r.Tape(0).String(); tapes[tape] {
			t.Errorf("%s: the constraint is not part of the tape key", tt.name)
		} else {
			tapes[tape] = true
		}
		if !proto.Equal(r.Question.GetConstraint(), tt.c) {
			t.Errorf("%s: %v", tt.name, r.Question.GetConstraint())
		}
	}
}
