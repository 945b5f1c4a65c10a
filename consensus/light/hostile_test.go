package light

import (
	"bytes"
	"cmp"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cometbft/cometbft/types"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
)

// lies makes a node answer questions about headers after a height from another chain.
func (n *fullNode) lies(chain *ledgerChain, after, tip int64) {
	other := &fullNode{chain: chain}
	other.tip.Store(tip)
	n.answer = func(a *lightpb.Ask) *lightpb.Answer {
		if h := max(a.GetBlock(), a.GetTip()); a.GetEvidence() != nil || h > 0 && int64(h) <= after {
			return nil
		}
		return other.honest(a)
	}
}

// TestFalseHeaders shows a client one liar beside honest peers, in each place. The
// client has the honest header, and the liar is cut off.
func TestFalseHeaders(t *testing.T) {
	const tip = 50
	strangers := newSigners("strangers", 7)
	kinds := map[string]func(n *fullNode, c *ledgerChain){
		"validators that nobody chose": func(n *fullNode, _ *ledgerChain) {
			n.lies(newLedgerChain(20, strangers), 0, tip)
		},
		"signatures of others": func(n *fullNode, c *ledgerChain) {
			n.answer = func(a *lightpb.Ask) *lightpb.Answer {
				if _, ok := a.GetWant().(*lightpb.Ask_Block); !ok {
					return nil
				}
				b := *c.block(tip)
				b.SignedHeader = &types.SignedHeader{Header: b.Header, Commit: b.Commit.Clone()}
				for i := range b.Commit.Signatures {
					b.Commit.Signatures[i].Signature = make([]byte, 64)
				}
				return blockAnswer(&b)
			}
		},
		"a header that was changed": func(n *fullNode, c *ledgerChain) {
			n.answer = func(a *lightpb.Ask) *lightpb.Answer {
				if _, ok := a.GetWant().(*lightpb.Ask_Block); !ok {
					return nil
				}
				b := *c.block(tip)
				h := *b.Header
				h.AppHash = hashOf("thief")
				b.SignedHeader = &types.SignedHeader{Header: &h, Commit: b.Commit}
				return blockAnswer(&b)
			}
		},
		"another header than it said": func(n *fullNode, c *ledgerChain) {
			n.answer = func(a *lightpb.Ask) *lightpb.Answer {
				if _, ok := a.GetWant().(*lightpb.Ask_Tip); !ok {
					return nil
				}
				return &lightpb.Answer{Got: &lightpb.Answer_Tip{Tip: &lightpb.Tip{Height: tip, Hash: hashOf("lure")}}}
			}
		},
		"a block of another height": func(n *fullNode, c *ledgerChain) {
			n.answer = func(a *lightpb.Ask) *lightpb.Answer {
				if _, ok := a.GetWant().(*lightpb.Ask_Block); !ok {
					return nil
				}
				return blockAnswer(c.block(tip - 1))
			}
		},
		"no block at all": func(n *fullNode, _ *ledgerChain) {
			n.answer = func(a *lightpb.Ask) *lightpb.Answer {
				if _, ok := a.GetWant().(*lightpb.Ask_Block); !ok {
					return nil
				}
				return &lightpb.Answer{Got: &lightpb.Answer_Block{Block: []byte("block")}}
			}
		},
		"an answer to another question": func(n *fullNode, _ *ledgerChain) {
			n.answer = func(*lightpb.Ask) *lightpb.Answer {
				return &lightpb.Answer{Got: &lightpb.Answer_Taken{Taken: true}}
			}
		},
		"no message":         func(n *fullNode, _ *ledgerChain) { n.raw = []byte{3, 0xff, 0xff, 0xff} },
		"a message too long": func(n *fullNode, _ *ledgerChain) { n.raw = []byte{0xff, 0xff, 0xff, 0x7f} },
	}
	for name, lie := range kinds {
		t.Run(name, func(t *testing.T) {
			for place := range 3 {
				w := newWorld(t, smallChain(), 3, tip)
				lie(w.nodes[place], w.chain)
				c := w.client()
				w.head(c, tip)
				// It may not have been asked for what it lies about: on its own it is.
				if w.quiet(place) {
					alone := w.client(func(cfg *Config) { cfg.Peers = func() []mesh.Address { return []mesh.Address{addressOf(place)} } })
					if h, err := alone.Head(t.Context()); err == nil {
						t.Errorf("header %s is believed", h.Hash.Short())
					}
				}
				w.fined(place)
			}
		})
	}
}

// quiet reports whether a node has no points yet.
func (w *world) quiet(i int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.penalty[addressOf(i)] == 0
}

// TestAttackWithOldKeys has validators that left, more than a third of what the client
// trusts, sign another history. Beside one honest peer they are found out, whichever is
// asked first, and the evidence goes to that peer.
func TestAttackWithOldKeys(t *testing.T) {
	for _, place := range []int{0, 1} {
		all := newSigners("small", 13)
		chain := newLedgerChain(20, all[:7], all[2:9])
		// Of 7 validators 3 sign the fork, with strangers beside them.
		fork := newLedgerChain(20, all[:7], append(append([]signer{}, all[:3]...), newSigners("friends", 4)...))
		fork.name = "fork"
		w := newWorld(t, chain, 2, 19)
		c := w.client()
		w.head(c, 19)
		for _, n := range w.nodes {
			n.tip.Store(39)
		}
		w.nodes[place].lies(fork, 20, 39)
		w.at(39)
		if h := w.head(c, 39); h.Witnessed {
			t.Error("nobody confirmed it")
		}
		w.fined(place)
		honest := w.nodes[1-place]
		if len(honest.evidence) != 1 {
			t.Fatalf("%d pieces of evidence", len(honest.evidence))
		}
		ev, ok := honest.evidence[0].(*types.LightClientAttackEvidence)
		if !ok || ev.CommonHeight != 19 || ev.ConflictingBlock.Height != 39 || len(ev.ByzantineValidators) != 3 {
			t.Errorf("evidence %v", honest.evidence[0])
		}
		// The signatures would have been enough where nobody disagrees: that is why two
		// are asked.
		if _, err := c.skip(chain.block(19), fork.block(39), third, nil); err != nil {
			t.Errorf("the attack is none: %v", err)
		}
	}
}

