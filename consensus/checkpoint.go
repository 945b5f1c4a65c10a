package consensus

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/proxy"
	sm "github.com/cometbft/cometbft/state"

	"github.com/gonka-mesh/mesh"
)

// Checkpoint is a block that a person trusts: a ledger with another one is not theirs.
type Checkpoint struct {
	Height mesh.Height
	Hash   mesh.Hash
}

// ForkError tells that this node follows, or would follow, another ledger than the one that
// is trusted.
type ForkError struct {
	Home       string
	Checkpoint Checkpoint
	Hash       []byte // of the block at that height here
}

func (e *ForkError) Error() string {
	return fmt.Sprintf("block %d is %x here and %s in the checkpoint that is trusted: this is not the same ledger; compare the checkpoint with others, "+
		"and if it is right move the databases in %s away (keep the files of the consensus key): the node then fetches the ledger that it belongs to",
		e.Checkpoint.Height, e.Hash, e.Checkpoint.Hash, e.Home)
}

// compare holds a block against the checkpoint.
func (c *Chain) compare(height int64, hash []byte) error {
	cp := c.cfg.Checkpoint
	if cp == nil || mesh.Height(height) != cp.Height || bytes.Equal(hash, cp.Hash[:]) {
		return nil
	}
	return &ForkError{c.cfg.Home, *cp, hash}
}

// compareCheckpoint holds the blocks that are here against it.
func (c *Chain) compareCheckpoint(p *parts) error {
	if c.cfg.Checkpoint == nil {
		return nil
	}
	height := int64(c.cfg.Checkpoint.Height)
	if meta := p.blocks.LoadBlockMeta(height); meta != nil {
		return c.compare(height, meta.BlockID.Hash)
	}
	if base := p.blocks.Base(); base > height {
		c.log.Warn("ledger: the block of the checkpoint is no longer kept here; it was not compared", "height", height, "oldest", base)
	}
	return nil
}

// fresh refuses to go on from a block so old that its validators lose nothing any more by
// signing another one after it. Validators themselves may: the network stood still, and
// waits for them.
func (c *Chain) fresh(state sm.State) error {
	if c.cfg.Period <= 0 || c.cfg.Checkpoint != nil || state.LastBlockHeight == 0 || c.self != nil && state.Validators.HasAddress(c.self) {
		return nil
	}
	if age := c.cfg.now().Sub(state.LastBlockTime); age > c.cfg.Period {
		return fmt.Errorf("the newest block here, %d, is of %s, and what its validators sign is believed for %s: give a newer block that you trust with --trust HEIGHT:HASH",
			state.LastBlockHeight, state.LastBlockTime.Format(time.RFC3339), c.cfg.Period)
	}
	return nil
}

// blockConn is the connection on which CometBFT executes blocks. It holds them against the
// checkpoint.
type blockConn struct {
	proxy.AppConnConsensus
	c *Chain
	p *parts
}

func (b blockConn) ProcessProposal(ctx context.Context, r *abci.RequestProcessProposal) (*abci.ResponseProcessProposal, error) {
	if err := b.c.compare(r.Height, r.Hash); err != nil {
		b.c.log.Warn("ledger: a proposed block is refused", "height", r.Height, "err", err)
		return &abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_REJECT}, nil
	}
	return b.AppConnConsensus.ProcessProposal(ctx, r)
}

func (b blockConn) FinalizeBlock(ctx context.Context, r *abci.RequestFinalizeBlock) (res *abci.ResponseFinalizeBlock, err error) {
	if err = b.c.compare(r.Height, r.Hash); err != nil {
		b.c.fail(err)
	} else {
		res, err = b.AppConnConsensus.FinalizeBlock(ctx, r)
	}
	if err != nil {
		b.c.endFetching(b.p, fmt.Errorf("apply a block: %w", err), func() {})
	}
	return res, err
}

func (b blockConn) Commit(ctx context.Context) (*abci.ResponseCommit, error) {
	res, err := b.AppConnConsensus.Commit(ctx)
	if err != nil {
		b.c.endFetching(b.p, fmt.Errorf("apply a block: %w", err), b.p.pool.Unlock) // which the caller locked
	}
	return res, err
}

// endFetching ends the goroutine that fetches a snapshot or blocks, which calls it: over an
// error of the application or the database it would end the process, and all that the node
// does beside the ledger. Consensus recovers by itself, and at the start errors return.
func (c *Chain) endFetching(p *parts, err error, unlock func()) {
	if p.reactor == nil || !p.reactor.WaitSync() {
		return
	}
	c.fail(err)
	unlock()
	runtime.Goexit()
}
