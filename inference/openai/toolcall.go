package openai

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/gonka-mesh/mesh"
)

// The form in which Hermes, Qwen and other models write a tool call.
const (
	callOpen  = "<tool_call>"
	callClose = "</tool_call>"
)

const white = " \t\r\n"

// toolCall is a call as a client sees it.
type toolCall struct {
	Index    *int         `json:"index,omitempty"` // streams only
	ID       string       `json:"id"`
	Type     string       `json:"type"`
	Function functionCall `json:"function"`
}

type functionCall struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"` // JSON
}

// splitter separates tool calls from the text around them, piece by piece. What
// may belong to a call is held back, and white space before it too. However an
// answer is cut into pieces, texts and calls add up to the same.
type splitter struct {
	held  []byte // not released
	open  int    // offset in held after an open tag; 0: there is none
	seen  int    // offset in held before which no closing tag begins
	calls int    // found so far
}

// add takes the next text and returns what is certain now.
func (s *splitter) add(text string) (plain string, calls []functionCall) {
	s.held = append(s.held, text...)
	var out strings.Builder
	for s.step(&out, &calls) {
	}
	return out.String(), calls
}

// step releases what it can and reports whether there may be more.
func (s *splitter) step(out *strings.Builder, calls *[]functionCall) bool {
	if s.open == 0 {
		free := heldBack(s.held)
		at := bytes.Index(s.held, []byte(callOpen))
		if at >= 0 {
			free = len(bytes.TrimRight(s.held[:at], white))
			s.open = at + len(callOpen) - free
			s.seen = s.open
		}
		out.Write(s.held[:free])
		s.held = s.held[free:]
		return at >= 0
	}
	at := bytes.Index(s.held[s.seen:], []byte(callClose))
	if at < 0 {
		s.seen = max(s.open, len(s.held)-len(callClose)+1)
		return false
	}
	end := s.seen + at
	if call, ok := parseCall(s.held[s.open:end]); ok {
		*calls = append(*calls, call)
		s.calls++
	} else { // not a call: text like any other
		out.Write(s.held[:end+len(callClose)])
	}
	s.held, s.open, s.seen = s.held[end+len(callClose):], 0, 0
	return true
}

// heldBack returns where the end of b begins that may lead to a call: white space
// and a part of the tag.
func heldBack(b []byte) int {
	end := len(b)
	for n := min(len(callOpen)-1, len(b)); n > 0; n-- {
		if bytes.HasSuffix(b, []byte(callOpen[:n])) {
			end -= n
			break
		}
	}
	return len(bytes.TrimRight(b[:end], white))
}

// end returns what is left when the answer has ended. A call whose closing tag is
// missing counts if it is complete: some models end the answer in its place.
func (s *splitter) end() (plain string, calls []functionCall) {
	left := s.held
	s.held = nil
	if s.open > 0 {
		if call, ok := parseCall(left[s.open:]); ok {
			s.calls++
			return "", []functionCall{call}
		}
	} else if s.calls > 0 {
		left = bytes.TrimRight(left, white)
	}
	return string(left), nil
}

// parseCall reads what stands between the tags: an object with name and arguments.
func parseCall(b []byte) (functionCall, bool) {
	v, err := parseJSON(b)
	o, ok := v.(*object)
	if err != nil || !ok {
		return functionCall{}, false
	}
	name, _ := o.values["name"].(string)
	if name == "" {
		return functionCall{}, false
	}
	var arguments []byte
	switch a := o.values["arguments"].(type) {
	case nil:
		arguments = []byte("{}")
	case string: // JSON in a string, as in the dialect itself
		if !json.Valid([]byte(a)) {
			return functionCall{}, false
		}
		arguments = []byte(a)
	case *object:
		arguments = appendJSON(nil, a)
	default:
		return functionCall{}, false
	}
	return functionCall{Name: name, Arguments: string(arguments)}, true
}

// callID names a call; equal requests have equal IDs.
func callID(request mesh.Hash, choice, index int) string {
	h := mesh.HashOf(request[:], fmt.Appendf(nil, "call %d %d", choice, index))
	return "call_" + h.String()[:24]
}
