package main

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzAnswer reads a stream of the API. What is shown is what is kept, and an answer
// without its end mark is an error.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"Me\"}}]}\n\n" +
		"data: {\"choices\":[{\"delta\":{\"content\":\"sh\"},\"finish_reason\":\"stop\"}]}\n\n" +
		"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n"))
	f.Add([]byte("data: {\"error\":{\"message\":\"no\"}}\n\n"))
	f.Add([]byte(": comment\r\nevent: x\r\ndata: {\"choices\":[null]}\r\n\r\ndata: [DONE]"))
	f.Add([]byte("data: {\"choices\":[{\"delta\":{\"content\":\"\xff\"}}]}\n"))
	f.Add(append([]byte("data: "), bytes.Repeat([]byte("x"), 1<<20+1)...))
	f.Fuzz(func(t *testing.T, body []byte) {
		a := new(chatAnswer)
		var out strings.Builder
		err := a.read(bytes.NewReader(body), &out)
		if out.String() != a.Text {
			t.Errorf("shown %q, kept %q", out.String(), a.Text)
		}
		if err == nil && !bytes.Contains(body, []byte("[DONE]")) {
			t.Error("an answer without its end mark passes")
		}
	})
}
