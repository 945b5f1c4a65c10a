package router

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// laneWorld is a world of n hosts, of which those that has names can be paid.
func laneWorld(t *testing.T, n int, has func(i int) bool) (*world, *testPurse, []*testTill) {
	w, purse, tills := payWorld(t, n, func(int) *engine { return &engine{pace: time.Millisecond} })
	for i, till := range tills {
		till.poor = func() bool { return !has(i) }
	}
	return w, purse, tills
}

// asked sums up what the hosts saw: asks for offers, and calls that they refused.
func asked(tills []*testTill) (offers, refused int) {
	for _, till := range tills {
		till.mu.Lock()
		offers, refused = offers+till.offers, refused+till.refused
		till.mu.Unlock()
	}
	return offers, refused
}

// TestLanes: of many hosts few can be paid from an escrow. A payer who has just come asks
// one of these, and holds nothing against the others.
func TestLanes(t *testing.T) {
	const hosts, lanes = 40, 16
	byIndex := func(w *world, first func(i int) bool) func([]mesh.Address) []mesh.Address {
		return func(known []mesh.Address) (out []mesh.Address) {
			for i, p := range w.order {
				for _, k := range known {
					if k == p.addr && first(i) && len(out) < lanes {
						out = append(out, k)
					}
				}
			}
			return out
		}
	}
	for _, tt := range []struct {
		name   string
		have   int
		rank   func(has func(int) bool) func(int) bool // who seems likely; nil: nothing is known
		offers int                                     // asks for offers until the answer
	}{
		{"the ranks are right", lanes, func(has func(int) bool) func(int) bool { return has }, 5},
		{"no ranks", lanes, nil, 25},
		{"the ranks are wrong", lanes, func(has func(int) bool) func(int) bool { return func(i int) bool { return !has(i) } }, 40},
		{"one lane", 1, nil, 40},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 30 {
				synctest.Test(t, func(t *testing.T) {
					order := rand.Perm(hosts)
					has := func(i int) bool { return order[i] < tt.have }
					w, purse, tills := laneWorld(t, hosts, has)
					defer w.close()
					if tt.rank != nil {
						purse.likely = byIndex(w, tt.rank(has))
					}
					for i := range 3 {
						got, err := w.collect(t.Context(), ask(10), nil)
						if err != nil {
							t.Fatal(err)
						}
						w.check(t, ask(10), 0, got[0])
						w.keeper.forget()
						offers, refused := asked(tills)
						if refused > 0 {
							t.Fatalf("question %d: %d calls were refused", i, refused)
						}
						if i == 0 && offers > tt.offers {
							t.Errorf("%d hosts were asked for an offer, want at most %d", offers, tt.offers)
						}
					}
					w.router.hosts.mu.Lock()
					defer w.router.hosts.mu.Unlock()
					for k, r := range w.router.hosts.book {
						if r.failures > 0 || !r.until.IsZero() {
							t.Errorf("%s is shunned", k.peer.Short())
						}
					}
				})
			}
		})
	}
}

// TestLanesTurn: in the next epoch other hosts have the lanes.
func TestLanesTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var epoch atomic.Int64
		w, purse, tills := laneWorld(t, 40, func(i int) bool { return int64(i%2) == epoch.Load() })
		defer w.close()
		for i := range 6 {
			epoch.Store(int64(i % 2))
			purse.epoch.Store(uint64(i))
			if _, err := w.collect(t.Context(), ask(10), nil); err != nil {
				t.Fatal(err)
			}
			if _, refused := asked(tills); refused > 0 {
				t.Fatalf("epoch %d: %d calls were refused", i, refused)
			}
		}
	})
}

// TestNoLane: where nobody can be paid nobody is called, the client hears why, and a lane
// that comes is found at once.
func TestNoLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lane atomic.Int64
		lane.Store(-1)
		w, _, tills := laneWorld(t, 12, func(i int) bool { return int64(i) == lane.Load() })
		defer w.close()
		w.router.cfg.Publish = w.gossip
		_, err := w.collect(t.Context(), ask(10), nil)
		if !errors.Is(err, inference.ErrUnpaid) || !strings.Contains(err.Error(), "has nothing for this host") {
			t.Errorf("%v", err)
		}
		if w.announced != 1 {
			t.Errorf("%d tasks: others may have a lane", w.announced)
		}
		lane.Store(3)
		time.Sleep(2 * time.Second)
		got, err := w.collect(t.Context(), ask(10), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got[0].hosts[0] != addressOf(3) {
			t.Error("another host answered")
		}
		if _, refused := asked(tills); refused > 0 {
			t.Errorf("%d calls were refused", refused)
		}
	})
}

// TestLaneByTask: a host that nobody knew, and that has a lane, hears of the task; the others
// that it reaches keep silent.
func TestLaneByTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, purse, tills := laneWorld(t, 10, func(i int) bool { return i == 9 })
		defer w.close()
		w.dir.hosts = w.dir.hosts[:2]
		w.router.cfg.Publish = w.gossip
		got, err := w.collect(t.Context(), ask(10), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, refused := asked(tills); refused > 0 || got[0].hosts[0] != addressOf(9) {
			t.Errorf("%d calls were refused", refused)
		}
		if tills[9].offers != 1 {
			t.Errorf("it was asked for %d more offers", tills[9].offers-1)
		}
		// By now it may have none left: those that the directory knows are looked at.
		tills[0].poor = nil
		time.Sleep(unpaidFor)
		q := &question{r: w.router, model: modelID, req: new(inference.Request), extra: []Candidate{{Peer: addressOf(9)}},
			ask: &inferencepb.OfferAsk{Model: modelID[:], MaxTokens: 4, Choices: 1, Escrow: purse.escrow[:], Epoch: 7}}
		w.router.hosts.offered(hostKey{addressOf(9), modelID}, q.funds(), &inferencepb.Offer{Unpaid: true})
		list, err := q.pick(t.Context(), make(map[mesh.Address]bool), 1, time.Now().Add(time.Second))
		if err != nil || list[0].peer != addressOf(0) {
			t.Errorf("%v, %v", list, err)
		}
	})
}

// TestLanesOld has hosts of before there was an escrow in an ask: they offer, and refuse.
func TestLanesOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, tills := laneWorld(t, 6, func(i int) bool { return i == 5 })
		defer w.close()
		for _, till := range tills {
			till.old = true
		}
		got, err := w.collect(t.Context(), ask(10), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, ask(10), 0, got[0])
	})
}
