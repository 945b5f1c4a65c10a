package consensus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	abci "github.com/cometbft/cometbft/abci/types"
	cp2p "github.com/cometbft/cometbft/p2p"
	ssproto "github.com/cometbft/cometbft/proto/tendermint/statesync"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/light"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/p2p"
)

// syncNet is a network of one validator with the ledger's own application and state, whose
// snapshots others fetch.
type syncNet struct {
	t     *testing.T
	net   *crashNetwork
	first *syncNode
	mute  atomic.Bool // the validator shows no snapshots
}

type syncNode struct {
	*Chain
	host  *p2p.Host
	store *state.Store
	home  string
}

const syncEvery = 20 // blocks between snapshots: some seconds

func newSyncNet(t *testing.T) *syncNet {
	home := t.TempDir()
	s := &syncNet{t: t, net: crashGenesis(t, home)}
	s.first = s.node(home, 0, func(a *App) abci.Application {
		return &liar{App: a, list: func(_ uint64, honest []*abci.Snapshot) []*abci.Snapshot {
			if s.mute.Load() {
				return nil
			}
			return honest
		}}
	}, func(cfg *Config) { cfg.Commit = 100 * time.Millisecond })
	desk := &Desk{Chain: func() (*Chain, error) { return s.first.Chain, nil }, Store: s.first.store, Penalise: s.first.host.Penalise}
	s.first.host.Handle("light", LightLimits, desk.ServeLight)
	s.reach(s.first, syncEvery+3)
	return s
}

// open makes a node whose host runs; its chain is not started.
func (s *syncNet) open(home string, key int, peers ...*syncNode) (*syncNode, *App) {
	s.t.Helper()
	log := slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("node", key)
	store, err := state.Open(state.Config{Dir: filepath.Join(home, "ledger"), Log: log, SnapshotEvery: syncEvery})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { store.Close() })
	host, err := p2p.New(p2p.Config{Network: s.net.network(), Genesis: s.net.hash(), Key: toyKey(key), Role: p2p.RoleValidator, Listen: []string{"127.0.0.1:0"}, Log: log})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := host.Start(context.Background()); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { host.Close() })
	for _, p := range peers {
		if _, err := host.Connect(context.Background(), p.host.Addrs()[0]); err != nil {
			s.t.Fatal(err)
		}
	}
	consensusKey, err := LoadKey(home, "")
	if err != nil {
		s.t.Fatal(err)
	}
	app := NewApp(AppConfig{Network: s.net.network(), Store: store, Log: log, Beacon: consensusKey.Beacon(s.net.network(), host.Address())})
	return &syncNode{host: host, store: store, home: home}, app
}

// node starts one; wrap puts an application over its own.
func (s *syncNet) node(home string, key int, wrap func(*App) abci.Application, tune func(*Config), peers ...*syncNode) *syncNode {
	s.t.Helper()
	node, app := s.open(home, key, peers...)
	s.start(node, app, wrap, tune)
	return node
}

func (s *syncNet) start(node *syncNode, app *App, wrap func(*App) abci.Application, tune func(*Config)) {
	s.t.Helper()
	cfg := s.net.crashConfig(node.home, app, node.store)
	if wrap != nil {
		cfg.App = wrap(app)
	}
	key, err := LoadKey(node.home, "")
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.Net, cfg.Signer, cfg.Log = node.host, key.Signer(), app.cfg.Log
	if tune != nil {
		tune(&cfg)
	}
	if node.Chain, err = New(cfg); err != nil {
		s.t.Fatal(err)
	}
	if err := node.Start(context.Background()); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { node.Stop() })
}

func (n *syncNode) height() mesh.Height {
	s, err := n.Status()
	if err != nil {
		return 0
	}
	return s.Height
}

func (s *syncNet) reach(n *syncNode, h mesh.Height) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("height %d", h), func() bool { return n.height() >= h })
}

// fetching configures a node that joins.
func (s *syncNet) fetching(cfg *Config) {
	cfg.StateSync = &StateSync{Trusted: trustedChain{s.first.Chain}, Discovery: 300 * time.Millisecond, chunkPatience: 300 * time.Millisecond}
}

// joined checks that a node follows the ledger from a snapshot on.
func (s *syncNet) joined(n *syncNode) {
	s.t.Helper()
	var now Status
	eventually(s.t, "the node has blocks after the snapshot", func() bool {
		now, _ = n.Status()
		return now.Oldest > 0
	})
	s.reach(n, s.first.height()+2)
	if now.Oldest <= syncEvery {
		s.t.Errorf("its oldest block is %d: it fetched blocks from the start", now.Oldest)
	}
	select {
	case err := <-n.Err():
		s.t.Error(err)
	default:
	}
}

