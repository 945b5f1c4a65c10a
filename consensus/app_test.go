package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
)

// These tests go through the requirements that CometBFT has of an application by their
// numbers, R1 to R13 (spec/abci/abci++_app_requirements.md). R6 to R8 are about vote
// extensions, which are not used.

// TestAppCoherence is R1 to R5: what one node prepares, in time and in size, every node
// accepts, each time it is asked; with anything at all waiting.
func TestAppCoherence(t *testing.T) {
	net := newAppNet(t, 3)
	for round := range 20 {
		var waiting [][]byte
		for n := range 30 {
			waiting = append(waiting, net.transfer(n%3, strings.Repeat("x", n)))
		}
		waiting = append(waiting, waiting[3], []byte("nonsense"), nil, []byte{0}, net.sign(1, 999, ""), net.sign(2, 0, "again"))
		slices.Reverse(waiting[10:30])
		who, absent := round%3, (round+1)%4-1
		var bad []abci.Misbehavior
		if round == 11 {
			bad = append(bad, abci.Misbehavior{Type: abci.MisbehaviorType_DUPLICATE_VOTE, Height: 5, Validator: abci.Validator{Address: net.hosts[2].consensus()}})
		}
		most := int64(1 << 20)
		if round%2 == 1 {
			most = 1500 + int64(round)*100
		}
		p := net.prepare(net.nodes[who], who, absent, waiting, most, bad...)
		if got := types.ComputeProtoSizeForTxs(types.ToTxs(p.txs)); got > most {
			t.Fatalf("a block of %d bytes, at most %d", got, most)
		}
		for i, a := range net.nodes {
			for range 2 {
				if !net.accepts(a, p) {
					t.Fatalf("round %d: node %d refuses what node %d prepared", round, i, who)
				}
			}
		}
		for from := range net.nonces {
			net.nonces[from] = 0
		}
		for _, raw := range p.txs[1:] {
			tx, err := ledger.ParseTx(appNetwork, raw)
			if err != nil {
				t.Fatal(err)
			}
			for i, h := range net.hosts {
				if h.address == tx.Sender {
					net.nonces[i] = tx.Pb.GetNonce() + 1
				}
			}
		}
		net.decide(p)
		for i, h := range net.hosts { // those who had nothing in this block
			account, err := ledger.NewView(net.nodes[0].cfg.Store).Account(h.address)
			if err != nil {
				t.Fatal(err)
			}
			net.nonces[i] = account.GetNonce()
		}
	}
}

// TestAppRefuses is the other side: what no honest node makes, no node accepts.
func TestAppRefuses(t *testing.T) {
	net := newAppNet(t, 3)
	net.next()
	good := net.prepare(net.nodes[1], 1, -1, [][]byte{net.transfer(0, "a"), net.transfer(0, "b"), net.transfer(1, "c")}, 1<<20)
	if len(good.txs) != 4 {
		t.Fatalf("%d transactions are prepared", len(good.txs))
	}
	large := net.sign(2, 0, strings.Repeat("x", ledger.MaxTxBytes))
	for name, change := range map[string]func(p *proposal){
		"nothing":                        func(p *proposal) { p.txs = nil },
		"no beacon":                      func(p *proposal) { p.txs = p.txs[1:] },
		"the beacon last":                func(p *proposal) { p.txs = append(p.txs[1:], p.txs[0]) },
		"another's turn":                 func(p *proposal) { p.proposer = 2 },
		"the beacon of another block":    func(p *proposal) { p.height++ },
		"a transaction twice":            func(p *proposal) { p.txs = append(p.txs, p.txs[1]) },
		"nonces out of order":            func(p *proposal) { p.txs[1], p.txs[3] = p.txs[3], p.txs[1] },
		"a nonce left out":               func(p *proposal) { p.txs = append(p.txs[:1], p.txs[2:]...) },
		"nonsense":                       func(p *proposal) { p.txs = append(p.txs, []byte("nonsense")) },
		"an empty transaction":           func(p *proposal) { p.txs = append(p.txs, nil) },
		"a byte changed":                 func(p *proposal) { p.txs[3] = bytes.Clone(p.txs[3]); p.txs[3][40] ^= 1 },
		"a transaction beyond its bound": func(p *proposal) { p.txs = append(p.txs, large) },
	} {
		p := good
		p.txs = slices.Clone(good.txs)
		change(&p)
		for i, a := range net.nodes {
			if net.accepts(a, p) {
				t.Errorf("%s: node %d accepts", name, i)
			}
		}
	}
	if res := net.check(net.nodes[0], large, false); res.IsOK() || !strings.Contains(res.Log, "at most 262144") {
		t.Errorf("a transaction of %d bytes: %v", len(large), res)
	}
	net.decide(good) // what was refused left nothing
	for _, a := range net.nodes {
		select {
		case err := <-a.Failed():
			t.Error(err)
		default:
		}
	}
}

