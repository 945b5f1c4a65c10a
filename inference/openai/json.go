package openai

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"unicode/utf8"
)

// Bounds of a request's JSON.
const (
	maxDepth  = 64
	maxValues = 1 << 18
)

// object is a JSON object that keeps the order of its fields. The values of a tree
// are nil, bool, json.Number, string, []any and *object.
type object struct {
	keys   []string
	values map[string]any
}

// parseJSON reads one value. A field that occurs twice is an error, because two
// readers could disagree on which one counts.
func parseJSON(b []byte) (any, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, errors.New("it is empty")
	}
	if !utf8.Valid(b) {
		return nil, errors.New("it is not valid UTF-8")
	}
	// The decoder's token stream is laxer than JSON, so the grammar is checked first.
	var raw json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("%w at byte %d", err, syntax.Offset)
		}
		return nil, err
	}
	p := parser{dec: json.NewDecoder(bytes.NewReader(b))}
	p.dec.UseNumber()
	return p.value(0)
}

type parser struct {
	dec    *json.Decoder
	values int
}

func (p *parser) value(depth int) (any, error) {
	if p.values++; p.values > maxValues {
		return nil, fmt.Errorf("it has more than %d values", maxValues)
	}
	token, err := p.dec.Token()
	if err != nil {
		return nil, noEOF(err)
	}
	delim, nested := token.(json.Delim)
	if !nested {
		return token, nil
	}
	if depth == maxDepth {
		return nil, fmt.Errorf("it is nested more than %d deep", maxDepth)
	}
	if delim == '[' {
		return p.array(depth + 1)
	}
	return p.object(depth + 1)
}

func (p *parser) array(depth int) (any, error) {
	list := []any{}
	for p.dec.More() {
		v, err := p.value(depth)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := p.dec.Token()
	return list, noEOF(err)
}

func (p *parser) object(depth int) (any, error) {
	o := &object{values: map[string]any{}}
	for p.dec.More() {
		token, err := p.dec.Token()
		if err != nil {
			return nil, noEOF(err)
		}
		key, ok := token.(string)
		if !ok {
			return nil, errors.New("a field name is not a string")
		}
		if _, twice := o.values[key]; twice {
			return nil, fmt.Errorf("the field %.100q occurs twice in one object", key)
		}
		v, err := p.value(depth)
		if err != nil {
			return nil, err
		}
		o.keys = append(o.keys, key)
		o.values[key] = v
	}
	_, err := p.dec.Token()
	return o, noEOF(err)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendJSON writes a tree in the one form that requests carry: no white space,
// fields in the caller's order (a model reads them so), numbers as written.
func appendJSON(b []byte, v any) []byte {
	switch v := v.(type) {
	case []any:
		b = append(b, '[')
		for i, e := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSON(b, e)
		}
		return append(b, ']')
	case *object:
		b = append(b, '{')
		for i, k := range v.keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, k), ':')
			b = appendJSON(b, v.values[k])
		}
		return append(b, '}')
	case json.Number:
		return append(b, v...)
	case string:
		return appendString(b, v)
	case bool:
		return strconv.AppendBool(b, v)
	}
	return append(b, "null"...)
}

func appendString(b []byte, s string) []byte {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string always encodes
	return append(b, bytes.TrimSuffix(out.Bytes(), []byte("\n"))...)
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case json.Number:
		return "a number"
	case string:
		return "a string"
	case []any:
		return "an array"
	}
	return "an object"
}

// fields reads an object. The first thing wrong with it, or with what is inside
// of it, is kept in err and the rest is then not worth reading.
type fields struct {
	path string // of the object in the request; empty for the request itself
	*object
	err **apiError
}

func newFields(o *object) fields { return fields{object: o, err: new(*apiError)} }

func (f fields) name(key string) string {
	if f.path == "" {
		return key
	}
	return f.path + "." + key
}

// fail records an error of the field unless there is one already.
func (f fields) fail(key, format string, args ...any) {
	if *f.err == nil {
		name := f.name(key)
		*f.err = invalid(name, "invalid_value", "%s: %s", name, fmt.Sprintf(format, args...))
	}
}

func (f fields) wrongKind(key, want string) {
	if *f.err == nil {
		name := f.name(key)
		*f.err = invalid(name, "invalid_type", "%s: want %s, got %s", name, want, kindOf(f.values[key]))
	}
}

// has reports whether the field is there; null is the same as absent.
func (f fields) has(key string) bool { return f.values[key] != nil }

func (f fields) text(key string) string {
	s, ok := f.values[key].(string)
	if !ok && f.has(key) {
		f.wrongKind(key, "a string")
	}
	return s
}

func (f fields) flag(key string) bool {
	v, ok := f.values[key].(bool)
	if !ok && f.has(key) {
		f.wrongKind(key, "a boolean")
	}
	return v
}

func (f fields) list(key string) []any {
	v, ok := f.values[key].([]any)
	if !ok && f.has(key) {
		f.wrongKind(key, "an array")
	}
	return v
}

// child returns an object inside of this one; it is empty if absent.
func (f fields) child(key string) fields {
	o, ok := f.values[key].(*object)
	if !ok {
		if f.has(key) {
			f.wrongKind(key, "an object")
		}
		o = &object{}
	}
	return fields{path: f.name(key), object: o, err: f.err}
}

// item returns an object inside of a list of this one.
func (f fields) item(key string, i int, v any) fields {
	name := fmt.Sprintf("%s[%d]", key, i)
	o, ok := v.(*object)
	if !ok {
		f.fail(name, "want an object, got %s", kindOf(v))
		o = &object{}
	}
	return fields{path: f.name(name), object: o, err: f.err}
}

// number returns a number from min to max, or def if absent.
func (f fields) number(key string, min, max, def float64) float32 {
	n, ok := f.values[key].(json.Number)
	if !ok {
		if f.has(key) {
			f.wrongKind(key, "a number")
		}
		return float32(def)
	}
	v, err := n.Float64()
	if err != nil || !(v >= min && v <= max) {
		f.fail(key, "is %.40s, from %g to %g are allowed", n, min, max)
		return float32(def)
	}
	if v == 0 {
		return 0 // -0 would make other request bytes
	}
	return float32(v)
}

// integer returns a whole number from min to max, or def if absent.
func (f fields) integer(key string, min, max, def int64) int64 {
	if !f.has(key) {
		return def
	}
	v, ok := whole(f.values[key])
	if !ok {
		f.wrongKind(key, "a whole number")
		return def
	}
	if v < min || v > max {
		f.fail(key, "is %d, from %d to %d are allowed", v, min, max)
		return def
	}
	return v
}

// whole returns the integer that a JSON number stands for: 5, and 5.0 as some
// clients write it.
func whole(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	if i, err := strconv.ParseInt(string(n), 10, 64); err == nil {
		return i, true
	}
	x, err := n.Float64()
	if err != nil || x != math.Trunc(x) || math.Abs(x) > 1<<53 {
		return 0, false
	}
	return int64(x), true
}
