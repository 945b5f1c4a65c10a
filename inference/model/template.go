package model

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/gonka-mesh/mesh/inference/model/jinja"
)

// Message is one message of a chat.
type Message struct {
	Role       string // system, developer, user, assistant or tool
	Content    string
	Name       string // of the speaker or of the tool; optional
	ToolCalls  string // assistant: JSON array of the calls made, in the OpenAI form; optional
	ToolCallID string // tool: the call that this answers; optional
}

// ErrMessages is wrapped by errors that are the messages' fault, not the model's:
// an unknown role, tools that are no JSON, an order that the template refuses.
var ErrMessages = errors.New("the messages do not fit the model's chat template")

// Bounds of one chat.
const (
	maxMessages = 1 << 12
	maxChatLen  = 4 << 20
)

var roles = []string{"system", "developer", "user", "assistant", "tool", "function"}

// Template is the chat template of a model file. It is safe for concurrent use.
//
// No byte of a message or a tool definition can become part of a special token:
// the renderer keeps track of where each byte came from, and only stretches that
// are the template's own are searched for special tokens.
type Template struct {
	compiled  *jinja.Template
	tokenizer *Tokenizer
	args      map[string]any // see With
}

// namedTemplate is one of the chat templates of a model.
type namedTemplate struct {
	name, source string
}

// chatML is the template of a file that has none but has the tokens for it.
const chatML = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}" +
	"{% if add_generation_prompt %}<|im_start|>assistant\n{{ '' }}{% endif %}"

func newTemplate(f *File) (*Template, error) {
	t, err := f.Tokenizer()
	if err != nil {
		return nil, err
	}
	if len(f.templates) > 0 && f.templates[0].source != "" {
		return compileTemplate(f.templates[0].source, t)
	}
	if _, ok := t.Special("<|im_start|>"); !ok {
		return nil, errors.New("the model has no chat template and no ChatML tokens: it can complete text but not chat")
	}
	return compileTemplate(chatML, t)
}

func compileTemplate(source string, t *Tokenizer) (*Template, error) {
	compiled, err := jinja.Compile(source)
	if err != nil {
		return nil, fmt.Errorf("compile chat template: %w", err)
	}
	return &Template{compiled: compiled, tokenizer: t}, nil
}

// Encode returns the prompt: the messages in the form the model was trained on, up
// to where the assistant speaks. tools is a JSON array of tool definitions in the
// OpenAI form, or empty. Errors that wrap ErrMessages are the caller's input.
func (t *Template) Encode(messages []Message, tools string) ([]int32, error) {
	ids, _, err := t.EncodeMost(messages, tools, math.MaxInt)
	return ids, err
}

// EncodeMost is to Encode what it is to that of a Tokenizer.
func (t *Template) EncodeMost(messages []Message, tools string, most int) (ids []int32, ok bool, err error) {
	text, err := t.render(messages, tools)
	if err != nil {
		return nil, false, err
	}
	ids, ok = t.tokenizer.encodeTemplate(text, most)
	if bos, ok := t.tokenizer.BOS(); ok && t.tokenizer.addBOS && (len(ids) == 0 || ids[0] != bos) {
		ids = slices.Insert(ids, 0, bos)
	}
	return ids, ok, nil
}

// Text returns the prompt as text, for people: special tokens look like text in it.
func (t *Template) Text(messages []Message, tools string) (string, error) {
	text, err := t.render(messages, tools)
	return text.String(), err
}

func (t *Template) render(messages []Message, tools string) (jinja.Text, error) {
	vars, err := t.variables(messages, tools)
	if err != nil {
		return jinja.Text{}, fmt.Errorf("%w: %w", ErrMessages, err)
	}
	text, err := t.compiled.Render(vars)
	var refusal *jinja.Refusal
	switch {
	case errors.As(err, &refusal):
		return jinja.Text{}, fmt.Errorf("%w: %s", ErrMessages, refusal.Message)
	case err != nil:
		return jinja.Text{}, fmt.Errorf("render chat template: %w", err)
	}
	return text, nil
}