// TestAppWritesAtCommit is R9 and R10: proposals, judgements and decided blocks leave
// nothing behind until the commit, and nothing of one that was not decided.
func TestAppWritesAtCommit(t *testing.T) {
	net := newAppNet(t, 2)
	a := net.nodes[0]
	before := a.cfg.Store.AppHash()
	unchanged := func(after string) {
		t.Helper()
		if a.cfg.Store.AppHash() != before || int64(a.cfg.Store.Height()) != net.height {
			t.Fatalf("after %s the state is another", after)
		}
		info, err := a.Info(t.Context(), &abci.RequestInfo{})
		if err != nil || info.LastBlockHeight != net.height {
			t.Fatalf("after %s: %v, %v", after, info, err)
		}
	}
	for range 8 { // over an epoch's begin and end
		waiting := net.transfer(0, "decided")
		net.prepare(a, 0, -1, [][]byte{waiting}, 1<<20)
		unchanged("preparing")
		who := int(net.height) % 2
		other := net.prepare(net.nodes[1-who], 1-who, -1, nil, 1<<20)
		p := net.prepare(net.nodes[who], who, -1, [][]byte{waiting}, 1<<20)
		for _, judged := range []proposal{p, other, p, other} {
			if !net.accepts(a, judged) {
				t.Fatal("a proposal is refused")
			}
			unchanged("judging")
		}
		second := net.finalize(a, p) // what is decided is not what was judged last
		unchanged("computing a block")
		first := net.finalize(a, other)
		unchanged("computing another block")
		if bytes.Equal(first.AppHash, second.AppHash) {
			t.Fatal("two blocks lead to one state")
		}
		if again := net.finalize(a, p); again.String() != second.String() {
			t.Fatal("the same block leads to two states")
		}
		net.decide(p)
		if got := a.cfg.Store.AppHash(); !bytes.Equal(got[:], second.AppHash) {
			t.Fatal("what is committed is not what was computed")
		}
		before = a.cfg.Store.AppHash()
	}
}

// TestAppReplays is R11 and R12, with a crash at each point of a block: the node that
// starts again over what is on disk is told the block again if it was not committed, and
// comes to the same.
func TestAppReplays(t *testing.T) {
	for _, point := range []string{"before judging", "after judging", "after computing", "after the commit"} {
		t.Run(point, func(t *testing.T) {
			net := newAppNet(t, 2)
			for round := range 10 {
				who := round % 2
				p := net.prepare(net.nodes[who], who, -1, [][]byte{net.transfer(0, "a"), net.transfer(1, "b")}, 1<<20)
				a := net.nodes[1]
				switch point {
				case "after judging":
					net.accepts(a, p)
				case "after computing":
					net.accepts(a, p)
					net.finalize(a, p)
				case "after the commit":
					net.finalize(a, p)
					net.commit(a)
				}
				net.nodes[1] = net.over(a.cfg.Store, 1)
				info, err := net.nodes[1].Info(t.Context(), &abci.RequestInfo{})
				if err != nil {
					t.Fatal(err)
				}
				switch {
				case info.LastBlockHeight == net.height: // CometBFT replays the block
					net.decide(p)
				case info.LastBlockHeight == net.height+1 && point == "after the commit":
					net.finalize(net.nodes[0], p)
					net.commit(net.nodes[0])
					net.height++
				default:
					t.Fatalf("the application is at height %d, the chain at %d", info.LastBlockHeight, net.height)
				}
				if x, y := net.nodes[0].cfg.Store.AppHash(), net.nodes[1].cfg.Store.AppHash(); x != y {
					t.Fatalf("height %d: %s and %s", net.height, x, y)
				}
			}
		})
	}
}

