package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The files of a directory as Hugging Face keeps models, in the order of the
// manifest; the weights come behind them. The first two must be there.
var hubFiles = []string{
	"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", indexName,
}

const (
	indexName   = "model.safetensors.index.json"
	weightsName = "model.safetensors"
)

// hub is a directory of safetensors with its JSON files.
type hub struct {
	table
	config    hubConfig
	tokenizer []byte // tokenizer.json
	options   tokenizerConfig
	ends      []int32 // tokens that end an answer
	templates []namedTemplate
}

// openHub maps the files of a directory. weights is the name of the only file of
// weights; empty: the directory says. All that was mapped comes back, error or not.
func openHub(dir, weights string) (*hub, []part, error) {
	var parts []part
	content := map[string][]byte{}
	open := func(name string) error {
		p, err := openPart(dir, name)
		if err != nil {
			return err
		}
		parts = append(parts, p)
		content[name] = p.data
		return nil
	}
	_, err := os.Stat(filepath.Join(dir, weightsName))
	if weights == "" && err == nil {
		weights = weightsName
	}
	for i, name := range hubFiles {
		if name == indexName && weights != "" {
			continue
		}
		err := open(name)
		if err != nil && (!errors.Is(err, os.ErrNotExist) || i < 2 || name == indexName) {
			return nil, parts, err
		}
	}
	files := []string{weights}
	var index map[string]string
	if weights == "" {
		if files, index, err = readIndex(content[indexName]); err != nil {
			return nil, parts, fmt.Errorf("%s: %w", indexName, err)
		}
	}
	h := &hub{table: table{byName: map[string]*Tensor{}}}
	if err := h.read(content); err != nil {
		return nil, parts, err
	}
	found := map[string]*Tensor{}
	for _, name := range files {
		if err := open(name); err != nil {
			return nil, parts, err
		}
		if err := addShard(found, index, name, content[name]); err != nil {
			return nil, parts, fmt.Errorf("%s: %w", name, err)
		}
	}
	for name, file := range index {
		if found[name] == nil {
			return nil, parts, fmt.Errorf("%s: tensor %.200q is not in %s", indexName, name, file)
		}
	}
	return h, parts, h.rename(found)
}

// readIndex returns the files of weights, ascending, and where each tensor is.
func readIndex(b []byte) (files []string, where map[string]string, err error) {
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, nil, err
	}
	seen := map[string]bool{}
	for tensor, file := range index.WeightMap {
		if seen[file] {
			continue
		}
		if !validName(file) || !strings.HasSuffix(file, ".safetensors") {
			return nil, nil, fmt.Errorf("weight_map: tensor %.80q is in %.80q: want the name of a safetensors file", tensor, file)
		}
		seen[file] = true
		files = append(files, file)
	}
	if len(files) == 0 || len(files) > maxFiles-len(hubFiles) {
		return nil, nil, fmt.Errorf("weight_map names %d files: want 1 to %d", len(files), maxFiles-len(hubFiles))
	}
	slices.Sort(files)
	return files, index.WeightMap, nil
}

