package consensus

import (
	"fmt"
	"sync"

	dbm "github.com/cometbft/cometbft-db"
	cmtstate "github.com/cometbft/cometbft/proto/tendermint/state"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/types"
)

// turns computes the validators of a block with their turns as proposers. CometBFT stores
// a set where it changed, and at every 100,000th block, and walks from there: a tenth of
// a second for a height far from it, which any peer may ask for. Here the sets on the way
// are kept, so that a walk is short, whoever asks for what in whatever order.
type turns struct {
	db dbm.DB // of the states

	mu    sync.Mutex
	marks map[mark]*types.ValidatorSet // guarded by mu
	order []mark                       // the oldest first; guarded by mu
}

// mark is a height of a walk.
type mark struct{ from, height int64 }

const (
	markEvery  = 1000 // heights
	marksKept  = 512  // some megabytes, and more than all blocks of the evidence window need
	storedEach = 100_000
)

func newTurns(db dbm.DB) *turns { return &turns{db: db, marks: make(map[mark]*types.ValidatorSet)} }

// at returns what LoadValidators does.
func (t *turns) at(states sm.Store, height int64) (*types.ValidatorSet, error) {
	from, err := t.stored(height)
	if err != nil {
		return nil, err
	}
	if from == height {
		return states.LoadValidators(height)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := height - height%markEvery
	for at > from && t.marks[mark{from, at}] == nil {
		at -= markEvery
	}
	var set *types.ValidatorSet
	if at > from {
		set = t.marks[mark{from, at}].Copy()
	} else if set, err = states.LoadValidators(from); err != nil {
		return nil, err
	} else {
		at = from
	}
	for at < height {
		next := min(height, at-at%markEvery+markEvery)
		set.IncrementProposerPriority(int32(next - at))
		if at = next; at%markEvery == 0 {
			t.keep(mark{from, at}, set.Copy())
		}
	}
	return set, nil
}

// keep notes a set. mu is held.
func (t *turns) keep(m mark, set *types.ValidatorSet) {
	if t.marks[m] == nil {
		t.order = append(t.order, m)
	}
	t.marks[m] = set
	if len(t.order) > marksKept {
		delete(t.marks, t.order[0])
		t.order = t.order[1:]
	}
}

// stored returns where the set of a height is stored, as CometBFT's state store does it.
func (t *turns) stored(height int64) (int64, error) {
	b, err := t.db.Get(fmt.Appendf(nil, "validatorsKey:%d", height))
	if err != nil {
		return 0, err
	}
	info := new(cmtstate.ValidatorsInfo)
	if len(b) == 0 {
		return 0, sm.ErrNoValSetForHeight{Height: height}
	}
	if err := info.Unmarshal(b); err != nil {
		return 0, err
	}
	if info.ValidatorSet != nil {
		return height, nil
	}
	return max(height-height%storedEach, info.LastHeightChanged), nil
}
