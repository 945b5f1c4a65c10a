package standin

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
)

// NewSGLang stands in for SGLang 0.5: srt/entrypoints/http_server.py, io_struct.py,
// openai/serving_tokenize.py.
func NewSGLang(t *testing.T) *Server {
	s := &Server{}
	s.Whole.Store(true)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {})
	mux.HandleFunc("GET /server_info", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 200, map[string]any{
			"model_path": "toy/toy-1", "version": "0.5.13", "max_total_num_tokens": 4096, "internal_states": []any{map[string]any{}}, "api_key": "secret",
			"enable_deterministic_inference": s.Invariant.Load(), "max_running_requests": 3, "context_length": nil, "kv_cache_dtype": "auto", "dtype": "bfloat16",
			"quantization": nil, "attention_backend": "fa3", "tp_size": 1,
		})
	})
	// It speaks Ollama's dialect, too.
	mux.HandleFunc("GET /api/version", func(w http.ResponseWriter, r *http.Request) { reply(w, 200, map[string]any{"version": "0.5.13"}) })
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 200, map[string]any{"data": []any{map[string]any{"id": "toy/toy-1", "owned_by": "sglang", "root": "toy/toy-1", "max_model_len": Context}}})
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !s.Metrics.Load() {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, "sglang:num_running_reqs{model_name=\"toy\"} %d.0\nsglang:num_queue_reqs{model_name=\"toy\"} 2.0\n", s.Active.Load())
	})
	mux.HandleFunc("POST /tokenize", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body[struct {
			Prompt   *string   `json:"prompt"`
			Messages []message `json:"messages"`
			Special  *bool     `json:"add_special_tokens"`
		}](s, w, r)
		if !ok {
			return
		}
		var ids []int32
		if b.Prompt != nil {
			if ids = toyTokenize(*b.Prompt, true); b.Special == nil || *b.Special {
				ids = append([]int32{toyBOS}, ids...)
			}
		} else {
			ids = toyTokenize("<|bos|>"+toyRender(b.Messages), true)
		}
		reply(w, 200, map[string]any{"tokens": ids, "count": len(ids), "max_model_len": Context})
	})
	mux.HandleFunc("POST /detokenize", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body[struct {
			Tokens []int32 `json:"tokens"`
			Skip   *bool   `json:"skip_special_tokens"`
		}](s, w, r)
		if !ok {
			return
		}
		if !valid(b.Tokens) || b.Skip == nil || *b.Skip {
			reply(w, 400, map[string]any{"object": "error", "message": "Input tokens might be invalid for the model.", "code": 400})
			return
		}
		reply(w, 200, map[string]any{"text": toyDecode(b.Tokens)})
	})
	mux.HandleFunc("POST /generate", func(w http.ResponseWriter, r *http.Request) { sglangGenerate(s, w, r) })
	return serve(t, s, mux)
}

func sglangGenerate(s *Server, w http.ResponseWriter, r *http.Request) {
	b, ok := body[struct {
		IDs    []int32 `json:"input_ids"`
		Params struct {
			Max         int                `json:"max_new_tokens"`
			Temperature float64            `json:"temperature"`
			TopP        *float64           `json:"top_p"`
			TopK        *int               `json:"top_k"`
			Repetition  *float64           `json:"repetition_penalty"`
			Seed        *int64             `json:"sampling_seed"`
			Bias        map[string]float64 `json:"logit_bias"`
			Ignore      bool               `json:"ignore_eos"`
		} `json:"sampling_params"`
		Stream  bool `json:"stream"`
		LogProb bool `json:"return_logprob"`
		Start   *int `json:"logprob_start_len"`
		Top     int  `json:"top_logprobs_num"`
	}](s, w, r)
	if !ok {
		return
	}
	p := b.Params
	if !valid(b.IDs) || len(b.IDs)+p.Max > Context || p.TopP != nil && (*p.TopP <= 0 || *p.TopP > 1) ||
		p.TopK != nil && (*p.TopK == 0 || *p.TopK < -1) || p.Repetition != nil && (*p.Repetition < 0 || *p.Repetition > 2) {
		reply(w, 400, map[string]any{"error": map[string]any{"message": "a parameter is out of range"}})
		return
	}
	if s.refuse(w) {
		return
	}
	choice := toyChoice{temperature: p.Temperature, bias: biasOf(p.Bias), ignoreEOS: p.Ignore, seed: uint64(s.Calls.Load())}
	if p.Seed != nil && s.Invariant.Load() {
		choice.seed = uint64(*p.Seed)
	}
	defer s.begin()()
	entry := func(probs []float64, id int32) []any { return []any{probs[id], id, nil} }
	tops := func(probs []float64) []any {
		var out []any
		for _, t := range toyTop(probs, b.Top) {
			out = append(out, entry(probs, t))
		}
		return out
	}
	ids := slices.Clone(b.IDs)
	var logs, top, input, inputTop []any
	if b.LogProb && b.Start != nil && *b.Start >= 0 {
		for i := *b.Start; i < len(ids); i++ {
			if i == *b.Start {
				input, inputTop = append(input, []any{nil, ids[i], nil}), append(inputTop, nil)
				continue
			}
			probs := toyLogProbs(toyLogits(ids[:i]))
			input, inputTop = append(input, entry(probs, ids[i])), append(inputTop, tops(probs))
		}
	}
	sent := 0
	for step := range max(p.Max, 1) {
		if !s.wait(r) {
			return
		}
		if p.Max > 0 {
			id, probs := toyNext(ids, step, choice)
			ids = append(ids, id)
			logs, top = append(logs, entry(probs, id)), append(top, tops(probs))
		}
		out := ids[len(b.IDs):]
		meta := map[string]any{"id": "1", "prompt_tokens": len(b.IDs), "completion_tokens": len(out), "finish_reason": nil}
		end := len(out) > 0 && out[len(out)-1] == toyEnd && !p.Ignore
		switch {
		case end:
			meta["finish_reason"] = map[string]any{"type": "stop", "matched": toyEnd}
		case step >= p.Max-1:
			meta["finish_reason"] = map[string]any{"type": "length", "length": p.Max}
		}
		if b.LogProb {
			meta["output_token_logprobs"], meta["input_token_logprobs"] = logs, input
			if b.Top > 0 {
				meta["output_top_logprobs"], meta["input_top_logprobs"] = top, inputTop
			}
		}
		e := map[string]any{"text": toyDecode(out), "output_ids": out, "meta_info": meta}
		if !s.Whole.Load() {
			e["output_ids"] = out[sent:]
		}
		sent = len(out)
		if b.Stream {
			s.event(w, "data: ", e)
			if s.Broken.Load() && step == 2 {
				panic(http.ErrAbortHandler)
			}
		} else if meta["finish_reason"] != nil {
			reply(w, 200, e)
			return
		}
		if end {
			break
		}
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}