// liar is the application of a peer that lies about snapshots.
type liar struct {
	*App
	list  func(head uint64, honest []*abci.Snapshot) []*abci.Snapshot
	chunk func(honest []byte) []byte
	shown atomic.Int32 // how often it told of its snapshots
}

func (l *liar) ListSnapshots(ctx context.Context, r *abci.RequestListSnapshots) (*abci.ResponseListSnapshots, error) {
	l.shown.Add(1)
	res, err := l.App.ListSnapshots(ctx, r)
	if err == nil && l.list != nil {
		res.Snapshots = l.list(uint64(l.cfg.Store.Height()), res.Snapshots)
	}
	return res, err
}

func (l *liar) LoadSnapshotChunk(ctx context.Context, r *abci.RequestLoadSnapshotChunk) (*abci.ResponseLoadSnapshotChunk, error) {
	res, err := l.App.LoadSnapshotChunk(ctx, r)
	if err == nil && l.chunk != nil {
		res.Chunk = l.chunk(res.Chunk)
	}
	return res, err
}

// forge makes a snapshot in order whose chunks are these.
func forge(height uint64, chunks ...[]byte) *abci.Snapshot {
	meta := make([]byte, 8)
	for i := range 8 {
		meta[i] = byte(height >> (56 - 8*i))
	}
	for _, c := range chunks {
		h := mesh.HashOf(c)
		meta = append(meta, h[:]...)
	}
	h := mesh.HashOf(meta)
	return &abci.Snapshot{Height: height, Format: state.SnapshotFormat, Chunks: uint32(len(chunks)), Hash: h[:], Metadata: meta}
}

// TestHostileSnapshots: whatever one peer says about snapshots, a node that joins gets the
// ledger from the other one, and a peer that is proven to have lied is cut off.
func TestHostileSnapshots(t *testing.T) {
	t.Parallel()
	empty := []byte{state.SnapshotFormat}
	for name, c := range map[string]struct {
		list  func(head uint64, honest []*abci.Snapshot) []*abci.Snapshot
		chunk func(honest []byte) []byte
		cut   bool
	}{
		"fewer chunks than the metadata": {cut: true, list: func(head uint64, _ []*abci.Snapshot) []*abci.Snapshot {
			s := forge(head-3, empty, empty)
			s.Chunks = 1
			return []*abci.Snapshot{s}
		}, chunk: func([]byte) []byte { return empty }},
		"one chunk more": {cut: true, list: func(_ uint64, honest []*abci.Snapshot) []*abci.Snapshot {
			for _, s := range honest {
				s.Chunks++
			}
			return honest
		}},
		"false, in order": {cut: true, list: func(head uint64, _ []*abci.Snapshot) []*abci.Snapshot {
			return []*abci.Snapshot{forge(head-3, empty)}
		}, chunk: func([]byte) []byte { return empty }},
		"heights that are not there": {list: func(uint64, []*abci.Snapshot) (out []*abci.Snapshot) {
			for i := range uint64(10) {
				out = append(out, forge(1<<40-i, empty))
			}
			return out
		}},
		"far back": {list: func(uint64, []*abci.Snapshot) []*abci.Snapshot {
			return []*abci.Snapshot{forge(1, empty), forge(2, empty)}
		},
			chunk: func([]byte) []byte { return nil }},
		"false chunks":         {chunk: func(b []byte) []byte { return append(b, 0) }},
		"no chunks":            {chunk: func([]byte) []byte { return nil }},
		"chunks after an hour": {chunk: func(b []byte) []byte { time.Sleep(2 * time.Second); return b }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSyncNet(t)
			var lies *liar
			bad := s.node(t.TempDir(), 1, func(a *App) abci.Application {
				lies = &liar{App: a, list: c.list, chunk: c.chunk}
				return lies
			}, nil, s.first)
			s.reach(bad, s.first.height()+1)
			// At first only the liar has something to say.
			s.mute.Store(true)
			late := s.node(t.TempDir(), 2, nil, s.fetching, bad, s.first)
			if c.cut {
				eventually(t, "the liar is cut off", func() bool { return !late.host.Connected(bad.host.Address()) })
			} else {
				// Who is only slow may be good enough on a busy machine.
				eventually(t, "the liar was heard", func() bool { return lies.shown.Load() > 3 || late.height() > 0 })
			}
			s.mute.Store(false)
			s.joined(late)
		})
	}
}

