package router

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/p2p"
)

// taskGrace is how long further offers are waited for after the first.
const taskGrace = 50 * time.Millisecond

// taskOffer is what a host sent for a task of this node.
type taskOffer struct {
	peer  mesh.Address
	model mesh.ModelID
	offer *inferencepb.Offer
}

// TakeOffer takes an offer that a host sent for an announced task. It reports whether
// the offer was waited for.
func (r *Router) TakeOffer(from mesh.Address, o *inferencepb.Offer) bool {
	task, err := mesh.HashFromBytes(o.GetTask())
	if err != nil || !o.GetAccept() {
		return false
	}
	model, err := mesh.HashFromBytes(o.GetCapability().GetModel())
	if err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	wanted := r.wanted[task]
	select {
	case wanted <- taskOffer{from, model, o}: // a nil channel is never ready
		return true
	default:
		return false
	}
}

// announce publishes a task and returns the offers that came in time, all for the
// model of the first. It fails with p2p.ErrRate where this node may announce no more now.
func (r *Router) announce(ctx context.Context, t *inferencepb.Task, wait time.Duration) ([]taskOffer, error) {
	if r.cfg.Publish == nil {
		return nil, nil
	}
	t.DeadlineMs = time.Now().Add(wait).UnixMilli()
	t.Addrs = r.cfg.Addrs()
	t.Addrs = t.Addrs[:min(len(t.Addrs), 16)]
	task, signed, err := inference.SignTask(r.cfg.Network, r.cfg.Key, t)
	if err != nil {
		return nil, err
	}
	offers := make(chan taskOffer, 16)
	r.mu.Lock()
	r.wanted[task.Hash] = offers
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.wanted, task.Hash)
		r.mu.Unlock()
	}()
	if err := r.cfg.Publish(ctx, signed); errors.Is(err, p2p.ErrRate) {
		r.cfg.Log.Debug("a task was not announced", "error", err)
		return nil, err
	} else if err != nil {
		r.cfg.Log.Warn("a task was not announced", "error", err)
		return nil, nil
	}
	r.meter.waits.Inc()
	return r.gather(ctx, t, offers, wait)
}

func (r *Router) gather(ctx context.Context, t *inferencepb.Task, offers <-chan taskOffer, wait time.Duration) ([]taskOffer, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var out []taskOffer
	for {
		select {
		case o := <-offers:
			if len(t.GetModel()) > 0 && string(o.model[:]) != string(t.GetModel()) ||
				len(t.GetModel()) == 0 && o.offer.GetCapability().GetName() != t.GetModelName() ||
				len(out) > 0 && o.model != out[0].model {
				continue
			}
			r.hosts.offered(hostKey{o.peer, o.model}, funds{string(t.GetEscrow()), t.GetEpoch()}, o.offer)
			if out = append(out, o); len(out) == 1 {
				timer.Reset(taskGrace)
			}
		case <-timer.C:
			return out, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// resolve returns the ID of the model that is asked for. A name that nobody nearby
// knows is announced as a task; the hosts that answered come with it.
func (r *Router) resolve(ctx context.Context, a *inference.Ask) (mesh.ModelID, []taskOffer, error) {
	id, err := r.cfg.Directory.Resolve(ctx, a.Model)
	if !errors.Is(err, inference.ErrUnknownModel) {
		return id, nil, err
	}
	t := &inferencepb.Task{
		ModelName: a.Model, PromptTokens: uint32(estimate(a)), MaxTokens: uint32(max(1, a.MaxTokens)),
		Choices: uint32(max(1, a.Choices)), PriceCap: uint64(a.PriceCap),
	}
	var epoch mesh.Epoch
	t.Escrow, epoch = r.draws()
	t.Epoch = uint64(epoch)
	if named, perr := mesh.ParseHash(a.Model); perr == nil {
		t.Model = named[:]
	}
	if a.Model == "" || len(a.Model) > 256 {
		return id, nil, err
	}
	offers, aerr := r.announce(ctx, t, r.cfg.TaskWait)
	if errors.Is(aerr, p2p.ErrRate) { // so whether it is unknown to all is not known
		return id, nil, &inference.Refusal{Code: inference.CodeBusy, WaitMs: 1000, Message: fmt.Sprintf(
			"no host of the model %.200q is known, and this node searches for as many as it may already", a.Model)}
	}
	if aerr != nil {
		return id, nil, aerr
	}
	if len(offers) == 0 {
		return id, nil, err
	}
	return offers[0].model, offers, nil
}
