package consensus

import (
	"reflect"
	"testing"
	"time"

	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
)

// TestConsensusParameters pins what no genesis document says and every header has the hash
// of: a CometBFT with other defaults would make another chain of the same document.
func TestConsensusParameters(t *testing.T) {
	got := *NewGenesis(mesh.NewNetworkID("test", mesh.Hash{1}), time.Unix(1, 0), nil, time.Hour, time.Second).ConsensusParams
	want := types.ConsensusParams{
		Block:     types.BlockParams{MaxBytes: 2 << 20, MaxGas: -1},
		Evidence:  types.EvidenceParams{MaxAgeNumBlocks: 3600, MaxAgeDuration: time.Hour, MaxBytes: 1 << 20},
		Validator: types.ValidatorParams{PubKeyTypes: []string{"ed25519"}},
		Version:   types.VersionParams{App: 1},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the consensus parameters of a genesis are %+v, want %+v", got, want)
	}
}
