package native

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/model"
)

// wide is a small model with room for prompts of several pages.
func wide(t testing.TB) *model.File {
	s := shape(t, "tiny-qwen2")
	s.Context = 4096
	return synthetic(t, s, model.Q8_0)
}

// TestPrefix holds bar 7 of the exact engine: the second request with a common prefix
// of 1,000 tokens computes at most a tenth of its prompt, and every bit of it equals
// that of a fresh engine; only within a payer's requests.
func TestPrefix(t *testing.T) {
	f := wide(t)
	r := rand.New(rand.NewPCG(11, 0))
	first := randomGeneration(r, 1024, 1000, 20)
	second := randomGeneration(r, 1024, 1050, 20)
	copy(second.Prompt, first.Prompt)
	fresh := func(g inference.Generation) *answer {
		return mustAsk(t, start(t, Config{File: f, Threads: 1, Chunk: 100}), g)
	}
	wantFirst, wantSecond := fresh(first), fresh(second)

	e := start(t, Config{File: f, Threads: 2})
	compare(t, "first", mustAsk(t, e, first), wantFirst)
	reused := func(g inference.Generation, want *answer, what string) uint64 {
		t.Helper()
		before := e.Load()
		compare(t, what, mustAsk(t, e, g), want)
		waitFor(t, e, 0, 0)
		l := e.Load()
		if n := l.PromptTokens - before.PromptTokens; n != uint64(len(g.Prompt)) {
			t.Errorf("%s: %d prompt tokens are counted, want %d", what, n, len(g.Prompt))
		}
		return l.CachedTokens - before.CachedTokens
	}
	if n := reused(second, wantSecond, "second"); n < 1000 {
		t.Errorf("%d of 1,000 common tokens were kept", n)
	}
	if n := reused(first, wantFirst, "first again"); n != 999 {
		t.Errorf("%d of 1,000 tokens were kept, all but the last are wanted", n)
	}
	// A conversation goes on from its own answer.
	turn := second
	turn.Prompt = slices.Concat(second.Prompt, wantSecond.ids(), []int32{5, 6, 7})
	if n := reused(turn, fresh(turn), "next turn"); int(n) < len(turn.Prompt)-4 {
		t.Errorf("next turn: %d of %d tokens were kept", n, len(turn.Prompt))
	}
	other := second
	other.Group = mesh.Address{1}
	if n := reused(other, wantSecond, "another payer"); n != 0 {
		t.Errorf("another payer got %d tokens of what was computed for the first", n)
	}
	if l := e.Load(); l.PagesUsed != 0 || l.PagesCached == 0 || l.PagesCached > l.PagesLimit {
		t.Errorf("load is %+v", l)
	}
}

// TestPrefixTogether sends requests that begin alike at the same time, some of which
// are cancelled, through an engine that has too little memory for them: they share,
// drive each other out, are computed again, and all bits stay.
func TestPrefixTogether(t *testing.T) {
	f := wide(t)
	seed := rand.Uint64()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	r := rand.New(rand.NewPCG(seed, 0))
	reference := start(t, Config{File: f, Threads: 1, Chunk: 64})
	common := randomGeneration(r, 1024, 900, 1).Prompt
	var asked []inference.Generation
	var want []*answer
	for i := range 10 {
		g := randomGeneration(r, 1024, 1+r.IntN(400), 5+r.IntN(30))
		g.Prompt = slices.Concat(common[:r.IntN(len(common)+1)], g.Prompt)
		g.Fee = mesh.Amount(r.IntN(3))
		alone := g
		alone.Group = mesh.Address{byte(i), 1} // nothing is shared
		asked, want = append(asked, g), append(want, mustAsk(t, reference, alone))
	}
	m, err := newMemory(f.Config, reference.format, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	for _, pages := range []int64{7, 9, 1000} {
		e := start(t, Config{File: f, Threads: 2, Slots: 6, Chunk: []int{0, 50, 300}[r.IntN(3)], Memory: pages * m.pageBytes})
		for round := range 2 {
			got := make([]*answer, len(asked))
			var all sync.WaitGroup
			for _, i := range r.Perm(len(asked)) {
				g := asked[i]
				g.Group = mesh.Address{byte(r.IntN(2))}
				all.Go(func() {
					var err error
					if got[i], err = ask(t.Context(), e, g); err != nil {
						t.Error(err)
					}
				})
				if i%3 == 0 {
					bystander := g
					bystander.MaxTokens = 400
					after := r.IntN(5)
					all.Go(func() { cancelAfter(t, e, bystander, after) })
				}
			}
			all.Wait()
			for i := range asked {
				compare(t, "request in company", got[i], want[i])
			}
			waitFor(t, e, 0, 0)
			if l := e.Load(); l.PagesUsed != 0 || l.PagesCached > int(pages) || round == 1 && l.CachedTokens == 0 {
				t.Errorf("%d pages: load is %+v", pages, l)
			}
		}
	}
}

// TestCancelFrees holds that cancelling gives the pages back before the next step.
func TestCancelFrees(t *testing.T) {
	b := newBench(t, Config{File: wide(t)}, unit)
	keep, gone := b.ask(1, plain(1, 300, 400)), b.ask(1, plain(1, 300, 400))
	for gone.outputs() == 0 {
		b.step()
	}
	if b.s.memory.used != 3 { // the first page is common
		t.Errorf("two equal prompts have %d pages, want 3", b.s.memory.used)
	}
	b.e.leave(gone)
	b.s.admit()
	if l := b.e.Load(); l.PagesUsed != 2 || l.Active != 1 {
		t.Errorf("after the cancel the load is %+v", l)
	}
	want := mustAsk(t, start(t, Config{File: wide(t), Threads: 1}), plain(1, 300, 400))
	var got []inference.Token
	for end := false; !end; {
		b.step()
		var tokens []inference.Token
		tokens, end = keep.read()
		got = append(got, tokens...)
	}
	compare(t, "who shared with a cancelled one", &answer{tokens: got, finish: inference.FinishLength}, want)
}

// BenchmarkPrefix is bar 7: time to the first token of a prompt of 1,050 tokens, of
// which 1,000 were computed for another request or not.
func BenchmarkPrefix(b *testing.B) {
	f := benchmarkModel(b, "0.5b")
	e := start(b, Config{File: f})
	r := rand.New(rand.NewPCG(1, 1))
	common := randomGeneration(r, 1024, 1000, 1).Prompt
	for _, kept := range []bool{false, true} {
		name := "fresh"
		if kept {
			name = "kept"
		}
		b.Run(name, func(b *testing.B) {
			group := byte(0)
			if kept {
				mustAsk(b, e, inference.Generation{Prompt: common, MaxTokens: 1, IgnoreEOS: true})
			}
			before := e.Load()
			for b.Loop() {
				g := inference.Generation{Prompt: slices.Concat(common, randomGeneration(r, 1024, 50, 1).Prompt), MaxTokens: 1, IgnoreEOS: true}
				if !kept {
					group++
					g.Group = mesh.Address{group, 1}
				}
				if _, err := e.Generate(context.Background(), g, func(inference.Token) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
			l := e.Load()
			b.ReportMetric(float64(l.CachedTokens-before.CachedTokens)/float64(l.PromptTokens-before.PromptTokens), "kept/prompt")
		})
	}
}
