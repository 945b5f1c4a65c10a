package router

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// full is a host that said that it has no room, and nothing else since.
type full struct {
	host  ranked
	at    time.Time // when it may have some
	times uint      // that it said so in a row
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
	c.full[host.peer] = full{host, time.Now().Add(wait), times + 1}
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
	var first full
	for peer, f := range c.full {
		if f.at.Before(end) && (first.times == 0 || f.at.Before(first.at)) && c.q.r.hosts.well(hostKey{peer, c.q.model}) {
			first = f
		}
	}
	if first.times == 0 {
		return ranked{}, errNoOffer
	}
	select {
	case <-time.After(time.Until(first.at)):
		return first.host, nil
	case <-ctx.Done():
		return ranked{}, ctx.Err()
	}
}
