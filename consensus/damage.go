package consensus

import (
	"bytes"
	"fmt"

	dbm "github.com/cometbft/cometbft-db"
	abci "github.com/cometbft/cometbft/abci/types"
	cmtstate "github.com/cometbft/cometbft/proto/tendermint/state"
)

// DamagedError tells that what is on disk cannot be used.
type DamagedError struct {
	Home string
	Err  error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the ledger in %s is damaged: %v; move its databases away and start again, the node then fetches the ledger from its peers (keep the files of the consensus key)", e.Home, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// stateDB is the database of CometBFT's state store, which ends the process over a value
// that it cannot decode. Here that is an error of Get.
type stateDB struct{ dbm.DB }

// stateValues says by the beginning of a key what its value is.
var stateValues = []struct {
	key   string
	value func() interface{ Unmarshal([]byte) error }
}{
	{"stateKey", func() interface{ Unmarshal([]byte) error } { return new(cmtstate.State) }},
	{"validatorsKey:", func() interface{ Unmarshal([]byte) error } { return new(cmtstate.ValidatorsInfo) }},
	{"consensusParamsKey:", func() interface{ Unmarshal([]byte) error } { return new(cmtstate.ConsensusParamsInfo) }},
	{"abciResponsesKey:", func() interface{ Unmarshal([]byte) error } { return new(abci.ResponseFinalizeBlock) }},
	{"lastABCIResponseKey", func() interface{ Unmarshal([]byte) error } { return new(cmtstate.ABCIResponsesInfo) }},
}

// Get reads a value that decodes.
func (d stateDB) Get(key []byte) ([]byte, error) {
	b, err := d.DB.Get(key)
	if err != nil || len(b) == 0 {
		return b, err
	}
	for _, v := range stateValues {
		if bytes.HasPrefix(key, []byte(v.key)) {
			if err := v.value().Unmarshal(b); err != nil {
				return nil, fmt.Errorf("%s in the state's database does not decode: %w", key, err)
			}
			return b, nil
		}
	}
	return b, nil
}
