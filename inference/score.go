package inference

import (
	"context"

	"github.com/gonka-mesh/mesh"
)

// Scorer is an engine that computes tokens that exist already as one sequence, at the
// cost of a prompt: what a check of an answer needs. Engines have it or not; callers
// ask by type assertion.
type Scorer interface {
	// Score computes s.Tokens and calls emit with each position from s.From on,
	// ascending, from one goroutine. It returns when all were emitted, ctx is done
	// (its error) or emit fails (that error).
	Score(ctx context.Context, s Scoring, emit func(Position) error) error
}

// Scoring is a sequence to score, and what is wanted of it.
type Scoring struct {
	Tokens   []int32                 // prompt and output, at least one
	From     int                     // the first position that is emitted
	Logits   func(position int) bool // positions whose logits are wanted; nil: none
	LogProbs bool                    // Next and Top are wanted
	Top      int                     // likeliest tokens at each position, 0 to 20
}

// Position is what an engine computed at one position. What it cannot give, or was not
// asked for, is zero.
type Position struct {
	Index  int
	Next   float32 // log-probability of the token that follows; 0 after the last
	Top    []TopLogProb
	Hidden mesh.Hash // H(bits of the final hidden state); exact class
	State  []float32 // the final hidden state, valid until emit returns
	Logits []float32 // [vocab], valid until emit returns
}

// Forwarder is an engine that runs input embeddings, in the place of tokens, to final
// hidden states: what a proof of compute needs. Nothing but tests calls it yet: checks of
// hosts by others are to come.
type Forwarder interface {
	// Forward computes each sequence [length][width] of a batch and returns its final
	// hidden states, after the last norm, in the same shape.
	Forward(ctx context.Context, batch [][]float32) ([][]float32, error)
}

// Embedder is an engine that turns a text into one vector of unit length.
type Embedder interface {
	// Embed returns the mean of the final hidden states over the tokens, [width],
	// scaled to length 1. It fails with ErrNumeric where a value leaves the numeric
	// contract. It calls progress, if set, as the work goes on.
	Embed(ctx context.Context, tokens []int32, progress func()) (Embedding, error)
}
