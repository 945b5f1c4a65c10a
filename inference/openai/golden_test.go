package openai

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

var update = flag.Bool("update", false, "write the golden files")

// exchange runs one request in virtual time and writes request and response down.
func exchange(t *testing.T, b Backend, method, path, body string) string {
	t.Helper()
	var out string
	synctest.Test(t, func(t *testing.T) {
		h := New(Config{Backend: b, Identity: func() Identity {
			return Identity{Peer: mesh.Address{1, 2, 3}, Network: "dev0123abcd", Version: "1.2.3"}
		}})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		res := w.Result()
		var s strings.Builder
		fmt.Fprintf(&s, "> %s %s\n", method, path)
		if body != "" {
			fmt.Fprintf(&s, "> %s\n", body)
		}
		fmt.Fprintf(&s, "\n< %d\n", res.StatusCode)
		var names []string
		for name := range res.Header {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			fmt.Fprintf(&s, "< %s: %s\n", name, res.Header.Get(name))
		}
		s.WriteString("\n" + w.Body.String())
		out = s.String()
	})
	return out
}

func TestGolden(t *testing.T) {
	hello := said(0, inference.FinishEOS, "Hel", "lo", " <b>&é")
	both := append(said(1, inference.FinishLength, "B"), said(0, inference.FinishStop, "A")...)
	called := said(0, inference.FinishEOS, "Let me see.", "\n<tool", "_call>\n{\"name\": \"weather\", \"argu",
		"ments\": {\"city\": \"Oslo\", \"days\": 1.0}}\n</tool_call>", "\n<tool_call>{\"name\":\"now\"}</tool_call>")
	const (
		user  = `"messages":[{"role":"user","content":"hi"}]`
		tools = `"tools":[{"type":"function","function":{"name":"weather"}},{"type":"function","function":{"name":"now"}}]`
	)
	chat, text, embed := "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
	for _, tc := range []struct {
		name, path, body string
		backend          *fakeBackend
	}{
		{"chat", chat, `{"model":"tiny",` + user + `}`, &fakeBackend{events: hello}},
		{"chat-stream", chat, `{"model":"tiny","stream":true,` + user + `}`, &fakeBackend{events: hello}},
		{"chat-stream-usage", chat, `{"model":"tiny","stream":true,"stream_options":{"include_usage":true},` + user + `}`, &fakeBackend{events: hello}},
		{"chat-logprobs", chat, `{"model":"tiny","logprobs":true,"top_logprobs":2,` + user + `}`, &fakeBackend{events: hello}},
		{"chat-logprobs-stream", chat, `{"model":"tiny","logprobs":true,"top_logprobs":2,"stream":true,` + user + `}`, &fakeBackend{events: hello}},
		{"chat-n", chat, `{"model":"tiny","n":2,` + user + `}`, &fakeBackend{events: both}},
		{"chat-n-stream", chat, `{"model":"tiny","n":2,"stream":true,` + user + `}`, &fakeBackend{events: both}},
		{"chat-tools", chat, `{"model":"tiny",` + tools + `,` + user + `}`, &fakeBackend{events: called}},
		{"chat-tools-stream", chat, `{"model":"tiny","stream":true,` + tools + `,` + user + `}`, &fakeBackend{events: called}},
		{"chat-tools-none", chat, `{"model":"tiny","tool_choice":"none",` + tools + `,` + user + `}`, &fakeBackend{events: called}},
		{"chat-numeric", chat, `{"model":"tiny",` + user + `}`, &fakeBackend{events: said(0, inference.FinishNumeric, "A")}},
		{"chat-numeric-stream", chat, `{"model":"tiny","stream":true,` + user + `}`, &fakeBackend{events: said(0, inference.FinishNumeric, "A")}},
		{"chat-broken-stream", chat, `{"model":"tiny","stream":true,` + user + `}`,
			&fakeBackend{events: hello[:2], err: fmt.Errorf("ask: %w: three were tried", inference.ErrNoHost)}},
		{"chat-no-end", chat, `{"model":"tiny",` + user + `}`, &fakeBackend{events: hello[:2]}},
		{"chat-unknown-model", chat, `{"model":"gpt-9","stream":true,` + user + `}`, &fakeBackend{err: fmt.Errorf("find hosts: %w", inference.ErrUnknownModel)}},
		{"chat-no-host", chat, `{"model":"tiny",` + user + `}`, &fakeBackend{err: inference.ErrNoHost}},
		{"chat-unpaid", chat, `{"model":"tiny",` + user + `}`, &fakeBackend{err: fmt.Errorf("%w: the host wants 2 GNK", inference.ErrUnpaid)}},
		{"chat-too-dear", chat, `{"model":"tiny","mesh_price_cap":2,` + user + `}`, &fakeBackend{err: fmt.Errorf("%w: hosts ask 3 ngonka", inference.ErrTooDear)}},
		{"chat-busy", chat, `{"model":"tiny",` + user + `}`, &fakeBackend{err: inference.ErrBusy}},
		{"chat-busy-wait", chat, `{"model":"tiny",` + user + `}`,
			&fakeBackend{err: fmt.Errorf("ask: %w", &inference.Refusal{Code: inference.CodeBusy, WaitMs: 2300, Message: "4 of the hosts are busy"})}},
		{"chat-too-long", chat, `{"model":"tiny",` + user + `}`, &fakeBackend{err: fmt.Errorf("ask: %w", &inference.TooLongError{Prompt: 505, MaxTokens: 10, Context: 512})}},
		{"chat-refused", chat, `{"model":"tiny",` + user + `}`, &fakeBackend{err: fmt.Errorf("%w: token 9 is not in the vocabulary", inference.ErrInvalid)}},
		{"chat-internal", chat, `{"model":"tiny",` + user + `}`, &fakeBackend{err: errors.New("disk on fire")}},
		{"chat-bad-json", chat, `{"model":"tiny",}`, &fakeBackend{}},
		{"chat-bad-field", chat, `{"model":"tiny","temperature":"0.7",` + user + `}`, &fakeBackend{}},
		{"completion", text, `{"model":"tiny","prompt":"Once","logprobs":2}`, &fakeBackend{events: hello}},
		{"completion-stream", text, `{"model":"tiny","prompt":"Once","logprobs":2,"stream":true,"stream_options":{"include_usage":true}}`, &fakeBackend{events: hello}},
		{"completion-tokens", text, `{"model":"tiny","prompt":[1,2,3]}`, &fakeBackend{events: hello}},
		{"embedding", embed, `{"model":"tiny","input":"The food","encoding_format":"float","dimensions":3,"user":"me"}`, &fakeBackend{}},
		{"embedding-base64", embed, `{"model":"tiny","input":"The food","encoding_format":"base64"}`, &fakeBackend{}},
		{"embedding-list", embed, `{"model":"tiny","input":["a","bb"]}`, &fakeBackend{}},
		{"embedding-tokens", embed, `{"model":"tiny","input":[[1,2],[3]]}`, &fakeBackend{}},
		{"embedding-bad-field", embed, `{"model":"tiny","input":"a","dimensions":"3"}`, &fakeBackend{}},
		{"embedding-width", embed, `{"model":"tiny","input":"a","dimensions":2}`, &fakeBackend{}},
		{"embedding-none", embed, `{"model":"tiny","input":"a"}`, &fakeBackend{err: fmt.Errorf("ask: %w", &inference.EmbedError{})}},
		{"embedding-unknown-model", embed, `{"model":"gpt-9","input":"a"}`, &fakeBackend{err: fmt.Errorf("find hosts: %w", inference.ErrUnknownModel)}},
		{"embedding-too-long", embed, `{"model":"tiny","input":"a"}`, &fakeBackend{err: fmt.Errorf("ask: %w", &inference.TooLongError{Prompt: 600, Context: 512})}},
		{"embedding-numeric", embed, `{"model":"tiny","input":"a"}`, &fakeBackend{events: []inference.Event{{Finish: inference.FinishNumeric}}}},
		{"embedding-no-vector", embed, `{"model":"tiny","input":"a"}`, &fakeBackend{events: []inference.Event{{Finish: inference.FinishEOS}}}},
		{"get-embedding", embed, "", &fakeBackend{}},
		{"get-models", "/v1/models", "", &fakeBackend{}},
		{"get-model", "/v1/models/org/big", "", &fakeBackend{}},
		{"get-model-escaped", "/v1/models/org%2Fbig", "", &fakeBackend{}},
		{"get-model-hash", "/v1/models/" + fakeModel.ID.String(), "", &fakeBackend{}},
		{"get-model-unknown", "/v1/models/none", "", &fakeBackend{}},
		{"get-models-failed", "/v1/models", "", &fakeBackend{err: errors.New("disk on fire")}},
		{"get-identity", "/v1/identity", "", &fakeBackend{}},
		{"get-chat", chat, "", &fakeBackend{}},
		{"get-nothing", "/v1/nothing", "", &fakeBackend{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			method := http.MethodPost
			if tc.body == "" {
				method = http.MethodGet
			}
			got := exchange(t, tc.backend, method, tc.path, tc.body)
			file := filepath.Join("testdata", tc.name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal([]byte(got), want) {
				t.Errorf("differs from %s; got:\n%s", file, got)
			}
		})
	}
}
