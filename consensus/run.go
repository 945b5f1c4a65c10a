package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Start opens the stores, brings the application to their height, and joins the other
// nodes. It returns when the node runs; blocks are fetched in the background.
func (c *Chain) Start(ctx context.Context) error {
	if err := c.awaitGenesis(ctx); err != nil {
		return err
	}
	if err := c.begin(); err != nil {
		return err
	}
	p, err := c.startUp(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = false
	if err == nil && c.dead {
		c.unregisterMetrics()
		p.close(c)
		err = errors.New("stopped in the middle of it")
	}
	if err != nil {
		c.lock.Close()
		c.lock = nil
		return fmt.Errorf("start the ledger: %w", err)
	}
	c.parts = p
	return nil
}

func (c *Chain) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || c.starting || c.parts != nil {
		return errors.New("start the ledger: it was started before")
	}
	if err := c.openHome(); err != nil {
		return err
	}
	c.starting = true
	return nil
}

func (c *Chain) startUp(ctx context.Context) (*parts, error) {
	if err := c.checkDisk(); err != nil {
		return nil, fmt.Errorf("%w; make room and start again", err)
	}
	p, err := c.build(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.startParts(p); err != nil {
		c.unregisterMetrics()
		p.close(c)
		return nil, err
	}
	return p, nil
}

func (c *Chain) startParts(p *parts) error {
	if err := c.watchBlocks(p); err != nil {
		return err
	}
	if err := c.skew.serve(p); err != nil {
		return err
	}
	if p.comet != nil {
		if err := c.startComet(p); err != nil {
			return err
		}
	}
	if err := p.sw.Start(); err != nil {
		return fmt.Errorf("start the reactors: %w", err)
	}
	p.started = true
	if p.comet != nil {
		if err := p.sw.DialPeersAsync(c.cfg.Comet.Peers); err != nil {
			return fmt.Errorf("dial the peers: %w", err)
		}
	}
	if err := c.registerMetrics(); err != nil {
		return err
	}
	go c.watchMachine(p)
	p.tasks.Go(func() { c.sweeper(p) })
	if p.fetch {
		p.tasks.Go(func() { c.syncState(p) })
	}
	return nil
}

// awaitGenesis waits for the time at which the ledger begins.
func (c *Chain) awaitGenesis(ctx context.Context) error {
	wait := c.cfg.Genesis.GenesisTime.Sub(c.cfg.now())
	if wait <= 0 {
		return nil
	}
	c.log.Info("the ledger begins later", "at", c.cfg.Genesis.GenesisTime)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the begin of the ledger at %s: %w", c.cfg.Genesis.GenesisTime.Format(time.RFC3339), ctx.Err())
	}
}

// Run starts the chain, waits for the end of ctx or for an error that ends the chain,
// and stops it.
func (c *Chain) Run(ctx context.Context) error {
	if err := c.Start(ctx); err != nil {
		return err
	}
	defer c.Stop()
	select {
	case <-ctx.Done():
		return nil
	case err := <-c.Err():
		return err
	}
}

// Stop ends the chain and closes its stores. The host goes on.
func (c *Chain) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	return c.stopLocked()
}

func (c *Chain) stopLocked() error {
	p := c.parts
	if p == nil {
		return nil
	}
	c.parts = nil
	c.unregisterMetrics()
	p.close(c)
	c.pool.end()
	err := c.lock.Close()
	c.lock = nil
	return err
}

// running returns the parts of a chain that runs.
func (c *Chain) running() (*parts, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parts == nil {
		return nil, ErrNotRunning
	}
	return c.parts, nil
}

// hold returns the parts of a chain that runs and keeps their stores open until done.
func (c *Chain) hold() (p *parts, done func(), err error) {
	if p, err = c.running(); err != nil {
		return nil, nil, err
	}
	p.access.RLock()
	if p.closed {
		p.access.RUnlock()
		return nil, nil, ErrNotRunning
	}
	return p, p.access.RUnlock, nil
}

// ErrNotRunning is returned for a chain that was not started, or stopped.
var ErrNotRunning = errors.New("the ledger does not run")

// watchConsensus reports a failure of consensus: CometBFT logs it and ends its routine,
// and the process would go on as if nothing had happened.
func (c *Chain) watchConsensus(p *parts) {
	p.state.Wait()
	if p.ctx.Err() == nil && p.state.IsRunning() {
		c.fail(errors.New("consensus failed: the log has the cause under CONSENSUS FAILURE; this node no longer votes or follows"))
	}
}
