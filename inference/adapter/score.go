package adapter

import (
	"context"
	"fmt"

	"github.com/gonka-mesh/mesh/inference"
)

// scored is what a server computed at one position of a sequence.
type scored struct {
	logProb float32 // of the token that follows
	top     []inference.TopLogProb
}

// scorer is a driver whose server computes a sequence as a prompt.
type scorer interface {
	// score returns positions from on, one for each token but the last.
	score(ctx context.Context, ids []int32, from, top int) ([]scored, error)
}

// scoring is the engine of a server that can score.
type scoring struct {
	*engine
	scorer
}

var _ inference.Scorer = (*scoring)(nil)

// Score asks the server for the log-probabilities of tokens that exist already.
// Hidden states and logits it does not have.
func (e *scoring) Score(ctx context.Context, s inference.Scoring, emit func(inference.Position) error) error {
	if !e.enter() {
		return errClosed
	}
	defer e.jobs.Done()
	last := len(s.Tokens) - 1
	switch {
	case last < 0 || s.From < 0 || s.From > last:
		return fmt.Errorf("%w: score from position %d of %d", inference.ErrInvalid, s.From, len(s.Tokens))
	case len(s.Tokens) >= e.info.Context: // one more is decoded
		return &inference.TooLongError{Prompt: len(s.Tokens), MaxTokens: 1, Context: e.info.Context}
	}
	if err := e.check(s.Tokens); err != nil {
		return fmt.Errorf("%w: %w", inference.ErrInvalid, err)
	}
	var got []scored
	if s.LogProbs && s.From < last {
		fin, err := e.run(ctx, func(ctx context.Context, _ func()) (inference.FinishReason, error) {
			return retry(ctx, func() (inference.FinishReason, bool, error) {
				var err error
				got, err = e.score(ctx, s.Tokens, s.From, s.Top)
				return inference.FinishLength, true, err
			})
		})
		switch {
		case err != nil:
			return fmt.Errorf("score: %w", err)
		case fin.Reason == inference.FinishCancelled:
			return ctx.Err()
		case fin.Reason != inference.FinishLength:
			return errClosed
		}
	}
	for i := s.From; i <= last; i++ {
		p := inference.Position{Index: i}
		if i-s.From < len(got) {
			p.Next, p.Top = got[i-s.From].logProb, got[i-s.From].top
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := emit(p); err != nil {
			return err
		}
	}
	return nil
}

func (v *vllm) score(ctx context.Context, ids []int32, from, top int) ([]scored, error) {
	body := map[string]any{
		"model": v.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": min(top, vllmTop),
		"add_special_tokens": false, "return_token_ids": true,
	}
	var reply vllmReply
	if err := v.post(ctx, "/v1/completions", body, &reply); err != nil {
		return nil, err
	}
	if len(reply.Choices) != 1 || len(reply.Choices[0].Prompt) != len(ids) {
		return nil, fmt.Errorf("no log-probabilities for the %d tokens of the prompt", len(ids))
	}
	var out []scored
	for i := from + 1; i < len(ids); i++ {
		at := reply.Choices[0].Prompt[i]
		p, ok := at[fmt.Sprint(ids[i])]
		if !ok {
			return nil, fmt.Errorf("no log-probability for token %d of the prompt", i)
		}
		s := scored{logProb: float32(p.LogProb)}
		if top > 0 {
			for name, p := range at {
				id, err := namedToken("token_id:" + name)
				if err != nil {
					return nil, err
				}
				s.top = append(s.top, inference.TopLogProb{ID: id, LogProb: float32(p.LogProb)})
			}
			s.top = likeliest(s.top, top)
		}
		out = append(out, s)
	}
	return out, nil
}

func (g *sglang) score(ctx context.Context, ids []int32, from, top int) ([]scored, error) {
	body := map[string]any{
		"input_ids": ids, "sampling_params": map[string]any{"max_new_tokens": 1, "temperature": 0},
		"return_logprob": true, "logprob_start_len": from, "top_logprobs_num": top,
	}
	var reply sglangReply
	if err := g.post(ctx, "/generate", body, &reply); err != nil {
		return nil, err
	}
	got, alternatives := reply.Meta.Input, reply.Meta.InputTop
	if len(got) != len(ids)-from || top > 0 && len(alternatives) != len(got) {
		return nil, fmt.Errorf("%d log-probabilities for %d tokens of the prompt", len(got), len(ids)-from)
	}
	var out []scored
	for i := 1; i < len(got); i++ {
		if got[i].ID != ids[from+i] || got[i].LogProb == nil {
			return nil, fmt.Errorf("no log-probability for token %d of the prompt", from+i)
		}
		s := scored{logProb: got[i].value()}
		if top > 0 {
			s.top = alternatives[i].likeliest(top)
		}
		out = append(out, s)
	}
	return out, nil
}
