package router

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/host"
)

// tcp is a network of hosts on loopback sockets.
type tcp map[mesh.Address]map[string]string

func (n tcp) Dial(ctx context.Context, peer mesh.Address, protocol string) (net.Conn, error) {
	addr := n[peer][protocol]
	if addr == "" {
		return nil, errors.New("no such peer")
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// loopback returns a router and n hosts on real sockets, and their listeners.
func loopback(b testing.TB, n int, mk func(i int) *engine) (*Router, []net.Listener) {
	b.Helper()
	net0, dir := tcp{}, &directory{names: map[string]mesh.ModelID{"model": modelID}}
	self := addressOf(1000)
	var listeners []net.Listener
	for i := range n {
		h, err := host.New(host.Config{Network: network, Key: testKey(i),
			RemotePeer: func(net.Conn) (mesh.Address, bool) { return self, true }})
		if err != nil {
			b.Fatal(err)
		}
		e := mk(i)
		e.id, e.name, e.slots = modelID, "model", max(e.slots, 8)
		if err := h.Add(e, host.Prices{}); err != nil {
			b.Fatal(err)
		}
		infer, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		offer, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		infer = &killable{Listener: infer}
		listeners = append(listeners, infer)
		go h.Serve(infer)
		go func() {
			for {
				c, err := offer.Accept()
				if err != nil {
					return
				}
				go h.ServeOffer(context.Background(), self, c)
			}
		}()
		b.Cleanup(func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			h.Shutdown(ctx)
			offer.Close()
		})
		net0[addressOf(i)] = map[string]string{"infer": infer.Addr().String(), "offer": offer.Addr().String()}
		dir.hosts = append(dir.hosts, Candidate{Peer: addressOf(i), Capability: h.Capabilities()[0]})
	}
	r, err := New(Config{Network: network, Key: testKey(1000), Dialer: net0, Directory: dir})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r, listeners
}

// killable is a listener that can break off what it accepted, as a dying process does.
type killable struct {
	net.Listener
	conns atomic.Pointer[[]net.Conn]
}

func (k *killable) Accept() (net.Conn, error) {
	c, err := k.Listener.Accept()
	if err == nil {
		var all []net.Conn
		if old := k.conns.Load(); old != nil {
			all = *old
		}
		all = append(slices.Clone(all), c)
		k.conns.Store(&all)
	}
	return c, err
}

func (k *killable) kill() {
	k.Close()
	if all := k.conns.Load(); all != nil {
		for _, c := range *all {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}
}

// TestGapOnLoopback kills the speaking host over real sockets and measures the gap.
func TestGapOnLoopback(t *testing.T) {
	var gaps []time.Duration
	for range 10 {
		var killed atomic.Bool
		var r *Router
		var listeners []net.Listener
		r, listeners = loopback(t, 4, func(i int) *engine {
			return &engine{pace: time.Millisecond, at: func(_ context.Context, pos int) error {
				if pos == 20 && killed.CompareAndSwap(false, true) {
					listeners[i].(*killable).kill()
				}
				return nil
			}}
		})
		w := &world{t: t, router: r}
		got, err := w.collect(t.Context(), ask(60), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(got[0].tokens) != 60 || len(got[0].hosts) < 2 {
			t.Fatalf("%d tokens from %d hosts", len(got[0].tokens), len(got[0].hosts))
		}
		gaps = append(gaps, got[0].gap)
	}
	slices.Sort(gaps)
	t.Logf("gap p50 %s, max %s", gaps[len(gaps)/2], gaps[len(gaps)-1])
	if gaps[len(gaps)/2] > 300*time.Millisecond || gaps[len(gaps)-1] > time.Second {
		t.Errorf("gaps %v", gaps)
	}
}

// BenchmarkFirstToken measures a question of one token over a loopback socket: routing,
// the stream, both signatures and their checks.
func BenchmarkFirstToken(b *testing.B) {
	r, _ := loopback(b, 4, func(int) *engine { return new(engine) })
	var times []time.Duration
	for b.Loop() {
		start := time.Now()
		if err := r.Ask(context.Background(), ask(1), func(e inference.Event) error {
			if len(e.Tokens) > 0 {
				times = append(times, time.Since(start))
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-us")
}

// BenchmarkTokens measures tokens through 32 streams as fast as they go.
func BenchmarkTokens(b *testing.B) {
	const streams, tokens = 32, 200
	r, _ := loopback(b, 1, func(int) *engine { return &engine{slots: streams, pace: 2 * time.Millisecond} })
	for b.Loop() {
		done := make(chan error, streams)
		for range streams {
			go func() {
				done <- r.Ask(context.Background(), ask(tokens), func(inference.Event) error { return nil })
			}()
		}
		for range streams {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.N*streams*tokens)/b.Elapsed().Seconds(), "tokens/s")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*tokens), "us/step")
}
