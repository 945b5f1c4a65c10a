package router

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/internal/plainly"
)

// pointsLiar is the penalty of a host that signed what is not so.
const pointsLiar = 100

// secondTry is how long to wait before a host that was lost is tried again.
const secondTry = 100 * time.Millisecond

// choice is one answer, made by one host after the other. One goroutine owns it.
type choice struct {
	q     *question
	index uint32

	tokens    []int32 // verified, and passed on
	chain     inference.Chain
	from      *inference.Receipt // under the tokens; nil before the first
	text      *inference.Text    // nil: text is believed
	usage     inference.Usage
	lastToken time.Time

	prompt   int          // its tokens, by verified receipts; 0 before the first
	disputed int          // what a host counted otherwise; 0: none did
	disputer mesh.Address // that host

	tried    map[mesh.Address]bool
	last     error         // why the last host was given up
	hosts    int           // tried; one that is busy again and again counts once
	invalid  error         // what a host found wrong with the request
	invalids int           // hosts that did
	unpaid   int           // hosts that want money which this node's escrow does not have for them
	dear     int           // hosts for which the price cap is too low
	wait     time.Duration // until some host may be worth a second try; 0: none is
	searched bool          // a task was announced
	again    bool          // the second try is on
	full     map[mesh.Address]full
	keeping  sync.WaitGroup
}

func newChoice(q *question, index uint32) *choice {
	c := &choice{
		q: q, index: index, tried: make(map[mesh.Address]bool),
		chain: inference.NewChain(q.r.cfg.Network, q.req.Hash, index),
	}
	c.read()
	return c
}

// lost is why a host is given up and the next one tried.
type lost struct {
	why     string // for metrics
	err     error
	refusal *inference.Refusal // when it refused
}

func (l *lost) Error() string { return l.err.Error() }
func (l *lost) Unwrap() error { return l.err }

// run tries hosts until the answer is complete. Any error but a lost host is final.
func (c *choice) run(ctx context.Context) error {
	for {
		host, err := c.next(ctx)
		if err != nil {
			return err
		}
		if err = c.within(host); err == nil {
			err = c.call(ctx, host)
		}
		var l *lost
		if !errors.As(err, &l) {
			return err
		}
		c.giveUp(host, l)
		// One host may be wrong about a request; two, or all that there are, are believed.
		if c.invalids >= 2 {
			return c.invalid
		}
		if c.poor() {
			return c.exhausted()
		}
	}
}

// maxUnpaid is how many hosts are asked for something for nothing: some give credit.
const maxUnpaid = 3

// poor reports whether it is no use to ask further hosts: the request draws on no escrow,
// and all so far want money. With an escrow others may have a part of it.
func (c *choice) poor() bool {
	return len(c.q.req.Pb.GetEscrow()) == 0 && c.unpaid == c.hosts && c.unpaid >= maxUnpaid
}

// next returns the host to try. When nobody known takes the question it is announced as a
// task, once, unless some are only busy: a burst would be as many tasks, and they come to
// hosts that are busy, too. After that, hosts that were busy or out of reach are tried again,
// once, and then those that were busy and nothing else, as long as they may be waited for.
func (c *choice) next(ctx context.Context) (ranked, error) {
	start, cfg := time.Now(), &c.q.r.cfg
	for c.hosts < cfg.MaxHosts {
		list, err := c.q.pick(ctx, c.tried, c.need(), start.Add(cfg.Connect))
		var queues *queuesFull
		if errors.As(err, &queues) && c.queued(queues) {
			continue
		}
		busy := c.busy() != nil
		switch {
		case err == nil:
			return list[0], nil
		case !errors.Is(err, errNoOffer) && !errors.Is(err, errSmall):
			return ranked{}, err
		case c.invalid != nil:
			return ranked{}, c.invalid
		case c.unpaid > 0 && c.unpaid == c.hosts && len(c.q.req.Pb.GetEscrow()) == 0:
			return ranked{}, c.exhausted() // nobody is called to work for nothing
		case !c.searched && !busy:
			c.searched = true
			found, serr := c.q.search(ctx, max(cfg.TaskWait-time.Since(start), cfg.TaskWait/3))
			switch {
			case serr != nil:
				return ranked{}, serr
			case !found && errors.Is(err, errNobody) && c.wait == 0: // to look again would take as long again
				return ranked{}, c.exhausted()
			}
		case !c.again && c.wait > 0:
			c.again = true
			clear(c.tried)
			select {
			case <-time.After(min(c.wait, cfg.TaskWait)):
			case <-ctx.Done():
				return ranked{}, ctx.Err()
			}
		default:
			host, ferr := c.room(ctx)
			if !errors.Is(ferr, errNoOffer) {
				return host, ferr
			}
			var over *passedOver
			switch {
			case busy:
				return ranked{}, c.exhausted()
			case c.last == nil && errors.Is(err, errSmall):
				return ranked{}, fmt.Errorf("%w: %w", inference.ErrNoHost, err)
			case errors.As(err, &over) && c.last == nil:
				return ranked{}, err
			case errors.As(err, &over):
				return ranked{}, fmt.Errorf("%w; others were passed over: %s", c.exhausted(), over.Error())
			}
			return ranked{}, c.exhausted()
		}
	}
	host, err := c.room(ctx)
	if errors.Is(err, errNoOffer) {
		return ranked{}, c.exhausted()
	}
	return host, err
}

// need returns how many tokens of context the answer takes at least.
func (c *choice) need() int {
	if asked := int(c.q.req.Pb.GetMaxTokens()); asked < inference.MaxTokens {
		return max(1, c.prompt) + asked
	}
	return max(1, c.prompt) + len(c.tokens) + 1
}

