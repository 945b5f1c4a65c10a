package host

import (
	"fmt"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// A payer who ends an answer before it is complete, by breaking the stream or by a Cancel
// before the first token, does not owe what was computed before its tokens. Any payer
// comes into that now and then. One who lives on it is told to come back later.
const (
	maxBroken    = 8                // answers that any payer may break off
	brokenPart   = 4                // beyond them, a part in so many of what it paid for
	forgivenIn   = 10 * time.Minute // one of them
	maxPatience  = 10_000           // payers that are remembered
	impatientFor = 10 * time.Second // what a refused one is told to wait at least
)

// patience is what a host remembers of a payer. Tokens are those of prompts and prefixes.
type patience struct {
	broken   int    // answers that it broke off and did not owe the prompt of
	lost     uint64 // their tokens
	paid     uint64 // tokens of answers whose prompt it owed
	forgiven time.Time
}

// forgive lets what was broken off be forgotten with time.
func (p *patience) forgive(now time.Time) {
	for p.broken > 0 && now.Sub(p.forgiven) >= forgivenIn {
		p.lost -= p.lost / uint64(p.broken)
		p.broken--
		p.forgiven = p.forgiven.Add(forgivenIn)
	}
}

// judge notes how an answer that had a slot ended, for the payer's part.
func (a *answer) judge() {
	if !a.began || !a.h.charges(a.lane) || a.peer == a.h.self {
		return
	}
	finish := inference.FinishReason(a.receipt.GetFinish())
	owed := finish != inference.FinishAborted && (finish != inference.FinishCancelled || a.receipt.GetOutputTokens() > 0)
	if !owed && !a.left {
		return
	}
	tokens, now := uint64(len(a.prompt)+len(a.call.Prefix)), time.Now()
	a.h.mu.Lock()
	defer a.h.mu.Unlock()
	p := a.h.patience[a.peer]
	if p == nil {
		if len(a.h.patience) >= maxPatience {
			a.h.forget(now)
		}
		p = new(patience)
		a.h.patience[a.peer] = p
	}
	p.forgive(now)
	if owed {
		p.paid += tokens
		return
	}
	if p.broken == 0 {
		p.forgiven = now
	}
	p.broken++
	p.lost += tokens
}

// forget makes room for another payer; those with nothing to forgive go first. mu is held.
func (h *Host) forget(now time.Time) {
	makeRoom(h.patience, maxPatience, func(p *patience) bool {
		p.forgive(now)
		return p.broken == 0
	})
}

// patient refuses a payer who broke off too much.
func (h *Host) patient(peer mesh.Address) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, now := h.patience[peer], time.Now()
	if p == nil {
		return nil
	}
	p.forgive(now)
	if p.broken <= maxBroken || p.lost <= p.paid/brokenPart {
		return nil
	}
	wait := max(forgivenIn-now.Sub(p.forgiven), impatientFor)
	return &inference.Refusal{Code: inference.CodeBusy, WaitMs: wait.Milliseconds(), Message: fmt.Sprintf(
		"this peer broke off %d answers, and nobody pays for the %d tokens that were read for them", p.broken, p.lost)}
}
