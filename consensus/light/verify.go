package light

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	cmtmath "github.com/cometbft/cometbft/libs/math"
	cmtlight "github.com/cometbft/cometbft/light"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
)

// How much of a trusted validator set has to have signed a later header. Where all peers
// that answer have the header a third is enough: one of it is honest. What some do not
// have, or one says alone, needs two thirds, which nobody can forge while the ledger is
// sound; it may take more headers in between.
var (
	third     = cmtmath.Fraction{Numerator: 1, Denominator: 3}
	twoThirds = cmtmath.Fraction{Numerator: 2, Denominator: 3}
)

const (
	// maxSteps and walkTime bound the headers between a trusted one and a new one, in one try:
	// half of its time is left for what else it asks.
	maxSteps = 256
	walkTime = updateTimeout / 2
	// claimTime is how long peers may take to say whether they have a header.
	claimTime = time.Second
	// accuseEvery is how often both sides of a fork hear of it again.
	accuseEvery = time.Minute
	// exposeTime bounds the search for evidence against peers that lied.
	exposeTime = 5 * time.Second
)

// errClock is no lie of a peer while this machine's clock may be wrong.
var errClock = errors.New("the newest header is ahead of this machine's clock; set the clock")

// tooFar is a header with more changes of the validators before it than are verified at once.
type tooFar struct {
	from, to int64
	way      *types.LightBlock // the last that was verified
}

func (t *tooFar) Error() string {
	return fmt.Sprintf("too many changes of the validators for one try lie between headers %d and %d; up to %d they are verified, and the next try goes on from there",
		t.from, t.to, t.way.Height)
}

// anchor returns what new headers are verified against: the newest header that is
// kept, unless it is too old to be believed, and else the root.
func (c *Client) anchor(ctx context.Context, peers []mesh.Address) (*types.LightBlock, error) {
	if b := c.store.newest(); b != nil {
		if !c.expired(b) {
			return b, nil
		}
		c.store.clear()
		c.store.begin(c.cfg.Root.Hash)
	}
	return c.root(ctx, peers)
}

func (c *Client) expired(b *types.LightBlock) bool {
	return !b.Time.Add(c.cfg.Period).After(c.cfg.now())
}

// root returns the header of the checkpoint, or one before the first that stands for
// the genesis: it names the first validators, and nobody has to have kept block 1.
func (c *Client) root(ctx context.Context, peers []mesh.Address) (*types.LightBlock, error) {
	r := c.cfg.Root
	if r.Hash.IsZero() {
		hash := r.Validators.Hash()
		return &types.LightBlock{
			SignedHeader: &types.SignedHeader{Header: &types.Header{
				ChainID: string(c.cfg.Network), Time: r.Time.Add(-1), ValidatorsHash: hash, NextValidatorsHash: hash,
			}},
			ValidatorSet: r.Validators,
		}, nil
	}
	b, err := first(ctx, c, peers, func(ctx context.Context, peer mesh.Address) (*types.LightBlock, error) {
		b, err := c.block(ctx, peer, int64(r.Height))
		if err != nil {
			return nil, err
		}
		if string(b.Hash()) != string(r.Hash[:]) {
			// The user may have mistyped it, so nobody is called a liar.
			return nil, fmt.Errorf("%s has another header at height %d than the checkpoint that was given", peer.Short(), r.Height)
		}
		return b, c.signed(b)
	})
	if err != nil {
		return nil, fmt.Errorf("fetch the trusted header %d: %w", r.Height, err)
	}
	c.store.save(b)
	return b, nil
}

// signed checks that a block's own validators signed it.
func (c *Client) signed(b *types.LightBlock) error {
	if err := b.ValidatorSet.VerifyCommitLight(string(c.cfg.Network), b.Commit.BlockID, b.Height, b.Commit); err != nil {
		return &lie{fmt.Errorf("a header that its validators did not sign: %w", err)}
	}
	return nil
}

