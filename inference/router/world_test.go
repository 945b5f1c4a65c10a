package router

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/host"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

const network = mesh.NetworkID("dev00000000")

type (
	hostConfig = host.Config
	modelHash  = mesh.ModelID
)

var modelID = mesh.HashOf([]byte("a model"))

func testKey(n int) ed25519.PrivateKey {
	seed := make([]byte, 32)
	binary.BigEndian.PutUint32(seed, uint32(n))
	return ed25519.NewKeyFromSeed(seed)
}

func addressOf(n int) mesh.Address { return mesh.AddressOf(testKey(n).Public().(ed25519.PublicKey)) }

// engine is a deterministic model: its tokens are bytes, either those of script or
// drawn from the tape, the prompt and the position. Token 256 ends an answer.
type engine struct {
	id      mesh.ModelID
	name    string
	slots   int
	script  string
	pace    time.Duration
	prefill time.Duration
	// at is called before the token at a position is emitted; an error fails the engine.
	at func(ctx context.Context, position int) error

	mu     sync.Mutex
	active int // guarded by mu
	runs   int // guarded by mu
}

const endToken = 256

func (e *engine) Info() inference.ModelInfo {
	return inference.ModelInfo{ID: e.id, Name: e.name, Context: 4096, Vocab: 257, Slots: e.slots,
		Fingerprint: &inferencepb.Fingerprint{Engine: "test", Contract: "mk1"}}
}

func (e *engine) Encode(q *inferencepb.Question) ([]int32, error) {
	var out []int32
	for _, b := range []byte(q.GetPrompt()) {
		out = append(out, int32(b))
	}
	return out, nil
}

func (e *engine) Text() inference.Detokenizer { return new(byteText) }

func (e *engine) TokenBytes(id int32) []byte {
	if id == endToken {
		return nil
	}
	return []byte{byte(id)}
}

func (e *engine) Load() inference.Load {
	e.mu.Lock()
	defer e.mu.Unlock()
	return inference.Load{Active: e.active}
}

func (e *engine) Close() error { return nil }

func (e *engine) token(g inference.Generation, i int) int32 {
	if e.script != "" {
		if i >= len(e.script) {
			return endToken
		}
		return int32(e.script[i])
	}
	var p []byte
	for _, t := range g.Prompt {
		p = binary.BigEndian.AppendUint32(p, uint32(t))
	}
	h := mesh.HashOf(g.Tape[:], p, binary.BigEndian.AppendUint32(nil, uint32(i)))
	return int32('a' + h[0]%26)
}

func (e *engine) Generate(ctx context.Context, g inference.Generation, emit func(inference.Token) error) (inference.Finish, error) {
	e.mu.Lock()
	e.active++
	e.runs++
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.active--
		e.mu.Unlock()
	}()
	for i := range g.Prefix {
		if want := e.token(g, i); g.Prefix[i] != want {
			return inference.Finish{}, fmt.Errorf("token %d of the prefix is %d, want %d", i, g.Prefix[i], want)
		}
	}
	if n := len(g.Prefix); n > 0 && g.Prefix[n-1] == endToken {
		return inference.Finish{Reason: inference.FinishEOS}, nil
	}
	if err := sleep(ctx, e.prefill); err != nil {
		return inference.Finish{Reason: inference.FinishCancelled}, nil
	}
	if g.Progress != nil {
		g.Progress()
	}
	for i := len(g.Prefix); i < g.MaxTokens; i++ {
		if e.at != nil {
			if err := e.at(ctx, i); err != nil {
				return inference.Finish{}, err
			}
		}
		if err := sleep(ctx, e.pace); err != nil {
			return inference.Finish{Reason: inference.FinishCancelled}, nil
		}
		t := inference.Token{ID: e.token(g, i), LogProb: -0.5}
		for j := range g.Top {
			t.Top = append(t.Top, inference.TopLogProb{ID: int32(j), LogProb: -1})
		}
		if err := emit(t); err != nil {
			return inference.Finish{}, err
		}
		if t.ID == endToken && !g.IgnoreEOS {
			return inference.Finish{Reason: inference.FinishEOS}, nil
		}
	}
	return inference.Finish{Reason: inference.FinishLength}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// byteText turns bytes into text and holds back what is no whole character.
type byteText struct{ pending []byte }

