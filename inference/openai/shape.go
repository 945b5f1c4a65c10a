package openai

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/gonka-mesh/mesh/inference"
)

// envelope is what all four kinds of answers have in common.
type envelope struct {
	ID                string          `json:"id"`
	Object            string          `json:"object"`
	Created           int64           `json:"created"` // Unix seconds
	Model             string          `json:"model"`
	SystemFingerprint string          `json:"system_fingerprint"`
	Choices           []any           `json:"choices"`
	Usage             json.RawMessage `json:"usage,omitempty"`
}

type usage struct {
	PromptTokens     int               `json:"prompt_tokens"`
	CompletionTokens int               `json:"completion_tokens"`
	TotalTokens      int               `json:"total_tokens"`
	PromptDetails    promptDetails     `json:"prompt_tokens_details"`
	Details          completionDetails `json:"completion_tokens_details"`
}

type promptDetails struct {
	Cached int `json:"cached_tokens"`
	Audio  int `json:"audio_tokens"`
}

type completionDetails struct {
	Reasoning int `json:"reasoning_tokens"`
	Audio     int `json:"audio_tokens"`
	Accepted  int `json:"accepted_prediction_tokens"`
	Rejected  int `json:"rejected_prediction_tokens"`
}

var null = json.RawMessage("null")

// delta is what a chunk of a chat adds.
type delta struct {
	Role      string          `json:"role,omitempty"`
	Content   *string         `json:"content,omitempty"`
	Refusal   json.RawMessage `json:"refusal,omitempty"`
	ToolCalls []toolCall      `json:"tool_calls,omitempty"`
}

type chunkChoice struct {
	Index        int           `json:"index"`
	Delta        delta         `json:"delta"`
	LogProbs     *chatLogProbs `json:"logprobs"`
	FinishReason *string       `json:"finish_reason"`
}

type chatMessage struct {
	Role      string          `json:"role"`
	Content   *string         `json:"content"`
	Refusal   json.RawMessage `json:"refusal"`
	ToolCalls []toolCall      `json:"tool_calls,omitempty"`
}

type chatChoice struct {
	Index        int           `json:"index"`
	Message      chatMessage   `json:"message"`
	LogProbs     *chatLogProbs `json:"logprobs"`
	FinishReason string        `json:"finish_reason"`
}

// textChoice is a choice of a completion, whole or a chunk of it.
type textChoice struct {
	Text         string        `json:"text"`
	Index        int           `json:"index"`
	LogProbs     *textLogProbs `json:"logprobs"`
	FinishReason *string       `json:"finish_reason"`
}

// whole returns the choice as it stands in an answer that is not streamed.
func (a *answer) whole(c *choice) any {
	text := c.text.String()
	if !a.call.chat {
		out := textChoice{Text: text, Index: c.index, FinishReason: &c.finish}
		if a.call.logprobs {
			out.LogProbs = newTextLogProbs(c.tokens, 0)
		}
		return out
	}
	m := chatMessage{Role: "assistant", Content: &text, Refusal: null, ToolCalls: c.made}
	if len(c.made) > 0 && text == "" {
		m.Content = nil
	}
	out := chatChoice{Index: c.index, Message: m, FinishReason: c.finish}
	if a.call.logprobs {
		out.LogProbs = newChatLogProbs(c.tokens)
	}
	return out
}

// chunks returns a piece as the choices of stream chunks: the role first, then
// what is new, then the finish alone.
func (a *answer) chunks(c *choice, p piece) []any {
	tokens := p.tokens
	if !a.call.logprobs {
		tokens = nil
	}
	var out []any
	if !a.call.chat {
		if p.text != "" || len(tokens) > 0 {
			t := textChoice{Text: p.text, Index: c.index}
			if len(tokens) > 0 {
				t.LogProbs = newTextLogProbs(tokens, p.offset)
			}
			out = append(out, t)
		}
		if p.finish != "" {
			out = append(out, textChoice{Index: c.index, FinishReason: &p.finish})
		}
		return out
	}
	if p.first {
		out = append(out, chunkChoice{Index: c.index, Delta: delta{Role: "assistant", Content: new(string), Refusal: null}})
	}
	if p.text != "" || len(tokens) > 0 {
		t := chunkChoice{Index: c.index, Delta: delta{Content: &p.text}}
		if len(tokens) > 0 {
			t.LogProbs = newChatLogProbs(tokens)
		}
		out = append(out, t)
	}
	for i := range p.calls {
		call := p.calls[i]
		index := c.calls - len(p.calls) + i
		call.Index = &index
		out = append(out, chunkChoice{Index: c.index, Delta: delta{ToolCalls: []toolCall{call}}})
	}
	if p.finish != "" {
		out = append(out, chunkChoice{Index: c.index, FinishReason: &p.finish})
	}
	return out
}

type chatLogProbs struct {
	Content []chatLogProb   `json:"content"`
	Refusal json.RawMessage `json:"refusal"`
}

type chatLogProb struct {
	topLogProb
	Top []topLogProb `json:"top_logprobs"`
}

type topLogProb struct {
	Token   string  `json:"token"`
	LogProb float32 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

func newTopLogProb(b []byte, p float32) topLogProb {
	ints := make([]int, len(b))
	for i, v := range b {
		ints[i] = int(v)
	}
	return topLogProb{Token: string(b), LogProb: finite(p), Bytes: ints}
}

func newChatLogProbs(tokens []inference.TokenText) *chatLogProbs {
	out := &chatLogProbs{Content: make([]chatLogProb, len(tokens)), Refusal: null}
	for i, t := range tokens {
		e := chatLogProb{newTopLogProb(t.Bytes, t.LogProb), make([]topLogProb, len(t.Top))}
		for j, top := range t.Top {
			e.Top[j] = newTopLogProb(top.Bytes, top.LogProb)
		}
		out.Content[i] = e
	}
	return out
}

type textLogProbs struct {
	Tokens   []string             `json:"tokens"`
	LogProbs []float32            `json:"token_logprobs"`
	Top      []map[string]float32 `json:"top_logprobs"`
	Offsets  []int                `json:"text_offset"` // in code points
}

func newTextLogProbs(tokens []inference.TokenText, offset int) *textLogProbs {
	out := &textLogProbs{Tokens: []string{}, LogProbs: []float32{}, Top: []map[string]float32{}, Offsets: []int{}}
	for _, t := range tokens {
		top := make(map[string]float32, len(t.Top))
		for _, e := range t.Top {
			top[tokenName(e.Bytes)] = finite(e.LogProb)
		}
		out.Tokens = append(out.Tokens, tokenName(t.Bytes))
		out.LogProbs = append(out.LogProbs, finite(t.LogProb))
		out.Top = append(out.Top, top)
		out.Offsets = append(out.Offsets, offset)
		offset += runeStarts(t.Bytes)
	}
	return out
}

// tokenName is a token's text, or its bytes in OpenAI's form where it is a part
// of a character.
func tokenName(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var s strings.Builder
	s.WriteString("bytes:")
	for _, v := range b {
		fmt.Fprintf(&s, `\x%02x`, v)
	}
	return s.String()
}

// finite keeps JSON possible: -9999 is OpenAI's figure for what cannot happen.
func finite(p float32) float32 {
	if math.IsNaN(float64(p)) || p < -9999 {
		return -9999
	}
	return p
}

// runeStarts counts the characters that begin in b.
func runeStarts(b []byte) int {
	n := 0
	for _, v := range b {
		if utf8.RuneStart(v) {
			n++
		}
	}
	return n
}
