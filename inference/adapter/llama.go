package adapter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// llama drives llama.cpp's server: /completion with token ids, /tokenize,
// /detokenize, /apply-template, /props, /slots.
//
// Its stream leaves out tokens that do not complete a character, so ids are taken
// from answers that are not streamed: a first token, for which the work on the
// prompt is streamed, and then a few tokens at a time, each request continuing the
// last one in the same slot, where everything is cached. That costs a round trip for
// each batch of tokens and no computation.
type llama struct {
	*client
	model string
	slots *llamaSlots
	bos   int32 // token that begins a prompt; -1: none
}

// A batch of tokens takes about llamaBatch.
const (
	llamaBatch     = 150 * time.Millisecond
	llamaBatchMost = 32
)

// llamaProps is what GET /props tells.
type llamaProps struct {
	Slots    int    `json:"total_slots"`
	Build    string `json:"build_info"`
	Path     string `json:"model_path"`
	Type     string `json:"model_ftype"`
	BOS      string `json:"bos_token"`
	EOS      string `json:"eos_token"`
	Template string `json:"chat_template"`
	Settings struct {
		Context int `json:"n_ctx"`
	} `json:"default_generation_settings"`
}

func llamaPropsOf(ctx context.Context, c *client) (*llamaProps, error) {
	p := new(llamaProps)
	if err := c.get(ctx, "/props", p); err != nil {
		return nil, err
	}
	if p.Slots < 0 || p.Slots > 1<<12 || p.Settings.Context < 0 || p.Settings.Context > 1<<30 {
		return nil, fmt.Errorf("/props: %d slots of %d tokens make no sense", p.Slots, p.Settings.Context)
	}
	return p, nil
}

func (l *llama) describe(ctx context.Context, cfg Config, d *Description) (limits, error) {
	ask, cancel := soon(ctx)
	defer cancel()
	p, err := llamaPropsOf(ask, l.client)
	if err != nil {
		return limits{}, err
	}
	cards, err := listModels(ask, l.client)
	if err != nil {
		return limits{}, err
	}
	d.Models = describeCards(cards)
	lim := limits{slots: max(1, p.Slots)}
	for i := range d.Models {
		d.Models[i].Path, d.Models[i].Context = p.Path, p.Settings.Context
		lim.vocab = cards[i].Meta.Vocab
	}
	if len(d.Models) > 1 {
		return limits{}, errors.New("it is a router of several models: name the server of one")
	}
	l.slots = newLlamaSlots(lim.slots)
	probe, cancel := context.WithTimeout(ctx, onceTimeout)
	defer cancel()
	if err := l.probe(probe, p); err != nil {
		return limits{}, err
	}
	d.Capable.TokensIn, d.Capable.TokensOut, d.Capable.LogProbs = true, true, true
	if d.Capable.Chat = p.Template != ""; !d.Capable.Chat {
		d.Notes = append(d.Notes, "The model has no chat template: give one with --chat-template or --chat-template-file, and --jinja.")
	}
	weights := cfg.Weights
	if weights == "" {
		weights = bounded(p.Type)
	}
	lim.fingerprint = &inferencepb.Fingerprint{
		Engine: string(Llama), EngineVersion: bounded(p.Build), Weights: weights, Gpu: cfg.GPU,
	}
	d.Notes = append(d.Notes,
		"llama-server has no deterministic mode: its answers are of the tolerance class.",
		"It cannot score tokens that exist already: who checks its answers loads the same file.")
	if cfg.Deterministic {
		d.Notes = append(d.Notes, "The claim of a deterministic mode is left out: llama-server has none.")
	}
	d.Prefix = "exact: the prefix is given as token ids"
	d.Sampling = "llama.cpp's own samplers, seeded from the tape key and the place of each batch of tokens; frequency and presence penalties count the prompt, too"
	return lim, nil
}

// probe decodes one token and finds the one that begins a prompt.
func (l *llama) probe(ctx context.Context, p *llamaProps) error {
	ids, err := l.tokenize(ctx, "a", false)
	if err != nil {
		return err
	}
	var reply llamaReply
	body := map[string]any{"prompt": ids, "n_predict": 1, "temperature": 0, "return_tokens": true, "n_probs": 1}
	if err := l.post(ctx, "/completion", body, &reply); err != nil {
		return fmt.Errorf("one token: %w", err)
	}
	if len(reply.Tokens) != 1 {
		return fmt.Errorf("this llama-server returned %d token ids for one token: build b4300 or newer does", len(reply.Tokens))
	}
	if len(reply.Probs) > 0 && reply.Probs[0].ID != reply.Tokens[0] {
		return errors.New("this llama-server returns log-probabilities without token ids: build b4400 or newer has them")
	}
	l.bos = -1
	with, err := l.tokenize(ctx, "a", true)
	if err != nil {
		return err
	}
	if len(with) == len(ids)+1 && slices.Equal(with[1:], ids) {
		l.bos = with[0]
	}
	return nil
}

func (l *llama) use(m ModelDescription) driver {
	return &llama{client: l.client, model: m.Server, slots: l.slots, bos: l.bos}
}

