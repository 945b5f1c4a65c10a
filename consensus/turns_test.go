package consensus

import (
	"fmt"
	"math/rand/v2"
	"testing"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/cometbft/cometbft/crypto/ed25519"
	cmtstate "github.com/cometbft/cometbft/proto/tendermint/state"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/types"
)

// turnsDB is the part of a state store that has validators, as CometBFT writes it for
// blocks from a first to a last one, with changes of the set at some heights.
func turnsDB(t testing.TB, n int, first, last int64, changes ...int64) (dbm.DB, map[int64]*types.ValidatorSet) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, uint64(n)))
	var all []*types.Validator
	for range n {
		all = append(all, types.NewValidator(ed25519.GenPrivKey().PubKey(), 1+r.Int64N(20_000_000)))
	}
	set := types.NewValidatorSet(all)
	db, changed, walked := dbm.NewMemDB(), first, make(map[int64]*types.ValidatorSet)
	for h := first; h <= last; h++ {
		if len(changes) > 0 && changes[0] == h {
			change := types.NewValidator(ed25519.GenPrivKey().PubKey(), 1+r.Int64N(20_000_000))
			if err := set.UpdateWithChangeSet([]*types.Validator{change}); err != nil {
				t.Fatal(err)
			}
			changed, changes = h, changes[1:]
		}
		info := &cmtstate.ValidatorsInfo{LastHeightChanged: changed}
		if h == changed || h%storedEach == 0 {
			pb, err := set.ToProto()
			if err != nil {
				t.Fatal(err)
			}
			info.ValidatorSet = pb
		}
		raw, err := info.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Set(fmt.Appendf(nil, "validatorsKey:%d", h), raw); err != nil {
			t.Fatal(err)
		}
		walked[h] = set.Copy()
		set.IncrementProposerPriority(1)
	}
	return db, walked
}

func sameTurns(a, b *types.ValidatorSet) bool {
	if string(a.Hash()) != string(b.Hash()) || string(a.Proposer.Address) != string(b.Proposer.Address) || len(a.Validators) != len(b.Validators) {
		return false
	}
	for i, v := range a.Validators {
		if v.ProposerPriority != b.Validators[i].ProposerPriority {
			return false
		}
	}
	return true
}

// TestTurns compares with what CometBFT computes, and with the chain's own walk, over
// changes of the set and over a height at which it is stored anyway, in any order.
func TestTurns(t *testing.T) {
	const first, last = 97_000, 103_200
	db, walked := turnsDB(t, 7, first, last, 98_001, 98_002, 101_500)
	states := sm.NewStore(db, sm.StoreOptions{})
	turns := newTurns(db)
	r := rand.New(rand.NewPCG(3, 4))
	for range 400 {
		h := first + r.Int64N(last-first+1)
		got, err := turns.at(states, h)
		if err != nil {
			t.Fatal(err)
		}
		want, err := states.LoadValidators(h)
		if err != nil {
			t.Fatal(err)
		}
		if !sameTurns(got, want) || !sameTurns(got, walked[h]) {
			t.Fatalf("height %d: other turns than the chain's", h)
		}
		got.IncrementProposerPriority(3) // the caller's own
	}
	for _, h := range []int64{first - 1, last + 1} {
		if _, err := turns.at(states, h); err == nil {
			t.Errorf("height %d has validators", h)
		}
	}
}

// TestTurnsGoOn: what was computed before is gone on from, for heights below and above,
// and no more is kept than there is room for.
func TestTurnsGoOn(t *testing.T) {
	db, walked := turnsDB(t, 3, 1, 6000)
	states := sm.NewStore(db, sm.StoreOptions{})
	turns := newTurns(db)
	if _, err := turns.at(states, 5999); err != nil {
		t.Fatal(err)
	}
	// Who walked from the stored set again would miss it.
	if err := db.Delete([]byte("validatorsKey:1")); err != nil {
		t.Fatal(err)
	}
	for _, h := range []int64{5999, 5001, 5000, 4999, 1001, 1000, 6000} {
		got, err := turns.at(states, h)
		if err != nil || !sameTurns(got, walked[h]) {
			t.Errorf("height %d: %v", h, err)
		}
	}
	if _, err := turns.at(states, 999); err == nil {
		t.Error("the stored set is still there: the test shows nothing")
	}
	for h := range int64(3 * marksKept) {
		turns.keep(mark{1, h}, walked[1])
	}
	if len(turns.marks) != marksKept || len(turns.order) != marksKept {
		t.Errorf("%d sets are kept, %d in order", len(turns.marks), len(turns.order))
	}
}

// BenchmarkTurns asks for validators of heights far from where the set changed.
func BenchmarkTurns(b *testing.B) {
	const last = 5000
	db, _ := turnsDB(b, 100, 1, last)
	states := sm.NewStore(db, sm.StoreOptions{})
	turns := newTurns(db)
	for name, load := range map[string]func(int64) (*types.ValidatorSet, error){
		"cometbft": states.LoadValidators, "kept": func(h int64) (*types.ValidatorSet, error) { return turns.at(states, h) },
	} {
		b.Run(name, func(b *testing.B) {
			for i := range b.N {
				if _, err := load(last - int64(i)%1000); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
