package consensus

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cometbft/cometbft/evidence"
	cmtstate "github.com/cometbft/cometbft/proto/tendermint/state"
)

// CometBFT prunes a block and leaves its header, commit and validators while evidence about
// it counts. What it prunes later begins behind them, so that they would stay for ever.

const (
	sweepEvery = time.Minute
	sweepMost  = 10_000 // heights at once, while nobody can close the stores
)

// sweptKey is where the database of the blocks says from which height on headers are kept.
var sweptKey = []byte("mesh/swept")

// sweeper deletes what pruned blocks left, once evidence about them no longer counts.
func (c *Chain) sweeper(p *parts) {
	for pause(p.ctx, orDefault(c.cfg.sweepEvery, sweepEvery)) == nil {
		for {
			n, err := c.sweep(p)
			if err != nil && p.ctx.Err() == nil {
				c.log.Warn("ledger: old headers cannot be deleted", "err", err)
			}
			if err != nil || n < sweepMost {
				break
			}
		}
	}
}

// sweep goes on from where it was, and returns how many heights it passed.
func (c *Chain) sweep(p *parts) (int64, error) {
	p.access.RLock()
	defer p.access.RUnlock()
	if p.closed {
		return 0, ErrNotRunning
	}
	state, err := p.states.Load()
	if err != nil {
		return 0, err
	}
	from := state.InitialHeight
	b, err := p.blocksDB.Get(sweptKey)
	if err != nil {
		return 0, err
	}
	if len(b) == 8 {
		from = int64(binary.BigEndian.Uint64(b))
	}
	blocks, states := p.blocksDB.NewBatch(), p.statesDB.NewBatch()
	defer blocks.Close()
	defer states.Close()
	h := from
	for ; h < min(p.blocks.Base(), from+sweepMost); h++ {
		if meta := p.blocks.LoadBlockMeta(h); meta != nil {
			if !evidence.IsEvidenceExpired(state.LastBlockHeight, state.LastBlockTime, h, meta.Header.Time, state.ConsensusParams.Evidence) {
				break
			}
			for _, kind := range []string{"H", "C", "EC"} {
				if err := blocks.Delete(fmt.Appendf(nil, "%s:%d", kind, h)); err != nil {
					return 0, err
				}
			}
		}
		// A height whose validators differ from those before has them whole, and those after
		// point to it: that one stays, one for each change.
		key := fmt.Appendf(nil, "validatorsKey:%d", h)
		raw, err := p.statesDB.Get(key)
		if err != nil {
			return 0, err
		}
		var info cmtstate.ValidatorsInfo
		if len(raw) > 0 && info.Unmarshal(raw) == nil && info.ValidatorSet == nil {
			if err := states.Delete(key); err != nil {
				return 0, err
			}
		}
	}
	if h == from {
		return 0, nil
	}
	if err := states.Write(); err != nil {
		return 0, err
	}
	// The place last: what a crash leaves out is deleted again.
	if err := blocks.Set(sweptKey, binary.BigEndian.AppendUint64(nil, uint64(h))); err != nil {
		return 0, err
	}
	return h - from, blocks.Write()
}
