package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cometbft/cometbft/crypto"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cometbft/cometbft/types"
)

// guard signs for a validator while the machine is fit for it. A vote that it refuses
// is a vote that was not cast: the node goes on following, and votes again when the
// cause is mended.
type guard struct {
	inner types.PrivValidator
	chain *Chain
}

func (g *guard) GetPubKey() (crypto.PubKey, error) { return g.inner.GetPubKey() }

func (g *guard) SignVote(chainID string, vote *cmtproto.Vote) error {
	return g.sign(func() error { return g.inner.SignVote(chainID, vote) })
}

func (g *guard) SignProposal(chainID string, proposal *cmtproto.Proposal) error {
	return g.sign(func() error { return g.inner.SignProposal(chainID, proposal) })
}

func (g *guard) sign(sign func() error) error {
	err := g.chain.fit()
	if err == nil {
		if err = sign(); err != nil {
			err = fmt.Errorf("the consensus key did not sign: %w", err)
		}
	}
	g.chain.problem.note(g.chain.log, err)
	return err
}

// problem is why the node does not vote, or would not.
type problem struct {
	mu  sync.Mutex
	err error // guarded by mu
}

// note keeps a problem, nil for none, and logs that it came and that it went.
func (p *problem) note(log *slog.Logger, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil && p.err == nil:
		log.Error("ledger: this node does not vote", "err", err)
	case err == nil && p.err != nil:
		log.Info("ledger: what kept this node from voting is mended")
	}
	p.err = err
}

// ofMachine reports whether the problem is one that fit finds.
func (p *problem) ofMachine() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Is(p.err, ErrDisk) || errors.Is(p.err, ErrClock)
}

func (p *problem) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		return ""
	}
	return p.err.Error()
}

// fit reports why this machine should not sign now.
func (c *Chain) fit() error {
	if err := c.checkDisk(); err != nil {
		return err
	}
	return c.skew.check()
}

// ErrDisk tells that the disk has too little room to go on.
var ErrDisk = errors.New("the disk is nearly full")

// checkDisk reports a disk that is nearly full, before a write fails on it.
func (c *Chain) checkDisk() error {
	if c.cfg.DiskFloor < 0 {
		return nil
	}
	free, err := c.cfg.free(c.cfg.Home)
	if err != nil {
		return err
	}
	if free < uint64(c.cfg.DiskFloor) {
		return fmt.Errorf("%w: %d MiB are free in %s, the ledger needs %d", ErrDisk, free>>20, c.cfg.Home, c.cfg.DiskFloor>>20)
	}
	return nil
}

const machineEvery = time.Second

// watchMachine looks after what consensus itself does not: the clock, and the disk. It ends
// the chain when a write is about to fail: a database that ran into a full disk may not open
// again.
func (c *Chain) watchMachine(p *parts) {
	tick := time.NewTicker(machineEvery)
	defer tick.Stop()
	voting := false
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
		if !voting && !p.reactor.WaitSync() {
			voting = true
			go c.watchConsensus(p)
		}
		free, err := c.cfg.free(c.cfg.Home)
		if c.cfg.DiskFloor > 0 && err == nil && free < uint64(c.cfg.DiskFloor)/2 {
			c.fail(fmt.Errorf("%w: %d MiB are free in %s; the ledger stopped before a write could fail, make room and start again", ErrDisk, free>>20, c.cfg.Home))
			c.Stop()
			return
		}
		c.skew.measure(p.ctx)
		// What the consensus key itself reported stands until it signs again.
		if err := c.fit(); err != nil || c.problem.ofMachine() {
			c.problem.note(c.log, err)
		}
	}
}
