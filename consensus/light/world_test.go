package light

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cmted25519 "github.com/cometbft/cometbft/crypto/ed25519"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	cmtversion "github.com/cometbft/cometbft/proto/tendermint/version"
	"github.com/cometbft/cometbft/types"
	"github.com/cometbft/cometbft/version"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/p2p"
)

const (
	testNetwork = mesh.NetworkID("light-test-1")
	blockTime   = 5 * time.Second
	testPeriod  = 14 * 24 * time.Hour
)

var testStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// signer is a key of a validator.
type signer struct{ cmted25519.PrivKey }

func newSigners(name string, n int) []signer {
	var out []signer
	for i := range n {
		out = append(out, signer{cmted25519.GenPrivKeyFromSecret(fmt.Appendf(nil, "%s %d", name, i))})
	}
	return out
}

func setOf(signers []signer) *types.ValidatorSet {
	var vals []*types.Validator
	for _, s := range signers {
		vals = append(vals, types.NewValidator(s.PubKey(), 10))
	}
	return types.NewValidatorSet(vals)
}

// ledgerChain makes blocks when they are asked for. Epoch e has the validators sets[e],
// and after the last of them that one on.
type ledgerChain struct {
	name  string // goes into the headers, so that chains differ
	epoch int64
	sets  [][]signer
	app   map[int64]mesh.Hash // by height of the state

	mu     sync.Mutex
	blocks map[int64]*types.LightBlock
	links  bool // parents' hashes are right; costs a block for each height
	late   time.Duration
	drop   int // so many validators do not sign
}

func newLedgerChain(epoch int64, sets ...[]signer) *ledgerChain {
	return &ledgerChain{epoch: epoch, sets: sets, blocks: make(map[int64]*types.LightBlock)}
}

func (c *ledgerChain) signers(h int64) []signer {
	return c.sets[min((h-1)/c.epoch, int64(len(c.sets)-1))]
}

func (c *ledgerChain) time(h int64) time.Time {
	return testStart.Add(time.Duration(h-1)*blockTime + c.late)
}

func testParams() types.ConsensusParams { return *types.DefaultConsensusParams() }

func (c *ledgerChain) block(h int64) *types.LightBlock {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.make(h)
}

func (c *ledgerChain) make(h int64) *types.LightBlock {
	if b := c.blocks[h]; b != nil {
		return b
	}
	parent := types.BlockID{Hash: hashOf(c.name, "parent", h), PartSetHeader: types.PartSetHeader{Total: 1, Hash: hashOf(c.name, "parts", h-1)}}
	if c.links && h > 1 {
		parent.Hash = c.make(h - 1).Hash()
	}
	if h == 1 {
		parent = types.BlockID{}
	}
	app := c.app[h-1]
	params := testParams()
	set := setOf(c.signers(h))
	header := &types.Header{
		Version: cmtversion.Consensus{Block: version.BlockProtocol, App: 1}, ChainID: string(testNetwork), Height: h, Time: c.time(h), LastBlockID: parent,
		LastCommitHash: hashOf("commit", h), DataHash: hashOf(c.name, "data", h), ValidatorsHash: set.Hash(), NextValidatorsHash: setOf(c.signers(h + 1)).Hash(),
		ConsensusHash: params.Hash(), AppHash: app[:], LastResultsHash: hashOf("results", h), EvidenceHash: hashOf("evidence", h), ProposerAddress: set.Validators[0].Address,
	}
	b := &types.LightBlock{SignedHeader: &types.SignedHeader{Header: header}, ValidatorSet: set}
	b.Commit = commit(header, set, c.signers(h)[c.drop:])
	c.blocks[h] = b
	return b
}

func hashOf(parts ...any) []byte {
	h := mesh.HashOf([]byte(fmt.Sprint(parts...)))
	return h[:]
}

// commit signs a header; validators of the set that are not among the signers are absent.
func commit(header *types.Header, set *types.ValidatorSet, signers []signer) *types.Commit {
	id := types.BlockID{Hash: header.Hash(), PartSetHeader: types.PartSetHeader{Total: 1, Hash: hashOf("parts", header.Height)}}
	keys := make(map[string]signer)
	for _, s := range signers {
		keys[string(s.PubKey().Address())] = s
	}
	out := &types.Commit{Height: header.Height, BlockID: id}
	for i, v := range set.Validators {
		key, ok := keys[string(v.Address)]
		if !ok {
			out.Signatures = append(out.Signatures, types.NewCommitSigAbsent())
			continue
		}
		vote := &types.Vote{Type: cmtproto.PrecommitType, Height: header.Height, BlockID: id, Timestamp: header.Time.Add(time.Second), ValidatorAddress: v.Address, ValidatorIndex: int32(i)}
		sig, err := key.Sign(types.VoteSignBytes(string(testNetwork), vote.ToProto()))
		if err != nil {
			panic(err)
		}
		out.Signatures = append(out.Signatures, types.CommitSig{BlockIDFlag: types.BlockIDFlagCommit, ValidatorAddress: v.Address, Timestamp: vote.Timestamp, Signature: sig})
	}
	return out
}

