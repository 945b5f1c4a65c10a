package node

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/consensus/chaintest"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/receipts"
	"github.com/gonka-mesh/mesh/node/api"
)

// moneyChain is the real ledger on a disk, with one host. A test makes its blocks.
type moneyChain struct {
	t       *testing.T
	genesis *Genesis
	app     *consensus.App
	store   *state.Store
	key     *consensus.Key
	host    ed25519.PrivateKey
	payers  []ed25519.PrivateKey
	blocks  int // with a transaction
}

func moneyKey(n int) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	binary.BigEndian.PutUint32(seed, uint32(n))
	return ed25519.NewKeyFromSeed(seed)
}

func addressOfKey(key ed25519.PrivateKey) mesh.Address {
	return mesh.AddressOf(key.Public().(ed25519.PublicKey))
}

// moneyEpoch is how many blocks an epoch of it has: 8 of them are for settling, and
// requests of the epoch before are taken for 4.
const moneyEpoch = 10

func newMoneyChain(t *testing.T) *moneyChain { return newMoneyChainOf(t) }

// newMoneyChainOf has more hosts.
func newMoneyChainOf(t *testing.T, others ...DevHost) *moneyChain {
	t.Helper()
	c := &moneyChain{t: t, host: moneyKey(1), payers: []ed25519.PrivateKey{moneyKey(10), moneyKey(11)}}
	var err error
	if c.key, err = consensus.LoadKey(t.TempDir(), ""); err != nil {
		t.Fatal(err)
	}
	doc, err := NewDevGenesis(time.Now(), DevNetwork{Hosts: append([]DevHost{{addressOfKey(c.host), c.key}}, others...),
		Client: addressOfKey(c.payers[0]), EpochBlocks: moneyEpoch, Block: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "genesis.json")
	if err := os.WriteFile(path, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	if c.genesis, err = LoadGenesis(path); err != nil {
		t.Fatal(err)
	}
	if c.store, err = state.Open(state.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.store.Close() })
	network := c.genesis.Network()
	c.app = consensus.NewApp(consensus.AppConfig{Network: network, Store: c.store, Log: slog.New(slog.DiscardHandler),
		Beacon: c.key.Beacon(network, addressOfKey(c.host))})
	app, err := json.Marshal(c.genesis.Ledger)
	if err != nil {
		t.Fatal(err)
	}
	if err := chaintest.Begin(t.Context(), c.app, network, app); err != nil {
		t.Fatal(err)
	}
	c.block()
	to := addressOfKey(c.payers[1])
	c.must(c.payers[0], &ledgerpb.Tx{Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: uint64(1000 * mesh.GNK)}}})
	return c
}

// block makes the next block and returns what its transactions met.
func (c *moneyChain) block(txs ...[]byte) error {
	c.t.Helper()
	refused, err := chaintest.Block(context.Background(), c.app, c.key, c.store.Height()+1, txs...)
	if err != nil {
		c.t.Fatal(err)
	}
	return refused
}

func (c *moneyChain) view() ledger.View { return ledger.NewView(c.store) }

func (c *moneyChain) sign(key ed25519.PrivateKey, tx *ledgerpb.Tx) []byte {
	c.t.Helper()
	account, err := c.view().Account(addressOfKey(key))
	params, err2 := c.view().Params()
	fee, err3 := ledger.FeeOf(params, tx)
	if err := errors.Join(err, err2, err3); err != nil {
		c.t.Fatal(err)
	}
	tx.Nonce, tx.Fee = account.GetNonce(), uint64(fee)
	raw, err := ledger.SignTx(c.genesis.Network(), key, tx)
	if err != nil {
		c.t.Fatal(err)
	}
	return raw
}

// must carries out a transaction and returns the ID of the escrow that it opens, if it does.
func (c *moneyChain) must(key ed25519.PrivateKey, tx *ledgerpb.Tx) mesh.Hash {
	c.t.Helper()
	raw := c.sign(key, tx)
	if err := c.block(raw); err != nil {
		c.t.Fatal(err)
	}
	return ledger.EscrowID(c.genesis.Network(), addressOfKey(key), tx.GetNonce())
}

// escrow opens one.
func (c *moneyChain) escrow(key ed25519.PrivateKey, amount, lane mesh.Amount) mesh.Hash {
	c.t.Helper()
	open := &ledgerpb.OpenEscrow{Amount: uint64(amount)}
	if host := addressOfKey(c.host); lane > 0 {
		open.Lanes = []*ledgerpb.Lane{{Host: host[:], Cap: uint64(lane)}}
	}
	return c.must(key, &ledgerpb.Tx{Action: &ledgerpb.Tx_OpenEscrow{OpenEscrow: open}})
}

func (c *moneyChain) epoch() mesh.Epoch {
	c.t.Helper()
	e, err := c.view().Epoch()
	if err != nil {
		c.t.Fatal(err)
	}
	return mesh.Epoch(e.GetEpoch())
}

