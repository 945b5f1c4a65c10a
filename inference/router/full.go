package router

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/internal/plainly"
)

// full is a host that said that it has no room, and nothing else since.
type full struct {
	host  ranked
	at    time.Time // when it may have some
	times uint      // that it refused calls so in a row
	said  string
}

// queuesFull is that hosts said with their offers that their queues are full.
type queuesFull struct{ hosts []full }

func (e *queuesFull) Error() string { return errNoOffer.Error() + ": " + e.hosts[0].said }
func (e *queuesFull) Unwrap() error { return errNoOffer }

// queues returns a queuesFull of those candidates whose last offer says so, nil where there
// are none. Offers have no code for it: one that is refused while others queue is taken so.
// What else such an offer says was not checked, so adverts tell what these hosts ask for.
func (q *question) queues(list []Candidate, need int) error {
	now, hosts := time.Now(), q.r.hosts
	e := new(queuesFull)
	hosts.mu.Lock()
	defer hosts.mu.Unlock()
	for _, c := range list {
		rec := hosts.at(hostKey{c.Peer, q.model})
		switch {
		case rec.offer == nil || rec.offer.GetAccept() || rec.offer.GetQueued() == 0 || now.Sub(rec.offered) > offerUsable:
		case c.Capability == nil || q.overCap(c.Peer, c.Capability) || !holds(c.Capability, need) || !q.suits(c.Capability):
		default:
			wait := max(time.Duration(rec.offer.GetWaitMs())*time.Millisecond, fullWait)
			e.hosts = append(e.hosts, full{
				ranked{peer: c.Peer, capability: c.Capability}, now.Add(wait + rand.N(wait/4+1)), 0, fmt.Sprintf("%.300s", rec.offer.GetReason()),
			})
		}
	}
	if len(e.hosts) == 0 {
		return nil
	}
	return e
}

// queued notes hosts whose queues are full, and reports whether others are worth a look.
func (c *choice) queued(e *queuesFull) (others bool) {
	if c.full == nil {
		c.full = make(map[mesh.Address]full)
	}
	for _, f := range e.hosts {
		c.tried[f.host.peer] = true
		if old, known := c.full[f.host.peer]; known {
			f.times = old.times
		} else {
			others = len(c.full) < maxAskedAgain
		}
		c.full[f.host.peer] = f
		if wait := time.Until(f.at); c.wait == 0 || wait < c.wait {
			c.wait = wait
		}
	}
	return others
}

// firstFull returns of the hosts that are busy, and well, the one that may have room first, and
// how many there are.
func (c *choice) firstFull() (first full, n int) {
	for peer, f := range c.full {
		if !c.q.r.hosts.well(hostKey{peer, c.q.model}) {
			continue
		}
		if n++; n == 1 || f.at.Before(first.at) {
			first = f
		}
	}
	return first, n
}

// busy returns what is told where hosts are known, and have no room; nil where none is.
func (c *choice) busy() error {
	f, n := c.firstFull()
	if n == 0 {
		return nil
	}
	return &inference.Refusal{Code: inference.CodeBusy, WaitMs: max(0, time.Until(f.at).Milliseconds()), Message: fmt.Sprintf(
		"%d of the hosts of %s are busy, and no other takes it; the first that may have room says: %s: %s",
		n, c.q.model.Short(), f.host.peer.Short(), f.said)}
}

const (
	fullWait  = 100 * time.Millisecond // at least, before it is called again; twice that the next time
	fullTwice = 4                      // and so on, so often
)

// noRoom notes a refusal as busy, and reports whether the host said so before. Some time
// is added by chance, since those who were refused together would come back together.
func (c *choice) noRoom(host ranked, refusal *inference.Refusal) (again bool) {
	times := c.full[host.peer].times
	wait := max(time.Duration(refusal.WaitMs)*time.Millisecond, fullWait<<min(times, fullTwice))
	wait += rand.N(wait/4 + 1)
	if c.full == nil {
		c.full = make(map[mesh.Address]full)
	}
	c.full[host.peer] = full{host, time.Now().Add(wait), times + 1, plainly.Said(refusal).Error()}
	return times > 0
}

// room waits for the host that may have room first, and returns it. It fails with
// errNoOffer where none says that it will before the answer has stood still for as long
// as a host may keep it waiting.
func (c *choice) room(ctx context.Context) (ranked, error) {
	end := c.q.started
	if c.lastToken.After(end) {
		end = c.lastToken
	}
	end = end.Add(c.q.r.cfg.FirstToken)
	first, n := c.firstFull()
	if n == 0 || !first.at.Before(end) {
		return ranked{}, errNoOffer
	}
	select {
	case <-time.After(time.Until(first.at)):
		return first.host, nil
	case <-ctx.Done():
		return ranked{}, ctx.Err()
	}
}
