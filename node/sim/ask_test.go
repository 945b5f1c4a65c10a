package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// answer is what a client saw of an answer.
type answer struct {
	tokens  []int32
	text    string
	hosts   []mesh.Address // in order, each once in a row
	finish  inference.FinishReason
	usage   inference.Usage
	request mesh.Hash
	first   time.Duration   // from the question to the first event
	gaps    []time.Duration // before each event but the first
	handed  []time.Duration // before each event that came from another host than the one before
}

func (a *answer) gap() time.Duration { return slices.Max(append(a.gaps, 0)) }

// question is an ask whose answer has n tokens.
func question(prompt string, n int) inference.Ask {
	seed := uint64(7)
	return inference.Ask{Model: modelName, Prompt: prompt, Seed: &seed, MaxTokens: n}
}

// ask asks a node's router.
func (m *member) ask(ctx context.Context, a inference.Ask) (answer, error) {
	var got answer
	begin, last := time.Now(), time.Now()
	err := m.Router.Ask(ctx, a, func(e inference.Event) error {
		now := time.Now()
		if got.finish != inference.FinishOpen {
			return errors.New("an event after the end")
		}
		if got.request.IsZero() {
			got.first = now.Sub(begin)
		} else {
			got.gaps = append(got.gaps, now.Sub(last))
		}
		if n := len(got.hosts); n == 0 || got.hosts[n-1] != e.Host {
			got.hosts = append(got.hosts, e.Host)
			if n > 0 {
				got.handed = append(got.handed, now.Sub(last))
			}
		}
		for _, t := range e.Tokens {
			got.tokens = append(got.tokens, t.ID)
		}
		got.text += e.Text
		got.request, got.finish, got.usage = e.Request, e.Finish, e.Usage
		last = now
		return nil
	})
	return got, err
}

// answered asks, and fails the test unless the answer is the undisturbed one.
func (m *member) answered(t *testing.T, a inference.Ask) answer {
	t.Helper()
	got, err := m.ask(t.Context(), a)
	if err == nil {
		err = m.verify(a, got)
	}
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// undisturbed computes an answer in this process, without a mesh.
func undisturbed(a inference.Ask) ([]int32, string, error) {
	model := modelOf(modelName)
	if id, err := mesh.ParseHash(a.Model); err == nil {
		model = id
	} else if a.Model != "" {
		model = modelOf(a.Model)
	}
	q := &inferencepb.Question{Model: model[:], Prompt: a.Prompt, Seed: *a.Seed}
	req, _, err := inference.NewRequest(network, keyOf(0), q, &inferencepb.Request{
		Choices: 1, MaxTokens: uint32(a.MaxTokens), Nonce: make([]byte, 16)})
	if err != nil {
		return nil, "", err
	}
	e := new(engine)
	prompt, err := e.Encode(q)
	if err != nil {
		return nil, "", err
	}
	text := inference.NewText(e.Text(), nil)
	var tokens []int32
	var out strings.Builder
	g := inference.Generation{Prompt: prompt, Tape: req.Tape(0), MaxTokens: a.MaxTokens}
	for i := range a.MaxTokens {
		t := draw(&g, i)
		tokens = append(tokens, t)
		s, _ := text.Add(t)
		out.WriteString(s)
	}
	out.WriteString(text.End())
	return tokens, out.String(), nil
}

// verify compares an answer with the undisturbed one and checks that the receipts
// which the asking node kept join from the question to the end. It returns the first
// thing that is wrong.
func (m *member) verify(a inference.Ask, got answer) error {
	tokens, text, err := undisturbed(a)
	if err != nil {
		return err
	}
	switch {
	case !slices.Equal(got.tokens, tokens):
		return fmt.Errorf("%d tokens differ from the undisturbed %d", len(got.tokens), len(tokens))
	case got.text != text:
		return fmt.Errorf("text %q, undisturbed %q", got.text, text)
	case got.finish != inference.FinishLength:
		return fmt.Errorf("finish %q", got.finish)
	case got.usage.OutputTokens != len(tokens) || got.usage.PromptTokens != len(a.Prompt):
		return fmt.Errorf("usage %+v", got.usage)
	}
	var price mesh.Amount
	var last *inference.Receipt
	chain := inference.NewChain(network, got.request, 0)
	for _, r := range m.kept.of(got.request) {
		if r.Pb.GetOutputTokens() == 0 && r.Finish == inference.FinishAborted {
			continue
		}
		switch {
		case last == nil && r.Before != chain:
			return errors.New("the first receipt does not begin at the question")
		case last != nil && last.Joins(r) != nil:
			return fmt.Errorf("receipts: %w", last.Joins(r))
		case last != nil && !bytes.Equal(r.Pb.GetPrefixHost(), last.Host[:]):
			return errors.New("receipts: one does not name who made its prefix")
		}
		price += mesh.Amount(r.Pb.GetPrice())
		last = r
	}
	for _, t := range tokens {
		chain.Add(t)
	}
	switch {
	case last == nil:
		return errors.New("no receipt was kept")
	case last.After != chain || last.Finish != got.finish:
		return fmt.Errorf("the last receipt ends at token %d with %q", last.After.Next, last.Finish)
	case price != got.usage.Price:
		return fmt.Errorf("the receipts cost %d, the usage says %d", price, got.usage.Price)
	}
	return nil
}
