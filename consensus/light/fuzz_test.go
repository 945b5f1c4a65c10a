package light

import (
	"bytes"
	"testing"

	"github.com/cometbft/cometbft/types"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/light/lightpb"
)

func FuzzDecodeBlock(f *testing.F) {
	chain := smallChain()
	for _, h := range []int64{1, 2, 30} {
		raw, err := EncodeBlock(chain.block(h))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(raw[:len(raw)-7])
	}
	// What a peer shows is verified against what is trusted, whatever it is.
	w := newWorld(f, chain, 1, 50)
	c := w.client()
	from := chain.block(20)
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := DecodeBlock(raw)
		if err != nil || b.ValidateBasic(string(testNetwork)) != nil {
			return
		}
		again, err := EncodeBlock(b)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := DecodeBlock(again); err != nil || !bytes.Equal(same.Hash(), b.Hash()) {
			t.Fatalf("decoded again it is another block: %v", err)
		}
		none := func(int64) (*types.LightBlock, error) { return nil, ErrNoBlock }
		if _, err := c.skip(from, b, third, none); err == nil && !bytes.Equal(b.Hash(), chain.block(b.Height).Hash()) {
			t.Fatalf("block %d is believed", b.Height)
		}
	})
}

// FuzzAnswer gives a client any answer to each of its questions.
func FuzzAnswer(f *testing.F) {
	w := bankWorld(f, 1)
	n := w.nodes[0]
	key := ledger.AccountKey(user(3))
	asks := []*lightpb.Ask{
		{Want: &lightpb.Ask_Tip{}}, {Want: &lightpb.Ask_Block{Block: 12}},
		{Want: &lightpb.Ask_Record{Record: &lightpb.Record{Key: key, Height: 11}}}, {Want: &lightpb.Ask_Keys{Keys: &lightpb.Keys{Prefix: []byte("A"), Limit: 30}}},
		{Want: &lightpb.Ask_Block{Block: 900}},
	}
	for _, a := range asks {
		raw, err := proto.Marshal(n.honest(a))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	hash := mesh.Hash(w.chain.app[11])
	want, err := checkProof(hash, key, n.honest(asks[2]).GetProof())
	if err != nil {
		f.Fatal(err)
	}
	c := w.client()
	f.Fuzz(func(t *testing.T, raw []byte) {
		answer := new(lightpb.Answer)
		if proto.Unmarshal(raw, answer) != nil {
			return
		}
		n.answer = func(*lightpb.Ask) *lightpb.Answer { return answer }
		peer := addressOf(0)
		if tip, err := c.tipOf(t.Context(), peer, 0); err == nil && tip.height <= 0 {
			t.Fatal("a header of no height")
		}
		if b, err := c.block(t.Context(), peer, 12); err == nil && b.Height != 12 {
			t.Fatal("a block of another height")
		}
		if value, err := checkProof(hash, key, answer.GetProof()); err == nil && !bytes.Equal(value, want) {
			t.Fatalf("record %x is believed", value)
		}
	})
}

// FuzzKeptHeader reads any file in the place of the kept header: only what its own
// validators signed is taken.
func FuzzKeptHeader(f *testing.F) {
	chain := smallChain()
	raw, err := EncodeBlock(chain.block(30))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:100])
	withRoot, err := encodeKept(chain.block(30), mesh.Hash{7})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(withRoot)
	f.Add(withRoot[:20])
	f.Fuzz(func(t *testing.T, raw []byte) {
		if b, _ := decodeKept(raw, string(testNetwork)); b != nil && !bytes.Equal(b.Hash(), chain.block(30).Hash()) {
			t.Fatalf("block %d is believed", b.Height)
		}
	})
}
