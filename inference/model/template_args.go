package model

import (
	"encoding/json"
	"fmt"

	"github.com/gonka-mesh/mesh/inference/model/jinja"
)

// With returns the template with further variables for it: a JSON object of texts,
// numbers, truth values and nulls. Texts count as a user's. Variables that every
// template gets cannot be replaced. Errors wrap ErrMessages.
func (t *Template) With(args string) (*Template, error) {
	var list map[string]json.RawMessage
	if err := json.Unmarshal([]byte(args), &list); err != nil {
		return nil, fmt.Errorf("%w: template arguments: want a JSON object: %w", ErrMessages, err)
	}
	out := *t
	out.args = make(map[string]any, len(list))
	for name, raw := range list {
		v, err := jinja.ParseJSON(raw)
		if err != nil {
			return nil, fmt.Errorf("%w: template argument %.40q: %w", ErrMessages, name, err)
		}
		switch v.(type) {
		case nil, bool, int64, float64, jinja.Text:
			out.args[name] = v
		default:
			return nil, fmt.Errorf("%w: template argument %.40q: want a text, a number, true, false or null", ErrMessages, name)
		}
	}
	return &out, nil
}