// fullNode answers as a node of the ledger does, unless it is told otherwise.
type fullNode struct {
	chain *ledgerChain
	tip   atomic.Int64
	store *state.Store
	// answer replaces an answer; nil gives the honest one.
	answer func(*lightpb.Ask) *lightpb.Answer
	tx     func(*lightpb.TxAsk) *lightpb.TxAnswer
	raw    []byte // sent instead of any answer
	silent bool   // never answers
	dead   bool   // cannot be dialled

	asks     atomic.Int64
	sent     atomic.Int64 // bytes
	mu       sync.Mutex
	evidence []types.Evidence // guarded by mu
}

func (n *fullNode) honest(ask *lightpb.Ask) *lightpb.Answer {
	no := func(code lightpb.Error_Code) *lightpb.Answer {
		return &lightpb.Answer{Got: &lightpb.Answer_Error{Error: &lightpb.Error{Code: code, Message: "not here"}}}
	}
	height := func(h uint64) (int64, *lightpb.Answer) {
		if h > uint64(n.tip.Load()) {
			return 0, no(lightpb.Error_TOO_HIGH)
		}
		if h == 0 {
			return n.tip.Load(), nil
		}
		return int64(h), nil
	}
	switch want := ask.GetWant().(type) {
	case *lightpb.Ask_Block:
		h, refused := height(want.Block)
		if refused != nil {
			return refused
		}
		return blockAnswer(n.chain.block(h))
	case *lightpb.Ask_Tip:
		h, refused := height(want.Tip)
		if refused != nil {
			return refused
		}
		return &lightpb.Answer{Got: &lightpb.Answer_Tip{Tip: &lightpb.Tip{Height: uint64(h), Hash: n.chain.block(h).Hash()}}}
	case *lightpb.Ask_Record:
		p, err := n.store.Prove(want.Record.GetKey(), mesh.Height(want.Record.GetHeight()))
		if err != nil {
			return no(lightpb.Error_NOT_FOUND)
		}
		return &lightpb.Answer{Got: &lightpb.Answer_Proof{Proof: p.Marshal()}}
	case *lightpb.Ask_Keys:
		out := new(lightpb.KeyList)
		v := n.store.View()
		defer v.Close()
		v.IterateAfter(want.Keys.GetPrefix(), want.Keys.GetAfter(), func(k, _ []byte) bool {
			out.Keys = append(out.Keys, append([]byte(nil), k...))
			return len(out.Keys) < int(want.Keys.GetLimit())
		})
		return &lightpb.Answer{Got: &lightpb.Answer_Keys{Keys: out}}
	case *lightpb.Ask_Evidence:
		pb := new(cmtproto.Evidence)
		if err := pb.Unmarshal(want.Evidence); err != nil {
			return no(lightpb.Error_INVALID)
		}
		ev, err := types.EvidenceFromProto(pb)
		if err == nil {
			err = ev.ValidateBasic()
		}
		if err != nil {
			return no(lightpb.Error_INVALID)
		}
		n.mu.Lock()
		n.evidence = append(n.evidence, ev)
		n.mu.Unlock()
		return &lightpb.Answer{Got: &lightpb.Answer_Taken{Taken: true}}
	}
	return no(lightpb.Error_INVALID)
}

func blockAnswer(b *types.LightBlock) *lightpb.Answer {
	raw, err := EncodeBlock(b)
	if err != nil {
		panic(err)
	}
	return &lightpb.Answer{Got: &lightpb.Answer_Block{Block: raw}}
}

func (n *fullNode) serve(c net.Conn, protocol string) {
	defer c.Close()
	counted := &countedConn{c, &n.sent}
	if protocol == "tx" {
		ask := new(lightpb.TxAsk)
		if p2p.ReadMessage(c, ledger.MaxTxBytes+64, ask) == nil {
			if a := n.tx(ask); a != nil { // nil: it is lost in the middle of it
				_ = p2p.WriteMessage(counted, a)
			}
		}
		return
	}
	ask := new(lightpb.Ask)
	if p2p.ReadMessage(c, MaxAsk, ask) != nil {
		return
	}
	n.asks.Add(1)
	if n.silent {
		var b [1]byte
		c.Read(b[:]) // until the other side gives up
		return
	}
	if n.raw != nil {
		counted.Write(n.raw)
		return
	}
	if n.answer != nil {
		if a := n.answer(ask); a != nil {
			_ = p2p.WriteMessage(counted, a)
			return
		}
	}
	_ = p2p.WriteMessage(counted, n.honest(ask))
}

