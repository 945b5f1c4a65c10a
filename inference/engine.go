// Package inference holds the rules of serving: requests, the sampling tape, the
// signed chain of tokens, receipts, prices and fingerprints, and the Engine
// interface that turns token ids into token ids. It is pure: no clock, network or
// file. Bytes that are signed or hashed are kept as received.
package inference

import (
	"context"
	"errors"
	"fmt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// Engine computes answers with one model. Its methods are safe for concurrent use.
type Engine interface {
	// Info describes the model and how it is computed.
	Info() ModelInfo
	// Encode returns the prompt of a question as token ids, the chat template
	// applied. Text of users never becomes a special token.
	Encode(q *inferencepb.Question) ([]int32, error)
	// Text returns a fresh detokenizer for one answer.
	Text() Detokenizer
	// Generate decodes one choice and calls emit with each new token in order,
	// from one goroutine. It returns when the answer ends, ctx is done (finish
	// FinishCancelled, no error) or emit fails (that error).
	Generate(ctx context.Context, g Generation, emit func(Token) error) (Finish, error)
	// Load reports how busy the engine is.
	Load() Load
	// Close frees the model after the running answers were ended.
	Close() error
}

// Constrainer is an Engine that can hold answers to a form.
type Constrainer interface {
	// Constrain returns ErrInvalid, and what is wrong, if it cannot follow c.
	Constrain(c *inferencepb.Constraint) error
}

// Detokenizer turns an answer's tokens into text. What Add returns for token i is a
// pure function of the tokens up to i, so any host continues any other's text.
// Incomplete UTF-8 is held back until it is whole; Flush returns what is left.
type Detokenizer interface {
	Add(token int32) string
	Flush() string
}

// ModelInfo describes a model that an engine serves.
type ModelInfo struct {
	ID          mesh.ModelID
	Name        string
	Context     int // tokens of one answer, prompt and output together, that the memory holds
	Vocab       int
	Slots       int // requests decoded at once
	Bytes       int64
	Fingerprint *inferencepb.Fingerprint
	// ModelContext is the model's own context, which bounds an answer on any host;
	// 0 where it is Context.
	ModelContext int
	Embed        int // width of the vectors that an Embedder makes of texts; 0: it makes none
}

// Load is how busy an engine is.
type Load struct {
	Active int // requests in the batch
	Queued int // requests waiting for a slot

	// Of an engine that says so: pages of keys and values in use, kept for requests
	// to come, and how many there may be; prompt tokens so far, and how many of them
	// were not computed because they were kept.
	PagesUsed, PagesCached, PagesLimit int
	PromptTokens, CachedTokens         uint64
}

// Generation is one choice to decode.
type Generation struct {
	Prompt    []int32 // token ids, at least one
	Prefix    []int32 // output that exists already: it is computed, not drawn
	Sampling  *inferencepb.Sampling
	Tape      mesh.Hash // key of the sampling tape, see TapeKey
	MaxTokens int       // of output, the prefix included
	LogProbs  bool
	Top       int  // alternatives with log-probabilities per token, 0 to 20
	IgnoreEOS bool // go on to MaxTokens
	// Constraint is a form that the answer has to have; only for a Constrainer.
	Constraint *inferencepb.Constraint
	Progress   func() // called, if set, after each step of work on this request before its next token

	// Group is for whom it is computed: the payer. Groups share an engine in fair parts,
	// and only within a group is what was computed for one request used for the next.
	Group mesh.Address
	// Fee is the bid for being computed before others, in ngonka. Twice the fee is worth
	// as much as some seconds of waiting, and a group that bids more has a larger part.
	Fee mesh.Amount
}

// Token is one token of an answer. Log-probabilities are natural logarithms of the
// model's own distribution, before temperature, penalties and filters.
type Token struct {
	ID      int32
	LogProb float32
	Top     []TopLogProb
	// Hidden is the Merkle root over H(final hidden state bits) of all positions
	// computed so far, and Positions their number; exact class only.
	Hidden    mesh.Hash
	Positions int
}

// TopLogProb is one of the likeliest tokens at a position.
type TopLogProb struct {
	ID      int32
	LogProb float32
}

// Finish says how a choice ended.
type Finish struct {
	Reason FinishReason
}

// FinishReason is why an answer ended.
type FinishReason string

// The finish reasons of a receipt. FinishOpen stands while the answer goes on.
const (
	FinishOpen      FinishReason = ""
	FinishEOS       FinishReason = "eos"       // the model ended it
	FinishStop      FinishReason = "stop"      // a stop string of the request
	FinishLength    FinishReason = "length"    // max tokens or context
	FinishCancelled FinishReason = "cancelled" // the payer
	FinishAborted   FinishReason = "aborted"   // the host
	FinishNumeric   FinishReason = "numeric"   // a value left the numeric contract, or the constraint cannot be followed
)

// Valid reports whether r is one of the finish reasons.
func (r FinishReason) Valid() bool {
	switch r {
	case FinishOpen, FinishEOS, FinishStop, FinishLength, FinishCancelled, FinishAborted, FinishNumeric:
		return true
	}
	return false
}

// Class is how strongly an answer can be checked.
type Class string

// The classes, strongest first.
const (
	ClassExact     Class = "exact"     // equal bits on any machine
	ClassPinned    Class = "pinned"    // equal bits within one fingerprint
	ClassTolerance Class = "tolerance" // within calibrated thresholds
)

// ClassOf returns the class that follows from a fingerprint.
func ClassOf(f *inferencepb.Fingerprint) Class {
	switch {
	case f.GetContract() != "":
		return ClassExact
	case f.GetGpu() != "" && f.GetEngineVersion() != "" && f.GetKv() != "":
		return ClassPinned
	}
	return ClassTolerance
}

// Errors that callers branch on. Wrapped ones carry what was asked.
var (
	ErrUnknownModel = errors.New("unknown model")          // nobody reachable has it
	ErrNoHost       = errors.New("no host can answer now") // all gone
	ErrUnpaid       = errors.New("no escrow pays for it")  // and hosts want money
	ErrTooDear      = errors.New("no host at or below the price cap")
	ErrInvalid      = errors.New("invalid request") // the caller's fault
	ErrBusy         = errors.New("busy")            // the queue is full, of this host or of all
	ErrHeld         = errors.New("it waits in memory until the disk takes it")
	ErrNumeric      = errors.New("outside the contract") // a value left the numeric contract
)

// TooLongError says that prompt and output do not fit the model's context.
type TooLongError struct {
	Prompt, MaxTokens, Context int // tokens
}

func (e *TooLongError) Error() string {
	if e.Prompt > e.Context { // nobody counts on
		return fmt.Sprintf("this model's context is %d tokens; the text has %d or more", e.Context, e.Prompt)
	}
	return fmt.Sprintf("this model's context is %d tokens; the prompt has %d and up to %d were asked for",
		e.Context, e.Prompt, e.MaxTokens)
}

// Is makes a TooLongError an invalid request.
func (e *TooLongError) Is(target error) bool { return target == ErrInvalid }
