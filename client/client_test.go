package client_test

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/client"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/internal/keyfile"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
)

// The network of all tests: one host in this process, with a ledger of short epochs.
var (
	testFolder    string
	testGenesis   string // the document
	testBootstrap []string
	testAPI       string
)

// payer is the folder of the account that the genesis gives coins.
func payer() string { return filepath.Join(testFolder, "payer") }

func TestMain(m *testing.M) {
	code, err := withNetwork(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func withNetwork(run func() int) (code int, err error) {
	if testFolder, err = os.MkdirTemp("", "mesh-client-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(testFolder)
	home := filepath.Join(testFolder, "host")
	account, err := keyfile.LoadOrCreate(filepath.Join(home, "node.key"), "")
	if err != nil {
		return 1, err
	}
	key, err := consensus.LoadKey(home, "")
	if err != nil {
		return 1, err
	}
	own, err := keyfile.LoadOrCreate(filepath.Join(payer(), "node.key"), "")
	if err != nil {
		return 1, err
	}
	document, err := node.NewDevGenesis(time.Now(), node.DevNetwork{
		Hosts:  []node.DevHost{{Address: mesh.AddressOf(account.Public().(ed25519.PublicKey)), Key: key}},
		Client: mesh.AddressOf(own.Public().(ed25519.PublicKey)), EpochBlocks: 20, Block: 200 * time.Millisecond,
	})
	if err != nil {
		return 1, err
	}
	testGenesis = string(document)
	host, err := node.New(node.Config{
		Home: home, Network: testGenesis, Listen: "127.0.0.1:0", API: "127.0.0.1:0", NoMDNS: true, NoPortMap: true, Threads: 1,
		PricePrompt: 100, PriceOutput: 1000, Credit: 1e9,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return 1, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan api.Ready, 1), make(chan error, 1)
	go func() { ended <- host.Run(ctx, func(r api.Ready) { ready <- r }) }()
	select {
	case r := <-ready:
		testBootstrap, testAPI = r.Addrs, r.API
		for s, err := host.LedgerStatus(ctx); err != nil || s.Height < 2; s, err = host.LedgerStatus(ctx) {
			time.Sleep(50 * time.Millisecond)
		}
		code = run()
		cancel()
		return code, <-ended
	case err := <-ended:
		cancel()
		return 1, err
	}
}

// TestPaidAnswer opens an escrow, pays an answer from it, and sees it settled.
func TestPaidAnswer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := client.Open(ctx, client.Config{Home: payer(), Network: testGenesis, Bootstrap: testBootstrap, Listen: "127.0.0.1:0", Quiet: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(c.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	}()
	before, err := c.Balance(ctx)
	if err != nil || before == 0 {
		t.Fatalf("balance %s, %v", before, err)
	}
	const aside = 100 * mesh.GNK
	const fee = 50_000 // the least is some 3,000
	escrow, err := c.OpenEscrowFee(ctx, aside, fee)
	if err != nil {
		t.Fatal(err)
	}
	after, err := c.Balance(ctx)
	if err != nil || after != before-aside-fee {
		t.Errorf("balance %s after %s were set aside of %s, %v", after, aside, before, err)
	}
	answer, err := c.Chat(ctx, client.Chat{Messages: []client.Message{{Role: "user", Content: "What is Mesh?"}}, MaxTokens: 5}, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.VerifyReceipt(ctx, answer.Request)
	if err != nil || !v.OK || len(v.Segments) != 1 || answer.Price == 0 || v.Segments[0].State == client.Free || v.Segments[0].Escrow != escrow {
		t.Fatalf("the first answer after escrow %s: %+v, price %s, %v", escrow, v, answer.Price, err)
	}
	settled(ctx, t, c, answer)
}

func settled(ctx context.Context, t *testing.T, c *client.Client, answer client.Answer) {
	t.Helper()
	last := ""
	for {
		v, err := c.VerifyReceipt(ctx, answer.Request)
		if err != nil || !v.OK {
			t.Fatalf("%+v, %v", v, err)
		}
		s := v.Segments[0]
		if s.State != last {
			t.Logf("%s: %s", s.State, s.Reason)
			last = s.State
		}
		if s.State == client.Settled {
			if s.Price != answer.Price || !v.Proven || v.Height == 0 {
				t.Errorf("%+v", v)
			}
			return
		}
		if s.State != client.Pending && s.State != client.Unproven {
			t.Fatalf("%+v", s)
		}
		select {
		case <-ctx.Done():
			t.Fatal("not settled in time: " + s.Reason)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// money reads what the host served and what was acknowledged of it, in ngonka.
func money(t *testing.T) (served, acknowledged float64) {
	t.Helper()
	resp, err := http.Get(testAPI + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		fmt.Sscanf(lines.Text(), "mesh_till_served_ngonka_total %g", &served)
		fmt.Sscanf(lines.Text(), "mesh_till_acknowledged_ngonka_total %g", &acknowledged)
	}
	return served, acknowledged
}

// TestAskAndClose: a program that asks and ends at once pays for its answers.
func TestAskAndClose(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	served, acknowledged := money(t)
	lent := served - acknowledged // to who draws on no escrow
	for run := range 4 {
		c, err := client.Open(ctx, client.Config{Home: payer(), Network: testGenesis, Bootstrap: testBootstrap, Listen: "127.0.0.1:0", Quiet: true})
		if err != nil {
			t.Fatal(err)
		}
		if run == 0 {
			if _, err := c.OpenEscrow(ctx, 100*mesh.GNK); err != nil {
				t.Fatal(err)
			}
		}
		before, _ := money(t)
		for free := true; free; { // until it draws on the escrow
			answer, err := c.Chat(ctx, client.Chat{Messages: []client.Message{{Role: "user", Content: "What is a host?"}}, MaxTokens: 5}, nil)
			if err != nil {
				t.Fatal(err)
			}
			v, err := c.VerifyReceipt(ctx, answer.Request)
			if err != nil {
				t.Fatal(err)
			}
			free = v.Segments[0].State == client.Free
			if free {
				lent += float64(answer.Price)
			}
		}
		if _, err := c.Chat(ctx, client.Chat{Messages: []client.Message{{Role: "user", Content: "What is Mesh?"}}, MaxTokens: 5}, nil); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		for { // the host may still be counting
			served, acknowledged := money(t)
			if served > before && served-acknowledged == lent {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("run %d: %g served, %g acknowledged, %g lent", run, served, acknowledged, lent)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

func TestRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := client.Open(ctx, client.Config{}); err == nil {
		t.Error("no home folder")
	}
	if _, err := client.Open(ctx, client.Config{Home: t.TempDir(), Network: "{}"}); err == nil {
		t.Error("no genesis")
	}
	soon, cancel2 := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel2()
	if _, err := client.Open(soon, client.Config{Home: t.TempDir(), Network: testGenesis, Listen: "127.0.0.1:0", Quiet: true}); err == nil {
		t.Error("nobody to join through")
	}
	c := open(ctx)
	defer c.Close()
	if _, err := c.Chat(ctx, client.Chat{}, nil); err == nil {
		t.Error("nothing is asked")
	}
	if _, err := c.OpenEscrow(ctx, mesh.GNK); err == nil {
		t.Error("an escrow of an empty account")
	}
	if _, err := c.VerifyReceipt(ctx, mesh.Hash{1}); err == nil {
		t.Error("a receipt that is not there")
	}
	stopped := errors.New("enough")
	n := 0
	_, err := c.Chat(ctx, client.Chat{Messages: []client.Message{{Role: "user", Content: "Count."}}, MaxTokens: 50}, func(string) error { n++; return stopped })
	if !errors.Is(err, stopped) || n != 1 {
		t.Errorf("%d pieces of text, want 1, and %v", n, err)
	}
}
