package consensus

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
)

// Status is how the node stands.
type Status struct {
	Height     mesh.Height // of the last block
	Oldest     mesh.Height // block that is kept; older ones were pruned
	Time       time.Time   // of the last block
	AppHash    []byte      // state after the last block
	CatchingUp bool
	Validator  bool   // it is in the validator set and has the key
	Power      int64  // its voting power
	Total      int64  // that of all validators
	Validators int    // how many there are
	Missed     int64  // own votes that recent blocks lack, since the start
	Peers      int    // other nodes of the ledger that are connected
	Blocks     int64  // since the start
	Waiting    int    // transactions in the mempool
	Problem    string // why the node does not vote, in words for its operator
	Doing      string // what it does to catch up, where that takes long
}

// doing is what a node that catches up is at.
type doing struct {
	mu   sync.Mutex
	text string // guarded by mu
}

func (d *doing) say(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.text = text
}

func (d *doing) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text
}

// seen is what the blocks of this run told.
type seen struct {
	missed atomic.Int64
	blocks atomic.Int64
}

// watchBlocks hands every new block to those that wait for something in it. The
// subscription has no buffer, so that none is missed; what is done here is quick.
func (c *Chain) watchBlocks(p *parts) error {
	sub, err := p.events.SubscribeUnbuffered(p.ctx, "mesh", types.EventQueryNewBlock)
	if err != nil {
		return fmt.Errorf("subscribe to blocks: %w", err)
	}
	p.watched = make(chan struct{})
	go func() {
		defer close(p.watched)
		for { // until the bus stops: it would hang on a subscriber that left
			select {
			case m := <-sub.Out():
				if e, ok := m.Data().(types.EventDataNewBlock); ok {
					c.skew.saw(e.Block.Time)
					c.pool.tell(e.Block, e.ResultFinalizeBlock.TxResults)
					c.count(p, e.Block)
				}
			case <-sub.Canceled():
				return
			}
		}
	}()
	return nil
}

// count keeps the figures of a block.
func (c *Chain) count(p *parts, b *types.Block) {
	c.seen.blocks.Add(1)
	if c.self == nil || b.Height < 2 {
		return
	}
	vals, err := p.signers(mesh.Height(b.Height - 1))
	if err != nil {
		return // before the first block that is kept
	}
	i, _ := vals.GetByAddress(c.self)
	if i >= 0 && int(i) < len(b.LastCommit.Signatures) && b.LastCommit.Signatures[i].BlockIDFlag != types.BlockIDFlagCommit {
		c.seen.missed.Add(1)
	}
}

// Status tells how the node stands.
func (c *Chain) Status() (Status, error) {
	p, done, err := c.hold()
	if err != nil {
		return Status{}, err
	}
	defer done()
	state, err := p.states.Load()
	if err != nil {
		return Status{}, fmt.Errorf("read the state of the ledger: %w", err)
	}
	s := Status{Height: mesh.Height(state.LastBlockHeight), Oldest: mesh.Height(p.blocks.Base()), Time: state.LastBlockTime,
		AppHash: state.AppHash, CatchingUp: p.reactor.WaitSync(), Missed: c.seen.missed.Load(), Blocks: c.seen.blocks.Load(),
		Peers: p.sw.Peers().Size(), Waiting: p.pool.Size()}
	if state.Validators != nil {
		s.Total, s.Validators = state.Validators.TotalVotingPower(), state.Validators.Size()
		if _, v := state.Validators.GetByAddress(c.self); v != nil && c.self != nil {
			s.Validator, s.Power = true, v.VotingPower
		}
	}
	s.Problem, s.Doing = c.problem.text(), c.doing.said()
	return s, nil
}
