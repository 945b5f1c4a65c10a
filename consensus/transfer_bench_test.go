package consensus

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cometbft/cometbft/mempool"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/consensus/state"
)

const (
	benchPayers = 2000
	benchEach   = 25 // transfers that a payer signs beforehand
)

// moneyNet is a network of the real ledger: four validators, states on disk, and many
// accounts with money.
type moneyNet struct {
	*toyNet
	stores []*state.Store
	txs    [][]byte // in the payers' order of numbers
}

func benchAccount(i int) ed25519.PrivateKey { return toyKey(1_000_000 + i) }

func addressOf(key ed25519.PrivateKey) mesh.Address {
	return mesh.AddressOf(key.Public().(ed25519.PublicKey))
}

func newMoneyNet(t testing.TB, each int) *moneyNet {
	n := &moneyNet{toyNet: newToyNet(t, 4, 0, nil)}
	g := &ledger.Genesis{
		Params: map[string]uint64{"fee_per_byte": 10, "collateral_per_weight": 1e9},
		Models: []ledger.GenesisModel{{ID: mesh.HashOf([]byte("m")), Name: "m", Coefficient: 1000}},
	}
	allocate := func(a mesh.Address, group string, amount mesh.Amount) {
		g.Allocations = append(g.Allocations, ledger.Allocation{Address: a, Group: group, Amount: strings.TrimSuffix(amount.String(), " GNK")})
	}
	keys := make([]*Key, 4)
	for i := range keys {
		var err error
		if keys[i], err = LoadKey(t.TempDir(), ""); err != nil {
			t.Fatal(err)
		}
		host := addressOf(toyKey(i))
		entry, err := keys[i].Genesis("test", host)
		if err != nil {
			t.Fatal(err)
		}
		entry.Collateral = "1000"
		entry.Work = []ledger.GenesisWork{{Model: g.Models[0].ID, Count: 1000}}
		g.Hosts = append(g.Hosts, entry)
		allocate(host, ledger.GroupTeam, ledger.Share(ledger.GroupTeam)/4)
	}
	allocate(addressOf(toyKey(0)), ledger.GroupEarly, ledger.Share(ledger.GroupEarly))
	for i := range benchPayers {
		allocate(addressOf(benchAccount(i)), ledger.GroupLiquidity, ledger.Share(ledger.GroupLiquidity)/benchPayers)
	}
	doc, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	n.stores = make([]*state.Store, 4)
	n.genesis = NewGenesis(n.network, time.Now().Add(-time.Minute), doc, time.Hour, time.Second)
	n.tune = func(i int, cfg *Config) {
		if n.stores[i] == nil {
			if n.stores[i], err = state.Open(state.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}); err != nil {
				t.Fatal(err)
			}
		}
		cfg.Genesis, cfg.Signer, cfg.Open, cfg.Commit = n.genesis, keys[i].Signer(), Databases(n.stores[i]), time.Second
		cfg.App = NewApp(AppConfig{Network: n.network, Store: n.stores[i], Log: slog.New(slog.DiscardHandler), Beacon: keys[i].Beacon(n.network, addressOf(toyKey(i)))})
	}
	for nonce := range each {
		for i := range benchPayers {
			to := addressOf(benchAccount((i*7 + nonce + 1) % benchPayers))
			// A memo brings the transaction to 250 bytes.
			tx, err := ledger.SignTx(n.network, benchAccount(i), &ledgerpb.Tx{Nonce: uint64(nonce), Fee: 4000,
				Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 1000, Memo: strings.Repeat("x", 103)}}})
			if err != nil {
				t.Fatal(err)
			}
			n.txs = append(n.txs, tx)
		}
	}
	return n
}

// BenchmarkTransfers measures signed transfers per second on the real ledger, with four
// validators in one process and their states on disk, over the mesh's streams and over
// CometBFT's own transport, in turns. The bar is 1,500 and 0.8.
func BenchmarkTransfers(b *testing.B) {
	for range b.N {
		rates := make(map[string]float64)
		for range 2 {
			for _, transport := range []string{TransportMesh, TransportComet} {
				rates[transport] += transferRate(b, transport) / 2
			}
		}
		b.ReportMetric(rates[TransportMesh], "mesh-tx/s")
		b.ReportMetric(rates[TransportComet], "comet-tx/s")
		b.ReportMetric(rates[TransportMesh]/rates[TransportComet], "mesh/comet")
		b.ReportMetric(0, "ns/op")
	}
}

// transferRate hands all transfers in and returns how many came into blocks per second,
// from the first block that has some to the last.
func transferRate(b *testing.B, transport string) float64 {
	n := newMoneyNet(b, benchEach)
	if transport == TransportComet {
		n.useComet()
	}
	n.start()
	n.reach(2, n.nodes...)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for k, node := range n.nodes {
		wg.Go(func() {
			p, err := node.running()
			if err != nil {
				return
			}
			for i := k; i < len(n.txs); i += len(n.nodes) { // a payer's are all handed in at one node
				for {
					err := p.pool.CheckTx(n.txs[i], nil, mempool.TxInfo{})
					if err == nil && p.pool.Size() < 6000 {
						break
					}
					select {
					case <-done:
						return
					case <-time.After(5 * time.Millisecond):
					}
					if err == nil {
						break
					}
				}
			}
		})
	}
	count := func() (txs int, height mesh.Height) { // of all transfers: the payers' numbers
		height = n.stores[0].Height()
		view := ledger.NewView(n.stores[0])
		for i := range benchPayers {
			a, err := view.Account(addressOf(benchAccount(i)))
			if err != nil {
				b.Fatal(err)
			}
			txs += int(a.GetNonce())
		}
		return txs, height
	}
	begin, _ := count()
	started := time.Now()
	time.Sleep(15 * time.Second)
	end, height := count()
	took := time.Since(started)
	close(done)
	wg.Wait()
	for _, node := range n.nodes {
		node.Stop()
		if node.host != nil {
			node.host.Close()
		}
	}
	for _, s := range n.stores {
		if err := ledger.CheckInvariants(s); err != nil {
			b.Errorf("after height %d: %v", height, err)
		}
		s.Close()
	}
	return float64(end-begin) / took.Seconds()
}

// TestMoneyNet carries real transfers over the real ledger: all nodes agree.
func TestMoneyNet(t *testing.T) {
	n := newMoneyNet(t, 1)
	n.start()
	n.reach(1, n.nodes...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var last mesh.Height
	for i := range 5 {
		r, err := n.nodes[i%4].Submit(ctx, n.txs[i])
		if err != nil {
			t.Fatal(err)
		}
		last = r.Height
	}
	n.reach(last+1, n.nodes...)
	n.agree(last+1, n.nodes...)
	for i, s := range n.stores {
		a, err := ledger.NewView(s).Account(addressOf(benchAccount(0)))
		if err != nil || a.GetNonce() != 1 {
			t.Errorf("node %d: account %+v, %v", i, a, err)
		}
		if err := ledger.CheckInvariants(s); err != nil {
			t.Errorf("node %d: %v", i, err)
		}
	}
	if len(n.txs[0]) < 240 || len(n.txs[0]) > 260 {
		t.Errorf("a transfer of the benchmark has %s", fmt.Sprint(len(n.txs[0])))
	}
}
