package adapter

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// sglang drives SGLang's native API: /generate with token ids, /tokenize,
// /detokenize, /server_info and /metrics.
type sglang struct {
	*client
	deterministic bool
	prefix        string // of /tokenize and /detokenize: "" or "/v1"
}

const sglangSlots = 32 // requests at once, where max_running_requests is not known

// sglangArgs is what GET /server_info tells, the arguments of the server among it.
type sglangArgs struct {
	Version       string            `json:"version"`
	MaxTotal      *int              `json:"max_total_num_tokens"`
	States        []json.RawMessage `json:"internal_states"`
	Deterministic bool              `json:"enable_deterministic_inference"`
	Running       *int              `json:"max_running_requests"`
	Context       *int              `json:"context_length"`
	KV            string            `json:"kv_cache_dtype"`
	Type          string            `json:"dtype"`
	Quantization  *string           `json:"quantization"`
	Attention     *string           `json:"attention_backend"`
	Tensor        int               `json:"tp_size"`
}

// sglangInfo asks under the name of today and the one before.
func sglangInfo(ctx context.Context, c *client) (*sglangArgs, error) {
	var err error
	for _, path := range []string{"/server_info", "/get_server_info"} {
		i := new(sglangArgs)
		if err = c.get(ctx, path, i); err == nil || !missing(err) {
			return i, err
		}
	}
	return nil, err
}

func (g *sglang) describe(ctx context.Context, cfg Config, d *Description) (limits, error) {
	ask, cancel := soon(ctx)
	defer cancel()
	i, err := sglangInfo(ask, g.client)
	if err != nil {
		return limits{}, err
	}
	cards, err := listModels(ask, g.client)
	if err != nil {
		return limits{}, err
	}
	d.Models = describeCards(cards)
	for n := range d.Models {
		if c := i.Context; d.Models[n].Context == 0 && c != nil && *c > 0 && *c < 1<<30 {
			d.Models[n].Context = *c
		}
	}
	lim := limits{slots: sglangSlots}
	if r := i.Running; r != nil && *r > 0 {
		lim.slots = min(*r, 1024)
	}
	f := &inferencepb.Fingerprint{Engine: string(SGLang), EngineVersion: bounded(i.Version), Weights: cfg.Weights, Kv: cfg.KV, Gpu: cfg.GPU}
	lim.fingerprint = f
	i.fill(f)
	d.Capable.Deterministic = i.Deterministic
	probe, cancel := context.WithTimeout(ctx, onceTimeout)
	defer cancel()
	if err := g.probe(probe, d); err != nil {
		return limits{}, err
	}
	deterministic(cfg, d, f, "deterministic", "--enable-deterministic-inference")
	if g.deterministic = d.Capable.Deterministic || cfg.Deterministic; !g.deterministic {
		d.Notes = append(d.Notes, "Seeds have no effect: SGLang heeds them with --enable-deterministic-inference alone.")
	}
	d.Prefix = "exact: the prefix is given as token ids; frequency and presence penalties do not count it"
	d.Sampling = "SGLang's own sampler"
	if g.deterministic {
		d.Sampling += ", seeded from the tape key"
	}
	return lim, nil
}

func (i *sglangArgs) fill(f *inferencepb.Fingerprint) {
	if i.Quantization != nil && *i.Quantization != "" {
		f.Weights = bounded(*i.Quantization)
	} else if i.Type != "" && i.Type != "auto" {
		f.Weights = bounded(i.Type)
	}
	switch {
	case i.KV != "" && i.KV != "auto":
		f.Kv = bounded(i.KV)
	case f.Kv == "":
		f.Kv = f.Weights // auto: the type of the model
	}
	if i.Attention != nil && *i.Attention != "" {
		f.EngineVersion += " " + bounded(*i.Attention)
	}
	if i.Tensor > 1 {
		f.EngineVersion += " tp" + strconv.Itoa(i.Tensor)
	}
}

// bounded keeps what a server says short enough for a receipt.
func bounded(s string) string {
	s = strings.ToValidUTF8(s, "")
	if len(s) > 48 {
		s = strings.ToValidUTF8(s[:48], "")
	}
	return s
}

