package standin

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"
)

// NewVLLM stands in for vLLM 0.11 and later: vllm/entrypoints/openai/completion,
// serve/tokenize, serve/instrumentator.
func NewVLLM(t *testing.T) *Server {
	s := &Server{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, r *http.Request) { reply(w, 200, map[string]any{"version": "0.32.0"}) })
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 200, map[string]any{"object": "list", "data": []any{
			map[string]any{"id": "toy/toy-1", "object": "model", "created": 1, "owned_by": "vllm", "root": "toy/toy-1", "parent": nil, "max_model_len": Context, "permission": []any{}},
		}})
	})
	mux.HandleFunc("GET /server_info", func(w http.ResponseWriter, r *http.Request) {
		if !s.Info.Load() {
			reply(w, 404, map[string]any{"detail": "Not Found"})
			return
		}
		reply(w, 200, map[string]any{
			"vllm_config": map[string]any{
				"model_config": map[string]any{"dtype": "torch.bfloat16", "quantization": nil}, "cache_config": map[string]any{"cache_dtype": "auto"},
				"scheduler_config": map[string]any{"max_num_seqs": 3}, "parallel_config": map[string]any{"tensor_parallel_size": 2, "pipeline_parallel_size": 1},
			},
			"vllm_env":   map[string]any{"VLLM_BATCH_INVARIANT": s.Invariant.Load()},
			"system_env": map[string]any{"nvidia_gpu_models": "GPU 0: NVIDIA H200\nGPU 1: NVIDIA H200"},
		})
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !s.Metrics.Load() {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"toy/toy-1\"} %d.0\nvllm:num_requests_waiting{engine=\"0\",model_name=\"toy/toy-1\"} 2.0\nvllm:num_requests_waiting_by_reason{reason=\"capacity\"} 9.0\n", s.Active.Load())
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
			ids = toyTokenize(*b.Prompt, true)
			if b.Special == nil || *b.Special {
				ids = append([]int32{toyBOS}, ids...)
			}
		} else {
			ids = toyTokenize("<|bos|>"+toyRender(b.Messages), true)
		}
		reply(w, 200, map[string]any{"count": len(ids), "max_model_len": Context, "tokens": ids, "token_strs": nil})
	})
	mux.HandleFunc("POST /detokenize", func(w http.ResponseWriter, r *http.Request) {
		b, ok := body[struct {
			Tokens []int32 `json:"tokens"`
		}](s, w, r)
		if !ok {
			return
		}
		if !valid(b.Tokens) {
			reply(w, 400, map[string]any{"error": map[string]any{"message": "out of vocabulary"}})
			return
		}
		reply(w, 200, map[string]any{"prompt": toyDecode(b.Tokens)})
	})
	mux.HandleFunc("POST /v1/completions", func(w http.ResponseWriter, r *http.Request) { vllmComplete(s, w, r) })
	return serve(t, s, mux)
}

