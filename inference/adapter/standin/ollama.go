package standin

import (
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"
)

// NewOllama stands in for Ollama: docs/api.md, api/types.go.
func NewOllama(t *testing.T) *Server {
	s := &Server{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/version", func(w http.ResponseWriter, r *http.Request) { reply(w, 200, map[string]any{"version": "0.17.4"}) })
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 200, map[string]any{"data": []any{map[string]any{"id": "toy:latest", "owned_by": "library"}}})
	})
	mux.HandleFunc("GET /api/tags", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 200, map[string]any{"models": []any{
			map[string]any{"name": "toy:latest", "model": "toy:latest", "size": 10, "digest": "abc", "details": map[string]any{"quantization_level": "Q4_K_M"}},
			map[string]any{"name": "embedder:latest", "size": 10, "digest": "def", "details": map[string]any{}},
		}})
	})
	mux.HandleFunc("POST /api/show", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body[struct {
			Model string `json:"model"`
		}](s, w, r)
		switch {
		case !ok:
		case b.Model == "embedder:latest":
			reply(w, 200, map[string]any{"capabilities": []string{"embedding"}, "model_info": map[string]any{}})
		case b.Model == "toy:latest":
			reply(w, 200, map[string]any{
				"capabilities": []string{"completion"}, "parameters": "stop    \"x\"\nnum_ctx                        256",
				"model_info": map[string]any{"general.architecture": "toy", "toy.context_length": Context}, "modelfile": "# generated\nFROM /models/blobs/sha256-abc\nTEMPLATE x\n",
			})
		default:
			reply(w, 404, map[string]any{"error": "model not found"})
		}
	})
	mux.HandleFunc("POST /api/chat", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body[struct {
			Messages []message `json:"messages"`
			Render   bool      `json:"_debug_render_only"`
		}](s, w, r)
		switch {
		case !ok:
		case !b.Render:
			reply(w, 500, map[string]any{"error": "only rendering is stood in for"})
		default:
			reply(w, 200, map[string]any{"message": map[string]any{}, "_debug_info": map[string]any{"rendered_template": toyRender(b.Messages)}})
		}
	})
	mux.HandleFunc("POST /api/generate", func(w http.ResponseWriter, r *http.Request) { ollamaComplete(s, w, r) })
	return serve(t, s, mux)
}

func ollamaComplete(s *Server, w http.ResponseWriter, r *http.Request) {
	b, ok := body[struct {
		Model    string `json:"model"`
		Prompt   string `json:"prompt"`
		Raw      bool   `json:"raw"`
		Think    any    `json:"think"`
		LogProbs bool   `json:"logprobs"`
		Options  struct {
			Seed        int     `json:"seed"`
			Context     int     `json:"num_ctx"`
			Predict     int     `json:"num_predict"`
			Temperature float64 `json:"temperature"`
		} `json:"options"`
	}](s, w, r)
	if !ok {
		return
	}
	if b.Model != "toy:latest" {
		reply(w, 404, map[string]any{"error": "model not found"})
		return
	}
	if !b.Raw {
		reply(w, 500, map[string]any{"error": "only raw prompts are stood in for"})
		return
	}
	ids := toyTokenize(b.Prompt, true)
	if len(ids) >= b.Options.Context {
		reply(w, 400, map[string]any{"error": "input length exceeds the context length"})
		return
	}
	if s.refuse(w) {
		return
	}
	defer s.begin()()
	w.Header().Set("Content-Type", "application/x-ndjson")
	line := func(content string, done bool, more map[string]any) {
		e := map[string]any{"model": b.Model, "created_at": "2026-11-22T12:00:00Z", "response": content, "done": done}
		for k, v := range more {
			e[k] = v
		}
		s.event(w, "", e)
	}
	held := ""
	for step := 0; step < b.Options.Predict && len(ids) < b.Options.Context; step++ {
		if !s.wait(r) {
			return
		}
		id, probs := toyNext(ids, step, toyChoice{temperature: b.Options.Temperature, seed: uint64(b.Options.Seed)})
		if id == toyEnd {
			line(strings.ToValidUTF8(held, "\uFFFD"), true, map[string]any{"done_reason": "stop", "eval_count": step})
			return
		}
		ids = append(ids, id)
		held += toyPieces[id]
		if !utf8.ValidString(held) && len(held) < 8 {
			continue
		}
		more := map[string]any{}
		if b.LogProbs {
			more["logprobs"] = []any{map[string]any{"token": toyPieces[id], "logprob": probs[id]}}
		}
		line(strings.ToValidUTF8(held, "\uFFFD"), false, more)
		held = ""
		if s.Broken.Load() && step >= 2 {
			panic(http.ErrAbortHandler)
		}
	}
	line("", true, map[string]any{"done_reason": "length"})
}
