package inference

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

const network = mesh.NetworkID("dev0a1b2c3d")

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

func testKey(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, 32))
}

func hash(s string) []byte {
	h := mesh.HashOf([]byte(s))
	return h[:]
}

// sample returns a question and a request that use every field.
func sample() (*inferencepb.Question, *inferencepb.Request) {
	q := &inferencepb.Question{
		Model: hash("model"),
		Messages: []*inferencepb.Message{
			{Role: "system", Content: "Be brief."},
			{Role: "user", Content: "What is Mesh? é世🌍", Name: "ann"},
			{Role: "assistant", ToolCalls: `[{"name":"f"}]`},
			{Role: "tool", Content: "7", ToolCallId: "1"},
		},
		Tools: `[{"name":"f"}]`, ToolChoice: `"auto"`, Seed: 0xfedcba9876543210,
		Sampling: &inferencepb.Sampling{Temperature: 0.7, TopP: 0.9, TopK: 40, MinP: 0.05, FrequencyPenalty: 0.1,
			PresencePenalty: -0.1, RepetitionPenalty: 1.1, LogitBias: []*inferencepb.LogitBias{{Token: 3, Bias: -100}, {Token: 9, Bias: 2.5}}},
	}
	r := &inferencepb.Request{
		Choices: 2, MaxTokens: 200, Stop: []string{"\n\n", "STOP"}, Logprobs: true, TopLogprobs: 5, IgnoreEos: true,
		PriceCap: 12345, Escrow: hash("escrow"), Epoch: 7, Nonce: []byte("0123456789abcdef"),
	}
	return q, r
}

func sampleRequest(t testing.TB) (*Request, *inferencepb.Signed) {
	t.Helper()
	q, r := sample()
	req, signed, err := NewRequest(network, testKey(1), q, r)
	if err != nil {
		t.Fatal(err)
	}
	return req, signed
}

