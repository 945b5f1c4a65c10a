package consensus

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p"
)

// toyApp is an application whose state is a hash over all transactions.
type toyApp struct {
	abci.BaseApplication
	retain    int64 // blocks to keep; 0 keeps all
	snapEvery int64
	panicAt   int64
	voters    map[mesh.Address]uint64 // fixed

	mu      sync.Mutex
	state   toyState
	next    toyState
	snaps   map[int64][]byte
	restore []byte // chunks so far
	offered *abci.Snapshot
}

type toyState struct {
	Height int64
	Count  int64
	Hash   []byte
}

// Voters is what clocks are compared with.
func (a *toyApp) Voters() (map[mesh.Address]uint64, error) { return a.voters, nil }

func newToy() *toyApp { return &toyApp{snaps: make(map[int64][]byte)} }

func (a *toyApp) Info(context.Context, *abci.RequestInfo) (*abci.ResponseInfo, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &abci.ResponseInfo{LastBlockHeight: a.state.Height, LastBlockAppHash: a.state.Hash}, nil
}

func (a *toyApp) CheckTx(_ context.Context, r *abci.RequestCheckTx) (*abci.ResponseCheckTx, error) {
	switch {
	case bytes.HasPrefix(r.Tx, []byte("bad")):
		return &abci.ResponseCheckTx{Code: 7, Log: "bad transactions are not taken"}, nil
	case bytes.HasPrefix(r.Tx, []byte("forged")):
		return &abci.ResponseCheckTx{Code: CodeMalformed, Log: "nobody takes these"}, nil
	case bytes.HasPrefix(r.Tx, []byte("later")):
		return &abci.ResponseCheckTx{Code: CodeUnable, Log: "no room"}, nil
	}
	return &abci.ResponseCheckTx{}, nil
}

func (a *toyApp) FinalizeBlock(_ context.Context, r *abci.RequestFinalizeBlock) (*abci.ResponseFinalizeBlock, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.panicAt > 0 && r.Height == a.panicAt {
		panic("toy app fails on purpose")
	}
	h := sha256.New()
	h.Write(a.state.Hash)
	out := &abci.ResponseFinalizeBlock{}
	for _, tx := range r.Txs {
		h.Write(tx)
		res := &abci.ExecTxResult{Data: tx[:min(4, len(tx))]}
		if bytes.HasPrefix(tx, []byte("fail")) {
			res = &abci.ExecTxResult{Code: 9, Log: "fails when it runs"}
		}
		out.TxResults = append(out.TxResults, res)
	}
	binary.Write(h, binary.BigEndian, r.Height)
	a.next = toyState{r.Height, a.state.Count + int64(len(r.Txs)), h.Sum(nil)}
	out.AppHash = a.next.Hash
	return out, nil
}

func (a *toyApp) Commit(context.Context, *abci.RequestCommit) (*abci.ResponseCommit, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state = a.next
	if a.snapEvery > 0 && a.state.Height%a.snapEvery == 0 {
		b, _ := json.Marshal(a.state)
		a.snaps[a.state.Height] = b
	}
	res := &abci.ResponseCommit{}
	if a.retain > 0 && a.state.Height > a.retain {
		res.RetainHeight = a.state.Height - a.retain
	}
	return res, nil
}

func (a *toyApp) ListSnapshots(context.Context, *abci.RequestListSnapshots) (*abci.ResponseListSnapshots, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := &abci.ResponseListSnapshots{}
	for h, b := range a.snaps {
		sum := sha256.Sum256(b)
		out.Snapshots = append(out.Snapshots, &abci.Snapshot{Height: uint64(h), Format: 1, Chunks: uint32(len(b)), Hash: sum[:]})
	}
	return out, nil
}

// A chunk is one byte, so that there are many.
func (a *toyApp) LoadSnapshotChunk(_ context.Context, r *abci.RequestLoadSnapshotChunk) (*abci.ResponseLoadSnapshotChunk, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.snaps[int64(r.Height)]
	if int(r.Chunk) >= len(b) {
		return &abci.ResponseLoadSnapshotChunk{}, nil
	}
	return &abci.ResponseLoadSnapshotChunk{Chunk: b[r.Chunk : r.Chunk+1]}, nil
}

func (a *toyApp) OfferSnapshot(_ context.Context, r *abci.RequestOfferSnapshot) (*abci.ResponseOfferSnapshot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.offered, a.restore = r.Snapshot, nil
	return &abci.ResponseOfferSnapshot{Result: abci.ResponseOfferSnapshot_ACCEPT}, nil
}

func (a *toyApp) ApplySnapshotChunk(_ context.Context, r *abci.RequestApplySnapshotChunk) (*abci.ResponseApplySnapshotChunk, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.restore = append(a.restore, r.Chunk...)
	if len(a.restore) == int(a.offered.Chunks) {
		if err := json.Unmarshal(a.restore, &a.state); err != nil {
			return &abci.ResponseApplySnapshotChunk{Result: abci.ResponseApplySnapshotChunk_REJECT_SNAPSHOT}, nil
		}
	}
	return &abci.ResponseApplySnapshotChunk{Result: abci.ResponseApplySnapshotChunk_ACCEPT}, nil
}

func (a *toyApp) count() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state.Count
}

// toyNet is a network of validators on loopback.
type toyNet struct {
	t       testing.TB
	genesis *types.GenesisDoc
	network mesh.NetworkID
	voters  map[mesh.Address]uint64
	hash    mesh.Hash
	nodes   []*toyNode
	tune    func(i int, cfg *Config)
	listen  string
}