// turn makes blocks until so many of the next epoch are there.
func (c *moneyChain) turn(into int) {
	c.t.Helper()
	for now := c.epoch(); c.epoch() == now; {
		if err := c.block(); err != nil {
			c.t.Fatal(err)
		}
	}
	for range into {
		if err := c.block(); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *moneyChain) balance(key ed25519.PrivateKey) mesh.Amount {
	c.t.Helper()
	a, err := c.view().Account(addressOfKey(key))
	if err != nil {
		c.t.Fatal(err)
	}
	return mesh.Amount(a.GetBalance())
}

func (c *moneyChain) read(context.Context) (*reading, error) {
	v := c.store.View()
	return &reading{ledger.NewView(v), false, func() (mesh.Height, error) { return v.Height(), errors.Join(v.Err(), v.Close()) }}, nil
}

// act is a till's: it puts a transaction of the host into a block.
func (c *moneyChain) act(_ context.Context, tx *ledgerpb.Tx) (api.Submitted, error) {
	c.blocks++
	err := c.block(c.sign(c.host, tx))
	return api.Submitted{Height: c.store.Height()}, err
}

// shop is a host with its till and file.
type shop struct {
	*till
	c    *moneyChain
	path string
}

func (c *moneyChain) shop() *shop {
	s := &shop{c: c, path: filepath.Join(c.t.TempDir(), "receipts.db")}
	s.start()
	return s
}

func (s *shop) start() {
	s.c.t.Helper()
	store, err := receipts.Open(receipts.Config{Network: s.c.genesis.Network(), Path: s.path, MaxCount: 3})
	if err != nil {
		s.c.t.Fatal(err)
	}
	s.c.t.Cleanup(func() { store.Close() })
	s.till, err = openTill(tillConfig{
		network: s.c.genesis.Network(), self: addressOfKey(s.c.host), store: store, credit: 1000, block: time.Second,
		log: slog.New(slog.DiscardHandler), epoch: s.c.epoch, read: s.c.read, act: s.c.act,
	})
	if err != nil {
		s.c.t.Fatal(err)
	}
}

// restart is what a kill and a start do.
func (s *shop) restart() {
	s.c.t.Helper()
	if err := s.store.Close(); err != nil {
		s.c.t.Fatal(err)
	}
	s.start()
}

// client is a payer with its purse.
func (c *moneyChain) client(key ed25519.PrivateKey, path string) *purse {
	c.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		c.t.Fatal(err)
	}
	store, err := receipts.Open(receipts.Config{Network: c.genesis.Network(), Path: path})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { store.Close() })
	p, err := openPurse(c.genesis.Network(), key, store, filepath.Join(filepath.Dir(path), "escrows.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

var asked uint64

// request makes one that no other is like.
func (c *moneyChain) request(key ed25519.PrivateKey, escrow mesh.Hash, epoch mesh.Epoch) *inference.Request {
	c.t.Helper()
	model := mesh.HashOf([]byte("model"))
	asked++
	pb := &inferencepb.Request{Choices: 1, MaxTokens: 10, Epoch: uint64(epoch), Nonce: binary.BigEndian.AppendUint64(make([]byte, 8), asked)}
	if !escrow.IsZero() {
		pb.Escrow = escrow[:]
	}
	req, _, err := inference.NewRequest(c.genesis.Network(), key, &inferencepb.Question{Model: model[:], Prompt: "x", Seed: asked}, pb)
	if err != nil {
		c.t.Fatal(err)
	}
	return req
}

// receipt is the host's for a request.
func (c *moneyChain) receipt(req *inference.Request, price mesh.Amount) *inference.Receipt {
	c.t.Helper()
	chain := inference.NewChain(c.genesis.Network(), req.Hash, 0)
	after := chain
	after.Add(7)
	s, err := inference.SignReceipt(c.genesis.Network(), c.host, &inferencepb.Receipt{
		Request: req.Hash[:], Model: req.Model[:], End: 1, OutputTokens: 1, ChainBefore: chain.H[:], ChainAfter: after.H[:],
		Finish: string(inference.FinishEOS), Escrow: req.Pb.GetEscrow(), Epoch: req.Pb.GetEpoch(), Nonce: req.Pb.GetNonce(), Price: uint64(price),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	r, err := inference.ParseReceipt(c.genesis.Network(), s)
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// serve answers a request, and returns the receipt.
func (s *shop) serve(req *inference.Request, price mesh.Amount) *inference.Receipt {
	s.c.t.Helper()
	done, err := s.Admit(req, price)
	if err != nil {
		s.c.t.Fatal(err)
	}
	r := s.c.receipt(req, price)
	if err := s.store.Put(req.Hash, r.Signed); err != nil {
		s.c.t.Fatal(err)
	}
	done(r.Signed)
	return r
}

// pay carries the purse's voucher to the shop.
func (s *shop) pay(p *purse, r *inference.Receipt) {
	s.c.t.Helper()
	if err := p.store.Put(r.Request, r.Signed); err != nil {
		s.c.t.Fatal(err)
	}
	v, err := p.Acknowledge(r)
	if err != nil {
		s.c.t.Fatal(err)
	}
	if err := s.Voucher(v.Signed); err != nil {
		s.c.t.Fatal(err)
	}
	p.Taken(v)
}

// settles runs the till once.
func (s *shop) settles() {
	s.c.t.Helper()
	if err := s.settle(s.c.t.Context()); err != nil {
		s.c.t.Fatal(err)
	}
}

func refusedAs(t *testing.T, err error, code string) {
	t.Helper()
	var r *inference.Refusal
	if !errors.As(err, &r) || r.Code != code {
		t.Errorf("%v, want a refusal as %s", err, code)
	}
}