func sampleReceipt(t testing.TB, req *Request, key byte, choice, first uint32, tokens []int32, before Chain, finish FinishReason) *inferencepb.Signed {
	t.Helper()
	after := before
	for _, tok := range tokens {
		after.Add(tok)
	}
	s, err := SignReceipt(network, testKey(key), &inferencepb.Receipt{
		Request: req.Hash[:], Model: req.Model[:], Choice: choice, First: first, End: after.Next,
		ChainBefore: before.H[:], ChainAfter: after.H[:], Finish: string(finish), PromptTokens: 11,
		OutputTokens: uint32(len(tokens)), Price: 99, Fingerprint: &inferencepb.Fingerprint{Engine: "native", Contract: "mk1"},
		HiddenRoot: hash("hidden"), Positions: 14, StartedMs: 1, FirstTokenMs: 2, EndedMs: 3,
		Epoch: 7, Nonce: req.Pb.GetNonce(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// vectors pins what other implementations have to compute too.
type vectors struct {
	Network       string            `json:"network"`
	KeySeed       string            `json:"key_seed"` // a byte, 32 times
	Question      []byte            `json:"question"`
	Request       []byte            `json:"request"`
	RequestHash   mesh.Hash         `json:"request_hash"`
	RequestSigned []byte            `json:"request_signed"`
	Tapes         []mesh.Hash       `json:"tapes"` // of choices 0 and 1
	Tokens        []int32           `json:"tokens"`
	Chains        map[string]string `json:"chains"` // of choice 1: h after so many tokens
	ReceiptSigned []byte            `json:"receipt_signed"`
	TaskSigned    []byte            `json:"task_signed"`
	TaskHash      mesh.Hash         `json:"task_hash"`
	CancelSigned  []byte            `json:"cancel_signed"`
	Frame         string            `json:"frame"`
	VectorRequest []byte            `json:"vector_request"` // for a vector
	Vector        []byte            `json:"vector"`         // its answer
	VectorChain   mesh.Hash         `json:"vector_chain"`   // h after it
	VoucherSigned []byte            `json:"voucher_signed"`
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVectors(t *testing.T) {
	req, signed := sampleRequest(t)
	v := vectors{
		Network: string(network), KeySeed: "01", Question: req.Pb.GetQuestion(), Request: req.Body, RequestHash: req.Hash,
		RequestSigned: marshal(t, signed), Tapes: []mesh.Hash{req.Tape(0), req.Tape(1)},
		Tokens: []int32{0, 5, 151_935, math.MaxInt32}, Chains: make(map[string]string),
	}
	c := NewChain(network, req.Hash, 1)
	before := c
	for i, tok := range v.Tokens {
		v.Chains[string(rune('0'+i))] = c.H.String()
		c.Add(tok)
	}
	v.Chains["4"] = c.H.String()
	receipt := sampleReceipt(t, req, 2, 1, 0, v.Tokens, before, FinishEOS)
	v.ReceiptSigned = marshal(t, receipt)
	task, taskSigned, err := SignTask(network, testKey(1), &inferencepb.Task{
		Request: req.Hash[:], Model: req.Model[:], ModelName: "tiny", PromptTokens: 9, MaxTokens: 200, Choices: 2,
		PriceCap: 12345, DeadlineMs: 1_700_000_000_000, Addrs: []string{"/ip4/127.0.0.1/tcp/1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	v.TaskSigned, v.TaskHash = marshal(t, taskSigned), task.Hash
	cancel, err := SignCancel(network, testKey(1), req.Hash, 1)
	if err != nil {
		t.Fatal(err)
	}
	v.CancelSigned = marshal(t, cancel)
	f := &Frame{Tokens: []FrameToken{{ID: 5, Bytes: []byte("hé"), LogProb: -0.25, Top: []FrameToken{{ID: 6, LogProb: -1.5}}}}, Text: "hé", Finish: FinishEOS}
	if err := f.SetReceipt(receipt); err != nil {
		t.Fatal(err)
	}
	frame, err := AppendFrame(nil, f)
	if err != nil {
		t.Fatal(err)
	}
	v.Frame = string(frame)
	embed, _, err := NewRequest(network, testKey(1), &inferencepb.Question{Model: hash("model"), Prompt: "What is Mesh?", Embed: true},
		&inferencepb.Request{Choices: 1, Nonce: []byte("0123456789abcdef")})
	if err != nil {
		t.Fatal(err)
	}
	v.VectorRequest, v.Vector = embed.Body, EncodeVector([]float32{0.6, -0.8})
	bound := NewChain(network, embed.Hash, 0)
	bound.Bind(v.Vector)
	v.VectorChain = bound.H
	voucher := sampleVoucher()
	voucherSigned, err := SignVoucher(network, testKey(1), voucher)
	if err != nil {
		t.Fatal(err)
	}
	v.VoucherSigned = marshal(t, voucherSigned)

	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/vectors.json"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the encodings changed; got\n%s", got)
	}
}

// TestTape checks what the tape depends on: the question and the choice, and nothing
// that host, router or payer choose besides.
func TestTape(t *testing.T) {
	base, _ := sampleRequest(t)
	for _, tt := range []struct {
		name   string
		change func(*inferencepb.Question, *inferencepb.Request)
		same   bool
	}{
		{"nothing", func(*inferencepb.Question, *inferencepb.Request) {}, true},
		{"nonce", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Nonce = make([]byte, 16) }, true},
		{"escrow", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Escrow = nil }, true},
		{"limits", func(_ *inferencepb.Question, r *inferencepb.Request) { r.MaxTokens, r.Stop = 5, nil }, true},
		{"seed", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Seed++ }, false},
		{"model", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Model = hash("x") }, false},
		{"temperature", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Sampling.Temperature = 0.8 }, false},
		{"prompt", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Messages[1].Content += "!" }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, r := sample()
			tt.change(q, r)
			req, _, err := NewRequest(network, testKey(3), q, r)
			if err != nil {
				t.Fatal(err)
			}
			if same := req.Tape(0) == base.Tape(0); same != tt.same {
				t.Errorf("the tape is the same: %v", same)
			}
			if req.Tape(0) == req.Tape(1) {
				t.Error("two choices have one tape")
			}
			if req.Hash == base.Hash {
				t.Error("two requests have one hash")
			}
		})
	}
}

