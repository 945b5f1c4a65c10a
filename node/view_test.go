package node

import (
	"crypto/ed25519"
	"errors"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/receipts"
	"github.com/gonka-mesh/mesh/node/api"
)

// TestReceiptsJoin: two hosts that went on from the same token both join what came before
// them, and one that goes on from nowhere does not.
func TestReceiptsJoin(t *testing.T) {
	g, err := LoadGenesis("dev")
	if err != nil {
		t.Fatal(err)
	}
	network := g.Network()
	store, err := receipts.Open(receipts.Config{Network: network, Path: filepath.Join(t.TempDir(), "receipts.db"), MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	n := &Node{genesis: g, receipts: store}
	request := mesh.HashOf([]byte("request"))
	first, _ := signSegment(t, network, inference.NewChain(network, request, 0), request, func(r *inferencepb.Receipt) { r.Finish = "" })
	one, _ := signSegment(t, network, first.After, request, nil)
	signed, err := inference.SignReceipt(network, ed25519.NewKeyFromSeed(make([]byte, 32)), proto.CloneOf(one.Pb))
	if err != nil {
		t.Fatal(err)
	}
	other, err := inference.ParseReceipt(network, signed)
	if err != nil {
		t.Fatal(err)
	}
	stray := inference.NewChain(network, mesh.Hash{1}, 0)
	stray.Add(5)
	lost, _ := signSegment(t, network, stray, request, nil)
	joined := 0
	for _, r := range []*inference.Receipt{first, one, other, lost} {
		if err := store.Put(request, r.Signed); err != nil {
			t.Fatal(err)
		}
	}
	all, err := n.Receipts(request, 10)
	if err != nil || len(all) != 4 {
		t.Fatalf("%d receipts, %v", len(all), err)
	}
	for _, r := range all {
		if r.Joins {
			joined++
		}
		if want := r.ChainBefore != lost.Before.H; r.Joins != want {
			t.Errorf("tokens %d to %d of %s: joins is %v", r.First, r.End, r.Host.Short(), r.Joins)
		}
	}
	if joined != 3 {
		t.Errorf("%d of 4 join", joined)
	}
}

// TestDelegatesShow what `mesh host delegate` set, for the host that set it.
func TestDelegatesShow(t *testing.T) {
	other := moneyKey(2)
	key, err := consensus.LoadKey(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := newMoneyChainOf(t, DevHost{addressOfKey(other), key})
	to := addressOfKey(other)
	c.must(c.host, &ledgerpb.Tx{Action: &ledgerpb.Tx_Delegate{Delegate: &ledgerpb.Delegate{To: to[:]}}})
	own, err := delegatesOf(c.view(), addressOfKey(c.host))
	others, err2 := delegatesOf(c.view(), to)
	if want := (api.Delegate{To: to}); len(own) != 1 || own[0] != want || len(others) != 0 || errors.Join(err, err2) != nil {
		t.Errorf("%v and %v, %v, want %v and none", own, others, errors.Join(err, err2), want)
	}
}
