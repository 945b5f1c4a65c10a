package adapter

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// vllm drives vLLM's OpenAI server: /v1/completions with token ids, /tokenize,
// /detokenize, /metrics, and /server_info where it runs in development mode.
type vllm struct {
	*client
	model string
	tape  bool // the logits processor of this repository draws the tokens
}

const (
	vllmSlots = 64 // requests at once, where max_num_seqs is not known
	vllmTop   = 20 // alternatives: the default of --max-logprobs
)

// vllmInfo is what GET /server_info?config_format=json tells (VLLM_SERVER_DEV_MODE=1).
type vllmInfo struct {
	Env struct {
		Invariant any `json:"VLLM_BATCH_INVARIANT"`
	} `json:"vllm_env"`
	System struct {
		GPU string `json:"nvidia_gpu_models"`
	} `json:"system_env"`
	Config struct {
		Model struct {
			Type         any `json:"dtype"`
			Quantization any `json:"quantization"`
		} `json:"model_config"`
		Cache struct {
			Type string `json:"cache_dtype"`
		} `json:"cache_config"`
		Scheduler struct {
			Sequences int `json:"max_num_seqs"`
		} `json:"scheduler_config"`
		Parallel struct {
			Tensor   int `json:"tensor_parallel_size"`
			Pipeline int `json:"pipeline_parallel_size"`
		} `json:"parallel_config"`
	} `json:"vllm_config"`
}

func (v *vllm) describe(ctx context.Context, cfg Config, d *Description) (limits, error) {
	ask, cancel := soon(ctx)
	defer cancel()
	cards, err := listModels(ask, v.client)
	if err != nil {
		return limits{}, err
	}
	d.Models = describeCards(cards)
	lim := limits{slots: vllmSlots}
	f := &inferencepb.Fingerprint{Engine: string(VLLM), EngineVersion: d.Version, Weights: cfg.Weights, Kv: cfg.KV, Gpu: cfg.GPU}
	lim.fingerprint = f
	var info vllmInfo
	switch err := v.get(ask, "/server_info?config_format=json", &info); {
	case err == nil:
		info.fill(d, f, &lim)
	case missing(err):
		d.Notes = append(d.Notes, "Batch invariance, GPU, number of sequences and cache type are not known: start vLLM with VLLM_SERVER_DEV_MODE=1 (on a private address), or state them.")
	default:
		return limits{}, err
	}
	probe, cancel := context.WithTimeout(ctx, onceTimeout)
	defer cancel()
	if err := v.probe(probe, d, f); err != nil {
		return limits{}, err
	}
	deterministic(cfg, d, f, "batch-invariant", "VLLM_BATCH_INVARIANT=1")
	d.Prefix = "exact: the prefix is given as token ids; frequency and presence penalties count it only where the tape is applied"
	d.Sampling = "vLLM's own sampler, seeded from the tape key"
	if d.Tape {
		d.Sampling = "the sampling tape, by the logits processor"
	}
	return lim, nil
}

// fill takes over what the server says of itself.
func (i *vllmInfo) fill(d *Description, f *inferencepb.Fingerprint, lim *limits) {
	switch v := i.Env.Invariant.(type) {
	case bool:
		d.Capable.Deterministic = v
	case float64:
		d.Capable.Deterministic = v != 0
	case string:
		d.Capable.Deterministic = v == "1" || strings.EqualFold(v, "true")
	}
	if gpu := firstGPU(i.System.GPU); gpu != "" {
		f.Gpu, d.GPU = gpu, gpu
	}
	if t := text(i.Config.Model.Quantization); t != "" {
		f.Weights = t
	} else if t := strings.TrimPrefix(text(i.Config.Model.Type), "torch."); t != "" {
		f.Weights = t
	}
	if t := i.Config.Cache.Type; t == "auto" {
		f.Kv = strings.TrimPrefix(text(i.Config.Model.Type), "torch.")
	} else if t != "" {
		f.Kv = t
	}
	if n := i.Config.Scheduler.Sequences; n > 0 {
		lim.slots = min(n, 1024)
	}
	if t, p := i.Config.Parallel.Tensor, i.Config.Parallel.Pipeline; t > 1 || p > 1 {
		f.EngineVersion += fmt.Sprintf(" tp%d pp%d", max(t, 1), max(p, 1))
	}
}

// text returns a JSON value that should be a string; dtype objects come as strings.
func text(v any) string {
	s, _ := v.(string)
	if len(s) > 64 || s == "None" {
		return ""
	}
	return s
}