// TestOldKeysAhead has two peers with a made-up header ahead of what the honest one has,
// and one with it alone: neither is believed.
func TestOldKeysAhead(t *testing.T) {
	for liars := 1; liars <= 2; liars++ {
		all := newSigners("small", 13)
		chain := newLedgerChain(20, all[:7], all[2:9])
		fork := newLedgerChain(20, all[:7], append(append([]signer{}, all[:3]...), newSigners("friends", 4)...))
		fork.name = "fork"
		fork.late = -20 * 5e9 // so that the header of a later height is not of the future
		w := newWorld(t, chain, 3, 19)
		c := w.client()
		w.head(c, 19)
		for _, n := range w.nodes {
			n.tip.Store(39)
		}
		for i := range liars {
			w.nodes[i].lies(fork, 20, 55)
		}
		w.at(39)
		w.head(c, 39)
		if w.quiet(0) && liars == 2 {
			t.Error("a header ahead of all others was not looked at")
		}
	}
}

// TestFork stops when two thirds signed two headers: nobody can say which holds.
func TestFork(t *testing.T) {
	fork := smallChain()
	fork.name = "fork"
	w := newWorld(t, smallChain(), 2, 15)
	c := w.client()
	w.head(c, 15)
	for _, n := range w.nodes {
		n.tip.Store(18)
	}
	w.nodes[1].lies(fork, 15, 18)
	w.at(18)
	if _, err := c.Head(t.Context()); !errors.Is(err, ErrFork) {
		t.Fatalf("two headers: %v", err)
	}
	w.fined()
	for i, n := range w.nodes {
		if len(n.evidence) != 1 {
			t.Errorf("node %d has %d pieces of evidence", i, len(n.evidence))
		}
	}
	if _, err := c.Head(t.Context()); !errors.Is(err, ErrFork) || len(w.nodes[0].evidence) != 1 {
		t.Errorf("asked again: %v, %d pieces of evidence", err, len(w.nodes[0].evidence))
	}
	if b := c.store.newest(); b.Height != 15 {
		t.Errorf("header %d was kept", b.Height)
	}
}

// TestContradiction cuts off a peer with another header than the one known.
func TestContradiction(t *testing.T) {
	fork := smallChain()
	fork.name = "fork"
	w := newWorld(t, smallChain(), 3, 15)
	c := w.client()
	w.head(c, 15)
	w.nodes[0].lies(fork, 14, 15)
	w.now.Add(int64(blockTime))
	w.head(c, 15)
	w.fined(0)
}

// TestLoneLiar alone moves nothing: what it can show is not signed.
func TestLoneLiar(t *testing.T) {
	all := newSigners("small", 13)
	fork := newLedgerChain(20, all[:7], append(append([]signer{}, all[:3]...), newSigners("friends", 4)...))
	w := newWorld(t, smallChain(), 1, 39)
	w.nodes[0].lies(fork, 20, 39)
	if h, err := w.client().Head(t.Context()); err == nil {
		t.Errorf("header %d of three old validators is believed", h.Height)
	}
	w.fined(0)
}

// TestManySteps does not follow a peer over more headers at once than any honest way needs,
// and goes on from where it was, also after a restart.
func TestManySteps(t *testing.T) {
	all := newSigners("step", 2*maxSteps+5)
	var sets [][]signer
	for i := range 2 * maxSteps {
		sets = append(sets, all[i:i+5])
	}
	chain := newLedgerChain(1, sets...)
	for _, nodes := range []int{1, 2, 3} {
		w, file := newWorld(t, chain, nodes, int64(len(sets))), filepath.Join(t.TempDir(), "head")
		if nodes == 3 { // one names a header that nobody has, and shows none
			w.nodes[2].answer = func(a *lightpb.Ask) *lightpb.Answer {
				if tip, ok := a.GetWant().(*lightpb.Ask_Tip); ok {
					height := cmp.Or(tip.Tip, uint64(len(sets)))
					return &lightpb.Answer{Got: &lightpb.Answer_Tip{Tip: &lightpb.Tip{Height: height, Hash: bytes.Repeat([]byte{7}, 32)}}}
				}
				return &lightpb.Answer{Got: &lightpb.Answer_Error{Error: &lightpb.Error{Code: lightpb.Error_NOT_FOUND}}}
			}
		}
		tries, err := 0, errors.New("not tried")
		for ; err != nil && tries < 8; tries++ {
			before := w.nodes[0].asks.Load()
			_, err = w.client(func(cfg *Config) { cfg.File = file }).Head(t.Context())
			if n := w.nodes[0].asks.Load() - before; n > maxSteps+8 {
				t.Errorf("%d nodes, try %d: %d questions", nodes, tries, n)
			}
			if err != nil && !strings.Contains(err.Error(), "changes of the validators") {
				t.Fatal(err)
			}
		}
		if err != nil || tries < 2 {
			t.Errorf("%d nodes: after %d tries %v", nodes, tries, err)
		}
		if nodes == 3 {
			w.fined(2) // once the header is known
		} else {
			w.fined()
		}
	}
}
