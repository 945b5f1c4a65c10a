package openai

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// Bounds of one request for embeddings.
const (
	maxInputs  = 2048      // as with OpenAI
	maxVectors = 128 << 20 // bytes of all vectors together
)

// embedCall is a decoded request for embeddings.
type embedCall struct {
	model  string
	asks   []inference.Ask // one per input
	base64 bool            // the form of a vector
}

// embedding is a vector as a client sees it.
type embedding struct {
	Object string `json:"object"`
	Index  int    `json:"index"`
	Vector any    `json:"embedding"` // []float32, or []byte, which JSON has in base64
}

type embedUsage struct {
	PromptTokens int `json:"prompt_tokens"`
	TotalTokens  int `json:"total_tokens"`
}

// embedded is what came of one input.
type embedded struct {
	vector  []float32
	tokens  int
	model   string
	request mesh.Hash
	host    mesh.Address
}

// decodeEmbedding reads the body of POST /v1/embeddings.
func decodeEmbedding(body []byte) (*embedCall, error) {
	f, err := root(body)
	if err != nil {
		return nil, err
	}
	c := &embedCall{model: f.text("model")}
	switch form := f.text("encoding_format"); form {
	case "", "float":
	case "base64":
		c.base64 = true
	default:
		f.fail("encoding_format", "is %.40q; float and base64 are allowed", form)
	}
	ask := inference.Ask{Model: c.model, Embed: true, Width: int(f.integer("dimensions", 1, inference.MaxWidth, 0)), TokenCap: tokenCap(f)}
	texts, tokens := prompts(f, "input", maxInputs)
	for i, text := range texts {
		if text == "" {
			name := "input"
			if len(texts) > 1 {
				name = fmt.Sprintf("input[%d]", i)
			}
			f.fail(name, "is empty")
		}
		a := ask
		a.Prompt = text
		c.asks = append(c.asks, a)
	}
	for _, ids := range tokens {
		a := ask
		a.PromptTokens = ids
		c.asks = append(c.asks, a)
	}
	if *f.err != nil {
		return nil, *f.err
	}
	return c, nil
}

// embeddings answers POST /v1/embeddings: every input is a request of its own, so that
// each vector has its receipt and may come from another host.
func (h *handler) embeddings(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(w, r)
	if err != nil {
		h.fail(w, r, err, "")
		return
	}
	c, err := decodeEmbedding(body)
	if err != nil {
		h.fail(w, r, err, "")
		return
	}
	list, err := h.embed(r.Context(), c)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has deadlines
	if err != nil {
		e := errorOf(err, c.model, "input")
		h.logFault(r, e)
		writeError(w, e)
		return
	}
	w.Header().Set(HeaderReceipt, list[0].request.String())
	w.Header().Set(HeaderHost, list[0].host.String())
	writeJSON(w, http.StatusOK, c.document(list))
}

// embed puts the inputs to the backend, some at once, and keeps their order.
func (h *handler) embed(ctx context.Context, c *embedCall) ([]embedded, error) {
	list := make([]embedded, len(c.asks))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(promptsAtOnce)
	for i := range c.asks {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err // another input failed: the rest costs nothing more
			}
			return h.embedOne(ctx, c.asks[i], len(c.asks), &list[i])
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i := range list {
		if len(list[i].vector) != len(list[0].vector) {
			return nil, errors.New("the hosts disagree about the model's dimensions")
		}
	}
	return list, nil
}

func (h *handler) embedOne(ctx context.Context, ask inference.Ask, inputs int, out *embedded) error {
	ended := inference.FinishOpen
	err := h.Backend.Ask(ctx, ask, func(ev inference.Event) error {
		if ended = ev.Finish; ended == inference.FinishEOS {
			*out = embedded{ev.Vector, ev.Usage.PromptTokens, ev.Model.Name, ev.Request, ev.Host}
		}
		return nil
	})
	width := len(out.vector)
	switch {
	case err != nil:
		return err
	case ended != inference.FinishEOS:
		return &answerError{ended}
	case width == 0:
		return errors.New("the answer has no vector")
	case ask.Width > 0 && width != ask.Width: // its host did not say so before
		return &inference.EmbedError{Width: width, Asked: ask.Width}
	case 4*width > maxVectors/inputs:
		return invalid("input", "invalid_value", "input: %d vectors of %d dimensions are too many at once, at most %d are allowed",
			inputs, width, maxVectors/4/width)
	}
	return nil
}

// document returns the response of a call.
func (c *embedCall) document(list []embedded) any {
	model, data, use := list[0].model, make([]embedding, len(list)), embedUsage{}
	if model == "" {
		model = c.model
	}
	for i, e := range list {
		data[i] = embedding{Object: "embedding", Index: i, Vector: e.vector}
		if c.base64 {
			data[i].Vector = inference.EncodeVector(e.vector)
		}
		use.PromptTokens += e.tokens
	}
	use.TotalTokens = use.PromptTokens
	return struct {
		Object string      `json:"object"`
		Data   []embedding `json:"data"`
		Model  string      `json:"model"`
		Usage  embedUsage  `json:"usage"`
	}{"list", data, model, use}
}
