package inference

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// sampleEmbed returns a question and a request for a vector.
func sampleEmbed() (*inferencepb.Question, *inferencepb.Request) {
	return &inferencepb.Question{Model: hash("model"), Prompt: "What is Mesh?", Embed: true},
		&inferencepb.Request{Choices: 1, PriceCap: 99, Epoch: 7, Nonce: []byte("0123456789abcdef")}
}

func TestEmbedRequest(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(q *inferencepb.Question, r *inferencepb.Request)
		ok     bool
	}{
		{"plain", func(*inferencepb.Question, *inferencepb.Request) {}, true},
		{"tokens", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Prompt, q.PromptTokens = "", []uint32{1, 2} }, true},
		{"escrow", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Escrow = hash("escrow") }, true},
		{"nothing", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Prompt = "" }, false},
		{"messages", func(q *inferencepb.Question, _ *inferencepb.Request) {
			q.Prompt, q.Messages = "", []*inferencepb.Message{{Role: "user", Content: "x"}}
		}, false},
		{"seed", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Seed = 1 }, false},
		{"sampling", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Sampling = new(inferencepb.Sampling) }, false},
		{"constraint", func(q *inferencepb.Question, _ *inferencepb.Request) {
			q.Constraint = &inferencepb.Constraint{Kind: "json_object"}
		}, false},
		{"tools", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Tools = "[]" }, false},
		{"template", func(q *inferencepb.Question, _ *inferencepb.Request) { q.TemplateArgs = `{"a":1}` }, false},
		{"output", func(_ *inferencepb.Question, r *inferencepb.Request) { r.MaxTokens = 1 }, false},
		{"choices", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Choices = 2 }, false},
		{"stop", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Stop = []string{"x"} }, false},
		{"logprobs", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Logprobs = true }, false},
		{"ignore_eos", func(_ *inferencepb.Question, r *inferencepb.Request) { r.IgnoreEos = true }, false},
		{"no vector", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Embed = false }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, r := sampleEmbed()
			tt.change(q, r)
			req, signed, err := NewRequest(network, testKey(1), q, r)
			if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrInvalid) {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				return
			}
			body, err := EncodeCall(signed, 0, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if call, err := ParseCall(network, body); err != nil || call.Request.Hash != req.Hash || !call.Request.Question.GetEmbed() {
				t.Errorf("call %+v, %v", call, err)
			}
			if body, err = EncodeCall(signed, 0, []int32{1}, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := ParseCall(network, body); !errors.Is(err, ErrInvalid) {
				t.Errorf("a vector after a token: %v", err)
			}
		})
	}
}

func TestVector(t *testing.T) {
	v := []float32{1, -0.5, 0, math.SmallestNonzeroFloat32}
	b := EncodeVector(v)
	if want := []byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf, 0, 0, 0, 0, 1, 0, 0, 0}; !bytes.Equal(b, want) {
		t.Errorf("%x, want %x", b, want)
	}
	got, err := DecodeVector(b)
	if err != nil || len(got) != 4 || got[1] != -0.5 || got[3] != v[3] {
		t.Errorf("%v, %v", got, err)
	}
	inf, nan := float32(math.Inf(-1)), float32(math.NaN())
	for name, bad := range map[string][]byte{
		"empty": {}, "part": b[:7], "wide": make([]byte, 4*MaxWidth+4), "infinite": EncodeVector([]float32{1, inf}), "NaN": EncodeVector([]float32{nan}),
	} {
		if _, err := DecodeVector(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := DecodeVector(make([]byte, 4*MaxWidth)); err != nil {
		t.Error(err)
	}
}

// TestBind computes the chain of a vector as docs/protocol.md defines it.
func TestBind(t *testing.T) {
	q, r := sampleEmbed()
	req, _, err := NewRequest(network, testKey(1), q, r)
	if err != nil {
		t.Fatal(err)
	}
	c := NewChain(network, req.Hash, 0)
	before, vector := c, EncodeVector([]float32{1, -0.5})
	sum := sha256.Sum256(vector)
	want := sha256.Sum256(append(append(before.H[:], 0xff, 0xff, 0xff, 0xff), sum[:]...))
	c.Bind(vector)
	if c.H != want || c.Next != 0 {
		t.Errorf("%x at %d, want %x", c.H, c.Next, want)
	}
	vector[0] ^= 1
	if before.Bind(vector); before.H == c.H {
		t.Error("another vector has the same chain")
	}
}

func TestVectorFrames(t *testing.T) {
	vector := EncodeVector([]float32{1, -0.5})
	doc, err := AppendFrame(nil, &Frame{Vector: vector, Receipt: []byte{1}, Finish: FinishEOS})
	if err != nil {
		t.Fatal(err)
	}
	if f, err := NewFrameReader(bytes.NewReader(doc)).Next(); err != nil || !bytes.Equal(f.Vector, vector) || f.Heartbeat() {
		t.Errorf("%+v, %v", f, err)
	}
	widest, err := AppendFrame(nil, &Frame{Vector: make([]byte, 4*MaxWidth), Receipt: make([]byte, MaxReceiptBytes), Finish: FinishEOS})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewFrameReader(bytes.NewReader(widest)).Next(); err != nil {
		t.Errorf("the widest vector: %v", err)
	}
	for name, doc := range map[string]string{
		"with a token": `{"vector":"AACAPw==","tokens":[{"id":1}],"finish":"eos","receipt":"AA=="}`,
		"with text":    `{"vector":"AACAPw==","text":"x","finish":"eos","receipt":"AA=="}`,
		"not the last": `{"vector":"AACAPw==","receipt":"AA=="}`, "at a stop": `{"vector":"AACAPw==","finish":"stop","receipt":"AA=="}`,
		"no receipt": `{"vector":"AACAPw==","finish":"eos"}`, "empty": `{"vector":"","finish":"eos","receipt":"AA=="}`,
		"odd": `{"vector":"AACA","finish":"eos","receipt":"AA=="}`, "NaN": `{"vector":"AADAfw==","finish":"eos","receipt":"AA=="}`,
		"no base64": `{"vector":[1,2],"finish":"eos","receipt":"AA=="}`,
		"wide":      `{"vector":"` + strings.Repeat("AAAA", MaxWidth*4/3+4) + `","finish":"eos","receipt":"AA=="}`,
	} {
		if _, err := DecodeFrame([]byte(doc)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzDecodeVector(f *testing.F) {
	f.Add(EncodeVector([]float32{1, -0.5, 0}))
	f.Add([]byte{0, 0, 0xc0, 0x7f})
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := DecodeVector(b); err == nil && !bytes.Equal(EncodeVector(v), b) {
			t.Error("accepted, and it encodes to other bytes")
		}
	})
}
