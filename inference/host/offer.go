package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/p2p"
)

const (
	maxOfferBytes = 4 << 10
	offerTimeout  = 2 * time.Second
	taskTimeout   = 5 * time.Second
	maxTasks      = 8 // answered at once
)

// offer says what this host would do with such a request now. It is measured, not
// promised.
func (h *Host) offer(ask *inferencepb.OfferAsk) *inferencepb.Offer {
	model, err := mesh.HashFromBytes(ask.GetModel())
	if err != nil {
		return &inferencepb.Offer{Reason: "no model is named"}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.lanes[model]
	if l == nil {
		return &inferencepb.Offer{Reason: "this model is not served here"}
	}
	load := l.engine.Load()
	prompt := float64(min(ask.GetPromptTokens(), inference.MaxTokens)) * l.prefill.V
	o := &inferencepb.Offer{
		Accept: true, Capability: l.capability,
		Active: uint32(max(l.active, load.Active)), Queued: uint32(len(l.waiting) + load.Queued),
		WaitMs:  uint32(min(l.wait().Milliseconds()+int64(prompt*1000), int64(time.Hour/time.Millisecond))),
		TokenUs: uint32(min(l.token.V*1e6, 1e9)),
	}
	// Whether it fits the context is for the call to say: the ask has an estimate.
	err = healthOf(l.engine)
	switch {
	case h.draining:
		o.Accept, o.Reason = false, "this host is stopping"
	case err != nil:
		o.Accept, o.Reason = false, "the engine of this host cannot answer now"
	case len(l.waiting) >= h.cfg.Queue:
		o.Accept, o.Reason = false, "the queue is full"
	}
	return o
}

// offerTo is offer for a payer who may say which escrow the request will draw on: one that
// has nothing for this host is told so now, instead of by a call that is refused.
func (h *Host) offerTo(payer mesh.Address, ask *inferencepb.OfferAsk) *inferencepb.Offer {
	o := h.offer(ask)
	prompt, output := o.GetCapability().GetPricePrompt(), o.GetCapability().GetPriceOutput()
	escrow, err := mesh.HashFromBytes(ask.GetEscrow())
	if h.cfg.Till == nil || err != nil || payer == h.self || prompt == 0 && output == 0 {
		return o
	}
	least, err := mesh.Amount(prompt).Add(mesh.Amount(output)) // a question and an answer have a token each
	if err != nil {
		return o
	}
	err = h.cfg.Till.Pays(payer, escrow, mesh.Epoch(ask.GetEpoch()), least)
	var refusal *inference.Refusal
	if errors.As(err, &refusal) && refusal.Code == inference.CodeUnpaid {
		return &inferencepb.Offer{Reason: refusal.Message, Unpaid: true}
	}
	return o
}

// healthOf returns why an engine that is a server of its own cannot answer now, or nil.
func healthOf(e inference.Engine) error {
	if h, ok := e.(interface{ Healthy() error }); ok {
		return h.Healthy()
	}
	return nil
}

// ServeOffer answers one offer stream: an ask gets an Offer, an offer for a task of
// this node is handed on and echoed.
func (h *Host) ServeOffer(ctx context.Context, peer mesh.Address, c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(offerTimeout))
	call := new(inferencepb.OfferCall)
	if err := p2p.ReadMessage(c, maxOfferBytes, call); err != nil {
		h.cfg.Log.Debug("an offer stream broke", "peer", peer, "error", err)
		return
	}
	answer := call.GetOffer()
	switch {
	case call.GetAsk() != nil:
		answer = h.offerTo(peer, call.GetAsk())
	case answer == nil:
		h.cfg.Penalise(peer, "offer: an empty call", pointsBadCall)
		return
	case !h.cfg.TakeOffer(peer, answer):
		answer = &inferencepb.Offer{Reason: "nobody waits for it"}
	}
	if err := p2p.WriteMessage(c, answer); err != nil {
		h.cfg.Log.Debug("an offer was not delivered", "peer", peer, "error", err)
	}
}

// OnTask answers an announced task with an offer, when this host serves its model
// and is idle enough. It returns at once: whether the payer's escrow has something for this
// host is looked up in the background, for a few tasks at once.
func (h *Host) OnTask(t *inference.Task) {
	if h.cfg.Dialer == nil || t.Payer == h.self || t.Pb.GetDeadlineMs() < time.Now().UnixMilli() {
		return
	}
	model := h.idleFor(t)
	if model == nil {
		return
	}
	select {
	case h.dialling <- struct{}{}:
	default:
		return // enough tasks are being answered
	}
	ok := h.background(func() {
		defer func() { <-h.dialling }()
		o := h.offerFor(t, model)
		if !o.Accept {
			return
		}
		ctx, cancel := context.WithTimeout(h.ctx, taskTimeout)
		defer cancel()
		if err := h.sendOffer(ctx, t.Payer, o); err != nil {
			h.cfg.Log.Debug("a task was not answered", "author", t.Payer, "error", err)
		}
	})
	if !ok {
		<-h.dialling
	}
}

// idleFor returns the model of a task where it is served here and has a free slot, or nil.
func (h *Host) idleFor(t *inference.Task) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	var found *lane
	for id, l := range h.lanes {
		if len(t.Pb.GetModel()) > 0 && string(id[:]) == string(t.Pb.GetModel()) ||
			len(t.Pb.GetModel()) == 0 && l.info.Name == t.Pb.GetModelName() {
			found = l
		}
	}
	if found == nil || found.active >= found.slots || len(found.waiting) > 0 {
		return nil
	}
	return found.capability.Model
}

func (h *Host) offerFor(t *inference.Task, model []byte) *inferencepb.Offer {
	o := h.offerTo(t.Payer, &inferencepb.OfferAsk{
		Model: model, PromptTokens: t.Pb.GetPromptTokens(),
		MaxTokens: t.Pb.GetMaxTokens(), Choices: t.Pb.GetChoices(),
		Escrow: t.Pb.GetEscrow(), Epoch: t.Pb.GetEpoch(),
	})
	o.Task = t.Hash[:]
	return o
}

func (h *Host) sendOffer(ctx context.Context, author mesh.Address, o *inferencepb.Offer) error {
	c, err := h.cfg.Dialer.Dial(ctx, author, "offer")
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(offerTimeout))
	if err := p2p.WriteMessage(c, &inferencepb.OfferCall{Offer: o}); err != nil {
		return fmt.Errorf("send offer: %w", err)
	}
	if err := p2p.ReadMessage(c, maxOfferBytes, new(inferencepb.Offer)); err != nil {
		return fmt.Errorf("read the echo: %w", err)
	}
	return nil
}
