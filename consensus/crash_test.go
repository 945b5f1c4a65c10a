package consensus

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/p2p"
)

// The environment of a process that crashes.
const (
	crashHome = "MESH_CRASH_HOME" // folder of the validator
	crashAt   = "MESH_CRASH_AT"   // CALL:before or CALL:after of the application's calls; empty: none
	crashJoin = "MESH_CRASH_JOIN" // address of a validator: the process is a node that joins by a snapshot
	crashStep = "MESH_CRASH_STEP" // of that: the step after which it ends
	// crashFail is read by CometBFT: which of its places to fail at the process ends.
	crashFail = "FAIL_TEST_INDEX"
)

// Exit codes of that process.
const (
	crashExit  = 3 // at a call of the application, as planned
	failExit   = 1 // at a place of CometBFT's
	brokenExit = 4
)

// crashBlocks is how many blocks a process makes that does not crash.
const crashBlocks = 6

func TestMain(m *testing.M) {
	if home := os.Getenv(crashHome); home != "" {
		run := crashRun
		if os.Getenv(crashJoin) != "" {
			run = joinRun
		}
		if err := run(home); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(brokenExit)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// crashApp ends the process at a call of the application.
type crashApp struct {
	*App
	call, side string
	calls      map[string]int
}

func newCrashApp(app *App) *crashApp {
	c := &crashApp{App: app, calls: make(map[string]int)}
	c.call, c.side, _ = strings.Cut(os.Getenv(crashAt), ":")
	return c
}

// at ends the process before or after the second call of a kind: the first shows that
// what the process before left can be gone on with.
func (c *crashApp) at(call, side string) {
	if call != c.call {
		return
	}
	if side == "before" {
		c.calls[call]++
	}
	if side == c.side && (c.calls[call] == 2 || call == "init") {
		os.Exit(crashExit)
	}
}

func (c *crashApp) InitChain(ctx context.Context, r *abci.RequestInitChain) (*abci.ResponseInitChain, error) {
	c.at("init", "before")
	defer c.at("init", "after")
	return c.App.InitChain(ctx, r)
}

func (c *crashApp) PrepareProposal(ctx context.Context, r *abci.RequestPrepareProposal) (*abci.ResponsePrepareProposal, error) {
	c.at("prepare", "before")
	defer c.at("prepare", "after")
	return c.App.PrepareProposal(ctx, r)
}

func (c *crashApp) ProcessProposal(ctx context.Context, r *abci.RequestProcessProposal) (*abci.ResponseProcessProposal, error) {
	c.at("process", "before")
	defer c.at("process", "after")
	return c.App.ProcessProposal(ctx, r)
}

func (c *crashApp) FinalizeBlock(ctx context.Context, r *abci.RequestFinalizeBlock) (*abci.ResponseFinalizeBlock, error) {
	c.at("finalize", "before")
	defer c.at("finalize", "after")
	return c.App.FinalizeBlock(ctx, r)
}

func (c *crashApp) Commit(ctx context.Context, r *abci.RequestCommit) (*abci.ResponseCommit, error) {
	c.at("commit", "before")
	defer c.at("commit", "after")
	return c.App.Commit(ctx, r)
}

// crashNetwork is what the processes agree on.
type crashNetwork struct {
	Created time.Time
	Ledger  json.RawMessage
}

const crashPreset = "test"

func (n *crashNetwork) hash() mesh.Hash         { return mesh.HashOf(n.Ledger) }
func (n *crashNetwork) network() mesh.NetworkID { return mesh.NewNetworkID(crashPreset, n.hash()) }
func (n *crashNetwork) genesis() *types.GenesisDoc {
	return NewGenesis(n.network(), n.Created, n.Ledger, time.Hour, time.Second)
}

// crashGenesis makes the home of a validator that has all of the power.
func crashGenesis(t *testing.T, home string) *crashNetwork {
	t.Helper()
	key, err := LoadKey(home, "")
	if err != nil {
		t.Fatal(err)
	}
	self := mesh.AddressOf(toyKey(0).Public().(ed25519.PublicKey))
	host, err := key.Genesis(crashPreset, self)
	if err != nil {
		t.Fatal(err)
	}
	model := mesh.ModelID(mesh.HashOf([]byte("model")))
	host.Collateral, host.Work = "1000", []ledger.GenesisWork{{Model: model, Count: 1000}}
	first := &ledger.Genesis{
		Params: map[string]uint64{"epoch_blocks": 5, "settle_blocks": 2, "vote_blocks": 2, "fee_per_byte": 1, "collateral_per_weight": 1e9},
		Hosts:  []ledger.GenesisHost{host}, Models: []ledger.GenesisModel{{ID: model, Name: "model", Coefficient: 1000}},
	}
	for _, group := range []string{ledger.GroupTeam, ledger.GroupEarly, ledger.GroupLiquidity} {
		first.Allocations = append(first.Allocations, ledger.Allocation{
			Address: self, Amount: strings.TrimSuffix(ledger.Share(group).String(), " GNK"), Group: group})
	}
	doc, err := json.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	n := &crashNetwork{Created: time.Now().Add(-time.Minute).UTC(), Ledger: doc}
	b, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "network.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// crashConfig is a chain over an application; its databases are in the given store.
func (n *crashNetwork) crashConfig(home string, app abci.Application, databases *state.Store) Config {
	return Config{
		Home: filepath.Join(home, "ledger"), Genesis: n.genesis(), App: app, Open: Databases(databases),
		Commit: 10 * time.Millisecond, DiskFloor: -1,
	}
}

// crashNode is what a process of these tests stands on.
type crashNode struct {
	*crashNetwork
	store *state.Store
	net   *p2p.Host
	log   *slog.Logger
}

func openCrashNode(ctx context.Context, home string, key ed25519.PrivateKey, role string) (*crashNode, error) {
	b, err := os.ReadFile(filepath.Join(home, "network.json"))
	if err != nil {
		return nil, err
	}
	n := &crashNode{crashNetwork: new(crashNetwork), log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
	if err := json.Unmarshal(b, n.crashNetwork); err != nil {
		return nil, err
	}
	n.net, err = p2p.New(p2p.Config{Network: n.network(), Genesis: n.hash(), Key: key, Role: role, Listen: []string{"127.0.0.1:0"}, Log: n.log})
	if err != nil {
		return nil, err
	}
	if n.store, err = state.Open(state.Config{Dir: filepath.Join(home, "ledger"), Log: n.log}); err != nil {
		return nil, errors.Join(err, n.net.Close())
	}
	if err := n.net.Start(ctx); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *crashNode) close() error { return errors.Join(n.net.Close(), n.store.Close()) }

// crashRun is the process: a validator that makes blocks with transfers in them, until it
// crashes or has made enough.
func crashRun(home string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	key, err := LoadKey(home, "")
	if err != nil {
		return err
	}
	n, err := openCrashNode(ctx, home, toyKey(0), p2p.RoleValidator)
	if err != nil {
		return err
	}
	defer n.close()
	app := NewApp(AppConfig{Network: n.network(), Store: n.store, Log: n.log, Beacon: key.Beacon(n.network(), n.net.Address())})
	cfg := n.crashConfig(home, newCrashApp(app), n.store)
	cfg.Signer, cfg.Net, cfg.Log = key.Signer(), n.net, n.log
	chain, err := New(cfg)
	if err != nil {
		return err
	}
	if err := chain.Start(ctx); err != nil {
		return err
	}
	defer chain.Stop()
	to := mesh.Address{9}
	for from := n.store.Height(); n.store.Height() < from+crashBlocks; {
		v := n.store.View()
		account, err := ledger.NewView(v).Account(n.net.Address())
		v.Close()
		if err != nil {
			return err
		}
		tx := &ledgerpb.Tx{Nonce: account.GetNonce(), Fee: 1000, Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 1}}}
		raw, err := ledger.SignTx(n.network(), toyKey(0), tx)
		if err != nil {
			return err
		}
		if _, err := chain.Submit(ctx, raw); err != nil && ctx.Err() != nil {
			return fmt.Errorf("at height %d: %w", n.store.Height(), err)
		}
	}
	return nil
}

// crash runs the process and returns its exit code.
func crash(t *testing.T, home string, env ...string) int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, crashHome+"="+home)...)
	out, err := cmd.CombinedOutput()
	code := cmd.ProcessState.ExitCode()
	if err != nil && code != crashExit && code != failExit {
		t.Fatalf("%v: exit code %d: %s", env, code, out)
	}
	return code
}

