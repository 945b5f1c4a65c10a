package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/native"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// Sizes of what is measured, in tokens.
const (
	decodeTokens  = 32
	prefillTokens = 128
	batchTokens   = 32
	mostAtOnce    = 16
	answerTokens  = 256
	commonTokens  = 1000
	ownTokens     = 50
)

// meter measures one engine, in rounds.
type meter struct {
	e      *native.Engine
	roof   *roof // nil: not wanted
	random *rand.Rand
	seen   map[string][]float64 // by name of the figure, one value a round
}

func (m *meter) saw(name string, v float64) { m.seen[name] = append(m.seen[name], v) }

// median returns the median of the rounds, 0 where nothing was measured.
func (m *meter) median(name string) float64 {
	if len(m.seen[name]) == 0 {
		return 0
	}
	return quantile(m.seen[name], 0.5)
}

// prompt returns random tokens, so that no prompt begins like another.
func (m *meter) prompt(n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = m.random.Int32N(int32(m.e.Info().Vocab))
	}
	return ids
}

// answered is a measured answer of the engine.
type answered struct {
	first, whole time.Duration
	tokens       []inference.Token
}

// ask generates exactly n tokens for the payer.
func (m *meter) ask(ctx context.Context, payer byte, prompt []int32, n int) (answered, error) {
	g := inference.Generation{Prompt: prompt, Sampling: &inferencepb.Sampling{}, MaxTokens: n, IgnoreEOS: true, Group: mesh.Address{payer}}
	var a answered
	start := time.Now()
	finish, err := m.e.Generate(ctx, g, func(t inference.Token) error {
		if a.tokens = append(a.tokens, t); len(a.tokens) == 1 {
			a.first = time.Since(start)
		}
		return nil
	})
	a.whole = time.Since(start)
	if err == nil && len(a.tokens) != n {
		err = errors.Join(ctx.Err(), fmt.Errorf("%d of %d tokens, then %q", len(a.tokens), n, finish.Reason))
	}
	return a, err
}

// warm lets buffers grow, weights come from disk, and the engine learn what steps cost.
func (m *meter) warm(ctx context.Context) error {
	for range 2 {
		if _, err := m.ask(ctx, 0, m.prompt(prefillTokens), 4); err != nil {
			return err
		}
	}
	return nil
}

// decode measures what follows the first token, and the memory just before.
func (m *meter) decode(ctx context.Context, threads int, tokenBytes int64) error {
	limit := 0.0
	if m.roof != nil {
		var err error
		if limit, err = m.roof.measure(threads); err != nil {
			return err
		}
		m.saw("roof", limit/1e9)
	}
	a, err := m.ask(ctx, 0, m.prompt(3), decodeTokens+1)
	if err != nil {
		return err
	}
	speed := decodeTokens / (a.whole - a.first).Seconds()
	m.saw("decode", speed)
	if limit > 0 {
		m.saw("of roof", speed*float64(tokenBytes)/limit)
	}
	return nil
}

func (m *meter) prefill(ctx context.Context) error {
	a, err := m.ask(ctx, 0, m.prompt(prefillTokens), 1)
	m.saw("prefill", prefillTokens/a.first.Seconds())
	return err
}

// batch measures 1, 2, 4 … answers at once, then a newcomer beside 15.
func (m *meter) batch(ctx context.Context) error {
	one := 0.0
	for n := 1; n <= mostAtOnce; n *= 2 {
		took, err := m.together(ctx, n)
		if err != nil {
			return err
		}
		speed := float64(n*batchTokens) / took.Seconds()
		if n == 1 {
			one = speed
		}
		m.saw(fmt.Sprint("batch ", n), speed)
		m.saw(fmt.Sprint("batch ratio ", n), speed/one)
	}
	idle, err := m.ask(ctx, 0, m.prompt(prefillTokens), 1)
	if err != nil {
		return err
	}
	m.saw("idle", ms(idle.first))
	for _, payers := range []bool{false, true} {
		first, err := m.newcomer(ctx, payers)
		if err != nil {
			return err
		}
		name := "newcomer"
		if payers {
			name = "newcomer payer"
		}
		m.saw(name, ms(first))
		m.saw(name+" ratio", first.Seconds()/idle.first.Seconds())
	}
	return nil
}

// together is how long n answers at once take.
func (m *meter) together(ctx context.Context, n int) (time.Duration, error) {
	var wg sync.WaitGroup
	errs := make([]error, n)
	prompts := make([][]int32, n)
	for i := range prompts {
		prompts[i] = m.prompt(3)
	}
	start := time.Now()
	for i := range n {
		wg.Go(func() { _, errs[i] = m.ask(ctx, 0, prompts[i], batchTokens) })
	}
	wg.Wait()
	return time.Since(start), errors.Join(errs...)
}

