package host

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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

// TestConstraintFlood: however many constraints come, one is compiled at a time, who
// sends many waits for itself, and who waits too long is told in time for its router.
func TestConstraintFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &slowConstrainer{engine: &engine{slots: 64}, takes: 200 * time.Millisecond}
		b := newBench(t, e, Config{})
		defer b.close()
		ask := func(peer, n byte) *inferencepb.Signed {
			_, signed, err := inference.NewRequest(network, testKey(peer),
				&inferencepb.Question{Model: modelID[:], Prompt: "hello", Constraint: &inferencepb.Constraint{Kind: "gbnf", Text: fmt.Sprint(n)}},
				&inferencepb.Request{Choices: 1, MaxTokens: 3, Nonce: append(make([]byte, 15), n)})
			if err != nil {
				t.Fatal(err)
			}
			return signed
		}
		const flood = 20
		var all sync.WaitGroup
		var served, busy atomic.Int32
		post := func(peer, n byte) {
			s := b.post(peer, "/v1/infer", callBody(t, ask(peer, n)))
			if s.resp.StatusCode == http.StatusOK {
				s.rest(t)
				served.Add(1)
				return
			}
			if r := s.refusal(t); r.Code != inference.CodeBusy || r.WaitMs == 0 {
				t.Errorf("refused: %s: %s", r.Code, r.Message)
			}
			busy.Add(1)
		}
		for i := range flood {
			all.Go(func() { post(2, byte(i)) })
		}
		time.Sleep(10 * time.Millisecond)
		start := time.Now()
		b.post(3, "/v1/infer", callBody(t, ask(3, 99))).rest(t)
		if took := time.Since(start); took > 600*time.Millisecond {
			t.Errorf("beside a flood of another peer a constraint took %s", took)
		}
		all.Wait()
		if took := time.Since(start); took > time.Second {
			t.Errorf("who floods was told after %s", took)
		}
		if e.most.Load() != 1 || served.Load() == 0 || busy.Load() < flood/2 {
			t.Errorf("%d at once; of %d constraints %d were taken, %d refused", e.most.Load(), flood, served.Load(), busy.Load())
		}
	})
}

// slowConstrainer takes its time.
type slowConstrainer struct {
	*engine
	takes     time.Duration
	now, most atomic.Int32
}

func (c *slowConstrainer) Constrain(*inferencepb.Constraint) error {
	c.most.Store(max(c.most.Load(), c.now.Add(1)))
	defer c.now.Add(-1)
	time.Sleep(c.takes)
	return nil
}
