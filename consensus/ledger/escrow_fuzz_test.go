package ledger

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// FuzzEscrowTx carries out any transaction on escrows and runs, twice, in a state that
// has some of everything: the books stay in order, and nothing panics.
func FuzzEscrowTx(f *testing.F) {
	build := func(t testing.TB) (*escrowWorld, mesh.Hash, mesh.Hash) {
		w, a, _ := settleWorld(t)
		w.m.cfg.Verify = func(*Tx) bool { return true }
		w.must("ann", openRunTx(3, 10, 100))
		return w, a, w.lastID
	}
	w, a, run := build(f)
	h := w.address("host2")
	for _, tx := range []*ledgerpb.Tx{
		{Action: &ledgerpb.Tx_OpenEscrow{OpenEscrow: &ledgerpb.OpenEscrow{Amount: 500, Lanes: []*ledgerpb.Lane{{Host: h[:], Cap: 100}}}}},
		{Action: &ledgerpb.Tx_TopEscrow{TopEscrow: &ledgerpb.TopEscrow{Escrow: a[:], Amount: 500}}},
		{Action: &ledgerpb.Tx_SetLane{SetLane: &ledgerpb.SetLane{Escrow: a[:], Lane: &ledgerpb.Lane{Host: h[:], Cap: 100}}}},
		{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: a[:]}}},
		settleTx(0, w.line("ann", "host1", a, 0, 100)), settleTx(0, w.line("ann", "host2", a, 0, 100)),
		openRunTx(2, 10, 100), joinTx(run), leaveTx(run), traceTx(run, 1, "x"), postTx(run, 1, "x"), closeRunTx(run),
	} {
		b, err := encode(tx)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tx := new(ledgerpb.Tx)
		if len(b) > MaxTxBytes/2 || proto.Unmarshal(b, tx) != nil {
			return
		}
		switch tx.GetAction().(type) {
		case *ledgerpb.Tx_OpenEscrow, *ledgerpb.Tx_TopEscrow, *ledgerpb.Tx_SetLane, *ledgerpb.Tx_CloseEscrow, *ledgerpb.Tx_Settle,
			*ledgerpb.Tx_OpenRun, *ledgerpb.Tx_JoinRun, *ledgerpb.Tx_LeaveRun, *ledgerpb.Tx_CommitTrace, *ledgerpb.Tx_PostCheckpoint, *ledgerpb.Tx_CloseRun:
		default:
			return
		}
		w, _, _ := build(t)
		for _, name := range []string{"ann", "host1", "host2", "ann"} {
			_ = w.do(name, clonePb(tx))
			w.check()
		}
		for range 3 {
			w.pay()
			w.turn()
			w.check()
		}
	})
}
