package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

func openRunTx(max uint32, bond, reward uint64) *ledgerpb.Tx {
	d := mesh.HashOf([]byte("descriptor"))
	return &ledgerpb.Tx{Action: &ledgerpb.Tx_OpenRun{OpenRun: &ledgerpb.OpenRun{Descriptor_: d[:], Bond: bond, MembersMax: max, Reward: reward}}}
}

func joinTx(run mesh.Hash) *ledgerpb.Tx {
	return &ledgerpb.Tx{Action: &ledgerpb.Tx_JoinRun{JoinRun: &ledgerpb.JoinRun{Run: run[:]}}}
}

func leaveTx(run mesh.Hash) *ledgerpb.Tx {
	return &ledgerpb.Tx{Action: &ledgerpb.Tx_LeaveRun{LeaveRun: &ledgerpb.LeaveRun{Run: run[:]}}}
}

func traceTx(run mesh.Hash, round uint64, root string) *ledgerpb.Tx {
	h := mesh.HashOf([]byte(root))
	return &ledgerpb.Tx{Action: &ledgerpb.Tx_CommitTrace{CommitTrace: &ledgerpb.CommitTrace{Run: run[:], Round: round, Root: h[:]}}}
}

func postTx(run mesh.Hash, round uint64, hash string) *ledgerpb.Tx {
	h := mesh.HashOf([]byte(hash))
	return &ledgerpb.Tx{Action: &ledgerpb.Tx_PostCheckpoint{PostCheckpoint: &ledgerpb.PostCheckpoint{Run: run[:], Round: round, Hash: h[:]}}}
}

func closeRunTx(run mesh.Hash) *ledgerpb.Tx {
	return &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseRun{CloseRun: &ledgerpb.CloseRun{Run: run[:]}}}
}

// TestRunTally: the count of a checkpoint follows members who change their word or
// leave, and never counts one twice.
func TestRunTally(t *testing.T) {
	w := newEscrowWorld(t, Config{})
	members := []string{"a", "b", "c", "d", "e"}
	w.fund("owner", 100)
	w.must("owner", openRunTx(5, 10, 100))
	id := w.lastID
	for _, m := range members {
		w.fund(m, 10)
		w.must(m, joinTx(id))
	}
	round := func() uint64 {
		run, err := NewView(w.o).Run(id)
		if err != nil {
			t.Fatal(err)
		}
		return run.GetRound()
	}
	for _, step := range []struct {
		who, hash string
		stands    bool
	}{
		{"a", "x", false}, {"b", "x", false}, {"c", "y", false}, {"d", "y", false},
		{"a", "y", true},
	} {
		w.must(step.who, postTx(id, 1, step.hash))
		if got := round() == 1; got != step.stands {
			t.Fatalf("%s posts %s: stands %v", step.who, step.hash, got)
		}
	}
	// Of five, two say x, and the three others leave one by one: the two are more than
	// half once there are three.
	w.must("a", postTx(id, 2, "x"))
	w.must("b", postTx(id, 2, "x"))
	w.must("c", postTx(id, 2, "z"))
	if err := w.do("a", postTx(id, 2, "x")); err == nil {
		t.Error("the same word twice is taken")
	}
	w.must("c", leaveTx(id))
	if err := w.do("a", postTx(id, 2, "x")); err == nil {
		t.Error("two of four are half")
	}
	w.must("d", leaveTx(id))
	if round() != 1 {
		t.Error("a checkpoint stands without a word")
	}
	w.must("a", postTx(id, 2, "x"))
	if round() != 2 {
		t.Error("two of three are not more than half")
	}
	w.check()
}

// TestRunsConserveMoney does random things to runs, keeps the books after each step and
// gets everything back at the end.
func TestRunsConserveMoney(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	w := newEscrowWorld(t, Config{Verify: func(*Tx) bool { return true }})
	people := make([]string, 12)
	for i := range people {
		people[i] = fmt.Sprint("p", i)
		w.fund(people[i], 10_000)
	}
	var runs []mesh.Hash
	owner := make(map[mesh.Hash]string)
	taken := make(map[string]int)
	for range 8 {
		for range 150 {
			who := people[r.IntN(len(people))]
			if len(runs) == 0 || r.IntN(25) == 0 {
				if w.do(who, openRunTx(1+r.Uint32N(6), r.Uint64N(300), r.Uint64N(500))) == nil {
					runs = append(runs, w.lastID)
					owner[w.lastID] = who
				}
				continue
			}
			id := runs[r.IntN(len(runs))]
			run, _ := load[ledgerpb.Run](w.o, runKey(id))
			round := run.GetRound() + r.Uint64N(3)
			hash := fmt.Sprint(r.IntN(2))
			op := r.IntN(12)
			tx := map[bool]*ledgerpb.Tx{true: joinTx(id), false: postTx(id, round, hash)}[op < 4]
			switch op {
			case 4:
				tx = leaveTx(id)
			case 5, 6:
				tx = traceTx(id, round, hash)
			case 7:
				if tx = closeRunTx(id); r.IntN(4) == 0 {
					who = owner[id]
				}
			}
			if w.do(who, tx) == nil {
				taken[kindOf(tx)]++
			}
			w.check()
		}
		w.turn()
		w.pay()
		w.check()
	}
	if len(taken) != 5 { // but for opening
		t.Errorf("actions taken: %v", taken)
	}
	for _, id := range runs {
		_ = w.do(owner[id], closeRunTx(id))
	}
	w.turn()
	w.pay()
	w.check()
	if got := w.used(); strings.ContainsAny(got, string([]byte{tableMember, tableTrace, tableTally, tableDue, tableSweep})) {
		t.Errorf("records are left in tables %s", got)
	}
	accounts := uint64(0)
	scan(w.o, []byte{tableAccount}, func(_ []byte, a *ledgerpb.Account) { accounts += a.GetBalance() })
	if accounts != w.money {
		t.Errorf("%d of %d came back", accounts, w.money)
	}
}

