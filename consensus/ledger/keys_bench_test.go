package ledger

import (
	"testing"

	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// BenchmarkRegistration is what a registration costs every validator, and who checks it
// for the mempool: two proofs.
func BenchmarkRegistration(b *testing.B) {
	w := newWorld(b, worldParams(), []string{"ann"}, "dan")
	raw := w.tx("dan", nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: w.registration(testNetwork, w.newKeys("dan", 0))}})
	for b.Loop() {
		p, err := w.m.NewPool(w.state)
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Check(raw); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTransferCheck is the same for a transfer.
func BenchmarkTransferCheck(b *testing.B) {
	w := newWorld(b, worldParams(), []string{"ann"}, "dan")
	to := w.address("ann")
	raw := w.tx("dan", nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 1}}})
	for b.Loop() {
		p, err := w.m.NewPool(w.state)
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Check(raw); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBeacon is what a proposer's signature costs.
func BenchmarkBeacon(b *testing.B) {
	w := newWorld(b, worldParams(), []string{"ann"})
	w.m = New(Config{Network: testNetwork, Work: w.work})
	block := w.next()
	for b.Loop() {
		if err := w.m.checkBeacon(newOverlay(w.state), block); err != nil {
			b.Fatal(err)
		}
	}
}
