package openai

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

const user = `"messages":[{"role":"user","content":"hi"}]`

func TestConstraint(t *testing.T) {
	for _, c := range []struct{ fields, kind, text string }{
		{`"response_format":{"type":"text"},`, "", ""},
		{`"response_format":null,`, "", ""},
		{`"response_format":{"type":"json_object"},`, "json_object", ""},
		{`"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{ "type": "object", "properties": {"z": {"const": 1.0}, "a": {}} }}},`,
			"json_schema", `{"type":"object","properties":{"z":{"const":1.0},"a":{}}}`},
		{`"guided_json":"{ \"type\": \"null\" }",`, "json_schema", `{"type":"null"}`},
		{`"grammar":"root ::= \"a\"\n",`, "gbnf", "root ::= \"a\"\n"},
	} {
		for _, chat := range []bool{true, false} {
			decode, body := decodeCompletion, `{`+c.fields+`"prompt":"x"}`
			if chat {
				decode, body = decodeChat, `{`+c.fields+user+`}`
			}
			call, err := decode([]byte(body))
			if err != nil {
				t.Errorf("%s: %v", c.fields, err)
				continue
			}
			if got := call.asks[0].Constraint; got.GetKind() != c.kind || got.GetText() != c.text || (got == nil) != (c.kind == "") {
				t.Errorf("%s: %v", c.fields, got)
			}
		}
	}
}

func TestChatAsk(t *testing.T) {
	c, err := decodeChat([]byte(`{
		"model": "tiny", "n": 3, "seed": -1, "max_tokens": 5, "max_completion_tokens": 6.0, "stop": ["a", "b"],
		"temperature": 0.5, "top_p": 1, "top_k": -1, "min_p": 0.25, "frequency_penalty": -2, "presence_penalty": 2,
		"repetition_penalty": 1.0, "ignore_eos": true, "mesh_price_cap": 250, "logit_bias": {"7": 1.5, "3": -100, "5": 0},
		"logprobs": true, "top_logprobs": 20, "stream": true, "stream_options": {"include_usage": true},
		"tools": [ {"type": "function", "function": {"name": "f", "parameters": {"z": 1.0, "a": "<é>"}}} ],
		"tool_choice": {"type": "function", "function": {"name": "f"}},
		"response_format": {"type": "text"}, "modalities": ["text"], "reasoning_effort": "low",
		"chat_template_kwargs": {"enable_thinking": false, "a": 1.50, "b": null, "c": "<x>"},
		"user": "me", "metadata": {"k": "v"}, "store": true, "whatever": [1, {"x": null}], "audio": null,
		"messages": [
			{"role": "developer", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
			{"role": "user", "name": "bob", "content": "hi"},
			{"role": "assistant", "content": null, "tool_calls": [
				{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{ \"b\": 2, \"a\": [1e3] }"}},
				{"id": "c2", "type": "function", "function": {"name": "f", "arguments": "oops"}},
				{"id": "c3", "function": {"name": "f"}}]},
			{"role": "tool", "tool_call_id": "c1", "content": ""}
		]}`))
	if err != nil {
		t.Fatal(err)
	}
	if !c.chat || !c.stream || !c.usage || !c.tools || !c.logprobs || c.choices != 3 || len(c.asks) != 1 {
		t.Errorf("call: %+v", c)
	}
	a := c.asks[0]
	if a.Model != "tiny" || a.Choices != 3 || a.MaxTokens != 6 || !a.IgnoreEOS || a.TokenCap != 250 || !a.LogProbs || a.TopLogProbs != 20 ||
		*a.Seed != math.MaxUint64 || strings.Join(a.Stop, "|") != "a|b" {
		t.Errorf("ask: %+v", a)
	}
	if want := `[{"type":"function","function":{"name":"f","parameters":{"z":1.0,"a":"<é>"}}}]`; a.Tools != want {
		t.Errorf("tools %s, want %s", a.Tools, want)
	}
	if want := `{"type":"function","function":{"name":"f"}}`; a.ToolChoice != want {
		t.Errorf("tool choice %s, want %s", a.ToolChoice, want)
	}
	if want := `{"a":1.50,"b":null,"c":"\u003cx\u003e","enable_thinking":false}`; a.TemplateArgs != want {
		t.Errorf("template arguments %s, want %s", a.TemplateArgs, want)
	}
	wantSampling := &inferencepb.Sampling{Temperature: 0.5, MinP: 0.25, FrequencyPenalty: -2, PresencePenalty: 2,
		LogitBias: []*inferencepb.LogitBias{{Token: 3, Bias: -100}, {Token: 7, Bias: 1.5}}}
	if !proto.Equal(a.Sampling, wantSampling) {
		t.Errorf("sampling %v, want %v", a.Sampling, wantSampling)
	}
	wantMessages := []*inferencepb.Message{
		{Role: "system", Content: "one\ntwo"},
		{Role: "user", Name: "bob", Content: "hi"},
		{Role: "assistant", ToolCalls: `[{"id":"c1","type":"function","function":{"name":"f","arguments":{"b":2,"a":[1e3]}}},` +
			`{"id":"c2","type":"function","function":{"name":"f","arguments":"oops"}},{"id":"c3","type":"function","function":{"name":"f","arguments":{}}}]`},
		{Role: "tool", ToolCallId: "c1"},
	}
	for i, m := range a.Messages {
		if !proto.Equal(m, wantMessages[i]) {
			t.Errorf("message %d: %v, want %v", i, m, wantMessages[i])
		}
	}
}

