package consensus

import (
	"bytes"
	"fmt"
	"sync/atomic"

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

// endedDB is a database in which nothing is found after the chain's end. Loops of CometBFT
// that ask a peer every two seconds read once more when they wake, and a store that cannot
// read ends the process.
type endedDB struct {
	dbm.DB
	ended *atomic.Bool
}

func (d endedDB) Get(key []byte) ([]byte, error) {
	b, err := d.DB.Get(key)
	if err != nil && d.ended.Load() {
		return nil, nil
	}
	return b, err
}

// writtenDB is a database of the blocks or of their states. A write to it that fails while
// blocks are fetched ends the chain, where CometBFT would end the process.
type writtenDB struct {
	endedDB
	c *Chain
	p *parts
}

func (d writtenDB) Set(key, value []byte) error     { return d.wrote(d.DB.Set(key, value)) }
func (d writtenDB) SetSync(key, value []byte) error { return d.wrote(d.DB.SetSync(key, value)) }
func (d writtenDB) Delete(key []byte) error         { return d.wrote(d.DB.Delete(key)) }
func (d writtenDB) DeleteSync(key []byte) error     { return d.wrote(d.DB.DeleteSync(key)) }
func (d writtenDB) NewBatch() dbm.Batch             { return writtenBatch{d.DB.NewBatch(), d} }

// wrote looks at the end of a write. The stores unlock what they hold in deferred calls.
func (d writtenDB) wrote(err error) error {
	if err != nil {
		d.c.endFetching(d.p, fmt.Errorf("write to the ledger's database: %w", err), func() {})
	}
	return err
}

// writtenBatch reaches the disk when it is written.
type writtenBatch struct {
	dbm.Batch
	db writtenDB
}

func (b writtenBatch) Write() error     { return b.db.wrote(b.Batch.Write()) }
func (b writtenBatch) WriteSync() error { return b.db.wrote(b.Batch.WriteSync()) }
