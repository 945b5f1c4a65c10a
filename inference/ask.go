package inference

import (
	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// Ask is what a client wants, before a router binds it to a model, a seed and a
// payer. Exactly one of Messages, Prompt and PromptTokens is set.
type Ask struct {
	Model        string // name or model ID; empty: the node's default
	Messages     []*inferencepb.Message
	Prompt       string
	PromptTokens []uint32
	Tools        string                  // JSON array
	ToolChoice   string                  // JSON value
	TemplateArgs string                  // JSON object of scalars
	Constraint   *inferencepb.Constraint // nil: none
	Sampling     *inferencepb.Sampling
	Seed         *uint64 // nil: the router draws one
	Choices      int     // 0 is 1
	MaxTokens    int     // 0: as many as fit
	Stop         []string
	LogProbs     bool
	TopLogProbs  int
	IgnoreEOS    bool
	PriceCap     mesh.Amount // of all that is answered; 0: none
	TokenCap     mesh.Amount // of a token, of prompt or answer; 0: the router's
	Embed        bool        // a vector is wanted, of Prompt or PromptTokens, which alone then stand beside Model
	Width        int         // of the vector; 0: the model's
}

// Event is a step of an answer. Events of one choice come in order; those of
// several choices are interleaved. Event fields stay valid after the callback.
type Event struct {
	Request mesh.Hash    // the request's ID, under which its receipts stand
	Model   ModelInfo    // what answers
	Host    mesh.Address // who computed this step
	Choice  int
	Tokens  []TokenText
	Text    string       // text released by these tokens, stop strings removed
	Vector  []float32    // of an Ask with Embed: all of the answer
	Finish  FinishReason // set in the last event of a choice
	Usage   Usage        // set in the last event of a choice
}

// TokenText is a token with its bytes, for clients that show log-probabilities.
type TokenText struct {
	ID      int32
	Bytes   []byte
	LogProb float32
	Top     []TopText
}

// TopText is one of the likeliest tokens at a position.
type TopText struct {
	ID      int32
	Bytes   []byte
	LogProb float32
}

// Usage counts the tokens of one choice and what they cost.
type Usage struct {
	PromptTokens int
	OutputTokens int
	Price        mesh.Amount
	Segments     int // hosts that took part, one after the other
}