func TestDefaults(t *testing.T) {
	for _, tc := range []struct {
		body        string
		temperature float32
		topP        float32
	}{
		{`{` + user + `}`, 0, 0},
		{`{"temperature":null,"seed":null,"stop":null,"tools":null,"tool_choice":null,"stream":null,"stream_options":null,` + user + `}`, 0, 0},
		{`{"n":2,` + user + `}`, 1, 0},
		{`{"n":2,"temperature":0,` + user + `}`, 0, 0},
		{`{"temperature":-0.0,"top_p":0,` + user + `}`, 0, math.SmallestNonzeroFloat32},
		{`{"tools":[],"tool_choice":"auto",` + user + `}`, 0, 0},
	} {
		c, err := decodeChat([]byte(tc.body))
		if err != nil {
			t.Fatalf("%s: %v", tc.body, err)
		}
		a := c.asks[0]
		want := &inferencepb.Sampling{Temperature: tc.temperature, TopP: tc.topP}
		if !proto.Equal(a.Sampling, want) || math.Signbit(float64(a.Sampling.Temperature)) {
			t.Errorf("%s: sampling %v, want %v", tc.body, a.Sampling, want)
		}
		if a.Seed != nil || a.MaxTokens != 0 || a.Tools != "" || a.ToolChoice != "" || a.Stop != nil || c.stream {
			t.Errorf("%s: %+v", tc.body, a)
		}
	}
}

