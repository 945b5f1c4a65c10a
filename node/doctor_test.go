package node

import (
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/node/api"
)

// TestDoctorOfLedger has what doctor says of the ledger.
func TestDoctorOfLedger(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name  string
		l     api.LedgerStatus
		state string
	}{
		{"fine", api.LedgerStatus{Height: 9, BlockTime: now.Add(-time.Second)}, "ok"},
		{"nobody decides", api.LedgerStatus{Height: 9, BlockTime: now.Add(-time.Hour)}, "warn"},
		{"not begun", api.LedgerStatus{BlockTime: now}, "warn"},
		{"behind", api.LedgerStatus{Height: 9, BlockTime: now.Add(-time.Hour), CatchingUp: true}, "warn"},
		{"joins", api.LedgerStatus{Doing: "asking peers for a snapshot of the ledger", CatchingUp: true}, "warn"},
		{"the clock is off", api.LedgerStatus{Height: 9, BlockTime: now, Error: "the clock of this machine is off"}, "fail"},
		{"light, one peer", api.LedgerStatus{Height: 9, BlockTime: now, Light: true, Error: "one full node is connected"}, "warn"},
	} {
		if got := checkLedger(&c.l, now); got.State != c.state || (got.Remedy == "") != (c.state == "ok") {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}
