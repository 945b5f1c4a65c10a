package consensus

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	abci "github.com/cometbft/cometbft/abci/types"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/consensus/state"
)

const appNetwork mesh.NetworkID = "dev0a1b2c3d"

// appNet is a network whose nodes are applications alone.
type appNet struct {
	t       *testing.T
	genesis []byte
	hosts   []appHost
	nodes   []*App
	height  int64
	nonces  map[int]uint64
}

type appHost struct {
	account ed25519.PrivateKey
	address mesh.Address
	key     *Key
}

func (h appHost) consensus() []byte { return h.key.signer.Key.PubKey.Address() }

// newAppNet makes hosts with collateral and work, and a node for each, with its state in
// memory and begun.
func newAppNet(t *testing.T, n int) *appNet {
	t.Helper()
	net := &appNet{t: t, nonces: make(map[int]uint64)}
	g := &ledger.Genesis{Params: map[string]uint64{"epoch_blocks": 6, "settle_blocks": 2, "fee_per_byte": 10, "cap_percent": 40}}
	model := mesh.HashOf([]byte("model of a test"))
	g.Models = []ledger.GenesisModel{{ID: model, Name: "model", Coefficient: 1000}}
	rest := ledger.Share(ledger.GroupTeam)
	for i := range n {
		seed := mesh.HashOf([]byte{byte(i)}, []byte("host of a test"))
		h := appHost{account: ed25519.NewKeyFromSeed(seed[:])}
		h.address = mesh.AddressOf(h.account.Public().(ed25519.PublicKey))
		var err error
		if h.key, err = LoadKey(t.TempDir(), ""); err != nil {
			t.Fatal(err)
		}
		host, err := h.key.Genesis("dev", h.address)
		if err != nil {
			t.Fatal(err)
		}
		host.Collateral, host.Work = "100", []ledger.GenesisWork{{Model: model, Count: 1000}}
		g.Hosts = append(g.Hosts, host)
		g.Allocations = append(g.Allocations, ledger.Allocation{Address: h.address, Amount: "1000000", Group: ledger.GroupTeam})
		rest -= 1_000_000 * mesh.GNK
		net.hosts = append(net.hosts, h)
	}
	for group, amount := range map[string]mesh.Amount{
		ledger.GroupTeam: rest, ledger.GroupEarly: ledger.Share(ledger.GroupEarly), ledger.GroupLiquidity: ledger.Share(ledger.GroupLiquidity),
	} {
		g.Allocations = append(g.Allocations, ledger.Allocation{Address: mesh.Address{9}, Amount: amount.String(), Group: group})
	}
	var err error
	if net.genesis, err = json.Marshal(g); err != nil {
		t.Fatal(err)
	}
	var first []byte
	for i := range n {
		a := net.node(i)
		res, err := a.InitChain(t.Context(), net.init())
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Validators) != n || first != nil && !bytes.Equal(first, res.AppHash) {
			t.Fatalf("node %d begins with %d validators and state %x", i, len(res.Validators), res.AppHash)
		}
		first = res.AppHash
		net.nodes = append(net.nodes, a)
	}
	return net
}

func (net *appNet) init() *abci.RequestInitChain {
	return &abci.RequestInitChain{ChainId: string(appNetwork), AppStateBytes: net.genesis, InitialHeight: 1}
}

// node is a new one of a host.
func (net *appNet) node(i int) *App {
	net.t.Helper()
	store, err := state.Open(state.Config{Memory: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		net.t.Fatal(err)
	}
	net.t.Cleanup(func() {
		if err := store.Close(); err != nil {
			net.t.Error(err)
		}
	})
	return net.over(store, i)
}

func (net *appNet) over(store *state.Store, i int) *App {
	h := net.hosts[i]
	return NewApp(AppConfig{Network: appNetwork, Store: store, Log: slog.New(slog.DiscardHandler), Beacon: h.key.Beacon(appNetwork, h.address)})
}

// transfer is the next transaction of a host.
func (net *appNet) transfer(from int, memo string) []byte {
	raw := net.sign(from, net.nonces[from], memo)
	net.nonces[from]++
	return raw
}

func (net *appNet) sign(from int, nonce uint64, memo string) []byte {
	to := mesh.Address{2}
	raw, err := ledger.SignTx(appNetwork, net.hosts[from].account, &ledgerpb.Tx{
		Nonce: nonce, Fee: 100_000, Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 5, Memo: memo}},
	})
	if err != nil {
		net.t.Fatal(err)
	}
	return raw
}

