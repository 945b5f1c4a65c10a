package native

import (
	"fmt"
	"slices"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/kernel"
)

// Logits returns the logits after each of the tokens, computed as a prompt is, in
// chunks that take turns with the running answers. Its keys and values do not count
// towards the engine's memory.
func (e *Engine) Logits(tokens []int32) ([][]float32, error) {
	if len(tokens) > e.context {
		return nil, &inference.TooLongError{Prompt: len(tokens), Context: e.context}
	}
	cache := make([]*kernel.Cache, e.net.Layers)
	for i := range cache {
		var err error
		if cache[i], err = kernel.NewCache(e.format, e.net.KVHeads, e.net.HeadDim); err != nil {
			return nil, err
		}
	}
	out := make([][]float32, 0, len(tokens))
	for len(out) < len(tokens) {
		n := min(defaultIf(e.chunk, minChunk*4), len(tokens)-len(out))
		part, err := e.logitsOf(cache, tokens[len(out):][:n], len(out))
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
	}
	return out, nil
}

func (e *Engine) logitsOf(cache []*kernel.Cache, tokens []int32, at int) ([][]float32, error) {
	e.compute.Lock()
	defer e.compute.Unlock()
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	g := e.graph
	g.inputs = g.inputs[:0]
	for i, id := range tokens {
		if id < 0 || int(id) >= e.net.Vocab {
			return nil, fmt.Errorf("%w: token %d, the vocabulary has %d", inference.ErrInvalid, id, e.net.Vocab)
		}
		g.inputs = append(g.inputs, input{token: id, position: at + i, cache: cache, logits: true})
	}
	g.step()
	out := make([][]float32, len(tokens))
	for i := range out {
		if g.bad[i] {
			return nil, fmt.Errorf("position %d: %w", at+i, kernel.ErrNumeric)
		}
		out[i] = slices.Clone(g.logits[i*e.net.Vocab : (i+1)*e.net.Vocab])
	}
	return out, nil
}
