package jinja

import (
	"encoding/json"
	"testing"
)

// FuzzParseJSON reads tool calls and tool declarations of a request.
func FuzzParseJSON(f *testing.F) {
	f.Add([]byte(`[{"type":"function","function":{"name":"a","parameters":{"x":[1,2.5e3,null,true,"é"]}}}]`))
	f.Add([]byte(`[[[[]]]] `))
	f.Add([]byte(`{} {}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ParseJSON(b); err == nil && !json.Valid(b) {
			t.Errorf("%q is not JSON, and passes", b)
		}
	})
}
