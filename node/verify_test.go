package node

import (
	"crypto/ed25519"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/internal/merkle"
	"github.com/gonka-mesh/mesh/node/api"
)

const verifyNetwork = mesh.NetworkID("verify-test-1")

// signSegment makes a receipt of two tokens that goes on from a chain.
func signSegment(t *testing.T, network mesh.NetworkID, before inference.Chain, request mesh.Hash, change func(*inferencepb.Receipt)) (*inference.Receipt, []byte) {
	t.Helper()
	h := mesh.HashOf([]byte("host"))
	after := before
	after.Add(3)
	after.Add(4)
	model := mesh.HashOf([]byte("model"))
	body := &inferencepb.Receipt{Request: request[:], Model: model[:], First: before.Next, End: after.Next, ChainBefore: before.H[:], ChainAfter: after.H[:],
		Finish: "eos", OutputTokens: 2, Price: 50, Escrow: make([]byte, 32), Epoch: 4, HiddenRoot: make([]byte, 32)}
	body.Escrow[0] = 9
	if change != nil {
		change(body)
	}
	signed, err := inference.SignReceipt(network, ed25519.NewKeyFromSeed(h[:]), body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := inference.ParseReceipt(network, signed)
	if err != nil {
		t.Fatal(err)
	}
	return r, slices.Concat(signed.GetBody(), signed.GetSignature())
}

// settle puts receipts into a settlement, each with a price.
func settle(t *testing.T, prices map[*inference.Receipt]mesh.Amount) (*ledgerpb.Settlement, *ledger.Prover) {
	t.Helper()
	e := ledger.EscrowReceipts{Receipts: []ledger.ReceiptEntry{{Hash: mesh.HashOf([]byte("another")), Price: 7}}}
	e.Escrow[0] = 9
	for r, price := range prices {
		e.Receipts = append(e.Receipts, ledger.ReceiptEntry{Hash: ledger.HashReceipt(r.Signed), Price: price})
	}
	lines, prover, err := ledger.BuildSettlement([]ledger.EscrowReceipts{e})
	if err != nil {
		t.Fatal(err)
	}
	// As the ledger does it with the lines that it takes.
	var leaves []merkle.SumNode
	for _, l := range lines {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, merkle.SumNode{Hash: mesh.HashOf(b), Sum: l.GetTotal()})
	}
	root, err := merkle.SumRoot(leaves)
	if err != nil {
		t.Fatal(err)
	}
	return &ledgerpb.Settlement{Root: root.Hash[:], Total: root.Sum, Lines: uint64(len(lines)), Receipts: uint64(len(e.Receipts))}, prover
}

