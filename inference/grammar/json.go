package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// object is a JSON object with its fields in order. Values of a tree are nil, bool,
// json.Number, string, []any and *object.
type object struct {
	keys   []string
	values map[string]any
}

// parseJSON reads one value, in which no field of an object occurs twice.
func parseJSON(text string) (any, error) {
	// The decoder's tokens are laxer than JSON.
	var raw json.RawMessage
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	return readValue(dec, 0)
}

func readValue(dec *json.Decoder, depth int) (any, error) {
	token, err := dec.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if depth > maxNest {
		return nil, fmt.Errorf("it is nested more than %d deep", maxNest)
	}
	switch token {
	case json.Delim('['):
		list := []any{}
		for dec.More() {
			v, err := readValue(dec, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := dec.Token()
		return list, err
	case json.Delim('{'):
		o := &object{values: map[string]any{}}
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return nil, err
			}
			name := key.(string) // the text is JSON
			if _, twice := o.values[name]; twice {
				return nil, fmt.Errorf("the field %.60q occurs twice in one object", name)
			}
			if o.values[name], err = readValue(dec, depth+1); err != nil {
				return nil, err
			}
			o.keys = append(o.keys, name)
		}
		_, err := dec.Token()
		return o, err
	}
	return token, nil
}

// compact writes a value without white space, numbers as they were written.
func compact(v any) string {
	var s strings.Builder
	switch v := v.(type) {
	case []any:
		s.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				s.WriteByte(',')
			}
			s.WriteString(compact(e))
		}
		s.WriteByte(']')
	case *object:
		s.WriteByte('{')
		for i, k := range v.keys {
			if i > 0 {
				s.WriteByte(',')
			}
			s.WriteString(quote(k) + ":" + compact(v.values[k]))
		}
		s.WriteByte('}')
	case string:
		return quote(v)
	default: // nil, bool and json.Number
		b, _ := json.Marshal(v)
		return string(b)
	}
	return s.String()
}

// quote writes a string with escapes only where JSON asks for them.
func quote(s string) string {
	var out bytes.Buffer
	out.WriteByte('"')
	for _, r := range s {
		switch r {
		case '"', '\\':
			out.WriteString(`\` + string(r))
		case '\b':
			out.WriteString(`\b`)
		case '\f':
			out.WriteString(`\f`)
		case '\n':
			out.WriteString(`\n`)
		case '\r':
			out.WriteString(`\r`)
		case '\t':
			out.WriteString(`\t`)
		default:
			if r < ' ' {
				fmt.Fprintf(&out, `\u%04x`, r)
			} else {
				out.WriteRune(r)
			}
		}
	}
	out.WriteByte('"')
	return out.String()
}
