package consensus

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/mempool"
	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/p2p"
)

// TestSpamLeavesRoom: behind more than a block of transactions for the least fee, one for
// a higher fee is the first of the next block.
func TestSpamLeavesRoom(t *testing.T) {
	n := newMoneyNet(t, 0)
	node := n.nodes[0]
	n.startHost(node)
	c, err := New(n.config(node))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.openHome(); err != nil {
		t.Fatal(err)
	}
	defer c.lock.Close()
	p, err := c.build(t.Context()) // and is not started: no block takes anything away
	if err != nil {
		t.Fatal(err)
	}
	defer p.close(c)
	submit := func(i int, tx *ledgerpb.Tx) []byte {
		raw, err := ledger.SignTx(n.network, benchAccount(i), tx)
		if err != nil {
			t.Fatal(err)
		}
		var said *abci.ResponseCheckTx
		if err := p.pool.CheckTx(raw, func(r *abci.ResponseCheckTx) { said = r }, mempool.TxInfo{}); err != nil || said.IsErr() {
			t.Fatalf("%v, %v", said, err)
		}
		return raw
	}
	size := 0
	for i := range 700 {
		// Of 4.2 KB each, for 10 ngonka a byte, as little as is taken.
		size += len(submit(i+1, &ledgerpb.Tx{Fee: 45_000, Action: &ledgerpb.Tx_Propose{Propose: &ledgerpb.Propose{
			Title: "spam", Text: strings.Repeat("x", 4096), Deposit: 100e9,
		}}}))
	}
	if size <= maxBlock {
		t.Fatalf("%d bytes of spam fit into one block", size)
	}
	to := addressOf(benchAccount(1))
	dear := submit(0, &ledgerpb.Tx{Fee: 10_000, Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 1}}})
	now, err := p.states.Load()
	if err != nil {
		t.Fatal(err)
	}
	key, err := c.cfg.Signer.GetPubKey()
	if err != nil {
		t.Fatal(err)
	}
	block, err := p.exec.CreateProposalBlock(context.Background(), 1, now, &types.ExtendedCommit{}, key.Address())
	if err != nil {
		t.Fatal(err)
	}
	if len(block.Txs) < 400 || !bytes.Equal(block.Txs[1], dear) {
		t.Errorf("a block of %d transactions, of which what pays most is not the first", len(block.Txs))
	}
	if size := block.Size(); size > maxBlock {
		t.Errorf("a block of %d bytes", size)
	}
}

// TestRefusedIsNoFault: a transaction that is refused for what is in the ledger now is not
// held against the peer that hands it on.
func TestRefusedIsNoFault(t *testing.T) {
	n := newToyNet(t, 1, 0, nil)
	n.start()
	node := n.nodes[0]
	h := n.visitor(20, p2p.Config{})
	if _, err := h.Connect(t.Context(), node.host.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the visitor is a peer", func() bool { return node.has(h.Address()) })
	st, err := h.Dial(t.Context(), node.host.Address(), protocolName)
	if err != nil {
		t.Fatal(err)
	}
	send := []byte{0x30}
	for _, tx := range []string{"bad", "good"} {
		send = binary.AppendUvarint(send, uint64(len(tx)+4))
		send = append(append(send, 0x0a, byte(len(tx)+2), 0x0a, byte(len(tx))), tx...)
	}
	if _, err := st.Write(send); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what came after it is in a block", func() bool { return node.app.count() > 0 })
	if info, ok := node.host.Peer(h.Address()); !ok || info.Score != 0 || !node.has(h.Address()) {
		t.Errorf("it costs %v points", info.Score)
	}
}

// TestCheckAfterTheEnd: a check on a ledger that ended, or that cannot be read, refuses and
// does not end the process, which CometBFT does over an error.
func TestCheckAfterTheEnd(t *testing.T) {
	net := newAppNet(t, 1)
	net.next()
	for name, open := range map[string]func() *App{
		"closed": func() *App {
			store, err := state.Open(state.Config{Memory: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			return net.over(store, 0)
		},
		"empty": func() *App { return net.node(0) },
	} {
		res, err := open().CheckTx(t.Context(), &abci.RequestCheckTx{Tx: net.sign(0, 0, "")})
		if err != nil || res.Code != CodeUnable || res.Log == "" {
			t.Errorf("%s: %v, %v", name, res, err)
		}
	}
}