func TestBadRequests(t *testing.T) {
	deep := strings.Repeat("[", 100) + strings.Repeat("]", 100)
	for _, tc := range []struct{ path, body, param, message string }{
		{"chat", ``, "", "empty"},
		{"chat", `[]`, "", "an array"},
		{"chat", `{} {}`, "", "not usable JSON"},
		{"chat", "{\"model\":\"\xff\"}", "", "UTF-8"},
		{"chat", `{"a":` + deep + `}`, "", "nested more than 64"},
		{"chat", `{"a":` + strings.Repeat("[", 20000), "", "not usable JSON"},
		{"chat", `{"a":[` + strings.Repeat("1,", maxValues) + `1]}`, "", "values"},
		{"chat", `{"model":"a","model":"b",` + user + `}`, "", `"model" occurs twice`},
		{"chat", `{"x":{"y":1,"y":2},` + user + `}`, "", `"y" occurs twice`},
		{"chat", `{"model":5,` + user + `}`, "model", "want a string, got a number"},
		{"chat", `{}`, "messages", "0 messages"},
		{"chat", `{"messages":{}}`, "messages", "want an array, got an object"},
		{"chat", `{"messages":["hi"]}`, "messages[0]", "want an object, got a string"},
		{"chat", `{"messages":[{"role":"function","content":""}]}`, "messages[0].role", "function"},
		{"chat", `{"messages":[{"content":""}]}`, "messages[0].role", "allowed"},
		{"chat", `{"messages":[{"role":"user"}]}`, "messages[0].content", "missing"},
		{"chat", `{"messages":[{"role":"user","content":7}]}`, "messages[0].content", "want a string or an array"},
		{"chat", `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}]}`, "messages[0].content[0].type", "images, audio and files are not supported"},
		{"chat", `{"messages":[{"role":"user","content":[{"type":"input_audio"}]}]}`, "messages[0].content[0].type", "not supported"},
		{"chat", `{"messages":[{"role":"user","content":[{"type":"text"}]}]}`, "messages[0].content[0].text", "missing"},
		{"chat", `{"messages":[{"role":"user","content":["hi"]}]}`, "messages[0].content[0]", "want an object"},
		{"chat", `{"messages":[{"role":"assistant","tool_calls":[{"type":"custom"}]}]}`, "messages[0].tool_calls[0].type", "custom"},
		{"chat", `{"messages":[{"role":"assistant","tool_calls":[{"function":{}}]}]}`, "messages[0].tool_calls[0].function.name", "missing"},
		{"chat", `{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{}}}]}]}`, "messages[0].tool_calls[0].function.arguments", "want a string"},
		{"chat", `{"temperature":2.1,` + user + `}`, "temperature", "from 0 to 2"},
		{"chat", `{"temperature":1e999,` + user + `}`, "temperature", "from 0 to 2"},
		{"chat", `{"top_p":-1,` + user + `}`, "top_p", "from 0 to 1"},
		{"chat", `{"top_k":1.5,` + user + `}`, "top_k", "whole number"},
		{"chat", `{"repetition_penalty":0,` + user + `}`, "repetition_penalty", "over 0"},
		{"chat", `{"n":0,` + user + `}`, "n", "from 1 to 16"},
		{"chat", `{"n":17,` + user + `}`, "n", "from 1 to 16"},
		{"chat", `{"max_tokens":0,` + user + `}`, "max_tokens", "from 1"},
		{"chat", `{"max_completion_tokens":1e30,` + user + `}`, "max_completion_tokens", "whole number"},
		{"chat", `{"mesh_price_cap":0,` + user + `}`, "mesh_price_cap", "from 1"},
		{"chat", `{"mesh_price_cap":"5",` + user + `}`, "mesh_price_cap", "whole number"},
		{"chat", `{"seed":1.5,` + user + `}`, "seed", "whole number"},
		{"chat", `{"seed":18446744073709551616,` + user + `}`, "seed", "64 bits"},
		{"chat", `{"stop":5,` + user + `}`, "stop", "string or an array"},
		{"chat", `{"stop":[""],` + user + `}`, "stop", "0 bytes"},
		{"chat", `{"stop":["a",null],` + user + `}`, "stop", "null"},
		{"chat", `{"stop":["` + strings.Repeat("a", 257) + `"],` + user + `}`, "stop", "257 bytes"},
		{"chat", `{"stop":["a"` + strings.Repeat(`,"a"`, 16) + `],` + user + `}`, "stop", "17 strings"},
		{"chat", `{"stream":1,` + user + `}`, "stream", "want a boolean"},
		{"chat", `{"stream_options":{},` + user + `}`, "stream_options", "stream set"},
		{"chat", `{"stream":true,"stream_options":{"include_usage":"yes"},` + user + `}`, "stream_options.include_usage", "want a boolean"},
		{"chat", `{"logprobs":5,` + user + `}`, "logprobs", "want a boolean"},
		{"chat", `{"top_logprobs":5,` + user + `}`, "top_logprobs", "logprobs set"},
		{"chat", `{"logprobs":true,"top_logprobs":21,` + user + `}`, "top_logprobs", "from 0 to 20"},
		{"chat", `{"logit_bias":{"the":1},` + user + `}`, "logit_bias.the", "token ID"},
		{"chat", `{"logit_bias":{"5":101},` + user + `}`, "logit_bias.5", "from -100 to 100"},
		{"chat", `{"logit_bias":{"5":1,"05":1},` + user + `}`, "logit_bias", "twice"},
		{"chat", `{"tools":[{"type":"web_search"}],` + user + `}`, "tools[0].type", "web_search"},
		{"chat", `{"tools":[{"type":"function","function":{}}],` + user + `}`, "tools[0].function.name", "missing"},
		{"chat", `{"tools":[{"type":"function","function":{"name":"f","parameters":5}}],` + user + `}`, "tools[0].function.parameters", "want an object"},
		{"chat", `{"tool_choice":"required",` + user + `}`, "tool_choice", "no tools"},
		{"chat", `{"tool_choice":"always",` + user + `}`, "tool_choice", "allowed"},
		{"chat", `{"tool_choice":true,` + user + `}`, "tool_choice", "want a string or an object"},
		{"chat", `{"tool_choice":{"type":"function","function":{"name":"g"}},"tools":[{"type":"function","function":{"name":"f"}}],` + user + `}`, "tool_choice", `"g" is not among`},
		{"chat", `{"functions":[],` + user + `}`, "functions", "use tools"},
		{"chat", `{"modalities":["text","audio"],` + user + `}`, "modalities", "only text"},
		{"chat", `{"audio":{},` + user + `}`, "audio", "not supported"},
		{"chat", `{"response_format":{"type":"xml"},` + user + `}`, "response_format.type", "xml"},
		{"chat", `{"response_format":"text",` + user + `}`, "response_format", "want an object"},
		{"chat", `{"response_format":{"type":"json_schema"},` + user + `}`, "response_format.json_schema.schema", "want a JSON schema"},
		{"chat", `{"response_format":{"type":"json_schema","json_schema":{"schema":{"properties":{"a":{"type":"integer","multipleOf":3}}}}},` + user + `}`,
			"response_format.json_schema.schema", `#/properties/a/multipleOf: the keyword "multipleOf" is not supported`},
		{"chat", `{"response_format":{"type":"json_object"},"grammar":"root ::= \"a\"",` + user + `}`, "grammar", "together with response_format"},
		{"chat", `{"response_format":{"type":"json_object"},"ignore_eos":true,` + user + `}`, "ignore_eos", "together with response_format"},
		{"chat", `{"response_format":{"type":"json_object"},"tools":[{"type":"function","function":{"name":"f"}}],` + user + `}`, "tools", "together with"},
		{"chat", `{"grammar":"root ::= x",` + user + `}`, "grammar", `"x" is not defined`},
		{"chat", `{"grammar":5,` + user + `}`, "grammar", "want a string"},
		{"text", `{"prompt":"a","guided_json":"{"}`, "guided_json", "unexpected"},
		{"text", `{"prompt":"a","guided_json":[]}`, "guided_json", "want a JSON schema"},
		{"text", `{}`, "prompt", "missing"},
		{"text", `{"prompt":""}`, "prompt", "empty"},
		{"text", `{"prompt":["a",""]}`, "prompt", "empty"},
		{"text", `{"prompt":[]}`, "prompt", "missing"},
		{"text", `{"prompt":[[]]}`, "prompt[0]", "empty"},
		{"text", `{"prompt":[1,-1]}`, "prompt", "entry 1 is not a token ID"},
		{"text", `{"prompt":[1,"a"]}`, "prompt", "entry 1 is not a token ID"},
		{"text", `{"prompt":["a",[1]]}`, "prompt", "mixes"},
		{"text", `{"prompt":["a"` + strings.Repeat(`,"a"`, 128) + `]}`, "prompt", "129 prompts"},
		{"text", `{"prompt":{}}`, "prompt", "want an array"},
		{"text", `{"prompt":"a","echo":true}`, "echo", "not supported"},
		{"text", `{"prompt":"a","suffix":"b"}`, "suffix", "not supported"},
		{"text", `{"prompt":"a","best_of":2}`, "best_of", "use n"},
		{"text", `{"prompt":"a","logprobs":true}`, "logprobs", "whole number"},
		{"embed", `{`, "", "not usable JSON"},
		{"embed", `{}`, "input", "missing"},
		{"embed", `{"input":null}`, "input", "missing"},
		{"embed", `{"input":""}`, "input", "empty"},
		{"embed", `{"input":["a",""]}`, "input[1]", "empty"},
		{"embed", `{"input":[]}`, "input", "missing"},
		{"embed", `{"input":[[]]}`, "input[0]", "empty"},
		{"embed", `{"input":[1.5]}`, "input[0]", "want a string or an array of token IDs, got a number"},
		{"embed", `{"input":[1,2147483648]}`, "input", "entry 1 is not a token ID"},
		{"embed", `{"input":[[1],"a"]}`, "input", "mixes"},
		{"embed", `{"input":{"text":"a"}}`, "input", "want an array, got an object"},
		{"embed", `{"input":["a"` + strings.Repeat(`,"a"`, 2048) + `]}`, "input", "2049 inputs"},
		{"embed", `{"input":"a","model":1}`, "model", "want a string"},
		{"embed", `{"input":"a","encoding_format":"int8"}`, "encoding_format", "float and base64"},
		{"embed", `{"input":"a","encoding_format":1}`, "encoding_format", "want a string"},
		{"embed", `{"input":"a","dimensions":0}`, "dimensions", "from 1"},
		{"embed", `{"input":"a","dimensions":131073}`, "dimensions", "to 131072"},
		{"embed", `{"input":"a","dimensions":2.5}`, "dimensions", "whole number"},
	} {
		var err error
		switch tc.path {
		case "chat":
			_, err = decodeChat([]byte(tc.body))
		case "text":
			_, err = decodeCompletion([]byte(tc.body))
		case "embed":
			_, err = decodeEmbedding([]byte(tc.body))
		}
		name := tc.body[:min(len(tc.body), 60)]
		var e *apiError
		if !errors.As(err, &e) {
			t.Errorf("%s: got %v, want an apiError", name, err)
			continue
		}
		if e.status != 400 || e.Param != tc.param || !strings.Contains(e.Message, tc.message) {
			t.Errorf("%s: status %d, param %q, message %q; want 400, %q, …%s…", name, e.status, e.Param, e.Message, tc.param, tc.message)
		}
	}
}