// TestNobodyElse: where no peer has a snapshot, a node that joins ends with an error that has
// the cause, and follows when it is started again and one is there.
func TestNobodyElse(t *testing.T) {
	t.Parallel()
	s := newSyncNet(t)
	s.mute.Store(true)
	late, app := s.open(t.TempDir(), 2, s.first)
	s.start(late, app, nil, func(cfg *Config) {
		s.fetching(cfg)
		cfg.StateSync.Patience = time.Second
	})
	select {
	case err := <-late.Err():
		if !errors.Is(err, ErrNoSnapshot) || !strings.Contains(err.Error(), "none was offered") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("waits for ever")
	}
	if now, err := late.Status(); err != nil || !strings.Contains(now.Doing, "asking peers for a snapshot") || !now.CatchingUp {
		t.Errorf("status %+v, %v", now, err)
	}
	late.Stop()
	s.mute.Store(false)
	s.start(late, app, nil, s.fetching)
	s.joined(late)
}

// TestSnapshotTooLarge: a user's bound is kept, and is what the error says.
func TestSnapshotTooLarge(t *testing.T) {
	t.Parallel()
	s := newSyncNet(t)
	s.mute.Store(true)
	bad := s.node(t.TempDir(), 1, func(a *App) abci.Application {
		return &liar{App: a, list: func(head uint64, _ []*abci.Snapshot) []*abci.Snapshot {
			return []*abci.Snapshot{forge(head-3, []byte{1}, []byte{1})}
		}}
	}, nil, s.first)
	s.reach(bad, s.first.height()+1)
	late := s.node(t.TempDir(), 2, nil, func(cfg *Config) {
		s.fetching(cfg)
		cfg.StateSync.MaxBytes, cfg.StateSync.Patience = state.MaxChunk, 3*time.Second
	}, bad)
	select {
	case err := <-late.Err():
		if !errors.Is(err, ErrNoSnapshot) || !strings.Contains(err.Error(), "8 MiB") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("waits for ever")
	}
}

// TestParamsOfGenesis: consensus parameters come from the genesis document; a header that
// has others ends the attempt.
func TestParamsOfGenesis(t *testing.T) {
	t.Parallel()
	s := newSyncNet(t)
	late := s.node(t.TempDir(), 2, nil, s.fetching, s.first)
	s.joined(late)
	now, err := late.parts.states.Load()
	if err != nil || !reflect.DeepEqual(now.ConsensusParams, *late.cfg.Genesis.ConsensusParams) {
		t.Errorf("parameters %+v, want %+v (%v)", now.ConsensusParams, late.cfg.Genesis.ConsensusParams, err)
	}
	other := s.node(t.TempDir(), 3, nil, func(cfg *Config) {
		s.fetching(cfg)
		g := *cfg.Genesis
		p := *g.ConsensusParams
		p.Block.MaxBytes--
		g.ConsensusParams = &p
		cfg.Genesis, cfg.StateSync.Patience = &g, 3*time.Second
	}, s.first)
	select {
	case err := <-other.Err():
		if !errors.Is(err, ErrNoSnapshot) || !strings.Contains(err.Error(), "other consensus parameters than the genesis") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("waits for ever")
	}
}