// advance verifies the newest header that peers have. It prefers one that two have.
func (c *Client) advance(ctx context.Context) (*types.LightBlock, bool, error) {
	peers := c.peers()
	if len(peers) == 0 {
		return nil, false, ErrNoPeers
	}
	from, err := c.anchor(ctx, peers)
	if err != nil {
		return nil, false, err
	}
	tips, err := c.tips(ctx, peers)
	if err != nil {
		return nil, false, err
	}
	slices.SortStableFunc(tips, func(a, b tip) int { return int(min(max(b.height-a.height, -1), 1)) })
	var best *types.LightBlock
	var witnessed bool
	errs := []error{}
	for _, height := range targets(tips) {
		if height < from.Height || best != nil && (height <= best.Height || c.recent(best)) {
			continue
		}
		b, both, err := c.settle(ctx, from, height, tips)
		switch {
		case err == nil:
			best, witnessed, from = b, both, b
		case errors.Is(err, ErrFork) || ctx.Err() != nil:
			return nil, false, err
		default:
			errs = append(errs, err)
		}
	}
	switch {
	case best != nil:
		return best, witnessed, nil
	case len(errs) == 0 && from.Height > 0: // all peers are behind what was verified before
		return from, false, nil
	case len(errs) == 0:
		return nil, false, ErrNoPeers
	}
	return nil, false, join(errs)
}

// targets lists heights in the order of trying: the newest that two peers have, then
// the newest, then the others.
func targets(tips []tip) []int64 {
	var out []int64
	if len(tips) > 1 {
		out = append(out, tips[1].height)
	}
	for _, t := range tips {
		if !slices.Contains(out, t.height) {
			out = append(out, t.height)
		}
	}
	return out
}

// recent reports whether a header is as new as can be expected of one that two peers
// have; else one that a single peer has is looked at too.
func (c *Client) recent(b *types.LightBlock) bool {
	return c.cfg.now().Sub(b.Time) < 10*c.cfg.Fresh+drift
}

// claim is a hash that peers say the header of a height has.
type claim struct {
	hash  mesh.Hash
	peers []mesh.Address
}

// claims asks which header peers have at a height.
func (c *Client) claims(ctx context.Context, height int64, tips []tip) []claim {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	said := make([]tip, len(tips))
	done := make(chan struct{}, len(tips))
	for i, t := range tips {
		go func() {
			defer func() { done <- struct{}{} }()
			switch {
			case t.height == height:
				said[i] = t
			case t.height > height:
				var err error
				if said[i], err = c.tipOf(ctx, t.peer, height); err != nil {
					c.caught(t.peer, err)
				}
			}
		}()
	}
	for range tips {
		<-done
	}
	var out []claim
	for _, t := range said {
		if t.height != height {
			continue
		}
		i := slices.IndexFunc(out, func(k claim) bool { return k.hash == t.hash })
		if i < 0 {
			i = len(out)
			out = append(out, claim{hash: t.hash})
		}
		out[i].peers = append(out[i].peers, t.peer)
	}
	return out
}

// settle finds out which header a height has, and whether two peers say so.
func (c *Client) settle(ctx context.Context, from *types.LightBlock, height int64, tips []tip) (*types.LightBlock, bool, error) {
	claims := c.claims(ctx, height, tips)
	if height == from.Height {
		return c.confirm(from, claims)
	}
	level := twoThirds
	if len(claims) == 1 && len(claims[0].peers) > 1 && len(claims[0].peers) == len(tips) {
		level = third
	}
	var found, ways []*types.LightBlock
	var of []int
	errs := []error{}
	for i, k := range claims {
		trace, err := first(ctx, c, k.peers, func(ctx context.Context, peer mesh.Address) ([]*types.LightBlock, error) {
			return c.follow(ctx, peer, from, height, k.hash, level)
		})
		if err != nil {
			var far *tooFar
			if errors.As(err, &far) && far.way.Height > from.Height {
				ways = append(ways, far.way)
			}
			errs = append(errs, err)
			continue
		}
		found, of = append(found, trace[len(trace)-1]), append(of, i)
		if len(claims) == 1 {
			c.store.save(trace[1:]...)
		}
	}
	switch len(found) {
	case 0:
		if len(ways) == 1 {
			c.keepWay(ctx, ways[0], level, tips)
		}
		return nil, false, join(errs)
	case 1:
		truth := claims[of[0]]
		if len(claims) > 1 {
			c.expose(ctx, from, found[0], truth.peers, slices.Delete(claims, of[0], of[0]+1))
			c.store.save(found[0])
		}
		return found[0], len(truth.peers) > 1, nil
	}
	if now := c.cfg.now(); now.Sub(c.accused) < accuseEvery {
		return nil, false, ErrFork
	}
	c.accused = c.cfg.now()
	for i, b := range found { // each side hears of the other
		for j, k := range of {
			if i != j {
				c.accuse(ctx, from, found[j], claims[k].peers, claims[of[i]].peers[0], b.Height, claims[of[i]].hash)
			}
		}
	}
	return nil, false, ErrFork
}