// votes says who signed the block before: all but the absent, who is a host or -1.
func (net *appNet) votes(absent int) (out []abci.VoteInfo) {
	for i, h := range net.hosts {
		if net.height == 0 {
			break
		}
		flag := cmtproto.BlockIDFlagCommit
		if i == absent {
			flag = cmtproto.BlockIDFlagAbsent
		}
		out = append(out, abci.VoteInfo{Validator: abci.Validator{Address: h.consensus(), Power: 1}, BlockIdFlag: flag})
	}
	return out
}

// proposal is a block that is judged and decided.
type proposal struct {
	proposer int
	absent   int
	txs      [][]byte
	bad      []abci.Misbehavior
	height   int64
}

func (p proposal) hash() []byte {
	h := mesh.HashOf([]byte(fmt.Sprint(p.proposer, p.absent, p.height)), types.ToTxs(p.txs).Hash())
	return h[:]
}

func (net *appNet) prepare(a *App, proposer, absent int, waiting [][]byte, most int64, bad ...abci.Misbehavior) proposal {
	net.t.Helper()
	req := &abci.RequestPrepareProposal{
		Height: net.height + 1, ProposerAddress: net.hosts[proposer].consensus(), Txs: waiting, MaxTxBytes: most, Misbehavior: bad,
	}
	for _, v := range net.votes(absent) {
		req.LocalLastCommit.Votes = append(req.LocalLastCommit.Votes, abci.ExtendedVoteInfo{Validator: v.Validator, BlockIdFlag: v.BlockIdFlag})
	}
	res, err := a.PrepareProposal(net.t.Context(), req)
	if err != nil {
		net.t.Fatal(err)
	}
	return proposal{proposer, absent, res.Txs, bad, net.height + 1}
}

// accepts is what a node says of a proposal.
func (net *appNet) accepts(a *App, p proposal) bool {
	net.t.Helper()
	res, err := a.ProcessProposal(net.t.Context(), &abci.RequestProcessProposal{
		Height: p.height, ProposerAddress: net.hosts[p.proposer].consensus(), Txs: p.txs, Hash: p.hash(),
		ProposedLastCommit: abci.CommitInfo{Votes: net.votes(p.absent)}, Misbehavior: p.bad,
	})
	if err != nil {
		net.t.Fatal(err)
	}
	return res.IsAccepted()
}

func (net *appNet) finalize(a *App, p proposal) *abci.ResponseFinalizeBlock {
	net.t.Helper()
	res, err := a.FinalizeBlock(net.t.Context(), &abci.RequestFinalizeBlock{
		Height: p.height, ProposerAddress: net.hosts[p.proposer].consensus(), Txs: p.txs, Hash: p.hash(),
		DecidedLastCommit: abci.CommitInfo{Votes: net.votes(p.absent)}, Misbehavior: p.bad,
	})
	if err != nil {
		net.t.Fatal(err)
	}
	return res
}

func (net *appNet) commit(a *App) {
	net.t.Helper()
	if _, err := a.Commit(net.t.Context(), &abci.RequestCommit{}); err != nil {
		net.t.Fatal(err)
	}
}

// decide has all nodes carry a block out. The first of them has not judged it, as one
// that fetches blocks has not.
func (net *appNet) decide(p proposal) *abci.ResponseFinalizeBlock {
	net.t.Helper()
	var first *abci.ResponseFinalizeBlock
	for i, a := range net.nodes {
		if i > 0 && !net.accepts(a, p) {
			net.t.Fatalf("node %d refuses block %d", i, p.height)
		}
		res := net.finalize(a, p)
		if first == nil {
			first = res
		} else if res.String() != first.String() {
			net.t.Fatalf("block %d: node %d computes\n%v\nand node 0\n%v", p.height, i, res, first)
		}
	}
	for _, a := range net.nodes {
		net.commit(a)
	}
	net.height = p.height
	return first
}

// next makes and decides the next block out of what waits.
func (net *appNet) next(waiting ...[]byte) *abci.ResponseFinalizeBlock {
	net.t.Helper()
	who := int(net.height) % len(net.hosts)
	return net.decide(net.prepare(net.nodes[who], who, -1, waiting, 1<<20))
}

func (net *appNet) check(a *App, raw []byte, again bool) *abci.ResponseCheckTx {
	net.t.Helper()
	req := &abci.RequestCheckTx{Tx: raw}
	if again {
		req.Type = abci.CheckTxType_Recheck
	}
	res, err := a.CheckTx(net.t.Context(), req)
	if err != nil {
		net.t.Fatal(err)
	}
	return res
}
