package light

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
)

// smallChain has 7 validators, of which 2 change with each epoch of 20 blocks.
func smallChain() *ledgerChain {
	all := newSigners("small", 13)
	return newLedgerChain(20, all[:7], all[2:9], all[4:11], all[6:13])
}

func TestHonestHead(t *testing.T) {
	w := newWorld(t, smallChain(), 3, 15)
	c := w.client()
	if h := w.head(c, 15); !h.Witnessed || h.Validators != 7 || !h.Time.Equal(w.chain.time(15)) {
		t.Errorf("%+v", h)
	}
	for _, n := range w.nodes {
		n.tip.Store(35)
	}
	w.head(c, 15) // still fresh
	w.at(35)
	if h := w.head(c, 35); !h.Witnessed {
		t.Errorf("%+v", h)
	}
	w.fined()
}

// TestRestart finds the header that an earlier client kept, and does not trust a file
// that is damaged, of another network, or too old.
func TestRestart(t *testing.T) {
	w := newWorld(t, smallChain(), 2, 55)
	file := filepath.Join(t.TempDir(), "header")
	keep := func(cfg *Config) { cfg.File = file }
	w.head(w.client(keep), 55)

	c := w.client(keep)
	if b := c.store.newest(); b == nil || b.Height != 55 {
		t.Fatal("the header was not kept")
	}
	for _, n := range w.nodes {
		n.tip.Store(70)
	}
	w.at(70)
	sent := w.nodes[0].sent.Load()
	w.head(c, 70)
	if n := w.nodes[0].sent.Load() - sent; n > 8000 {
		t.Errorf("%d bytes of one peer to go on from a header that is kept", n)
	}

	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	unsigned := *w.chain.block(70)
	unsigned.SignedHeader = &types.SignedHeader{Header: unsigned.Header, Commit: unsigned.Commit.Clone()}
	unsigned.Commit.Signatures[2].Signature = slices.Clone(unsigned.Commit.Signatures[3].Signature)
	forged, err := EncodeBlock(&unsigned)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{"empty": {}, "short": good[:len(good)/2], "long": append(slices.Clone(good), make([]byte, maxFile)...), "forged": forged} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if c := w.client(keep); c.store.newest() != nil {
			t.Errorf("%s: the file is believed", name)
		} else {
			w.head(c, 70)
		}
	}
	other := w.client(keep, func(cfg *Config) { cfg.Network = "another-net-1" })
	if other.store.newest() != nil {
		t.Error("a header of another network is believed")
	}
	w.fined()
}

// TestCheckpointOverFile: what is kept counts with the checkpoint that it was verified from,
// and without any. With another one it may be of another fork, however high it is.
func TestCheckpointOverFile(t *testing.T) {
	fork := smallChain()
	fork.name = "fork"
	forged := newWorld(t, fork, 2, 80)
	file := filepath.Join(t.TempDir(), "header")
	keep := func(cfg *Config) { cfg.File = file }
	forged.head(forged.client(keep), 80)

	w := newWorld(t, smallChain(), 2, 80)
	from := func(height int64) func(*Config) {
		root := Root{Height: mesh.Height(height)}
		copy(root.Hash[:], w.chain.block(height).Hash())
		return func(cfg *Config) { cfg.Root = root }
	}
	c := w.client(keep, from(40))
	if c.store.newest() != nil {
		t.Fatal("a header of a fork is believed beside the checkpoint that it does not follow from")
	}
	if h := w.head(c, 80); string(h.Hash[:]) != string(w.chain.block(80).Hash()) {
		t.Errorf("from the checkpoint: header %s", h.Hash)
	}
	for name, tune := range map[string]func(*Config){"the same checkpoint": from(40), "none": func(*Config) {}} {
		if b := w.client(keep, tune).store.newest(); b == nil || b.Height != 80 {
			t.Errorf("%s: the file is not believed", name)
		}
	}
	for _, height := range []int64{20, 60, 80} {
		if w.client(keep, from(height)).store.newest() != nil {
			t.Errorf("checkpoint %d: a file that follows from another one is believed", height)
		}
	}
	// A file that does not say what it follows from is left behind.
	raw, err := EncodeBlock(fork.block(80))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tune := range []func(*Config){func(*Config) {}, from(40)} {
		if w.client(keep, tune).store.newest() != nil {
			t.Error("a block alone is believed")
		}
	}
	w.fined()
}

// TestStale: a client knows by itself, without peers, when there is nothing it can verify with.
func TestStale(t *testing.T) {
	w := newWorld(t, smallChain(), 2, 30)
	file := filepath.Join(t.TempDir(), "header")
	if err := w.client().Stale(); err != nil {
		t.Error(err)
	}
	w.head(w.client(func(cfg *Config) { cfg.File = file }), 30)
	w.now.Store(testStart.Add(testPeriod + time.Second).UnixNano())
	err := w.client().Stale()
	if !Expired(err) || !strings.Contains(err.Error(), "--trust HEIGHT:HASH") {
		t.Errorf("the genesis is too old: %v", err)
	}
	if err := w.client(func(cfg *Config) { cfg.File = file }).Stale(); err != nil {
		t.Errorf("what is kept is young: %v", err)
	}
	if err := w.client(func(cfg *Config) { cfg.Root = Root{Height: 9, Hash: mesh.Hash{1}} }).Stale(); err != nil {
		t.Errorf("with a checkpoint: %v", err)
	}
	w.at(30 + int64(testPeriod/blockTime) + 1)
	if err := w.client(func(cfg *Config) { cfg.File = file }).Stale(); !Expired(err) {
		t.Errorf("what is kept is too old: %v", err)
	}
}