func TestPrompts(t *testing.T) {
	for _, tc := range []struct {
		prompt, want string
	}{
		{`"a"`, `a[]`}, {`["a","b"]`, `a[] b[]`}, {`[1,2]`, `[1 2]`}, {`[[1],[2,3]]`, `[1] [2 3]`},
	} {
		c, err := decodeCompletion([]byte(`{"n":2,"prompt":` + tc.prompt + `}`))
		if err != nil {
			t.Fatalf("%s: %v", tc.prompt, err)
		}
		var got []string
		for _, a := range c.asks {
			got = append(got, fmt.Sprintf("%s%v", a.Prompt, a.PromptTokens))
			if a.MaxTokens != 16 || a.Choices != 2 {
				t.Errorf("%s: %+v", tc.prompt, a)
			}
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: got %v, want %s", tc.prompt, got, tc.want)
		}
	}
}

// checkCall fails if a decoded call would be refused by the rules of requests for
// anything but its size.
func checkCall(t *testing.T, c *call) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	for _, a := range c.asks {
		if a.Tools != "" && !json.Valid([]byte(a.Tools)) {
			t.Errorf("tools %q are not JSON", a.Tools)
		}
		q := &inferencepb.Question{Model: make([]byte, 32), Messages: a.Messages, Prompt: a.Prompt, PromptTokens: a.PromptTokens,
			Tools: a.Tools, ToolChoice: a.ToolChoice, Sampling: a.Sampling}
		r := &inferencepb.Request{Choices: uint32(a.Choices), MaxTokens: uint32(max(1, a.MaxTokens)), Stop: a.Stop,
			Logprobs: a.LogProbs, TopLogprobs: uint32(a.TopLogProbs), Nonce: make([]byte, 16)}
		if _, _, err := inference.NewRequest("dev00000000", key, q, r); err != nil && proto.Size(q) < inference.MaxRequestBytes-1000 {
			t.Errorf("decoded, but: %v", err)
		}
	}
}

