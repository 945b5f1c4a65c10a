package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/node/api"
)

// Message is one turn of a conversation.
type Message struct {
	Role    string // system, user or assistant
	Content string
}

// Chat is a question. The zero value of a field is its default.
type Chat struct {
	Model       string // name or ID; empty: the network's own small model
	Messages    []Message
	MaxTokens   int // 0: as many as fit
	Temperature float32
	Seed        *uint64 // nil: one is drawn
	Stop        []string
	PriceCap    mesh.Amount // of the whole answer; 0: none
	TokenCap    mesh.Amount // of a token, of prompt or answer; 0: 5 times the median of what hosts advertise
}

// Answer is what came back.
type Answer struct {
	Text    string
	Finish  string       // stop, length, …
	Request mesh.Hash    // under which its receipts stand
	Host    mesh.Address // that spoke first; others may have gone on where it was lost
	Model   mesh.ModelID

	PromptTokens, OutputTokens int
	Price                      mesh.Amount
}

// Chat asks a question. emit, if it is set, gets the text as it comes; an error of it
// ends the answer. Answers that break off are continued by other hosts, and what the
// hosts sign is checked and kept as the client's receipts.
func (c *Client) Chat(ctx context.Context, q Chat, emit func(text string) error) (Answer, error) {
	ask := inference.Ask{Model: q.Model, MaxTokens: q.MaxTokens, Seed: q.Seed, Stop: q.Stop, PriceCap: q.PriceCap, TokenCap: q.TokenCap,
		Sampling: &inferencepb.Sampling{Temperature: q.Temperature}}
	if len(q.Messages) == 0 {
		return Answer{}, errors.New("client: nothing is asked")
	}
	for _, m := range q.Messages {
		ask.Messages = append(ask.Messages, &inferencepb.Message{Role: m.Role, Content: m.Content})
	}
	var a Answer
	var text strings.Builder
	err := c.node.Ask(ctx, ask, func(e inference.Event) error {
		if a.Request.IsZero() {
			a.Request, a.Host, a.Model = e.Request, e.Host, e.Model.ID
		}
		text.WriteString(e.Text)
		if e.Finish != "" {
			a.Finish, a.PromptTokens, a.OutputTokens, a.Price = string(e.Finish), e.Usage.PromptTokens, e.Usage.OutputTokens, e.Usage.Price
		}
		if emit == nil || e.Text == "" {
			return nil
		}
		return emit(e.Text)
	})
	a.Text = text.String()
	if err != nil {
		return a, fmt.Errorf("client: %w", err)
	}
	return a, nil
}

// Segment is what is known of one receipt of an answer: of one host's part.
type Segment = api.SegmentCheck

// Verification is what is known of the receipts of an answer.
type Verification = api.Verification

// States of a receipt; see Segment.State.
const (
	Invalid    = api.ReceiptInvalid    // form, signature or chain is wrong
	Free       = api.ReceiptFree       // nothing to settle
	Pending    = api.ReceiptPending    // not settled yet
	Settled    = api.ReceiptSettled    // proven to be in its host's settlement, with its price
	Unsettled  = api.ReceiptUnsettled  // its epoch closed without a settlement of its host
	Absent     = api.ReceiptAbsent     // not in its host's settlement
	WrongPrice = api.ReceiptWrongPrice // the settlement has another price for it
	Unproven   = api.ReceiptUnproven   // its host gives no proof now
	Pruned     = api.ReceiptPruned     // the ledger does not keep its epoch any more
	Unknown    = api.ReceiptUnknown    // the ledger cannot be read
)

// VerifyReceipt checks the receipts of an answer: what their hosts signed, that each
// goes on where one before it ends, and, once they are settled, that each is in its
// host's settlement with its price. The host gives the proof, and the settlement is
// proven against headers that this client verified.
func (c *Client) VerifyReceipt(ctx context.Context, request mesh.Hash) (Verification, error) {
	v, err := c.node.VerifyReceipt(ctx, request)
	if err != nil {
		return v, fmt.Errorf("client: %w", err)
	}
	return v, nil
}
