package host

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/p2p"
)

// said is a connection whose other end has said all it will, and reads everything.
type said struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (s *said) Read(b []byte) (int, error)    { return s.in.Read(b) }
func (s *said) Write(b []byte) (int, error)   { return s.out.Write(b) }
func (s *said) Close() error                  { return nil }
func (s *said) SetDeadline(_ time.Time) error { return nil }

func FuzzServeOffer(f *testing.F) {
	for _, call := range []*inferencepb.OfferCall{
		{}, {Ask: &inferencepb.OfferAsk{Model: modelID[:], PromptTokens: 5, MaxTokens: 1 << 31}},
		{Offer: &inferencepb.Offer{Accept: true, Task: modelID[:]}},
	} {
		var b bytes.Buffer
		if err := p2p.WriteMessage(&b, call); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	h, err := New(Config{Network: network, Key: testKey(1)})
	if err != nil {
		f.Fatal(err)
	}
	if err := h.Add(&engine{slots: 1}, Prices{}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &said{in: bytes.NewReader(in)}
		h.ServeOffer(context.Background(), addressOf(2), c)
		if c.out.Len() == 0 {
			return
		}
		if err := p2p.ReadMessage(&c.out, maxOfferBytes, new(inferencepb.Offer)); err != nil {
			t.Errorf("the answer is no offer: %v", err)
		}
	})
}

func FuzzCancel(f *testing.F) {
	request := inference.NewChain(network, modelID, 0).H
	s, err := inference.SignCancel(network, testKey(2), request, 0)
	if err != nil {
		f.Fatal(err)
	}
	body, err := proto.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	h, err := New(Config{Network: network, Key: testKey(1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if n, err := h.cancelSigned(body); err == nil && n != 0 {
			t.Errorf("%d answers were cancelled, and none runs", n)
		}
	})
}
