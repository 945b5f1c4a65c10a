package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// TestRollSkips: many epochs at once come to the same as one after the other, from any
// sound escrow.
func TestRollSkips(t *testing.T) {
	o := newOverlay(empty{})
	try := func(amount, lanes, pool, previous uint64) {
		slow := &ledgerpb.Escrow{Amount: amount, Lanes: lanes, Pool: pool, Previous: previous}
		e := clonePb(slow)
		for epoch := uint64(1); epoch <= 300; epoch++ {
			o.roll(slow, epoch)
			fast := clonePb(e)
			if o.roll(fast, epoch); !proto.Equal(fast, slow) {
				t.Fatalf("%v in epoch %d: %v at once, %v one by one", e, epoch, fast, slow)
			}
			if o.free(slow); *o.err != nil {
				t.Fatalf("%v in epoch %d: %v", e, epoch, *o.err)
			}
		}
	}
	for amount := range uint64(40) {
		for pool := range amount + 1 {
			try(amount, 0, pool, amount-pool)
		}
	}
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		amount := r.Uint64N(uint64(mesh.MaxSupply))
		lanes := r.Uint64N(amount + 1)
		pool := r.Uint64N(amount - lanes + 1)
		try(amount, lanes, pool, r.Uint64N(amount-lanes-pool+1))
	}
	try(uint64(mesh.MaxSupply), 0, uint64(mesh.MaxSupply), 0)
}

func TestRendezvous(t *testing.T) {
	w := newEscrowWorld(t, Config{})
	var set hostSet
	for i := range 40 {
		w.host(fmt.Sprint("host", i), "")
	}
	for _, h := range w.hosts {
		set = append(set, h[:]...)
	}
	seen := make(map[mesh.Address]int)
	for i := range 200 {
		escrow, epoch := mesh.HashOf(be64(uint64(i))), uint64(i%3)
		got := Rendezvous(escrowNetwork, escrow, mesh.Epoch(epoch), w.hosts)
		if len(got) != ImplicitLanes {
			t.Fatalf("%d hosts", len(got))
		}
		in := make(map[mesh.Address]bool)
		for _, h := range got {
			in[h] = true
			seen[h]++
		}
		for _, h := range w.hosts {
			want := uint64(0)
			if in[h] {
				want = 1000 / 16
			}
			if got := set.share(escrowNetwork, escrow, epoch, 1000, h); got != want {
				t.Fatalf("share of %s is %d, want %d", h.Short(), got, want)
			}
		}
	}
	for _, h := range w.hosts { // 80 expected each
		if seen[h] < 40 || seen[h] > 120 {
			t.Errorf("%s has an implicit lane of %d of 200 escrows, about 80 expected", h.Short(), seen[h])
		}
	}
	few := set[:32*5]
	escrow := mesh.HashOf([]byte("x"))
	if got := few.share(escrowNetwork, escrow, 0, 1000, w.hosts[2]); got != 200 {
		t.Errorf("share of one of five hosts: %d", got)
	}
	if got := few.share(escrowNetwork, escrow, 0, 1000, w.hosts[7]); got != 0 {
		t.Errorf("share of a host that is not in the set: %d", got)
	}
	if hostSet(nil).share(escrowNetwork, escrow, 0, 1000, w.hosts[0]) != 0 || len(Rendezvous(escrowNetwork, escrow, 0, nil)) != 0 {
		t.Error("shares without hosts")
	}
	// A host that ranks as another does has its lane by its address, after it.
	twin := w.hosts[0]
	twin[31] ^= 0x80
	pair := []mesh.Address{w.hosts[0], twin}
	if string(pair[0][:]) < string(pair[1][:]) {
		slices.Reverse(pair)
	}
	if got := Rendezvous(escrowNetwork, escrow, 0, pair); got[0] != pair[1] {
		t.Error("equal ranks are not in the order of addresses")
	}
	const want = "4f2e7e86" // pinned: other implementations have to rank alike
	if got := Rendezvous(escrowNetwork, escrow, 3, w.hosts)[0]; fmt.Sprintf("%x", got[:4]) != want {
		t.Errorf("first by rank: %x, want %s", got[:4], want)
	}
}

// TestPayerCannotOverspend lets hosts serve up to what LaneOf says, at random times
// between everything that a payer can do, and then wants all of it: each settlement has
// to be taken and paid in full.
func TestPayerCannotOverspend(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for round := range uint64(6) {
		t.Run(fmt.Sprintf("seed %d", seed+round), func(t *testing.T) { overspend(t, seed+round) })
	}
}

type debt struct {
	host   string
	escrow mesh.Hash
	epoch  uint64
}

