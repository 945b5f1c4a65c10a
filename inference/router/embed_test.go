package router

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// Embed makes a vector that depends on every token.
func (e *engine) Embed(ctx context.Context, tokens []int32, progress func()) (inference.Embedding, error) {
	for i := range tokens {
		if e.at != nil {
			if err := e.at(ctx, i); err != nil {
				return inference.Embedding{}, err
			}
		}
		if err := sleep(ctx, e.pace); err != nil {
			return inference.Embedding{}, err
		}
		progress()
	}
	e.mu.Lock()
	e.runs++
	e.mu.Unlock()
	return inference.Embedding{Vector: vectorOf(tokens, e.width), Hidden: mesh.HashOf([]byte("hidden")), Positions: len(tokens)}, nil
}

func vectorOf(tokens []int32, width int) []float32 {
	var p []byte
	for _, t := range tokens {
		p = binary.BigEndian.AppendUint32(p, uint32(t))
	}
	v := make([]float32, width)
	for i := range v {
		h := mesh.HashOf(p, []byte{byte(i)})
		v[i] = float32(int8(h[0])) / 128
	}
	return v
}

// embedAsk wants the vector of a text of 13 tokens.
func embedAsk() inference.Ask {
	return inference.Ask{Model: "model", Prompt: "What is Mesh?", Embed: true}
}

// embed asks, and returns the one event of the answer.
func (w *world) embed(ctx context.Context, a inference.Ask) (inference.Event, error) {
	var out []inference.Event
	err := w.router.Ask(ctx, a, func(e inference.Event) error {
		out = append(out, e)
		return nil
	})
	if err == nil && len(out) != 1 {
		w.t.Fatalf("%d events", len(out))
	}
	if len(out) == 0 {
		return inference.Event{}, err
	}
	return out[0], err
}

// checkVector compares an event with what any host computes, and its receipt with it.
func (w *world) checkVector(t *testing.T, e inference.Event) {
	t.Helper()
	var tokens []int32
	for _, b := range []byte(embedAsk().Prompt) {
		tokens = append(tokens, int32(b))
	}
	if want := vectorOf(tokens, 8); !slices.Equal(e.Vector, want) || e.Finish != inference.FinishEOS || len(e.Tokens) > 0 || e.Text != "" {
		t.Errorf("event %+v, want the vector %v", e, want)
	}
	if e.Usage.PromptTokens != 13 || e.Usage.OutputTokens != 0 || e.Model.Embed != 8 {
		t.Errorf("usage %+v, model %+v", e.Usage, e.Model)
	}
	chain := inference.NewChain(network, e.Request, 0)
	chain.Bind(inference.EncodeVector(e.Vector))
	list := w.receipts(0)
	last := list[len(list)-1]
	if last.Request != e.Request || last.Host != e.Host || last.After != chain || last.Finish != inference.FinishEOS || last.Pb.GetPositions() != 13 {
		t.Errorf("the last of %d receipts: %v", len(list), last.Pb)
	}
}

// TestEmbed asks every host for the same text: all give the same vector.
func TestEmbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, func(int) *engine { return &engine{width: 8, pace: 10 * time.Millisecond} }, func(_ *hostConfig, c *Config) {
			if c != nil {
				c.Text = func(modelHash) inference.Detokenizer { return new(byteText) }
			}
		})
		defer w.close()
		all := w.dir.hosts
		for i := range all {
			w.dir.hosts = all[i : i+1]
			got, err := w.embed(t.Context(), embedAsk())
			if err != nil {
				t.Fatal(err)
			}
			w.checkVector(t, got)
			if got.Host != all[i].Peer || got.Usage.Price != 13*2 || got.Usage.Segments != 1 {
				t.Errorf("host %s, usage %+v", got.Host.Short(), got.Usage)
			}
		}
		if len(w.liars) > 0 {
			t.Errorf("penalised: %v", w.liars)
		}
	})
}

// TestEmbedLost loses the host in the midst of the text, in three ways. The next one
// begins anew.
func TestEmbedLost(t *testing.T) {
	for name, strike := range map[string]func(ctx context.Context, p *peer) error{
		"killed":     func(_ context.Context, p *peer) error { p.kill(); return nil },
		"black hole": func(_ context.Context, p *peer) error { p.swallow(); return nil },
		"fault":      func(context.Context, *peer) error { return errors.New("the engine is on fire") },
		"hung":       func(ctx context.Context, _ *peer) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var w *world
				var struck atomic.Int32
				w = newWorld(t, 4, func(i int) *engine {
					return &engine{width: 8, pace: 100 * time.Millisecond, at: func(ctx context.Context, pos int) error {
						if pos == 5 && struck.Add(1) <= 2 {
							return strike(ctx, w.order[i])
						}
						return nil
					}}
				})
				defer w.close()
				got, err := w.embed(t.Context(), embedAsk())
				if err != nil {
					t.Fatal(err)
				}
				w.checkVector(t, got)
				if struck.Load() != 3 || len(w.liars) > 0 {
					t.Errorf("%d hosts came to the fault, penalised: %v", struck.Load(), w.liars)
				}
			})
		})
	}
}