type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (c *countedConn) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.Conn.Write(b)
}

// halfPipe is one end of a pipe that can say that it has said all.
type halfPipe struct{ net.Conn }

func (halfPipe) CloseWrite() error { return nil }

// world is a client and the full nodes around it.
type world struct {
	t     testing.TB
	chain *ledgerChain
	nodes []*fullNode
	now   atomic.Int64

	mu       sync.Mutex
	penalty  map[mesh.Address]int    // guarded by mu
	reasons  map[mesh.Address]string // guarded by mu
	dialling atomic.Int64
}

func addressOf(i int) mesh.Address { return mesh.Address{0xff, byte(i), byte(i >> 8)} }

// newWorld makes n honest nodes of a chain whose newest block is tip.
func newWorld(t testing.TB, chain *ledgerChain, n int, tip int64) *world {
	w := &world{t: t, chain: chain, penalty: make(map[mesh.Address]int), reasons: make(map[mesh.Address]string)}
	for range n {
		w.add(chain, tip)
	}
	w.at(tip)
	return w
}

func (w *world) add(chain *ledgerChain, tip int64) *fullNode {
	n := &fullNode{chain: chain}
	n.tip.Store(tip)
	w.nodes = append(w.nodes, n)
	return n
}

// at sets the clock to a second after a block.
func (w *world) at(height int64) { w.now.Store(w.chain.time(height).Add(time.Second).UnixNano()) }

func (w *world) Dial(ctx context.Context, peer mesh.Address, protocol string) (net.Conn, error) {
	n := w.nodes[int(peer[1])|int(peer[2])<<8]
	if n.dead {
		return nil, errors.New("no way there")
	}
	w.dialling.Add(1)
	a, b := net.Pipe()
	go n.serve(b, protocol)
	return halfPipe{a}, nil
}

func (w *world) peers() []mesh.Address {
	var out []mesh.Address
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.nodes {
		if w.penalty[addressOf(i)] < 100 { // who is cut off is no peer
			out = append(out, addressOf(i))
		}
	}
	return out
}

func (w *world) config() Config {
	return Config{
		Network: testNetwork, Root: Root{Validators: setOf(w.chain.sets[0]), Time: testStart}, Period: testPeriod, Dialer: w, Peers: w.peers,
		Penalise: func(peer mesh.Address, reason string, points int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.penalty[peer] += points
			w.reasons[peer] = reason
		},
		Fresh: blockTime, now: func() time.Time { return time.Unix(0, w.now.Load()) },
		shuffle: func(int, func(i, j int)) {},
	}
}

func (w *world) client(tune ...func(*Config)) *Client {
	w.t.Helper()
	cfg := w.config()
	for _, f := range tune {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// fined checks that exactly these nodes were penalised.
func (w *world) fined(nodes ...int) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	want := make(map[mesh.Address]bool)
	for _, i := range nodes {
		want[addressOf(i)] = true
		if w.penalty[addressOf(i)] < pointsLie {
			w.t.Errorf("node %d was not penalised", i)
		}
	}
	for p, points := range w.penalty {
		if !want[p] {
			w.t.Errorf("honest node %d has %d points: %s", p[1], points, w.reasons[p])
		}
	}
}

// head checks that the head is that of the honest chain.
func (w *world) head(c *Client, height int64) Head {
	w.t.Helper()
	h, err := c.Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if int64(h.Height) != height || string(h.Hash[:]) != string(w.chain.block(height).Hash()) {
		w.t.Fatalf("head %d %s, want the honest header %d", h.Height, h.Hash.Short(), height)
	}
	return h
}

// withState gives every honest node a state of the first heights, the same for all.
func (w *world) withState(heights int64, fill func(height int64) []ledger.Change) {
	w.t.Helper()
	s, err := state.Open(state.Config{Memory: true})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close() })
	w.chain.app = make(map[int64]mesh.Hash)
	for h := int64(1); h <= heights; h++ {
		app, err := s.Stage(mesh.Height(h), fill(h))
		if err == nil {
			err = s.Commit()
		}
		if err != nil {
			w.t.Fatal(err)
		}
		w.chain.app[h] = app
	}
	for _, n := range w.nodes {
		n.store = s
	}
}

func testKey(name string) ed25519.PrivateKey {
	h := mesh.HashOf([]byte(name))
	return ed25519.NewKeyFromSeed(h[:])
}
