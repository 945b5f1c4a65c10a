package grammar

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// schema compiles a JSON schema. Answers are a part of what the schema allows: each
// value has few spellings. Objects have their properties in the order in which the
// schema declares them, and others only where additionalProperties says so; strings
// with an enum, a pattern or a format have no needless escapes; numbers have at
// most 16 digits before the point, 16 after it and 2 of an exponent; white space is nothing, one space, or a line end with
// up to 32 spaces, inside of objects and arrays.
type schema struct {
	*rules
	root any
	refs map[*object]ref // rules of schemas that are referred to

	facts map[*object]*facts // of those that oneOf compared
}

func compileSchema(b *rules, text string) error {
	v, err := parseJSON(text)
	if err != nil {
		return fmt.Errorf("schema: %w", err)
	}
	c := &schema{rules: b, root: v, refs: map[*object]ref{}, facts: map[*object]*facts{}}
	c.add("root", nil)
	b.bodies[0], err = c.value(v, "#")
	return err
}

// maxOneOf bounds how many schemas are compared with each other.
const maxOneOf = 128

// annotations say nothing about what is valid.
var annotations = []string{"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly",
	"discriminator", "$defs", "definitions"}

// keywords of each type.
var keywords = map[string][]string{
	"object":  {"properties", "required", "additionalProperties"},
	"array":   {"items", "prefixItems", "minItems", "maxItems"},
	"string":  {"minLength", "maxLength", "pattern", "format"},
	"integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
	"number":  {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
	"boolean": nil,
	"null":    nil,
}

// types in the order in which alternatives are written.
var types = []string{"object", "array", "string", "integer", "number", "boolean", "null"}

// fault is an error at a place of the schema.
func fault(path, format string, args ...any) error {
	return fmt.Errorf("schema %s: %s", path, fmt.Sprintf(format, args...))
}

// under is the path of a field.
func under(path string, key any) string {
	return path + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(fmt.Sprint(key))
}

// value returns what a schema allows.
func (c *schema) value(v any, path string) (expr, error) {
	o, ok := v.(*object)
	switch {
	case v == true:
		return c.any(), nil
	case v == false:
		return nil, fault(path, "false allows nothing")
	case !ok:
		return nil, fault(path, "want an object, true or false")
	}
	for _, main := range []struct {
		key  string
		also []string
		read func(o *object, path string) (expr, error)
	}{
		{"$ref", nil, c.ref},
		{"const", []string{"type"}, c.values},
		{"enum", []string{"type"}, c.values},
		{"anyOf", nil, c.anyOf},
		{"oneOf", nil, c.oneOf},
		{"allOf", nil, c.allOf},
	} {
		if _, has := o.values[main.key]; !has {
			continue
		}
		for _, key := range o.keys {
			if key != main.key && !slices.Contains(annotations, key) && !slices.Contains(main.also, key) {
				return nil, c.misplaced(key, path, "beside "+main.key)
			}
		}
		return main.read(o, path)
	}
	return c.typed(o, path)
}

// misplaced says why a keyword is refused.
func (c *schema) misplaced(key, path, where string) error {
	for _, list := range keywords {
		if slices.Contains(list, key) || slices.Contains([]string{"type", "$ref", "enum", "const", "anyOf", "oneOf", "allOf"}, key) {
			return fault(under(path, key), "the keyword %q is not supported %s", key, where)
		}
	}
	return fault(under(path, key), "the keyword %.60q is not supported", key)
}

// typed reads a schema of one or more types.
func (c *schema) typed(o *object, path string) (expr, error) {
	wanted, err := typesOf(o, path)
	if err != nil {
		return nil, err
	}
	for _, key := range o.keys {
		fits := slices.ContainsFunc(wanted, func(t string) bool { return slices.Contains(keywords[t], key) })
		if key != "type" && !fits && !slices.Contains(annotations, key) {
			return nil, c.misplaced(key, path, "with type "+strings.Join(wanted, ", "))
		}
	}
	if slices.Contains(wanted, "number") { // integers are numbers
		wanted = slices.DeleteFunc(wanted, func(t string) bool { return t == "integer" })
	}
	if !slices.ContainsFunc(o.keys, func(k string) bool { return !slices.Contains(annotations, k) }) {
		return c.any(), nil
	}
	out := alt{}
	for _, t := range wanted {
		var e expr
		var err error
		switch t {
		case "object":
			e, err = c.object(o, path)
		case "array":
			e, err = c.array(o, path)
		case "string":
			e, err = c.text(o, path)
		case "integer", "number":
			e, err = c.number(o, path, t == "integer")
		case "boolean":
			e = alt{literal("true"), literal("false")}
		case "null":
			e = literal("null")
		}
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	if len(out) == 1 {
		return out[0], nil
	}
	return out, nil
}

// typesOf returns the types that a schema names, or that its keywords are about.
func typesOf(o *object, path string) ([]string, error) {
	var named []any
	switch v := o.values["type"].(type) {
	case nil:
		if _, has := o.values["type"]; has {
			return nil, fault(under(path, "type"), "want a type or a list of types")
		}
		var out []string
		for _, t := range types {
			if t != "integer" && slices.ContainsFunc(o.keys, func(k string) bool { return slices.Contains(keywords[t], k) }) {
				out = append(out, t)
			}
		}
		if len(out) > 1 {
			return nil, fault(path, "the type is missing, and the keywords are about %s", strings.Join(out, " and "))
		}
		if len(out) == 0 {
			out = slices.Clone(types)
		}
		return out, nil
	case string:
		named = []any{v}
	case []any:
		named = v
	}
	var out []string
	for _, v := range named {
		t, _ := v.(string)
		if _, known := keywords[t]; !known || slices.Contains(out, t) {
			return nil, fault(under(path, "type"), "want distinct types of %s", strings.Join(types, ", "))
		}
		out = append(out, t)
	}
	if len(out) == 0 {
		return nil, fault(under(path, "type"), "want a type or a list of types")
	}
	return out, nil
}

// ref reads a reference to a place of the same schema.
func (c *schema) ref(o *object, path string) (expr, error) {
	path = under(path, "$ref")
	to, _ := o.values["$ref"].(string)
	if to != "#" && !strings.HasPrefix(to, "#/") {
		return nil, fault(path, "%.100q is not supported: want # or a path that begins with #/", to)
	}
	v := c.root
	for _, key := range strings.Split(to, "/")[1:] {
		key = strings.NewReplacer("~1", "/", "~0", "~").Replace(key)
		switch in := v.(type) {
		case *object:
			v = in.values[key]
		case []any:
			i, err := strconv.Atoi(key)
			if v = nil; err == nil && i >= 0 && i < len(in) {
				v = in[i]
			}
		default:
			v = nil
		}
	}
	at, ok := v.(*object)
	if !ok {
		if b, is := v.(bool); is {
			return c.value(b, to)
		}
		return nil, fault(path, "%.100q is not in the schema", to)
	}
	id, ok := c.refs[at]
	if !ok {
		id = c.add(to, nil)
		c.refs[at] = id
		body, err := c.value(at, to)
		if err != nil {
			return nil, err
		}
		c.bodies[id] = body
	}
	return id, nil
}

// values reads an enum or a const.
func (c *schema) values(o *object, path string) (expr, error) {
	list, err := constants(o, path)
	if err != nil {
		return nil, err
	}
	wanted := types
	if _, has := o.values["type"]; has {
		if wanted, err = typesOf(o, path); err != nil {
			return nil, err
		}
	}
	out := alt{}
	for _, v := range list {
		if slices.ContainsFunc(wanted, func(t string) bool { return isOf(v, t) }) {
			out = append(out, literal(compact(v)))
		}
	}
	if len(out) == 0 {
		return nil, fault(path, "no value is of the type")
	}
	return out, nil
}

// constants returns the values of an enum or a const.
func constants(o *object, path string) ([]any, error) {
	v, has := o.values["const"]
	if !has {
		list, ok := o.values["enum"].([]any)
		if !ok || len(list) == 0 {
			return nil, fault(under(path, "enum"), "want an array of at least one value")
		}
		return list, nil
	}
	if _, both := o.values["enum"]; both {
		return nil, fault(under(path, "enum"), "the keyword %q is not supported beside const", "enum")
	}
	return []any{v}, nil
}

// isOf reports whether a value is of a type.
func isOf(v any, t string) bool {
	switch v := v.(type) {
	case nil:
		return t == "null"
	case bool:
		return t == "boolean"
	case string:
		return t == "string"
	case []any:
		return t == "array"
	case *object:
		return t == "object"
	case json.Number:
		return t == "number" || t == "integer" && !strings.ContainsAny(string(v), ".eE")
	}
	return false
}

func (c *schema) branches(o *object, path, key string) ([]expr, []any, error) {
	list, _ := o.values[key].([]any)
	if len(list) == 0 {
		return nil, nil, fault(under(path, key), "want an array of at least one schema")
	}
	out := make([]expr, len(list))
	for i, v := range list {
		var err error
		if out[i], err = c.value(v, under(under(path, key), i)); err != nil {
			return nil, nil, err
		}
	}
	return out, list, nil
}

func (c *schema) anyOf(o *object, path string) (expr, error) {
	out, _, err := c.branches(o, path, "anyOf")
	return alt(out), err
}

func (c *schema) allOf(o *object, path string) (expr, error) {
	out, list, err := c.branches(o, path, "allOf")
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, fault(under(path, "allOf"), "it is supported with one schema only")
	}
	return out[0], nil
}

// oneOf is anyOf if no two of its schemas can hold of one value.
func (c *schema) oneOf(o *object, path string) (expr, error) {
	out, list, err := c.branches(o, path, "oneOf")
	if err != nil {
		return nil, err
	}
	if len(list) > maxOneOf {
		return nil, fault(under(path, "oneOf"), "it has %d schemas, at most %d are supported; use anyOf", len(list), maxOneOf)
	}
	for i := range list {
		for j := range i {
			if !c.disjoint(list[i], list[j], 0) {
				return nil, fault(under(path, "oneOf"), "schemas %d and %d might both hold of one value; use anyOf", j, i)
			}
		}
	}
	return alt(out), nil
}

// follow returns the schema that v is or refers to.
func (c *schema) follow(v any) *object {
	for range 16 {
		o, _ := v.(*object)
		if o == nil {
			return nil
		}
		to, is := o.values["$ref"].(string)
		if !is {
			return o
		}
		v = c.root
		for _, key := range strings.Split(to, "/")[1:] {
			in, _ := v.(*object)
			if in == nil {
				return nil
			}
			v = in.values[strings.NewReplacer("~1", "/", "~0", "~").Replace(key)]
		}
	}
	return nil
}

// facts is what is known of the values of a schema.
type facts struct {
	constants map[string]bool // spelled so that equal values are; nil: not just some
	types     map[string]bool // integers are numbers
	required  map[string]bool
}

func (c *schema) factsOf(o *object) *facts {
	if f := c.facts[o]; f != nil {
		return f
	}
	f := &facts{types: map[string]bool{}, required: map[string]bool{}}
	for _, t := range c.kinds(o) {
		f.types[t] = true
	}
	if list, err := constants(o, ""); err == nil {
		f.constants = map[string]bool{}
		for _, v := range list {
			f.constants[identity(v)] = true
		}
	}
	required, _ := o.values["required"].([]any)
	for _, v := range required {
		if name, ok := v.(string); ok {
			f.required[name] = true
		}
	}
	c.facts[o] = f
	return f
}

// identity is the same for values that may be equal.
func identity(v any) string {
	switch v := v.(type) {
	case json.Number:
		f, _ := v.Float64()
		return fmt.Sprint(f + 0) // -0 is 0
	case []any:
		return "array"
	case *object:
		return "object"
	}
	return compact(v)
}

func apart(a, b map[string]bool) bool {
	for k := range a {
		if b[k] {
			return false
		}
	}
	return true
}

// disjoint reports whether it is plain that no value satisfies both schemas: their
// types differ, or their constants, or those of a property that both require.
func (c *schema) disjoint(v, w any, depth int) bool {
	a, b := c.follow(v), c.follow(w)
	if a == nil || b == nil || depth > 1 {
		return false
	}
	f, g := c.factsOf(a), c.factsOf(b)
	if f.constants != nil && g.constants != nil {
		return apart(f.constants, g.constants)
	}
	if apart(f.types, g.types) {
		return true
	}
	p, _ := a.values["properties"].(*object)
	q, _ := b.values["properties"].(*object)
	if p == nil || q == nil || len(f.types) != 1 || len(g.types) != 1 {
		return false
	}
	for _, key := range p.keys {
		if _, has := q.values[key]; has && f.required[key] && g.required[key] && c.disjoint(p.values[key], q.values[key], depth+1) {
			return true
		}
	}
	return false
}

// kinds returns the types that values of a schema may have, integers as numbers.
func (c *schema) kinds(o *object) []string {
	var out []string
	if list, err := constants(o, ""); err == nil {
		for _, v := range list {
			for _, t := range types {
				if t != "integer" && isOf(v, t) {
					out = append(out, t)
				}
			}
		}
		return out
	}
	for _, key := range []string{"anyOf", "oneOf", "allOf"} {
		if _, has := o.values[key]; has {
			return types
		}
	}
	list, err := typesOf(o, "")
	if err != nil {
		return types
	}
	for _, t := range list {
		if t == "integer" {
			t = "number"
		}
		out = append(out, t)
	}
	return out
}