func vllmComplete(s *Server, w http.ResponseWriter, r *http.Request) {
	b, ok := body[struct {
		Model         string             `json:"model"`
		Prompt        []int32            `json:"prompt"`
		Max           int                `json:"max_tokens"`
		Stream        bool               `json:"stream"`
		Temperature   float64            `json:"temperature"`
		Seed          *int64             `json:"seed"`
		Bias          map[string]float64 `json:"logit_bias"`
		Ignore        bool               `json:"ignore_eos"`
		IDs           bool               `json:"return_token_ids"`
		LogProbs      *int               `json:"logprobs"`
		AsIDs         bool               `json:"return_tokens_as_token_ids"`
		PromptLogs    *int               `json:"prompt_logprobs"`
		Extra         map[string]any     `json:"vllm_xargs"`
		TopK          int                `json:"top_k"`
		TopP          *float64           `json:"top_p"`
		AddSpecial    *bool              `json:"add_special_tokens"`
		SkipSpecial   *bool              `json:"skip_special_tokens"`
		CacheSalt     *string            `json:"cache_salt"`
		Repetition    *float64           `json:"repetition_penalty"`
		StreamOptions any                `json:"stream_options"`
	}](s, w, r)
	if !ok {
		return
	}
	bad := func(text string) {
		reply(w, 400, map[string]any{"error": map[string]any{"message": text, "type": "BadRequestError", "param": nil, "code": 400}})
	}
	switch {
	case b.Model != "toy/toy-1":
		reply(w, 404, map[string]any{"error": map[string]any{"message": "The model does not exist.", "code": 404}})
		return
	case !valid(b.Prompt):
		bad("Token id is out of vocabulary")
		return
	case len(b.Prompt)+b.Max > Context:
		bad(fmt.Sprintf("This model's maximum context length is %d tokens.", Context))
		return
	case b.TopP != nil && (*b.TopP <= 0 || *b.TopP > 1), b.Repetition != nil && *b.Repetition <= 0, b.CacheSalt != nil && *b.CacheSalt == "":
		bad("a parameter is out of range")
		return
	case b.LogProbs != nil && *b.LogProbs > 20:
		bad("Requested sample logprobs of more than 20")
		return
	case b.PromptLogs != nil && b.Stream:
		bad("`prompt_logprobs` are not available when `stream=True`.")
		return
	case s.refuse(w):
		return
	}
	choice := toyChoice{temperature: b.Temperature, bias: biasOf(b.Bias), ignoreEOS: b.Ignore}
	if b.Seed != nil {
		choice.seed = uint64(*b.Seed)
	}
	if tape, ok := b.Extra["mesh_tape"]; ok && s.Tape.Load() {
		if text, _ := tape.(string); len(text) != 64 {
			bad("mesh_tape: want 64 hex digits")
			return
		}
	}
	defer s.begin()()
	ids := slices.Clone(b.Prompt)
	logs := func(id int32, probs []float64) map[string]any {
		name := func(id int32) string {
			if b.AsIDs {
				return fmt.Sprintf("token_id:%d", id)
			}
			return toyPieces[id]
		}
		top := map[string]float64{name(id): probs[id]}
		for _, t := range toyTop(probs, *b.LogProbs) {
			top[name(t)] = probs[t]
		}
		return map[string]any{"text_offset": []int{0}, "tokens": []string{name(id)}, "token_logprobs": []float64{probs[id]}, "top_logprobs": []any{top}}
	}
	var scores []any
	if b.PromptLogs != nil {
		scores = []any{nil}
		for i := 1; i < len(ids); i++ {
			probs := toyLogProbs(toyLogits(ids[:i]))
			m := map[string]any{strconv.Itoa(int(ids[i])): map[string]any{"logprob": probs[ids[i]], "rank": 1, "decoded_token": "?"}}
			for rank, t := range toyTop(probs, *b.PromptLogs) {
				m[strconv.Itoa(int(t))] = map[string]any{"logprob": probs[t], "rank": rank + 1, "decoded_token": "?"}
			}
			scores = append(scores, m)
		}
	}
	for step := range b.Max {
		if !s.wait(r) {
			return
		}
		id, probs := toyNext(ids, step, choice)
		ids = append(ids, id)
		c := map[string]any{"index": 0, "text": toyDecode([]int32{id}), "logprobs": nil, "finish_reason": nil, "stop_reason": nil}
		if b.IDs {
			c["token_ids"] = []int32{id}
		}
		if b.LogProbs != nil {
			c["logprobs"] = logs(id, probs)
		}
		end := id == toyEnd && !b.Ignore
		switch {
		case end:
			c["finish_reason"] = "stop"
		case step == b.Max-1:
			c["finish_reason"] = "length"
		}
		if !b.Stream {
			if c["finish_reason"] == nil {
				continue
			}
			c["token_ids"] = ids[len(b.Prompt):]
			c["prompt_logprobs"] = scores
			reply(w, 200, map[string]any{"id": "cmpl-1", "object": "text_completion", "created": 1, "model": b.Model, "choices": []any{c}, "system_fingerprint": "vllm-0.32.0-tp2-0123abcd"})
			return
		}
		s.event(w, "data: ", map[string]any{"id": "cmpl-1", "object": "text_completion", "created": 1, "model": b.Model, "choices": []any{c}})
		if s.Broken.Load() && step == 2 {
			panic(http.ErrAbortHandler)
		}
		if end {
			break
		}
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}
