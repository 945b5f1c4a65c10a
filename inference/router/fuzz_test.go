package router

import (
	"bytes"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/p2p"
)

// FuzzOffer reads what a host answers to the question for its load.
func FuzzOffer(f *testing.F) {
	model := mesh.HashOf([]byte("model"))
	for _, o := range []*inferencepb.Offer{
		{}, {Accept: true, Capability: &inferencepb.Capability{Model: model[:], PriceOutput: 1 << 63, Slots: 1 << 31}},
		{Accept: true, WaitMs: 1 << 31, TokenUs: 1 << 31, Active: 1 << 31, Queued: 1 << 31},
	} {
		var b bytes.Buffer
		if err := p2p.WriteMessage(&b, o); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o := new(inferencepb.Offer)
		if p2p.ReadMessage(bytes.NewReader(b), maxOfferBytes, o) != nil {
			return
		}
		if checkOffer(o, model) == nil && o.GetAccept() && !bytes.Equal(o.GetCapability().GetModel(), model[:]) {
			t.Error("an offer of another model passes")
		}
	})
}
