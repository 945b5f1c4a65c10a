package router

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// impostor is a host written anew for tests: it speaks the protocol and bends it.
type impostor struct {
	key    ed25519.PrivateKey
	tokens []int32
	// bend changes the frame of token i and the receipt before it is signed; key may
	// be replaced. It returns raw bytes to send instead, if any.
	bend func(i int, f *inference.Frame, r *inferencepb.Receipt, key *ed25519.PrivateKey) string
}

func (x *impostor) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	call, err := inference.ParseCall(network, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	chain := call.Before
	for i := int(chain.Next); i < len(x.tokens); i++ {
		t := x.tokens[i]
		chain.Add(t)
		f := &inference.Frame{Tokens: []inference.FrameToken{{ID: t}}, Text: string(rune(t))}
		if i == len(x.tokens)-1 {
			f.Finish = inference.FinishLength
		}
		pb := call.Request.Pb
		r := &inferencepb.Receipt{
			Request: call.Request.Hash[:], Model: call.Request.Model[:], Choice: call.Choice,
			First: call.Before.Next, End: chain.Next, ChainBefore: call.Before.H[:], ChainAfter: chain.H[:],
			Finish: string(f.Finish), PromptTokens: 13, OutputTokens: chain.Next - call.Before.Next,
			Epoch: pb.GetEpoch(), Nonce: pb.GetNonce(), Escrow: pb.GetEscrow(),
		}
		if call.From != nil {
			r.PrefixHost = call.From.Host[:]
		}
		key, raw := x.key, ""
		if x.bend != nil {
			raw = x.bend(i, f, r, &key)
		}
		if raw == "" {
			signed, err := inference.SignReceipt(network, key, r)
			if err != nil {
				panic(err)
			}
			if err := f.SetReceipt(signed); err != nil {
				panic(err)
			}
			b, err := inference.AppendFrame(nil, f)
			if err != nil {
				panic(err)
			}
			raw = string(b)
		}
		if _, err := io.WriteString(w, raw); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		if sleep(req.Context(), time.Millisecond) != nil {
			return
		}
	}
}

// addImpostor puts an impostor into the world, the only host that the router knows at
// first.
func (w *world) addImpostor(n int, x *impostor) *peer {
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
	return p
}

// TestLies lets an impostor lie at token 5. Nothing of the lie reaches the client, and
// an honest host goes on.
func TestLies(t *testing.T) {
	other := mesh.HashOf([]byte("other"))
	for _, tt := range []struct {
		name   string
		bend   func(f *inference.Frame, r *inferencepb.Receipt, key *ed25519.PrivateKey) string
		honest bool // it is bad luck, and no lie
	}{
		{"token", func(f *inference.Frame, _ *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			f.Tokens[0].ID++
			return ""
		}, false},
		{"text", func(f *inference.Frame, _ *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			f.Text = "x"
			return ""
		}, false},
		{"chain", func(_ *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			r.ChainAfter = other[:]
			return ""
		}, false},
		{"chain before", func(_ *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			r.ChainBefore = other[:]
			return ""
		}, false},
		{"signature", func(_ *inference.Frame, _ *inferencepb.Receipt, key *ed25519.PrivateKey) string {
			*key = testKey(77)
			return ""
		}, false},
		{"request", func(_ *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			r.Request = other[:]
			return ""
		}, false},
		{"model", func(_ *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			r.Model = other[:]
			return ""
		}, false},
		{"choice", func(_ *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			r.Choice++
			return ""
		}, false},
		{"nonce", func(_ *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			r.Nonce = other[:16]
			return ""
		}, false},
		{"finish", func(f *inference.Frame, _ *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			f.Finish = inference.FinishEOS
			return ""
		}, false},
		{"cancelled by nobody", func(f *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			f.Finish, r.Finish = inference.FinishCancelled, "cancelled"
			return ""
		}, false},
		{"stop without stop strings", func(f *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			f.Finish, r.Finish = inference.FinishStop, "stop"
			return ""
		}, false},
		{"range", func(_ *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			r.End++
			r.OutputTokens++
			return ""
		}, false},
		{"prompt tokens", func(_ *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			r.PromptTokens += 1000
			return ""
		}, false},
		{"price", func(_ *inference.Frame, r *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			r.Price = 1 << 60
			return ""
		}, false},
		{"no receipt", func(*inference.Frame, *inferencepb.Receipt, *ed25519.PrivateKey) string {
			return "data: {\"tokens\":[{\"id\":3}]}\n\n"
		}, true},
		{"no JSON", func(*inference.Frame, *inferencepb.Receipt, *ed25519.PrivateKey) string {
			return "data: {\"tok\n\n"
		}, true},
		{"endless line", func(*inference.Frame, *inferencepb.Receipt, *ed25519.PrivateKey) string {
			return "data: " + strings.Repeat("x", inference.MaxFrameBytes+100)
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2, func(int) *engine { return &engine{pace: time.Millisecond} }, func(_ *hostConfig, c *Config) {
					if c != nil {
						c.Text = func(modelHash) inference.Detokenizer { return new(byteText) }
					}
				})
				defer w.close()
				a := ask(20)
				a.PriceCap = 10000
				tokens, _ := want(t, w.order[0].engine, a, 0)
				liar := w.addImpostor(50, &impostor{tokens: tokens,
					bend: func(i int, f *inference.Frame, r *inferencepb.Receipt, key *ed25519.PrivateKey) string {
						if i == 5 {
							return tt.bend(f, r, key)
						}
						return ""
					}})
				honest := w.dir.hosts
				w.dir.hosts = []Candidate{{Peer: liar.addr}}
				w.avoidOffers(liar.addr)
				got, err := w.collect(t.Context(), a, func(inference.Event) error {
					w.dir.mu.Lock()
					defer w.dir.mu.Unlock()
					w.dir.hosts = append(honest, Candidate{Peer: liar.addr})
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				w.check(t, a, 0, got[0])
				if got[0].hosts[0] != liar.addr || len(got[0].hosts) != 2 || got[0].usage.Segments != 2 {
					t.Errorf("spoke: %v", got[0].hosts)
				}
				if why, caught := w.liars[liar.addr]; caught == tt.honest {
					t.Errorf("penalised: %v, %s", caught, why)
				}
				if len(w.liars) > 1 {
					t.Errorf("honest hosts were penalised: %v", w.liars)
				}
			})
		})
	}
}

