package ledger

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// sender makes transfers of one account.
type sender struct {
	t    *testing.T
	from mesh.Address
}

func (s sender) transfer(nonce, fee uint64, memo string) []byte {
	to := addressOf(testKey(0))
	return fakeSign(s.t, &ledgerpb.Tx{Sender: s.from[:], Nonce: nonce, Fee: fee,
		Action: &ledgerpb.Tx_Transfer{Transfer: &ledgerpb.Transfer{To: to[:], Amount: 5, Memo: memo}}})
}

func poolState(t *testing.T) (*Machine, *memState, sender) {
	t.Helper()
	from := addressOf(testKey(20))
	s := prepare(t, quickParams(), []hostOfTest{{address: addressOf(testKey(0))}}, []mesh.Address{from})
	return testMachine(), s, sender{t, from}
}

func newPool(t *testing.T, m *Machine, s Reader) *Pool {
	t.Helper()
	p, err := m.NewPool(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// nextPool is the pool after a block without transactions.
func nextPool(t *testing.T, m *Machine, s *memState, p *Pool) *Pool {
	t.Helper()
	out, err := m.Apply(s, Block{Height: p.b.height, Txs: [][]byte{beaconTx(t, p.b.height, addressOf(testKey(0)))}})
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, out.Changes)
	if p, err = p.Next(s); err != nil {
		t.Fatal(err)
	}
	return p
}

// refusedWith fails unless err is a refusal with these words; none: no refusal.
func refusedWith(t *testing.T, err error, words string) {
	t.Helper()
	switch {
	case words == "" && err != nil:
		t.Errorf("refused: %v", err)
	case words != "" && (err == nil || !strings.Contains(err.Error(), words)):
		t.Errorf("got %v, want a refusal with %q", err, words)
	}
}

func TestPool(t *testing.T) {
	const fee = 5000
	t.Run("in order", func(t *testing.T) {
		m, s, a := poolState(t)
		p := newPool(t, m, s)
		for n := range uint64(200) {
			refusedWith(t, p.Check(a.transfer(n, fee, "")), "")
		}
		refusedWith(t, p.Check(a.transfer(7, fee, "")), "nonce 7 was used, the sender's next is 200")
	})
	t.Run("in reverse", func(t *testing.T) {
		m, s, a := poolState(t)
		p := newPool(t, m, s)
		for n := ahead; n >= 0; n-- {
			refusedWith(t, p.Check(a.transfer(uint64(n), fee, "")), "")
		}
		// All have come, so the next is in order.
		refusedWith(t, p.Check(a.transfer(ahead+1, fee, "")), "")
		refusedWith(t, p.Check(a.transfer(3, fee, "")), "nonce 3 was used")
	})
	t.Run("too far ahead", func(t *testing.T) {
		m, s, a := poolState(t)
		p := newPool(t, m, s)
		refusedWith(t, p.Check(a.transfer(ahead, fee, "")), "")
		refusedWith(t, p.Check(a.transfer(ahead+1, fee, "")), "too far ahead")
	})
	t.Run("two of a nonce", func(t *testing.T) {
		m, s, a := poolState(t)
		p := newPool(t, m, s)
		refusedWith(t, p.Check(a.transfer(2, fee, "one")), "")
		refusedWith(t, p.Check(a.transfer(2, fee, "one")), "")
		refusedWith(t, p.Check(a.transfer(2, fee, "two")), "another transaction of the sender with nonce 2 waits")
	})
	t.Run("a flood that waits", func(t *testing.T) {
		m, s, a := poolState(t)
		p := newPool(t, m, s)
		taken := 0
		for n := range uint64(ahead) {
			propose := &ledgerpb.Propose{Title: "t", Text: strings.Repeat("x", 60<<10)}
			raw := fakeSign(t, &ledgerpb.Tx{Sender: a.from[:], Nonce: n + 1, Fee: 1e9, Action: &ledgerpb.Tx_Propose{Propose: propose}})
			if p.Check(raw) == nil {
				taken += len(raw)
			}
		}
		if taken == 0 || taken > roomAheadSender.bytes {
			t.Errorf("%d bytes wait, want at most %d", taken, roomAheadSender.bytes)
		}
	})
	t.Run("who does not come is given up", func(t *testing.T) {
		m, s, a := poolState(t)
		p := newPool(t, m, s)
		late, follower := a.transfer(5, fee, ""), a.transfer(0, fee, "")
		refusedWith(t, p.Check(late), "")
		for range patience - 1 {
			p = nextPool(t, m, s, p)
			refusedWith(t, p.Recheck(late), "")
		}
		p = nextPool(t, m, s, p)
		refusedWith(t, p.Recheck(late), "have not come for 16 blocks")
		// Nothing of this sender waits so for a while, whatever it is.
		for range penance - 1 {
			refusedWith(t, p.Check(late), "waited in vain")
			refusedWith(t, p.Check(a.transfer(1, fee, "another")), "waited in vain")
			p = nextPool(t, m, s, p)
		}
		refusedWith(t, p.Check(follower), "")
		p = nextPool(t, m, s, p)
		refusedWith(t, p.Check(late), "")
	})
	t.Run("bounds", func(t *testing.T) {
		m, s, a := poolState(t)
		p := newPool(t, m, s)
		poor := sender{t, addressOf(testKey(30))}
		raw := a.transfer(0, fee, "")
		forged := append([]byte{}, raw...)
		forged[len(forged)-1] ^= 1
		for _, test := range []struct {
			raw   []byte
			words string
		}{
			{a.transfer(0, 100, ""), "fee of 100 ngonka, at least"},
			{poor.transfer(0, fee, ""), "cannot pay the fee"},
			{make([]byte, MaxTxBytes+1), "at most 262144"},
			{nil, "transaction: not a message"},
			{beaconTx(t, 1, a.from), "transaction:"},
			{forged, "signature is not the sender's"},
			{a.transfer(0, fee, strings.Repeat("x", maxMemo+1)), fmt.Sprintf("memo of %d bytes", maxMemo+1)},
			{raw, ""},
			{raw, "nonce 0 was used"},
		} {
			refusedWith(t, p.Check(test.raw), test.words)
		}
	})
	t.Run("fees add up", func(t *testing.T) {
		// The pool takes what the account can pay and not a coin more, and refused
		// transactions with a fee of all there is do not hurt it.
		m, s, a := poolState(t)
		p := newPool(t, m, s)
		for range 50 {
			refusedWith(t, p.Check(a.transfer(0, 1_000_000e9, "")), "are needed")
		}
		refusedWith(t, p.Check(a.transfer(0, 600_000e9, "")), "")
		refusedWith(t, p.Check(a.transfer(1, 600_000e9, "")), "cannot pay the fee")
		refusedWith(t, p.Check(a.transfer(1, fee, "")), "")
	})
}

// TestPickAccepts is requirement 3 of ABCI++: what an honest proposer picks, every
// other machine accepts; of random pools, in random order, of any size.
func TestPickAccepts(t *testing.T) {
	txs, _ := randomSize(t)
	g := newGenerator(t, 11)
	rng := rand.New(rand.NewPCG(11, 1))
	picked, waited, blocks := 0, 0, 0
	for g.count < txs/2 {
		b := g.block()
		waiting := b.Txs[1:]
		waited += len(waiting)
		if rng.IntN(2) == 0 {
			rng.Shuffle(len(waiting), func(i, j int) { waiting[i], waiting[j] = waiting[j], waiting[i] })
		}
		max := int64(1 << 20)
		if rng.IntN(3) == 0 {
			max = 300 + rng.Int64N(40_000)
		}
		b.Txs = b.Txs[:1:1]
		chosen, err := g.m.Pick(g.state, b, waiting, max)
		if err != nil {
			t.Fatal(err)
		}
		size := int64(0)
		for _, raw := range chosen {
			size += int64(sizeInBlock(raw))
		}
		if size > max {
			t.Fatalf("block %d of %d bytes, at most %d", b.Height, size, max)
		}
		b.Txs = chosen
		out, err := testMachine().Accepts(g.state, b)
		if err != nil {
			t.Fatalf("block %d is not accepted: %v", b.Height, err)
		}
		again, err := testMachine().Apply(g.state, b)
		if err != nil {
			t.Fatal(err)
		}
		if digest(mesh.Hash{}, out) != digest(mesh.Hash{}, again) {
			t.Fatalf("block %d: what was accepted is not what is applied", b.Height)
		}
		picked += len(chosen) - 1
		blocks++
		g.apply(b, nil)
		g.count += len(waiting) - (len(chosen) - 1)
	}
	t.Logf("%d of %d picked in %d blocks", picked, waited, blocks)
	if picked < waited/4 {
		t.Errorf("only %d of %d were picked", picked, waited)
	}
}

// TestPickOrders shows that a sender's transactions come in the order of their nonces,
// however they lie in the pool.
func TestPickOrders(t *testing.T) {
	m, s, a := poolState(t)
	const n = 300
	var waiting [][]byte
	for nonce := n - 1; nonce >= 0; nonce-- {
		waiting = append(waiting, a.transfer(uint64(nonce), 5000, fmt.Sprint(nonce)))
	}
	waiting = append(waiting, waiting[5], beaconTx(t, 1, a.from), []byte{}, []byte("no transaction"))
	proposer := addressOf(testKey(0))
	b := Block{Height: 1, Proposer: ConsensusAddressOf(consensusKeyOf(proposer)), Txs: [][]byte{beaconTx(t, 1, proposer)}}
	chosen, err := m.Pick(s, b, waiting, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if len(chosen) != 1+n {
		t.Fatalf("%d picked, want the beacon and %d", len(chosen), n)
	}
	b.Txs = chosen
	if _, err := m.Accepts(s, b); err != nil {
		t.Error(err)
	}
	b.Txs = append(chosen, chosen[1])
	_, err = m.Accepts(s, b)
	refusedWith(t, err, "transaction 301 has no effect: nonce 0 was used")
	b.Txs = chosen[1:]
	_, err = m.Accepts(s, b)
	refusedWith(t, err, "without the proposer's beacon")
}
