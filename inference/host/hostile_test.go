package host

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// TestSlowReader stops reading: the answer ends within the write timeout and the
// tokens that wait are bounded.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &engine{slots: 1, pace: time.Microsecond}
		b := newBench(t, e, Config{})
		defer b.close()
		_, signed := request(t, 2, "hello", 1<<19, nil)
		s := b.post(2, "/v1/infer", callBody(t, signed))
		defer s.conn.Close()
		time.Sleep(b.host.cfg.WriteTimeout + time.Second)
		if e.running() != 0 {
			t.Error("a reader that does not read holds a slot")
		}
		if load := b.host.Load(); load.Active != 0 {
			t.Errorf("load %+v", load)
		}
		_, signed = request(t, 3, "x", 5, nil)
		if n, _, _, _ := b.post(3, "/v1/infer", callBody(t, signed)).rest(t); n != 5 {
			t.Errorf("an honest peer got %d tokens", n)
		}
	})
}

// TestDrain lets a short answer end, aborts a long one, and refuses new calls.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 2, pace: 10 * time.Millisecond}, Config{})
		type end struct {
			n      int
			finish inference.FinishReason
		}
		ends := make([]end, 3)
		var wg sync.WaitGroup
		for i, n := range []int{50, 5000, 70} {
			_, signed := request(t, 2, string(make([]byte, i+1)), n, nil)
			s := b.post(2, "/v1/infer", callBody(t, signed))
			wg.Go(func() { ends[i].n, _, ends[i].finish, _ = s.rest(t) })
		}
		time.Sleep(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		wg.Go(func() {
			time.Sleep(100 * time.Millisecond)
			_, signed := request(t, 3, "x", 1, nil)
			if r := b.post(3, "/v1/infer", callBody(t, signed)).refusal(t); r.Code != inference.CodeDraining {
				t.Errorf("a new call got %s", r.Code)
			}
			if o := b.host.offer(&inferencepb.OfferAsk{Model: modelID[:]}); o.Accept {
				t.Error("it offers while it drains")
			}
		})
		start := time.Now()
		b.host.Shutdown(ctx)
		if d := time.Since(start); d > 2100*time.Millisecond {
			t.Errorf("it took %s", d)
		}
		b.Close()
		<-b.ended
		wg.Wait()
		if ends[0] != (end{50, inference.FinishLength}) || ends[1].finish != inference.FinishAborted || ends[2] != (end{0, inference.FinishAborted}) {
			t.Errorf("ends %+v", ends)
		}
	})
}

// TestEngineFails aborts: the caller continues elsewhere with what was signed.
func TestEngineFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1, fail: errors.New("out of memory")}, Config{})
		defer b.close()
		_, signed := request(t, 2, "hello", 10, nil)
		if n, _, finish, _ := b.post(2, "/v1/infer", callBody(t, signed)).rest(t); n != 3 || finish != inference.FinishAborted {
			t.Errorf("%d tokens, %s", n, finish)
		}
	})
}

// TestGarbage throws random bytes at infer and offer streams.
func TestGarbage(t *testing.T) {
	const seed = 42
	r := rand.New(rand.NewPCG(seed, seed))
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1}, Config{})
		defer b.close()
		for i := range 2000 {
			junk := make([]byte, r.IntN(300))
			for j := range junk {
				junk[j] = byte(r.Uint32())
			}
			switch i % 3 {
			case 0:
				c := b.dial(2)
				go c.Write(junk)
				time.Sleep(time.Millisecond)
				c.Close()
			case 1:
				s := b.post(2, "/v1/infer", junk)
				if s.resp.StatusCode != 400 {
					t.Fatalf("seed %d: junk %x got %d", seed, junk, s.resp.StatusCode)
				}
				s.conn.Close()
			case 2:
				near, c := net.Pipe()
				go func() {
					near.Write(junk)
					near.Close()
				}()
				b.host.ServeOffer(context.Background(), addressOf(2), c)
			}
		}
		_, signed := request(t, 3, "x", 5, nil)
		if n, _, _, _ := b.post(3, "/v1/infer", callBody(t, signed)).rest(t); n != 5 {
			t.Errorf("an honest peer got %d tokens", n)
		}
	})
}

// TestHalfCall opens a call and never completes it.
func TestHalfCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 1}, Config{})
		defer b.close()
		c := b.dial(2)
		defer c.Close()
		go io.WriteString(c, "POST /v1/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nabc")
		start := time.Now()
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > bodyTimeout+time.Second {
			t.Errorf("it was held for %s", d)
		}
		b.host.mu.Lock()
		defer b.host.mu.Unlock()
		if len(b.host.peers) != 0 || b.host.held != 0 {
			t.Error("the call is still counted")
		}
	})
}
