package adapter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// message is one message in the form of OpenAI's dialect, which the servers take.
type message struct {
	Role       string `json:"role"`
	Content    string `json:"content"`
	Name       string `json:"name,omitempty"`
	ToolCalls  any    `json:"tool_calls,omitempty"`
	ToolCallID string `json:"tool_call_id,omitempty"`
}

// guard encodes questions so that no text of a user becomes a control token. The
// servers' tokenizers find control tokens anywhere in a prompt, so texts that hold
// one are cut inside it: a mark is put there, the server's template rendered with
// the marks, and the stretches between them tokenized one by one.
//
// Which strings are control tokens the servers do not say. Those that have the form
// of one are tried out: a control token stays one token wherever it stands.
type guard struct {
	driver driver
	listed []string

	mu    sync.Mutex
	known map[string]bool // whether a string is a control token; guarded by mu
}

const (
	maxTried = 64 // strings of one question that are tried out; beyond, all are cut
	maxKnown = 1 << 14
)

// suspicious is the form of control tokens in the models that are around.
var suspicious = regexp.MustCompile(`<[|｜][^<>]{1,80}>|</?[A-Za-z_][A-Za-z0-9_\-]{0,40}>|\[/?[A-Za-z_]{2,40}\]`)

func newGuard(d driver, listed []string) *guard {
	g := &guard{driver: d, known: make(map[string]bool)}
	for _, s := range listed {
		if utf8.RuneCountInString(s) > 1 {
			g.listed = append(g.listed, s)
		}
	}
	return g
}

// encode returns the prompt of a question as token ids.
func (g *guard) encode(ctx context.Context, q *inferencepb.Question) ([]int32, error) {
	if len(q.GetMessages()) == 0 {
		cut := &cutter{}
		if err := g.search(ctx, cut, q.GetPrompt()); err != nil {
			return nil, err
		}
		return g.stretches(ctx, cut, cut.apply(q.GetPrompt()))
	}
	messages, tools, err := chatOf(q)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", inference.ErrInvalid, err)
	}
	cut := &cutter{}
	for _, s := range texts(messages, tools) {
		if err := g.search(ctx, cut, s); err != nil {
			return nil, err
		}
	}
	for i := range messages {
		m := &messages[i]
		m.Content, m.Name, m.ToolCallID = cut.apply(m.Content), cut.apply(m.Name), cut.apply(m.ToolCallID)
		m.ToolCalls = cut.document(m.ToolCalls)
	}
	ids, text, err := g.driver.chat(ctx, messages, cut.document(tools))
	switch {
	case err != nil:
		return nil, err
	case ids == nil:
		return g.stretches(ctx, cut, text)
	case cut.mark == "":
		return ids, nil
	}
	if text, err = g.driver.decode(ctx, ids); err != nil {
		return nil, err
	}
	return g.parts(ctx, cut, text, false)
}

// stretches tokenizes text that the marks cut. The token that begins a prompt is put
// before the first.
func (g *guard) stretches(ctx context.Context, cut *cutter, text string) ([]int32, error) {
	return g.parts(ctx, cut, text, true)
}

func (g *guard) parts(ctx context.Context, cut *cutter, text string, bos bool) ([]int32, error) {
	parts := []string{text}
	if cut.mark != "" {
		parts = strings.Split(text, cut.mark)
	}
	var out []int32
	for i, part := range parts {
		if part == "" && (i > 0 || len(parts) > 1) {
			continue
		}
		ids, err := g.driver.tokenize(ctx, part, bos && len(out) == 0)
		if err != nil {
			return nil, err
		}
		out = append(out, ids...)
	}
	return out, nil
}

// search notes the control tokens in a text.
func (g *guard) search(ctx context.Context, cut *cutter, text string) error {
	cut.texts = append(cut.texts, text)
	for _, s := range g.listed {
		if strings.Contains(text, s) {
			cut.add(s)
		}
	}
	for _, s := range suspicious.FindAllString(text, -1) {
		if cut.seen(s) {
			continue
		}
		special := true
		if cut.tried++; cut.tried <= maxTried {
			var err error
			if special, err = g.special(ctx, s); err != nil {
				return err
			}
		}
		if special {
			cut.add(s)
		} else {
			cut.pass(s)
		}
	}
	return nil
}