// TestEmbedSlow gives the hosts a long text: as long as the work goes on, none is late.
func TestEmbedSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, func(int) *engine { return &engine{width: 8, pace: 15 * time.Second} })
		defer w.close()
		got, err := w.embed(t.Context(), embedAsk())
		if err != nil {
			t.Fatal(err)
		}
		w.checkVector(t, got)
		if got.Usage.Segments != 1 {
			t.Errorf("%d segments: an honest slow host was given up", got.Usage.Segments)
		}
	})
}

func TestEmbedCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return &engine{width: 8, pace: time.Second} })
		defer w.close()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := w.embed(ctx, embedAsk()); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v", err)
		}
		time.Sleep(time.Second)
		list := w.keeper.all()
		if len(list) != 1 || list[0].Finish != inference.FinishCancelled || list[0].Pb.GetPrice() != 0 {
			t.Errorf("receipts %v", list)
		}
	})
}

// TestEmbedChoice holds which hosts are asked for a vector.
func TestEmbedChoice(t *testing.T) {
	for _, tt := range []struct {
		name   string
		widths []int // of the hosts' vectors
		asked  int
		want   *inference.EmbedError
	}{
		{"one of three can", []int{0, 8, 0}, 0, nil},
		{"its width", []int{0, 8}, 8, nil},
		{"another width", []int{0, 8}, 4, &inference.EmbedError{Width: 8, Asked: 4}},
		{"none can", []int{0, 0}, 0, &inference.EmbedError{}},
		{"none can, of any width", []int{0}, 8, &inference.EmbedError{Asked: 8}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, len(tt.widths), func(i int) *engine { return &engine{width: tt.widths[i]} })
				defer w.close()
				a := embedAsk()
				a.Width = tt.asked
				for range 4 {
					got, err := w.embed(t.Context(), a)
					var e *inference.EmbedError
					if tt.want == nil {
						if err != nil {
							t.Fatal(err)
						}
						w.checkVector(t, got)
					} else if !errors.As(err, &e) || *e != *tt.want || !errors.Is(err, inference.ErrInvalid) {
						t.Errorf("error %v, want %v", err, tt.want)
					}
				}
				for i, p := range w.order {
					if tt.widths[i] == 0 && p.dialled > 0 {
						t.Errorf("host %d, which makes no vectors, was called", i)
					}
				}
			})
		})
	}
	t.Run("only the offers say it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 2, func(int) *engine { return new(engine) })
			defer w.close()
			for i := range w.dir.hosts {
				w.dir.hosts[i].Capability = nil
			}
			var e *inference.EmbedError
			if _, err := w.embed(t.Context(), embedAsk()); !errors.As(err, &e) || e.Width != 0 {
				t.Errorf("error %v", err)
			}
		})
	})
	t.Run("seed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1, func(int) *engine { return &engine{width: 8} })
			defer w.close()
			a := embedAsk()
			a.Seed = seed(1)
			if _, err := w.embed(t.Context(), a); !errors.Is(err, inference.ErrInvalid) {
				t.Errorf("a vector with a seed: %v", err)
			}
		})
	})
}

// forger is a host that answers every call with one frame, which bend has changed
// before or after it was signed.
type forger struct {
	key    ed25519.PrivateKey
	before func(f *inference.Frame, r *inferencepb.Receipt)
	after  func(f *inference.Frame)
}

func (x *forger) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	call, err := inference.ParseCall(network, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pb, chain := call.Request.Pb, call.Before
	f := &inference.Frame{Vector: inference.EncodeVector([]float32{1, 0, 0, 0, 0, 0, 0, 0}), Finish: inference.FinishEOS}
	r := &inferencepb.Receipt{
		Request: call.Request.Hash[:], Model: call.Request.Model[:], ChainBefore: call.Before.H[:], Finish: "eos", PromptTokens: 13,
		Epoch: pb.GetEpoch(), Nonce: pb.GetNonce(), Escrow: pb.GetEscrow(),
	}
	if x.before != nil {
		x.before(f, r)
	}
	for _, t := range f.Tokens {
		chain.Add(t.ID)
	}
	if f.Vector != nil {
		chain.Bind(f.Vector)
	}
	r.ChainAfter, r.End, r.OutputTokens = chain.H[:], chain.Next, chain.Next
	signed, err := inference.SignReceipt(network, x.key, r)
	if err != nil {
		panic(err)
	}
	if err := f.SetReceipt(signed); err != nil {
		panic(err)
	}
	if x.after != nil {
		x.after(f)
	}
	doc, err := inference.AppendFrame(nil, f)
	if err != nil {
		panic(err)
	}
	w.Write(doc)
}

