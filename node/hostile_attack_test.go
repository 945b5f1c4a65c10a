package node

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

// attack is one way to misbehave.
type attack struct {
	name string
	few  int  // strikes in the short form
	many int  // in the full form; 0: as many as the time allows
	cut  bool // the offender has to be cut off
	pace bool // the full form compares the latency of honest requests with a bystander's
	slow bool // it takes its time: the short form runs the others meanwhile
	hold int  // the most streams that one peer may hold; 0: not counted
	run  func(*squad)
}

// frameKinds are bytes that are no message: a length beyond any limit, a message that
// ends early, noise.
var frameKinds = map[string]func(r *rand.Rand) []byte{
	"oversized": func(r *rand.Rand) []byte { return append([]byte{0xff, 0xff, 0xff, 0x7f}, noise(r, 64)...) },
	"truncated": func(*rand.Rand) []byte { return []byte{100, 0x0a, 20, 1, 2, 3} },
	"random":    func(r *rand.Rand) []byte { return append(append([]byte{0x80}, noise(r, 1+r.IntN(200))...), 0xff) },
}

// callKinds are the same for the HTTP of infer streams.
var callKinds = map[string]func(r *rand.Rand) []byte{
	"oversized": func(r *rand.Rand) []byte {
		if r.IntN(2) == 0 {
			return []byte("POST /v1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
		}
		return []byte("POST /v1/infer HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 16<<10) + "\r\n\r\n")
	},
	"truncated": func(r *rand.Rand) []byte {
		if r.IntN(2) == 0 {
			return []byte("POST /v1/infer HTTP/1.1\r\nHo")
		}
		return []byte("POST /v1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
	},
	"random": func(r *rand.Rand) []byte {
		if r.IntN(2) == 0 {
			return noise(r, 1+r.IntN(300))
		}
		return post("/v1/infer", noise(r, 1+r.IntN(300)))
	},
}

var attacks = buildAttacks()

func buildAttacks() []attack {
	var out []attack
	// Of manifest, blob and offer the node's limits, of hello one, of peers its burst.
	for _, h := range []struct {
		protocol string
		hold     int
	}{{"infer", 256}, {"offer", 8}, {"manifest", 4}, {"blob", 8}, {"peers", 16}, {"hello", 2}} {
		out = append(out, attack{name: "hoard-" + h.protocol, few: 5000, hold: h.hold, cut: true, pace: h.protocol == "infer" || h.protocol == "hello",
			run: func(q *squad) { q.hoard(h.protocol) }})
	}
	for _, p := range []string{"infer", "offer", "manifest", "blob", "peers", "hello"} {
		kinds := frameKinds
		if p == "infer" {
			kinds = callKinds
		}
		for _, kind := range []string{"oversized", "truncated", "random"} {
			out = append(out, attack{name: kind + "-" + p, few: 60, many: 10000, cut: true, pace: kind == "random" && (p == "infer" || p == "offer"),
				run: func(q *squad) { q.frames(p, kinds[kind]) }})
		}
	}
	return append(out,
		attack{name: "slowloris", pace: true, cut: true, few: 64, slow: true, run: (*squad).slowloris},
		attack{name: "stalled-bodies", pace: true, few: 96, slow: true, run: (*squad).stalledBodies},
		attack{name: "slow-infer", pace: true, few: 24, slow: true, run: (*squad).slowInfer},
		attack{name: "slow-blob", pace: true, few: 8, slow: true, run: (*squad).slowBlob},
		attack{name: "tasks-valid", pace: true, many: 10000, cut: true, slow: true, run: func(q *squad) { q.gossip("task", q.validTask) }},
		attack{name: "tasks-invalid", pace: true, many: 10000, cut: true, slow: true, run: func(q *squad) { q.gossip("task", q.invalidTask) }},
		attack{name: "adverts-valid", pace: true, many: 10000, cut: true, slow: true, run: func(q *squad) { q.gossip(q.shard(), q.hugeAdvert) }},
		attack{name: "adverts-invalid", pace: true, many: 10000, cut: true, slow: true, run: func(q *squad) { q.gossip(q.shard(), q.invalidAdvert) }},
		attack{name: "calls-invalid", pace: true, few: 100, many: 2000, cut: true, run: (*squad).invalidCalls},
		attack{name: "calls-valid", pace: true, few: 12, run: (*squad).validCalls},
		attack{name: "cancels", pace: true, few: 600, many: 10000, run: (*squad).cancels},
		attack{name: "offers", pace: true, few: 1500, many: 10000, cut: true, run: (*squad).offers},
		attack{name: "asks", pace: true, few: 500, many: 10000, cut: true, run: (*squad).asks},
		attack{name: "churn", pace: true, few: 24, run: (*squad).churn},
	)
}

// squad is a process of attackers.
type squad struct {
	t       *testing.T
	ctx     context.Context
	b       brief
	network mesh.NetworkID
	genesis mesh.Hash
	end     time.Time

	mu     sync.Mutex
	rand   *rand.Rand // guarded by mu
	report report     // guarded by mu
}

// foe is one attacking identity.
type foe struct {
	*p2p.Host
	q     *squad
	key   ed25519.PrivateKey
	first time.Time       // of its offences
	gone  chan struct{}   // closed when it was cut off
	out   time.Time       // when; set before gone is closed
	ctx   context.Context // ends when it is cut off or dismissed
	stop  context.CancelFunc
	watch sync.WaitGroup
}

func runSquad(ctx context.Context, t *testing.T, b brief) report {
	g, err := LoadGenesis(b.Genesis)
	if err != nil {
		t.Fatal(err)
	}
	q := &squad{t: t, b: b, network: g.Network(), genesis: g.Hash(), rand: rand.New(rand.NewPCG(7, 7))}
	tell(true)
	q.end = time.Now().Add(b.Time)
	ctx, cancel := context.WithDeadline(ctx, q.end.Add(10*time.Second))
	defer cancel()
	q.ctx = ctx
	for _, a := range attacks {
		if a.name == b.Attack {
			a.run(q)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.report.CPU = processorTime(os.Getpid())
	return q.report
}

// more reserves one strike.
func (q *squad) more() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !time.Now().Before(q.end) || q.b.Count > 0 && q.report.Strikes >= q.b.Count {
		return false
	}
	q.report.Strikes++
	return true
}

// unstruck takes a strike back that did not reach the victim.
func (q *squad) unstruck() {
	q.mu.Lock()
	q.report.Strikes--
	q.mu.Unlock()
}

func (q *squad) wrong(format string, args ...any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.report.Wrong) < 5 {
		q.report.Wrong = append(q.report.Wrong, fmt.Sprintf(format, args...))
	}
}

func (q *squad) draw(f func(r *rand.Rand) []byte) []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	return f(q.rand)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// recruit makes an identity and connects it; nil when that fails.
func (q *squad) recruit() *foe {
	_, key, _ := ed25519.GenerateKey(nil)
	h, err := p2p.New(p2p.Config{Network: q.network, Genesis: q.genesis, Key: key, Role: p2p.RoleLight, NoListen: true})
	if err != nil {
		q.t.Fatal(err)
	}
	if err := h.Start(q.ctx); err != nil {
		q.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(q.ctx, 5*time.Second)
	defer cancel()
	if _, err := h.Connect(ctx, q.b.Victim.Addrs[0]); err != nil {
		h.Close()
		return nil
	}
	f := &foe{Host: h, q: q, key: key, gone: make(chan struct{}), first: time.Now()}
	f.ctx, f.stop = context.WithCancel(q.ctx)
	f.watch.Go(func() {
		defer f.stop()
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for f.Connected(q.b.Victim.Peer) {
			select {
			case <-tick.C:
			case <-f.ctx.Done():
				return
			}
		}
		f.out = time.Now()
		close(f.gone)
	})
	return f
}

func (f *foe) cut() bool {
	select {
	case <-f.gone:
		return true
	default:
		return false
	}
}

// dismiss ends an identity and notes how it fared.
func (f *foe) dismiss() {
	time.Sleep(5 * time.Millisecond)
	f.stop()
	f.watch.Wait()
	f.q.mu.Lock()
	f.q.report.Identities++
	if f.cut() {
		f.q.report.Cut++
		f.q.report.Slowest = max(f.q.report.Slowest, f.out.Sub(f.first))
	} else {
		f.q.report.Uncut = max(f.q.report.Uncut, time.Since(f.first))
	}
	f.q.mu.Unlock()
	f.Close()
}

// offend strikes with one identity after the other, each until it is cut off, from
// several goroutines at a time.
func (q *squad) offend(width int, strike func(f *foe) error) {
	for q.ctx.Err() == nil {
		f := q.recruit()
		if f == nil {
			if time.Now().After(q.end) {
				return
			}
			continue
		}
		var workers sync.WaitGroup
		open := true
		for range width {
			workers.Go(func() {
				for !f.cut() {
					if !q.more() {
						open = false
						return
					}
					if strike(f) != nil && f.cut() {
						q.unstruck()
					}
				}
			})
		}
		workers.Wait()
		if !open {
			f.await(2 * time.Second)
		}
		f.dismiss()
		if !open {
			return
		}
	}
}

// await gives the victim time to act on what it has seen: faults of some protocols
// are counted in the background.
func (f *foe) await(limit time.Duration) {
	select {
	case <-f.gone:
	case <-time.After(limit):
	}
}

func (f *foe) dial(protocol string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(f.ctx, 5*time.Second)
	defer cancel()
	return f.Dial(ctx, f.q.b.Victim.Peer, protocol)
}

// send writes bytes on a new stream, ends it, and returns what comes back.
func (f *foe) send(protocol string, b []byte) ([]byte, error) {
	c, err := f.dial(protocol)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(f.ctx, func() { p2p.Reset(c, p2p.CodeInternal) })()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	f.q.mu.Lock()
	f.q.report.Frames++
	f.q.mu.Unlock()
	p2p.CloseWrite(c)
	return io.ReadAll(io.LimitReader(c, 1<<20))
}

func (q *squad) frames(protocol string, frame func(*rand.Rand) []byte) {
	q.offend(64, func(f *foe) error {
		_, err := f.send(protocol, q.draw(frame))
		return err
	})
}

// hoard opens streams and says nothing on them.
func (q *squad) hoard(protocol string) {
	for q.ctx.Err() == nil && time.Now().Before(q.end) {
		f := q.recruit()
		if f == nil {
			continue
		}
		var (
			mu     sync.Mutex
			held   = make(map[net.Conn]bool)
			wg     sync.WaitGroup
			places = make(chan struct{}, 160)
		)
		for i := 0; !f.cut() && q.more(); i++ {
			if i == 150 { // refusals have arrived by then, and what is left is held
				time.Sleep(time.Second)
				mu.Lock()
				n := len(held)
				mu.Unlock()
				q.mu.Lock()
				q.report.Held = max(q.report.Held, n)
				q.mu.Unlock()
			}
			places <- struct{}{}
			c, err := f.dial(protocol)
			if err == nil {
				_, err = c.Write(nil) // the stream exists once its protocol is named
			}
			if err != nil {
				<-places
				continue
			}
			wg.Go(func() {
				// A stream that the victim keeps says nothing; a refused one ends.
				mu.Lock()
				held[c] = true
				mu.Unlock()
				time.AfterFunc(50*time.Millisecond, func() { <-places })
				c.Read(make([]byte, 1))
				mu.Lock()
				delete(held, c)
				mu.Unlock()
				c.Close()
			})
		}
		done := !f.cut() || q.b.Count > 0 // one is enough for the short form
		f.dismiss()
		wg.Wait()
		if done {
			return
		}
	}
}

// slowloris sends the header of a call a byte at a time.
func (q *squad) slowloris() {
	q.end = q.end.Add(10 * time.Second) // until the victim's own time is up
	f := q.recruit()
	if f == nil {
		q.wrong("the attacker was not let in")
		return
	}
	var wg sync.WaitGroup
	for range 64 {
		if !q.more() {
			break
		}
		wg.Go(func() {
			c, err := f.dial("infer")
			if err != nil {
				return
			}
			defer c.Close()
			for i := 0; time.Now().Before(q.end) && !f.cut(); i++ {
				header := "POST /v1/infer HTTP/1.1\r\nHost: x\r\nX: "
				if i >= len(header) {
					i = len(header) - 1
				}
				if _, err := c.Write([]byte{header[i]}); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	time.Sleep(50 * time.Millisecond)
	f.dismiss()
}

// stalledBodies states the largest calls, from three identities, and sends none of them.
func (q *squad) stalledBodies() {
	var wg sync.WaitGroup
	for range 3 {
		f := q.recruit()
		if f == nil {
			continue
		}
		// The largest first, and then smaller ones into what those left.
		for i := range 32 {
			size := []int{inference.MaxCallBytes, inference.MaxCallBytes, 256 << 10, 16 << 10}[i/8]
			if !q.more() {
				break
			}
			wg.Go(func() {
				c, err := f.dial("infer")
				if err != nil {
					return
				}
				defer c.Close()
				fmt.Fprintf(c, "POST /v1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size)
				for time.Now().Before(q.end) && !f.cut() {
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
		defer f.dismiss()
	}
	wg.Wait()
}

func post(path string, body []byte) []byte {
	return append(fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", path, len(body)), body...)
}

// request signs a request of a foe.
func (f *foe) request(key ed25519.PrivateKey, prompt string, change func(*inferencepb.Request)) (*inference.Request, *inferencepb.Signed) {
	r := &inferencepb.Request{Choices: 1, MaxTokens: 8, IgnoreEos: true, Nonce: make([]byte, 16)}
	copy(r.Nonce, fmt.Sprint(rand.Uint64()))
	if change != nil {
		change(r)
	}
	req, signed, err := inference.NewRequest(f.q.network, key, &inferencepb.Question{Model: f.q.b.Model[:], Prompt: prompt}, r)
	if err != nil {
		panic(err)
	}
	return req, signed
}

func body(signed *inferencepb.Signed, choice uint32, prefix []int32, from *inferencepb.Signed) []byte {
	b, err := inference.EncodeCall(signed, choice, prefix, from)
	if err != nil {
		panic(err)
	}
	return b
}

// call posts a body and returns the status of the answer, read to its end.
func (f *foe) call(path string, b []byte) (int, error) {
	c, err := f.dial("infer")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(post(path, b)); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// invalidCalls lies in every way that a call can.
func (q *squad) invalidCalls() {
	_, other, _ := ed25519.GenerateKey(nil)
	lies := []struct {
		name   string
		status int
		body   func(f *foe) []byte
	}{
		{"the payer is another", 403, func(f *foe) []byte { _, s := f.request(other, "hi", nil); return body(s, 0, nil, nil) }},
		{"a foreign signature", 400, func(f *foe) []byte {
			_, s := f.request(f.key, "hi", nil)
			s.Signature[0] ^= 1
			return body(s, 0, nil, nil)
		}},
		{"a token out of the vocabulary", 400, func(f *foe) []byte {
			_, s := f.request(f.key, "hi", nil)
			return body(s, 0, []int32{1 << 30}, nil)
		}},
		{"a forged receipt under the prefix", 400, func(f *foe) []byte {
			r, s := f.request(f.key, "hi", nil)
			from, err := inference.SignReceipt(q.network, other, &inferencepb.Receipt{
				Request: r.Hash[:], Model: r.Model[:], End: 2, OutputTokens: 2, ChainBefore: r.Hash[:], ChainAfter: r.Hash[:]})
			if err != nil {
				panic(err)
			}
			return body(s, 0, []int32{5, 6}, from)
		}},
		{"a choice beyond n", 400, func(f *foe) []byte { _, s := f.request(f.key, "hi", nil); return body(s, 1, nil, nil) }},
		{"a prefix that is the whole answer and more", 400, func(f *foe) []byte {
			_, s := f.request(f.key, "hi", nil)
			return body(s, 0, make([]int32, 9), nil)
		}},
		{"a prompt of 1 MiB", 400, func(f *foe) []byte {
			_, s := f.request(f.key, strings.Repeat("a b ", 250_000), nil)
			return body(s, 0, nil, nil)
		}},
		{"a cap under the price", 402, func(f *foe) []byte {
			_, s := f.request(f.key, "hi", func(r *inferencepb.Request) { r.PriceCap = 1 })
			return body(s, 0, nil, nil)
		}},
		{"a model that is not there", 404, func(f *foe) []byte {
			_, s, err := inference.NewRequest(q.network, f.key, &inferencepb.Question{Model: q.genesis[:], Prompt: "hi"},
				&inferencepb.Request{Choices: 1, MaxTokens: 8, Nonce: make([]byte, 16)})
			if err != nil {
				panic(err)
			}
			return body(s, 0, nil, nil)
		}},
		{"more tokens than the context has", 400, func(f *foe) []byte {
			_, s := f.request(f.key, "hi", func(r *inferencepb.Request) { r.MaxTokens = inference.MaxTokens - 1 })
			return body(s, 0, nil, nil)
		}},
	}
	var next int
	q.offend(8, func(f *foe) error {
		q.mu.Lock()
		lie := lies[next%len(lies)]
		next++
		q.mu.Unlock()
		status, err := f.call("/v1/infer", lie.body(f))
		if err == nil && status != lie.status && status != 429 {
			q.wrong("%s: status %d, want %d", lie.name, status, lie.status)
		}
		return err
	})
}

// validCalls sends the largest requests that are allowed, the same ones again while
// they run, and hangs up on half of them.
func (q *squad) validCalls() {
	q.offend(12, func(f *foe) error {
		_, s := f.request(f.key, "What is Mesh?", func(r *inferencepb.Request) {
			r.Choices, r.MaxTokens, r.Logprobs, r.TopLogprobs = inference.MaxChoices, 64, true, inference.MaxTopLogProbs
		})
		var wg sync.WaitGroup
		for choice := range uint32(4) {
			b := body(s, choice, nil, nil)
			for twin := range 2 {
				wg.Go(func() {
					if twin == 0 && choice%2 == 0 {
						if c, err := f.dial("infer"); err == nil {
							c.Write(post("/v1/infer", b))
							time.Sleep(5 * time.Millisecond)
							p2p.Reset(c, p2p.CodeInternal)
						}
						return
					}
					status, err := f.call("/v1/infer", b)
					if err == nil && status != 200 && status != 409 && status != 429 {
						q.wrong("a valid call: status %d", status)
					}
				})
			}
		}
		wg.Wait()
		return nil
	})
}

// cancels orders the end of answers that do not run.
func (q *squad) cancels() {
	q.offend(8, func(f *foe) error {
		signed, err := inference.SignCancel(q.network, f.key, mesh.HashOf(fmt.Append(nil, rand.Uint64())), 0)
		if err != nil {
			return err
		}
		b, err := proto.Marshal(signed)
		if err != nil {
			return err
		}
		status, err := f.call("/v1/cancel", b)
		if err == nil && status != 200 && status != 429 {
			q.wrong("a cancel: status %d", status)
		}
		return err
	})
}

// slowInfer asks for long answers and reads only their beginning.
func (q *squad) slowInfer() {
	f := q.recruit()
	if f == nil {
		q.wrong("the attacker was not let in")
		return
	}
	for q.more() {
		_, s := f.request(f.key, "What is Mesh?", func(r *inferencepb.Request) {
			r.MaxTokens, r.Logprobs, r.TopLogprobs = 200, true, inference.MaxTopLogProbs
		})
		c, err := f.dial("infer")
		if err != nil {
			continue
		}
		defer c.Close()
		c.Write(post("/v1/infer", body(s, 0, nil, nil)))
		io.ReadFull(c, make([]byte, 100))
	}
	for time.Now().Before(q.end) {
		time.Sleep(10 * time.Millisecond)
	}
	f.dismiss()
}

// slowBlob asks for much more than a stream buffers, and reads none of it.
func (q *squad) slowBlob() {
	if q.b.Count > 0 {
		q.end = q.end.Add(8 * time.Second) // the victim gives a reader so long for a piece
	}
	f := q.recruit()
	if f == nil {
		q.wrong("the attacker was not let in")
		return
	}
	var wg sync.WaitGroup
	for range 8 {
		if !q.more() {
			break
		}
		c, err := f.dial("blob")
		if err != nil {
			continue
		}
		defer c.Close()
		for range 8 {
			p2p.WriteMessage(c, &p2ppb.RangeAsk{Root: q.b.Root[:], First: 0, Count: 4})
		}
		wg.Go(func() {
			for time.Now().Before(q.end) {
				time.Sleep(10 * time.Millisecond)
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if n, err := io.Copy(io.Discard, c); err == nil || isTimeout(err) || n >= 8<<24 {
				if q.b.Count > 0 {
					q.wrong("a stream that nobody read for 10 s still has %d bytes: %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	f.dismiss()
}

// gossip publishes on a topic as fast as it can, without the bound of an honest author.
func (q *squad) gossip(topic string, message func(f *foe) []byte) {
	topics := make(map[*foe]*p2p.Topic)
	var mu sync.Mutex
	q.offend(2, func(f *foe) error {
		mu.Lock()
		t := topics[f]
		if t == nil {
			var err error
			if t, err = f.Join(topic, func(mesh.Address, []byte) p2p.Verdict { return p2p.Ignore }, p2p.TopicOptions{PublishOnly: true, Rate: 1e6, Burst: 1e9}); err != nil {
				q.wrong("%v", err)
			}
			for begin := time.Now(); t.Peers() == 0 && time.Since(begin) < 5*time.Second; {
				time.Sleep(time.Millisecond)
			}
			f.first = time.Now()
			topics[f] = t
		}
		mu.Unlock()
		// Faster than this, messages fall out of the sender's own queue.
		time.Sleep(200 * time.Microsecond)
		return t.Publish(q.ctx, message(f))
	})
}

func (f *foe) task(change func(*inferencepb.Task)) []byte {
	p := &inferencepb.Task{Model: f.q.b.Model[:], MaxTokens: 8, Choices: 1, PriceCap: rand.Uint64(), DeadlineMs: time.Now().Add(time.Minute).UnixMilli()}
	change(p)
	_, s, err := inference.SignTask(f.q.network, f.key, p)
	if err != nil {
		panic(err)
	}
	b, err := proto.Marshal(s)
	if err != nil {
		panic(err)
	}
	return b
}

// validTask is a task that the victim may answer, or one whose time is long over.
func (q *squad) validTask(f *foe) []byte {
	return f.task(func(t *inferencepb.Task) {
		switch rand.IntN(3) {
		case 0:
			t.DeadlineMs = 1
		case 1:
			t.DeadlineMs = 1 << 60
		}
	})
}

func (q *squad) invalidTask(f *foe) []byte {
	b := f.task(func(*inferencepb.Task) {})
	switch rand.IntN(4) {
	case 0:
		return b[:len(b)/2]
	case 1:
		b[len(b)-1] ^= 1
		return b
	case 2:
		return make([]byte, 60<<10)
	}
	return q.draw(func(r *rand.Rand) []byte { return noise(r, 1+r.IntN(4000)) })
}

func (q *squad) shard() string { return fmt.Sprintf("advert/%02x", q.b.Model[0]%16) }

func (f *foe) advert(change func(*p2ppb.Advert)) []byte {
	self := f.Address()
	a := &p2ppb.Advert{Network: string(f.q.network), Peer: self[:], Seq: uint64(time.Now().UnixNano()),
		IssuedMs: time.Now().UnixMilli(), TtlS: 600, Addrs: []string{"/ip4/127.0.0.1/tcp/1"},
		Services: []*p2ppb.Service{{Key: f.q.b.Model[:], Payload: []byte("x")}}}
	change(a)
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err != nil {
		panic(err)
	}
	s, err := proto.Marshal(&p2ppb.SignedAdvert{Body: b, Signature: mesh.Domain("mesh/advert/1").Sign(f.key, f.q.network, b)})
	if err != nil {
		panic(err)
	}
	return s
}

// hugeAdvert has as many services, or as much to say of them, as fit.
func (q *squad) hugeAdvert(f *foe) []byte {
	return f.advert(func(a *p2ppb.Advert) {
		a.Services = nil
		for i := range 64 {
			key := q.b.Model
			key[31], key[30] = byte(i), byte(i)^key[30]
			a.Services = append(a.Services, &p2ppb.Service{Key: key[:], Payload: make([]byte, 150)})
		}
		first := a.Services[0].Key[30]
		for i, s := range a.Services { // in ascending order
			s.Key[30], s.Key[31] = first, byte(i)
		}
	})
}

func (q *squad) invalidAdvert(f *foe) []byte {
	switch rand.IntN(6) {
	case 0: // dated ahead
		return f.advert(func(a *p2ppb.Advert) { a.IssuedMs += time.Hour.Milliseconds() })
	case 1: // out of date
		return f.advert(func(a *p2ppb.Advert) { a.IssuedMs -= time.Hour.Milliseconds() })
	case 2: // of another peer
		return f.advert(func(a *p2ppb.Advert) { a.Peer = q.genesis[:] })
	case 3: // too many services
		return f.advert(func(a *p2ppb.Advert) {
			for range 100 {
				a.Services = append(a.Services, a.Services[0])
			}
		})
	case 4:
		return f.advert(func(a *p2ppb.Advert) { a.Addrs = []string{"nowhere"} })
	}
	return q.draw(func(r *rand.Rand) []byte { return noise(r, 1+r.IntN(20000)) })
}

// offers floods the offer protocol: questions, and offers for tasks of nobody.
func (q *squad) offers() {
	q.offend(16, func(f *foe) error {
		call := &inferencepb.OfferCall{Ask: &inferencepb.OfferAsk{Model: q.b.Model[:], PromptTokens: 1 << 31, MaxTokens: 1 << 31, Choices: 1 << 31}}
		if rand.IntN(2) == 0 {
			call = &inferencepb.OfferCall{Offer: &inferencepb.Offer{Accept: true, Task: q.genesis[:], Capability: &inferencepb.Capability{Model: q.b.Model[:]}}}
		}
		var b strings.Builder
		if err := p2p.WriteMessage(&b, call); err != nil {
			return err
		}
		_, err := f.send("offer", []byte(b.String()))
		return err
	})
}

// asks floods the peers protocol with the dearest question.
func (q *squad) asks() {
	q.offend(16, func(f *foe) error {
		var b strings.Builder
		if err := p2p.WriteMessage(&b, &p2ppb.PeersAsk{Max: 1 << 31}); err != nil {
			return err
		}
		_, err := f.send("peers", []byte(b.String()))
		return err
	})
}

// churn connects and leaves, under a new name each time.
func (q *squad) churn() {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for q.more() {
				if f := q.recruit(); f != nil {
					f.dismiss()
				}
			}
		})
	}
	wg.Wait()
}
