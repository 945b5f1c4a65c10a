package ledger

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// seedTxs returns a transaction of every kind, signed in form.
func seedTxs(t testing.TB) (all [][]byte) {
	g := newGenerator(t, 5)
	for _, kind := range g.kinds {
		tx := &ledgerpb.Tx{Sender: g.people[0][:], Fee: 1_000_000}
		g.act(tx, kind, g.people[0])
		all = append(all, fakeSign(t, tx))
	}
	return all
}

func FuzzParseTx(f *testing.F) {
	for _, raw := range seedTxs(f) {
		f.Add(raw)
	}
	f.Add([]byte{})
	f.Add([]byte{0})
	f.Add([]byte{0x0a, 0x02, 0x0a, 0x00})
	f.Fuzz(func(t *testing.T, raw []byte) {
		tx, err := ParseTx(testNetwork, raw)
		if err != nil {
			return
		}
		again, err := encode(tx.Pb)
		if err != nil || !bytes.Equal(again, tx.body) {
			t.Fatalf("the body does not encode back to itself: %v", err)
		}
		if kindOf(tx.Pb) == "" {
			t.Fatal("a transaction without an action was taken")
		}
		outside, err := encode(&ledgerpb.SignedTx{Body: tx.body, Signature: tx.signature})
		if err != nil || !bytes.Equal(outside, raw) {
			t.Fatalf("the transaction does not encode back to itself: %v", err)
		}
	})
}

// FuzzApply takes bytes as a transaction: as they are, and with the sender, nonce, fee
// and signature that let its action be carried out.
func FuzzApply(f *testing.F) {
	for _, raw := range seedTxs(f) {
		f.Add(raw)
	}
	g := newGenerator(f, 6)
	g.run(3000, nil)
	f.Fuzz(func(t *testing.T, raw []byte) {
		height := g.height + 1
		b := Block{Height: height, Txs: [][]byte{beaconTx(t, height, g.people[0]), raw}}
		signed, tx := new(ledgerpb.SignedTx), new(ledgerpb.Tx)
		if proto.Unmarshal(raw, signed) == nil && proto.Unmarshal(signed.GetBody(), tx) == nil {
			sender := mesh.AddressOf(tx.GetSender())
			if g.keys[sender] == nil {
				sender = g.people[0]
			}
			account := newOverlay(g.state).account(sender)
			tx.Sender, tx.Nonce, tx.Fee = sender[:], account.GetNonce(), 10e9
			b.Txs = append(b.Txs, fakeSign(t, tx))
		}
		out, err := g.m.Apply(g.state, b)
		if err != nil {
			t.Fatal(err)
		}
		after := g.state.clone()
		after.write(t, out.Changes)
		if err := CheckInvariants(after); err != nil {
			t.Fatal(err)
		}
		pool, err := g.m.NewPool(g.state)
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range b.Txs {
			_ = pool.Check(raw) // whatever it says, it does not panic
		}
	})
}

// FuzzGenesis takes bytes as the ledger's part of a genesis document.
func FuzzGenesis(f *testing.F) {
	a, b := addressOf(testKey(0)), addressOf(testKey(1))
	g := &Genesis{
		Params: map[string]uint64{"epoch_blocks": 60, "settle_blocks": 10},
		Allocations: []Allocation{
			{Address: a, Amount: "150000000", Group: GroupTeam, VestStart: 1, VestEpochs: 100},
			{Address: a, Amount: "100000000", Group: GroupEarly}, {Address: b, Amount: "150000000", Group: GroupLiquidity},
			{Address: b, Amount: "5.5", Group: GroupEcosystem},
		},
		Models: []GenesisModel{{ID: testModel(0), Name: "model", Coefficient: 1000}},
		Hosts: []GenesisHost{{
			Address: a, ConsensusKey: "00", BLSKey: "00", ConsensusProof: "00", BLSProof: "00", Collateral: "1000",
			Work: []GenesisWork{{testModel(0), 1000}},
		}},
	}
	seed, err := json.Marshal(g)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	g.Hosts = nil
	if seed, err = json.Marshal(g); err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	if seed, err = json.Marshal(newGenerator(f, 1).genesis()); err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"models":[{"id":"","name":"x","coefficient":1}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		g, err := ParseGenesis(raw)
		if err != nil {
			return
		}
		out, err := testMachine().Genesis(g)
		if err != nil {
			return
		}
		s := newMemState()
		s.write(t, out.Changes)
		if err := CheckInvariants(s); err != nil {
			t.Fatal(err)
		}
		if len(out.Validators) == 0 {
			t.Fatal("a network without a validator")
		}
	})
}

// TestSignatures is the one place where machines of tests verify for real.
func TestSignatures(t *testing.T) {
	m, s, a := poolState(t)
	m = New(Config{Network: m.cfg.Network, VerifyBeacon: m.cfg.VerifyBeacon})
	to := addressOf(testKey(0))
	tx := func() *ledgerpb.Tx {
		return &ledgerpb.Tx{Fee: 5000, Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 1}}}
	}
	sign := func(network mesh.NetworkID, key ed25519.PrivateKey) []byte {
		raw, err := SignTx(network, key, tx())
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	check := func(raw []byte) error { return newPool(t, m, s).Check(raw) }
	refusedWith(t, check(sign(testNetwork, testKey(20))), "")
	refusedWith(t, check(sign("other00000000", testKey(20))), "the signature is not the sender's")
	stolen := tx()
	stolen.Sender = a.from[:]
	body, err := encode(stolen)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := encode(&ledgerpb.SignedTx{Body: body, Signature: domainTx.Sign(testKey(21), testNetwork, body)})
	if err != nil {
		t.Fatal(err)
	}
	refusedWith(t, check(raw), "the signature is not the sender's")
	// A field that only a later version knows is no part of a transaction.
	unknown := append(bytes.Clone(body), 0xf8, 0x07, 0x01)
	if raw, err = encode(&ledgerpb.SignedTx{Body: unknown, Signature: domainTx.Sign(testKey(20), testNetwork, unknown)}); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, check(raw), "fields that this version does not know")
}
