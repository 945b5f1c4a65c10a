package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/mempool"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
)

// Errors of Submit, for errors.Is.
var (
	ErrDuplicate = errors.New("this transaction was submitted before")
	ErrPoolFull  = errors.New("too many transactions wait for a block; try again later")
	ErrTooLarge  = errors.New("the transaction is too large")
	ErrSyncing   = errors.New("the node is still catching up with the ledger")
	ErrNotInTime = errors.New("the transaction is not in a block yet; it may still come into one")
)

// Refused is the application's refusal of a transaction.
type Refused struct {
	Height mesh.Height // of the block that it failed in; 0 when it came into none
	Code   uint32
	Log    string
}

func (r *Refused) Error() string {
	if r.Height == 0 {
		return "transaction refused: " + r.Log
	}
	return fmt.Sprintf("transaction failed in block %d: %s", r.Height, r.Log)
}

// Result tells where a transaction is and what it did.
type Result struct {
	Hash   mesh.Hash // SHA-256 of the transaction
	Height mesh.Height
	Index  int // in its block
	Data   []byte
}

// Submit hands a transaction to the ledger and waits until it is in a block. A
// transaction that is in a block and failed there is an error too, with the Result.
func (c *Chain) Submit(ctx context.Context, tx []byte) (Result, error) {
	return c.submit(ctx, tx, false)
}

// Await is Submit for one that may have been handed in before, here or to another node:
// it waits for its block too. One whose block came before is ErrNotInTime.
func (c *Chain) Await(ctx context.Context, tx []byte) (Result, error) {
	return c.submit(ctx, tx, true)
}

// Offer hands a transaction to the ledger, and waits for no block.
func (c *Chain) Offer(tx []byte) error {
	p, err := c.open()
	if err != nil {
		return err
	}
	return checkTx(p, tx)
}

// open returns the parts of a chain that takes transactions.
func (c *Chain) open() (*parts, error) {
	p, err := c.running()
	if err == nil && p.reactor.WaitSync() {
		err = ErrSyncing
	}
	return p, err
}

func (c *Chain) submit(ctx context.Context, tx []byte, again bool) (Result, error) {
	p, err := c.open()
	if err != nil {
		return Result{}, err
	}
	key := types.Tx(tx).Key()
	got, stop, err := c.pool.await(key)
	if err != nil {
		return Result{}, err
	}
	defer stop()
	if err := checkTx(p, tx); err != nil && !(again && errors.Is(err, ErrDuplicate)) {
		return Result{}, err
	}
	look := time.NewTicker(dropEvery)
	defer look.Stop()
	var dropped error
	for {
		select {
		case in, ok := <-got:
			if !ok { // other nodes may have it
				return Result{}, fmt.Errorf("%w: %w", ErrNotInTime, ErrNotRunning)
			}
			return in.result()
		case <-ctx.Done():
			return Result{Hash: mesh.Hash(key)}, fmt.Errorf("%w: %w", ErrNotInTime, ctx.Err())
		case <-look.C:
		}
		if dropped != nil {
			return Result{}, dropped
		}
		// While it waits the mempool knows it. One that later blocks made invalid was dropped
		// without a word, and is refused with the reason; one that failed in a block is
		// refused too, and got tells so in a moment. A mempool that is full now says nothing about those in it.
		var refused *Refused
		if err := checkTx(p, tx); errors.As(err, &refused) {
			dropped = err
		}
	}
}

// dropEvery is how often a transaction that waits is looked for.
const dropEvery = 2 * time.Second

// checkTx puts a transaction into the mempool, once the application agrees.
func checkTx(p *parts, tx []byte) error {
	checked := make(chan *abci.ResponseCheckTx, 1)
	err := p.pool.CheckTx(tx, func(r *abci.ResponseCheckTx) { checked <- r }, mempool.TxInfo{})
	var (
		full  mempool.ErrMempoolIsFull
		large mempool.ErrTxTooLarge
	)
	switch {
	case errors.Is(err, mempool.ErrTxInCache):
		return ErrDuplicate
	case errors.As(err, &full):
		return ErrPoolFull
	case errors.As(err, &large), mempool.IsPreCheckError(err):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case err != nil:
		return fmt.Errorf("submit transaction: %w", err)
	}
	// The application is in this process, so it has answered.
	switch r := <-checked; {
	case r.Code == CodeUnable: // which is not the ledger's word
		return fmt.Errorf("submit transaction: %s", r.Log)
	case r.IsErr():
		return &Refused{Code: r.Code, Log: r.Log}
	}
	return nil
}

// included is a transaction that came into a block.
type included struct {
	key    types.TxKey
	height int64
	index  int
	exec   *abci.ExecTxResult
}

func (in included) result() (Result, error) {
	res := Result{Hash: mesh.Hash(in.key), Height: mesh.Height(in.height), Index: in.index, Data: in.exec.Data}
	if in.exec.IsErr() {
		return res, &Refused{Height: res.Height, Code: in.exec.Code, Log: in.exec.Log}
	}
	return res, nil
}

// waiters are the transactions that somebody waits for.
type waiters struct {
	mu    sync.Mutex
	byKey map[types.TxKey][]chan included // guarded by mu; nil after the end
}

func newWaiters() *waiters { return &waiters{byKey: make(map[types.TxKey][]chan included)} }

func (w *waiters) await(key types.TxKey) (<-chan included, func(), error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byKey == nil {
		return nil, nil, ErrNotRunning
	}
	got := make(chan included, 1)
	w.byKey[key] = append(w.byKey[key], got)
	return got, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		left := slices.DeleteFunc(w.byKey[key], func(other chan included) bool { return other == got })
		if len(left) > 0 {
			w.byKey[key] = left
		} else {
			delete(w.byKey, key)
		}
	}, nil
}

// tell hands out what a block contains.
func (w *waiters) tell(block *types.Block, results []*abci.ExecTxResult) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.byKey) == 0 {
		return
	}
	for i, tx := range block.Txs {
		if i >= len(results) {
			return
		}
		key := tx.Key()
		for _, got := range w.byKey[key] {
			got <- included{key, block.Height, i, results[i]}
		}
		delete(w.byKey, key)
	}
}

func (w *waiters) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, all := range w.byKey {
		for _, got := range all {
			close(got)
		}
	}
	w.byKey = nil
}
