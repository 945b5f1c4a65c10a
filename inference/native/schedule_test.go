package native

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/inference"
)

// TestQueue holds that requests are served first come, first served.
func TestQueue(t *testing.T) {
	e := start(t, Config{File: small(t), Slots: 1})
	e.compute.Lock() // no step until all wait
	var all sync.WaitGroup
	for i := range 5 {
		all.Go(func() {
			a, err := ask(t.Context(), e, generation(uint64(i), 3, 20))
			if err != nil || a.finish != inference.FinishLength {
				t.Errorf("request %d: %v, %v", i, a, err)
			}
		})
		waitFor(t, e, 1, i)
	}
	e.mu.Lock()
	for i, q := range e.queue {
		if want := generation(uint64(i+1), 3, 20).Prompt; !slices.Equal(q.g.Prompt, want) {
			t.Errorf("place %d of the queue has the prompt %d, want %d", i, q.g.Prompt, want)
		}
	}
	e.mu.Unlock()
	e.compute.Unlock()
	all.Wait()
	waitFor(t, e, 0, 0)
}

// TestCancel holds that a cancelled request frees its slot, in the batch and in the
// queue, and that a failing consumer does too.
func TestCancel(t *testing.T) {
	e := start(t, Config{File: small(t), Slots: 1})
	e.compute.Lock() // the step is long
	begin := func(seed uint64, active, queued int) (cancel func() inference.FinishReason) {
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan inference.FinishReason, 1)
		go func() {
			a, err := ask(ctx, e, endless(seed))
			if err != nil {
				t.Error(err)
			}
			done <- a.finish
		}()
		waitFor(t, e, active, queued)
		return func() inference.FinishReason { stop(); return <-done }
	}
	running := begin(1, 1, 0)
	waiting := begin(2, 1, 1)
	if f := waiting(); f != inference.FinishCancelled {
		t.Errorf("queued: finish %q", f)
	}
	waitFor(t, e, 1, 0)
	if f := running(); f != inference.FinishCancelled {
		t.Errorf("running: finish %q", f)
	}
	e.compute.Unlock()
	waitFor(t, e, 0, 0)
	fault := errors.New("the stream is gone")
	f, err := e.Generate(t.Context(), endless(3), func(inference.Token) error { return fault })
	if !errors.Is(err, fault) || f.Reason != inference.FinishCancelled {
		t.Errorf("failing consumer: finish %q, error %v", f.Reason, err)
	}
	waitFor(t, e, 0, 0)
}

// TestSlowConsumer holds that a consumer that takes nothing is computed no further
// than a bound and keeps nobody from a slot, and that it gets everything when it reads
// on.
func TestSlowConsumer(t *testing.T) {
	for _, slots := range []int{1, 2} {
		e := start(t, Config{File: small(t), Slots: slots})
		g := generation(9, 5, 300)
		want := mustAsk(t, e, g)
		release := held(t, e, g)
		for i := range 5 {
			mustAsk(t, e, generation(uint64(i), 5, 30))
		}
		e.compute.Lock()
		e.mu.Lock()
		if l := len(e.queue) + e.active; l != 1 {
			t.Errorf("%d sequences are left, want 1", l)
		}
		e.mu.Unlock()
		e.compute.Unlock()
		compare(t, "slow consumer", release(), want)
		waitFor(t, e, 0, 0)
	}
}

// TestMemory holds that a short memory delays requests and changes nothing in their
// answers, and that no more is ever used.
func TestMemory(t *testing.T) {
	f := small(t)
	e := start(t, Config{File: f, Threads: 1})
	page := int64(0)
	{
		m, err := newMemory(f.Config, e.format, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		page = m.pageBytes
	}
	var asked []inference.Generation
	var want []*answer
	for i := range 6 {
		// All of them grow into a second page.
		g := generation(uint64(i), 235+i, 40)
		g.Progress = nil
		asked, want = append(asked, g), append(want, mustAsk(t, e, g))
	}
	for pages := int64(2); pages <= 5; pages++ {
		tight := start(t, Config{File: f, Threads: 2, Memory: pages * page})
		got := make([]*answer, len(asked))
		var all sync.WaitGroup
		for i := range asked {
			all.Go(func() {
				var err error
				if got[i], err = ask(t.Context(), tight, asked[i]); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for i := range asked {
			compare(t, fmt.Sprintf("%d pages, request %d", pages, i), got[i], want[i])
		}
		waitFor(t, tight, 0, 0)
	}
	// A memory of one page makes the context shorter.
	one := start(t, Config{File: f, Memory: page})
	if c := one.Info().Context; c != pagePositions {
		t.Errorf("context is %d, want %d", c, pagePositions)
	}
	if _, err := ask(t.Context(), one, generation(1, 256, 1)); !errors.Is(err, inference.ErrInvalid) {
		t.Errorf("prompt beyond the memory: %v", err)
	}
}

func TestProgress(t *testing.T) {
	e := start(t, Config{File: small(t), Chunk: 10})
	g := generation(1, 100, 1)
	calls, tokens := 0, 0
	g.Progress = func() { calls++ }
	if _, err := e.Generate(t.Context(), g, func(inference.Token) error { tokens++; return nil }); err != nil {
		t.Fatal(err)
	}
	if calls < 1 || calls > 9 || tokens != 1 {
		t.Errorf("%d calls of Progress and %d tokens, want 1 to 9 and 1", calls, tokens)
	}
}

// TestClose holds that Close ends what runs and waits, and leaves no goroutine.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	e, err := Open(Config{File: small(t), Threads: 4, Slots: 2})
	if err != nil {
		t.Fatal(err)
	}
	finishes := make(chan inference.FinishReason, 5)
	blocked := make(chan struct{})
	e.compute.Lock() // no step until all are there
	for i := range 5 {
		go func() {
			f, err := e.Generate(context.Background(), endless(uint64(i)), func(inference.Token) error {
				<-blocked
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			finishes <- f.Reason
		}()
		waitFor(t, e, 1, i)
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() { e.Close() })
	}
	for closed := false; !closed; {
		e.mu.Lock()
		closed = e.closed
		e.mu.Unlock()
	}
	e.compute.Unlock()
	all.Wait()
	close(blocked)
	for range 5 {
		if f := <-finishes; f != inference.FinishAborted {
			t.Errorf("finish is %q", f)
		}
	}
	if _, err := ask(t.Context(), e, endless(1)); err == nil {
		t.Error("a closed engine answers")
	}
	if _, err := scoreLogits(e, []int32{1}); err == nil {
		t.Error("a closed engine computes logits")
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

// TestAllocations holds that a step makes no garbage once its buffers have grown.
func TestAllocations(t *testing.T) {
	e := start(t, Config{File: small(t), Threads: 1})
	g := endless(1)
	var before, after runtime.MemStats
	n := 0
	_, err := e.Generate(t.Context(), g, func(inference.Token) error {
		n++
		switch n {
		case 100:
			runtime.ReadMemStats(&before)
		case 200:
			runtime.ReadMemStats(&after)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Not 0: the runtime and the other goroutines allocate now and then.
	if per := float64(after.Mallocs-before.Mallocs) / 100; per > 2 {
		t.Errorf("%.1f allocations a token", per)
	}
}