func TestParseRequestRefuses(t *testing.T) {
	nan := float32(math.NaN())
	for _, tt := range []struct {
		name   string
		change func(*inferencepb.Question, *inferencepb.Request)
	}{
		{"no choices", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Choices = 0 }},
		{"many choices", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Choices = MaxChoices + 1 }},
		{"no tokens", func(_ *inferencepb.Question, r *inferencepb.Request) { r.MaxTokens = 0 }},
		{"many tokens", func(_ *inferencepb.Question, r *inferencepb.Request) { r.MaxTokens = MaxTokens + 1 }},
		{"many alternatives", func(_ *inferencepb.Question, r *inferencepb.Request) { r.TopLogprobs = 21 }},
		{"empty stop", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Stop = []string{""} }},
		{"long stop", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Stop = []string{strings.Repeat("x", 257)} }},
		{"many stops", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Stop = make([]string, 17) }},
		{"short nonce", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Nonce = r.Nonce[1:] }},
		{"short escrow", func(_ *inferencepb.Question, r *inferencepb.Request) { r.Escrow = r.Escrow[1:] }},
		{"no model", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Model = nil }},
		{"two prompts", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Prompt = "x" }},
		{"no prompt", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Messages = nil }},
		{"unknown role", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Messages[0].Role = "root" }},
		{"broken tools", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Tools = "[" }},
		{"broken tool choice", func(q *inferencepb.Question, _ *inferencepb.Request) { q.ToolChoice = "{" }},
		{"broken tool calls", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Messages[2].ToolCalls = "x" }},
		{"temperature", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Sampling.Temperature = 2.5 }},
		{"NaN", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Sampling.TopP = nan }},
		{"NaN bias", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Sampling.LogitBias[0].Bias = nan }},
		{"unsorted bias", func(q *inferencepb.Question, _ *inferencepb.Request) { q.Sampling.LogitBias[1].Token = 3 }},
		{"too large", func(q *inferencepb.Question, _ *inferencepb.Request) {
			q.Messages[0].Content = strings.Repeat("x", MaxRequestBytes)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, r := sample()
			tt.change(q, r)
			if _, _, err := NewRequest(network, testKey(1), q, r); !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("signature", func(t *testing.T) {
		_, signed := sampleRequest(t)
		signed.Signature[0] ^= 1
		if _, err := ParseRequest(network, signed); !errors.Is(err, ErrInvalid) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("network", func(t *testing.T) {
		_, signed := sampleRequest(t)
		if _, err := ParseRequest("main00000000", signed); !errors.Is(err, ErrInvalid) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("encoding", func(t *testing.T) {
		_, signed := sampleRequest(t)
		// Field 3 twice: the last counts, and the bytes are others.
		signed.Body = append(signed.Body, 0x18, 0x02)
		signed.Signature = domainRequest.Sign(testKey(1), network, signed.Body)
		if _, err := ParseRequest(network, signed); !errors.Is(err, ErrInvalid) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("newer fields", func(t *testing.T) {
		_, signed := sampleRequest(t)
		signed.Body = append(signed.Body, 0xa0, 0x06, 0x01) // field 100
		signed.Signature = domainRequest.Sign(testKey(1), network, signed.Body)
		if _, err := ParseRequest(network, signed); err != nil {
			t.Errorf("a field of newer software: %v", err)
		}
	})
}

func TestJoins(t *testing.T) {
	req, _ := sampleRequest(t)
	zero := NewChain(network, req.Hash, 0)
	mid := zero
	for _, tok := range []int32{1, 2, 3} {
		mid.Add(tok)
	}
	other := zero
	for _, tok := range []int32{1, 2, 4} {
		other.Add(tok)
	}
	parse := func(s *inferencepb.Signed) *Receipt {
		r, err := ParseReceipt(network, s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	a := parse(sampleReceipt(t, req, 2, 0, 0, []int32{1, 2, 3}, zero, FinishOpen))
	for _, tt := range []struct {
		name string
		b    *Receipt
		ok   bool
	}{
		{"next", parse(sampleReceipt(t, req, 3, 0, 3, []int32{4, 5}, mid, FinishEOS)), true},
		{"another choice", parse(sampleReceipt(t, req, 3, 1, 3, []int32{4}, mid, FinishEOS)), false},
		{"another prefix", parse(sampleReceipt(t, req, 3, 0, 3, []int32{4}, other, FinishEOS)), false},
		{"a gap", parse(sampleReceipt(t, req, 3, 0, 4, []int32{4}, Chain{4, mid.H}, FinishEOS)), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := a.Joins(tt.b); (err == nil) != tt.ok {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestParseReceiptRefuses(t *testing.T) {
	req, _ := sampleRequest(t)
	chain := NewChain(network, req.Hash, 0)
	for _, tt := range []struct {
		name   string
		change func(*inferencepb.Receipt)
	}{
		{"counts", func(r *inferencepb.Receipt) { r.OutputTokens++ }},
		{"range", func(r *inferencepb.Receipt) { r.First, r.End = 5, 3 }},
		{"finish", func(r *inferencepb.Receipt) { r.Finish = "bored" }},
		{"request", func(r *inferencepb.Receipt) { r.Request = nil }},
		{"chain", func(r *inferencepb.Receipt) { r.ChainAfter = r.ChainAfter[:31] }},
		{"prefix host", func(r *inferencepb.Receipt) { r.PrefixHost = []byte{1} }},
		{"size", func(r *inferencepb.Receipt) { r.HiddenRoot = make([]byte, MaxReceiptBytes) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := sampleReceipt(t, req, 2, 0, 0, []int32{1}, chain, FinishEOS)
			p := new(inferencepb.Receipt)
			if err := proto.Unmarshal(s.Body, p); err != nil {
				t.Fatal(err)
			}
			tt.change(p)
			s, err := SignReceipt(network, testKey(2), p)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ParseReceipt(network, s); err == nil {
				t.Error("it was accepted")
			}
		})
	}
	s := sampleReceipt(t, req, 2, 0, 0, []int32{1}, chain, FinishEOS)
	if _, err := ParseReceipt("main00000000", s); err == nil {
		t.Error("a receipt of another network was accepted")
	}
	s.Signature[9] ^= 1
	if _, err := ParseReceipt(network, s); err == nil {
		t.Error("a forged receipt was accepted")
	}
}

func TestPrice(t *testing.T) {
	c := &inferencepb.Capability{PricePrompt: 2, PriceOutput: 3}
	for _, tt := range []struct {
		finish         FinishReason
		prefix, output int
		want           mesh.Amount
	}{
		{FinishEOS, 0, 5, 2*10 + 3*5}, {FinishCancelled, 0, 5, 2*10 + 3*5}, {FinishAborted, 0, 5, 3 * 5}, {FinishOpen, 0, 5, 3 * 5},
		{FinishEOS, 7, 5, 2*(10+7) + 3*5}, {FinishAborted, 7, 5, 3 * 5}, {FinishOpen, 7, 5, 3 * 5}, {FinishCancelled, 7, 5, 2*(10+7) + 3*5},
		{FinishEOS, 0, 0, 2 * 10}, {FinishNumeric, 7, 0, 2 * (10 + 7)}, {FinishCancelled, 7, 0, 0}, {FinishAborted, 7, 0, 0},
	} {
		if got, err := Price(c, 10, tt.prefix, tt.output, tt.finish); err != nil || got != tt.want {
			t.Errorf("%s after %d, %d tokens: %d, %v, want %d", tt.finish, tt.prefix, tt.output, got, err, tt.want)
		}
	}
	if _, err := Price(&inferencepb.Capability{PriceOutput: math.MaxUint64}, 0, 0, 2, FinishEOS); !errors.Is(err, mesh.ErrOverflow) {
		t.Errorf("an overflow: %v", err)
	}
}

func TestFit(t *testing.T) {
	for _, tt := range []struct {
		prompt, max, context, want int
	}{
		{10, 5, 100, 5}, {10, 90, 100, 90}, {10, 91, 100, -1}, {10, MaxTokens, 100, 90}, {99, MaxTokens, 100, 1},
		{100, MaxTokens, 100, -1}, {200, MaxTokens, 100, -1}, {200, 1, 100, -1}, {10, MaxTokens, 2 * MaxTokens, MaxTokens},
	} {
		got, err := Fit(tt.prompt, tt.max, tt.context)
		if tt.want < 0 {
			var long *TooLongError
			if !errors.As(err, &long) || !errors.Is(err, ErrInvalid) || long.Prompt != tt.prompt {
				t.Errorf("Fit(%d, %d, %d): %d, %v", tt.prompt, tt.max, tt.context, got, err)
			}
		} else if err != nil || got != tt.want {
			t.Errorf("Fit(%d, %d, %d) = %d, %v; want %d", tt.prompt, tt.max, tt.context, got, err, tt.want)
		}
	}
}

func TestParseCall(t *testing.T) {
	req, signed := sampleRequest(t)
	zero := NewChain(network, req.Hash, 1)
	prefix := []int32{1, 2, 3}
	good := sampleReceipt(t, req, 2, 1, 0, prefix, zero, FinishOpen)
	body := func(choice uint32, prefix []int32, from *inferencepb.Signed) []byte {
		b, err := EncodeCall(signed, choice, prefix, from)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	c, err := ParseCall(network, body(1, prefix, good))
	if err != nil {
		t.Fatal(err)
	}
	if c.Before.Next != 3 || c.From == nil || c.From.After != c.Before || c.Request.Hash != req.Hash {
		t.Errorf("call %+v", c)
	}
	if c, err = ParseCall(network, body(1, prefix, nil)); err != nil || c.From != nil {
		t.Errorf("a prefix that the payer supplies: %v", err)
	}
	for _, tt := range []struct {
		name string
		body []byte
	}{
		{"choice", body(2, nil, nil)},
		{"long prefix", body(1, make([]int32, 201), nil)},
		{"negative token", body(1, []int32{-1}, nil)},
		{"receipt of another choice", body(0, prefix, good)},
		{"receipt of other tokens", body(1, []int32{1, 2, 4}, good)},
		{"receipt of more tokens", body(1, prefix[:2], good)},
		{"receipt without tokens", body(1, nil, good)},
		{"too large", make([]byte, MaxCallBytes+1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ParseCall(network, tt.body); !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestParseTaskRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		task *inferencepb.Task
	}{
		{"no model", &inferencepb.Task{}},
		{"short model", &inferencepb.Task{Model: []byte{1}}},
		{"addresses", &inferencepb.Task{ModelName: "x", Addrs: make([]string, 17)}},
		{"size", &inferencepb.Task{ModelName: strings.Repeat("x", MaxTaskBytes)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := SignTask(network, testKey(1), tt.task); err == nil {
				t.Error("it was accepted")
			}
		})
	}
	_, s, err := SignTask(network, testKey(1), &inferencepb.Task{ModelName: "x"})
	if err != nil {
		t.Fatal(err)
	}
	s.Signature[0] ^= 1
	if _, err := ParseTask(network, s); err == nil {
		t.Error("a forged task was accepted")
	}
}

func TestCancelVerifies(t *testing.T) {
	req, _ := sampleRequest(t)
	s, err := SignCancel(network, testKey(1), req.Hash, 3)
	if err != nil {
		t.Fatal(err)
	}
	request, choice, verify, err := ParseCancel(s)
	if err != nil || request != req.Hash || choice != 3 {
		t.Fatalf("%v %d %v", request, choice, err)
	}
	if !verify(network, req.Payer) || verify(network, mesh.AddressOf(testKey(2).Public().(ed25519.PublicKey))) || verify("main00000000", req.Payer) {
		t.Error("the signature is judged wrongly")
	}
}
