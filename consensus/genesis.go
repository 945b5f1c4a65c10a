package consensus

import (
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/state"
)

// maxBlock is the most that a block may have, in bytes: it reaches every validator well
// within the time of a round.
const maxBlock = 2 << 20

// NewGenesis returns CometBFT's genesis document of a network: created is when the
// chain begins, ledger the ledger's part, trust for how long evidence counts.
func NewGenesis(network mesh.NetworkID, created time.Time, ledger []byte, trust time.Duration) *types.GenesisDoc {
	params := types.DefaultConsensusParams()
	params.Block.MaxBytes = maxBlock
	params.Evidence.MaxAgeDuration = trust
	params.Evidence.MaxAgeNumBlocks = int64(trust / time.Second)
	params.Version.App = AppVersion
	return &types.GenesisDoc{
		ChainID: string(network), GenesisTime: created, InitialHeight: 1, ConsensusParams: params, AppState: ledger,
	}
}

// Databases gives CometBFT its databases in the ledger's own.
func Databases(s *state.Store) func(name string) (dbm.DB, error) {
	return func(name string) (dbm.DB, error) { return s.CometDB(name), nil }
}
