package ledger

import (
	"errors"
	"math"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// TestFeeFor: what is asked for is paid if it is more than the least, and no slip.
func TestFeeFor(t *testing.T) {
	least, err := FeeOf(&ledgerpb.Params{FeePerByte: 100}, unjailTx())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		perByte           uint64
		asked, want, slip mesh.Amount
	}{
		{100, 0, least, 0}, {100, least - 1, least, 0}, {100, least + 1, least + 1, 0}, {100, 100 * least, 100 * least, 0},
		{100, 100*least + 1, 0, 1}, {100, math.MaxUint64, 0, 1}, {0, 0, 0, 0}, {0, 7, 7, 0},
	} {
		fee, err := FeeFor(&ledgerpb.Params{FeePerByte: c.perByte}, unjailTx(), c.asked)
		if fee != c.want || errors.Is(err, ErrRefused) != (c.slip > 0) {
			t.Errorf("%d a byte, %s asked: %s, %v", c.perByte, c.asked, fee, err)
		}
	}
}

// TestFeeOf: the fee of an action is enough whatever number its transaction gets after,
// and however many digits the fee has itself, and not much too high.
func TestFeeOf(t *testing.T) {
	actions := map[string]func() *ledgerpb.Tx{
		"unjail": unjailTx,
		"transfer": func() *ledgerpb.Tx {
			return &ledgerpb.Tx{Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: make([]byte, 32), Amount: 5}}}
		},
		"settle": func() *ledgerpb.Tx {
			s := new(ledgerpb.Settle)
			for range 500 {
				s.Lines = append(s.Lines, &ledgerpb.SettleLine{Escrow: make([]byte, 32), Root: make([]byte, 32), Signature: make([]byte, 64)})
			}
			return &ledgerpb.Tx{Action: &ledgerpb.Tx_Settle{Settle: s}}
		},
	}
	for name, action := range actions {
		for _, perByte := range []uint64{1, 10, 100, 1e9} {
			for _, nonce := range []uint64{0, 1, 1 << 7, 1 << 14, 1 << 42, 1 << 63, math.MaxUint64} {
				tx := action()
				fee, err := FeeOf(&ledgerpb.Params{FeePerByte: perByte}, tx)
				if err != nil {
					t.Fatal(err)
				}
				tx.Nonce, tx.Fee = nonce, uint64(fee)
				raw, err := SignTx(testNetwork, secret("ann"), tx)
				if err != nil {
					t.Fatal(err)
				}
				if least := mesh.Amount(uint64(len(raw)) * perByte); fee < least || fee > least+mesh.Amount(24*perByte) {
					t.Errorf("%s with number %d at %d a byte: fee %d, %d is enough", name, nonce, perByte, fee, least)
				}
			}
		}
	}
}

// TestFeeWanted: the refusal of a fee says what a byte costs, and no other refusal does.
func TestFeeWanted(t *testing.T) {
	err := head{fee: 1660, size: 149}.pays(&ledgerpb.Params{FeePerByte: 50}, 0, 1e9)
	if err == nil {
		t.Fatal("not refused")
	}
	for _, c := range []struct {
		text string
		want uint64
	}{
		{err.Error(), 50}, {"transaction refused: " + err.Error() + "; see there", 50},
		{"there is no proposal 3", 0}, {"fee of 1 ngonka, at least 7 for 0 bytes", 0}, {"fee of 1 ngonka, at least 7 for 2 bytes", 0}, {"fee of ", 0}, {"", 0},
	} {
		if got, ok := feeWanted(c.text); got != c.want || ok != (c.want > 0) {
			t.Errorf("%q: %d, %v, want %d", c.text, got, ok, c.want)
		}
	}
}
