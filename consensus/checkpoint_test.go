package consensus

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	abci "github.com/cometbft/cometbft/abci/types"

	"github.com/gonka-mesh/mesh"
)

// TestCheckpoint: a node stops before a block that is not the checkpoint's, while it fetches
// blocks, while it takes part, and at the start. The process goes on.
func TestCheckpoint(t *testing.T) {
	t.Parallel()
	n := newToyNet(t, 2, 1, nil)
	follower := n.nodes[2]
	for _, node := range n.nodes {
		n.startHost(node)
	}
	for _, node := range n.nodes[:2] {
		n.startChain(node)
	}
	n.reach(8, n.nodes[:2]...)
	b, err := n.nodes[0].Block(5)
	if err != nil {
		t.Fatal(err)
	}
	right, wrong := &Checkpoint{Height: 5, Hash: mesh.Hash(b.Hash())}, &Checkpoint{Height: 5, Hash: mesh.Hash{1}}
	with := func(cp *Checkpoint) { n.tune = func(_ int, cfg *Config) { cfg.Checkpoint, cfg.Log = cp, nil } }
	stops := func(node *toyNode, before mesh.Height) {
		t.Helper()
		var fork *ForkError
		select {
		case err := <-node.Err():
			if !errors.As(err, &fork) || fork.Checkpoint != *node.cfg.Checkpoint {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("goes on after a block that is not the checkpoint's")
		}
		if h := node.height(); h >= before {
			t.Errorf("it is at height %d, past the checkpoint", h)
		}
		node.Stop()
	}
	refuses := func(node *toyNode) {
		t.Helper()
		c, err := New(n.config(node))
		if err != nil {
			t.Fatal(err)
		}
		var fork *ForkError
		if err := c.Start(t.Context()); !errors.As(err, &fork) {
			c.Stop()
			t.Errorf("starts behind another checkpoint: %v", err)
		}
	}
	with(wrong)
	n.startChain(follower)
	stops(follower, 5)
	refuses(follower) // the block is kept, though not executed
	follower.dbs, follower.app = make(map[string]dbm.DB), newToy()
	with(right)
	n.startChain(follower)
	n.reach(9, follower)

	// While it takes part.
	follower.Stop()
	ahead := n.nodes[0].height() + 20
	with(&Checkpoint{Height: ahead, Hash: mesh.Hash{2}})
	n.startChain(follower)
	n.reach(ahead-1, follower)
	stops(follower, ahead)
	with(wrong)
	refuses(follower)
}

// failingApp fails at a height.
type failingApp struct {
	*toyApp
	at       int64
	atCommit bool
}

func (a *failingApp) FinalizeBlock(ctx context.Context, r *abci.RequestFinalizeBlock) (*abci.ResponseFinalizeBlock, error) {
	if r.Height == a.at && !a.atCommit {
		return nil, errors.New("the disk is gone")
	}
	return a.toyApp.FinalizeBlock(ctx, r)
}

func (a *failingApp) Commit(ctx context.Context, r *abci.RequestCommit) (*abci.ResponseCommit, error) {
	if a.next.Height == a.at && a.atCommit {
		return nil, errors.New("the disk is gone")
	}
	return a.toyApp.Commit(ctx, r)
}

// failingDB fails to write a key. Once it is gone, it fails to read another.
type failingDB struct {
	dbm.DB
	key, unread string
	gone        *atomic.Bool
}

func (d failingDB) Get(key []byte) ([]byte, error) {
	if string(key) == d.unread && d.gone.Load() {
		return nil, errors.New("the disk is gone")
	}
	return d.DB.Get(key)
}

func (d failingDB) Set(key, value []byte) error {
	if string(key) == d.key {
		return errors.New("the disk is gone")
	}
	return d.DB.Set(key, value)
}

func (d failingDB) NewBatch() dbm.Batch { return &failingBatch{Batch: d.DB.NewBatch(), key: d.key} }

type failingBatch struct {
	dbm.Batch
	key   string
	fails bool
}

func (b *failingBatch) Set(key, value []byte) error {
	b.fails = b.fails || string(key) == b.key
	return b.Batch.Set(key, value)
}

func (b *failingBatch) WriteSync() error {
	if b.fails {
		return errors.New("the disk is gone")
	}
	return b.Batch.WriteSync()
}

// TestFailureWhileFetching: an application or a database that fails while blocks are fetched
// ends the chain, not the process, and the chain stops in order.
func TestFailureWhileFetching(t *testing.T) {
	t.Parallel()
	broken := func(store, key string) func(*Config) {
		return func(cfg *Config) {
			open := cfg.Open
			cfg.Open = func(name string) (dbm.DB, error) {
				db, err := open(name)
				if name == store {
					db = failingDB{DB: db, key: key}
				}
				return db, err
			}
		}
	}
	app := func(atCommit bool) func(*Config) {
		return func(cfg *Config) { cfg.App = &failingApp{toyApp: cfg.App.(*toyApp), at: 4, atCommit: atCommit} }
	}
	for name, fails := range map[string]func(*Config){
		"executing":           app(false),
		"writing":             app(true),
		"keeping a block":     broken(StoreBlocks, "H:4"),
		"keeping its results": broken(StoreState, "abciResponsesKey:4"),
		"keeping its state":   broken(StoreState, "validatorsKey:6"),
	} {
		t.Run(name, func(t *testing.T) {
			n := newToyNet(t, 1, 1, func(i int, cfg *Config) {
				if i == 1 {
					cfg.Log = nil
					fails(cfg)
				}
			})
			for _, node := range n.nodes {
				n.startHost(node)
			}
			n.startChain(n.nodes[0])
			n.reach(8, n.nodes[0])
			n.startChain(n.nodes[1])
			select {
			case err := <-n.nodes[1].Err():
				if !strings.Contains(err.Error(), "the disk is gone") {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				t.Fatal("goes on")
			}
			if _, err := n.nodes[1].Submit(timeout(t, time.Second), []byte("a transaction")); err == nil {
				t.Error("a transaction is in a block")
			}
			if err := n.nodes[1].Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBrokenLog: a node whose log of consensus cannot be opened says so when it would begin to
// vote. The process goes on, and the chain stops.
func TestBrokenLog(t *testing.T) {
	t.Parallel()
	n := newToyNet(t, 1, 1, func(i int, cfg *Config) {
		if i == 1 {
			cfg.Log = nil
		}
	})
	for _, node := range n.nodes {
		n.startHost(node)
	}
	n.startChain(n.nodes[0])
	n.reach(3, n.nodes[0])
	late := n.nodes[1]
	if err := os.MkdirAll(filepath.Join(late.home, "wal", "wal"), 0o700); err != nil { // where the file should be
		t.Fatal(err)
	}
	n.startChain(late)
	var damaged *DamagedError
	select {
	case err := <-late.Err():
		if !errors.As(err, &damaged) || !strings.Contains(err.Error(), late.wal()) || len(err.Error()) > 1000 {
			t.Errorf("ended with %.2000v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("goes on")
	}
	if err := late.Stop(); err != nil {
		t.Error(err)
	}
}

// TestNotBegun: a log that cannot be opened for now is no damage, and nobody is told to move it away.
func TestNotBegun(t *testing.T) {
	for why, damage := range map[string]bool{
		"failed to start consensus state: open /h/wal/wal: too many open files\n\nconR:": false,
		"failed to start consensus state: open /h/wal/wal: permission denied":            false,
		"failed to start consensus state: write /h/wal/wal: no space left on device":     false,
		"failed to start consensus state: failed to open repaired WAL: EOF\n\nconR:":     true,
	} {
		err := notBegun("/h", "/h/wal", why)
		var damaged *DamagedError
		if errors.As(err, &damaged) != damage || !strings.Contains(err.Error(), "/h/wal") || strings.Contains(err.Error(), "conR") {
			t.Errorf("%q: %v", why, err)
		}
	}
}

// TestPeriod: a node that follows does not go on from a block so old that its validators
// answer for nothing any more; with a checkpoint it does, and a validator does.
func TestPeriod(t *testing.T) {
	t.Parallel()
	n := newToyNet(t, 1, 1, nil)
	n.start()
	n.reach(4, n.nodes...)
	b, err := n.nodes[1].Block(3)
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range n.nodes {
		node.Stop()
	}
	n.tune = func(_ int, cfg *Config) { cfg.Period = time.Millisecond }
	c, err := New(n.config(n.nodes[1]))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "--trust HEIGHT:HASH") {
		c.Stop()
		t.Errorf("goes on from an old block: %v", err)
	}
	n.startChain(n.nodes[0])
	n.tune = func(_ int, cfg *Config) {
		cfg.Period, cfg.Checkpoint = time.Millisecond, &Checkpoint{Height: 3, Hash: mesh.Hash(b.Hash())}
	}
	n.startChain(n.nodes[1])
	n.reach(n.nodes[0].height()+2, n.nodes...)
}
