package state

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	dbm "github.com/cometbft/cometbft-db"
	cmtversion "github.com/cometbft/cometbft/proto/tendermint/version"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	"github.com/cometbft/cometbft/types"
)

func entriesOf(t *testing.T, it dbm.Iterator, err error) (out [][2]string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for ; it.Valid(); it.Next() {
		out = append(out, [2]string{string(it.Key()), string(it.Value())})
	}
	if err := it.Error(); err != nil {
		t.Fatal(err)
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestCometDBAgainstMemDB makes the same random calls on ours and on the library's own
// memory database, with two names side by side.
func TestCometDBAgainstMemDB(t *testing.T) {
	r := seeded(t)
	s := mustOpen(t, Config{Memory: true})
	defer s.Close()
	ours := []dbm.DB{s.CometDB("a"), s.CometDB("ab")}
	theirs := []dbm.DB{dbm.NewMemDB(), dbm.NewMemDB()}
	key := func() []byte {
		k := make([]byte, 1+r.IntN(2))
		for i := range k {
			k[i] = []byte{0, 1, 'x', 0xff}[r.IntN(4)]
		}
		return k
	}
	bound := func() []byte {
		if r.IntN(4) == 0 {
			return nil
		}
		return key()
	}
	for range 3000 {
		i := r.IntN(2)
		a, b := ours[i], theirs[i]
		switch k, v := key(), []byte(fmt.Sprint(r.IntN(1000))); r.IntN(8) {
		case 0:
			same(t, a.Set(k, v), b.Set(k, v))
		case 1:
			same(t, a.SetSync(k, v), b.SetSync(k, v))
		case 2:
			same(t, a.Delete(k), b.Delete(k))
		case 3:
			same(t, a.DeleteSync(k), b.DeleteSync(k))
		case 4:
			for _, d := range []dbm.DB{a, b} {
				batch := d.NewBatch()
				same(t, batch.Set(k, v), nil)
				same(t, batch.Delete([]byte("x")), nil)
				same(t, batch.Set([]byte{1}, []byte{}), nil)
				same(t, batch.WriteSync(), nil)
				if batch.Set(k, v) == nil || batch.Write() == nil {
					t.Fatal("a written batch goes on")
				}
				same(t, batch.Close(), nil)
			}
		case 5:
			va, ea := a.Get(k)
			vb, eb := b.Get(k)
			ha, _ := a.Has(k)
			hb, _ := b.Has(k)
			if !bytes.Equal(va, vb) || (va == nil) != (vb == nil) || ea != nil || eb != nil || ha != hb {
				t.Fatalf("get %x: %q %v %v, want %q %v %v", k, va, ea, ha, vb, eb, hb)
			}
		case 6:
			start, end := bound(), bound()
			ia, ea := a.Iterator(start, end)
			ib, eb := b.Iterator(start, end)
			if got, want := fmt.Sprint(entriesOf(t, ia, ea)), fmt.Sprint(entriesOf(t, ib, eb)); got != want {
				t.Fatalf("%x to %x: %s, want %s", start, end, got, want)
			}
		case 7:
			start, end := bound(), bound()
			ia, ea := a.ReverseIterator(start, end)
			ib, eb := b.ReverseIterator(start, end)
			if got, want := fmt.Sprint(entriesOf(t, ia, ea)), fmt.Sprint(entriesOf(t, ib, eb)); got != want {
				t.Fatalf("%x down from %x: %s, want %s", start, end, got, want)
			}
		}
	}
	for _, d := range ours {
		if d.Set(nil, []byte{1}) == nil || d.Set([]byte{1}, nil) == nil || d.Delete(nil) == nil {
			t.Fatal("an empty key or a nil value was taken")
		}
		if _, err := d.Get([]byte{}); err == nil {
			t.Fatal("an empty key was read")
		}
		if _, err := d.Iterator([]byte{}, nil); err == nil {
			t.Fatal("an empty bound was taken")
		}
		same(t, d.Compact(nil, nil), nil)
		if len(d.Stats()) == 0 {
			t.Fatal("no figures")
		}
		same(t, d.Close(), nil)
	}
	if len(contents(s)) != 0 {
		t.Fatal("CometBFT's keys are in the state")
	}
}

func same(t *testing.T, got, want error) {
	t.Helper()
	if got != nil || want != nil {
		t.Fatalf("%v, want %v", got, want)
	}
}

// TestBlockStore keeps, reads, prunes and reopens CometBFT's blocks.
func TestBlockStore(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, Config{Dir: "/ledger", fs: fs})
	bs := store.NewBlockStore(s.CometDB("blocks"))
	commit := &types.Commit{}
	for h := int64(1); h <= 10; h++ {
		block := &types.Block{
			Header: types.Header{
				Version: cmtversion.Consensus{Block: 11}, ChainID: "test", Height: h, Time: time.Unix(h, 0),
				ProposerAddress: make([]byte, 20), ValidatorsHash: make([]byte, 32),
			},
			LastCommit: commit,
		}
		block.Hash()
		parts, err := block.MakePartSet(types.BlockPartSizeBytes)
		if err != nil {
			t.Fatal(err)
		}
		commit = &types.Commit{Height: h, BlockID: types.BlockID{Hash: block.Hash(), PartSetHeader: parts.Header()}, Signatures: []types.CommitSig{types.NewCommitSigAbsent()}}
		bs.SaveBlock(block, parts, commit)
	}
	check := func(bs *store.BlockStore, base int64) {
		t.Helper()
		if bs.Base() != base || bs.Height() != 10 {
			t.Fatalf("blocks %d to %d", bs.Base(), bs.Height())
		}
		if bs.LoadBlock(base-1) != nil || bs.LoadBlockMeta(base-1) != nil {
			t.Fatalf("block %d is still there", base-1)
		}
		for h := base; h <= 10; h++ {
			b := bs.LoadBlock(h)
			if b == nil || b.Height != h || !bytes.Equal(b.Hash(), bs.LoadBlockMeta(h).BlockID.Hash) {
				t.Fatalf("block %d: %v", h, b)
			}
		}
	}
	check(bs, 1)
	pruned, _, err := bs.PruneBlocks(5, sm.State{LastBlockHeight: 10, LastBlockTime: time.Unix(10, 0)})
	if err != nil || pruned != 4 {
		t.Fatalf("%d blocks pruned, want 4: %v", pruned, err)
	}
	check(bs, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, Config{Dir: "/ledger", fs: fs})
	defer s.Close()
	check(store.NewBlockStore(s.CometDB("blocks")), 5)
}