func (t *byteText) Add(id int32) string {
	if id == endToken {
		return ""
	}
	t.pending = append(t.pending, byte(id))
	if !utf8.FullRune(t.pending) {
		return ""
	}
	s := string(t.pending)
	t.pending = nil
	return s
}

func (t *byteText) Flush() string {
	if len(t.pending) == 0 {
		return ""
	}
	t.pending = nil
	return "\uFFFD"
}

// world is a router and some hosts on a network of pipes.
type world struct {
	t         *testing.T
	router    *Router
	peers     map[mesh.Address]*peer
	order     []*peer
	delay     time.Duration // one way
	keeper    *keeper
	dir       *directory
	mu        sync.Mutex
	liars     map[mesh.Address]string // penalised, and why; guarded by mu
	announced int                     // tasks; guarded by mu
	closing   []func()
}

// peer is a host that can be killed.
type peer struct {
	w       *world
	addr    mesh.Address
	host    *host.Host
	engine  *engine
	kept    *keeper
	accept  chan net.Conn
	done    chan struct{}
	mu      sync.Mutex
	dead    bool       // guarded by mu
	hole    bool       // swallows all bytes; guarded by mu
	conns   []net.Conn // guarded by mu
	dialled int        // infer streams; guarded by mu
}

type keeper struct {
	mu   sync.Mutex
	list []*inference.Receipt // guarded by mu
}

func (k *keeper) Put(request mesh.Hash, s *inferencepb.Signed) error {
	r, err := inference.ParseReceipt(network, s)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list = append(k.list, r)
	return nil
}

func (k *keeper) all() []*inference.Receipt {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.list
}

type directory struct {
	mu    sync.Mutex
	names map[string]mesh.ModelID
	hosts []Candidate
}

func (d *directory) Resolve(_ context.Context, name string) (mesh.ModelID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if id, ok := d.names[name]; ok {
		return id, nil
	}
	return mesh.ModelID{}, fmt.Errorf("%w: %s", inference.ErrUnknownModel, name)
}

func (d *directory) Hosts(context.Context, mesh.ModelID) ([]Candidate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hosts, nil
}

func (d *directory) Models(context.Context) ([]inference.ModelInfo, error) { return nil, nil }

type option func(*host.Config, *Config)

// newWorld starts n hosts, one engine each made by mk, and a router that knows them.
func newWorld(t *testing.T, n int, mk func(i int) *engine, options ...option) *world {
	t.Helper()
	w := &world{
		t: t, peers: make(map[mesh.Address]*peer), keeper: new(keeper), liars: make(map[mesh.Address]string),
		dir: &directory{names: map[string]mesh.ModelID{"model": modelID}},
	}
	cfg := Config{
		Network: network, Key: testKey(1000), Dialer: dialFrom{w, addressOf(1000)}, Directory: w.dir, Receipts: w.keeper,
		Penalise: func(a mesh.Address, reason string, _ int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.liars[a] = reason
		},
	}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	for i := range n {
		w.addPeer(i, mk(i), options...)
	}
	for _, o := range options {
		o(nil, &cfg)
	}
	var err error
	if w.router, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	for _, p := range w.order {
		w.dir.hosts = append(w.dir.hosts, Candidate{Peer: p.addr, Capability: p.host.Capabilities()[0]})
	}
	return w
}

func (w *world) addPeer(i int, e *engine, options ...option) *peer {
	if e.id.IsZero() {
		e.id, e.name = modelID, "model"
	}
	if e.slots == 0 {
		e.slots = 8
	}
	p := &peer{w: w, addr: addressOf(i), engine: e, kept: new(keeper), accept: make(chan net.Conn), done: make(chan struct{})}
	cfg := host.Config{
		Network: network, Key: testKey(i), Receipts: p.kept, Dialer: dialFrom{w, p.addr},
		RemotePeer: func(c net.Conn) (mesh.Address, bool) { a, ok := c.(*endpoint); return a.remote, ok },
	}
	for _, o := range options {
		o(&cfg, nil)
	}
	var err error
	if p.host, err = host.New(cfg); err != nil {
		w.t.Fatal(err)
	}
	if err := p.host.Add(e, host.Prices{Prompt: 2, Output: 3}); err != nil {
		w.t.Fatal(err)
	}
	w.peers[p.addr] = p
	w.order = append(w.order, p)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := p.host.Serve(p); err != nil && !errors.Is(err, net.ErrClosed) {
			w.t.Error(err)
		}
	}()
	w.closing = append(w.closing, func() {
		p.kill()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p.host.Shutdown(ctx)
		<-ended
	})
	return p
}

