package router

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// parrot is a host that says the same bytes to every call, and hangs up.
type parrot struct{ says []byte }

func (p parrot) Dial(context.Context, mesh.Address, string) (net.Conn, error) {
	return &parrotConn{in: bytes.NewReader(p.says), asked: make(chan struct{})}, nil
}

type parrotConn struct {
	net.Conn
	in    io.Reader
	asked chan struct{}
	once  sync.Once
}

func (c *parrotConn) Read(b []byte) (int, error) {
	<-c.asked
	return c.in.Read(b)
}
func (c *parrotConn) ask()                               { c.once.Do(func() { close(c.asked) }) }
func (c *parrotConn) Write(b []byte) (int, error)        { c.ask(); return len(b), nil }
func (c *parrotConn) Close() error                       { c.ask(); return nil }
func (c *parrotConn) SetDeadline(_ time.Time) error      { return nil }
func (c *parrotConn) SetReadDeadline(_ time.Time) error  { return nil }
func (c *parrotConn) SetWriteDeadline(_ time.Time) error { return nil }

// FuzzAnswerStream is what the router does with the raw bytes of a host. Whatever they
// are, only tokens that the host signed, and their text, are passed on.
func FuzzAnswerStream(f *testing.F) {
	key := testKey(1)
	capability := &inferencepb.Capability{Model: modelID[:], Name: "model", Context: 4096, Slots: 4, PricePrompt: 2, PriceOutput: 3}
	req, signed, err := inference.NewRequest(network, testKey(1000), &inferencepb.Question{Model: modelID[:], Prompt: "What is Mesh?"},
		&inferencepb.Request{Choices: 1, MaxTokens: 4, Nonce: make([]byte, 16)})
	if err != nil {
		f.Fatal(err)
	}
	const text = "Mesh"
	var frames []byte
	chain := inference.NewChain(network, req.Hash, 0)
	start := chain
	for i, b := range []byte(text) {
		chain.Add(int32(b))
		frame := &inference.Frame{Tokens: []inference.FrameToken{{ID: int32(b)}}, Text: string(rune(b))}
		finish := inference.FinishOpen
		if i == len(text)-1 {
			finish = inference.FinishLength
		}
		frame.Finish = finish
		price, err := inference.Price(capability, 13, 0, i+1, finish)
		if err != nil {
			f.Fatal(err)
		}
		receipt, err := inference.SignReceipt(network, key, &inferencepb.Receipt{
			Request: req.Hash[:], Model: modelID[:], End: uint32(i + 1), ChainBefore: start.H[:], ChainAfter: chain.H[:],
			Finish: string(finish), PromptTokens: 13, OutputTokens: uint32(i + 1), Price: uint64(price), Nonce: make([]byte, 16),
		})
		if err != nil {
			f.Fatal(err)
		}
		if err := frame.SetReceipt(receipt); err != nil {
			f.Fatal(err)
		}
		if frames, err = inference.AppendFrame(frames, frame); err != nil {
			f.Fatal(err)
		}
	}
	head := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
	honest := append([]byte(head+"\r\n"), frames...)
	f.Add(honest)
	f.Add(fmt.Appendf(nil, "%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", head, len(frames), frames))
	f.Add([]byte(head + "\r\ndata: {\"progress\":{\"steps\":1}}\n\ndata: {\"finish\":\"eos\"}\n\n"))
	f.Add([]byte("HTTP/1.1 429 Too Many Requests\r\nContent-Length: 33\r\n\r\n{\"code\":\"busy\",\"wait_ms\":10000000}"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b"))
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"))
	f.Add([]byte("SSH-2.0-x\r\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		r, err := New(Config{Network: network, Key: testKey(1000), Dialer: parrot{says}, Directory: new(directory),
			Text: func(mesh.ModelID) inference.Detokenizer { return new(byteText) }})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var said strings.Builder
		q := &question{
			r: r, model: modelID, req: req, signed: signed, started: time.Now(), most: func() int { return inference.MostPrompt(req.Question) }, turn: make(chan struct{}, 1),
			ask: &inferencepb.OfferAsk{Model: modelID[:], MaxTokens: 4, Choices: 1},
			emit: func(e inference.Event) error {
				said.WriteString(e.Text)
				return nil
			},
		}
		c := newChoice(q, 0)
		err = c.call(t.Context(), ranked{peer: addressOf(1), capability: capability, offered: true})
		c.keeping.Wait()
		if !strings.HasPrefix(text, said.String()) || err == nil && said.String() != text {
			t.Errorf("%q was passed on, and the host signed %q: %v", said.String(), text, err)
		}
		if bytes.Equal(says, honest) && err != nil {
			t.Errorf("the honest answer: %v", err)
		}
	})
}