// firstGPU reads "GPU 0: NVIDIA H200\nGPU 1: NVIDIA H200": the model, and how many.
func firstGPU(s string) string {
	n, name := 0, ""
	for line := range strings.Lines(s) {
		_, model, ok := strings.Cut(line, ":")
		if model = strings.TrimSpace(model); ok && strings.HasPrefix(line, "GPU ") && model != "" && len(model) <= 64 {
			if n++; n == 1 {
				name = model
			}
		}
	}
	return name
}

// probe decodes one token of each model's first, and asks for the logits processor.
func (v *vllm) probe(ctx context.Context, d *Description, f *inferencepb.Fingerprint) error {
	if len(d.Models) == 0 {
		return errors.New("it has no model")
	}
	one := &vllm{client: v.client, model: d.Models[0].Server}
	ids, err := one.tokenize(ctx, "a", false)
	if err != nil {
		if missing(err) {
			return errors.New("it has no /tokenize: requests need token ids")
		}
		return err
	}
	body := map[string]any{"model": one.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "return_token_ids": true, "logprobs": 1,
		"return_tokens_as_token_ids": true}
	var reply vllmReply
	if err := v.post(ctx, "/v1/completions", body, &reply); err != nil {
		return fmt.Errorf("one token: %w", err)
	}
	if len(reply.Choices) != 1 {
		return fmt.Errorf("one token: %d choices", len(reply.Choices))
	}
	got, err := reply.Choices[0].tokens(1)
	if err != nil || len(got) != 1 {
		return fmt.Errorf("this vLLM returns no token ids (%d, %w): version 0.10.2 or newer does", len(got), err)
	}
	d.Capable.TokensIn, d.Capable.TokensOut, d.Capable.Chat, d.Capable.LogProbs, d.Capable.Score = true, true, true, true, true
	if s := reply.Fingerprint; strings.HasPrefix(s, "vllm-") && len(s) <= 64 {
		f.EngineVersion = strings.TrimPrefix(s, "vllm-") // names parallelism and configuration, too
	}
	// The processor refuses what only it knows.
	body["vllm_xargs"] = map[string]any{"mesh_tape": "probe"}
	err = v.post(ctx, "/v1/completions", body, new(vllmReply))
	v.tape = errors.Is(err, inference.ErrInvalid) && strings.Contains(err.Error(), "mesh_tape")
	if d.Tape = v.tape; !v.tape {
		d.Notes = append(d.Notes, "Tokens are drawn by vLLM's own sampler and cannot be checked against the tape: install the logits processor of inference/adapter/vllm and start vLLM with --logits-processors mesh_tape:TapeProcessor.")
	}
	return nil
}

// deterministic puts the mode into the fingerprint, whose class follows from it.
func deterministic(cfg Config, d *Description, f *inferencepb.Fingerprint, mode, flag string) {
	switch {
	case d.Capable.Deterministic:
		f.EngineVersion += " " + mode
	case cfg.Deterministic:
		d.Capable.Claimed = true
		f.EngineVersion += " " + mode + " claimed"
	default:
		d.Notes = append(d.Notes, "Answers depend on what else is computed (tolerance class): "+flag+" makes equal machines give equal bits.")
		f.Kv = "" // without it the class is tolerance
		return
	}
	if f.Gpu == "" || f.Kv == "" {
		d.Notes = append(d.Notes, "The pinned class needs the model of the GPU and the type of the KV cache, which the server does not tell: state them.")
	}
}

func (v *vllm) use(m ModelDescription) driver {
	return &vllm{client: v.client, model: m.Server, tape: v.tape}
}

func (v *vllm) tokenize(ctx context.Context, s string, bos bool) ([]int32, error) {
	var reply struct {
		Tokens []int32 `json:"tokens"`
	}
	err := v.post(ctx, "/tokenize", map[string]any{"model": v.model, "prompt": s, "add_special_tokens": bos}, &reply)
	return reply.Tokens, err
}

func (v *vllm) chat(ctx context.Context, messages []message, tools any) ([]int32, string, error) {
	body := map[string]any{"model": v.model, "messages": messages, "add_generation_prompt": true}
	if tools != nil {
		body["tools"] = tools
	}
	var reply struct {
		Tokens []int32 `json:"tokens"`
	}
	if err := v.post(ctx, "/tokenize", body, &reply); err != nil {
		return nil, "", err
	}
	if len(reply.Tokens) == 0 {
		return nil, "", errors.New("/tokenize: no tokens")
	}
	return reply.Tokens, "", nil
}