func overspend(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	w := newEscrowWorld(t, Config{Verify: func(*Tx) bool { return true }})
	payers, hosts := []string{"ann", "bob", "cyd"}, []string(nil)
	for _, p := range payers {
		w.fund(p, 1_000_000)
	}
	for i := range 20 {
		hosts = append(hosts, fmt.Sprint("host", i))
		w.host(hosts[i], "")
	}
	w.begin()
	owner := make(map[mesh.Hash]string)
	var escrows []mesh.Hash
	owed := make(map[debt]uint64)
	earned := make(map[string]uint64)
	settled := make(map[string]bool) // hosts, of the epoch before
	paidOut := true
	pick := func() mesh.Hash { return escrows[r.IntN(len(escrows))] }

	serve := func(h string) {
		id, now := pick(), w.b.epoch.GetEpoch()
		lane, err := w.left(h, id, now)
		if err != nil {
			return // closing
		}
		room := uint64(lane.Left()) - owed[debt{h, id, now}]
		if now > 0 && !paidOut && !settled[h] {
			if before := owed[debt{h, id, now - 1}]; before > 0 {
				old, err := w.left(h, id, now-1)
				if err != nil {
					t.Fatalf("the lane of an open epoch: %v", err)
				}
				if before > uint64(old.Left()) {
					t.Fatalf("a lane shrank: %d owed, %v left", before, old)
				}
				room -= before - min(before, uint64(old.Implicit))
			}
		}
		if int64(room) < 0 {
			t.Fatalf("a lane shrank below what was served: %v, %d", lane, int64(room))
		}
		if amount := r.Uint64N(room + 1); r.IntN(3) == 0 {
			owed[debt{h, id, now}] += room
		} else {
			owed[debt{h, id, now}] += amount
		}
	}
	settle := func(h string) {
		epoch := w.b.epoch.GetEpoch() - 1
		var lines []*ledgerpb.SettleLine
		sum := uint64(0)
		for _, id := range sortedHashes(escrows) {
			if amount := owed[debt{h, id, epoch}]; amount > 0 {
				lines = append(lines, w.line(owner[id], h, id, epoch, amount))
				sum += amount
			}
		}
		for len(lines) > 0 {
			n := 1 + r.IntN(len(lines))
			if err := w.do(h, settleTx(epoch, lines[:n]...)); err != nil {
				t.Fatalf("epoch %d, %s: %v", epoch, h, err)
			}
			lines = lines[n:]
		}
		settled[h] = true
		earned[h] += sum
	}

	for range 12 { // epochs
		for range 150 {
			h := hosts[r.IntN(len(hosts))]
			payer := payers[r.IntN(len(payers))]
			switch op := r.IntN(20); {
			case op == 0 || len(escrows) == 0:
				amount := 1 + r.Uint64N(20_000)
				var lanes []*ledgerpb.Lane
				if a := w.address(h); r.IntN(2) == 0 {
					lanes = append(lanes, &ledgerpb.Lane{Host: a[:], Cap: 1 + r.Uint64N(amount)})
				}
				id := w.open(payer, amount, lanes...)
				escrows, owner[id] = append(escrows, id), payer
			case op == 1:
				id := pick()
				_ = w.do(payer, &ledgerpb.Tx{Action: &ledgerpb.Tx_TopEscrow{TopEscrow: &ledgerpb.TopEscrow{Escrow: id[:], Amount: r.Uint64N(10_000)}}})
			case op < 5:
				id, a := pick(), w.address(h)
				_, free, err := NewView(w.o).Escrow(id)
				if err != nil {
					t.Fatal(err)
				}
				lane, _ := load[ledgerpb.LaneState](w.o, laneKey(id, a))
				up := lane.GetCap() + r.Uint64N(uint64(free)+2) // one too many at times
				_ = w.do(owner[id], &ledgerpb.Tx{Action: &ledgerpb.Tx_SetLane{SetLane: &ledgerpb.SetLane{Escrow: id[:], Lane: &ledgerpb.Lane{Host: a[:], Cap: up}}}})
			case op == 5 && r.IntN(3) == 0:
				id := pick()
				_ = w.do(owner[id], &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: id[:]}}})
			case op < 15:
				serve(h)
			case op < 18:
				if w.b.epoch.GetEpoch() > 0 && !paidOut && !settled[h] {
					settle(h)
				}
			case op == 18 && w.b.epoch.GetEpoch() > 0 && !paidOut && r.IntN(8) == 0:
				payRest(w, r, hosts, settled, settle)
				paidOut = true
			}
			w.check()
		}
		if w.b.epoch.GetEpoch() > 0 && !paidOut {
			payRest(w, r, hosts, settled, settle)
		}
		clear(settled)
		paidOut = false
		w.b.height++
		w.turn()
		for skip := r.IntN(4); skip == 0; skip = r.IntN(2) { // epochs in which nothing happens
			payRest(w, r, hosts, settled, settle)
			clear(settled)
			w.turn()
		}
	}
	// All is paid, and nothing stays behind.
	for range 4 {
		for _, id := range escrows {
			_ = w.do(owner[id], &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: id[:]}}})
		}
		payRest(w, r, hosts, settled, settle)
		clear(settled)
		w.turn()
		w.check()
	}
	w.pay()
	w.check()
	total := uint64(0)
	for _, h := range hosts {
		if got := w.o.account(w.address(h)).GetBalance(); got != earned[h] {
			t.Errorf("%s earned %d and has %d", h, earned[h], got)
		}
		total += earned[h]
	}
	totals, _ := load[ledgerpb.Totals](w.o, miscKey(miscTotals))
	if totals.GetEscrow() != 0 || total == 0 {
		t.Errorf("%d are left in escrows, %d were earned", totals.GetEscrow(), total)
	}
	if got := w.used(); strings.ContainsAny(got, string([]byte{tableEscrow, tableLane, tableLines, tableSettling, tableDue, tableSweep})) {
		t.Errorf("records are left in tables %s", got)
	}
}

// payRest lets most of the hosts settle that did not yet, and closes the epoch before.
func payRest(w *escrowWorld, r *rand.Rand, hosts []string, settled map[string]bool, settle func(string)) {
	for _, h := range hosts {
		if !settled[h] && r.IntN(8) > 0 {
			settle(h)
		}
	}
	w.pay()
	w.check()
}
