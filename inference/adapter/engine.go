package adapter

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// driver is what the kinds of servers with token ids differ in.
type driver interface {
	// describe finds out models, limits and capabilities, and completes d.
	describe(ctx context.Context, cfg Config, d *Description) (limits, error)
	// use names the model of this driver's engine; the driver returned is its own.
	use(m ModelDescription) driver
	// tokenize encodes text; strings of control tokens in it become those tokens.
	// bos asks for the token that begins a prompt, where the model has one.
	tokenize(ctx context.Context, text string, bos bool) ([]int32, error)
	// chat renders messages with the model's template: as ids, or as text where ids
	// is nil, which is to be tokenized with bos.
	chat(ctx context.Context, messages []message, tools any) (ids []int32, text string, err error)
	// decode returns the text of ids, control tokens by their strings.
	decode(ctx context.Context, ids []int32) (string, error)
	// generate decodes one choice. It hands on tokens in order and returns why the
	// answer ended.
	generate(ctx context.Context, j *job) (inference.FinishReason, error)
	// load asks how busy the server is.
	load(ctx context.Context) (inference.Load, error)
	// refuses returns what of a question's sampling this server cannot do.
	refuses(s *inferencepb.Sampling) error
}

// limits is what an engine of a server has to keep to.
type limits struct {
	slots       int
	vocab       int
	fingerprint *inferencepb.Fingerprint
}

// engine implements inference.Engine on a server that takes and returns token ids.
type engine struct {
	*desk
	driver driver
	words  *words
	guard  *guard
}

var _ inference.Engine = (*engine)(nil)

func openServer(ctx context.Context, c *client, cfg Config, d *Description, drv driver) ([]inference.Engine, *Description, error) {
	lim, err := drv.describe(ctx, cfg, d)
	if err != nil {
		return nil, d, err
	}
	if d.Models, err = cfg.pick(d.Models, Tokens); err != nil {
		return nil, d, err
	}
	switch {
	case cfg.Slots > 0 && d.Kind == Llama:
		lim.slots = min(lim.slots, cfg.Slots) // more than it has would share a cache
	case cfg.Slots > 0:
		lim.slots = cfg.Slots
	}
	for i := range d.Models {
		if cfg.Context > 0 && (d.Models[i].Context == 0 || cfg.Context < d.Models[i].Context) {
			d.Models[i].Context = cfg.Context
		}
		if d.Models[i].Context == 0 {
			return nil, d, fmt.Errorf("the server does not say how long the context of %s is: set it", d.Models[i].Server)
		}
	}
	var engines []inference.Engine
	for i, m := range d.Models {
		e, err := newEngine(ctx, c, cfg, m, drv.use(m), lim)
		if err != nil {
			return nil, d, errors.Join(fmt.Errorf("model %s: %w", d.Models[i].Server, err), closeAll(engines))
		}
		if s, ok := e.driver.(scorer); ok {
			engines = append(engines, &scoring{e, s})
		} else {
			engines = append(engines, e)
		}
	}
	return engines, d, nil
}

func closeAll(engines []inference.Engine) error {
	var err error
	for _, e := range engines {
		err = errors.Join(err, e.Close())
	}
	return err
}

func newEngine(ctx context.Context, c *client, cfg Config, m ModelDescription, drv driver, lim limits) (*engine, error) {
	if lim.vocab == 0 {
		lim.vocab = unknownVocab
	}
	e := &engine{driver: drv, desk: newDesk(cfg, inference.ModelInfo{
		ID: m.ID, Name: m.Name, Context: m.Context, Vocab: lim.vocab, Slots: lim.slots, Fingerprint: lim.fingerprint,
	})}
	var err error
	if e.words, err = newWords(ctx, e.ctx, drv, cfg.Special); err != nil {
		e.close()
		return nil, err
	}
	e.guard = newGuard(drv, cfg.Special)
	e.start(c.log.With("engine", c.base, "model", m.Server), cfg.Poll, drv.load)
	return e, nil
}

// Text returns a detokenizer for one answer.
func (e *engine) Text() inference.Detokenizer { return &detokenizer{words: e.words} }

// TokenBytes returns the bytes that a token stands for. Those of a token that is no
// whole character are not known: they are the bytes of U+FFFD.
func (e *engine) TokenBytes(id int32) []byte {
	s, err := e.words.piece(id)
	if err != nil {
		return nil
	}
	return []byte(s)
}

