package light

import (
	"context"
	"crypto/ed25519"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
)

// TestSubmit believes that a transaction is in a block when the sender's account shows
// it, and asks the next peer when one lies, is lost, or refuses.
func TestSubmit(t *testing.T) {
	key := testKey("sender")
	sender := mesh.AddressOf(key.Public().(ed25519.PublicKey))
	raw, err := ledger.SignTx(testNetwork, key, &ledgerpb.Tx{Nonce: 4, Fee: 1, Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: sender[:], Amount: 5}}})
	if err != nil {
		t.Fatal(err)
	}
	// The transaction is in block 8 if at all.
	build := func(included bool) *world {
		w := newWorld(t, smallChain(), 2, 9)
		w.withState(9, func(h int64) []ledger.Change {
			a := &ledgerpb.Account{Balance: 100, Nonce: 4}
			if included && h >= 8 {
				a.Nonce = 5
			}
			return []ledger.Change{{Key: ledger.AccountKey(sender), Value: accountValue(t, a)}}
		})
		for _, n := range w.nodes {
			n.tx = func(*lightpb.TxAsk) *lightpb.TxAnswer {
				return &lightpb.TxAnswer{Accepted: true, Done: true, Height: 8}
			}
		}
		return w
	}
	w := build(true)
	if h, err := w.client().Submit(t.Context(), raw); err != nil || h != 8 {
		t.Errorf("height %d, %v", h, err)
	}
	w.fined()

	// One says so, but it is not true, and the other refuses it.
	w = build(false)
	w.nodes[1].tx = func(*lightpb.TxAsk) *lightpb.TxAnswer { return &lightpb.TxAnswer{Reason: "the fee is too low"} }
	if _, err := w.client().Submit(t.Context(), raw); !errors.Is(err, ErrRefused) || !errors.Is(err, errNotThere) {
		t.Errorf("a lie and a refusal: %v", err)
	}
	w.fined(0)

	// One refuses everything, the other takes it.
	w = build(true)
	w.nodes[0].tx = func(*lightpb.TxAsk) *lightpb.TxAnswer { return &lightpb.TxAnswer{Reason: "I do not like it"} }
	if h, err := w.client().Submit(t.Context(), raw); err != nil || h != 8 {
		t.Errorf("beside a peer that refuses: height %d, %v", h, err)
	}
	w.nodes[0].dead = true
	if h, err := w.client().Submit(t.Context(), raw); err != nil || h != 8 {
		t.Errorf("beside a dead peer: height %d, %v", h, err)
	}
	w.fined()

	// It came into a block, and its action was refused there.
	w = build(true)
	w.nodes[0].tx = func(*lightpb.TxAsk) *lightpb.TxAnswer {
		return &lightpb.TxAnswer{Accepted: true, Height: 8, Reason: "no such escrow"}
	}
	if h, err := w.client().Submit(t.Context(), raw); !errors.Is(err, ErrRefused) || h != 8 {
		t.Errorf("refused in a block: height %d, %v", h, err)
	}
	if _, err := w.client().Submit(t.Context(), []byte("no transaction")); err == nil {
		t.Error("no transaction")
	}
	w.fined()

	// A height that never comes is no proof, and costs the caller no more than its time.
	w = build(true)
	w.nodes[0].tx = func(*lightpb.TxAsk) *lightpb.TxAnswer {
		return &lightpb.TxAnswer{Accepted: true, Done: true, Height: 1 << 62}
	}
	c := w.client(func(cfg *Config) { cfg.Fresh = 10 * time.Millisecond })
	c.patience = 100 * time.Millisecond
	if h, err := c.Submit(t.Context(), raw); err != nil || h != 8 {
		t.Errorf("beside a peer that names a height that never comes: height %d, %v", h, err)
	}
}

// TestSubmitOpen: what no block has yet, and what a node cannot take now, is not refused.
func TestSubmitOpen(t *testing.T) {
	key := testKey("sender")
	sender := mesh.AddressOf(key.Public().(ed25519.PublicKey))
	raw, err := ledger.SignTx(testNetwork, key, &ledgerpb.Tx{Nonce: 4, Fee: 1, Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: sender[:], Amount: 5}}})
	if err != nil {
		t.Fatal(err)
	}
	waits := &lightpb.TxAnswer{Accepted: true, Reason: "no block has it yet"}
	unable := &lightpb.TxAnswer{Unable: true, Reason: "still catching up"}
	refuses := &lightpb.TxAnswer{Reason: "number 4 was used"}
	for _, c := range []struct {
		name          string
		used, dead    bool
		answers       []*lightpb.TxAnswer
		refused, lost bool
		why           error
	}{
		{"waits, and its number is used", true, false, []*lightpb.TxAnswer{waits, waits}, false, true, errUsed},
		{"waits until the caller gives up", false, false, []*lightpb.TxAnswer{waits, waits}, false, true, context.Canceled},
		{"one refuses it, one has it", true, false, []*lightpb.TxAnswer{refuses, waits}, true, true, errUsed},
		{"nobody can take it", false, false, []*lightpb.TxAnswer{unable, unable, unable}, false, false, nil},
		{"one cannot take it, two refuse it", false, false, []*lightpb.TxAnswer{unable, refuses, refuses}, true, false, nil},
		{"both are lost once they have it", false, false, []*lightpb.TxAnswer{nil, nil}, false, true, nil},
		{"one is lost so, one cannot take it", false, false, []*lightpb.TxAnswer{nil, unable}, false, true, nil},
		{"nobody can be dialled", false, true, []*lightpb.TxAnswer{waits, waits}, false, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, smallChain(), len(c.answers), 9)
			w.withState(9, func(int64) []ledger.Change {
				a := &ledgerpb.Account{Balance: 100, Nonce: 4}
				if c.used {
					a.Nonce = 5
				}
				return []ledger.Change{{Key: ledger.AccountKey(sender), Value: accountValue(t, a)}}
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var looks atomic.Int64
			for i, n := range w.nodes {
				n.dead = c.dead
				n.tx = func(*lightpb.TxAsk) *lightpb.TxAnswer { return c.answers[i] }
				n.answer = func(ask *lightpb.Ask) *lightpb.Answer {
					if ask.GetRecord() != nil && looks.Add(1) == 3 { // at the account, once both have answered
						cancel()
					}
					return nil
				}
			}
			_, err := w.client().Submit(ctx, raw)
			if err == nil || errors.Is(err, ErrRefused) != c.refused || errors.Is(err, ErrLost) != c.lost || c.why != nil && !errors.Is(err, c.why) {
				t.Error(err)
			}
			w.fined()
		})
	}
}