// TestCrashAtEveryStep ends a validator at every step of deciding a block, inside and
// outside of the application, and starts it again each time: it goes on, and a replay of
// all blocks from the first gives the states that are in their headers.
func TestCrashAtEveryStep(t *testing.T) {
	home := t.TempDir()
	n := crashGenesis(t, home)
	steps := []string{crashAt + "=init:before", crashAt + "=init:after"}
	for _, call := range []string{"prepare", "process", "finalize", "commit"} {
		steps = append(steps, crashAt+"="+call+":before", crashAt+"="+call+":after")
	}
	// Of the places in CometBFT a block passes eleven: its two votes, before and after the block is kept, the end in the
	// write-ahead log, the results, the application's commit, the state.
	for k := range 11 {
		steps = append(steps, crashFail+"="+strconv.Itoa(11+k))
	}
	for _, step := range steps {
		want := crashExit
		if strings.HasPrefix(step, crashFail) {
			want = failExit
		}
		if code := crash(t, home, step); code != want {
			t.Errorf("%s: exit code %d, want %d: the step was not reached", step, code, want)
		}
	}
	if code := crash(t, home); code != 0 {
		t.Fatalf("without a crash: exit code %d", code)
	}

	// All blocks again, on an empty state: CometBFT compares it with every header.
	store, err := state.Open(state.Config{Dir: filepath.Join(home, "ledger")})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	fresh, err := state.Open(state.Config{Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	app := NewApp(AppConfig{Network: n.network(), Store: fresh, Log: slog.New(slog.DiscardHandler)})
	cfg := n.crashConfig(home, app, store)
	host, err := p2p.New(p2p.Config{Network: n.network(), Genesis: n.hash(), Key: toyKey(1), Role: p2p.RoleValidator, Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	cfg.Net = host
	chain, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := chain.Start(t.Context()); err != nil {
		t.Fatalf("replay: %v", err)
	}
	defer chain.Stop()
	if fresh.Height() != store.Height() || fresh.AppHash() != store.AppHash() {
		t.Errorf("the replay is at height %d with state %s, the validator at %d with %s", fresh.Height(), fresh.AppHash(), store.Height(), store.AppHash())
	}
	a, err := ledger.NewView(fresh).Account(mesh.Address{9})
	if err != nil || a.GetBalance() == 0 {
		t.Errorf("no transfer was in the blocks: %v, %v", a, err)
	}
	t.Logf("%d crashes, %d blocks, %d transfers", len(steps), fresh.Height(), a.GetBalance())
}
