package native

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

func score(t *testing.T, e *Engine, s inference.Scoring) []inference.Position {
	t.Helper()
	var out []inference.Position
	err := e.Score(t.Context(), s, func(p inference.Position) error {
		p.State, p.Logits = slices.Clone(p.State), slices.Clone(p.Logits)
		out = append(out, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestScore holds that a check sees what the host saw: the log-probabilities of every
// token, and the same values in other chunks and beside other requests.
func TestScore(t *testing.T) {
	e := start(t, Config{File: small(t), Threads: 2})
	g := generation(9, 30, 40)
	g.LogProbs, g.Top, g.IgnoreEOS = true, 2, true
	a := mustAsk(t, e, g)
	s := inference.Scoring{
		Tokens: append(slices.Clone(g.Prompt), a.ids()...), From: len(g.Prompt) - 1, LogProbs: true, Top: 2,
		Logits: func(p int) bool { return p == 40 },
	}
	got := score(t, e, s)
	if len(got) != len(a.tokens)+1 || got[0].Index != len(g.Prompt)-1 {
		t.Fatalf("%d positions from %d on", len(got), got[0].Index)
	}
	for i, tok := range a.tokens {
		if got[i].Next != tok.LogProb || !slices.Equal(got[i].Top, tok.Top) {
			t.Errorf("token %d: scored %g %v, was %g %v", i, got[i].Next, got[i].Top, tok.LogProb, tok.Top)
		}
	}
	if last := got[len(got)-1]; last.Next != 0 || len(last.Top) != 2 {
		t.Errorf("after the last token: %g, %v", last.Next, last.Top)
	}
	busy, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() { e.Generate(busy, endless(uint64(i)), func(inference.Token) error { return nil }) })
	}
	for _, other := range []*Engine{start(t, Config{File: small(t), Chunk: 7}), e} {
		for i, p := range score(t, other, s) {
			if p.Next != got[i].Next || p.Hidden != got[i].Hidden || !slices.Equal(p.State, got[i].State) {
				t.Fatalf("position %d differs", p.Index)
			}
		}
	}
	stop()
	all.Wait()
}

func TestScoreRefuses(t *testing.T) {
	e := start(t, Config{File: small(t), Context: 64})
	refused := errors.New("enough")
	for name, c := range map[string]struct {
		s    inference.Scoring
		want error
	}{
		"nothing":      {inference.Scoring{}, inference.ErrInvalid},
		"too long":     {inference.Scoring{Tokens: make([]int32, 65)}, inference.ErrInvalid},
		"no token":     {inference.Scoring{Tokens: []int32{1, -1}}, inference.ErrInvalid},
		"alternatives": {inference.Scoring{Tokens: []int32{1}, Top: 21}, inference.ErrInvalid},
		"emit fails":   {inference.Scoring{Tokens: []int32{1}}, refused},
	} {
		if err := e.Score(t.Context(), c.s, func(inference.Position) error { return refused }); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Score(gone, inference.Scoring{Tokens: []int32{1}}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestForward holds that embeddings in the place of tokens give the same states as the
// tokens, alone and in a batch.
func TestForward(t *testing.T) {
	e := start(t, Config{File: small(t), Threads: 2})
	w := e.net.Width
	var batch [][]float32
	var want [][]float32
	for i := range 5 {
		tokens := generation(uint64(i), 3+20*i, 1).Prompt
		var x, states []float32
		for _, id := range tokens {
			row := make([]float32, w)
			e.net.embed.Row(int(id), row)
			x = append(x, row...)
		}
		for _, p := range score(t, e, inference.Scoring{Tokens: tokens}) {
			states = append(states, p.State...)
		}
		batch, want = append(batch, x), append(want, states)
	}
	got, err := e.Forward(t.Context(), batch)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if !slices.Equal(got[i], want[i]) {
			t.Errorf("sequence %d differs", i)
		}
	}
	for name, bad := range map[string][]float32{"empty": {}, "part": make([]float32, w+1), "NaN": {float32(math.NaN())}} {
		if name == "NaN" {
			bad = append(bad, make([]float32, w-1)...)
		}
		if _, err := e.Forward(t.Context(), [][]float32{bad}); !errors.Is(err, inference.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEmbed(t *testing.T) {
	e := start(t, Config{File: small(t)})
	tokens := generation(2, 9, 1).Prompt
	calls := 0
	got, err := e.Embed(t.Context(), tokens, func() { calls++ })
	if err != nil {
		t.Fatal(err)
	}
	v := got.Vector
	sum, mean := 0.0, make([]float64, len(v))
	var leaves []mesh.Hash
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	if math.Abs(sum-1) > 1e-5 {
		t.Errorf("length %g", math.Sqrt(sum))
	}
	for _, p := range score(t, e, inference.Scoring{Tokens: tokens}) {
		for i, x := range p.State {
			mean[i] += float64(x)
		}
		leaves = append(leaves, p.Hidden)
	}
	if got.Hidden != merkle.Root(leaves) || got.Positions != len(tokens) || calls == 0 || len(v) != e.Info().Embed {
		t.Errorf("%d numbers, %d positions, root %s, %d calls", len(v), got.Positions, got.Hidden.Short(), calls)
	}
	dot, norm := 0.0, 0.0
	for i, x := range mean {
		dot, norm = dot+x*float64(v[i]), norm+x*x
	}
	if dot/math.Sqrt(norm) < 1-1e-6 {
		t.Errorf("it points elsewhere than the mean: %g", dot/math.Sqrt(norm))
	}
}

// TestScoreMemory holds that a check's keys and values are part of the engine's memory:
// it waits for them while answers have it, nobody enters before it, one whose reader does
// not read makes room, and all of it is given back.
func TestScoreMemory(t *testing.T) {
	shape, err := newMemory(small(t).Config, kernel.F16, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	const pages = 3
	e := start(t, Config{File: small(t), Threads: 2, Memory: pages * shape.pageBytes})
	e.lendWait = time.Minute
	later := generation(5, 20, 5)
	want := mustAsk(t, e, later).ids()
	checked := inference.Scoring{Tokens: generation(6, 300, 1).Prompt} // 2 pages
	plain := score(t, e, checked)
	owed := func() int {
		e.compute.Lock()
		defer e.compute.Unlock()
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.memory.owed
	}
	waits := func() {
		for end := time.Now().Add(20 * time.Second); owed() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("a check does not wait for memory that answers have")
			}
		}
	}
	run := func(ctx context.Context) chan error {
		out := make(chan error, 1)
		go func() {
			n := 0
			err := e.Score(ctx, checked, func(p inference.Position) error {
				if l := e.Load(); l.PagesUsed+l.PagesCached > pages || l.PagesUsed < 2 {
					t.Errorf("in a check of 2 pages: %+v", l)
				}
				if p.Hidden != plain[n].Hidden {
					t.Errorf("position %d differs", n)
				}
				n++
				return nil
			})
			if err == nil && n != len(plain) {
				t.Errorf("%d positions, want %d", n, len(plain))
			}
			out <- err
		}()
		return out
	}
	// Two pages are an answer's that goes on for as long as the test wants.
	locked := func(f func()) {
		e.compute.Lock()
		defer e.compute.Unlock()
		e.mu.Lock()
		defer e.mu.Unlock()
		f()
	}
	var held *store
	locked(func() {
		if held, _, err = e.memory.take(mesh.Address{9}, make([]int32, 2*pagePositions)); err != nil || held == nil {
			t.Fatalf("no memory: %v", err)
		}
	})
	left, leave := context.WithCancel(t.Context())
	out := run(left)
	waits()
	leave()
	if err := <-out; !errors.Is(err, context.Canceled) || owed() != 0 {
		t.Errorf("a check that is called off: %v, %d owed", err, owed())
	}
	out = run(t.Context())
	waits()
	next := make(chan []int32, 1)
	go func() {
		a, err := ask(t.Context(), e, later)
		if err != nil {
			t.Error(err)
		}
		next <- a.ids()
	}()
	waitFor(t, e, 0, 1) // though its one page is free
	locked(func() {
		e.memory.give(held)
		e.freed <- struct{}{}
	})
	if err := <-out; err != nil {
		t.Error(err)
	}
	if got := <-next; !slices.Equal(got, want) {
		t.Errorf("who waited behind the check got %v, want %v", got, want)
	}
	// Nobody reads this answer before the check is done.
	long, done, ended := generation(7, 260, 240), make(chan struct{}), make(chan error, 1)
	long.IgnoreEOS = true
	begun := make(chan struct{}, 240)
	go func() {
		_, err := e.Generate(t.Context(), long, func(inference.Token) error {
			begun <- struct{}{}
			<-done
			return nil
		})
		ended <- err
	}()
	<-begun
	if err := <-run(t.Context()); err != nil {
		t.Error(err)
	}
	close(done)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	waitFor(t, e, 0, 0)
	if l := e.Load(); l.PagesUsed != 0 {
		t.Errorf("not given back: %+v", l)
	}
	big := make([][]float32, pages+1)
	for i := range big {
		big[i] = make([]float32, e.net.Width)
	}
	if _, err := e.Forward(t.Context(), big); !errors.Is(err, inference.ErrInvalid) {
		t.Errorf("a batch that never fits: %v", err)
	}
}

// TestScoreGivesUp: what waits for memory that an answer has for long gives up, and those
// who waited behind it come before the next one that waits.
func TestScoreGivesUp(t *testing.T) {
	shape, err := newMemory(small(t).Config, kernel.F16, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	e := start(t, Config{File: small(t), Threads: 2, Memory: 3 * shape.pageBytes})
	e.lendWait = 200 * time.Millisecond
	e.compute.Lock()
	e.mu.Lock()
	held, _, err := e.memory.take(mesh.Address{9}, make([]int32, 2*pagePositions))
	e.mu.Unlock()
	e.compute.Unlock()
	if err != nil || held == nil {
		t.Fatalf("no memory: %v", err)
	}
	checked := inference.Scoring{Tokens: generation(6, 300, 1).Prompt} // 2 pages
	first := make(chan error, 1)
	go func() { first <- e.Score(t.Context(), checked, nil) }()
	for owed := 0; owed == 0; time.Sleep(time.Millisecond) {
		e.compute.Lock()
		owed = e.memory.owed
		e.compute.Unlock()
	}
	next := make(chan error, 1)
	go func() {
		_, err := ask(t.Context(), e, generation(5, 20, 5))
		next <- err
	}()
	waitFor(t, e, 0, 1) // though its one page is free
	if err := <-first; !errors.Is(err, inference.ErrBusy) {
		t.Fatalf("the first check: %v", err)
	}
	// One that gives up and held up nobody is no reason to let others go first again.
	quiet := time.Now().Add(time.Hour)
	e.lendWait = time.Millisecond
	e.mu.Lock()
	e.noDebt = quiet
	e.mu.Unlock()
	if err := e.Score(t.Context(), checked, nil); !errors.Is(err, inference.ErrBusy) {
		t.Fatalf("a check in the time of others: %v", err)
	}
	e.mu.Lock()
	if !e.noDebt.Equal(quiet) {
		t.Errorf("it holds up nobody until %s, want %s", e.noDebt, quiet)
	}
	e.mu.Unlock()
	second := make(chan error, 1)
	e.lendWait = time.Minute
	go func() { second <- e.Score(t.Context(), checked, nil) }()
	select {
	case err := <-next:
		if err != nil {
			t.Error(err)
		}
	case err := <-second:
		t.Fatalf("the second check: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("an answer still waits for the one that gave up")
	}
}
