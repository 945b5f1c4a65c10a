package openai

import (
	"github.com/gonka-mesh/mesh/inference/grammar"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// constraint reads the form that the answer has to have: response_format as OpenAI has
// it, grammar as llama.cpp and guided_json as vLLM. It is compiled, so that what is
// wrong with it is told before anybody is asked.
func constraint(f fields) *inferencepb.Constraint {
	format := f.child("response_format")
	var c *inferencepb.Constraint
	set := ""
	found := func(in fields, key string, kind grammar.Kind, text string) {
		if set != "" {
			in.fail(key, "is not supported together with %s", set)
			return
		}
		set = in.name(key)
		c = &inferencepb.Constraint{Kind: string(kind), Text: text}
		if *f.err != nil {
			return
		}
		if _, err := grammar.Compile(kind, text); err != nil {
			in.fail(key, "%v", err)
		}
	}
	if f.has("response_format") {
		switch kind := format.text("type"); kind {
		case "text":
		case "json_object":
			found(f, "response_format", grammar.Object, "")
		case "json_schema":
			schema := format.child("json_schema")
			found(schema, "schema", grammar.Schema, jsonText(schema, "schema"))
		default:
			format.fail("type", "%.40q is not supported; text, json_object and json_schema are", kind)
		}
	}
	if f.has("guided_json") {
		found(f, "guided_json", grammar.Schema, jsonText(f, "guided_json"))
	}
	if f.has("grammar") {
		found(f, "grammar", grammar.GBNF, f.text("grammar"))
	}
	if c != nil && f.flag("ignore_eos") {
		f.fail("ignore_eos", "is not supported together with %s", set)
	}
	return c
}

// jsonText returns a JSON schema, which may also be a string that holds one, in the
// form that requests carry.
func jsonText(f fields, key string) string {
	v := f.values[key]
	if s, ok := v.(string); ok {
		var err error
		if v, err = parseJSON([]byte(s)); err != nil {
			f.fail(key, "%v", err)
			return ""
		}
	}
	if _, ok := v.(*object); !ok {
		f.fail(key, "want a JSON schema, got %s", kindOf(v))
		return ""
	}
	return string(appendJSON(nil, v))
}