// joinRun is a process that joins the network of a validator by a snapshot, as a whole node
// does. It ends after a step, or when it follows the ledger.
func joinRun(home string) error {
	b, err := os.ReadFile(filepath.Join(home, "network.json"))
	if err != nil {
		return err
	}
	n := new(crashNetwork)
	if err := json.Unmarshal(b, n); err != nil {
		return err
	}
	g, err := ledger.ParseGenesis(n.Ledger)
	if err != nil {
		return err
	}
	quiet := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	store, err := state.Open(state.Config{Dir: filepath.Join(home, "ledger"), Log: quiet})
	if err != nil {
		return err
	}
	defer store.Close()
	net, err := p2p.New(p2p.Config{Network: n.network(), Genesis: n.hash(), Key: toyKey(9), Role: p2p.RoleHost, Listen: []string{"127.0.0.1:0"}, Log: quiet})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := net.Start(ctx); err != nil {
		return err
	}
	defer net.Close()
	validator, err := net.Connect(ctx, os.Getenv(crashJoin))
	if err != nil {
		return err
	}
	root, err := FirstValidators(n.network(), g)
	if err != nil {
		return err
	}
	trusted, err := light.New(light.Config{Network: n.network(), Root: light.Root{Validators: root, Time: n.Created}, Period: time.Hour,
		Dialer: net, Peers: func() []mesh.Address { return []mesh.Address{validator} }, Fresh: 50 * time.Millisecond, Log: quiet})
	if err != nil {
		return err
	}
	app := NewApp(AppConfig{Network: n.network(), Store: store, Log: quiet})
	cfg := n.crashConfig(home, app, store)
	cfg.Net, cfg.Log = net, quiet
	cfg.StateSync = &StateSync{Trusted: trusted, Discovery: 100 * time.Millisecond}
	cfg.step = func(name string) {
		if name == os.Getenv(crashStep) {
			os.Exit(crashExit)
		}
	}
	if height := store.Height(); height > 0 {
		fmt.Fprintln(os.Stderr, "begins with a state of height", height)
	}
	chain, err := New(cfg)
	if err != nil {
		return err
	}
	if err := chain.Start(ctx); err != nil {
		return err
	}
	defer chain.Stop()
	for {
		s, err := chain.Status()
		if err != nil {
			return err
		}
		if s.Blocks > 2 {
			if s.Oldest <= syncEvery {
				return fmt.Errorf("its oldest block is %d: it fetched blocks from the start", s.Oldest)
			}
			return nil
		}
		select {
		case err := <-chain.Err():
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestCrashInStateSync ends a node that joins after each step from the last chunk of a
// snapshot on, until CometBFT has its state: it starts again, and follows the ledger.
func TestCrashInStateSync(t *testing.T) {
	t.Parallel()
	s := newSyncNet(t)
	b, err := os.ReadFile(filepath.Join(s.first.home, "network.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"restored", "committed", "bootstrapped"} {
		home := t.TempDir()
		if err := os.WriteFile(filepath.Join(home, "network.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		join := crashJoin + "=" + s.first.host.Addrs()[0]
		if code := crash(t, home, join, crashStep+"="+step); code != crashExit {
			t.Fatalf("%s: exit code %d: the step was not reached", step, code)
		}
		store, err := state.Open(state.Config{Dir: filepath.Join(home, "ledger"), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if store.Height() == 0 {
			t.Errorf("%s: the snapshot was not taken in before the end", step)
		}
		store.Close()
		if code := crash(t, home, join); code != 0 {
			t.Errorf("%s: the node that starts again ends with exit code %d", step, code)
		}
	}
}

// silentPeer is a peer that notes what it is sent.
type silentPeer struct {
	cp2p.Peer
	id   cp2p.ID
	sent []*ssproto.ChunkRequest
}

func (p *silentPeer) ID() cp2p.ID { return p.id }
func (p *silentPeer) TrySend(e cp2p.Envelope) bool {
	p.sent = append(p.sent, e.Message.(*ssproto.ChunkRequest))
	return true
}

// TestFetchAsks: what was not asked for is let fall, offers of one peer are few, and another
// peer is asked where one is late.
func TestFetchAsks(t *testing.T) {
	f := newFetch(&Chain{cfg: Config{StateSync: &StateSync{}}}, nil)
	a, b := &silentPeer{id: "a"}, &silentPeer{id: "b"}
	var chunks [][]byte
	for i := range 40 {
		chunks = append(chunks, []byte{byte(i)})
	}
	for i := range uint64(20) {
		f.offered(a, forge(100+i, chunks...))
	}
	if len(f.offers) != offersOfPeer {
		t.Errorf("%d offers of one peer are kept", len(f.offers))
	}
	f.offered(b, forge(100, chunks...))
	ranked := f.ranked(1000)
	if len(ranked) != offersOfPeer || ranked[0].Height != 100 || ranked[1].Height != 102 {
		t.Fatalf("%d offers, the first of height %d", len(ranked), ranked[0].Height)
	}
	if len(f.ranked(101)) != 0 || len(f.ranked(103)) != 2 || len(f.ranked(102+offerBehind)) != 0 {
		t.Error("offers too new to be verified or too old to go on from are taken")
	}
	d := &download{offer: ranked[0], got: make(map[uint32]piece), asked: make(map[uint32]*question)}
	f.load = d
	now := time.Now()
	send := func(at time.Time) {
		f.mu.Lock()
		sends := f.due(d, at)
		f.mu.Unlock()
		for _, s := range sends {
			s()
		}
	}
	send(now)
	if len(a.sent) != chunksOfPeer || len(b.sent) != chunksOfPeer {
		t.Fatalf("%d chunks are asked of one peer, %d of the other", len(a.sent), len(b.sent))
	}
	answer := func(p *silentPeer, index uint32, chunk []byte) {
		f.arrived(p, &ssproto.ChunkResponse{Height: 100, Format: state.SnapshotFormat, Index: index, Chunk: chunk})
	}
	mine, other := a.sent[0].Index, b.sent[0].Index
	answer(b, mine, []byte("not asked"))
	answer(a, 39, []byte("not asked"))
	answer(&silentPeer{id: "c"}, mine, []byte("not asked"))
	f.arrived(a, &ssproto.ChunkResponse{Height: 101, Format: state.SnapshotFormat, Index: mine, Chunk: []byte("another snapshot")})
	answer(a, mine, make([]byte, state.MaxChunk+1))
	if len(d.got) != 0 {
		t.Fatalf("chunks that nobody asked for are taken: %v", d.got)
	}
	send(now.Add(chunkPatience / 2)) // a is free for one more
	if len(a.sent) != chunksOfPeer+1 || len(b.sent) != chunksOfPeer {
		t.Errorf("after one answer %d and %d chunks were asked for", len(a.sent), len(b.sent))
	}
	answer(b, other, []byte("good"))
	if p := d.got[other]; p.from != "b" {
		t.Errorf("a chunk that was asked for is not taken: %+v", p)
	}
	before := len(b.sent)
	send(now.Add(2 * chunkPatience)) // all others are late; those of b's go to it again or to a
	if len(b.sent) == before || f.late["a"] == 0 {
		t.Errorf("nobody else is asked for what is late")
	}
	// A late answer counts still; one of a liar does not, and what came from it goes.
	answer(a, mine, []byte("late"))
	if !bytes.Equal(d.got[mine].bytes, []byte("late")) {
		t.Error("a late answer is not taken")
	}
	f.caught("a", "test", 1)
	if _, ok := d.got[mine]; ok || len(d.peers) != 1 {
		t.Error("what a liar sent is kept")
	}
	f.offered(a, forge(200, chunks...))
	if len(f.ranked(1000)) != 1 {
		t.Error("offers of a liar are listened to")
	}
	f.gone("b")
	if len(d.peers) != 0 {
		t.Error("a peer that left is still asked")
	}
}

// FuzzOffer: no offer, whatever it has, breaks the choice, and a hostile application's hash
// is not needed to refuse what contradicts itself.
func FuzzOffer(f *testing.F) {
	s := forge(7, []byte{1}, []byte{2})
	f.Add(s.Height, s.Format, s.Chunks, s.Hash, s.Metadata)
	f.Add(uint64(1)<<63, uint32(1), uint32(1)<<31, []byte{1}, []byte(nil))
	store, err := state.Open(state.Config{Memory: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	app := NewApp(AppConfig{Network: "test0", Store: store, Log: slog.New(slog.DiscardHandler)})
	f.Fuzz(func(t *testing.T, height uint64, format, chunks uint32, hash, metadata []byte) {
		s := &abci.Snapshot{Height: height, Format: format, Chunks: chunks, Hash: hash, Metadata: metadata}
		fetch := newFetch(&Chain{cfg: Config{StateSync: &StateSync{}}}, nil)
		fetch.offered(&silentPeer{id: "a"}, s)
		for _, o := range fetch.ranked(1000) {
			if o.Height > 998 || o.Chunks > fetch.most {
				t.Fatalf("offer %v is taken", o.Snapshot)
			}
		}
		res, err := app.OfferSnapshot(t.Context(), &abci.RequestOfferSnapshot{Snapshot: s, AppHash: make([]byte, 32)})
		if err != nil {
			t.Fatal(err)
		}
		if res.Result == abci.ResponseOfferSnapshot_ACCEPT && len(metadata) != 8+32*int(chunks) {
			t.Fatalf("a snapshot of %d chunks with %d bytes of metadata is taken", chunks, len(metadata))
		}
	})
}

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

// TestFailureWhileFetching: an application that fails while blocks are fetched ends the
// chain, not the process, and the chain stops in order.
func TestFailureWhileFetching(t *testing.T) {
	t.Parallel()
	for name, atCommit := range map[string]bool{"executing": false, "writing": true} {
		t.Run(name, func(t *testing.T) {
			n := newToyNet(t, 1, 1, func(i int, cfg *Config) {
				if i == 1 {
					cfg.App, cfg.Log = &failingApp{toyApp: cfg.App.(*toyApp), at: 4, atCommit: atCommit}, nil
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

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
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