// probe decodes one token and renders one message.
func (g *sglang) probe(ctx context.Context, d *Description) error {
	ids, err := g.tokenize(ctx, "a", false)
	if missing(err) {
		g.prefix = "/v1"
		ids, err = g.tokenize(ctx, "a", false)
	}
	if missing(err) {
		return errors.New("this SGLang has no /tokenize: version 0.5.4 or newer does")
	}
	if err != nil {
		return err
	}
	var reply sglangReply
	body := map[string]any{"input_ids": ids, "sampling_params": map[string]any{"max_new_tokens": 1, "temperature": 0}, "return_logprob": true}
	if err := g.post(ctx, "/generate", body, &reply); err != nil {
		return fmt.Errorf("one token: %w", err)
	}
	if n := len(reply.IDs); n != 1 {
		return fmt.Errorf("this SGLang returned %d token ids for one token: start it without --skip-tokenizer-init, version 0.4.7 or newer", n)
	}
	d.Capable.TokensIn, d.Capable.TokensOut, d.Capable.LogProbs, d.Capable.Score = true, true, true, true
	switch _, _, err := g.chat(ctx, []message{{Role: "user", Content: "a"}}, nil); {
	case err == nil:
		d.Capable.Chat = true
	case missing(err) || errors.Is(err, inference.ErrInvalid) || errors.Is(err, errNoChat):
		d.Notes = append(d.Notes, "This SGLang does not render messages (/tokenize with messages, from version 0.5.13, and a chat template): it only continues prompts.")
	default:
		return err
	}
	return nil
}

var errNoChat = errors.New("the server gave no tokens for a message")

func (g *sglang) use(ModelDescription) driver { return g }

func (g *sglang) tokenize(ctx context.Context, s string, bos bool) ([]int32, error) {
	var reply struct {
		Tokens []int32 `json:"tokens"`
	}
	err := g.post(ctx, g.prefix+"/tokenize", map[string]any{"prompt": s, "add_special_tokens": bos}, &reply)
	return reply.Tokens, err
}

func (g *sglang) chat(ctx context.Context, messages []message, tools any) ([]int32, string, error) {
	body := map[string]any{"messages": messages, "add_special_tokens": false, "add_generation_prompt": true}
	if tools != nil {
		body["tools"] = tools
	}
	var reply struct {
		Tokens []int32 `json:"tokens"`
	}
	if err := g.post(ctx, g.prefix+"/tokenize", body, &reply); err != nil {
		return nil, "", err
	}
	if len(reply.Tokens) == 0 {
		return nil, "", errNoChat
	}
	return reply.Tokens, "", nil
}

func (g *sglang) decode(ctx context.Context, ids []int32) (string, error) {
	var reply struct {
		Text string `json:"text"`
	}
	err := g.post(ctx, g.prefix+"/detokenize", map[string]any{"tokens": ids, "skip_special_tokens": false}, &reply)
	return reply.Text, err
}

func (g *sglang) refuses(s *inferencepb.Sampling) error {
	if s.GetRepetitionPenalty() > 2 {
		return errors.New("SGLang takes a repetition penalty of at most 2")
	}
	return nil
}

// sglangReply is an answer of /generate, or an event of its stream, where ids and
// log-probabilities are those of the whole answer so far, or the new ones alone.
type sglangReply struct {
	IDs  []int32 `json:"output_ids"`
	Meta struct {
		Completion int             `json:"completion_tokens"`
		LogProbs   []sglangLogProb `json:"output_token_logprobs"`
		Top        []sglangTop     `json:"output_top_logprobs"`
		Input      []sglangLogProb `json:"input_token_logprobs"`
		InputTop   []sglangTop     `json:"input_top_logprobs"`
		Finish     *struct {
			Type    string          `json:"type"`
			Message string          `json:"message"`
			Matched json.RawMessage `json:"matched"` // the token or string that ended it
		} `json:"finish_reason"`
	} `json:"meta_info"`
}

// sglangLogProb is [log-probability or null, id, text or null].
type sglangLogProb struct {
	LogProb *float64
	ID      int32
}

func (p *sglangLogProb) UnmarshalJSON(b []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(b, &parts); err != nil {
		return err
	}
	if len(parts) < 2 {
		return fmt.Errorf("a log-probability of %d parts", len(parts))
	}
	if err := json.Unmarshal(parts[0], &p.LogProb); err != nil {
		return err
	}
	return json.Unmarshal(parts[1], &p.ID)
}

func (p *sglangLogProb) value() float32 {
	if p.LogProb == nil {
		return 0
	}
	return float32(*p.LogProb)
}

// sglangTop are the alternatives at a position; null where there are none.
type sglangTop []sglangLogProb

func (t sglangTop) likeliest(n int) []inference.TopLogProb {
	var out []inference.TopLogProb
	for i := range t {
		out = append(out, inference.TopLogProb{ID: t[i].ID, LogProb: t[i].value()})
	}
	return likeliest(out, n)
}