// newcomer returns the time to the first token of a prompt that comes while 15 answers
// are decoded, all for one payer or each for another.
func (m *meter) newcomer(ctx context.Context, payers bool) (time.Duration, error) {
	others, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	running := make(chan error, 2*mostAtOnce) // no error: it gives tokens
	for i := range mostAtOnce - 1 {
		g := inference.Generation{Prompt: m.prompt(3), Sampling: &inferencepb.Sampling{}, MaxTokens: 4 * answerTokens, IgnoreEOS: true}
		if payers {
			g.Group[0] = byte(i + 1)
		}
		n := 0
		wg.Go(func() {
			_, err := m.e.Generate(others, g, func(inference.Token) error {
				if n++; n == 3 {
					running <- nil
				}
				return nil
			})
			if err != nil {
				running <- err
			}
		})
	}
	for range mostAtOnce - 1 {
		select {
		case err := <-running:
			if err != nil {
				return 0, err
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	a, err := m.ask(ctx, 0, m.prompt(prefillTokens), 1)
	return a.first, err
}

// score measures the logits of all positions, and what checking an answer costs:
// hidden states everywhere against the answer's commitment, and at a drawn tenth of its
// positions the choice of the token.
func (m *meter) score(ctx context.Context) error {
	start := time.Now()
	all := inference.Scoring{Tokens: m.prompt(prefillTokens), Logits: func(int) bool { return true }}
	if err := m.e.Score(ctx, all, func(inference.Position) error { return nil }); err != nil {
		return err
	}
	m.saw("score", prefillTokens/time.Since(start).Seconds())

	prompt := m.prompt(mostAtOnce)
	a, err := m.ask(ctx, 0, prompt, answerTokens)
	if err != nil {
		return err
	}
	start = time.Now()
	if err := m.check(ctx, prompt, a.tokens); err != nil {
		return fmt.Errorf("check an answer: %w", err)
	}
	took := time.Since(start)
	m.saw("generate", ms(a.whole))
	m.saw("check", ms(took))
	m.saw("check share", took.Seconds()/a.whole.Seconds())
	return nil
}

// check computes an answer again, as one sequence.
func (m *meter) check(ctx context.Context, prompt []int32, answer []inference.Token) error {
	tokens := slices.Clone(prompt)
	for _, t := range answer[:len(answer)-1] {
		tokens = append(tokens, t.ID)
	}
	drawn := make(map[int]bool)
	for _, i := range m.random.Perm(len(answer))[:(len(answer)+9)/10] {
		drawn[len(prompt)-1+i] = true
	}
	var leaves []mesh.Hash
	var sampler kernel.Sampler
	s := inference.Scoring{Tokens: tokens, Logits: func(p int) bool { return drawn[p] }}
	err := m.e.Score(ctx, s, func(p inference.Position) error {
		leaves = append(leaves, p.Hidden)
		if p.Logits == nil {
			return nil
		}
		id, err := sampler.Sample(p.Logits, &kernel.Sampling{}, nil, new([32]byte), 0)
		if want := answer[p.Index-len(prompt)+1].ID; err == nil && id != want {
			err = fmt.Errorf("position %d: token %d was given, it is %d", p.Index, want, id)
		}
		delete(drawn, p.Index)
		return err
	})
	if err != nil {
		return err
	}
	if len(drawn) > 0 || merkle.Root(leaves) != answer[len(answer)-1].Hidden {
		return errors.New("the hidden states are not those of the answer")
	}
	return nil
}

// common is how many tokens two prompts have in common: fewer with a short context.
func (m *meter) common() int { return min(commonTokens, m.e.Info().Context-ownTokens-1) }

// prefix measures the first token of two prompts that begin alike.
func (m *meter) prefix(ctx context.Context) error {
	common := m.prompt(m.common())
	ask := func() (answered, error) { return m.ask(ctx, 0, slices.Concat(common, m.prompt(ownTokens)), 1) }
	fresh, err := ask()
	if err != nil {
		return err
	}
	before := m.e.Load().CachedTokens
	kept, err := ask()
	if err != nil {
		return err
	}
	m.saw("fresh", ms(fresh.first))
	m.saw("kept", ms(kept.first))
	m.saw("less", 1-kept.first.Seconds()/fresh.first.Seconds())
	m.saw("kept tokens", float64(m.e.Load().CachedTokens-before))
	return nil
}