func (v *vllm) decode(ctx context.Context, ids []int32) (string, error) {
	var reply struct {
		Prompt string `json:"prompt"`
	}
	err := v.post(ctx, "/detokenize", map[string]any{"model": v.model, "tokens": ids}, &reply)
	return reply.Prompt, err
}

func (v *vllm) refuses(s *inferencepb.Sampling) error { return nil }

// vllmReply is an answer of /v1/completions, or an event of its stream.
type vllmReply struct {
	Choices     []vllmChoice `json:"choices"`
	Fingerprint string       `json:"system_fingerprint"`
}

type vllmChoice struct {
	Tokens   []int32 `json:"token_ids"`
	LogProbs *struct {
		Tokens []string             `json:"tokens"`
		Values []*float64           `json:"token_logprobs"`
		Top    []map[string]float64 `json:"top_logprobs"`
	} `json:"logprobs"`
	Prompt []map[string]vllmLogProb `json:"prompt_logprobs"`
	Finish *string                  `json:"finish_reason"`
	Stop   json.RawMessage          `json:"stop_reason"`
}

type vllmLogProb struct {
	LogProb float64 `json:"logprob"`
}

// tokens returns the new tokens, with at most top alternatives each. Versions that
// do not return ids beside the text name them among the log-probabilities.
func (c *vllmChoice) tokens(top int) ([]inference.Token, error) {
	ids := c.Tokens
	if ids == nil && c.LogProbs != nil {
		for _, s := range c.LogProbs.Tokens {
			id, err := namedToken(s)
			if err != nil {
				return nil, err
			}
			ids = append(ids, id)
		}
	}
	out := make([]inference.Token, len(ids))
	for i, id := range ids {
		out[i].ID = id
		if c.LogProbs == nil {
			continue
		}
		if len(c.LogProbs.Values) != len(ids) || len(c.LogProbs.Top) > len(ids) {
			return nil, fmt.Errorf("%d log-probabilities for %d tokens", len(c.LogProbs.Values), len(ids))
		}
		if p := c.LogProbs.Values[i]; p != nil {
			out[i].LogProb = float32(*p)
		}
		if i < len(c.LogProbs.Top) {
			for s, p := range c.LogProbs.Top[i] {
				id, err := namedToken(s)
				if err != nil {
					return nil, err
				}
				out[i].Top = append(out[i].Top, inference.TopLogProb{ID: id, LogProb: float32(p)})
			}
		}
		out[i].Top = likeliest(out[i].Top, top)
	}
	return out, nil
}

// namedToken reads "token_id:123".
func namedToken(s string) (int32, error) {
	digits, ok := strings.CutPrefix(s, "token_id:")
	n, err := strconv.ParseInt(digits, 10, 32)
	if !ok || err != nil || n < 0 {
		return 0, fmt.Errorf("token %.30q is no id", s)
	}
	return int32(n), nil
}

// likeliest sorts alternatives and keeps the first n.
func likeliest(top []inference.TopLogProb, n int) []inference.TopLogProb {
	slices.SortFunc(top, func(a, b inference.TopLogProb) int {
		switch {
		case a.LogProb > b.LogProb:
			return -1
		case a.LogProb < b.LogProb:
			return 1
		}
		return int(a.ID) - int(b.ID)
	})
	return top[:min(n, len(top)):min(n, len(top))]
}

// request is the body of a completion.
func (v *vllm) request(j *job) map[string]any {
	s := j.Sampling
	body := map[string]any{
		"model": v.model, "prompt": j.sequence(), "max_tokens": j.rest(), "stream": true,
		"return_token_ids": true, "add_special_tokens": false, "skip_special_tokens": false, "ignore_eos": j.IgnoreEOS,
		"temperature": s.GetTemperature(), "top_p": orOne(s.GetTopP()), "top_k": s.GetTopK(), "min_p": s.GetMinP(),
		"frequency_penalty": s.GetFrequencyPenalty(), "presence_penalty": s.GetPresencePenalty(),
		"repetition_penalty": orOne(s.GetRepetitionPenalty()), "seed": int64(j.seed(j.next) >> 1),
	}
	if bias := biases(s); bias != nil {
		body["logit_bias"] = bias
	}
	if j.LogProbs {
		body["logprobs"], body["return_tokens_as_token_ids"] = min(j.Top, vllmTop), true
	}
	if !j.Group.IsZero() {
		// What was computed for one payer speeds up nobody else's requests: the times would tell.
		body["cache_salt"] = base64.RawURLEncoding.EncodeToString(j.Group[:])
	}
	if v.tape {
		tapeArguments(body, j)
	}
	return body
}

