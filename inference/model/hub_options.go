package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/gonka-mesh/mesh"
)

// tokenizerConfig is tokenizer_config.json.
type tokenizerConfig struct {
	BOS      tokenName       `json:"bos_token"`
	EOS      tokenName       `json:"eos_token"`
	AddBOS   *bool           `json:"add_bos_token"`
	Template json.RawMessage `json:"chat_template"`
}

// tokenName is the text of a token, which stands alone or inside an object.
type tokenName string

// UnmarshalJSON reads both forms; null is the empty text.
func (t *tokenName) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		var object struct{ Content string }
		err := json.Unmarshal(b, &object)
		*t = tokenName(object.Content)
		return err
	}
	return json.Unmarshal(b, (*string)(t))
}

// read decodes the JSON files but the index.
func (h *hub) read(content map[string][]byte) (err error) {
	if h.config, err = readHubConfig(content["config.json"]); err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	h.tokenizer = content["tokenizer.json"]
	if b := content["tokenizer_config.json"]; b != nil {
		if err := json.Unmarshal(b, &h.options); err != nil {
			return fmt.Errorf("tokenizer_config.json: %w", err)
		}
		if h.templates, err = readTemplates(h.options.Template); err != nil {
			return fmt.Errorf("tokenizer_config.json: chat_template: %w", err)
		}
	}
	if b := content["chat_template.jinja"]; b != nil { // newer, so it goes first
		h.templates = append([]namedTemplate{{"default", string(b)}}, h.templates...)
	}
	return h.readEnds(content["generation_config.json"])
}

// readTemplates reads one template, or a list of named ones, of which the one that
// is called default comes first.
func readTemplates(raw json.RawMessage) ([]namedTemplate, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	if raw[0] == '"' {
		var source string
		err := json.Unmarshal(raw, &source)
		return []namedTemplate{{"default", source}}, err
	}
	var list []struct{ Name, Template string }
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	var out []namedTemplate
	for _, t := range list {
		out = append(out, namedTemplate{t.Name, t.Template})
	}
	i := slices.IndexFunc(out, func(t namedTemplate) bool { return t.name == "default" })
	if i < 0 && len(out) > 0 {
		return nil, errors.New("no template is called default")
	}
	if i > 0 {
		out[0], out[i] = out[i], out[0]
	}
	return out, nil
}

// readEnds reads the tokens that end an answer, from generation_config.json or else
// from config.json: a number or a list of some.
func (h *hub) readEnds(generation []byte) error {
	file, raw := "config.json", h.config.eos
	if generation != nil {
		var g struct {
			EOS json.RawMessage `json:"eos_token_id"`
		}
		if err := json.Unmarshal(generation, &g); err != nil {
			return fmt.Errorf("generation_config.json: %w", err)
		}
		if len(g.EOS) > 0 && string(g.EOS) != "null" {
			file, raw = "generation_config.json", g.EOS
		}
	}
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	var ids []int64
	if raw[0] != '[' {
		raw = slices.Concat([]byte("["), raw, []byte("]"))
	}
	if err := json.Unmarshal(raw, &ids); err != nil {
		return fmt.Errorf("%s: eos_token_id: %w", file, err)
	}
	for _, id := range ids {
		if id < 0 || id >= int64(h.config.Vocab) {
			return fmt.Errorf("%s: eos_token_id %d: the vocabulary has %d tokens", file, id, h.config.Vocab)
		}
		h.ends = append(h.ends, int32(id))
	}
	return nil
}

// file makes the model of what was read.
func (h *hub) file(parts []part) *File {
	f := &File{
		Config: h.config.Config, Tensors: h.tensors, parts: parts, byName: h.byName, format: "safetensors", templates: h.templates,
		tokenHash: func() mesh.Hash { return mesh.HashOf(h.tokenizer) },
	}
	f.tokenizer = sync.OnceValues(func() (*Tokenizer, error) {
		t, err := h.newTokenizer()
		if err != nil {
			return nil, fmt.Errorf("tokenizer.json: %w", err)
		}
		return t, nil
	})
	f.template = sync.OnceValues(func() (*Template, error) { return newTemplate(f) })
	return f
}
