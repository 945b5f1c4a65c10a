package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/consensus/light"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
	"github.com/gonka-mesh/mesh/p2p"
)

// refusing dials full nodes that refuse every transaction, and know nothing else.
type refusing struct{}

func (refusing) Dial(_ context.Context, _ mesh.Address, protocol string) (net.Conn, error) {
	if protocol != "tx" {
		return nil, io.ErrClosedPipe
	}
	a, b := net.Pipe()
	go func() {
		defer b.Close()
		if p2p.ReadMessage(b, ledger.MaxTxBytes+64, new(lightpb.TxAsk)) == nil {
			_ = p2p.WriteMessage(b, &lightpb.TxAnswer{Reason: "I do not like it"})
		}
	}()
	return a, nil
}

// TestSubmitLight: what full nodes say to a light node is a claim, so the escrow of a
// transaction that left stays noted: the money may move there yet.
func TestSubmitLight(t *testing.T) {
	c := newMoneyChain(t)
	key := c.payers[0]
	n := &Node{genesis: c.genesis, purse: c.client(key, t.TempDir()+"/receipts.db"), log: slog.New(slog.DiscardHandler)}
	n.chain = &chain{n: n}
	root, err := n.chain.root()
	if err != nil {
		t.Fatal(err)
	}
	n.chain.light, err = light.New(light.Config{
		Network: c.genesis.Network(), Root: root, Period: time.Hour,
		Dialer: refusing{}, Peers: func() []mesh.Address { return []mesh.Address{{1}, {2}} }, Penalise: func(mesh.Address, string, int) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	raw := c.sign(key, &ledgerpb.Tx{Action: &ledgerpb.Tx_OpenEscrow{OpenEscrow: &ledgerpb.OpenEscrow{Amount: uint64(mesh.GNK)}}})
	out, err := n.put(t.Context(), raw)
	if !errors.Is(err, light.ErrRefused) || errors.Is(err, light.ErrLost) || strings.Contains(err.Error(), "the escrow is then") {
		t.Errorf("refused by two: %v", err)
	}
	if noted := n.purse.escrows(addressOfKey(key)); out.Escrow.IsZero() || !slices.Contains(noted, out.Escrow) {
		t.Errorf("escrow %s is not among %v", out.Escrow, noted)
	}
	// It came into a block all the same.
	if err := c.block(raw); err != nil {
		t.Fatal(err)
	}
	if _, err := n.purse.turn(t.Context(), c.read); err != nil {
		t.Fatal(err)
	}
	if draw, _ := n.purse.Escrow(); string(draw) != string(out.Escrow[:]) {
		t.Errorf("requests draw on %x, not on escrow %s", draw, out.Escrow)
	}
}

// TestRegistersAnotherKey: a stake of its own tells the ledger of a host's consensus key,
// once, and of another one when the first is lost; who owns the host stays.
func TestRegistersAnotherKey(t *testing.T) {
	c := newMoneyChain(t)
	self, owner := addressOfKey(c.host), addressOfKey(c.payers[0])
	of := func(key *consensus.Key, a mesh.Address) *ledgerpb.RegisterHost {
		r, err := registrationOf(c.view(), key, c.genesis.Network(), a, owner)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := of(c.key, self); r != nil {
		t.Errorf("the ledger has this key, and is told of it: %v", r)
	}
	if r := of(c.key, addressOfKey(c.payers[1])); r == nil || mesh.AddressOf(r.GetOwner()) != owner {
		t.Errorf("a new host registers %v", r)
	}
	another, err := consensus.LoadKey(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	r := of(another, self)
	if r == nil || len(r.GetOwner()) != 0 {
		t.Fatalf("another key: %v", r)
	}
	c.must(c.host, &ledgerpb.Tx{Action: &ledgerpb.Tx_RegisterHost{RegisterHost: r}})
	if r := of(another, self); r != nil {
		t.Errorf("the key counts from the next epoch on, and is registered again: %v", r)
	}
}
