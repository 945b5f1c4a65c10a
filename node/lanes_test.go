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

// TestAffords: what a call would be refused for, whatever its question, is told without it.
func TestAffords(t *testing.T) {
	c := newMoneyChain(t)
	s, payer, other := c.shop(), c.payers[0], c.payers[1]
	escrow, epoch := c.escrow(payer, 100*mesh.GNK, 10*mesh.GNK), c.epoch()
	for _, tt := range []struct {
		name  string
		req   *inference.Request
		least mesh.Amount
		code  string
	}{
		{"its lane", c.request(payer, escrow, epoch), 10 * mesh.GNK, ""},
		{"more than there is", c.request(payer, escrow, epoch), 1000 * mesh.GNK, inference.CodeUnpaid},
		{"another's escrow", c.request(other, escrow, epoch), 1, inference.CodeUnpaid},
		{"an escrow to come", c.request(payer, mesh.HashOf([]byte("none")), epoch), 1, inference.CodeBusy},
		{"an epoch to come", c.request(payer, escrow, epoch+1), 1, inference.CodeBusy},
	} {
		for _, looked := range []bool{false, true} { // the account is known then, as far as it can be
			err := s.Affords(tt.req, tt.least)
			if tt.code == "" && err != nil {
				t.Errorf("%s, looked %v: %v", tt.name, looked, err)
			} else if tt.code != "" {
				refusedAs(t, err, tt.code)
			}
			if done, err := s.Admit(tt.req, tt.least); err == nil {
				done(nil)
			}
		}
	}

	s.credit = 0
	none := c.request(payer, mesh.Hash{}, epoch)
	refusedAs(t, s.Affords(none, 1), inference.CodeUnpaid)
	s.credit = 3
	if err := s.Affords(none, 3); err != nil {
		t.Errorf("what may be lent: %v", err)
	}
	if len(s.lent) != 0 {
		t.Error("to ask is to borrow")
	}
	done, err := s.Admit(none, 2)
	if err != nil {
		t.Fatal(err)
	}
	refusedAs(t, s.Affords(none, 2), inference.CodeUnpaid)
	if err := s.Affords(c.request(other, mesh.Hash{}, epoch), 3); err != nil {
		t.Errorf("another is not lent: %v", err)
	}
	done(nil)
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
