package native

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// How many positions of a sequence that is scored are computed while the running answers
// wait, and how many of them at most have their logits computed.
const (
	scoreChunk = 64
	busyChunk  = 16  // while answers are decoded
	freeChunk  = 256 // when nothing runs
)

// lendWait is how long what is scored waits for memory: an answer that has it may run for
// an hour, and no other begins meanwhile.
const lendWait = 5 * time.Second

var (
	_ inference.Scorer    = (*Engine)(nil)
	_ inference.Forwarder = (*Engine)(nil)
	_ inference.Embedder  = (*Engine)(nil)
)

// Score computes a sequence as a prompt is computed, in chunks that take turns with
// the running answers. It waits for memory for all its keys and values, and fails with
// ErrBusy where it gets none for long.
func (e *Engine) Score(ctx context.Context, s inference.Scoring, emit func(inference.Position) error) error {
	switch {
	case len(s.Tokens) == 0:
		return fmt.Errorf("%w: no tokens to score", inference.ErrInvalid)
	case len(s.Tokens) > e.context:
		return &inference.TooLongError{Prompt: len(s.Tokens), Context: e.context}
	case s.Top < 0 || s.Top > inference.MaxTopLogProbs:
		return fmt.Errorf("%w: %d alternatives, at most %d are allowed", inference.ErrInvalid, s.Top, inference.MaxTopLogProbs)
	}
	inputs := make([]input, len(s.Tokens))
	for i, id := range s.Tokens {
		if id < 0 || int(id) >= e.net.Vocab {
			return fmt.Errorf("%w: token %d at position %d, the vocabulary has %d", inference.ErrInvalid, id, i, e.net.Vocab)
		}
		wanted := s.Logits != nil && s.Logits(i) || s.LogProbs || s.Top > 0
		inputs[i] = input{token: id, position: i, logits: wanted && i >= s.From}
	}
	sampler := new(kernel.Sampler)
	return e.pass(ctx, [][]input{inputs}, func(_, at, i, k int) error {
		g := e.graph
		p := inference.Position{Index: at, Hidden: g.leaves[i], State: g.states[i*g.net.Width:][:g.net.Width]}
		if at < s.From {
			return nil
		}
		if g.inputs[i].logits {
			p.Logits = g.logits[k*g.net.Vocab:][:g.net.Vocab]
		}
		if s.LogProbs || s.Top > 0 {
			next := int32(0)
			if at+1 < len(s.Tokens) {
				next = s.Tokens[at+1]
			}
			top, value, err := sampler.LogProbs(nil, p.Logits, s.Top, next)
			if err != nil {
				return fmt.Errorf("score position %d: %w", at, err)
			}
			if at+1 < len(s.Tokens) {
				p.Next = value
			}
			for _, t := range top {
				p.Top = append(p.Top, inference.TopLogProb{ID: t.Token, LogProb: t.Value})
			}
		}
		return emit(p)
	})
}

// Forward computes sequences of embeddings, all of a batch in the same steps.
func (e *Engine) Forward(ctx context.Context, batch [][]float32) ([][]float32, error) {
	w := e.net.Width
	sequences, out := make([][]input, len(batch)), make([][]float32, len(batch))
	for b, x := range batch {
		switch n := len(x) / w; {
		case n == 0 || len(x)%w != 0:
			return nil, fmt.Errorf("%w: %d values are no sequence of embeddings of %d", inference.ErrInvalid, len(x), w)
		case n > e.context:
			return nil, &inference.TooLongError{Prompt: n, Context: e.context}
		case !kernel.Finite(x):
			return nil, fmt.Errorf("%w: an embedding is not finite", inference.ErrInvalid)
		}
		out[b] = make([]float32, len(x))
		for i := 0; i < len(x); i += w {
			sequences[b] = append(sequences[b], input{embedded: x[i : i+w], position: i / w})
		}
	}
	err := e.pass(ctx, sequences, func(b, at, i, _ int) error {
		copy(out[b][at*w:(at+1)*w], e.graph.states[i*w:])
		return nil
	})
	return out, err
}

// Embed returns the mean of the final hidden states, in float64 by ascending position,
// scaled to length 1.
func (e *Engine) Embed(ctx context.Context, tokens []int32, progress func()) (inference.Embedding, error) {
	sum := make([]float64, e.net.Width)
	var leaves merkle.Builder
	err := e.Score(ctx, inference.Scoring{Tokens: tokens}, func(p inference.Position) error {
		for i, x := range p.State {
			sum[i] += float64(x)
		}
		leaves.Append(p.Hidden)
		if progress != nil {
			progress()
		}
		return nil
	})
	if errors.Is(err, kernel.ErrNumeric) {
		err = fmt.Errorf("%w: %w", inference.ErrNumeric, err)
	}
	if err != nil {
		return inference.Embedding{}, err
	}
	square := 0.0
	for _, x := range sum {
		square += float64(x * x)
	}
	out, norm := inference.Embedding{Vector: make([]float32, len(sum))}, math.Sqrt(square)
	for i, x := range sum {
		if norm > 0 {
			out.Vector[i] = float32(x / norm)
		}
	}
	out.Hidden, out.Positions = leaves.Root(), len(tokens)
	return out, nil
}

