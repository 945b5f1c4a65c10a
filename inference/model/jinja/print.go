package jinja

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// toText is str(v) of a value that holds no others.
func toText(v any) Text {
	switch x := v.(type) {
	case Text:
		return x
	case nil:
		return Literal("None")
	case bool:
		if x {
			return Literal("True")
		}
		return Literal("False")
	case int64:
		return Literal(strconv.FormatInt(x, 10))
	case float64:
		return Literal(formatFloat(x))
	case undefined:
		return Text{}
	}
	return Literal(describe(v))
}

// text is str(v).
func (r *run) text(v any) (Text, error) {
	switch v.(type) {
	case *List, *Dict, *namespace:
		w := &printer{run: r, python: true, indent: -1}
		err := w.value(v, 0)
		return w.out.text(), err
	}
	return toText(v), nil
}

// json is json.dumps(v, ensure_ascii=False, indent=indent); indent -1 is none.
func (r *run) json(v any, indent int) (Text, error) {
	w := &printer{run: r, indent: indent}
	err := w.value(v, 0)
	return w.out.text(), err
}

// printer writes a value as JSON, or as Python's repr.
type printer struct {
	run    *run
	out    builder
	python bool
	indent int
}

func (w *printer) literal(s string) error {
	w.out.add(s, false)
	return w.run.charge(len(s))
}

func (w *printer) value(v any, depth int) error {
	if err := w.run.step(); err != nil {
		return err
	}
	if err := w.run.enter(); err != nil {
		return err
	}
	defer w.run.leave()
	switch x := v.(type) {
	case Text:
		return w.quoted(x)
	case nil, bool:
		if w.python {
			return w.literal(toText(x).s)
		}
		b, _ := json.Marshal(x)
		return w.literal(string(b))
	case int64, float64:
		return w.literal(toText(x).s)
	case *List:
		open, closer := "[", "]"
		if x.tuple && w.python {
			open, closer = "(", ")"
		}
		return w.group(open, closer, len(x.items), depth, func(i int) error { return w.value(x.items[i], depth+1) })
	case *Dict:
		return w.group("{", "}", len(x.keys), depth, func(i int) error {
			if err := w.quoted(x.keys[i]); err != nil {
				return err
			}
			if err := w.literal(": "); err != nil {
				return err
			}
			return w.value(x.values[i], depth+1)
		})
	case *namespace:
		return w.value(x.Dict, depth)
	}
	if w.python {
		return w.literal(describe(v))
	}
	return fmt.Errorf("%s has no JSON form", describe(v))
}

func (w *printer) group(open, closer string, n, depth int, item func(int) error) error {
	if err := w.literal(open); err != nil {
		return err
	}
	for i := range n {
		sep := ""
		switch {
		case w.indent >= 0 && i > 0:
			sep = ",\n" + strings.Repeat(" ", w.indent*(depth+1))
		case w.indent >= 0:
			sep = "\n" + strings.Repeat(" ", w.indent*(depth+1))
		case i > 0:
			sep = ", "
		}
		if err := w.literal(sep); err != nil {
			return err
		}
		if err := item(i); err != nil {
			return err
		}
	}
	if w.indent >= 0 && n > 0 {
		closer = "\n" + strings.Repeat(" ", w.indent*depth) + closer
	}
	return w.literal(closer)
}

func (w *printer) quoted(t Text) error {
	if err := w.run.charge(2 * len(t.s)); err != nil {
		return err
	}
	quote, escape := "\"", escapeJSON
	if w.python {
		quote, escape = "'", escapePython
		if strings.Contains(t.s, "'") && !strings.Contains(t.s, "\"") {
			quote, escape = "\"", escapePythonDouble
		}
	}
	w.out.add(quote, false)
	for s, user := range t.Parts() {
		w.out.add(escape(s), user)
	}
	w.out.add(quote, false)
	return nil
}

var jsonEscapes = func() *strings.Replacer {
	pairs := []string{"\"", "\\\"", "\\", "\\\\", "\n", "\\n", "\r", "\\r", "\t", "\\t", "\b", "\\b", "\f", "\\f"}
	for c := range 0x20 {
		if !strings.ContainsRune("\n\r\t\b\f", rune(c)) {
			pairs = append(pairs, string(rune(c)), fmt.Sprintf("\\u%04x", c))
		}
	}
	return strings.NewReplacer(pairs...)
}()

var (
	pythonEscapes       = strings.NewReplacer("\\", "\\\\", "'", "\\'", "\n", "\\n", "\r", "\\r", "\t", "\\t")
	pythonDoubleEscapes = strings.NewReplacer("\\", "\\\\", "\n", "\\n", "\r", "\\r", "\t", "\\t")
)

func escapeJSON(s string) string         { return jsonEscapes.Replace(s) }
func escapePython(s string) string       { return pythonEscapes.Replace(s) }
func escapePythonDouble(s string) string { return pythonDoubleEscapes.Replace(s) }

// ParseJSON reads one JSON document. Its texts, keys too, count as a user's; the
// order of keys is kept.
func ParseJSON(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := readJSON(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows the JSON document")
	}
	return v, nil
}

func readJSON(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth/2 {
		return nil, fmt.Errorf("JSON nested deeper than %d", maxDepth/2)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch x := t.(type) {
	case json.Delim:
		if x == '[' {
			return readList(d, depth)
		}
		return readDict(d, depth)
	case string:
		return User(x), nil
	case json.Number:
		if n, err := x.Int64(); err == nil {
			return n, nil
		}
		f, err := x.Float64()
		return f, err
	case bool:
		return x, nil
	}
	return nil, nil
}

func readList(d *json.Decoder, depth int) (any, error) {
	l := NewList()
	for d.More() {
		v, err := readJSON(d, depth+1)
		if err != nil {
			return nil, err
		}
		l.items = append(l.items, v)
	}
	_, err := d.Token()
	return l, err
}

func readDict(d *json.Decoder, depth int) (any, error) {
	m := NewDict()
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		v, err := readJSON(d, depth+1)
		if err != nil {
			return nil, err
		}
		m.set(User(key.(string)), v)
	}
	_, err := d.Token()
	return m, err
}