func FuzzChat(f *testing.F) {
	f.Add([]byte(`{"model":"tiny","n":2,"seed":1,"stop":"x","logit_bias":{"5":1},"temperature":0.5,` + user + `}`))
	f.Add([]byte(`{"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"auto","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]},{"role":"tool","content":[{"type":"text","text":"\ud800"}]}]}`))
	f.Add([]byte(`{"model":"a","model":"b"}`))
	f.Add([]byte(`[[[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeChat(b); err == nil {
			checkCall(t, c)
		}
	})
}

func FuzzCompletion(f *testing.F) {
	f.Add([]byte(`{"model":"tiny","prompt":"a","logprobs":5,"max_tokens":3,"stop":["x"]}`))
	f.Add([]byte(`{"prompt":[[1,2],[3]],"seed":18446744073709551615,"min_p":1e-50}`))
	f.Add([]byte(`{"prompt":[1.0,2],"top_p":0.0000000000000000000000000000000000000000000000000001}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeCompletion(b); err == nil {
			checkCall(t, c)
		}
	})
}

func FuzzEmbedding(f *testing.F) {
	f.Add([]byte(`{"model":"tiny","input":"a","dimensions":3,"encoding_format":"base64","user":"me"}`))
	f.Add([]byte(`{"input":["a","b"],"encoding_format":null}`))
	f.Add([]byte(`{"input":[1.0,2]}`))
	f.Add([]byte(`{"input":[[1],[2147483647,3]]}`))
	f.Add([]byte(`{"input":[[1],"a"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeEmbedding(b)
		if err != nil {
			return
		}
		if len(c.asks) == 0 || len(c.asks) > maxInputs {
			t.Errorf("%d asks", len(c.asks))
		}
		key := ed25519.NewKeyFromSeed(make([]byte, 32))
		for _, a := range c.asks {
			q := &inferencepb.Question{Model: make([]byte, 32), Prompt: a.Prompt, PromptTokens: a.PromptTokens, Embed: a.Embed}
			_, _, err := inference.NewRequest("dev00000000", key, q, &inferencepb.Request{Choices: 1, Nonce: make([]byte, 16)})
			if err != nil && proto.Size(q) < inference.MaxRequestBytes-1000 {
				t.Errorf("decoded, but: %v", err)
			}
		}
	})
}