// within checks that what is left of the price cap pays for the rest of an answer that
// has lost its host: going on costs the prompt and what there is of the answer once more.
// An answer from its first token on is for the host to check.
func (c *choice) within(host ranked) error {
	limit := mesh.Amount(c.q.req.Pb.GetPriceCap())
	if limit == 0 || len(c.tokens) == 0 || host.capability == nil {
		return nil
	}
	most, err := inference.Fit(c.prompt, int(c.q.req.Pb.GetMaxTokens()), inference.OwnContext(host.capability))
	if err != nil {
		return nil // the host says so itself
	}
	price, err := inference.Price(host.capability, c.prompt, len(c.tokens), max(0, most-len(c.tokens)), inference.FinishLength)
	if err == nil {
		price, err = price.Add(c.usage.Price)
	}
	if err != nil || price > limit {
		return &lost{why: whyCap, err: fmt.Errorf("to go on may make %s, and the cap is %s", price, limit)}
	}
	return nil
}

func (c *choice) exhausted() error {
	if c.unpaid == 0 || c.unpaid < c.hosts {
		if err := c.busy(); err != nil {
			return err
		}
	}
	if c.last == nil {
		return fmt.Errorf("%w: nobody who serves %s is reachable; see `mesh peer ls` and `mesh doctor`", inference.ErrNoHost, c.q.model.Short())
	}
	switch {
	case c.hosts == 0: // none was asked
	case c.unpaid == c.hosts:
		return fmt.Errorf("%w: of the hosts of %s %d were asked; the last: %s", inference.ErrUnpaid, c.q.model.Short(), c.hosts, c.last.Error())
	case c.dear == c.hosts:
		return fmt.Errorf("%w: of the hosts of %s %d were asked; the last: %s", inference.ErrTooDear, c.q.model.Short(), c.hosts, c.last.Error())
	}
	// Only as text: what the last host said does not hold for all.
	return fmt.Errorf("%w: of the hosts of %s %d were tried; the last: %s", inference.ErrNoHost, c.q.model.Short(), c.hosts, c.last.Error())
}

// giveUp notes what a host did.
func (c *choice) giveUp(host ranked, l *lost) {
	peer, r, k := host.peer, c.q.r, hostKey{host.peer, c.q.model}
	c.tried[peer] = true
	c.last = fmt.Errorf("%s: %w", peer.Short(), plainly.Said(l.err))
	r.meter.failovers.WithLabelValues(l.why).Inc()
	if l.refusal == nil || l.refusal.Code != inference.CodeBusy {
		delete(c.full, peer)
	} else if c.noRoom(host, l.refusal) {
		if l.why != whyCrowded {
			r.hosts.busy(k, time.Until(c.full[peer].at))
		}
		return
	}
	c.hosts++
	r.cfg.Log.Info("a host was given up", "host", peer, "why", l.why, "error", l.err,
		"request", c.q.req.Hash, "choice", c.index, "token", len(c.tokens))
	if l.why == whyCap || l.refusal != nil && l.refusal.Code == inference.CodeTooDear {
		c.dear++
	}
	again := secondTry
	switch {
	case l.why == whyFull, l.why == whyCap, l.refusal != nil && l.refusal.Code == inference.CodeTooSmall:
		again = 0 // it is well, and small or dear
	case l.why == whyLied:
		again = 0
		c.read() // it may have taken in tokens of the lie
		r.caught(k, l.err)
	case l.why == whyCrowded:
		again = crowdedWait // it was not asked
	case l.refusal == nil:
		r.hosts.failed(k, false)
	case l.refusal.Code == inference.CodeBusy || l.refusal.Code == inference.CodeReplay:
		again = max(time.Duration(l.refusal.WaitMs)*time.Millisecond, secondTry)
		r.hosts.busy(k, again)
	case l.refusal.Code == inference.CodeUnpaid:
		again = 0
		c.unpaid++
		r.hosts.unpaid(k)
	case l.refusal.Code == inference.CodeTooDear:
		again = 0 // it is well, and dear
	case errors.Is(l.refusal, inference.ErrInvalid) && len(c.tokens) == 0:
		again = 0
		c.invalids++
		c.invalid = l.refusal
	default:
		again = 0
		r.hosts.failed(k, false)
	}
	if again > 0 && (c.wait == 0 || again < c.wait) {
		c.wait = again
	}
}

// read starts the text anew after the tokens so far.
func (c *choice) read() {
	d := c.q.r.cfg.Text(c.q.model)
	if d == nil {
		return
	}
	c.text = inference.NewText(d, c.q.req.Pb.GetStop())
	for _, t := range c.tokens {
		c.text.Add(t)
	}
}

// keep stores a receipt, and pays for it in the background: one that is not final only
// where its host has broken off and did what it signed for.
func (q *question) keep(receipt *inference.Receipt, broken bool) {
	if q.r.cfg.Receipts != nil {
		if err := q.r.cfg.Receipts.Put(q.req.Hash, receipt.Signed); errors.Is(err, inference.ErrHeld) {
			q.r.cfg.Log.Warn("a receipt waits in memory", "request", q.req.Hash, "error", err)
		} else if err != nil {
			q.r.cfg.Log.Error("a receipt was not kept", "request", q.req.Hash, "error", err)
		}
	}
	if final := receipt.Finish != inference.FinishOpen; q.r.cfg.Purse != nil && (final || broken) &&
		len(receipt.Pb.GetEscrow()) > 0 && receipt.Pb.GetPrice() > 0 {
		q.r.pays(func() { q.r.pay(receipt) })
	}
}
