package host

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// constrainer is an engine that follows one constraint.
type constrainer struct {
	*engine
	got *inferencepb.Constraint
}

func (c *constrainer) Constrain(k *inferencepb.Constraint) error {
	if k.GetText() != "good" {
		return fmt.Errorf("%w: line 1 is wrong", inference.ErrInvalid)
	}
	return nil
}

func (c *constrainer) Generate(ctx context.Context, g inference.Generation, emit func(inference.Token) error) (inference.Finish, error) {
	c.got = g.Constraint
	return c.engine.Generate(ctx, g, emit)
}

func TestConstraint(t *testing.T) {
	ask := func(text string) *inferencepb.Signed {
		_, signed, err := inference.NewRequest(network, testKey(2),
			&inferencepb.Question{Model: modelID[:], Prompt: "hello", Constraint: &inferencepb.Constraint{Kind: "gbnf", Text: text}},
			&inferencepb.Request{Choices: 1, MaxTokens: 3, Nonce: make([]byte, 16)})
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1}, Config{})
		defer b.close()
		if r := b.post(2, "/v1/infer", callBody(t, ask("good"))).refusal(t); r.Code != inference.CodeInvalid || !strings.Contains(r.Message, "cannot hold") {
			t.Errorf("an engine that cannot: %s: %s", r.Code, r.Message)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		e := &constrainer{engine: &engine{slots: 1}}
		b := newBench(t, e, Config{})
		defer b.close()
		if r := b.post(2, "/v1/infer", callBody(t, ask("bad"))).refusal(t); r.Code != inference.CodeInvalid || !strings.Contains(r.Message, "line 1") {
			t.Errorf("a bad constraint: %s: %s", r.Code, r.Message)
		}
		if n, _, finish, _ := b.post(2, "/v1/infer", callBody(t, ask("good"))).rest(t); n != 3 || e.got.GetText() != "good" {
			t.Errorf("%d tokens, %s, constraint %v", n, finish, e.got)
		}
	})
}
