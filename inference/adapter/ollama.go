package adapter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// ollama is the engine of one model of an Ollama server. The server renders messages
// with the model's template (/api/chat, nothing generated), and continues the text of
// prompt and answer so far (/api/generate, raw). So an answer is the model's whole
// text, with thoughts and tool calls, and can be continued anywhere.
type ollama struct {
	*desk
	client *client
	model  string
	window int // num_ctx, in the model's own tokens
}

var _ inference.Engine = (*ollama)(nil)

const (
	ollamaSlots  = 1    // the default of OLLAMA_NUM_PARALLEL
	ollamaWindow = 4096 // num_ctx, where the model does not set it
	// A token of a model is some characters. Prompts that are longer after all are
	// refused by the server, and answers end at its window.
	runesPerToken = 3
)

type ollamaModel struct {
	Name    string `json:"name"`
	Size    int64  `json:"size"`
	Details struct {
		Quantization string `json:"quantization_level"`
	} `json:"details"`
}

func ollamaTags(ctx context.Context, c *client) ([]ollamaModel, error) {
	var l struct {
		Models []ollamaModel `json:"models"`
	}
	if err := c.get(ctx, "/api/tags", &l); err != nil {
		return nil, err
	}
	for _, m := range l.Models {
		if m.Name == "" || len(m.Name) > 512 || m.Size < 0 {
			return nil, fmt.Errorf("/api/tags: entry %.60q makes no sense", m.Name)
		}
	}
	return l.Models, nil
}

// ollamaShow is what POST /api/show tells of a model.
type ollamaShow struct {
	Info         map[string]any `json:"model_info"`
	Parameters   string         `json:"parameters"`
	Modelfile    string         `json:"modelfile"`
	Capabilities []string       `json:"capabilities"`
}

// answers reports whether the model makes text. Old servers do not say.
func (s *ollamaShow) answers() bool {
	return len(s.Capabilities) == 0 || slices.Contains(s.Capabilities, "completion")
}

// window returns the context that requests ask for.
func (s *ollamaShow) window(want int) int {
	own := 0
	for key, v := range s.Info {
		if n, ok := v.(float64); ok && strings.HasSuffix(key, ".context_length") && n >= 1 && n < 1<<30 {
			own = int(n)
		}
	}
	n := want
	if n == 0 {
		n = ollamaWindow
		for line := range strings.Lines(s.Parameters) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "num_ctx" {
				if v, err := strconv.Atoi(f[1]); err == nil && v > 0 && v < 1<<30 {
					n = v
				}
			}
		}
	}
	if own > 0 {
		n = min(n, own)
	}
	return n
}

// file returns the model's file on the server's machine.
func (s *ollamaShow) file() string {
	for line := range strings.Lines(s.Modelfile) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "FROM "); ok && strings.HasPrefix(path, "/") {
			return path
		}
	}
	return ""
}

func openOllama(ctx context.Context, c *client, cfg Config, d *Description) ([]inference.Engine, *Description, error) {
	ask, cancel := context.WithTimeout(ctx, onceTimeout)
	defer cancel()
	models, err := ollamaTags(ask, c)
	if err != nil {
		return nil, d, err
	}
	shows := make(map[string]*ollamaShow)
	quantization := make(map[string]string)
	for _, m := range models {
		s := new(ollamaShow)
		if err := c.post(ask, "/api/show", map[string]any{"model": m.Name}, s); err != nil {
			return nil, d, err
		}
		if slices.Contains(s.Capabilities, "embedding") {
			d.Capable.Embeddings = true
		}
		if !s.answers() {
			continue
		}
		shows[m.Name], quantization[m.Name] = s, m.Details.Quantization
		d.Models = append(d.Models, ModelDescription{
			Server: m.Name, Name: m.Name, Path: s.file(), Context: runesPerToken * s.window(cfg.Context),
		})
	}
	if d.Models, err = cfg.pick(d.Models, Unicode); err != nil {
		return nil, d, err
	}
	describeOllama(d)
	var engines []inference.Engine
	for _, m := range d.Models {
		weights := cfg.Weights
		if weights == "" {
			weights = bounded(quantization[m.Server])
		}
		slots := cfg.Slots
		if slots == 0 {
			slots = ollamaSlots
		}
		e := &ollama{client: c, model: m.Server, window: shows[m.Server].window(cfg.Context), desk: newDesk(cfg, inference.ModelInfo{
			ID: m.ID, Name: m.Name, Context: m.Context, Vocab: unicodeVocab, Slots: slots,
			Fingerprint: &inferencepb.Fingerprint{Engine: string(Ollama), EngineVersion: bounded(d.Version), Weights: weights, Gpu: cfg.GPU},
		})}
		switch _, err := e.render(ask, []message{{Role: "user", Content: "a"}}, nil); {
		case err == nil:
			d.Capable.Chat = true
		case errors.Is(err, errNoRender):
			d.Notes = append(d.Notes, err.Error()+"; until then "+m.Server+" only continues prompts.")
		default:
			e.close()
			return nil, d, errors.Join(err, closeAll(engines))
		}
		e.start(c.log.With("engine", c.base, "model", m.Server), cfg.Poll, e.load)
		engines = append(engines, e)
	}
	return engines, d, nil
}

