package router

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// partial dials who is reached, and waits for all others as QUIC does, in vain.
type partial struct {
	Dialer
	reached func(mesh.Address) bool
}

func (d partial) Dial(ctx context.Context, to mesh.Address, protocol string) (net.Conn, error) {
	if d.reached(to) {
		return d.Dialer.Dial(ctx, to, protocol)
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// reach lets only those hosts be reached, and be connected, of which it is true.
func (w *world) reach(reached func(mesh.Address) bool) {
	w.router.cfg.Dialer, w.router.cfg.Connected = partial{w.router.cfg.Dialer, reached}, reached
}

// TestAllDead tells the client that every host is gone after the time of one of them.
func TestAllDead(t *testing.T) {
	for _, hosts := range []int{1, 4, 12} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, hosts, func(int) *engine { return new(engine) })
			w.router.cfg.Publish = w.gossip
			defer w.close()
			w.reach(func(mesh.Address) bool { return false })
			for _, p := range w.order { // nor do they hear of a task
				p.host.Remove(modelID)
			}
			for _, choices := range []int{1, 2} {
				a := ask(5)
				a.Choices = choices
				start := time.Now()
				_, err := w.collect(t.Context(), a, nil)
				if took := time.Since(start); !errors.Is(err, inference.ErrNoHost) || took > 3*time.Second {
					t.Errorf("%d hosts, %d choices: %v after %s", hosts, choices, err, took)
				}
				time.Sleep(2 * time.Second)
			}
		})
	}
}

// TestOneAlive finds the one host that lives behind more dead ones than are asked at once.
func TestOneAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 12, func(int) *engine { return new(engine) })
		w.router.cfg.Publish = w.gossip
		defer w.close()
		w.reach(func(a mesh.Address) bool { return a == addressOf(7) })
		got, err := w.collect(t.Context(), ask(5), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, ask(5), 0, got[0])
		if got[0].first > 2500*time.Millisecond {
			t.Errorf("first token after %s", got[0].first)
		}
	})
}

// TestDeadInMidStream loses all hosts while one speaks.
func TestDeadInMidStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		var at atomic.Int64
		w = newWorld(t, 4, func(i int) *engine {
			return &engine{pace: time.Millisecond, at: func(_ context.Context, pos int) error {
				if pos == 10 {
					at.Store(time.Now().UnixNano())
					w.order[i].kill()
				}
				return nil
			}}
		})
		defer w.close()
		w.reach(func(mesh.Address) bool { return at.Load() == 0 })
		_, err := w.collect(t.Context(), ask(30), nil)
		if took := time.Since(time.Unix(0, at.Load())); !errors.Is(err, inference.ErrNoHost) || took > 3500*time.Millisecond {
			t.Errorf("%v after %s", err, took)
		}
	})
}
