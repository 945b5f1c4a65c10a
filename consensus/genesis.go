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
// chain begins, ledger the ledger's part, trust for how long evidence counts, block the time
// from a block to the next. Evidence counts until both its time and so many blocks are over:
// one measure in two units, or headers would be kept for longer than anyone believes them.
func NewGenesis(network mesh.NetworkID, created time.Time, ledger []byte, trust, block time.Duration) *types.GenesisDoc {
	params := types.DefaultConsensusParams()
	params.Block.MaxBytes = maxBlock
	params.Evidence.MaxAgeDuration = trust
	params.Evidence.MaxAgeNumBlocks = max(1, int64(trust/block))
	params.Version.App = AppVersion
	return &types.GenesisDoc{
		ChainID: string(network), GenesisTime: created, InitialHeight: 1, ConsensusParams: params, AppState: ledger,
	}
}

// Databases gives CometBFT its databases in the ledger's own.
func Databases(s *state.Store) func(name string) (dbm.DB, error) {
	return func(name string) (dbm.DB, error) { return s.CometDB(name), nil }
}