// avoidOffers gives the router an offer of a host that answers no offer streams.
func (w *world) avoidOffers(a mesh.Address) {
	w.router.hosts.offered(hostKey{a, modelID}, w.funds(), &inferencepb.Offer{Accept: true, Capability: &inferencepb.Capability{
		Model: modelID[:], Name: "model", Context: 4096, Slots: 4, PricePrompt: 2, PriceOutput: 3}})
}

// TestHonestImpostor checks that the fake host of TestLies is believed when it does
// not lie, so that the lies are what is caught.
func TestHonestImpostor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return new(engine) })
		defer w.close()
		tokens, _ := want(t, w.order[0].engine, ask(20), 0)
		p := w.addImpostor(50, &impostor{tokens: tokens})
		w.dir.hosts = []Candidate{{Peer: p.addr}}
		w.avoidOffers(p.addr)
		got, err := w.collect(t.Context(), ask(20), nil)
		if err != nil || len(got[0].tokens) != 20 || got[0].hosts[0] != p.addr {
			t.Errorf("%v, %+v", err, got[0])
		}
	})
}

// TestChatter lets a host advance its heartbeats for ever.
func TestChatter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(int) *engine { return new(engine) })
		defer time.Sleep(time.Second) // the impostor sleeps too
		defer w.close()
		x := &impostor{tokens: make([]int32, 1<<20)}
		x.bend = func(i int, _ *inference.Frame, _ *inferencepb.Receipt, _ *ed25519.PrivateKey) string {
			time.Sleep(100 * time.Millisecond)
			return fmt.Sprintf("data: {\"progress\":{\"steps\":%d}}\n\n", i)
		}
		p := w.addImpostor(50, x)
		honest := w.dir.hosts
		w.dir.hosts = []Candidate{{Peer: p.addr}}
		w.avoidOffers(p.addr)
		time.AfterFunc(time.Second, func() {
			w.dir.mu.Lock()
			defer w.dir.mu.Unlock()
			w.dir.hosts = honest
		})
		got, err := w.collect(t.Context(), ask(10), nil)
		if err != nil {
			t.Fatal(err)
		}
		if limit := w.router.cfg.Prefill; got[0].first > limit+time.Second || got[0].first < limit {
			t.Errorf("first token after %s, want %s", got[0].first, limit)
		}
	})
}

// refusing is a host that refuses every call with the same words.
func (w *world) addRefusing(n int, r *inference.Refusal) *peer {
	p := &peer{w: w, addr: addressOf(n), accept: make(chan net.Conn), done: make(chan struct{})}
	w.peers[p.addr] = p
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.WriteHeader(r.Status())
		fmt.Fprintf(rw, `{"code":%q,"message":%q,"prompt":%d,"max_tokens":%d,"context":%d,"wait_ms":%d}`,
			r.Code, r.Message, r.Prompt, r.MaxTokens, r.Context, r.WaitMs)
	})}
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
	w.avoidOffers(p.addr)
	return p
}