func describeOllama(d *Description) {
	d.Capable.LogProbs = true
	d.Notes = append(d.Notes,
		"Ollama tells no token ids: a token of these models is a character, and prices per token are per character. The same file in llama-server has token ids; in the native engine answers are exact (mesh model add FILE).",
		"Ollama has no deterministic mode and cannot score: its answers are of the tolerance class.",
		"Texts with control tokens and logit bias are refused; seeds, temperature, filters and penalties are Ollama's.")
	d.Prefix = "as text: the model may split it into other tokens than it had drawn"
	d.Sampling = "Ollama's own sampler, seeded from the tape key; penalties count the prompt, too"
}

// render returns messages as the model's template writes them.
func (o *ollama) render(ctx context.Context, messages []message, tools any) (string, error) {
	body := map[string]any{"model": o.model, "messages": messages, "stream": false, "think": false, "_debug_render_only": true}
	if tools != nil {
		body["tools"] = tools
	}
	var reply struct {
		Debug *struct {
			Text string `json:"rendered_template"`
		} `json:"_debug_info"`
	}
	if err := o.client.post(ctx, "/api/chat", body, &reply); err != nil {
		return "", err
	}
	if reply.Debug == nil || reply.Debug.Text == "" {
		return "", errNoRender
	}
	return reply.Debug.Text, nil
}

var errNoRender = errors.New("this Ollama does not render messages without answering them: version 0.11.5 or newer does")

// Text returns a detokenizer for one answer.
func (o *ollama) Text() inference.Detokenizer { return codePoints{} }

// TokenBytes returns the bytes that a token stands for.
func (o *ollama) TokenBytes(id int32) []byte { return []byte(codePoints{}.Add(id)) }

// controlAnywhere finds what tokenizers take for control tokens.
var controlAnywhere = regexp.MustCompile(`<[|｜][^<>]{1,80}[|｜]>|</?s>|<(?:bos|eos|pad|unk|mask|cls|sep|start_of_turn|end_of_turn)>|\[/?(?:INST|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|SYSTEM_PROMPT)\]|</?(?:think|tool_call|tool_response)>`)

// Encode returns the prompt of a question, one token for each character.
func (o *ollama) Encode(q *inferencepb.Question) ([]int32, error) {
	if len(q.GetSampling().GetLogitBias()) > 0 {
		return nil, fmt.Errorf("%w: Ollama has no logit bias", inference.ErrInvalid)
	}
	if err := plain(q.GetPrompt()); err != nil {
		return nil, err
	}
	switch {
	case len(q.GetPromptTokens()) > 0:
		ids := make([]int32, len(q.GetPromptTokens()))
		for i, id := range q.GetPromptTokens() {
			if id > utf8.MaxRune || !utf8.ValidRune(rune(id)) {
				return nil, fmt.Errorf("%w: prompt token %d is no code point", inference.ErrInvalid, id)
			}
			ids[i] = int32(id)
		}
		return ids, nil
	case len(q.GetMessages()) == 0:
		return runes(q.GetPrompt()), nil
	}
	messages, tools, err := chatOf(q)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", inference.ErrInvalid, err)
	}
	for _, s := range texts(messages, tools) {
		if err := plain(s); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(o.ctx, askTimeout)
	defer cancel()
	text, err := o.render(ctx, messages, tools)
	if err != nil {
		return nil, fmt.Errorf("encode the prompt: %w", err)
	}
	return runes(text), nil
}

// plain refuses text with control tokens: the server would make tokens of them, and
// cannot be told not to.
func plain(text string) error {
	if s := controlAnywhere.FindString(text); s != "" {
		return fmt.Errorf("%w: the text holds %q, which Ollama would take for a control token", inference.ErrInvalid, s)
	}
	return nil
}

// ollamaReply is a line of an answer.
type ollamaReply struct {
	Response string `json:"response"`
	Thinking string `json:"thinking"` // where the server splits it off after all
	Done     bool   `json:"done"`
	Reason   string `json:"done_reason"`
	Error    string `json:"error"`
	LogProbs []struct {
		LogProb float64 `json:"logprob"`
	} `json:"logprobs"`
}

