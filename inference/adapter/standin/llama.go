package standin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// NewLlama stands in for llama.cpp's server as it was seen in version 0.7.0 (build
// 11669): tools/server/README.md. Its stream holds back tokens that do not complete a
// character and never tells their ids.
func NewLlama(t *testing.T) *Server {
	s := &Server{}
	mux := http.NewServeMux()
	missing := func(w http.ResponseWriter) {
		reply(w, 404, map[string]any{"error": map[string]any{"message": "File Not Found", "type": "not_found_error", "code": 404}})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { missing(w) })
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) { reply(w, 200, map[string]any{"status": "ok"}) })
	mux.HandleFunc("GET /props", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 200, map[string]any{
			"default_generation_settings": map[string]any{"n_ctx": Context, "params": map[string]any{"seed": 4294967295}}, "total_slots": 3,
			"model_path": "/models/toy.gguf", "model_ftype": "Q8_0", "build_info": "b11669-toy", "bos_token": "<|bos|>", "eos_token": "<|im_end|>",
			"chat_template": "{{ messages }}",
		})
	})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 200, map[string]any{"object": "list", "data": []any{map[string]any{
			"id": "toy.gguf", "owned_by": "llamacpp", "meta": map[string]any{"n_vocab": len(toyPieces), "n_ctx_train": Context, "size": 1},
		}}})
	})
	mux.HandleFunc("GET /slots", func(w http.ResponseWriter, r *http.Request) {
		var slots []any
		for i := range 3 {
			slots = append(slots, map[string]any{"id": i, "is_processing": int32(i) < s.Active.Load()})
		}
		reply(w, 200, slots)
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !s.Metrics.Load() {
			reply(w, 501, map[string]any{"error": map[string]any{"message": "This server does not support metrics endpoint.", "code": 501}})
			return
		}
		fmt.Fprintf(w, "llamacpp:requests_processing %d\nllamacpp:requests_deferred 2\nllamacpp:prompt_tokens_total 7\n", s.Active.Load())
	})
	mux.HandleFunc("POST /tokenize", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body[struct {
			Content string `json:"content"`
			Add     bool   `json:"add_special"`
			Parse   *bool  `json:"parse_special"`
		}](s, w, r)
		if !ok {
			return
		}
		ids := toyTokenize(b.Content, b.Parse == nil || *b.Parse)
		if b.Add {
			ids = append([]int32{toyBOS}, ids...)
		}
		reply(w, 200, map[string]any{"tokens": ids})
	})
	mux.HandleFunc("POST /detokenize", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body[struct {
			Tokens []int32 `json:"tokens"`
		}](s, w, r)
		if !ok {
			return
		}
		if !valid(b.Tokens) {
			reply(w, 500, map[string]any{"error": map[string]any{"message": "vector::_M_range_check", "code": 500}})
			return
		}
		reply(w, 200, map[string]any{"content": toyDecode(b.Tokens)})
	})
	mux.HandleFunc("POST /apply-template", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body[struct {
			Messages []message `json:"messages"`
		}](s, w, r)
		if ok {
			reply(w, 200, map[string]any{"prompt": toyRender(b.Messages)})
		}
	})
	mux.HandleFunc("POST /completion", func(w http.ResponseWriter, r *http.Request) { llamaComplete(s, w, r) })
	return serve(t, s, mux)
}

func llamaComplete(s *Server, w http.ResponseWriter, r *http.Request) {
	b, ok := body[struct {
		Prompt      []int32      `json:"prompt"`
		N           int          `json:"n_predict"`
		Stream      bool         `json:"stream"`
		Temperature *float64     `json:"temperature"`
		Seed        uint32       `json:"seed"`
		Bias        [][2]float64 `json:"logit_bias"`
		Ignore      bool         `json:"ignore_eos"`
		Tokens      bool         `json:"return_tokens"`
		Probs       int          `json:"n_probs"`
		Slot        *int         `json:"id_slot"`
		Samplers    []string     `json:"samplers"`
		Progress    bool         `json:"return_progress"`
		Last        *int         `json:"repeat_last_n"`
	}](s, w, r)
	if !ok {
		return
	}
	bad := func(text string) {
		reply(w, 400, map[string]any{"error": map[string]any{"message": text, "type": "invalid_request_error", "code": 400}})
	}
	switch {
	case !valid(b.Prompt):
		bad("Prompt contains invalid tokens")
		return
	case len(b.Prompt) >= Context:
		bad("request exceeds the available context size")
		return
	case b.Slot != nil && (*b.Slot < 0 || *b.Slot > 2):
		bad("invalid slot")
		return
	case s.refuse(w):
		return
	}
	defer s.begin()()
	choice := toyChoice{temperature: 0.8, seed: uint64(b.Seed), bias: make(map[int32]float64), ignoreEOS: b.Ignore}
	if b.Temperature != nil {
		choice.temperature = *b.Temperature
	}
	if b.Last != nil && *b.Last < 0 {
		bad("Field 'repeat_last_n': Value must be between 0 <= value <= 2147483647")
		return
	}
	for _, v := range b.Bias {
		choice.bias[int32(v[0])] = v[1]
	}
	ids, held, stop := slices.Clone(b.Prompt), 0, "limit"
	var probs []any
	if b.Stream && b.Progress {
		s.event(w, "data: ", map[string]any{"index": 0, "content": "", "tokens": []int{0}, "stop": false, "tokens_predicted": 0, "prompt_progress": map[string]any{"total": len(ids), "processed": len(ids)}})
	}
	for step := 0; step < b.N && len(ids) < Context && stop == "limit"; step++ {
		if !s.wait(r) {
			return
		}
		id, logs := toyNext(ids, step, choice)
		ids = append(ids, id)
		entry := func(id int32) map[string]any {
			return map[string]any{"id": id, "token": toyDecode([]int32{id}), "bytes": []byte(toyPieces[id]), "logprob": logs[id]}
		}
		if id == toyEnd && !b.Ignore {
			stop = "eos"
		}
		held++
		rest := toyBytes(ids[len(ids)-held:])
		if !utf8.ValidString(rest) && held < 6 {
			continue // nothing is told of a piece of a character, not even its log-probability
		}
		held = 0
		if b.Probs > 0 {
			e := entry(id)
			var top []any
			for _, t := range toyTop(logs, b.Probs) {
				top = append(top, entry(t))
			}
			e["top_logprobs"] = top
			probs = append(probs, e)
		}
		if b.Stream {
			e := map[string]any{"index": 0, "content": strings.ToValidUTF8(rest, "\uFFFD"), "tokens": []int32{id}, "stop": false, "tokens_predicted": step + 1}
			if b.Probs > 0 {
				e["completion_probabilities"] = probs[len(probs)-1:]
			}
			s.event(w, "data: ", e)
		}
	}
	out := ids[len(b.Prompt):]
	last := map[string]any{"index": 0, "content": "", "tokens": []int32{}, "stop": true, "stop_type": stop, "tokens_predicted": len(out), "truncated": false}
	if b.Stream {
		if s.Broken.Load() {
			panic(http.ErrAbortHandler)
		}
		s.event(w, "data: ", last)
		return
	}
	last["content"] = toyDecode(out)
	if b.Tokens {
		last["tokens"] = out
	}
	if b.Probs > 0 {
		last["completion_probabilities"] = probs
	}
	if s.Broken.Load() {
		panic(http.ErrAbortHandler)
	}
	raw, err := json.Marshal(last)
	if err != nil {
		panic(err)
	}
	if f, ok := s.Mangle.Load().(func([]byte) []byte); ok && f != nil {
		raw = f(raw)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(raw)
}