func (t *Template) variables(messages []Message, tools string) (map[string]any, error) {
	if len(messages) == 0 || len(messages) > maxMessages {
		return nil, fmt.Errorf("%d messages: want 1 to %d", len(messages), maxMessages)
	}
	size := len(tools)
	list := make([]any, len(messages))
	for i := range messages {
		m := &messages[i]
		size += len(m.Content) + len(m.ToolCalls) + len(m.Name) + len(m.ToolCallID)
		if size > maxChatLen {
			return nil, fmt.Errorf("more than %d bytes", maxChatLen)
		}
		d, err := m.variable()
		if err != nil {
			return nil, fmt.Errorf("message %d: %w", i, err)
		}
		list[i] = d
	}
	vars := make(map[string]any, len(t.args)+6)
	maps.Copy(vars, t.args)
	vars["messages"], vars["tools"], vars["documents"] = jinja.NewList(list...), nil, nil
	vars["add_generation_prompt"] = true
	t.specialText(vars, "bos_token", t.tokenizer.bos)
	t.specialText(vars, "eos_token", t.tokenizer.eos)
	if tools != "" {
		v, err := jinja.ParseJSON([]byte(tools))
		if err != nil {
			return nil, fmt.Errorf("tools: %w", err)
		}
		if _, ok := v.(*jinja.List); !ok {
			return nil, errors.New("tools: want a JSON array")
		}
		vars["tools"] = v
	}
	return vars, nil
}

func (t *Template) specialText(vars map[string]any, name string, id int32) {
	if id >= 0 {
		vars[name] = jinja.Literal(t.tokenizer.texts[id])
	} else {
		vars[name] = jinja.Literal("")
	}
}

// variable is the message as templates see it. The role is one of a fixed list, so
// it counts as the template's: some templates build tokens from it.
func (m *Message) variable() (*jinja.Dict, error) {
	if !slices.Contains(roles, m.Role) {
		return nil, fmt.Errorf("role %.30q: want one of %s", m.Role, strings.Join(roles, ", "))
	}
	user := func(s string) jinja.Text { return jinja.User(strings.ToValidUTF8(s, "\uFFFD")) }
	d := jinja.NewDict()
	d.Set("role", jinja.Literal(m.Role))
	d.Set("content", user(m.Content))
	if m.Name != "" {
		d.Set("name", user(m.Name))
	}
	if m.ToolCallID != "" {
		d.Set("tool_call_id", user(m.ToolCallID))
	}
	if m.ToolCalls == "" {
		return d, nil
	}
	calls, err := parseToolCalls(m.ToolCalls)
	if err != nil {
		return nil, fmt.Errorf("tool calls: %w", err)
	}
	d.Set("tool_calls", calls)
	return d, nil
}

// parseToolCalls reads the calls. In the OpenAI form the arguments of a call are a
// JSON document inside a text, while templates want the document itself.
func parseToolCalls(s string) (any, error) {
	v, err := jinja.ParseJSON([]byte(s))
	if err != nil {
		return nil, err
	}
	calls, ok := v.(*jinja.List)
	if !ok {
		return nil, errors.New("want a JSON array")
	}
	for c := range calls.All() {
		fn := c
		if d, ok := c.(*jinja.Dict); ok && d.Get("function") != nil {
			fn = d.Get("function")
		}
		d, ok := fn.(*jinja.Dict)
		if !ok {
			return nil, errors.New("want a JSON array of objects")
		}
		if text, ok := d.Get("arguments").(jinja.Text); ok {
			if object, err := jinja.ParseJSON([]byte(text.String())); err == nil {
				if _, ok := object.(*jinja.Dict); ok {
					d.Set("arguments", object)
				}
			}
		}
	}
	return calls, nil
}

// encodeTemplate encodes rendered text. Special tokens are looked for where no byte
// is a user's; what stands between two of them is encoded in one piece, so that the
// words of template and user join as they did when the model was trained.
func (t *Tokenizer) encodeTemplate(text jinja.Text, most int) ([]int32, bool) {
	var all strings.Builder
	var limits []int
	for part, user := range text.Parts() {
		all.WriteString(part)
		switch {
		case user == (len(limits)%2 == 1): // its turn: trusted parts stand at even places
			limits = append(limits, all.Len())
		case len(limits) > 0:
			limits[len(limits)-1] = all.Len()
		default:
			limits = append(limits, 0, all.Len())
		}
	}
	return t.encode(all.String(), limits, most)
}