// addForger puts a forger into the world, with an offer of it in the router's hand.
func (w *world) addForger(n int, x *forger) *peer {
	x.key = testKey(n)
	p := &peer{w: w, addr: addressOf(n), accept: make(chan net.Conn), done: make(chan struct{})}
	w.peers[p.addr] = p
	server := &http.Server{Handler: x}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(p)
	}()
	w.closing = append(w.closing, func() {
		p.kill()
		server.Close()
		<-ended
	})
	w.router.hosts.offered(hostKey{p.addr, modelID}, w.funds(), &inferencepb.Offer{Accept: true, Capability: &inferencepb.Capability{
		Model: modelID[:], Name: "model", Context: 4096, Slots: 4, PricePrompt: 2, PriceOutput: 3, Embed: 8}})
	return p
}

// TestEmbedLies lets a forger answer first. Nothing of a lie reaches the client, and an
// honest host answers.
func TestEmbedLies(t *testing.T) {
	other := mesh.HashOf([]byte("other"))
	type frame = inference.Frame
	type receipt = inferencepb.Receipt
	token := []inference.FrameToken{{ID: 'a'}}
	for _, tt := range []struct {
		name   string
		before func(f *frame, r *receipt)
		after  func(f *frame)
		honest bool // it is bad luck, and no lie
	}{
		{"vector changed after signing", nil, func(f *frame) { f.Vector[0] ^= 1 }, false},
		{"vector taken away after signing", nil, func(f *frame) { f.Vector = nil }, false},
		{"vector added after signing", func(f *frame, _ *receipt) { f.Vector = nil }, func(f *frame) { f.Vector = make([]byte, 32) }, false},
		{"another width", func(f *frame, _ *receipt) { f.Vector = f.Vector[:16] }, nil, false},
		{"no vector", func(f *frame, _ *receipt) { f.Vector = nil }, nil, false},
		{"a token instead", func(f *frame, _ *receipt) { f.Vector, f.Tokens = nil, token }, nil, false},
		{"the end of tokens", func(f *frame, r *receipt) { f.Vector, f.Finish, r.Finish = nil, "length", "length" }, nil, false},
		{"text", func(f *frame, r *receipt) { f.Vector, f.Finish, r.Finish, f.Text = nil, "numeric", "numeric", "x" }, nil, false},
		{"prompt tokens", func(_ *frame, r *receipt) { r.PromptTokens = 5000 }, nil, false},
		{"price", func(_ *frame, r *receipt) { r.Price = 27 }, nil, false},
		{"request", func(_ *frame, r *receipt) { r.Request = other[:] }, nil, false},
		{"not finite", nil, func(f *frame) { copy(f.Vector, []byte{0, 0, 0xc0, 0x7f}) }, true},
		{"vector and token", nil, func(f *frame) { f.Tokens = token }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, func(int) *engine { return &engine{width: 8} })
				defer w.close()
				liar := w.addForger(50, &forger{before: tt.before, after: tt.after})
				w.dir.turns = [][]Candidate{{{Peer: liar.addr}}}
				got, err := w.embed(t.Context(), embedAsk())
				if err != nil {
					t.Fatal(err)
				}
				w.checkVector(t, got)
				if liar.dialled == 0 {
					t.Error("the forger was not asked")
				}
				if why, caught := w.liars[liar.addr]; caught == tt.honest || len(w.liars) > 1 {
					t.Errorf("penalised: %v, %s; all: %v", caught, why, w.liars)
				}
			})
		})
	}
	t.Run("a vector where tokens were asked for", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1, func(int) *engine { return new(engine) })
			defer w.close()
			liar := w.addForger(50, new(forger))
			w.dir.turns = [][]Candidate{{{Peer: liar.addr}}}
			got, err := w.collect(t.Context(), ask(5), nil)
			if err != nil {
				t.Fatal(err)
			}
			w.check(t, ask(5), 0, got[0])
			if _, caught := w.liars[liar.addr]; !caught {
				t.Error("it was not penalised")
			}
		})
	})
	// The forger is believed when it does not lie, so that the lies are what is caught.
	t.Run("none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1, func(int) *engine { return &engine{width: 8} })
			defer w.close()
			p := w.addForger(50, new(forger))
			w.dir.turns = [][]Candidate{{{Peer: p.addr}}}
			if got, err := w.embed(t.Context(), embedAsk()); err != nil || got.Host != p.addr || got.Vector[0] != 1 {
				t.Errorf("%v, %+v", err, got)
			}
		})
	})
}