// TestAppBegins: a chain is begun again after a crash before the first block, and no other
// chain is begun.
func TestAppBegins(t *testing.T) {
	net := newAppNet(t, 2)
	a := net.nodes[0]
	before := a.cfg.Store.AppHash()
	for range 2 {
		res, err := a.InitChain(t.Context(), net.init())
		if err != nil || !bytes.Equal(res.AppHash, before[:]) {
			t.Fatalf("begun again: %x, %v", res.GetAppHash(), err)
		}
	}
	restarted := net.over(a.cfg.Store, 0)
	info, err := restarted.Info(t.Context(), &abci.RequestInfo{})
	if err != nil || info.LastBlockHeight != 0 {
		t.Fatalf("%v, %v", info, err)
	}
	if _, err := restarted.InitChain(t.Context(), net.init()); err != nil {
		t.Fatal(err)
	}
	net.nodes[0] = restarted
	net.next(net.transfer(0, "first"))
	if _, err := restarted.InitChain(t.Context(), net.init()); err == nil {
		t.Error("a chain with a block is begun again")
	}
	for name, change := range map[string]func(r *abci.RequestInitChain){
		"another network":         func(r *abci.RequestInitChain) { r.ChainId = "dev00000000" },
		"no genesis":              func(r *abci.RequestInitChain) { r.AppStateBytes = nil },
		"a genesis without hosts": func(r *abci.RequestInitChain) { r.AppStateBytes = []byte(`{"allocations":[]}`) },
	} {
		fresh, req := net.node(0), net.init()
		change(req)
		if _, err := fresh.InitChain(t.Context(), req); err == nil {
			t.Errorf("%s: begun", name)
		}
		if err := <-fresh.Failed(); err == nil {
			t.Errorf("%s: nobody is told", name)
		}
	}
}

// TestAppChecksAreSteady is R13: what may wait keeps that as long as it waits, in
// whatever blocks others are, and what was refused stays so until the state has changed.
func TestAppChecksAreSteady(t *testing.T) {
	net := newAppNet(t, 2)
	a := net.nodes[0]
	var waiting [][]byte
	for n := range 20 {
		waiting = append(waiting, net.transfer(n%2, fmt.Sprint(n)))
	}
	refused := [][]byte{[]byte("nonsense"), net.sign(0, 200, ""), net.sign(1, 0, "another"), waiting[0][1:]}
	for _, raw := range waiting {
		if res := net.check(a, raw, false); !res.IsOK() {
			t.Fatal(res.Log)
		}
	}
	for range 3 {
		for i, raw := range refused {
			if res := net.check(a, raw, false); res.IsOK() {
				t.Errorf("bad transaction %d is taken", i)
			}
		}
	}
	for len(waiting) > 0 {
		net.next(waiting[:2]...)
		for i, raw := range waiting[:2] {
			if res := net.check(a, raw, true); res.IsOK() {
				t.Errorf("transaction %d, which is in a block, may wait for another", i)
			}
		}
		waiting = waiting[2:]
		for i, raw := range waiting {
			if res := net.check(a, raw, true); !res.IsOK() {
				t.Fatalf("height %d: transaction %d may not wait any more: %s", net.height, i, res.Log)
			}
		}
	}
	// One that follows on others that never come is given up in the end.
	alone := net.sign(0, net.nonces[0]+1, "alone")
	for blocks := 0; net.check(a, alone, blocks > 0).IsOK(); blocks++ {
		if blocks > 20 {
			t.Fatal("it waits for ever")
		}
		net.next()
	}
}

// TestAppChecksWhileBlocksCome: transactions are checked at any time. It is for the race
// detector.
func TestAppChecksWhileBlocksCome(t *testing.T) {
	net := newAppNet(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	var checks sync.WaitGroup
	for n := range 3 {
		raw := net.sign(n%2, uint64(n), "check")
		checks.Go(func() {
			for ctx.Err() == nil {
				if _, err := net.nodes[0].CheckTx(ctx, &abci.RequestCheckTx{Tx: raw}); err != nil {
					t.Error(err)
					return
				}
				if _, err := net.nodes[0].Info(ctx, &abci.RequestInfo{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 14 {
		net.next(net.transfer(0, "a"), net.transfer(1, "b"))
	}
	cancel()
	checks.Wait()
}

// TestAppWithoutKey: a node that has no key proposes nothing, and that is no fault.
func TestAppWithoutKey(t *testing.T) {
	net := newAppNet(t, 1)
	a := NewApp(AppConfig{Network: appNetwork, Store: net.nodes[0].cfg.Store, Log: slog.New(slog.DiscardHandler)})
	if _, err := a.PrepareProposal(t.Context(), &abci.RequestPrepareProposal{Height: 1}); err == nil {
		t.Error("it proposes")
	}
	broken := net.over(net.nodes[0].cfg.Store, 0)
	broken.cfg.Beacon = func(mesh.Height) ([]byte, error) { return nil, errors.New("no hands") }
	if _, err := broken.PrepareProposal(t.Context(), &abci.RequestPrepareProposal{Height: 1}); err == nil || !strings.Contains(err.Error(), "no hands") {
		t.Errorf("%v", err)
	}
	for _, a := range []*App{a, broken} {
		select {
		case err := <-a.Failed():
			t.Error(err)
		default:
		}
	}
}
