// Package openai is the HTTP dialect of OpenAI: chat completions, completions,
// embeddings, models and identity, over whatever answers asks.
//
// Choices where the dialect leaves room: without a temperature an answer is the
// likeliest one (temperature 0), so that equal requests have equal answers, but a
// request for several choices gets temperature 1, as they would all be the same.
// A tool call is read from the text <tool_call>{"name":…,"arguments":…}</tool_call>;
// tool_choice "none" hides the tools from the model, other values are passed on
// and not enforced. Unknown fields are ignored, known ones are strict. Nothing is
// sent before the first event, so status and headers always tell the truth; an
// error after that ends a stream without its [DONE].
package openai

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// Headers of an answer: the request's ID, under which its receipts stand, and the
// first host that spoke.
const (
	HeaderReceipt = "Mesh-Receipt"
	HeaderHost    = "Mesh-Host"
)

// Backend answers asks; the router does. Both methods are called concurrently.
type Backend interface {
	// Ask calls emit for each step of the answer, never twice at once and not after
	// it returned. It returns nil when every choice has ended, soon after ctx is
	// done, and when emit fails. Errors are those of package inference, wrapped.
	Ask(ctx context.Context, ask inference.Ask, emit func(inference.Event) error) error
	// Models lists what can be asked for, each model once.
	Models(ctx context.Context) ([]inference.ModelInfo, error)
}

// Identity is what GET /v1/identity says about the node.
type Identity struct {
	Peer    mesh.Address   `json:"peer"`
	Network mesh.NetworkID `json:"network"`
	Version string         `json:"version"`
}

// Config is what a handler is made of.
type Config struct {
	Backend  Backend
	Identity func() Identity // nil: there is no /v1/identity
	Log      *slog.Logger    // nil: nothing is logged
}

type handler struct {
	Config
}

// New returns the handler of every path under /v1/. Who may call it is the
// business of the server that it is mounted in.
func New(cfg Config) http.Handler {
	h := &handler{cfg}
	if h.Log == nil {
		h.Log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	route := func(method, path string, f http.HandlerFunc) {
		mux.HandleFunc(method+" "+path, f)
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", method)
			writeError(w, &apiError{status: http.StatusMethodNotAllowed, Type: typeInvalid, Code: "method_not_allowed",
				Message: fmt.Sprintf("%s does not take %s; use %s", r.URL.Path, r.Method, method)})
		})
	}
	route("POST", "/v1/chat/completions", h.completions(decodeChat))
	route("POST", "/v1/completions", h.completions(decodeCompletion))
	route("POST", "/v1/embeddings", h.embeddings)
	route("GET", "/v1/models", h.models)
	route("GET", "/v1/models/{id...}", h.model)
	if h.Identity != nil {
		route("GET", "/v1/identity", func(w http.ResponseWriter, r *http.Request) {
			writeJSON(w, http.StatusOK, h.Identity())
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &apiError{status: http.StatusNotFound, Type: typeInvalid, Code: "not_found",
			Message: fmt.Sprintf("there is no %.16s %.60s; this API has /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/models", r.Method, r.URL.Path)})
	})
	return mux
}

// modelEntry is a model as the lists show it. Fields from context_length on are
// not OpenAI's.
type modelEntry struct {
	ID            string       `json:"id"`
	Object        string       `json:"object"`
	Created       int64        `json:"created"` // a mesh does not know: 0
	OwnedBy       string       `json:"owned_by"`
	ContextLength int          `json:"context_length"`
	Mesh          mesh.ModelID `json:"mesh_model"`
	Class         string       `json:"mesh_class"`
	Fingerprint   string       `json:"system_fingerprint"`
	Embed         int          `json:"mesh_embedding,omitempty"` // dimensions of its embeddings; absent: it makes none
}

// entries returns the models under unique IDs: the name, or the hash where an
// earlier model has that name.
func (h *handler) entries(ctx context.Context) ([]modelEntry, error) {
	infos, err := h.Backend.Models(ctx)
	if err != nil {
		return nil, fmt.Errorf("list models: %w", err)
	}
	list, taken := make([]modelEntry, 0, len(infos)), map[string]bool{}
	for _, m := range infos {
		id := m.Name
		if id == "" || taken[id] {
			id = m.ID.String()
		}
		if taken[id] {
			continue
		}
		taken[id] = true
		list = append(list, modelEntry{
			ID: id, Object: "model", OwnedBy: "mesh", ContextLength: m.Context, Mesh: m.ID,
			Class: string(inference.ClassOf(m.Fingerprint)), Fingerprint: fingerprintText(m.Fingerprint), Embed: m.Embed,
		})
	}
	return list, nil
}

func (h *handler) models(w http.ResponseWriter, r *http.Request) {
	list, err := h.entries(r.Context())
	if err != nil {
		h.fail(w, r, err, "")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": list})
}

// model finds one by name or by hash.
func (h *handler) model(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	list, err := h.entries(r.Context())
	if err != nil {
		h.fail(w, r, err, "")
		return
	}
	for _, m := range list {
		if m.ID == id || m.Mesh.String() == id {
			writeJSON(w, http.StatusOK, m)
			return
		}
	}
	writeError(w, unknownModel(id))
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // a client that left needs no error
}
