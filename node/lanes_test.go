package node

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/inference"
)

// TestPays: with more hosts than a pool has parts, each host says before any call whether an
// escrow has something for it, and a payer who knows the hosts knows which of them do.
func TestPays(t *testing.T) {
	var others []DevHost
	hosts := []mesh.Address{addressOfKey(moneyKey(1))}
	for i := range 39 {
		key, err := consensus.LoadKey(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, DevHost{addressOfKey(moneyKey(100 + i)), key})
		hosts = append(hosts, others[i].Address)
	}
	c := newMoneyChainOf(t, others...)
	s, payer := c.shop(), c.payers[0]
	escrow, epoch := c.escrow(payer, 320*mesh.GNK, 0), c.epoch()
	owner := addressOfKey(payer)
	purse := c.client(payer, filepath.Join(t.TempDir(), "receipts.db"))
	likely := make(map[mesh.Address]bool)
	for _, h := range purse.Likely(escrow, epoch, hosts) {
		likely[h] = true
	}
	paid := 0
	for _, h := range hosts {
		s.self = h
		err := s.Pays(owner, escrow, epoch, 10*mesh.GNK) // half of 320 is the pool, of which 16 have a part
		if err != nil {
			refusedAs(t, err, inference.CodeUnpaid)
		} else {
			paid++
		}
		if (err == nil) != likely[h] {
			t.Errorf("%s: %v, likely %v", h.Short(), err, likely[h])
		}
		if _, admit := s.Admit(c.request(payer, escrow, epoch), 10*mesh.GNK); (admit == nil) != (err == nil) {
			t.Errorf("%s: the offer says %v, the call %v", h.Short(), err, admit)
		}
		if err := s.Pays(owner, escrow, epoch, 10*mesh.GNK); (err == nil) != likely[h] {
			t.Errorf("%s: what a running answer holds is gone: %v", h.Short(), err)
		}
		if err := s.Pays(owner, escrow, epoch, 10*mesh.GNK+1); err == nil {
			t.Errorf("%s: more than its part is there", h.Short())
		}
	}
	if paid != 16 {
		t.Errorf("%d hosts can be paid", paid)
	}

	s.self = hosts[0]
	own := c.escrow(payer, 100*mesh.GNK, 10*mesh.GNK) // with a lane for this host
	for _, tt := range []struct {
		name   string
		payer  mesh.Address
		escrow mesh.Hash
		epoch  mesh.Epoch
		code   string
	}{
		{"its lane", owner, own, epoch, ""},
		{"another's escrow", addressOfKey(c.payers[1]), own, epoch, inference.CodeUnpaid},
		{"an escrow to come", owner, mesh.HashOf([]byte("none")), epoch, inference.CodeBusy},
		{"an epoch to come", owner, own, epoch + 1, inference.CodeBusy},
	} {
		err := s.Pays(tt.payer, tt.escrow, tt.epoch, 10*mesh.GNK)
		if tt.code == "" && err != nil {
			t.Errorf("%s: %v", tt.name, err)
		} else if tt.code != "" {
			refusedAs(t, err, tt.code)
		}
	}
	if n := len(s.open); n > len(hosts) {
		t.Errorf("%d tabs: asking is owed no memory", n)
	}
	room := 10 * mesh.GNK
	for s.Pays(owner, own, epoch, room+mesh.GNK) == nil { // and its part of the pool, where it has one
		room += mesh.GNK
	}
	s.pay(purse, s.serve(c.request(payer, own, epoch), room))
	refusedAs(t, s.Pays(owner, own, epoch, mesh.GNK), inference.CodeUnpaid)
	s.self = addressOfKey(moneyKey(999))
	refusedAs(t, s.Pays(owner, own, epoch, 1), inference.CodeUnpaid) // it is no host on the ledger
}

// TestPriceCapOfNode: what the configuration says is what the router is told.
func TestPriceCapOfNode(t *testing.T) {
	n, err := New(Config{Home: t.TempDir(), Network: "dev", Light: true, Listen: "127.0.0.1:0", NoMDNS: true, NoPortMap: true, PriceCap: 9}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if routing, _, err := n.payments(mesh.Address{}); err != nil || routing.TokenCap != 9 {
		t.Errorf("a token may cost %d: %v", routing.TokenCap, err)
	}
}
