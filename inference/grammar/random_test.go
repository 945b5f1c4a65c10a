package grammar

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// writer makes random schemas, and random texts that satisfy them in the spelling that
// answers have.
type writer struct{ *rand.Rand }

var words = []string{"a", "ab", "name", "é\"", "x_1", "Zeit", "値", "a/b~c", ""}

func (w writer) schema(depth int) map[string]any {
	kinds := []string{"string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"}
	if depth > 0 {
		kinds = append(kinds, "object", "object", "array", "tuple", "anyOf", "types", "map", "ref")
	}
	switch k := kinds[w.IntN(len(kinds))]; k {
	case "string":
		s := map[string]any{"type": "string"}
		if w.IntN(2) == 0 {
			s["minLength"] = w.IntN(3)
			s["maxLength"] = 2 + w.IntN(12)
		}
		return s
	case "integer", "number":
		s := map[string]any{"type": k}
		if w.IntN(2) == 0 {
			lo := w.IntN(400) - 200
			s["minimum"], s["maximum"] = lo, lo+w.IntN(1500)
			if w.IntN(3) == 0 {
				delete(s, "maximum")
				s["exclusiveMaximum"] = lo + 1 + w.IntN(50)
			}
		}
		return s
	case "enum":
		return map[string]any{"enum": []any{"a", "ab", words[3], 7, -1.5, nil, true, []any{1, "x"}}[w.IntN(4):]}
	case "const":
		return map[string]any{"const": words[w.IntN(len(words))]}
	case "pattern":
		return map[string]any{"type": "string", "pattern": patterns[w.IntN(len(patterns))]}
	case "format":
		return map[string]any{"type": "string", "format": []string{"date", "date-time", "uuid", "email"}[w.IntN(4)]}
	case "object":
		props, required := map[string]any{}, []any{}
		for _, i := range w.Perm(len(words))[:w.IntN(4)] {
			props[words[i]] = w.schema(depth - 1)
			if w.IntN(2) == 0 {
				required = append(required, words[i])
			}
		}
		s := map[string]any{"type": "object", "properties": props, "required": required, "additionalProperties": false}
		if w.IntN(3) == 0 {
			s["additionalProperties"] = w.schema(depth - 1)
		}
		return s
	case "map":
		return map[string]any{"type": "object", "additionalProperties": w.schema(depth - 1)}
	case "array":
		s := map[string]any{"type": "array", "items": w.schema(depth - 1)}
		if w.IntN(2) == 0 {
			s["minItems"], s["maxItems"] = w.IntN(2), 1+w.IntN(3)
		}
		return s
	case "tuple":
		return map[string]any{"type": "array", "prefixItems": []any{w.schema(depth - 1), w.schema(depth - 1)}, "minItems": w.IntN(3), "items": w.schema(depth - 1)}
	case "anyOf":
		return map[string]any{"anyOf": []any{w.schema(depth - 1), w.schema(depth - 1), w.schema(depth - 1)}}
	case "types":
		return map[string]any{"type": []any{"null", "array", "string"}, "items": w.schema(depth - 1), "maxLength": 4}
	case "ref":
		return map[string]any{"$ref": "#/$defs/node"}
	default:
		return map[string]any{"type": k}
	}
}

var patterns = []string{`^[a-z]{2,5}$`, `^\d+(\.\d\d)?$`, `é"\\?$`, `^(foo|bar|f+)[^a-z]*`, `x`}

// node is what schemas refer to: a tree.
var node = map[string]any{"type": "object", "properties": map[string]any{"v": map[string]any{"type": "integer"}, "next": map[string]any{
	"anyOf": []any{map[string]any{"type": "null"}, map[string]any{"$ref": "#/$defs/node"}}}}, "required": []any{"v"}, "additionalProperties": false}

func (w writer) white() string {
	return []string{"", "", " ", "\n", "\n    "}[w.IntN(5)]
}

func (w writer) str(lo, hi int) string {
	var s strings.Builder
	for range lo + w.IntN(hi-lo+1) {
		s.WriteString([]string{"a", "b", " ", "é", "値", "😀", `\n`, `\"`, `\u00e9`, `\ud83d\ude00`, `\\`, "\x7f"}[w.IntN(12)])
	}
	return `"` + s.String() + `"`
}

func num(v any) int { return v.(int) }