func TestCheckpoint(t *testing.T) {
	w := newWorld(t, smallChain(), 2, 60)
	root := Root{Height: 30}
	copy(root.Hash[:], w.chain.block(30).Hash())
	w.head(w.client(func(cfg *Config) { cfg.Root = root }), 60)

	root.Hash[0] ^= 1
	c := w.client(func(cfg *Config) { cfg.Root = root })
	if _, err := c.Head(t.Context()); err == nil || !strings.Contains(err.Error(), "than the checkpoint") {
		t.Errorf("a checkpoint that nobody has: %v", err)
	}
	w.fined() // it may be mistyped
}

// TestExpired needs a newer checkpoint when everything that is trusted is too old, and
// forgets a kept header that is.
func TestExpired(t *testing.T) {
	w := newWorld(t, smallChain(), 2, 30)
	file := filepath.Join(t.TempDir(), "header")
	w.head(w.client(func(cfg *Config) { cfg.File = file }), 30)
	late := int64(30 + (testPeriod+time.Hour)/blockTime)
	for _, n := range w.nodes {
		n.tip.Store(late)
	}
	w.at(late)
	if _, err := w.client(func(cfg *Config) { cfg.File = file }).Head(t.Context()); err == nil || !strings.Contains(err.Error(), "--trust HEIGHT:HASH") {
		t.Fatalf("trust has expired: %v", err)
	}
	root := Root{Height: mesh.Height(late - 1000)}
	copy(root.Hash[:], w.chain.block(late-1000).Hash())
	w.head(w.client(func(cfg *Config) { cfg.File, cfg.Root = file, root }), late)
	w.fined()
}

func TestClockIsWrong(t *testing.T) {
	w := newWorld(t, smallChain(), 2, 30)
	w.at(20)
	if _, err := w.client().Head(t.Context()); !errors.Is(err, errClock) {
		t.Errorf("the clock is behind: %v", err)
	}
	w.fined()
}

func TestNobodyToAsk(t *testing.T) {
	w := newWorld(t, smallChain(), 0, 30)
	if _, err := w.client().Head(t.Context()); !errors.Is(err, ErrNoPeers) {
		t.Errorf("no peers: %v", err)
	}
	w.add(w.chain, 30)
	if h := w.head(w.client(), 30); h.Witnessed {
		t.Error("one peer is its own witness")
	}
	if _, _, err := w.client().Record(t.Context(), []byte("a key")); err == nil {
		t.Error("a record without proof")
	}
	w.fined()
}

// TestSlowPeers reads on while most peers are silent or gone, well before a question
// times out, and asks those last afterwards.
func TestSlowPeers(t *testing.T) {
	w := newWorld(t, smallChain(), 4, 30)
	w.nodes[0].silent, w.nodes[1].silent, w.nodes[2].dead = true, true, true
	c := w.client()
	before := time.Now()
	w.head(c, 30)
	if took := time.Since(before); took > askTimeout*8/10 {
		t.Errorf("%s for a header", took)
	}
	if p := c.peers()[0]; p != addressOf(3) {
		t.Errorf("node %d is asked first", p[1])
	}
	before = time.Now()
	if _, err := c.LightBlock(t.Context(), 20); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(before); took > askTimeout*8/10 {
		t.Errorf("%s for an older header", took)
	}
	w.fined()
}

// TestSpread asks peers in any order.
func TestSpread(t *testing.T) {
	w := newWorld(t, smallChain(), 8, 30)
	c := w.client(func(cfg *Config) { cfg.shuffle = nil })
	seen := make(map[mesh.Address]bool)
	for range 1000 {
		peers := c.peers()
		if len(peers) != maxPeers {
			t.Fatalf("%d peers", len(peers))
		}
		seen[peers[0]] = true
	}
	if len(seen) != 8 {
		t.Errorf("%d of 8 peers come first", len(seen))
	}
}

// TestOneFlight lets all readers wait for one attempt, which goes on when the first of
// them gives up.
func TestOneFlight(t *testing.T) {
	w := newWorld(t, smallChain(), 2, 30)
	gate := make(chan struct{})
	for _, n := range w.nodes {
		n.answer = func(*lightpb.Ask) *lightpb.Answer { <-gate; return nil }
	}
	c := w.client()
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { _, err := c.Head(ctx); gone <- err }()
	for w.nodes[0].asks.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if h, err := c.Head(t.Context()); err != nil || h.Height != 30 {
				t.Errorf("%+v, %v", h, err)
			}
		})
	}
	close(gate)
	all.Wait()
	if n := w.nodes[0].asks.Load() + w.nodes[1].asks.Load(); n > 8 {
		t.Errorf("%d questions for one header", n)
	}
}

