package openai

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// writeTimeout is how long a client may take to accept the next bytes. One that
// does not read must not keep a host's slot.
const writeTimeout = 30 * time.Second

// answer is the state of one call: it turns events into bytes for the client, at
// once in a stream, else at the end.
type answer struct {
	call    *call
	w       http.ResponseWriter
	control *http.ResponseController

	mu      sync.Mutex // guards what follows: several asks of one call emit at once
	began   bool
	request mesh.Hash
	head    envelope
	choices []*choice // by ask, then by choice
	prompts []int     // prompt tokens by ask
	out     bytes.Buffer
}

// piece is what one event adds to a choice.
type piece struct {
	first  bool
	text   string
	calls  []toolCall
	tokens []inference.TokenText
	offset int    // of the first token in the choice's text, in code points
	finish string // empty while it goes on
}

// choice collects one choice.
type choice struct {
	index    int
	split    *splitter // nil: text is passed on as it is
	started  bool
	calls    int
	pending  []inference.TokenText // whose text was not released yet
	released int                   // bytes of text
	listed   int                   // bytes of the tokens that were listed
	offset   int                   // code points of the tokens that were listed
	finish   string
	output   int // tokens

	text   strings.Builder // this and the next two: not in a stream
	made   []toolCall
	tokens []inference.TokenText
}

func newAnswer(c *call, w http.ResponseWriter) *answer {
	a := &answer{call: c, w: w, control: http.NewResponseController(w), prompts: make([]int, len(c.asks))}
	for i := range len(c.asks) * c.choices {
		ch := &choice{index: i}
		if c.tools {
			ch.split = new(splitter)
		}
		a.choices = append(a.choices, ch)
	}
	return a
}

// event takes one event of an ask.
func (a *answer) event(ask int, ev inference.Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ev.Choice < 0 || ev.Choice >= a.call.choices {
		return fmt.Errorf("event of choice %d, the request has %d", ev.Choice, a.call.choices)
	}
	ch := a.choices[ask*a.call.choices+ev.Choice]
	if ch.finish != "" {
		return fmt.Errorf("event after the end of choice %d", ev.Choice)
	}
	a.begin(ev)
	p, err := ch.add(a.request, ev)
	if err != nil {
		return err
	}
	if ev.Finish != inference.FinishOpen {
		a.prompts[ask] = max(a.prompts[ask], ev.Usage.PromptTokens)
		ch.output = ev.Usage.OutputTokens
	}
	if !a.call.stream {
		ch.keep(p)
		return nil
	}
	return a.send(ch, p)
}

// begin sets what the first event knows: headers before the first byte.
func (a *answer) begin(ev inference.Event) {
	if a.began {
		return
	}
	a.began, a.request = true, ev.Request
	prefix, object := "cmpl-", "text_completion"
	if a.call.chat {
		prefix, object = "chatcmpl-", "chat.completion"
		if a.call.stream {
			object = "chat.completion.chunk"
		}
	}
	model := ev.Model.Name
	if model == "" {
		model = a.call.model
	}
	a.head = envelope{
		ID: prefix + ev.Request.String()[:32], Object: object, Created: time.Now().Unix(),
		Model: model, SystemFingerprint: fingerprintText(ev.Model.Fingerprint),
	}
	h := a.w.Header()
	h.Set(HeaderReceipt, ev.Request.String())
	h.Set(HeaderHost, ev.Host.String())
	if a.call.stream {
		h.Set("Content-Type", "text/event-stream; charset=utf-8")
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Accel-Buffering", "no") // a proxy must not collect the stream
	}
}

// add turns an event into what the client gets to see of it.
func (c *choice) add(request mesh.Hash, ev inference.Event) (piece, error) {
	p := piece{first: !c.started, text: ev.Text, offset: c.offset}
	c.started = true
	switch ev.Finish {
	case inference.FinishOpen:
	case inference.FinishEOS, inference.FinishStop:
		p.finish = "stop"
	case inference.FinishLength:
		p.finish = "length"
	default:
		return p, &answerError{ev.Finish}
	}
	p.tokens = c.due(ev)
	if c.split != nil {
		text, calls := c.split.add(ev.Text)
		if p.finish != "" {
			rest, last := c.split.end()
			text, calls = text+rest, append(calls, last...)
		}
		p.text = text
		for _, f := range calls {
			p.calls = append(p.calls, toolCall{ID: callID(request, c.index, c.calls), Type: "function", Function: f})
			c.calls++
		}
		if c.calls > 0 && p.finish == "stop" {
			p.finish = "tool_calls"
		}
	}
	c.finish = p.finish
	return p, nil
}

// due returns the tokens to list: those whose text has begun to be released. Of
// an end mark and of a removed stop string there is none.
func (c *choice) due(ev inference.Event) []inference.TokenText {
	c.pending = append(c.pending, ev.Tokens...)
	c.released += len(ev.Text)
	all := ev.Finish == inference.FinishEOS || ev.Finish == inference.FinishLength
	var out []inference.TokenText
	for len(c.pending) > 0 && (all || c.listed < c.released) {
		t := c.pending[0]
		c.pending = c.pending[1:]
		if len(t.Bytes) == 0 {
			continue
		}
		c.listed += len(t.Bytes)
		c.offset += runeStarts(t.Bytes)
		out = append(out, t)
	}
	return out
}

// keep collects a piece for the end.
func (c *choice) keep(p piece) {
	c.text.WriteString(p.text)
	c.made = append(c.made, p.calls...)
	c.tokens = append(c.tokens, p.tokens...)
}

// complete returns an error if a choice has no end.
func (a *answer) complete() error {
	for _, ch := range a.choices {
		if ch.finish == "" {
			return &answerError{inference.FinishOpen}
		}
	}
	return nil
}

// usage counts each prompt once and every output token.
func (a *answer) usage() *usage {
	u := new(usage)
	for _, n := range a.prompts {
		u.PromptTokens += n
	}
	for _, ch := range a.choices {
		u.CompletionTokens += ch.output
	}
	u.TotalTokens = u.PromptTokens + u.CompletionTokens
	return u
}

// fingerprintText is a fingerprint in one line, such as native/0.1/mk1/Q8_0/f16.
func fingerprintText(f *inferencepb.Fingerprint) string {
	var parts []string
	for _, s := range []string{f.GetEngine(), f.GetEngineVersion(), f.GetContract(), f.GetWeights(), f.GetKv(), f.GetGpu()} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, "/")
}