func (l *llama) tokenize(ctx context.Context, s string, bos bool) ([]int32, error) {
	var reply struct {
		Tokens []int32 `json:"tokens"`
	}
	err := l.post(ctx, "/tokenize", map[string]any{"content": s, "add_special": bos, "parse_special": true}, &reply)
	// Templates may write out the token that begins a prompt.
	if t := reply.Tokens; bos && l.bos >= 0 && len(t) > 1 && t[0] == l.bos && t[1] == l.bos {
		reply.Tokens = t[1:]
	}
	return reply.Tokens, err
}

func (l *llama) chat(ctx context.Context, messages []message, tools any) ([]int32, string, error) {
	body := map[string]any{"messages": messages}
	if tools != nil {
		body["tools"] = tools
	}
	var reply struct {
		Prompt string `json:"prompt"`
	}
	if err := l.post(ctx, "/apply-template", body, &reply); err != nil {
		return nil, "", err
	}
	if reply.Prompt == "" {
		return nil, "", errors.New("/apply-template: an empty prompt")
	}
	return nil, reply.Prompt, nil
}

func (l *llama) decode(ctx context.Context, ids []int32) (string, error) {
	var reply struct {
		Content string `json:"content"`
	}
	err := l.post(ctx, "/detokenize", map[string]any{"tokens": ids}, &reply)
	return reply.Content, err
}

func (l *llama) refuses(*inferencepb.Sampling) error { return nil }

// llamaReply is an answer of /completion, or an event of its stream.
type llamaReply struct {
	Tokens    []int32     `json:"tokens"`
	Stop      bool        `json:"stop"`
	Type      string      `json:"stop_type"`
	Truncated bool        `json:"truncated"`
	Predicted int         `json:"tokens_predicted"`
	Probs     []llamaProb `json:"completion_probabilities"`
}

type llamaProb struct {
	ID      int32       `json:"id"`
	LogProb float64     `json:"logprob"`
	Top     []llamaProb `json:"top_logprobs"`
}

// request is the body for n more tokens after ids.
func (l *llama) request(j *job, ids []int32, n int, slot *llamaSlot) map[string]any {
	s := j.Sampling
	body := map[string]any{
		"prompt": ids, "n_predict": n, "id_slot": slot.id, "cache_prompt": slot.group == j.Group, "return_tokens": true,
		"ignore_eos": j.IgnoreEOS, "seed": uint32(j.seed(j.next)) &^ (1 << 31), // all ones would mean any
		"temperature": s.GetTemperature(), "top_p": orOne(s.GetTopP()), "top_k": s.GetTopK(), "min_p": s.GetMinP(),
		"repeat_penalty": orOne(s.GetRepetitionPenalty()), "repeat_last_n": 0,
		"frequency_penalty": s.GetFrequencyPenalty(), "presence_penalty": s.GetPresencePenalty(),
		"samplers": []string{"penalties", "temperature", "top_k", "top_p", "min_p"}, "min_keep": 1,
	}
	if s.GetFrequencyPenalty() != 0 || s.GetPresencePenalty() != 0 || orOne(s.GetRepetitionPenalty()) != 1 {
		body["repeat_last_n"] = len(ids) + n // all; the server keeps room for as many
	}
	if s.GetTemperature() == 0 {
		// Filters keep the likeliest token; without them equal bits are equal work.
		body["top_p"], body["top_k"], body["min_p"] = 1, 0, 0
	}
	if len(s.GetLogitBias()) > 0 {
		var bias [][2]any
		for _, b := range s.GetLogitBias() {
			bias = append(bias, [2]any{b.GetToken(), b.GetBias()})
		}
		body["logit_bias"] = bias
	}
	if j.LogProbs {
		body["n_probs"] = max(1, j.Top)
	}
	return body
}

func (l *llama) generate(ctx context.Context, j *job) (inference.FinishReason, error) {
	ids := j.sequence()
	slot := l.slots.take(ids, j.Group)
	defer func() { l.slots.give(slot, ids, slot.group) }()
	reply, err := l.first(ctx, j, ids, slot)
	if err != nil {
		ids = nil // the server may not have seen them: the slot stays its last payer's
		return "", err
	}
	slot.group = j.Group
	asked, each := 1, llamaBatch
	for {
		if ids, err = l.hand(ctx, j, ids, reply); err != nil {
			return "", err
		}
		switch {
		case reply.Type == "eos" || reply.Type == "word":
			return inference.FinishEOS, nil
		case j.rest() <= 0 || len(reply.Tokens) < asked: // or the slot's context is full
			return inference.FinishLength, nil
		}
		asked = min(j.rest(), llamaBatchMost, max(1, int(llamaBatch/max(each, time.Millisecond))))
		from := time.Now()
		reply = new(llamaReply)
		if err := l.post(ctx, "/completion", l.request(j, ids, asked, slot), reply); err != nil {
			return "", err
		}
		each = time.Since(from) / time.Duration(max(1, len(reply.Tokens)))
	}
}

