package consensus

import (
	"strings"
	"testing"

	abci "github.com/cometbft/cometbft/abci/types"

	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// TestAppKnowsTrust: the application's rules have the trusting period that it was told.
func TestAppKnowsTrust(t *testing.T) {
	net := newAppNet(t, 1) // epochs of 6 blocks, settled for 2, unbonding in 21
	net.next()
	raw, err := ledger.SignTx(appNetwork, net.hosts[0].account, &ledgerpb.Tx{Fee: 100_000, Action: &ledgerpb.Tx_Propose{Propose: &ledgerpb.Propose{
		Title: "shorter", Deposit: 100e9,
		Change: &ledgerpb.Propose_Params{Params: &ledgerpb.ParamsChange{Set: []*ledgerpb.ParamChange{{Name: "unbonding_epochs", Value: 10}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	for trust, refused := range map[uint64]bool{0: false, 51: false, 52: true} {
		cfg := net.nodes[0].cfg
		cfg.Trust = trust
		res, err := NewApp(cfg).CheckTx(t.Context(), &abci.RequestCheckTx{Tx: raw})
		if err != nil || strings.Contains(res.Log, "light nodes trust") != refused || (res.Code != CodeDone) != refused {
			t.Errorf("trust of %d blocks: %v %v", trust, res, err)
		}
	}
}
