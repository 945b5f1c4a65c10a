package native

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/grammar"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// sequence is one answer in the making. The scheduler owns all but out and
// cancelled.
type sequence struct {
	g        inference.Generation
	sampling kernel.Sampling
	tally    tally
	matcher  *grammar.Matcher // nil: no constraint
	tokens   []int32          // prompt, prefix, output
	prompt   int              // of tokens
	end      int              // length of tokens at which the answer is as long as it may be
	computed int              // positions in store
	store    *store           // nil: not in the batch
	turn     int              // the last step that computed some of it
	place    int              // when that was, among all pieces of steps
	leaves   merkle.Builder

	group  *group
	number int       // in order of arrival
	since  time.Time // of its arrival

	out       *outbox
	cancelled atomic.Bool
}

func (e *Engine) newSequence(g inference.Generation) (*sequence, error) {
	switch {
	case len(g.Prompt) == 0:
		return nil, fmt.Errorf("%w: the prompt has no tokens", inference.ErrInvalid)
	case len(g.Prompt) >= e.context:
		return nil, &inference.TooLongError{Prompt: len(g.Prompt), MaxTokens: g.MaxTokens, Context: e.context}
	case g.MaxTokens < 1:
		return nil, fmt.Errorf("%w: max tokens is %d", inference.ErrInvalid, g.MaxTokens)
	case g.Top < 0 || g.Top > inference.MaxTopLogProbs:
		return nil, fmt.Errorf("%w: %d alternatives, at most %d are allowed", inference.ErrInvalid, g.Top, inference.MaxTopLogProbs)
	}
	s := &sequence{g: g, sampling: samplingOf(g.Sampling), prompt: len(g.Prompt), out: newOutbox()}
	if err := s.sampling.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", inference.ErrInvalid, err)
	}
	// In two steps, for MaxTokens may be near the largest int.
	s.end = s.prompt + min(g.MaxTokens, e.context-s.prompt)
	if len(g.Prefix) > s.end-s.prompt {
		return nil, fmt.Errorf("%w: %d tokens exist already, at most %d were asked for", inference.ErrInvalid, len(g.Prefix), s.end-s.prompt)
	}
	s.tokens = make([]int32, 0, min(s.end, s.prompt+len(g.Prefix)+4096))
	s.tokens = append(append(s.tokens, g.Prompt...), g.Prefix...)
	for i, id := range s.tokens {
		if id < 0 || int(id) >= e.net.Vocab {
			return nil, fmt.Errorf("%w: token %d at position %d, the vocabulary has %d", inference.ErrInvalid, id, i, e.net.Vocab)
		}
	}
	if g.Constraint != nil {
		var err error
		if s.matcher, err = e.matcher(g); err != nil {
			return nil, err
		}
	}
	if p := &s.sampling; p.Frequency != 0 || p.Presence != 0 || p.Repetition != 0 && p.Repetition != 1 {
		s.tally.at = map[int32]int{}
		for i, id := range s.tokens {
			s.tally.add(id, i >= s.prompt)
		}
	}
	return s, nil
}

// commit adds the positions of the store that were computed for others to what the
// answer's receipt commits to.
func (s *sequence) commit() {
	for pos := int(s.leaves.Len()); pos < s.computed; pos++ {
		s.leaves.Append(s.store.blocks[pos/pagePositions].leaves[pos%pagePositions])
	}
}

// outputs is the number of output tokens so far, the prefix included.
func (s *sequence) outputs() int { return len(s.tokens) - s.prompt }

// finished says how the answer ends when id is its last token.
func (s *sequence) finished(isEnd bool) inference.FinishReason {
	switch {
	case isEnd && !s.g.IgnoreEOS:
		return inference.FinishEOS
	case len(s.tokens) >= s.end:
		return inference.FinishLength
	}
	return inference.FinishOpen
}

// samplingOf brings the parameters of a request into the kernel's form.
func samplingOf(p *inferencepb.Sampling) kernel.Sampling {
	out := kernel.Sampling{
		Temperature: p.GetTemperature(), TopK: int(p.GetTopK()), TopP: p.GetTopP(), MinP: p.GetMinP(),
		Frequency: p.GetFrequencyPenalty(), Presence: p.GetPresencePenalty(), Repetition: p.GetRepetitionPenalty(),
	}
	for _, b := range p.GetLogitBias() {
		if b.GetToken() < 1<<31 {
			out.Bias = append(out.Bias, kernel.Bias{Token: int32(b.GetToken()), Value: b.GetBias()})
		}
	}
	return out
}

// tally counts tokens for the penalties: the repetition penalty looks at prompt and
// output, frequency and presence at the output, the prefix included. The zero tally
// counts nothing.
type tally struct {
	counts []kernel.Count
	at     map[int32]int // index in counts
}

func (t *tally) add(id int32, output bool) {
	if t.at == nil {
		return
	}
	i, ok := t.at[id]
	if !ok {
		i = len(t.counts)
		t.at[id] = i
		t.counts = append(t.counts, kernel.Count{Token: id})
	}
	if output {
		t.counts[i].Output++
	} else {
		t.counts[i].Prompt++
	}
}