// keepWay keeps a header that was verified on the way to one that is too far, so that the
// next try goes on from it: where it would have been believed had it been the newest.
func (c *Client) keepWay(ctx context.Context, b *types.LightBlock, level cmtmath.Fraction, tips []tip) {
	for _, k := range c.claims(ctx, b.Height, tips) {
		if string(k.hash[:]) == string(b.Hash()) && (level == twoThirds || len(k.peers) == len(tips)) {
			c.store.save(b)
		}
	}
}

// confirm compares what peers say with the header that is already known.
func (c *Client) confirm(known *types.LightBlock, claims []claim) (*types.LightBlock, bool, error) {
	agree := 0
	for _, k := range claims {
		if string(k.hash[:]) == string(known.Hash()) {
			agree = len(k.peers)
			continue
		}
		for _, p := range k.peers {
			c.caught(p, &lie{errors.New("another header than the one that was verified before")})
		}
	}
	if agree == 0 {
		return nil, false, fmt.Errorf("no peer has header %d as it was verified before", known.Height)
	}
	return known, agree > 1, nil
}

// follow fetches a header that a peer said it has and those between that are needed to
// verify it.
func (c *Client) follow(ctx context.Context, peer mesh.Address, from *types.LightBlock, height int64, hash mesh.Hash, level cmtmath.Fraction) ([]*types.LightBlock, error) {
	b, err := c.block(ctx, peer, height)
	if err != nil {
		return nil, err
	}
	if string(b.Hash()) != string(hash[:]) {
		return nil, &lie{errors.New("another header than the one that it said it has")}
	}
	return c.skip(from, b, level, func(height int64) (*types.LightBlock, error) { return c.block(ctx, peer, height) })
}

// skip verifies a header against a trusted one, over as few between them as their
// signatures allow. It returns all, the trusted one first.
func (c *Client) skip(from, to *types.LightBlock, level cmtmath.Fraction, fetch func(height int64) (*types.LightBlock, error)) ([]*types.LightBlock, error) {
	start, trace, ahead := time.Now(), []*types.LightBlock{from}, []*types.LightBlock{to}
	for steps := 0; len(ahead) > 0; steps++ {
		last, next := trace[len(trace)-1], ahead[len(ahead)-1]
		now := c.cfg.now()
		if !next.Time.Before(now.Add(drift)) {
			return nil, errClock
		}
		err := cmtlight.Verify(last.SignedHeader, last.ValidatorSet, next.SignedHeader, next.ValidatorSet, c.cfg.Period, now, drift, level)
		var far cmtlight.ErrNewValSetCantBeTrusted
		var old cmtlight.ErrOldHeaderExpired
		switch {
		case err == nil:
			trace, ahead = append(trace, next), ahead[:len(ahead)-1]
		case errors.As(err, &old):
			return nil, err
		case !errors.As(err, &far):
			return nil, &lie{fmt.Errorf("a header that does not follow from the validators known: %w", err)}
		case steps >= maxSteps || time.Since(start) > walkTime:
			return nil, &tooFar{from: from.Height, to: to.Height, way: last}
		default: // not next to each other, so that there is one between
			b, err := fetch(last.Height + (next.Height-last.Height)/2)
			if err != nil {
				return nil, fmt.Errorf("fetch a header between %d and %d: %w", last.Height, next.Height, err)
			}
			ahead = append(ahead, b)
		}
	}
	return trace, nil
}