// TestRunRejoin: who collects its bond and joins again stays a member when the epoch is
// settled, and has no second trace in a round.
func TestRunRejoin(t *testing.T) {
	w := newEscrowWorld(t, Config{})
	w.must("owner", openRunTx(3, 10, 0))
	id := w.lastID
	w.fund("a", 25)
	w.must("a", joinTx(id))
	w.must("a", traceTx(id, 1, "x"))
	w.must("a", leaveTx(id))
	w.turn()
	w.must("a", leaveTx(id))
	if got := w.o.account(w.address("a")).GetBalance(); got != 25 {
		t.Errorf("%d after the bond came back", got)
	}
	w.must("a", joinTx(id))
	if err := w.do("a", traceTx(id, 1, "y")); err == nil || !strings.Contains(err.Error(), "round 1") {
		t.Errorf("a second trace: %v", err)
	}
	w.pay()
	run, err := NewView(w.o).Run(id)
	if err != nil || run.GetMembers() != 1 || run.GetLeaving() != 0 {
		t.Errorf("after the epoch: %v, %v", run, err)
	}
	var roots []mesh.Hash
	if err := NewView(w.o).Traces(id, 1, func(_ mesh.Address, root mesh.Hash) { roots = append(roots, root) }); err != nil || !slices.Equal(roots, []mesh.Hash{mesh.HashOf([]byte("x"))}) {
		t.Errorf("traces: %v, %v", roots, err)
	}
	w.check()
}

// TestDueIsBounded: an epoch pays so much back and sweeps so much, the next goes on;
// who does not wait collects.
func TestDueIsBounded(t *testing.T) {
	w := newEscrowWorld(t, Config{})
	var ids []mesh.Hash
	owner := w.address("ann")
	const n = perEpoch + 5
	w.money += 3 * n
	w.o.totals(func(s *ledgerpb.Totals) { s.Escrow = 3 * n })
	for i := range uint64(n) {
		id := mesh.HashOf(be64(i))
		ids = append(ids, id)
		w.o.save(escrowKey(id), &ledgerpb.Escrow{Owner: owner[:], Amount: 3, Closing: 1})
		w.o.save(laneKey(id, owner), &ledgerpb.LaneState{Cap: 1, Paid: 1})
		w.o.save(laneKey(id, w.address("bob")), &ledgerpb.LaneState{Cap: 1, Paid: 1})
		w.o.owe(1, dueEscrow, id[:])
	}
	w.o.owe(9, dueEscrow, ids[0][:]) // of a later epoch
	w.turn()
	start := time.Now()
	w.pay()
	t.Logf("%d escrows paid back in %v", perEpoch, time.Since(start))
	if got := w.o.account(owner).GetBalance(); got != 3*perEpoch {
		t.Errorf("%d were paid, want %d", got, 3*perEpoch)
	}
	ids = sortedHashes(ids)
	last := ids[n-1]
	w.must("ann", &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: last[:]}}})
	if got := w.o.account(owner).GetBalance(); got != 3*(perEpoch+1) {
		t.Errorf("%d were paid when the owner collected", got)
	}
	w.turn()
	w.pay()
	if got := w.o.account(owner).GetBalance(); got != 3*n {
		t.Errorf("%d were paid in the end, want %d", got, 3*n)
	}
	w.check()
	for range 4 { // an escrow with its two lanes takes three steps of a sweep
		w.turn()
		w.pay()
	}
	if got := w.used(); strings.ContainsAny(got, string([]byte{tableLane, tableSweep})) || !strings.ContainsRune(got, tableDue) {
		t.Errorf("records are in tables %s", got)
	}
}

func TestCommittedIsBelowAllLayers(t *testing.T) {
	base := new(escrowState)
	base.records = map[string][]byte{"ka": {1}}
	o := newOverlay(base)
	o.set([]byte("kb"), []byte{2})
	if got := keysOf(o.layer().layer().committed(), []byte("k"), 9); len(got) != 1 || !slices.Equal(got[0], []byte("ka")) {
		t.Errorf("keys: %q", got)
	}
}