// TestPeersBehind takes the newest header that two have, unless it is old, and never
// goes back to what peers that are behind have.
func TestPeersBehind(t *testing.T) {
	w := newWorld(t, smallChain(), 3, 50)
	w.nodes[0].tip.Store(48)
	w.nodes[1].tip.Store(49)
	c := w.client()
	if h := w.head(c, 49); !h.Witnessed {
		t.Error("two have it")
	}
	// Two stay behind for long: what the third has is taken, though nobody confirms it.
	w.nodes[2].tip.Store(75)
	w.at(75)
	if h := w.head(c, 75); h.Witnessed {
		t.Error("one has it")
	}
	w.nodes[2].dead = true
	w.now.Add(int64(blockTime))
	w.head(c, 75)
	w.fined()
}

func TestLightBlock(t *testing.T) {
	chain := smallChain()
	chain.links = true
	w := newWorld(t, chain, 2, 70)
	c := w.client()
	for _, h := range []int64{33, 69, 70, 1, 12} {
		b, err := c.LightBlock(t.Context(), mesh.Height(h))
		if err != nil || string(b.Hash()) != string(chain.block(h).Hash()) {
			t.Fatalf("block %d: %v", h, err)
		}
	}
	for _, h := range []mesh.Height{0, 71} {
		if _, err := c.LightBlock(t.Context(), h); !errors.Is(err, ErrNoBlock) {
			t.Errorf("block %d: %v", h, err)
		}
	}
	// From a later checkpoint the parents are followed.
	root := Root{Height: 60}
	copy(root.Hash[:], chain.block(60).Hash())
	c = w.client(func(cfg *Config) { cfg.Root = root })
	b, err := c.LightBlock(t.Context(), 45)
	if err != nil || string(b.Hash()) != string(chain.block(45).Hash()) {
		t.Errorf("block 45 before the checkpoint: %v", err)
	}
	w.fined()

	fork := smallChain()
	fork.name, fork.links = "fork", true
	w.nodes[0].answer = func(a *lightpb.Ask) *lightpb.Answer {
		if h := a.GetBlock(); h > 0 && h < 60 {
			return blockAnswer(fork.block(int64(h)))
		}
		return nil
	}
	c = w.client(func(cfg *Config) { cfg.Root = root })
	if b, err = c.LightBlock(t.Context(), 45); err != nil || string(b.Hash()) != string(chain.block(45).Hash()) {
		t.Errorf("block 45 beside a peer that forges parents: %v", err)
	}
	w.fined(0)
}

// TestMemory keeps few headers, however long a client runs.
func TestMemory(t *testing.T) {
	w := newWorld(t, smallChain(), 2, 1)
	c := w.client()
	for h := int64(1); h < 200; h++ {
		for _, n := range w.nodes {
			n.tip.Store(h)
		}
		w.at(h)
		w.head(c, h)
	}
	if n := len(c.store.blocks); n > keptBlocks {
		t.Errorf("%d blocks are kept", n)
	}
	for i := range 10_000 {
		c.bench.put(addressOf(i), c.cfg.now())
	}
	if n := len(c.bench.until); n > maxBenched {
		t.Errorf("%d peers are remembered", n)
	}
}

// largeChain has 100 validators, of which a third changes with each epoch of a day.
func largeChain() *ledgerChain {
	all := newSigners("large", 166)
	return newLedgerChain(17280, all[:100], all[33:133], all[66:166])
}

const maxSkipBytes = 50_000

// TestSkipTwoEpochs goes on over two epochs with few bytes.
func TestSkipTwoEpochs(t *testing.T) {
	w, c, to := skipWorld(t)
	w.head(c, to)
	var sent int64
	for _, n := range w.nodes {
		sent += n.sent.Load()
	}
	t.Logf("%d bytes fetched", sent)
	if sent > maxSkipBytes {
		t.Errorf("%d bytes over two epochs, at most %d", sent, maxSkipBytes)
	}
	w.fined()
}

// skipWorld has a client that knows a header of the first epoch, and peers in the third.
func skipWorld(tb testing.TB) (*world, *Client, int64) {
	const from, to = 17000, 2*17280 + 500
	w := newWorld(tb, largeChain(), 3, from)
	c := w.client()
	w.head(c, from)
	w.chain.block(to)
	for _, n := range w.nodes {
		n.tip.Store(to)
		n.sent.Store(0)
	}
	w.at(to)
	return w, c, to
}

func BenchmarkSkipTwoEpochs(b *testing.B) {
	w, c, to := skipWorld(b)
	start := *c.store.newest()
	for b.Loop() {
		c.store.clear()
		c.store.save(&start)
		c.outdate()
		w.head(c, to)
	}
	var sent int64
	for _, n := range w.nodes {
		sent += n.sent.Load()
	}
	b.ReportMetric(float64(sent)/float64(b.N)/1000, "KB/op")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/1000, "ms/op")
}
