package inference

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// resign gives a fuzzed body the signature that it would need, so that what stands
// behind the signature check is reached too.
func resign(d mesh.Domain, key byte, body []byte) *inferencepb.Signed {
	return &inferencepb.Signed{Body: body, Signature: d.Sign(testKey(key), network, body)}
}

func FuzzParseRequest(f *testing.F) {
	req, _ := sampleRequest(f)
	f.Add(req.Body)
	vector, _, err := NewRequest(network, testKey(1), &inferencepb.Question{Model: hash("model"), Prompt: "x", Embed: true},
		&inferencepb.Request{Choices: 1, Nonce: make([]byte, 16)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(vector.Body)
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := ParseRequest(network, resign(domainRequest, 1, body))
		if err != nil {
			return
		}
		again, err := encode(r.Pb)
		if err != nil || !bytes.Equal(again, body) {
			t.Errorf("accepted, and it encodes to other bytes: %v", err)
		}
		r.Tape(0)
	})
}

func FuzzParseReceipt(f *testing.F) {
	req, _ := sampleRequest(f)
	f.Add(sampleReceipt(f, req, 2, 0, 0, []int32{1, 2}, NewChain(network, req.Hash, 0), FinishEOS).Body)
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := ParseReceipt(network, resign(domainReceipt, 2, body))
		if err != nil {
			return
		}
		again, err := encode(r.Pb)
		if err != nil || !bytes.Equal(again, body) {
			t.Errorf("accepted, and it encodes to other bytes: %v", err)
		}
		if r.After.Next-r.Before.Next != r.Pb.GetOutputTokens() {
			t.Errorf("accepted with counts that do not fit: %v", r.Pb)
		}
	})
}

func FuzzParseTask(f *testing.F) {
	_, s, err := SignTask(network, testKey(1), &inferencepb.Task{ModelName: "tiny", Addrs: []string{"/ip4/1.2.3.4/tcp/5"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Body)
	f.Fuzz(func(t *testing.T, body []byte) {
		task, err := ParseTask(network, resign(domainTask, 1, body))
		if err != nil {
			return
		}
		if again, err := encode(task.Pb); err != nil || !bytes.Equal(again, body) {
			t.Errorf("accepted, and it encodes to other bytes: %v", err)
		}
	})
}

func FuzzParseCancel(f *testing.F) {
	req, _ := sampleRequest(f)
	s, err := SignCancel(network, testKey(1), req.Hash, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Body, s.Signature)
	f.Fuzz(func(_ *testing.T, body, signature []byte) {
		_, _, verify, err := ParseCancel(&inferencepb.Signed{Body: body, Signature: signature})
		if err == nil {
			verify(network, req.Payer)
		}
	})
}

func FuzzParseCall(f *testing.F) {
	req, signed := sampleRequest(f)
	from := sampleReceipt(f, req, 2, 1, 0, []int32{1, 2}, NewChain(network, req.Hash, 1), FinishOpen)
	for _, prefix := range [][]int32{nil, {1, 2}} {
		body, err := EncodeCall(signed, 1, prefix, from)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := ParseCall(network, body)
		if err != nil {
			return
		}
		if int(c.Before.Next) != len(c.Prefix) || c.Choice >= c.Request.Pb.GetChoices() {
			t.Errorf("accepted: %+v", c)
		}
	})
}

func FuzzFrames(f *testing.F) {
	req, _ := sampleRequest(f)
	frame := &Frame{Tokens: []FrameToken{{ID: 1, Bytes: []byte("x"), Top: []FrameToken{{ID: 2}}}}, Text: "x", Finish: FinishEOS}
	if err := frame.SetReceipt(sampleReceipt(f, req, 2, 0, 0, []int32{1}, NewChain(network, req.Hash, 0), FinishEOS)); err != nil {
		f.Fatal(err)
	}
	body, err := AppendFrame([]byte(": comment\n\n"), frame)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte("data: {\"vector\":\"AACAPwAAAL8=\",\"receipt\":\"AA==\",\"finish\":\"eos\"}\n\n"))
	f.Add([]byte("data: {\"progress\":{\"queue\":2}}\r\n\r\ndata:{}\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := NewFrameReader(bytes.NewReader(body))
		for {
			got, err := r.Next()
			if err != nil {
				return
			}
			out, err := AppendFrame(nil, got)
			if err != nil {
				t.Fatalf("accepted, and not encodable: %v", err)
			}
			if _, err := NewFrameReader(bytes.NewReader(out)).Next(); err != nil {
				t.Fatalf("its own encoding is refused: %v", err)
			}
			if s, err := got.Signed(); err == nil {
				proto.Size(s)
			}
		}
	})
}

func FuzzParseRefusal(f *testing.F) {
	f.Add(429, []byte(`{"code":"busy","wait_ms":5}`))
	f.Add(400, []byte(`{"code":"too_long","prompt":5,"max_tokens":9,"context":9}`))
	f.Add(0, []byte(`{"code":"unheard of"}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		r := ParseRefusal(status, body)
		if r.Code != CodeInternal && r.Status() != status || r.WaitMs < 0 {
			t.Errorf("%+v for status %d", r, status)
		}
	})
}

// FuzzText checks that text is a pure function of the tokens: whoever takes over after
// any token releases the same rest, and a stop string is never released.
func FuzzText(f *testing.F) {
	f.Add("hello STOP", "STOP", "LL", 3)
	f.Add("aabaabaac", "aabaac", "b", 5)
	f.Add("é世🌍\xe4", "世", "\xe4", 2)
	f.Fuzz(func(t *testing.T, in, stop1, stop2 string, seam int) {
		if len(in) > 500 || stop1 == "" || stop2 == "" {
			return
		}
		stops := []string{stop1, stop2}
		run := func(seam int) (out string) {
			text, stopped := NewText(new(runes), stops), false
			for i := 0; i < len(in) && !stopped; i++ {
				if i == seam {
					text = NewText(new(runes), stops)
					for j := range i {
						text.Add(int32(in[j]))
					}
				}
				var more string
				more, stopped = text.Add(int32(in[i]))
				out += more
			}
			if !stopped {
				out += text.End()
			}
			return out
		}
		whole := run(-1)
		if got := run(seam); got != whole {
			t.Errorf("with a seam at %d: %q, without: %q", seam, got, whole)
		}
		if bytes.Contains([]byte(whole), []byte(stop1)) || bytes.Contains([]byte(whole), []byte(stop2)) {
			t.Errorf("%q has a stop string of %q", whole, stops)
		}
	})
}
