package native

import (
	"context"
	"slices"

	"github.com/gonka-mesh/mesh/inference"
)

// isEnd reports whether the model ends an answer with this token.
func (e *Engine) isEnd(id int32) bool { return e.tokenizer.IsEnd(id) }

// Generate decodes one choice. The token that ends an answer is emitted too, as its
// last. Tokens are drawn with the tape key and their index in the output, so an
// answer continued from a prefix equals the undisturbed one. A slow emit holds up
// this answer and nothing else: it is computed no further than a few tokens ahead.
func (e *Engine) Generate(ctx context.Context, g inference.Generation, emit func(inference.Token) error) (inference.Finish, error) {
	s, err := e.newSequence(g)
	if err != nil {
		return inference.Finish{}, err
	}
	// The prefix may be the whole answer.
	if n := len(g.Prefix); n > 0 {
		if reason := s.finished(e.isEnd(g.Prefix[n-1])); reason != inference.FinishOpen {
			return inference.Finish{Reason: reason}, nil
		}
	}
	if err := e.submit(s); err != nil {
		return inference.Finish{}, err
	}
	defer e.leave(s)
	var spare []inference.Token
	for {
		select {
		case <-ctx.Done():
			return inference.Finish{Reason: inference.FinishCancelled}, nil
		case <-s.out.ready:
		}
		tokens, worked, reason, err := s.out.take(spare)
		spare = tokens
		if len(tokens) >= maxWaiting {
			e.stir() // nothing was computed meanwhile
		}
		if worked && g.Progress != nil {
			g.Progress()
		}
		for _, t := range tokens {
			if ctx.Err() != nil {
				return inference.Finish{Reason: inference.FinishCancelled}, nil
			}
			if err := emit(t); err != nil {
				return inference.Finish{Reason: inference.FinishCancelled}, err
			}
		}
		if reason != inference.FinishOpen {
			return inference.Finish{Reason: reason}, err
		}
	}
}

func (e *Engine) submit(s *sequence) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errClosed
	}
	s.group = e.groups[s.g.Group]
	if s.group == nil {
		s.group = &group{key: s.g.Group}
		e.groups[s.g.Group] = s.group
	}
	s.group.members++
	e.arrived++
	s.number, s.since = e.arrived, e.clock()
	e.queue = append(e.queue, s)
	e.stir()
	return nil
}

// leave takes a sequence out of the queue, or lets the scheduler take it out of the
// batch before its next step.
func (e *Engine) leave(s *sequence) {
	s.cancelled.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue = slices.DeleteFunc(e.queue, func(q *sequence) bool { return q == s })
	if s.group.members--; s.group.members == 0 && e.groups[s.group.key] == s.group {
		delete(e.groups, s.group.key)
	}
	e.stir()
}

func (e *Engine) stir() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}