type toyNode struct {
	*Chain
	i      int
	host   *p2p.Host
	app    *toyApp
	signer types.PrivValidator
	home   string
	dbs    map[string]dbm.DB
}

func toyKey(n int) ed25519.PrivateKey {
	seed := mesh.HashOf(fmt.Appendf(nil, "consensus test key %d", n))
	return ed25519.NewKeyFromSeed(seed[:])
}

// newToyNet makes validators that are not started yet. followers come after them.
func newToyNet(t testing.TB, validators, followers int, tune func(i int, cfg *Config)) *toyNet {
	t.Helper()
	n := &toyNet{t: t, voters: make(map[mesh.Address]uint64), hash: mesh.HashOf([]byte(t.Name())), tune: tune, listen: "127.0.0.1:0"}
	n.network = mesh.NewNetworkID("test", n.hash)
	n.genesis = &types.GenesisDoc{ChainID: string(n.network), GenesisTime: time.Now().Add(-time.Minute), ConsensusParams: types.DefaultConsensusParams()}
	for i := range validators + followers {
		node := n.addNode(i)
		if i < validators {
			node.signer = types.NewMockPV()
			key, _ := node.signer.GetPubKey()
			n.genesis.Validators = append(n.genesis.Validators, types.GenesisValidator{PubKey: key, Power: 10})
			n.voters[mesh.AddressOf(toyKey(i).Public().(ed25519.PublicKey))] = 10
		}
	}
	return n
}

func (n *toyNet) addNode(i int) *toyNode {
	node := &toyNode{i: i, app: newToy(), home: n.t.TempDir(), dbs: make(map[string]dbm.DB)}
	node.app.voters = n.voters
	n.nodes = append(n.nodes, node)
	return node
}

func (n *toyNet) log(i int) *slog.Logger {
	level := slog.LevelError
	switch os.Getenv("MESH_TEST_LOG") {
	case "":
	case "debug":
		level = slog.LevelDebug
	default:
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(n.t.Output(), &slog.HandlerOptions{Level: level})).With("node", i)
}

// startHost gives a node its host and connects it to those that have one.
func (n *toyNet) startHost(node *toyNode) {
	n.t.Helper()
	host, err := p2p.New(p2p.Config{Network: n.network, Genesis: n.hash, Key: toyKey(node.i), Role: p2p.RoleValidator, Listen: []string{n.listen}, Log: n.log(node.i)})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := host.Start(context.Background()); err != nil {
		n.t.Fatal(err)
	}
	node.host = host
	n.t.Cleanup(func() { host.Close() })
	for _, o := range n.nodes {
		if o != node && o.host != nil {
			n.connect(node, o)
		}
	}
}

func (n *toyNet) connect(a, b *toyNode) {
	n.t.Helper()
	if _, err := a.host.Connect(context.Background(), b.host.Addrs()[0]); err != nil {
		n.t.Fatal(err)
	}
}

func (n *toyNet) config(node *toyNode) Config {
	cfg := Config{
		Home: node.home, Genesis: n.genesis, App: node.app, Signer: node.signer, Net: node.host,
		Open: func(name string) (dbm.DB, error) {
			if node.dbs[name] == nil {
				node.dbs[name] = dbm.NewMemDB()
			}
			return node.dbs[name], nil
		},
		Log:    n.log(node.i),
		Commit: 100 * time.Millisecond, Propose: time.Second, Vote: 500 * time.Millisecond,
		DiskFloor: -1,
	}
	if n.tune != nil {
		n.tune(node.i, &cfg)
	}
	return cfg
}

// startChain starts the ledger of a node whose host runs.
func (n *toyNet) startChain(node *toyNode) {
	n.t.Helper()
	c, err := New(n.config(node))
	if err != nil {
		n.t.Fatal(err)
	}
	if err := c.Start(context.Background()); err != nil {
		n.t.Fatalf("node %d: %v", node.i, err)
	}
	node.Chain = c
	n.t.Cleanup(func() { c.Stop() })
}

func (n *toyNet) start() {
	n.t.Helper()
	for _, node := range n.nodes {
		n.startHost(node)
	}
	for _, node := range n.nodes {
		n.startChain(node)
	}
}

func (node *toyNode) height() mesh.Height {
	s, err := node.Status()
	if err != nil {
		return 0
	}
	return s.Height
}

// eventually waits for something that other goroutines bring about. The time is for a
// machine that does much else.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func (n *toyNet) reach(h mesh.Height, nodes ...*toyNode) {
	n.t.Helper()
	for _, node := range nodes {
		eventually(n.t, fmt.Sprintf("node %d at height %d", node.i, h), func() bool { return node.height() >= h })
	}
}

// agree compares what the nodes have of a block.
func (n *toyNet) agree(h mesh.Height, nodes ...*toyNode) {
	n.t.Helper()
	var want *types.Block
	for _, node := range nodes {
		b, err := node.Block(h)
		if err != nil {
			n.t.Fatalf("node %d: %v", node.i, err)
		}
		if want == nil {
			want = b
		}
		if !bytes.Equal(b.Hash(), want.Hash()) || !bytes.Equal(b.AppHash, want.AppHash) {
			n.t.Errorf("block %d: node %d has %s with state %X, node %d has %s with state %X", h, node.i, b.Hash(), b.AppHash, nodes[0].i, want.Hash(), want.AppHash)
		}
	}
}