// pass computes sequences in chunks and calls done for every input of a chunk that was
// computed: position at of sequence b is input i of the graph, and its logits, if they
// were wanted, stand at index k.
//
// One pass runs at a time: it takes no more memory than one context does, and no more
// turns than one payer's answers.
func (e *Engine) pass(ctx context.Context, sequences [][]input, done func(b, at, i, k int) error) error {
	select {
	case e.passing <- struct{}{}:
		defer func() { <-e.passing }()
	case <-ctx.Done():
		return ctx.Err()
	case <-e.done:
		return errClosed
	}
	pages := 0
	for _, s := range sequences {
		pages += pagesFor(len(s))
	}
	if err := e.borrow(ctx, pages); err != nil {
		return err
	}
	defer e.settle(pages)
	for _, s := range sequences {
		cache := make([]*kernel.Cache, e.net.Layers)
		for i := range cache {
			var err error
			if cache[i], err = kernel.NewCache(e.format, e.net.KVHeads, e.net.HeadDim); err != nil {
				return err
			}
		}
		for i := range s {
			s[i].cache = cache
		}
	}
	for b, at := 0, 0; b < len(sequences); {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		if b, at, err = e.chunkOf(sequences, b, at, done); err != nil {
			return err
		}
	}
	return nil
}

// borrow takes memory for keys and values that the scheduler does not keep. While it
// waits, answers that run go on and no others begin, or those would take what they leave.
func (e *Engine) borrow(ctx context.Context, pages int) error {
	if pages > e.memory.limit {
		return fmt.Errorf("%w: %d pages of keys and values, the memory holds %d", inference.ErrInvalid, pages, e.memory.limit)
	}
	late := time.NewTimer(e.lendWait)
	defer late.Stop()
	for {
		if e.lend(pages) {
			return nil
		}
		var err error
		select {
		case <-e.freed:
			continue
		case <-late.C:
			err = fmt.Errorf("%w: memory for %d pages of keys and values did not come free within %s", inference.ErrBusy, pages, e.lendWait)
			e.mu.Lock()
			if e.memory.owed > 0 { // else it held up nobody, and the next one may
				e.noDebt = e.clock().Add(e.lendWait)
			}
			e.mu.Unlock()
		case <-ctx.Done():
			err = ctx.Err()
		case <-e.done:
			err = errClosed
		}
		e.settle(0)
		return err
	}
}

func (e *Engine) lend(pages int) bool {
	e.compute.Lock()
	defer e.compute.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	ok := e.memory.lend(pages)
	if e.clock().Before(e.noDebt) {
		e.memory.owed = 0
	}
	e.pages = e.memory.load()
	e.stir()
	return ok
}

// settle gives back what was borrowed, or no longer waits for it.
func (e *Engine) settle(pages int) {
	e.compute.Lock()
	defer e.compute.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.memory.lent -= pages
	e.memory.owed = 0
	e.pages = e.memory.load()
	e.stir()
}

// chunkOf computes a chunk from input at of sequence b on, and returns where the next
// one begins.
func (e *Engine) chunkOf(sequences [][]input, b, at int, done func(b, at, i, k int) error) (int, int, error) {
	e.compute.Lock()
	defer e.compute.Unlock()
	e.mu.Lock()
	closed, size := e.closed, freeChunk
	if e.active > 0 {
		size = busyChunk
	}
	e.mu.Unlock()
	if closed {
		return 0, 0, errClosed
	}
	if e.chunk > 0 {
		size = e.chunk
	}
	g := e.graph
	g.inputs = g.inputs[:0]
	first, logits := [2]int{b, at}, 0
	for b < len(sequences) && len(g.inputs) < size && logits < scoreChunk {
		in := sequences[b][at]
		g.inputs = append(g.inputs, in)
		if in.logits {
			logits++
		}
		if at++; at == len(sequences[b]) {
			b, at = b+1, 0
		}
	}
	g.step()
	k := 0
	for i, p := 0, first; i < len(g.inputs); i++ {
		if g.bad[i] {
			return 0, 0, fmt.Errorf("position %d: %w", p[1], kernel.ErrNumeric)
		}
		if err := done(p[0], p[1], i, k); err != nil {
			return 0, 0, err
		}
		if g.inputs[i].logits {
			k++
		}
		if p[1]++; p[1] == len(sequences[p[0]]) {
			p = [2]int{p[0] + 1, 0}
		}
	}
	return b, at, nil
}