// special tries out whether a string is a control token: one token, however it is
// surrounded. A plain word that is one token counts as well; a cut does it no harm.
func (g *guard) special(ctx context.Context, s string) (bool, error) {
	g.mu.Lock()
	v, ok := g.known[s]
	g.mu.Unlock()
	if ok {
		return v, nil
	}
	alone, err := g.driver.tokenize(ctx, s, false)
	if err != nil {
		return false, err
	}
	if v = len(alone) > 0 && len(alone) <= 2; v {
		last := alone[len(alone)-1]
		ids, err := g.driver.tokenize(ctx, "x"+s+"x"+s+s, false)
		if err != nil {
			return false, err
		}
		n := 0
		for _, id := range ids {
			if id == last {
				n++
			}
		}
		v = n == 3
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known) >= maxKnown {
		clear(g.known)
	}
	g.known[s] = v
	return v, nil
}

// cutter puts a mark into control tokens.
type cutter struct {
	texts  []string
	found  []string // control tokens, longest first
	passed map[string]bool
	tried  int
	mark   string // empty: nothing to cut
}

func (c *cutter) seen(s string) bool { return c.passed[s] || slices.Contains(c.found, s) }

func (c *cutter) pass(s string) {
	if c.passed == nil {
		c.passed = make(map[string]bool)
	}
	c.passed[s] = true
}

func (c *cutter) add(s string) {
	if !slices.Contains(c.found, s) {
		c.found = append(c.found, s)
		slices.SortFunc(c.found, func(a, b string) int { return len(b) - len(a) })
	}
}

// apply cuts a text. All texts have been searched by then.
func (c *cutter) apply(text string) string {
	if len(c.found) == 0 {
		return text
	}
	if c.mark == "" {
		c.mark = "qzMESHzq"
		for slices.ContainsFunc(c.texts, func(s string) bool { return strings.Contains(s, c.mark) }) {
			c.mark += "q"
		}
	}
	for _, s := range c.found {
		_, n := utf8.DecodeRuneInString(s)
		text = strings.ReplaceAll(text, s, s[:n]+c.mark+s[n:])
	}
	return text
}

// document cuts all strings of a JSON document.
func (c *cutter) document(v any) any {
	switch v := v.(type) {
	case string:
		return c.apply(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = c.document(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[c.apply(k)] = c.document(e)
		}
		return out
	}
	return v
}

// chatOf returns messages and tools of a question as JSON documents.
func chatOf(q *inferencepb.Question) ([]message, any, error) {
	messages := make([]message, len(q.GetMessages()))
	for i, m := range q.GetMessages() {
		messages[i] = message{Role: m.GetRole(), Content: m.GetContent(), Name: m.GetName(), ToolCallID: m.GetToolCallId()}
		if m.GetToolCalls() == "" {
			continue
		}
		calls, err := list(m.GetToolCalls())
		if err != nil {
			return nil, nil, fmt.Errorf("tool calls of message %d: %w", i, err)
		}
		messages[i].ToolCalls = calls
	}
	if q.GetTools() == "" || q.GetToolChoice() == `"none"` {
		return messages, nil, nil
	}
	tools, err := list(q.GetTools())
	if err != nil {
		return nil, nil, fmt.Errorf("tools: %w", err)
	}
	return messages, tools, nil
}

// list reads a JSON array; numbers keep their digits.
func list(s string) (any, error) {
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var v []any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("want a JSON array: %w", err)
	}
	if d.More() {
		return nil, errors.New("want one JSON array")
	}
	return v, nil
}

// texts returns every text of a chat.
func texts(messages []message, tools any) []string {
	var out []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			out = append(out, v)
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for k, e := range v {
				out = append(out, k)
				walk(e)
			}
		}
	}
	for _, m := range messages {
		out = append(out, m.Content, m.Name, m.ToolCallID)
		walk(m.ToolCalls)
	}
	walk(tools)
	return out
}