// text writes a value of a schema; keys has the order of each schema's properties.
func (w writer) text(s map[string]any, depth int) string {
	pick := func(list []any) string {
		b, _ := json.Marshal(list[w.IntN(len(list))])
		return string(b)
	}
	switch {
	case s["$ref"] != nil:
		return w.text(node, depth)
	case s["anyOf"] != nil:
		list := s["anyOf"].([]any)
		if depth < -5 {
			list = list[:1]
		}
		return w.text(list[w.IntN(len(list))].(map[string]any), depth)
	case s["enum"] != nil:
		return pick(s["enum"].([]any))
	case s["const"] != nil:
		return pick([]any{s["const"]})
	case s["pattern"] != nil:
		return map[string]string{patterns[0]: `"abc"`, patterns[1]: `"12.50"`, patterns[2]: `"xé\"\\"`, patterns[3]: `"fffA\n"`, patterns[4]: `"axb"`}[s["pattern"].(string)]
	case s["format"] != nil:
		return map[string]string{"date": `"2024-02-29"`, "date-time": `"1999-12-31T23:59:59.5Z"`, "uuid": `"00000000-0000-4000-8000-0000000000aF"`, "email": `"a@b.cd"`}[s["format"].(string)]
	}
	kind := s["type"]
	if list, ok := kind.([]any); ok {
		kind = list[w.IntN(len(list))]
	}
	switch kind {
	case "null":
		return "null"
	case "boolean":
		return []string{"true", "false"}[w.IntN(2)]
	case "string":
		lo, hi := 0, 6
		if s["maxLength"] != nil {
			hi = num(s["maxLength"])
		}
		if s["minLength"] != nil {
			lo = num(s["minLength"])
		}
		return w.str(lo, hi)
	case "integer", "number":
		lo, hi := -1000, 100000
		if s["minimum"] != nil {
			lo = num(s["minimum"])
			hi = lo
			if s["maximum"] != nil {
				hi = num(s["maximum"])
			}
		}
		return fmt.Sprint(lo + w.IntN(hi-lo+1))
	case "array":
		lo, hi := 0, 3
		if s["minItems"] != nil {
			lo = num(s["minItems"])
		}
		if s["maxItems"] != nil {
			hi = num(s["maxItems"])
		}
		first, _ := s["prefixItems"].([]any)
		var items []string
		for i := range lo + w.IntN(max(hi-lo, 0)+1) {
			of := s["items"]
			if i < len(first) {
				of = first[i]
			}
			items = append(items, w.text(of.(map[string]any), depth-1))
		}
		return w.join(items, "[", "]")
	}
	var items []string
	props, _ := s["properties"].(map[string]any)
	required, _ := s["required"].([]any)
	for _, k := range sortedKeys(props) {
		needed := false
		for _, r := range required {
			needed = needed || r == k
		}
		if needed || w.IntN(2) == 0 && depth > -5 {
			items = append(items, quote(k)+":"+w.white()+w.text(props[k].(map[string]any), depth-1))
		}
	}
	if more, ok := s["additionalProperties"].(map[string]any); ok {
		for i := range w.IntN(3) {
			items = append(items, fmt.Sprintf(`"b%d\n":%s%s`, i, w.white(), w.text(more, depth-1)))
		}
	}
	return w.join(items, "{", "}")
}

func (w writer) join(items []string, open, end string) string {
	out := open + w.white()
	if len(items) == 0 {
		return out + end
	}
	for i, s := range items {
		if i > 0 {
			out += "," + w.white()
		}
		out += s
	}
	return out + w.white() + end
}

// sortedKeys is the order in which json.Marshal declares properties.
func sortedKeys(m map[string]any) []string {
	b, _ := json.Marshal(m)
	dec := json.NewDecoder(bytes.NewReader(b))
	var out []string
	dec.Token()
	for dec.More() {
		k, _ := dec.Token()
		var skip json.RawMessage
		dec.Decode(&skip)
		out = append(out, k.(string))
	}
	return out
}

// satisfies is a validator of its own, on decoded values, as JSON Schema defines it.
func satisfies(s map[string]any, v any) bool {
	if s["$ref"] != nil {
		return satisfies(node, v)
	}
	if list, ok := s["anyOf"].([]any); ok {
		for _, e := range list {
			if satisfies(e.(map[string]any), v) {
				return true
			}
		}
		return false
	}
	equal := func(c any) bool {
		a, _ := json.Marshal(c)
		b, _ := json.Marshal(v)
		return bytes.Equal(a, b)
	}
	if list, ok := s["enum"].([]any); ok {
		for _, c := range list {
			if equal(c) {
				return true
			}
		}
		return false
	}
	if c, ok := s["const"]; ok {
		return equal(c)
	}
	types, ok := s["type"].([]any)
	if !ok {
		types = []any{s["type"]}
	}
	for _, t := range types {
		if ofType(s, t, v) {
			return true
		}
	}
	return false
}

