package router

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// gossip delivers tasks to all hosts of the world.
func (w *world) gossip(_ context.Context, s *inferencepb.Signed) error {
	task, err := inference.ParseTask(network, s)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.announced++
	w.mu.Unlock()
	for _, p := range w.order {
		p.host.OnTask(task)
	}
	return nil
}

// TestTask asks for a model that only hosts know which the router does not.
func TestTask(t *testing.T) {
	for _, tt := range []struct {
		name  string
		model string
		known bool // the directory resolves the name, and knows no host
		want  error
	}{
		{"by name", "rare", false, nil},
		{"by ID", modelID.String(), false, nil},
		{"known without hosts", "model", true, nil},
		{"unknown to all", "nonsense", false, inference.ErrUnknownModel},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2, func(int) *engine {
					return &engine{id: modelID, name: "rare", pace: time.Millisecond}
				})
				w.router.cfg.Publish = w.gossip
				defer w.close()
				w.dir.hosts = nil
				if !tt.known {
					w.dir.names = nil
				}
				a := ask(10)
				a.Model = tt.model
				start := time.Now()
				got, err := w.collect(t.Context(), a, nil)
				if !errors.Is(err, tt.want) {
					t.Fatalf("error %v, want %v", err, tt.want)
				}
				if w.announced != 1 {
					t.Errorf("%d tasks were announced", w.announced)
				}
				if tt.want != nil {
					if d := time.Since(start); d != w.router.cfg.TaskWait {
						t.Errorf("it took %s to learn that nobody has it", d)
					}
					return
				}
				w.check(t, a, 0, got[0])
				if got[0].first > 100*time.Millisecond {
					t.Errorf("first token after %s", got[0].first)
				}
			})
		})
	}
}

// TestTaskInMidStream loses the only known host; one that nobody knew goes on.
func TestTaskInMidStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		var killed atomic.Bool
		w = newWorld(t, 2, func(i int) *engine {
			return &engine{pace: time.Millisecond, at: func(_ context.Context, pos int) error {
				if pos == 10 && killed.CompareAndSwap(false, true) {
					time.Sleep(time.Millisecond)
					w.order[i].kill()
				}
				return nil
			}}
		})
		w.router.cfg.Publish = w.gossip
		defer w.close()
		w.dir.hosts = w.dir.hosts[:1]
		got, err := w.collect(t.Context(), ask(30), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, ask(30), 0, got[0])
		if got[0].gap > 200*time.Millisecond || len(got[0].hosts) != 2 {
			t.Errorf("gap %s, hosts %v", got[0].gap, got[0].hosts)
		}
	})
}

// TestTakeOffer refuses offers that nobody waits for or that are of another model.
func TestTakeOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return new(engine) })
		defer w.close()
		other := mesh.HashOf([]byte("other"))
		offer := func(task mesh.Hash, model []byte) *inferencepb.Offer {
			return &inferencepb.Offer{Accept: true, Task: task[:], Capability: &inferencepb.Capability{Model: model, Name: "x"}}
		}
		for name, o := range map[string]*inferencepb.Offer{
			"empty": {}, "no task": {Accept: true}, "unknown task": offer(other, modelID[:]), "no model": offer(other, nil),
		} {
			if w.router.TakeOffer(w.order[0].addr, o) {
				t.Errorf("%s: an offer was taken", name)
			}
		}
		w.dir.hosts, w.dir.names = nil, nil
		w.router.cfg.Publish = func(_ context.Context, s *inferencepb.Signed) error {
			task, err := inference.ParseTask(network, s)
			if err != nil {
				return err
			}
			for range 40 { // a flood is bounded
				w.router.TakeOffer(w.order[0].addr, offer(task.Hash, other[:]))
			}
			return nil
		}
		a := ask(5)
		a.Model = modelID.String()
		if _, err := w.collect(t.Context(), a, nil); !errors.Is(err, inference.ErrUnknownModel) {
			t.Errorf("error %v", err)
		}
	})
}