// tapeArguments hands the whole choice of tokens to the logits processor, which
// leaves the chosen one alone: for vLLM it is greedy.
func tapeArguments(body map[string]any, j *job) {
	s := j.Sampling
	args := map[string]any{
		"mesh_tape": hex.EncodeToString(j.Tape[:]), "mesh_prefix": len(j.Prefix),
		"mesh_temperature": s.GetTemperature(), "mesh_top_p": s.GetTopP(), "mesh_top_k": s.GetTopK(),
		"mesh_min_p": s.GetMinP(), "mesh_frequency": s.GetFrequencyPenalty(),
		"mesh_presence": s.GetPresencePenalty(), "mesh_repetition": s.GetRepetitionPenalty(),
	}
	if len(s.GetLogitBias()) > 0 {
		var tokens, values []any
		for _, b := range s.GetLogitBias() {
			tokens, values = append(tokens, b.GetToken()), append(values, b.GetBias())
		}
		args["mesh_bias_tokens"], args["mesh_bias_values"] = tokens, values
	}
	body["vllm_xargs"] = args
	for _, name := range []string{"top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "seed"} {
		delete(body, name)
	}
	body["temperature"], body["top_p"], body["top_k"], body["min_p"] = 0, 1, 0, 0
	body["frequency_penalty"], body["presence_penalty"], body["repetition_penalty"] = 0, 0, 1
}

func orOne(v float32) float32 {
	if v == 0 {
		return 1
	}
	return v
}

// biases returns the logit bias as an object of token ids.
func biases(s *inferencepb.Sampling) map[string]float32 {
	if len(s.GetLogitBias()) == 0 {
		return nil
	}
	m := make(map[string]float32)
	for _, b := range s.GetLogitBias() {
		m[strconv.FormatUint(uint64(b.GetToken()), 10)] = b.GetBias()
	}
	return m
}

func (v *vllm) generate(ctx context.Context, j *job) (inference.FinishReason, error) {
	body, err := v.open(ctx, http.MethodPost, "/v1/completions", v.request(j))
	if err != nil {
		return "", err
	}
	defer body.Close()
	var reason inference.FinishReason
	err = readEvents(body, func(field string, data []byte) error {
		if err := streamError(field, data); err != nil {
			return err
		}
		var e vllmReply
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("an event of the answer: %w", err)
		}
		if len(e.Choices) == 0 {
			return nil // usage
		}
		if reason != inference.FinishOpen {
			return errors.New("the answer goes on after its end")
		}
		reason, err = v.event(ctx, j, &e.Choices[0])
		return err
	})
	if err == nil && reason == inference.FinishOpen {
		err = errors.New("the answer broke off")
	}
	return reason, err
}

// event hands on the tokens of one event.
func (v *vllm) event(ctx context.Context, j *job, c *vllmChoice) (inference.FinishReason, error) {
	tokens, err := c.tokens(j.Top)
	if err != nil {
		return "", err
	}
	reason, err := vllmFinish(c)
	if err != nil {
		return "", err
	}
	// The reason is a string where a text ended it: no token has to be hidden then.
	if reason == inference.FinishEOS && len(tokens) > 0 && !bytes.HasPrefix(c.Stop, []byte(`"`)) {
		j.engine.words.end(tokens[len(tokens)-1].ID)
	}
	for _, t := range tokens {
		if err := j.token(ctx, t); err != nil {
			return "", err
		}
	}
	return reason, nil
}

func vllmFinish(c *vllmChoice) (inference.FinishReason, error) {
	if c.Finish == nil {
		return inference.FinishOpen, nil
	}
	switch *c.Finish {
	case "stop":
		return inference.FinishEOS, nil
	case "length":
		return inference.FinishLength, nil
	}
	return "", fmt.Errorf("the server ended the answer: %.60q", *c.Finish)
}

func (v *vllm) load(ctx context.Context) (inference.Load, error) {
	b, err := v.read(ctx, http.MethodGet, "/metrics", nil)
	if missing(err) { // --disable-... : health is enough
		_, err = v.read(ctx, http.MethodGet, "/health", nil)
		return inference.Load{}, err
	}
	if err != nil {
		return inference.Load{}, err
	}
	m := metrics(b, "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
	return inference.Load{
		Active: count(m["vllm:num_requests_running"]), Queued: count(m["vllm:num_requests_waiting"]),
		PromptTokens: uint64(max(0, min(m["vllm:prefix_cache_queries_total"], math.MaxInt64/2))),
		CachedTokens: uint64(max(0, min(m["vllm:prefix_cache_hits_total"], math.MaxInt64/2))),
	}, nil
}
