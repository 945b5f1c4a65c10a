package router

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/p2p"
)

// question is an Ask that is bound to model, seed and payer.
type question struct {
	r       *Router
	model   mesh.ModelID
	req     *inference.Request
	signed  *inferencepb.Signed
	ask     *inferencepb.OfferAsk
	width   int         // of the vector that is wanted; 0: the model's
	cap     mesh.Amount // of a token; 0: a few times what is usual
	started time.Time
	most    func() int    // prompt tokens in any model
	count   atomic.Int64  // prompt tokens, as this node counts them itself; 0: it does not
	counted chan struct{} // closed once it has, or cannot; nil: it does not

	emit func(inference.Event) error
	turn chan struct{} // of one place, taken while emit runs

	mu    sync.Mutex
	extra []Candidate // found by a task; guarded by mu
}

// Ask answers a question. It calls emit with each step of each choice, never twice at
// the same time, and returns when all choices have ended and their receipts are kept.
// When ctx ends or emit fails, the hosts get the payer's signed Cancel.
func (r *Router) Ask(ctx context.Context, a inference.Ask, emit func(inference.Event) error) error {
	started := time.Now()
	model, offers, err := r.resolve(ctx, &a)
	if err != nil {
		return err
	}
	q := &question{r: r, model: model, width: a.Width, cap: lower(a.TokenCap, r.cfg.TokenCap), emit: emit, turn: make(chan struct{}, 1), started: started}
	for _, o := range offers {
		q.extra = append(q.extra, Candidate{Peer: o.peer, Capability: o.offer.GetCapability()})
	}
	if q.req, q.signed, err = r.bind(&a, model); err != nil {
		return err
	}
	q.most = sync.OnceValue(func() int { return inference.MostPrompt(q.req.Question) })
	q.ask = &inferencepb.OfferAsk{
		Model: model[:], PromptTokens: uint32(estimate(&a)),
		MaxTokens: q.req.Pb.GetMaxTokens(), Choices: q.req.Pb.GetChoices(),
		Escrow: q.req.Pb.GetEscrow(), Epoch: q.req.Pb.GetEpoch(),
	}
	q.countPrompt()
	group, ctx := errgroup.WithContext(ctx)
	for i := range q.req.Pb.GetChoices() {
		group.Go(func() error {
			c := newChoice(q, i)
			defer c.keeping.Wait()
			err := c.run(ctx)
			r.meter.choices.WithLabelValues(ending(err)).Inc()
			return err
		})
	}
	return group.Wait()
}

// countWait is how long a final receipt waits for this node's own count.
const countWait = time.Second

// countPrompt counts the tokens of the prompt, where this node can. Only a final receipt
// waits for it: hosts do the same before they say anything.
func (q *question) countPrompt() {
	if ids := q.req.Question.GetPromptTokens(); len(ids) > 0 {
		q.count.Store(int64(len(ids)))
		return
	}
	if q.r.cfg.Count == nil {
		return
	}
	counted := make(chan struct{})
	if q.r.background(func() {
		defer close(counted)
		q.count.Store(int64(q.r.cfg.Count(q.model, q.req.Question)))
	}) {
		q.counted = counted
	}
}

// ownCount returns what this node counts itself, 0 where it does not, or not yet. wait:
// what is checked against it is about to be paid for.
func (q *question) ownCount(wait bool) int {
	if wait && q.counted != nil {
		select {
		case <-q.counted:
		case <-time.After(countWait):
		case <-q.r.ctx.Done():
		}
	}
	return int(q.count.Load())
}

func ending(err error) string {
	switch {
	case err == nil:
		return "complete"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "cancelled"
	case errors.Is(err, inference.ErrInvalid):
		return "invalid"
	case errors.Is(err, inference.ErrUnpaid):
		return "unpaid"
	case errors.Is(err, inference.ErrTooDear):
		return "too_dear"
	case errors.Is(err, inference.ErrBusy):
		return "busy"
	case errors.Is(err, inference.ErrNoHost):
		return "no_host"
	}
	return "failed"
}

