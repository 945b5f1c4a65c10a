package inference

import (
	"errors"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

func TestTemplateArgs(t *testing.T) {
	for args, valid := range map[string]bool{
		``: true, `{"a":1}`: true, `{"a":"x","b":null,"c":false,"d":1.50}`: true,
		`{}`: false, `[]`: false, `null`: false, `{"a":[]}`: false, `{"a":{}}`: false, `{"a": 1}`: false, `{"b":1,"a":2}`: false,
		`{"a":1,"a":2}`: false, `{"a":1}x`: false, `{"a":"` + strings.Repeat("x", MaxTemplateArgs) + `"}`: false,
	} {
		q := &inferencepb.Question{Model: make([]byte, 32), Prompt: "x", TemplateArgs: args}
		_, _, err := NewRequest(network, testKey(1), q, &inferencepb.Request{Choices: 1, MaxTokens: 1, Nonce: make([]byte, 16)})
		if (err == nil) != valid || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%.40s: %v", args, err)
		}
	}
}
