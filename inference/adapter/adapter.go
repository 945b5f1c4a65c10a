// Package adapter turns inference servers that an operator runs already into
// engines: vLLM, SGLang, llama-server and Ollama. Open finds out what listens at a
// URL, what it can do and which flag would give what it cannot, and returns one
// engine for each of its models.
//
// The first three take and return token ids, so their answers have a signed chain
// and another host can continue them. Ollama knows text alone: its engine's
// vocabulary is Unicode, one token for each code point (see unicode.go).
//
// Nothing of a server's answer is trusted to be well-formed: sizes are bounded, ids
// checked, and an answer that makes no sense ends the request with an error.
package adapter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// Config names a server and says what it does not tell about itself. The zero value
// of a field is its default.
type Config struct {
	URL    string  // of the server, without /v1
	Key    string  // API key, sent as a bearer token
	Models []Model // to serve; empty: all that the server lists
	// Identify returns the ID of a model whose files the caller can read; it is asked
	// where Models names none.
	Identify func(ModelDescription) (mesh.ModelID, error)
	// Rename returns the name by which requests ask for a model; it is asked where Models
	// names none. Nil: the server's.
	Rename func(ModelDescription) string

	Slots   int // requests decoded at once; 0: what the server says, else a default of its kind
	Context int // tokens; 0: what the server says

	// Deterministic says that the server runs in its deterministic mode, for servers
	// that cannot be asked. The fingerprint marks it as claimed.
	Deterministic bool
	// GPU, KV and Weights go into the fingerprint where the server does not say. The
	// pinned class needs GPU and KV.
	GPU, KV, Weights string

	// Special lists strings that the model's tokenizer turns into control tokens,
	// beyond those that are found by their form.
	Special []string

	Stall time.Duration // without a sign of life from the server an answer ends; default 2 min
	Poll  time.Duration // between questions about load and health; default 1 s
	HTTP  *http.Client  // nil: one without a proxy
	Log   *slog.Logger
}

// Model is one model of a server.
type Model struct {
	Server string       // the server's name for it; empty: its only one
	Name   string       // by which requests ask for it; empty: the server's name
	ID     mesh.ModelID // zero: DeclaredID of the name
}

// Kind is a family of servers.
type Kind string

// The servers that are known.
const (
	VLLM   Kind = "vllm"
	SGLang Kind = "sglang"
	Llama  Kind = "llama-server"
	Ollama Kind = "ollama"
)

// Description is what was found at a URL.
type Description struct {
	Kind     Kind
	Version  string
	URL      string
	Models   []ModelDescription
	Capable  Capabilities
	Notes    []string // one sentence for each thing that is missing, with the flag that gives it
	GPU      string   // as the server or the operator names it
	Tape     bool     // vLLM: the logits processor of this repository draws the tokens
	Prefix   string   // how an answer of another host is continued
	Sampling string   // what the numbers of an answer come from
}

// ModelDescription is one model that a server has.
type ModelDescription struct {
	Server  string // the server's name
	Name    string
	ID      mesh.ModelID
	Path    string // of its file or repository, where the server tells
	Context int
}

// Capabilities of a server.
type Capabilities struct {
	TokensIn      bool // prompts as token ids
	TokensOut     bool // token ids of the answer
	Chat          bool // renders messages with the model's template
	LogProbs      bool
	Score         bool // log-probabilities of tokens that exist already
	Embeddings    bool
	Deterministic bool // the server says so itself
	Claimed       bool // the operator says so
}

const (
	defaultStall = 2 * time.Minute
	defaultPoll  = time.Second
	askTimeout   = 15 * time.Second // for small questions
	busyTries    = 5                // requests that a busy server refused
	busyWait     = 100 * time.Millisecond

	// unknownVocab stands for a vocabulary whose size the server keeps to itself.
	unknownVocab = math.MaxInt32
)

// Open finds out what listens at cfg.URL and returns an engine for each model. The
// caller closes the engines.
func Open(ctx context.Context, cfg Config) ([]inference.Engine, *Description, error) {
	c, err := newClient(&cfg)
	if err != nil {
		return nil, nil, err
	}
	engines, d, err := open(ctx, c, cfg)
	if err != nil {
		return nil, d, fmt.Errorf("engine at %s: %w", c.base, err)
	}
	return engines, d, nil
}

func open(ctx context.Context, c *client, cfg Config) ([]inference.Engine, *Description, error) {
	found, err := detect(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	d := &Description{Kind: found.kind, Version: found.version, URL: c.base, GPU: cfg.GPU}
	switch found.kind {
	case VLLM:
		return openServer(ctx, c, cfg, d, &vllm{client: c})
	case SGLang:
		return openServer(ctx, c, cfg, d, &sglang{client: c})
	case Llama:
		return openServer(ctx, c, cfg, d, &llama{client: c})
	}
	return openOllama(ctx, c, cfg, d)
}

// pick returns which of the server's models are served.
func (c *Config) pick(has []ModelDescription, vocabulary string) ([]ModelDescription, error) {
	if len(has) == 0 {
		return nil, errors.New("it has no model")
	}
	want := slices.Clone(c.Models)
	if len(want) == 0 {
		for _, m := range has {
			want = append(want, Model{Server: m.Server})
		}
	}
	var out []ModelDescription
	for _, w := range want {
		if w.Server == "" {
			if len(has) > 1 {
				return nil, fmt.Errorf("it has %d models: name one of %s", len(has), names(has))
			}
			w.Server = has[0].Server
		}
		at := -1
		for i := range has {
			if has[i].Server == w.Server {
				at = i
			}
		}
		if at < 0 {
			return nil, fmt.Errorf("it has no model %q, but %s", w.Server, names(has))
		}
		m := has[at]
		if w.Name != "" {
			m.Name = w.Name
		}
		if m.ID = w.ID; m.ID.IsZero() {
			m.ID = c.identify(m, vocabulary)
		}
		if w.Name == "" && c.Rename != nil {
			m.Name = c.Rename(m)
		}
		out = append(out, m)
	}
	return out, nil
}

func (c *Config) identify(m ModelDescription, vocabulary string) mesh.ModelID {
	if c.Identify != nil && vocabulary == Tokens {
		id, err := c.Identify(m)
		if err == nil {
			return id
		}
		c.Log.Debug("a server's model has no ID but its name", "model", m.Name, "path", m.Path, "error", err)
	}
	return DeclaredID(m.Name, vocabulary)
}

func names(models []ModelDescription) string {
	var list []string
	for i, m := range models {
		if i == 8 {
			list = append(list, "…")
			break
		}
		list = append(list, m.Server)
	}
	return strings.Join(list, ", ")
}

// Vocabularies of declared models.
const (
	Tokens  = "tokens"  // the ids of the model's own tokenizer
	Unicode = "unicode" // code points
)

// DeclaredID is the ID of a model whose files the node cannot read: it stands for a
// name, and for what its token ids mean, not for bytes. Hosts that declare one name
// answer for each other. SHA-256("mesh/declared-model/1" ‖ 0 ‖ vocabulary ‖ 0 ‖ name).
func DeclaredID(name, vocabulary string) mesh.ModelID {
	return mesh.HashOf([]byte("mesh/declared-model/1\x00"), []byte(vocabulary), []byte{0}, []byte(name))
}

// baseURL checks the server's address and drops what people paste with it.
func baseURL(s string) (string, error) {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("engine URL %q: want http://HOST:PORT", s)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("engine URL: want http://HOST:PORT without user, query and fragment")
	}
	u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/v1")
	return strings.TrimSuffix(u.String(), "/"), nil
}
