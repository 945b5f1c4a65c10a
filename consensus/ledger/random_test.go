package ledger

import (
	"os"
	"slices"
	"strconv"
	"testing"
)

// randomSize is how many transactions a random run has, and after how many blocks all
// invariants are checked: fewer in short tests, unless MESH_LONG is set.
func randomSize(t *testing.T) (txs, every int) {
	switch {
	case os.Getenv("MESH_LONG") != "":
		return 200_000, 1
	case testing.Short():
		return 5_000, 9
	}
	return 20_000, 7
}

// TestRandom applies random transactions, valid and not, over many epochs; no coin is
// lost and nothing contradicts itself. MESH_SEED makes others.
func TestRandom(t *testing.T) {
	seed := uint64(1)
	if s := os.Getenv("MESH_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	txs, every := randomSize(t)
	g := newGenerator(t, seed)
	blocks := 0
	g.run(txs, func(b Block, out *Outcome) {
		if blocks++; blocks%every == 0 {
			if err := CheckInvariants(g.state); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
	})
	if err := CheckInvariants(g.state); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	for _, kind := range append(slices.Clone(g.kinds), "") {
		n := g.seen[kind]
		if n == nil {
			t.Errorf("no transaction of kind %q", kind)
			continue
		}
		t.Logf("%-16s %6d carried out, %6d refused, %6d without effect", kind, n.done, n.refused, n.idle)
	}
	now, err := NewView(g.state).Epoch()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range g.kinds {
		if kind == "unjail" && now.GetEpoch() < 2 { // who is jailed waits for another epoch at least
			continue
		}
		if n := g.seen[kind]; n != nil && n.done == 0 {
			t.Errorf("no transaction of kind %q was carried out", kind)
		}
	}
	status := make(map[string]int)
	all, err := NewView(g.state).Proposals()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		status[p.GetStatus()]++
	}
	epoch, err := NewView(g.state).Epoch()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d transactions in %d blocks, epoch %d, %d records, proposals: %v", g.count, blocks, epoch.GetEpoch(), len(g.state.keys), status)
	for _, want := range []string{StatusPassed, StatusRejected} {
		if status[want] == 0 {
			t.Errorf("no proposal was %s", want)
		}
	}
}