// Encode returns the prompt of a question as token ids.
func (e *engine) Encode(q *inferencepb.Question) ([]int32, error) {
	if err := e.driver.refuses(q.GetSampling()); err != nil {
		return nil, fmt.Errorf("%w: %w", inference.ErrInvalid, err)
	}
	if n := len(q.GetPromptTokens()); n > 0 {
		ids := make([]int32, n)
		for i, id := range q.GetPromptTokens() {
			if uint64(id) >= uint64(e.info.Vocab) {
				return nil, fmt.Errorf("%w: prompt token %d, the vocabulary has %d", inference.ErrInvalid, id, e.info.Vocab)
			}
			ids[i] = int32(id)
		}
		return ids, nil
	}
	ctx, cancel := context.WithTimeout(e.ctx, askTimeout)
	defer cancel()
	ids, err := e.guard.encode(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("encode the prompt: %w", err)
	}
	if err := e.check(ids); err != nil {
		return nil, fmt.Errorf("encode the prompt: %w", err)
	}
	return ids, nil
}

// check refuses ids that the server cannot mean.
func (e *engine) check(ids []int32) error {
	for _, id := range ids {
		if id < 0 || int(id) >= e.info.Vocab {
			return fmt.Errorf("the server gave token %d, the vocabulary has %d", id, e.info.Vocab)
		}
	}
	return nil
}

// job is one choice on its way.
type job struct {
	inference.Generation
	limit int // of output tokens, the prefix included
	next  int // index of the next output token
	seed  func(n int) uint64

	engine *engine
	text   *detokenizer
	emit   func(inference.Token) error
	alive  func() // the server gave a sign of life
}

// rest returns how many tokens may still come.
func (j *job) rest() int { return j.limit - j.next }

// sequence returns prompt and prefix as one.
func (j *job) sequence() []int32 {
	ids := make([]int32, 0, len(j.Prompt)+j.limit)
	return append(append(ids, j.Prompt...), j.Prefix...)
}

// work tells that the server did something for this request.
func (j *job) work() {
	j.alive()
	if j.Progress != nil {
		j.Progress()
	}
}

// token hands on the next token of the answer.
func (j *job) token(ctx context.Context, t inference.Token) error {
	j.work()
	if err := ctx.Err(); err != nil {
		return err
	}
	if j.rest() <= 0 {
		return errors.New("the server gave more tokens than were asked for")
	}
	if err := j.engine.check([]int32{t.ID}); err != nil {
		return err
	}
	// Its text is fetched now: the detokenizer of the caller cannot fail.
	if _, err := j.text.add(t.ID); err != nil {
		return fmt.Errorf("text of token %d: %w", t.ID, err)
	}
	j.next++
	if err := j.emit(t); err != nil {
		return &emitError{err}
	}
	return nil
}

// Generate decodes one choice on the server.
func (e *engine) Generate(ctx context.Context, g inference.Generation, emit func(inference.Token) error) (inference.Finish, error) {
	if !e.enter() {
		return inference.Finish{}, errClosed
	}
	defer e.jobs.Done()
	j := &job{
		Generation: g, limit: min(g.MaxTokens, e.info.Context-len(g.Prompt)), next: len(g.Prefix),
		seed: seeds(g.Tape), engine: e, text: &detokenizer{words: e.words}, emit: emit,
	}
	if len(g.Prompt) == 0 {
		return inference.Finish{}, fmt.Errorf("%w: a prompt without tokens", inference.ErrInvalid)
	}
	if reason, err := e.prefix(j); err != nil || reason != inference.FinishOpen {
		return inference.Finish{Reason: reason}, err
	}
	return e.run(ctx, func(ctx context.Context, alive func()) (inference.FinishReason, error) {
		j.alive = alive
		return retry(ctx, func() (inference.FinishReason, bool, error) {
			start := j.next
			reason, err := e.driver.generate(ctx, j)
			return reason, j.next == start, err
		})
	})
}

// prefix reads the tokens that exist already. They may be the whole answer.
func (e *engine) prefix(j *job) (inference.FinishReason, error) {
	if err := e.check(j.Prefix); err != nil {
		return "", fmt.Errorf("%w: prefix: %w", inference.ErrInvalid, err)
	}
	for _, id := range j.Prefix {
		if _, err := j.text.add(id); err != nil {
			return "", fmt.Errorf("text of the prefix: %w", err)
		}
	}
	if n := len(j.Prefix); n > 0 && !j.IgnoreEOS && e.words.ends(j.Prefix[n-1]) {
		return inference.FinishEOS, nil
	}
	if j.rest() <= 0 {
		return inference.FinishLength, nil
	}
	return inference.FinishOpen, nil
}

// seeds derives the servers' own seeds from a tape key: SHA-256(key ‖ be32(n)), its
// first 8 bytes, for a request that starts at output token n. The same question thus
// draws the same numbers, and a continued answer draws others than its beginning.
func seeds(tape mesh.Hash) func(n int) uint64 {
	return func(n int) uint64 {
		h := sha256.Sum256(binary.BigEndian.AppendUint32(tape[:], uint32(n)))
		return binary.BigEndian.Uint64(h[:8])
	}
}