// validName reports whether a name is that of a file in the same directory,
// wherever it is read.
func validName(name string) bool {
	if name == "" || len(name) > 128 || name[0] == '.' {
		return false
	}
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

func addShard(found map[string]*Tensor, index map[string]string, name string, data []byte) error {
	tensors, err := parseSafetensors(data)
	if err != nil {
		return err
	}
	for _, t := range tensors {
		if index != nil && index[t.Name] != name {
			return fmt.Errorf("tensor %q: %s does not say that it is here", t.Name, indexName)
		}
		if found[t.Name] != nil {
			return fmt.Errorf("tensor %q stands twice", t.Name)
		}
		found[t.Name] = t
	}
	return nil
}

// layerNames are the names of a layer's tensors, theirs and ours. Those with the
// weights of experts have a number in the middle; see rename.
var layerNames = [][2]string{
	{"input_layernorm.weight", "attn_norm.weight"},
	{"self_attn.q_proj.weight", "attn_q.weight"}, {"self_attn.q_proj.bias", "attn_q.bias"},
	{"self_attn.k_proj.weight", "attn_k.weight"}, {"self_attn.k_proj.bias", "attn_k.bias"},
	{"self_attn.v_proj.weight", "attn_v.weight"}, {"self_attn.v_proj.bias", "attn_v.bias"},
	{"self_attn.o_proj.weight", "attn_output.weight"}, {"self_attn.o_proj.bias", "attn_output.bias"},
	{"self_attn.q_norm.weight", "attn_q_norm.weight"}, {"self_attn.k_norm.weight", "attn_k_norm.weight"},
	{"mlp.gate_proj.weight", "ffn_gate.weight"}, {"mlp.up_proj.weight", "ffn_up.weight"}, {"mlp.down_proj.weight", "ffn_down.weight"},
	{"mlp.gate.weight", "ffn_gate_inp.weight"},
	{"mlp.experts.*.gate_proj.weight", "ffn_gate_exps.weight"}, {"mlp.experts.*.up_proj.weight", "ffn_up_exps.weight"},
	{"mlp.experts.*.down_proj.weight", "ffn_down_exps.weight"},
}

// normNames are those of the norms about the feed-forward network, where gemma2 and
// later have two more; the one name means another tensor there.
var (
	normNames  = [][2]string{{"post_attention_layernorm.weight", "ffn_norm.weight"}}
	gemmaNames = [][2]string{{"post_attention_layernorm.weight", "post_attention_norm.weight"},
		{"pre_feedforward_layernorm.weight", "ffn_norm.weight"}, {"post_feedforward_layernorm.weight", "post_ffw_norm.weight"}}
	endNames = [][2]string{{"model.embed_tokens.weight", embeddingName}, {"model.norm.weight", "output_norm.weight"}, {"lm_head.weight", "output.weight"}}
)

// rename enters the tensors under their GGUF names and gathers the experts.
func (h *hub) rename(found map[string]*Tensor) error {
	c := &h.config.Config
	names := slices.Concat(layerNames, normNames)
	if c.PostNorms {
		names = slices.Concat(layerNames, gemmaNames)
	}
	take := func(theirs, ours string) *Tensor {
		t := found[theirs]
		if t != nil {
			delete(found, theirs)
			h.enter(t, ours)
		}
		return t
	}
	h.say = func(ours string) string { return hubName(ours, names) }
	for _, n := range endNames {
		if n[1] == "output.weight" && h.config.tied {
			delete(found, n[0]) // some files repeat the embeddings
			continue
		}
		take(n[0], n[1])
	}
	for i := range c.Layers {
		theirs, ours := fmt.Sprintf("model.layers.%d.", i), fmt.Sprintf("blk.%d.", i)
		delete(found, theirs+"self_attn.rotary_emb.inv_freq") // old files hold what the base says
		if first := theirs + layerNames[0][0]; found[first] == nil {
			return fmt.Errorf("tensor %q is missing", first)
		}
		for _, n := range names {
			if strings.Contains(n[0], "*") {
				if err := h.gather(found, theirs+n[0], ours+n[1]); err != nil {
					return err
				}
				continue
			}
			take(theirs+n[0], ours+n[1])
		}
	}
	for name := range found {
		return fmt.Errorf("tensor %q is not part of the %s architecture with %d layers", name, c.Architecture, c.Layers)
	}
	if c.Architecture == "gemma" || c.PostNorms {
		for _, t := range h.tensors {
			t.plusOne = strings.HasSuffix(t.Name, "norm.weight")
		}
	}
	return h.check()
}

// hubName returns the name in the file of what we call ours.
func hubName(ours string, layer [][2]string) string {
	for _, n := range endNames {
		if n[1] == ours {
			return n[0]
		}
	}
	rest, _ := strings.CutPrefix(ours, "blk.")
	number, rest, _ := strings.Cut(rest, ".")
	for _, n := range layer {
		if n[1] == rest {
			return "model.layers." + number + "." + n[0]
		}
	}
	return ours
}

func (h *hub) enter(t *Tensor, name string) {
	t.Name = name
	h.tensors = append(h.tensors, t)
	h.byName[name] = t
}

// gather makes one tensor of the matrices of a layer's experts, if there are any.
func (h *hub) gather(found map[string]*Tensor, pattern, name string) error {
	var all *Tensor
	for e := range h.config.Experts {
		theirs := strings.Replace(pattern, "*", strconv.Itoa(e), 1)
		t := found[theirs]
		switch {
		case t == nil:
			return fmt.Errorf("tensor %q is missing", theirs)
		case len(t.Shape) != 2:
			return fmt.Errorf("tensor %q has shape %v: want two dimensions", theirs, t.Shape)
		case all == nil:
			all = &Tensor{Format: t.Format, Shape: []int{t.Shape[0], t.Shape[1], h.config.Experts}, experts: make([][]byte, 0, 8)}
			h.enter(all, name)
		case t.Format != all.Format || !slices.Equal(t.Shape, all.Shape[:2]):
			return fmt.Errorf("tensor %q is %v of shape %v, unlike the experts before it", theirs, t.Format, t.Shape)
		}
		all.experts = append(all.experts, t.Data)
		delete(found, theirs)
	}
	return nil
}

// check compares the tensors with what config.json says of them.
func (h *hub) check() error {
	c := &h.config.Config
	vocab := c.Vocab
	if err := c.validate(&h.table, true); err != nil {
		return err
	}
	switch {
	case c.Vocab != vocab:
		return fmt.Errorf("tensor %q has %d rows: config.json says vocab_size %d", h.say(embeddingName), c.Vocab, vocab)
	case c.Tied != h.config.tied:
		return fmt.Errorf("tensor %q is missing and config.json says that tie_word_embeddings is false", h.say("output.weight"))
	case c.QKVBias != h.config.qkvBias:
		return fmt.Errorf("tensor %q: config.json says that attention bias is %v", h.say("blk.0.attn_q.bias"), h.config.qkvBias)
	case c.OutputBias != h.config.outputBias:
		return fmt.Errorf("tensor %q: config.json says that attention bias is %v", h.say("blk.0.attn_output.bias"), h.config.outputBias)
	}
	return nil
}