// request returns the body for the rest of an answer.
func (o *ollama) request(g *inference.Generation) (map[string]any, error) {
	text, err := unrune(append(append([]int32(nil), g.Prompt...), g.Prefix...))
	if err != nil {
		return nil, err
	}
	if text == "" {
		return nil, fmt.Errorf("%w: a prompt without tokens", inference.ErrInvalid)
	}
	s := g.Sampling
	body := map[string]any{
		"model": o.model, "prompt": text, "raw": true, "stream": true, "think": false, "truncate": false, "shift": false,
		"options": map[string]any{
			"seed": int(seeds(g.Tape)(len(g.Prefix)) >> 33), "num_ctx": o.window,
			"num_predict": o.window, // in tokens; the characters are counted here
			"temperature": s.GetTemperature(), "top_p": orOne(s.GetTopP()), "top_k": s.GetTopK(), "min_p": s.GetMinP(),
			"repeat_penalty": orOne(s.GetRepetitionPenalty()), "repeat_last_n": -1,
			"frequency_penalty": s.GetFrequencyPenalty(), "presence_penalty": s.GetPresencePenalty(),
		},
	}
	if g.LogProbs {
		body["logprobs"] = true
	}
	return body, nil
}

// Generate decodes one choice on the server.
func (o *ollama) Generate(ctx context.Context, g inference.Generation, emit func(inference.Token) error) (inference.Finish, error) {
	if !o.enter() {
		return inference.Finish{}, errClosed
	}
	defer o.jobs.Done()
	rest := min(g.MaxTokens, o.info.Context-len(g.Prompt)) - len(g.Prefix)
	body, err := o.request(&g)
	if err != nil {
		return inference.Finish{}, err
	}
	if rest <= 0 {
		return inference.Finish{Reason: inference.FinishLength}, nil
	}
	return o.run(ctx, func(ctx context.Context, alive func()) (inference.FinishReason, error) {
		j := &ollamaJob{g: g, rest: rest, emit: emit, alive: alive}
		return retry(ctx, func() (inference.FinishReason, bool, error) {
			reason, err := o.stream(ctx, body, j)
			return reason, j.rest == rest, err
		})
	})
}

// ollamaJob is one choice on its way.
type ollamaJob struct {
	g     inference.Generation
	rest  int // characters that may still come
	emit  func(inference.Token) error
	alive func()
}

func (o *ollama) stream(ctx context.Context, body any, j *ollamaJob) (inference.FinishReason, error) {
	r, err := o.client.open(ctx, http.MethodPost, "/api/generate", body)
	if err != nil {
		return "", err
	}
	defer r.Close()
	var reason inference.FinishReason
	err = readLines(r, func(line []byte) error {
		var e ollamaReply
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("a line of the answer: %w", err)
		}
		reason, err = j.line(ctx, &e)
		if err == nil && reason != inference.FinishOpen {
			return errEnough
		}
		return err
	})
	if err == nil && reason == inference.FinishOpen {
		err = errors.New("the answer broke off")
	}
	return reason, err
}

// line hands on the characters of one line. The log-probability of its tokens goes
// to the first of them, so that the sum is right.
func (j *ollamaJob) line(ctx context.Context, e *ollamaReply) (inference.FinishReason, error) {
	j.alive()
	if j.g.Progress != nil {
		j.g.Progress()
	}
	if e.Error != "" {
		return "", fmt.Errorf("the server ended the answer: %s", errorText([]byte(e.Error)))
	}
	logProb := 0.0
	for _, p := range e.LogProbs {
		logProb += p.LogProb
	}
	for _, r := range e.Thinking + e.Response {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		t := inference.Token{ID: r}
		if j.g.LogProbs {
			t.LogProb, logProb = float32(logProb), 0
		}
		j.rest--
		if err := j.emit(t); err != nil {
			return "", &emitError{err}
		}
		if j.rest == 0 {
			return inference.FinishLength, nil
		}
	}
	if !e.Done {
		return inference.FinishOpen, nil
	}
	switch e.Reason {
	case "stop", "":
		return inference.FinishEOS, nil
	case "length":
		return inference.FinishLength, nil
	}
	return "", fmt.Errorf("the server ended the answer: %.60q", e.Reason)
}

// load tells no more than that the server answers.
func (o *ollama) load(ctx context.Context) (inference.Load, error) {
	_, err := o.client.read(ctx, http.MethodGet, "/api/version", nil)
	return inference.Load{}, err
}
