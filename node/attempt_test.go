package node

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/node/api"
)

// TestAttemptFee: where a byte costs more than the node knows, it signs once more, as far
// as that is no slip; who names a fee pays that one.
func TestAttemptFee(t *testing.T) {
	c := newMoneyChain(t)
	n := &Node{genesis: c.genesis, key: c.payers[0], chain: &chain{store: c.store}}
	to := mesh.Address{1}
	params, err := c.view().Params()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		times uint64 // the price of a byte, of that in the parameters
		asked bool
		sent  int
		ok    bool
	}{{1, false, 1, true}, {5, false, 2, true}, {5, true, 1, false}, {1000, false, 1, false}} {
		tx := &ledgerpb.Tx{Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 1}}}
		if tt.asked {
			tx.Fee = 1 + params.GetFeePerByte()*500 // of some 150 bytes
		}
		sent := 0
		_, err := n.attempt(t.Context(), tx, func(_ context.Context, raw []byte) (api.Submitted, error) {
			sent++
			tx, err := ledger.ParseTx(c.genesis.Network(), raw)
			if err != nil {
				t.Fatal(err)
			}
			if least := tt.times * params.GetFeePerByte() * uint64(len(raw)); tx.Pb.GetFee() < least {
				return api.Submitted{}, &consensus.Refused{Log: fmt.Sprintf("fee of %d ngonka, at least %d for %d bytes", tx.Pb.GetFee(), least, len(raw))}
			}
			return api.Submitted{}, nil
		})
		if (err == nil) != tt.ok || sent != tt.sent {
			t.Errorf("%d times as much, asked %v: sent %d times, want %d: %v", tt.times, tt.asked, sent, tt.sent, err)
		}
	}
}

// TestAttemptOnce: who carries a transaction out and says that its fee was too low gets no
// second one that counts.
func TestAttemptOnce(t *testing.T) {
	c := newMoneyChain(t)
	n := &Node{genesis: c.genesis, key: c.payers[0], chain: &chain{store: c.store}}
	to := mesh.Address{9}
	var sent [][]byte
	_, err := n.attempt(t.Context(), &ledgerpb.Tx{Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 7}}},
		func(_ context.Context, raw []byte) (api.Submitted, error) {
			if sent = append(sent, raw); len(sent) == 1 {
				if err := c.block(raw); err != nil {
					t.Error(err)
				}
			}
			return api.Submitted{}, &consensus.Refused{Log: fmt.Sprintf("fee of 1 ngonka, at least %d for %d bytes", 1000*len(raw), len(raw))}
		})
	if err == nil || len(sent) != 2 {
		t.Fatalf("sent %d times, %v", len(sent), err)
	}
	_ = c.block(sent[1]) // refused, or without effect
	if a, err := c.view().Account(to); err != nil || a.GetBalance() != 7 {
		t.Errorf("%d arrived, %v", a.GetBalance(), err)
	}
}

// TestAttemptVote: a vote on a proposal whose block the asked node does not have yet is sent
// again, and refused in the end where there is none.
func TestAttemptVote(t *testing.T) {
	c := newMoneyChain(t)
	g := *c.genesis
	g.BlockMS = 1
	n := &Node{genesis: &g, key: c.payers[0], chain: &chain{store: c.store}}
	for _, known := range []int{0, 1, voteTries - 1, voteTries} { // after so many refusals
		sent := 0
		_, err := n.attempt(t.Context(), &ledgerpb.Tx{Action: &ledgerpb.Tx_Vote{Vote: &ledgerpb.Vote{Proposal: 3, Option: ledgerpb.Option_YES}}},
			func(context.Context, []byte) (api.Submitted, error) {
				if sent++; sent <= known {
					return api.Submitted{}, &consensus.Refused{Log: "there is no proposal 3"}
				}
				return api.Submitted{}, nil
			})
		if (err == nil) != (known < voteTries) || sent != min(known+1, voteTries) {
			t.Errorf("known after %d refusals: sent %d times, %v", known, sent, err)
		}
	}
}

// TestProposalSoon: a proposal whose block is a moment away is waited for.
func TestProposalSoon(t *testing.T) {
	c := newMoneyChain(t)
	n := &Node{genesis: &Genesis{BlockMS: 1 << 20}, chain: &chain{store: c.store}}
	got := make(chan error, 1)
	go func() {
		p, err := n.Proposal(t.Context(), 1)
		if err == nil && p.Title != "Fees" {
			err = fmt.Errorf("proposal %+v", p)
		}
		got <- err
	}()
	params, err := c.view().Params()
	if err != nil {
		t.Fatal(err)
	}
	c.must(c.payers[0], &ledgerpb.Tx{Action: &ledgerpb.Tx_Propose{Propose: &ledgerpb.Propose{Title: "Fees", Text: "x", Deposit: params.GetDepositMin()}}})
	if err := <-got; err != nil {
		t.Error(err)
	}
	c.must(c.host, &ledgerpb.Tx{Action: &ledgerpb.Tx_Vote{Vote: &ledgerpb.Vote{Proposal: 1, Option: ledgerpb.Option_YES}}})
	if all, err := n.Proposals(t.Context()); err != nil || len(all) != 1 || len(all[0].Ballots) != 1 || all[0].Proven {
		t.Errorf("an open vote in the list: %+v, %v", all, err)
	}
	n.genesis = &Genesis{BlockMS: 1}
	if _, err := n.Proposal(t.Context(), 99); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("a proposal that is not there: %v", err)
	}
}