// request is the body of a generation.
func (g *sglang) request(j *job) map[string]any {
	s := j.Sampling
	p := map[string]any{
		"max_new_tokens": j.rest(), "ignore_eos": j.IgnoreEOS, "skip_special_tokens": false, "no_stop_trim": true,
		"temperature": s.GetTemperature(), "top_p": orOne(s.GetTopP()), "top_k": -1, "min_p": s.GetMinP(),
		"frequency_penalty": s.GetFrequencyPenalty(), "presence_penalty": s.GetPresencePenalty(),
		"repetition_penalty": orOne(s.GetRepetitionPenalty()),
	}
	if k := s.GetTopK(); k > 0 {
		p["top_k"] = k
	}
	if bias := biases(s); bias != nil {
		p["logit_bias"] = bias
	}
	if g.deterministic {
		p["sampling_seed"] = int64(j.seed(j.next) >> 33) // 31 bits: it is an index into a hash
	}
	body := map[string]any{"input_ids": j.sequence(), "sampling_params": p, "stream": true}
	if j.LogProbs {
		body["return_logprob"], body["top_logprobs_num"] = true, j.Top
	}
	if !j.Group.IsZero() {
		body["extra_key"] = hex.EncodeToString(j.Group[:]) // see cache_salt of vLLM
	}
	return body
}

func (g *sglang) generate(ctx context.Context, j *job) (inference.FinishReason, error) {
	body, err := g.open(ctx, http.MethodPost, "/generate", g.request(j))
	if err != nil {
		return "", err
	}
	defer body.Close()
	var reason inference.FinishReason
	start := j.next
	err = readEvents(body, func(field string, data []byte) error {
		if err := streamError(field, data); err != nil {
			return err
		}
		var e sglangReply
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("an event of the answer: %w", err)
		}
		if reason != inference.FinishOpen {
			return errors.New("the answer goes on after its end")
		}
		reason, err = g.event(ctx, j, &e, j.next-start)
		return err
	})
	if err == nil && reason == inference.FinishOpen {
		err = errors.New("the answer broke off")
	}
	return reason, err
}

// event hands on the tokens of one event; had came before.
func (g *sglang) event(ctx context.Context, j *job, e *sglangReply, had int) (inference.FinishReason, error) {
	tokens, err := e.fresh(had, j)
	if err != nil {
		return "", err
	}
	reason := inference.FinishOpen
	if f := e.Meta.Finish; f != nil {
		switch f.Type {
		case "stop":
			reason = inference.FinishEOS
			if n := len(tokens); n > 0 && string(f.Matched) == strconv.Itoa(int(tokens[n-1].ID)) {
				j.engine.words.end(tokens[n-1].ID)
			}
		case "length":
			reason = inference.FinishLength
		default:
			if busyText(f.Message) {
				return "", fmt.Errorf("%w: %s", inference.ErrBusy, bounded(f.Message))
			}
			return "", fmt.Errorf("the server ended the answer: %.60q %.200q", f.Type, f.Message)
		}
	}
	for _, t := range tokens {
		if err := j.token(ctx, t); err != nil {
			return "", err
		}
	}
	return reason, nil
}

// busyText recognises SGLang's refusal of a full queue, which comes inside a 200.
func busyText(s string) bool { return strings.Contains(s, "queue is full") }

// fresh returns the tokens after the first had of this request. The count of all
// tells whether the event has all of them or the new ones.
func (e *sglangReply) fresh(had int, j *job) ([]inference.Token, error) {
	ids, probs, top := e.IDs, e.Meta.LogProbs, e.Meta.Top
	switch all := e.Meta.Completion; {
	case len(ids) == all && all >= had:
		ids = ids[had:]
	case had+len(ids) == all:
	case len(ids) == 0 && all <= had: // the end alone
	default:
		return nil, fmt.Errorf("%d tokens after %d, and %d in all", len(ids), had, all)
	}
	out := make([]inference.Token, len(ids))
	for i, id := range ids {
		out[i].ID = id
	}
	if !j.LogProbs || len(ids) == 0 {
		return out, nil
	}
	if len(probs) < len(ids) || j.Top > 0 && len(top) < len(ids) {
		return nil, fmt.Errorf("%d log-probabilities for %d tokens", len(probs), len(ids))
	}
	probs = probs[len(probs)-len(ids):]
	for i := range out {
		if probs[i].ID != out[i].ID {
			return nil, fmt.Errorf("the log-probability of token %d stands where that of %d should", probs[i].ID, out[i].ID)
		}
		out[i].LogProb = probs[i].value()
		if j.Top > 0 {
			out[i].Top = top[len(top)-len(ids)+i].likeliest(j.Top)
		}
	}
	return out, nil
}

func (g *sglang) load(ctx context.Context) (inference.Load, error) {
	b, err := g.read(ctx, http.MethodGet, "/metrics", nil)
	if missing(err) { // without --enable-metrics
		_, err = g.read(ctx, http.MethodGet, "/health", nil)
		return inference.Load{}, err
	}
	if err != nil {
		return inference.Load{}, err
	}
	m := metrics(b, "sglang:num_running_reqs", "sglang:num_queue_reqs")
	return inference.Load{Active: count(m["sglang:num_running_reqs"]), Queued: count(m["sglang:num_queue_reqs"])}, nil
}