func (w *world) close() {
	if err := w.router.Close(); err != nil {
		w.t.Error(err)
	}
	for _, f := range w.closing {
		f()
	}
}

// Accept, Close and Addr make a peer the listener of its host.
func (p *peer) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *peer) Close() error   { p.kill(); return nil }
func (p *peer) Addr() net.Addr { return &net.TCPAddr{} }

// kill breaks all connections and refuses new ones.
func (p *peer) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.dead {
		p.dead = true
		close(p.done)
	}
	for _, c := range p.conns {
		c.Close()
	}
}

// swallow makes a black hole of the peer: nothing is refused, nothing arrives.
func (p *peer) swallow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hole = true
}

func (p *peer) swallowed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hole
}

type dialFrom struct {
	w    *world
	from mesh.Address
}

// endpoint is a connection that knows its other end.
type endpoint struct {
	net.Conn
	remote mesh.Address
}

func (d dialFrom) Dial(ctx context.Context, to mesh.Address, protocol string) (net.Conn, error) {
	if to == addressOf(1000) { // the router, for offers to tasks
		near, far := net.Pipe()
		go func() {
			light, err := host.New(host.Config{Network: network, Key: testKey(1000), TakeOffer: d.w.router.TakeOffer})
			if err != nil {
				panic(err)
			}
			light.ServeOffer(context.Background(), d.from, far)
		}()
		return near, nil
	}
	p := d.w.peers[to]
	if p == nil {
		return nil, errors.New("no such peer")
	}
	p.mu.Lock()
	dead := p.dead
	if protocol == "infer" {
		p.dialled++
	}
	p.mu.Unlock()
	if dead {
		return nil, errors.New("connection refused")
	}
	near, far := p.link()
	switch protocol {
	case "infer":
		select {
		case p.accept <- &endpoint{far, d.from}:
		case <-p.done:
			return nil, errors.New("connection refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	case "offer":
		if p.host == nil {
			near.Close()
			far.Close()
			return nil, errors.New("no such protocol")
		}
		go p.host.ServeOffer(context.Background(), d.from, far)
	}
	return near, nil
}

// link returns the two ends of a connection that the network can delay, break and
// swallow.
func (p *peer) link() (net.Conn, net.Conn) {
	near, a := net.Pipe()
	b, far := net.Pipe()
	p.mu.Lock()
	p.conns = append(p.conns, a, b)
	p.mu.Unlock()
	go p.carry(b, a)
	go p.carry(a, b)
	return near, far
}

func (p *peer) carry(to, from net.Conn) {
	type parcel struct {
		at   time.Time
		data []byte
	}
	way := make(chan parcel, 16)
	go func() {
		defer to.Close()
		for x := range way {
			time.Sleep(time.Until(x.at))
			if p.swallowed() {
				continue
			}
			if _, err := to.Write(x.data); err != nil {
				from.Close()
				for range way {
				}
				return
			}
		}
	}()
	defer close(way)
	for {
		buf := make([]byte, 4096)
		n, err := from.Read(buf)
		if n > 0 {
			way <- parcel{time.Now().Add(p.w.delay), buf[:n]}
		}
		if err != nil {
			return
		}
	}
}

// answer is what a client saw of one choice.
type answer struct {
	tokens  []int32
	text    string
	hosts   []mesh.Address // in order, each once in a row
	finish  inference.FinishReason
	usage   inference.Usage
	request mesh.Hash
	gap     time.Duration // the longest between two events
	first   time.Duration
	last    time.Time
	events  int
}

// collect asks and gathers the answers by choice.
func (w *world) collect(ctx context.Context, a inference.Ask, each func(inference.Event) error) ([]answer, error) {
	out := make([]answer, max(1, a.Choices))
	start := time.Now()
	err := w.router.Ask(ctx, a, func(e inference.Event) error {
		x := &out[e.Choice]
		if x.finish != "" {
			w.t.Errorf("choice %d: an event after its end", e.Choice)
		}
		if x.events++; x.events == 1 {
			x.first = time.Since(start)
		} else {
			x.gap = max(x.gap, time.Since(x.last))
		}
		x.last = time.Now()
		for _, t := range e.Tokens {
			x.tokens = append(x.tokens, t.ID)
		}
		x.text += e.Text
		x.finish, x.usage, x.request = e.Finish, e.Usage, e.Request
		if len(x.hosts) == 0 || x.hosts[len(x.hosts)-1] != e.Host {
			x.hosts = append(x.hosts, e.Host)
		}
		if each != nil {
			return each(e)
		}
		return nil
	})
	return out, err
}

func seed(n uint64) *uint64 { return &n }

// ask is a question whose answer has n tokens.
func ask(n int) inference.Ask {
	return inference.Ask{Model: "model", Prompt: "What is Mesh?", Seed: seed(7), MaxTokens: n}
}

// want returns the undisturbed answer to an ask, by choice.
func want(t *testing.T, e *engine, a inference.Ask, choice uint32) ([]int32, string) {
	t.Helper()
	q := &inferencepb.Question{Model: modelID[:], Prompt: a.Prompt, Seed: *a.Seed}
	req, _, err := inference.NewRequest(network, testKey(1), q, &inferencepb.Request{
		Choices: uint32(max(1, a.Choices)), MaxTokens: uint32(a.MaxTokens), Nonce: make([]byte, 16)})
	if err != nil {
		t.Fatal(err)
	}
	prompt, err := e.Encode(q)
	if err != nil {
		t.Fatal(err)
	}
	plain := engine{script: e.script}
	text := inference.NewText(new(byteText), a.Stop)
	var tokens []int32
	var out strings.Builder
	stopped := errors.New("stopped")
	_, err = plain.Generate(context.Background(), inference.Generation{
		Prompt: prompt, Tape: req.Tape(choice), MaxTokens: a.MaxTokens,
	}, func(tok inference.Token) error {
		tokens = append(tokens, tok.ID)
		s, stop := text.Add(tok.ID)
		out.WriteString(s)
		if stop {
			return stopped
		}
		return nil
	})
	if err == nil {
		out.WriteString(text.End())
	} else if !errors.Is(err, stopped) {
		t.Fatal(err)
	}
	return tokens, out.String()
}

// check compares an answer with the undisturbed one, and its receipts with each other.
func (w *world) check(t *testing.T, a inference.Ask, choice int, got answer) {
	t.Helper()
	tokens, text := want(t, w.order[0].engine, a, uint32(choice))
	if fmt.Sprint(got.tokens) != fmt.Sprint(tokens) {
		t.Errorf("tokens differ from the undisturbed run: %d, want %d", len(got.tokens), len(tokens))
	}
	if got.text != text {
		t.Errorf("text %q, want %q", got.text, text)
	}
	if got.usage.OutputTokens != len(tokens) || got.usage.PromptTokens != len(a.Prompt) {
		t.Errorf("usage %+v", got.usage)
	}
	var last *inference.Receipt
	chain := inference.NewChain(network, got.request, uint32(choice))
	var price mesh.Amount
	for _, r := range w.receipts(choice) {
		if r.Before.Next == 0 && r.Before != chain {
			t.Error("the first receipt does not begin at the request")
		}
		if last != nil {
			if err := last.Joins(r); err != nil {
				t.Errorf("receipts: %v", err)
			}
			if !bytes.Equal(r.Pb.GetPrefixHost(), last.Host[:]) {
				t.Errorf("receipts: the second does not name who made its prefix")
			}
		}
		price += mesh.Amount(r.Pb.GetPrice())
		last = r
	}
	for _, tok := range tokens {
		chain.Add(tok)
	}
	if last == nil || last.After != chain || last.Finish != got.finish {
		t.Errorf("the last receipt does not end the answer: %+v", last)
	}
	if price != got.usage.Price {
		t.Errorf("the receipts cost %d, the usage says %d", price, got.usage.Price)
	}
}

// receipts returns what the router kept of a choice, segments without tokens left out.
func (w *world) receipts(choice int) []*inference.Receipt {
	var out []*inference.Receipt
	for _, r := range w.keeper.all() {
		if int(r.Pb.GetChoice()) == choice && (r.Pb.GetOutputTokens() > 0 || r.Finish != inference.FinishAborted) {
			out = append(out, r)
		}
	}
	return out
}
