package inference

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
)

// runes releases single characters and holds back what is none yet.
type runes struct{ pending []byte }

func (r *runes) Add(t int32) string {
	r.pending = append(r.pending, byte(t))
	if !utf8.FullRune(r.pending) {
		return ""
	}
	s := string(r.pending)
	r.pending = nil
	return s
}

func (r *runes) Flush() string {
	if len(r.pending) == 0 {
		return ""
	}
	r.pending = nil
	return "\uFFFD"
}

func TestText(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		stops    []string
		want     string
		stopped  bool
	}{
		{"plain", "hello", nil, "hello", false},
		{"stop", "hello END more", []string{"END"}, "hello ", true},
		{"at once", "END", []string{"END"}, "", true},
		{"partial", "hello EN", []string{"END"}, "hello EN", false},
		{"overlap", "aabaabaac", []string{"aabaac"}, "aab", true},
		{"the first of two", "abcdef", []string{"def", "cd"}, "ab", true},
		{"one within another", "xabcy", []string{"abc", "b"}, "xa", true},
		{"characters", "é世🌍", []string{"🌍"}, "é世", true},
		{"broken end", "a\xe4", nil, "a\uFFFD", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := NewText(new(runes), tt.stops)
			var out string
			stopped := false
			for i := 0; i < len(tt.in) && !stopped; i++ {
				var more string
				more, stopped = text.Add(int32(tt.in[i]))
				out += more
			}
			if !stopped {
				out += text.End()
			}
			if out != tt.want || stopped != tt.stopped {
				t.Errorf("%q %v, want %q %v", out, stopped, tt.want, tt.stopped)
			}
		})
	}
}

func TestFrames(t *testing.T) {
	req, _ := sampleRequest(t)
	receipt := sampleReceipt(t, req, 2, 0, 0, []int32{7}, NewChain(network, req.Hash, 0), FinishOpen)
	f := &Frame{Tokens: []FrameToken{{ID: 7, LogProb: -1}}, Text: "x\n\ny"}
	if err := f.SetReceipt(receipt); err != nil {
		t.Fatal(err)
	}
	var body []byte
	for _, x := range []*Frame{{Progress: &Progress{Queue: 3, Steps: 9}}, f} {
		var err error
		if body, err = AppendFrame(append(body, ": a comment\nevent: x\n"...), x); err != nil {
			t.Fatal(err)
		}
	}
	r := NewFrameReader(bytes.NewReader(body))
	beat, err := r.Next()
	if err != nil || !beat.Heartbeat() || *beat.Progress != (Progress{3, 9}) {
		t.Errorf("heartbeat %+v, %v", beat, err)
	}
	got, err := r.Next()
	if err != nil || got.Text != f.Text || got.Tokens[0].ID != 7 {
		t.Fatalf("frame %+v, %v", got, err)
	}
	signed, err := got.Signed()
	if err != nil || !proto.Equal(signed, receipt) {
		t.Errorf("receipt %v, %v", signed, err)
	}
	if _, err := r.Next(); err == nil {
		t.Error("a frame after the last")
	}
	for name, doc := range map[string]string{
		"no receipt": `{"tokens":[{"id":1}]}`, "finish": `{"finish":"bored","receipt":"AA=="}`, "negative": `{"tokens":[{"id":-1}],"receipt":"AA=="}`,
		"text alone": `{"text":"x"}`, "nested": `{"tokens":[{"id":1,"top":[{"id":1,"top":[{"id":2}]}]}],"receipt":"AA=="}`,
		"many tokens": `{"receipt":"AA==","tokens":[` + strings.Repeat(`{"id":1},`, 64) + `{"id":1}]}`, "large": strings.Repeat(" ", MaxFrameBytes+1),
	} {
		if _, err := DecodeFrame([]byte(doc)); err == nil {
			t.Errorf("%s: it was accepted", name)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code string
	}{
		{ErrUnknownModel, CodeUnknownModel}, {&TooLongError{Prompt: 10, MaxTokens: 10, Context: 15}, CodeTooLong},
		{ErrInvalid, CodeInvalid}, {ErrBusy, CodeBusy}, {errors.New("x"), CodeInternal},
		{&Refusal{Code: CodeReplay, Message: "again"}, CodeReplay},
	} {
		r := Refuse(tt.err)
		doc, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		back := ParseRefusal(r.Status(), doc)
		if r.Code != tt.code || *back != *r {
			t.Errorf("%v: %+v, then %+v", tt.err, r, back)
		}
		var long *TooLongError
		if tt.code == CodeTooLong && (!errors.As(back, &long) || long.Context != 15) {
			t.Errorf("the numbers are lost: %+v", back)
		}
	}
	for code, want := range map[string]error{CodeUnpaid: ErrUnpaid, CodeTooDear: ErrTooDear, CodeBusy: ErrBusy} {
		if r := (&Refusal{Code: code}); !errors.Is(r, want) {
			t.Errorf("%s is no %v", code, want)
		}
	}
	for name, doc := range map[string]string{
		"nonsense": "x", "another status": `{"code":"busy"}`, "numbers that fit": `{"code":"too_long","prompt":1,"max_tokens":1,"context":9}`,
	} {
		if r := ParseRefusal(400, []byte(doc)); r.Code != CodeInternal {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
