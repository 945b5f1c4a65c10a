package adapter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// found is what detect learned.
type found struct {
	kind    Kind
	version string
}

// errUnknown reports a server that is none of those known.
var errUnknown = errors.New("this is none of vLLM, SGLang, llama-server and Ollama")

// detect asks for what only one kind of server has. SGLang and vLLM imitate others'
// endpoints, so theirs are asked for first.
func detect(ctx context.Context, c *client) (found, error) {
	var first error
	for _, probe := range []func(context.Context, *client) (found, bool, error){isSGLang, isLlama, isVLLM, isOllama} {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		f, ok, err := probe(ctx, c)
		cancel()
		switch {
		case ok:
			return f, nil
		case err != nil && !missing(err):
			var s *statusError
			if !errors.As(err, &s) && !isShape(err) {
				return found{}, err // nobody listens
			}
			if errors.As(err, &s) && (s.code == http.StatusUnauthorized || s.code == http.StatusForbidden) {
				return found{}, err
			}
			if first == nil {
				first = err
			}
		}
	}
	if first != nil {
		return found{}, fmt.Errorf("%w (%w)", errUnknown, first)
	}
	return found{}, errUnknown
}

// isShape reports an answer that was no JSON, such as a web page.
func isShape(err error) bool {
	return strings.Contains(err.Error(), "the answer is not what was asked for")
}

func isSGLang(ctx context.Context, c *client) (found, bool, error) {
	i, err := sglangInfo(ctx, c)
	if err != nil || i.MaxTotal == nil && i.States == nil {
		return found{}, false, err
	}
	return found{SGLang, i.Version}, true, nil
}

func isLlama(ctx context.Context, c *client) (found, bool, error) {
	p, err := llamaPropsOf(ctx, c)
	if err != nil || p.Slots == 0 && p.Build == "" {
		return found{}, false, err
	}
	return found{Llama, p.Build}, true, nil
}

func isVLLM(ctx context.Context, c *client) (found, bool, error) {
	var v struct {
		Version string `json:"version"`
	}
	if err := c.get(ctx, "/version", &v); err != nil {
		return found{}, false, err
	}
	m, err := listModels(ctx, c)
	if err != nil {
		return found{}, false, err
	}
	for _, card := range m {
		if card.Owner == "vllm" {
			return found{VLLM, v.Version}, true, nil
		}
	}
	return found{}, false, nil
}

func isOllama(ctx context.Context, c *client) (found, bool, error) {
	var v struct {
		Version string `json:"version"`
	}
	if err := c.get(ctx, "/api/version", &v); err != nil {
		return found{}, false, err
	}
	if _, err := ollamaTags(ctx, c); err != nil {
		return found{}, false, err
	}
	return found{Ollama, v.Version}, v.Version != "", nil
}

// modelCard is an entry of GET /v1/models.
type modelCard struct {
	ID      string  `json:"id"`
	Owner   string  `json:"owned_by"`
	Root    string  `json:"root"`
	Parent  *string `json:"parent"`
	Context int     `json:"max_model_len"`
	Meta    struct {
		Vocab int   `json:"n_vocab"`
		Size  int64 `json:"size"`
	} `json:"meta"`
}

func listModels(ctx context.Context, c *client) ([]modelCard, error) {
	var l struct {
		Data []modelCard `json:"data"`
	}
	if err := c.get(ctx, "/v1/models", &l); err != nil {
		return nil, err
	}
	var out []modelCard
	for _, m := range l.Data {
		if m.ID == "" || len(m.ID) > 512 || m.Context < 0 || m.Context > 1<<30 || m.Meta.Vocab < 0 || m.Meta.Vocab > unknownVocab {
			return nil, fmt.Errorf("/v1/models: entry %.60q makes no sense", m.ID)
		}
		out = append(out, m)
	}
	return out, nil
}

// describeCards turns the entries into models; those that only change another model
// (LoRA) have its context.
func describeCards(cards []modelCard) []ModelDescription {
	var out []ModelDescription
	for _, m := range cards {
		d := ModelDescription{Server: m.ID, Name: m.ID, Path: m.Root, Context: m.Context}
		if d.Context == 0 && m.Parent != nil {
			for _, p := range cards {
				if p.ID == *m.Parent {
					d.Context = p.Context
				}
			}
		}
		out = append(out, d)
	}
	return out
}

// soon is the time that a small question may take.
func soon(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, askTimeout)
}

// onceTimeout bounds the decoding of one token, for which a model may have to be loaded.
const onceTimeout = 2 * time.Minute