// first gets the first token. The stream tells of the work on the prompt; if the
// token is a fragment of a character, the stream keeps it back, and the same request
// without a stream, which finds the prompt cached, has it.
func (l *llama) first(ctx context.Context, j *job, ids []int32, slot *llamaSlot) (*llamaReply, error) {
	request := l.request(j, ids, 1, slot)
	request["stream"], request["return_progress"] = true, true
	body, err := l.open(ctx, http.MethodPost, "/completion", request)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var last llamaReply
	err = readEvents(body, func(field string, data []byte) error {
		if err := streamError(field, data); err != nil {
			return err
		}
		var e llamaReply
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("an event of the answer: %w", err)
		}
		switch {
		case e.Stop:
			last.Stop, last.Type, last.Truncated = true, e.Type, e.Truncated
		case e.Predicted > 0:
			last.Tokens, last.Probs = append(last.Tokens, e.Tokens...), append(last.Probs, e.Probs...)
		}
		j.work()
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !last.Stop {
		return nil, errors.New("the answer broke off")
	}
	if len(last.Tokens) > 0 {
		return &last, nil
	}
	delete(request, "stream")
	delete(request, "return_progress")
	request["cache_prompt"] = true
	again := new(llamaReply)
	return again, l.post(ctx, "/completion", request, again)
}

// hand hands on the tokens of an answer and returns the sequence with them.
func (l *llama) hand(ctx context.Context, j *job, ids []int32, r *llamaReply) ([]int32, error) {
	if r.Type == "eos" && len(r.Tokens) > 0 {
		j.engine.words.end(r.Tokens[len(r.Tokens)-1])
	}
	probs := r.Probs
	for _, id := range r.Tokens {
		t := inference.Token{ID: id}
		if j.LogProbs {
			// The server has none for pieces of characters.
			t.LogProb = float32(math.NaN())
			if len(probs) > 0 && probs[0].ID == id {
				t.LogProb, t.Top = float32(probs[0].LogProb), probs[0].alternatives(j.Top)
				probs = probs[1:]
			}
		}
		if err := j.token(ctx, t); err != nil {
			return ids, err
		}
		ids = append(ids, id)
	}
	if j.LogProbs && len(probs) > 0 {
		return ids, fmt.Errorf("the log-probability of token %d belongs to none", probs[0].ID)
	}
	return ids, nil
}

func (p *llamaProb) alternatives(n int) []inference.TopLogProb {
	var top []inference.TopLogProb
	for _, a := range p.Top {
		top = append(top, inference.TopLogProb{ID: a.ID, LogProb: float32(a.LogProb)})
	}
	return likeliest(top, n)
}

func (l *llama) load(ctx context.Context) (inference.Load, error) {
	if b, err := l.read(ctx, http.MethodGet, "/metrics", nil); err == nil {
		m := metrics(b, "llamacpp:requests_processing", "llamacpp:requests_deferred", "llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total")
		cached := uint64(max(0, m["llamacpp:prompt_tokens_cached_total"]))
		return inference.Load{
			Active: count(m["llamacpp:requests_processing"]), Queued: count(m["llamacpp:requests_deferred"]),
			PromptTokens: uint64(max(0, m["llamacpp:prompt_tokens_total"])) + cached, CachedTokens: cached,
		}, nil
	}
	var slots []struct {
		Busy bool `json:"is_processing"`
	}
	err := l.get(ctx, "/slots", &slots)
	if err != nil { // both can be switched off
		_, err = l.read(ctx, http.MethodGet, "/health", nil)
	}
	load := inference.Load{}
	for _, s := range slots {
		if s.Busy {
			load.Active++
		}
	}
	return load, err
}

// llamaSlots hands out the server's slots, so that a request finds its tokens cached
// and two requests do not push each other out.
type llamaSlots struct {
	mu   sync.Mutex
	free []*llamaSlot // least recently used first; guarded by mu
}

type llamaSlot struct {
	id    int
	ids   []int32      // what is cached there
	group mesh.Address // for whom
}

func newLlamaSlots(n int) *llamaSlots {
	s := &llamaSlots{}
	for i := range n {
		s.free = append(s.free, &llamaSlot{id: i})
	}
	return s
}

// take returns the free slot that has the longest beginning of ids, of those the one
// that was used least recently. There is one: the engine has as many places.
func (s *llamaSlots) take(ids []int32, group mesh.Address) *llamaSlot {
	s.mu.Lock()
	defer s.mu.Unlock()
	best, most := 0, -1
	for i, slot := range s.free {
		n := 0
		if slot.group == group {
			for n < len(ids) && n < len(slot.ids) && ids[n] == slot.ids[n] {
				n++
			}
		}
		if n > most {
			best, most = i, n
		}
	}
	slot := s.free[best]
	s.free = slices.Delete(s.free, best, best+1)
	return slot
}

func (s *llamaSlots) give(slot *llamaSlot, ids []int32, group mesh.Address) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot.ids, slot.group = ids, group
	s.free = append(s.free, slot)
}