// TestNoProof: why a host shows no proof is said in its words, without the JSON around them.
func TestNoProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0, nil)
		defer w.close()
		p := w.addRefusing(60, &inference.Refusal{Code: inference.CodeInvalid, Message: "nothing is settled"})
		_, err := w.router.Proof(t.Context(), p.addr, mesh.Hash{1})
		if want := p.addr.Short() + " says: nothing is settled"; err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	})
}

// TestRefusals checks which refusals are believed and which lead to the next host.
func TestRefusals(t *testing.T) {
	long := &inference.Refusal{Code: inference.CodeTooLong, Message: "long", Prompt: 90, MaxTokens: 20, Context: 100}
	busy := &inference.Refusal{Code: inference.CodeBusy, Message: "busy", WaitMs: 100}
	unpaid := &inference.Refusal{Code: inference.CodeUnpaid, Message: "no money"}
	for _, tt := range []struct {
		name     string
		refusals []*inference.Refusal
		honest   bool // an honest host is there too
		want     error
	}{ // those who refuse do so once, as they make no offers
		{"one invalid, one honest", []*inference.Refusal{{Code: inference.CodeInvalid, Message: "no"}}, true, nil},
		{"one invalid alone", []*inference.Refusal{{Code: inference.CodeInvalid, Message: "no"}}, false, inference.ErrInvalid},
		{"two agree", []*inference.Refusal{long, long}, false, inference.ErrInvalid},
		{"busy, then honest", []*inference.Refusal{busy, busy, busy}, true, nil},
		{"all busy, and then gone", []*inference.Refusal{busy, busy}, false, inference.ErrNoHost},
		{"forbidden", []*inference.Refusal{{Code: inference.CodeForbidden}}, false, inference.ErrNoHost},
		{"unknown model", []*inference.Refusal{{Code: inference.CodeUnknownModel}}, true, nil},
		{"internal", []*inference.Refusal{{Code: inference.CodeInternal}}, true, nil},
		{"too dear", []*inference.Refusal{{Code: inference.CodeTooDear}}, false, inference.ErrTooDear},
		{"too dear, and one that refuses", []*inference.Refusal{{Code: inference.CodeTooDear}, {Code: inference.CodeForbidden}}, false, inference.ErrNoHost},
		{"unpaid, then honest", []*inference.Refusal{unpaid, unpaid}, true, nil},
		{"all unpaid", []*inference.Refusal{unpaid, unpaid}, false, inference.ErrUnpaid},
		{"unpaid, and busy and then gone", []*inference.Refusal{unpaid, busy}, false, inference.ErrNoHost},
		{"draining", []*inference.Refusal{{Code: inference.CodeDraining}}, true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, func(int) *engine { return new(engine) })
				defer w.close()
				if !tt.honest {
					w.dir.hosts = nil
				} else {
					// The honest one is the last choice.
					w.router.hosts.failed(hostKey{w.order[0].addr, modelID}, false)
				}
				for i, r := range tt.refusals {
					p := w.addRefusing(60+i, r)
					w.dir.hosts = append(w.dir.hosts, Candidate{Peer: p.addr})
				}
				got, err := w.collect(t.Context(), ask(10), nil)
				if !errors.Is(err, tt.want) {
					t.Fatalf("error %v, want %v", err, tt.want)
				}
				if err == nil {
					w.check(t, ask(10), 0, got[0])
				}
				var tooLong *inference.TooLongError
				if tt.refusals[0] == long && (!errors.As(err, &tooLong) || tooLong.Prompt != 90) {
					t.Errorf("the numbers are lost: %v", err)
				}
				if len(w.liars) > 0 {
					t.Errorf("penalised: %v", w.liars)
				}
			})
		})
	}
}

// TestSilentHosts connects to hosts that accept streams and never answer.
func TestSilentHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, func(int) *engine { return new(engine) })
		defer w.close()
		w.order[0].swallow()
		w.order[1].swallow()
		got, err := w.collect(t.Context(), ask(10), nil)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, ask(10), 0, got[0])
		if got[0].first > 50*time.Millisecond {
			t.Errorf("first token after %s: a host without an offer was waited for", got[0].first)
		}
		_, err = w.collect(context.Background(), inference.Ask{Model: "model"}, nil)
		if !errors.Is(err, inference.ErrInvalid) {
			t.Errorf("an empty ask: %v", err)
		}
	})
}
