package openai

import (
	"encoding/json"
	"strings"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// maxTools bounds the functions that one request declares.
const maxTools = 1024

// decodeChat reads the body of POST /v1/chat/completions.
func decodeChat(body []byte) (*call, error) {
	f, err := root(body)
	if err != nil {
		return nil, err
	}
	c := &call{chat: true, prompt: "messages"}
	ask := common(f, c)
	ask.Messages = messages(f)
	ask.Tools, ask.ToolChoice = tools(f)
	ask.TemplateArgs = templateArgs(f)
	if ask.Constraint != nil && ask.Tools != "" {
		f.fail("tools", "is not supported together with response_format, grammar or guided_json: the answer could call none")
	}
	ask.MaxTokens = int(f.integer("max_tokens", 1, inference.MaxTokens, 0))
	if f.has("max_completion_tokens") { // the newer name
		ask.MaxTokens = int(f.integer("max_completion_tokens", 1, inference.MaxTokens, 0))
	}
	ask.LogProbs = f.flag("logprobs")
	ask.TopLogProbs = int(f.integer("top_logprobs", 0, inference.MaxTopLogProbs, 0))
	if ask.TopLogProbs > 0 && !ask.LogProbs {
		f.fail("top_logprobs", "only a request with logprobs set may have it")
	}
	unsupported(f)
	if *f.err != nil {
		return nil, *f.err
	}
	c.asks, c.tools, c.logprobs = []inference.Ask{ask}, ask.Tools != "", ask.LogProbs
	return c, nil
}

// templateArgs reads what is meant for the model's chat template, such as
// {"enable_thinking": false}, in the one spelling that a question may have.
func templateArgs(f fields) string {
	args := f.child("chat_template_kwargs")
	list := make(map[string]any, len(args.keys))
	for _, key := range args.keys {
		switch v := args.values[key].(type) {
		case *object, []any:
			args.fail(key, "want a string, a number, true, false or null, got %s", kindOf(v))
			return ""
		default:
			list[key] = v
		}
	}
	if len(list) == 0 {
		return ""
	}
	out, err := json.Marshal(list) // its keys ascend
	if err != nil || len(out) > inference.MaxTemplateArgs {
		f.fail("chat_template_kwargs", "at most %d bytes are allowed", inference.MaxTemplateArgs)
	}
	return string(out)
}

// unsupported refuses what would change the answer and is not done.
func unsupported(f fields) {
	for _, old := range []struct{ name, use string }{{"functions", "tools"}, {"function_call", "tool_choice"}} {
		if f.has(old.name) {
			f.fail(old.name, "is not supported; use %s", old.use)
		}
	}
	if f.has("audio") {
		f.fail("audio", "audio is not supported")
	}
	for _, m := range f.list("modalities") {
		if m != "text" {
			f.fail("modalities", "only text is supported")
		}
	}
}

func messages(f fields) []*inferencepb.Message {
	list := f.list("messages")
	if len(list) == 0 || len(list) > inference.MaxMessages {
		f.fail("messages", "has %d messages, from 1 to %d are allowed", len(list), inference.MaxMessages)
		return nil
	}
	out := make([]*inferencepb.Message, len(list))
	for i, v := range list {
		out[i] = message(f.item("messages", i, v))
	}
	return out
}

func message(m fields) *inferencepb.Message {
	out := &inferencepb.Message{Role: m.text("role"), Name: m.text("name")}
	switch out.Role {
	case "developer":
		out.Role = "system"
	case "assistant":
		out.ToolCalls = toolCalls(m)
	case "tool":
		out.ToolCallId = m.text("tool_call_id")
	case "system", "user":
	default:
		m.fail("role", "is %.20q; system, developer, user, assistant and tool are allowed", out.Role)
	}
	if !m.has("content") && out.ToolCalls == "" {
		m.fail("content", "is missing")
	}
	out.Content = content(m)
	return out
}

// content reads text, or parts that are text, which are joined by line ends.
func content(m fields) string {
	switch v := m.values["content"].(type) {
	case nil:
		return ""
	case string:
		return v
	case []any:
		texts := make([]string, len(v))
		for i, e := range v {
			part := m.item("content", i, e)
			switch kind := part.text("type"); kind {
			case "text":
				texts[i] = required(part, "text")
			case "refusal":
				texts[i] = required(part, "refusal")
			case "image_url", "input_audio", "file":
				part.fail("type", "is %q; images, audio and files are not supported, only text is", kind)
			default:
				part.fail("type", "is %.40q; only text is supported", kind)
			}
		}
		return strings.Join(texts, "\n")
	}
	m.wrongKind("content", "a string or an array of parts")
	return ""
}

// required reads a text that has to be there; it may be empty.
func required(f fields, key string) string {
	if !f.has(key) {
		f.fail(key, "is missing")
	}
	return f.text(key)
}

// toolCalls turns the calls of an earlier answer into the form that templates
// expect, in which arguments are an object and not a string with one in it.
func toolCalls(m fields) string {
	list := m.list("tool_calls")
	if len(list) == 0 {
		return ""
	}
	out := make([]any, len(list))
	for i, v := range list {
		t := m.item("tool_calls", i, v)
		if kind := t.text("type"); kind != "function" && t.has("type") {
			t.fail("type", "is %.40q; only function is supported", kind)
		}
		f := t.child("function")
		name := required(f, "name")
		var arguments any = f.text("arguments")
		if o, err := parseJSON([]byte(f.text("arguments"))); err == nil && kindOf(o) == "an object" {
			arguments = o
		} else if arguments == "" {
			arguments = &object{}
		} // else: a model's own slip, which it gets to see as it was
		out[i] = newObject("id", t.text("id"), "type", "function",
			"function", newObject("name", name, "arguments", arguments))
	}
	return string(appendJSON(nil, out))
}

// newObject makes an object of pairs of keys and values.
func newObject(pairs ...any) *object {
	o := &object{values: map[string]any{}}
	for i := 0; i < len(pairs); i += 2 {
		key := pairs[i].(string)
		o.keys = append(o.keys, key)
		o.values[key] = pairs[i+1]
	}
	return o
}

// tools reads the declared functions and the choice among them, as JSON. Both are
// empty if the model is not to call any.
func tools(f fields) (declared, choice string) {
	list := f.list("tools")
	if len(list) > maxTools {
		f.fail("tools", "has %d entries, at most %d are allowed", len(list), maxTools)
		return "", ""
	}
	names := map[string]bool{}
	for i, v := range list {
		t := f.item("tools", i, v)
		if kind := t.text("type"); kind != "function" {
			t.fail("type", "is %.40q; only function is supported", kind)
		}
		function := t.child("function")
		name := function.text("name")
		if name == "" {
			function.fail("name", "is missing")
		}
		if function.has("parameters") {
			function.child("parameters")
		}
		names[name] = true
	}
	hide := false
	switch v := f.values["tool_choice"].(type) {
	case nil:
	case string:
		switch v {
		case "none":
			hide = true
		case "auto", "required":
		default:
			f.fail("tool_choice", "is %.40q; none, auto, required or a function is allowed", v)
		}
	case *object:
		if name := f.child("tool_choice").child("function").text("name"); !names[name] {
			f.fail("tool_choice", "the function %.100q is not among the tools", name)
		}
	default:
		f.wrongKind("tool_choice", "a string or an object")
	}
	if f.has("tool_choice") && f.values["tool_choice"] == "required" && len(list) == 0 {
		f.fail("tool_choice", "is %q, but there are no tools", "required")
	}
	if hide || len(list) == 0 {
		return "", ""
	}
	if f.has("tool_choice") {
		choice = string(appendJSON(nil, f.values["tool_choice"]))
	}
	return string(appendJSON(nil, list)), choice
}