// TestJudge says of a receipt that its host proves what became of it.
func TestJudge(t *testing.T) {
	request := mesh.HashOf([]byte("request"))
	r, _ := signSegment(t, verifyNetwork, inference.NewChain(verifyNetwork, request, 0), request, nil)
	other, _ := signSegment(t, verifyNetwork, inference.NewChain(verifyNetwork, mesh.Hash{1}, 0), mesh.Hash{1}, nil)
	prove := func(p *ledger.Prover, r *inference.Receipt) []byte {
		proof, err := p.Prove(mesh.Hash{9}, ledger.HashReceipt(r.Signed))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := ledger.EncodeProof(proof)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	right, prover := settle(t, map[*inference.Receipt]mesh.Amount{r: 50, other: 50})
	dear, dearProver := settle(t, map[*inference.Receipt]mesh.Amount{r: 51})
	for name, c := range map[string]struct {
		record *ledgerpb.Settlement
		proof  []byte
		closed bool
		state  string
		words  string
	}{
		"settled":          {right, prove(prover, r), true, api.ReceiptSettled, "settled in epoch 4"},
		"before its end":   {right, prove(prover, r), false, api.ReceiptSettled, "settled in epoch 4"},
		"wrong price":      {dear, prove(dearProver, r), true, api.ReceiptWrongPrice, "has 0.000000051 GNK for it, and the receipt says 0.00000005 GNK"},
		"of another":       {right, prove(prover, other), true, api.ReceiptAbsent, "another receipt"},
		"other settlement": {dear, prove(prover, r), true, api.ReceiptAbsent, "not in its host's settlement"},
		"made-up price":    {right, prove(dearProver, r), true, api.ReceiptAbsent, "not in its host's settlement"},
		"no proof":         {right, nil, true, api.ReceiptAbsent, "not in its host's settlement"},
		"noise":            {right, []byte("proof"), true, api.ReceiptAbsent, "not in its host's settlement"},
		"not yet":          {right, prove(dearProver, r), false, api.ReceiptPending, "being settled"},
	} {
		f := facts{now: 5, keep: 3, closed: c.closed, record: c.record}
		if state, _ := f.without(4); state != "" {
			t.Errorf("%s: %s before the proof", name, state)
		}
		if state, reason := f.judge(verifyNetwork, r, c.proof); state != c.state || !strings.Contains(reason, c.words) {
			t.Errorf("%s: %s: %s", name, state, reason)
		}
	}
}

// TestWithoutSettlement says why the ledger has no settlement.
func TestWithoutSettlement(t *testing.T) {
	for name, c := range map[string]struct {
		f     facts
		state string
		words string
	}{
		"runs":    {facts{now: 4, keep: 3}, api.ReceiptPending, "still runs"},
		"ended":   {facts{now: 5, keep: 3}, api.ReceiptPending, "may still settle"},
		"missed":  {facts{now: 5, keep: 3, closed: true}, api.ReceiptUnsettled, "nothing was paid"},
		"old":     {facts{now: 20, keep: 3}, api.ReceiptPruned, "keeps settlements of 3 epochs"},
		"not yet": {facts{now: 3, keep: 3}, api.ReceiptInvalid, "it is epoch 3"},
	} {
		if state, reason := c.f.without(4); state != c.state || !strings.Contains(reason, c.words) {
			t.Errorf("%s: %s: %s", name, state, reason)
		}
	}
}

// TestVerifySigned checks the form and the chain of receipts on a network without a
// ledger.
func TestVerifySigned(t *testing.T) {
	document, err := NewDevGenesis(time.Now(), DevNetwork{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{Home: t.TempDir(), Network: string(document), Light: true, NoMDNS: true, NoPortMap: true, Listen: "127.0.0.1:0"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	network := n.genesis.Network()
	request := mesh.HashOf([]byte("request"))
	begin := inference.NewChain(network, request, 0)
	lost := func(r *inferencepb.Receipt) { r.Finish = "" }
	a, first := signSegment(t, network, begin, request, lost)
	b, second := signSegment(t, network, a.After, request, nil)
	_, free := signSegment(t, network, begin, request, func(r *inferencepb.Receipt) { r.Escrow, r.Epoch = nil, 0 })
	_, foreign := signSegment(t, verifyNetwork, inference.NewChain(verifyNetwork, request, 0), request, nil)
	_, stranger := signSegment(t, network, inference.NewChain(network, mesh.Hash{5}, 0), mesh.Hash{5}, nil)
	forged := slices.Clone(first)
	forged[len(forged)-1] ^= 1
	for name, c := range map[string]struct {
		in     [][]byte
		ok     bool
		states []string
		words  string
	}{
		"two":               {[][]byte{first, second}, true, []string{api.ReceiptFree, api.ReceiptUnknown}, "no ledger"},
		"without escrow":    {[][]byte{free}, true, []string{api.ReceiptFree}, "no escrow"},
		"the end alone":     {[][]byte{second}, false, []string{api.ReceiptInvalid}, "does not go on"},
		"wrong order":       {[][]byte{second, first}, false, []string{api.ReceiptInvalid, api.ReceiptFree}, ""},
		"forged":            {[][]byte{forged}, false, []string{api.ReceiptInvalid}, "signature"},
		"other network":     {[][]byte{foreign}, false, []string{api.ReceiptInvalid}, ""},
		"nothing":           {[][]byte{nil}, false, []string{api.ReceiptInvalid}, "no receipt"},
		"noise":             {[][]byte{[]byte(strings.Repeat("noise", 40))}, false, []string{api.ReceiptInvalid}, ""},
		"of another answer": {[][]byte{first, stranger}, false, []string{api.ReceiptFree, api.ReceiptInvalid}, "another request"},
	} {
		v := n.VerifySigned(t.Context(), c.in)
		var states []string
		for _, s := range v.Segments {
			states = append(states, s.State)
			if s.Reason == "" {
				t.Errorf("%s: no reason", name)
			}
		}
		if v.OK != c.ok || !slices.Equal(states, c.states) || !strings.Contains(v.Segments[len(v.Segments)-1].Reason, c.words) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if _, err := n.VerifyReceipt(t.Context(), request); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("a receipt that is not here: %v", err)
	}
	for _, r := range []*inference.Receipt{a, b} {
		if err := n.receipts.Put(request, r.Signed); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := n.VerifyReceipt(t.Context(), request); err != nil || !v.OK || v.Request != request || len(v.Segments) != 2 {
		t.Errorf("%+v, %v", v, err)
	}
}

// FuzzVerifySigned reads any bytes in the place of a receipt.
func FuzzVerifySigned(f *testing.F) {
	n := &Node{genesis: &Genesis{Name: "fuzz"}}
	f.Add([]byte(nil))
	f.Add(make([]byte, 64))
	f.Add(append([]byte{10, 4, 'f', 'u', 'z', 'z'}, make([]byte, 64)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if v := n.VerifySigned(t.Context(), [][]byte{raw, raw}); v.OK {
			t.Fatalf("%x is a receipt", raw)
		}
	})
}

// TestLostHost: of a receipt without an end nobody may read that its host gets nothing.
func TestLostHost(t *testing.T) {
	r := &inference.Receipt{Pb: &inferencepb.Receipt{Escrow: make([]byte, 32), Price: 5}}
	state, reason := new(Node).checkSettled(t.Context(), r, new(api.Verification))
	if state != api.ReceiptFree || strings.Contains(reason, "not paid") || !strings.Contains(reason, "acknowledged of it is paid up to the receipt with which the host ended") {
		t.Errorf("%s: %s", state, reason)
	}
}