// bind makes and signs the request of an Ask.
func (r *Router) bind(a *inference.Ask, model mesh.ModelID) (*inference.Request, *inferencepb.Signed, error) {
	var random [24]byte
	rand.Read(random[:])
	question := &inferencepb.Question{
		Model: model[:], Messages: a.Messages, Prompt: a.Prompt, PromptTokens: a.PromptTokens,
		Tools: a.Tools, ToolChoice: a.ToolChoice, TemplateArgs: a.TemplateArgs, Constraint: a.Constraint, Sampling: normal(a.Sampling),
		Seed: binary.BigEndian.Uint64(random[16:]),
	}
	if a.Embed { // nothing is drawn for it
		question.Embed, question.Seed = true, 0
	}
	if a.Seed != nil {
		question.Seed = *a.Seed
	}
	switch {
	case a.Choices < 0 || a.Choices > inference.MaxChoices:
		return nil, nil, fmt.Errorf("%w: n is %d, from 1 to %d are allowed", inference.ErrInvalid, a.Choices, inference.MaxChoices)
	case a.MaxTokens < 0 || a.MaxTokens > inference.MaxTokens:
		return nil, nil, fmt.Errorf("%w: max tokens is %d, from 1 to %d are allowed", inference.ErrInvalid, a.MaxTokens, inference.MaxTokens)
	case a.TopLogProbs < 0 || a.TopLogProbs > inference.MaxTopLogProbs:
		return nil, nil, fmt.Errorf("%w: top logprobs is %d, from 0 to %d are allowed", inference.ErrInvalid, a.TopLogProbs, inference.MaxTopLogProbs)
	}
	maxTokens := a.MaxTokens
	if maxTokens == 0 && !a.Embed {
		maxTokens = inference.MaxTokens // as many as fit
	}
	escrow, epoch := r.draws()
	return inference.NewRequest(r.cfg.Network, r.cfg.Key, question, &inferencepb.Request{
		Choices: uint32(max(1, a.Choices)), MaxTokens: uint32(maxTokens), Stop: a.Stop,
		Logprobs: a.LogProbs, TopLogprobs: uint32(a.TopLogProbs), IgnoreEos: a.IgnoreEOS,
		PriceCap: uint64(a.PriceCap), Escrow: escrow, Epoch: uint64(epoch), Nonce: random[:16],
	})
}

// draws returns the escrow that requests draw on now, nil for none, and their epoch.
func (r *Router) draws() ([]byte, mesh.Epoch) {
	if r.cfg.Purse != nil {
		if id, now := r.cfg.Purse.Escrow(); len(id) > 0 {
			return id, now
		}
	}
	return nil, r.cfg.Epoch()
}

// normal gives sampling parameters of the same meaning the same bytes, so that the
// same question has the same tape.
func normal(s *inferencepb.Sampling) *inferencepb.Sampling {
	if s == nil {
		return nil
	}
	s = proto.Clone(s).(*inferencepb.Sampling)
	if s.TopP == 1 {
		s.TopP = 0
	}
	if s.RepetitionPenalty == 1 {
		s.RepetitionPenalty = 0
	}
	inference.SortLogitBias(s.LogitBias)
	if proto.Size(s) == 0 {
		return nil
	}
	return s
}

// estimate guesses the number of prompt tokens: a token has about four bytes.
func estimate(a *inference.Ask) int {
	n := len(a.Prompt) + len(a.Tools)
	for _, m := range a.Messages {
		n += len(m.GetContent()) + len(m.GetToolCalls()) + 16
	}
	return len(a.PromptTokens) + (n+3)/4
}

func (q *question) funds() funds { return funds{string(q.ask.GetEscrow()), q.ask.GetEpoch()} }

func (q *question) extras() []Candidate {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.extra) // callers reorder it
}

// say passes an event on, one at a time.
func (q *question) say(e inference.Event) error {
	q.turn <- struct{}{}
	defer func() { <-q.turn }()
	return q.emit(e)
}

// search announces the question as a task, and reports whether hosts offered in time.
func (q *question) search(ctx context.Context, wait time.Duration) (bool, error) {
	pb := q.req.Pb
	offers, err := q.r.announce(ctx, &inferencepb.Task{
		Request: q.req.Hash[:], Model: q.model[:], PromptTokens: q.ask.GetPromptTokens(),
		MaxTokens: pb.GetMaxTokens(), Choices: pb.GetChoices(), PriceCap: pb.GetPriceCap(),
		Escrow: pb.GetEscrow(), Epoch: pb.GetEpoch(),
	}, wait)
	if errors.Is(err, p2p.ErrRate) {
		return false, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, o := range offers {
		q.extra = append(q.extra, Candidate{Peer: o.peer, Capability: o.offer.GetCapability()})
	}
	return len(offers) > 0, err
}
