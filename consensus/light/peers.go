package light

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
)

const (
	// maxPeers is how many peers are asked about the newest header, and at most for one
	// record.
	maxPeers = 4
	// hedge is how long a peer may be silent before the next one is asked too.
	hedge = 400 * time.Millisecond
	// secondTip and moreTips are how long answers about the newest header are waited
	// for, after the first and after the second.
	secondTip = time.Second
	moreTips  = 200 * time.Millisecond
	benched   = 30 * time.Second
)

// bench remembers peers that failed lately: they are asked last.
type bench struct {
	mu    sync.Mutex
	until map[mesh.Address]time.Time // guarded by mu
}

const maxBenched = 256

func (b *bench) put(peer mesh.Address, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, until := range b.until {
		if until.Before(now) {
			delete(b.until, p)
		}
	}
	if len(b.until) < maxBenched {
		b.until[peer] = now.Add(benched)
	}
}

func (b *bench) has(peer mesh.Address, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.until[peer].After(now)
}

// peers chooses whom to ask, at random, so that questions spread, and no few peers that
// push themselves forward are all that is heard. Who failed lately comes last.
func (c *Client) peers() []mesh.Address {
	now := c.cfg.now()
	var good, bad []mesh.Address
	for _, p := range c.cfg.Peers() {
		if c.bench.has(p, now) {
			bad = append(bad, p)
		} else {
			good = append(good, p)
		}
	}
	c.cfg.shuffle(len(good), func(i, j int) { good[i], good[j] = good[j], good[i] })
	all := append(good, bad...)
	return all[:min(len(all), maxPeers)]
}

// tips asks peers for their newest headers, all at once. It waits long for the first
// answer and a little for the others.
func (c *Client) tips(ctx context.Context, peers []mesh.Address) ([]tip, error) {
	type result struct {
		tip
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	got := make(chan result, len(peers))
	for _, p := range peers {
		go func() {
			t, err := c.tipOf(ctx, p, 0)
			t.peer = p
			got <- result{t, err}
		}()
	}
	var out []tip
	errs := []error{}
	silent := slices.Clone(peers)
	var patience <-chan time.Time
wait:
	for range peers {
		select {
		case r := <-got:
			silent = slices.DeleteFunc(silent, func(p mesh.Address) bool { return p == r.peer })
			if r.err != nil {
				errs = append(errs, r.err)
				c.caught(r.peer, r.err)
				c.bench.put(r.peer, c.cfg.now())
				continue
			}
			switch out = append(out, r.tip); len(out) {
			case 1:
				patience = time.After(secondTip)
			case 2:
				patience = time.After(moreTips)
			}
		case <-patience:
			break wait
		}
	}
	for _, p := range silent {
		c.bench.put(p, c.cfg.now())
	}
	if len(out) == 0 {
		return nil, join(errs)
	}
	return out, nil
}

func join(errs []error) error {
	if len(errs) == 0 {
		return ErrNoPeers
	}
	return errors.Join(errs...)
}

// first asks peers until one gives a good answer: the next one as soon as one fails, or
// is silent for a while. Lies are told of.
func first[T any](ctx context.Context, c *Client, peers []mesh.Address, fn func(ctx context.Context, peer mesh.Address) (T, error)) (T, error) {
	type result struct {
		value T
		peer  mesh.Address
		err   error
	}
	var none T
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	got := make(chan result, len(peers))
	asked, open := 0, 0
	next := func() {
		if asked == len(peers) {
			return
		}
		p := peers[asked]
		asked, open = asked+1, open+1
		go func() {
			v, err := fn(ctx, p)
			got <- result{v, p, err}
		}()
	}
	next()
	tick := time.NewTicker(hedge)
	defer tick.Stop()
	var errs []error
	for open > 0 {
		select {
		case r := <-got:
			open--
			if r.err == nil {
				return r.value, nil
			}
			if ctx.Err() != nil {
				return none, fmt.Errorf("%w: %w", ctx.Err(), r.err)
			}
			c.caught(r.peer, r.err)
			var far *tooFar
			if errors.As(r.err, &far) && far.way.Height > far.from {
				return none, r.err // the others have no shorter way
			}
			if !errors.Is(r.err, ErrNoBlock) {
				c.bench.put(r.peer, c.cfg.now())
			}
			errs = append(errs, r.err)
			next()
			tick.Reset(hedge)
		case <-tick.C:
			if asked < len(peers) {
				c.bench.put(peers[asked-1], c.cfg.now())
			}
			next()
		case <-ctx.Done():
			return none, errors.Join(append(errs, ctx.Err())...)
		}
	}
	return none, join(errs)
}
