package ledger

import (
	"bytes"
	"testing"

	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// BenchmarkRegistration is what a registration costs every validator, besides what every
// transaction does: two proofs.
func BenchmarkRegistration(b *testing.B) {
	w := newWorld(b, worldParams(), []string{"ann"}, "dan")
	m := New(Config{Network: testNetwork, Work: w.work}) // no memory of proofs
	registration := w.registration(testNetwork, w.newKeys("dan", 0))
	for b.Loop() {
		if err := m.checkKeys(testNetwork, w.address("dan"), registration); err != nil {
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

// BenchmarkLargestCheck is what the largest settlement costs before anybody pays, and a
// transaction of as many bytes as there may be.
func BenchmarkLargestCheck(b *testing.B) {
	w := newWorld(b, worldParams(), []string{"ann"}, "dan")
	full := bytes.Repeat([]byte{0xff}, 32)
	line := &ledgerpb.SettleLine{
		Escrow: full, Amount: 1 << 40, Receipts: 1 << 20, Total: 1 << 40, Root: full, Voucher: 1 << 40, Acknowledged: 1 << 20, Signature: append(full, full...),
	}
	settle := new(ledgerpb.Settle)
	for range MaxSettleLines {
		settle.Lines = append(settle.Lines, line)
	}
	for name, tx := range map[string]*ledgerpb.Tx{
		"lines": {Action: &ledgerpb.Tx_Settle{Settle: settle}},
		"bytes": {Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: make([]byte, MaxTxBytes-200)}}},
	} {
		raw := w.tx("dan", nil, tx)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				p, err := w.m.NewPool(w.state)
				if err != nil {
					b.Fatal(err)
				}
				if p.Check(raw) == nil {
					b.Fatal("taken")
				}
			}
		})
	}
}

// BenchmarkRecheck is what a transfer that waits costs after each block.
func BenchmarkRecheck(b *testing.B) {
	w := newWorld(b, worldParams(), []string{"ann"}, "dan")
	to := w.address("ann")
	raw := w.tx("dan", nil, &ledgerpb.Tx{Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 1}}})
	p, err := w.m.NewPool(w.state)
	if err == nil {
		err = p.Check(raw)
	}
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if p, err = p.Next(w.state); err == nil {
			err = p.Recheck(raw)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