func ofType(s map[string]any, t, v any) bool {
	limit := func(key string, otherwise int) int {
		if n, ok := s[key]; ok {
			return num(n)
		}
		return otherwise
	}
	switch v := v.(type) {
	case nil:
		return t == "null"
	case bool:
		return t == "boolean"
	case string:
		n := utf8.RuneCountInString(v)
		if t != "string" || n < limit("minLength", 0) || n > limit("maxLength", 1<<30) {
			return false
		}
		if p, ok := s["pattern"]; ok && !regexp.MustCompile(p.(string)).MatchString(v) {
			return false
		}
		switch s["format"] {
		case "date":
			_, err := time.Parse("2006-01-02", v)
			return err == nil
		case "date-time":
			_, err := time.Parse(time.RFC3339, v)
			return err == nil
		case "email":
			return strings.Count(v, "@") == 1
		case "uuid":
			return len(v) == 36
		}
		return true
	case float64:
		whole := v == math.Trunc(v)
		return (t == "number" || t == "integer" && whole) && (s["minimum"] == nil || v >= float64(num(s["minimum"]))) &&
			(s["maximum"] == nil || v <= float64(num(s["maximum"]))) && (s["exclusiveMaximum"] == nil || v < float64(num(s["exclusiveMaximum"])))
	case []any:
		if t != "array" || len(v) < limit("minItems", 0) || len(v) > limit("maxItems", 1<<30) {
			return false
		}
		first, _ := s["prefixItems"].([]any)
		for i, e := range v {
			of := s["items"]
			if i < len(first) {
				of = first[i]
			}
			if !satisfies(of.(map[string]any), e) {
				return false
			}
		}
		return true
	}
	o := v.(map[string]any)
	if t != "object" {
		return false
	}
	required, _ := s["required"].([]any)
	for _, k := range required {
		if _, has := o[k.(string)]; !has {
			return false
		}
	}
	props, _ := s["properties"].(map[string]any)
	for k, e := range o {
		of, declared := props[k]
		if !declared {
			of = s["additionalProperties"]
		}
		m, ok := of.(map[string]any)
		if !ok || !satisfies(m, e) {
			return false
		}
	}
	return true
}

// TestRandomSchemas writes texts that satisfy random schemas, which have to be accepted,
// and draws answers, which have to satisfy them.
func TestRandomSchemas(t *testing.T) {
	v := testVocabulary(t, 3000)
	w := writer{newRand(t)}
	ended := 0
	for range 150 {
		s := w.schema(3)
		b, _ := json.Marshal(with(s, "$defs", map[string]any{"node": node}))
		g, err := Compile(Schema, string(b))
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		for range 5 {
			text := w.text(s, 3)
			if !whole(t, g, text) {
				t.Fatalf("%s refuses %s", b, text)
			}
			for i := range len(text) {
				if ok, _, _ := g.Match([]byte(text[:i])); !ok {
					t.Fatalf("%s refuses %q, which begins %s", b, text[:i], text)
				}
			}
		}
		for range 2 {
			text, done := drawn(t, w.Rand, g, v, 200)
			if !done {
				continue
			}
			ended++
			var value any
			if err := json.Unmarshal([]byte(text), &value); err != nil || !satisfies(s, value) {
				t.Fatalf("%s allows %s: %v", b, text, err)
			}
		}
	}
	if ended < 150 {
		t.Errorf("only %d of 300 answers ended", ended)
	}
}

func with(m map[string]any, key string, v any) map[string]any {
	out := map[string]any{key: v}
	for k, e := range m {
		out[k] = e
	}
	return out
}

// drawn draws an answer from random logits: after some tokens the end, where that is
// allowed, or tokens that lead there. Half-way its matcher is built anew.
func drawn(t *testing.T, r *rand.Rand, g *Grammar, v *Vocabulary, limit int) (string, bool) {
	m := NewMatcher(g, v)
	var text []byte
	var ids []int32
	for len(ids) < limit && !m.Done() {
		mask, err := m.Mask()
		if err != nil {
			t.Fatalf("after %q: %v", text, err)
		}
		if r.IntN(10) == 0 {
			again := NewMatcher(g, v)
			for _, id := range ids {
				if err := again.Accept(id); err != nil {
					t.Fatal(err)
				}
			}
			if other, err := again.Mask(); err != nil || !equalMasks(mask, other) {
				t.Fatalf("a matcher built anew after %q has another mask: %v", text, err)
			}
			m = again
		}
		id := pick(r, mask)
		if len(ids) > 20 {
			for _, s := range []string{`"`, "}", "]", ",", ":", "1"} {
				for b := range int32(256) {
					if has(mask, 5+b) && v.pieces[5+b] == s {
						id = 5 + b
					}
				}
			}
			if has(mask, 3) {
				id = 3
			}
		}
		if err := m.Accept(id); err != nil {
			t.Fatal(err)
		}
		ids, text = append(ids, id), append(text, v.pieces[id]...)
	}
	return string(text), m.Done()
}
