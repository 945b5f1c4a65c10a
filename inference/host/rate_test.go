package host

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// calls makes calls that cost nothing on one stream, and returns how many were not busy.
func (b *bench) calls(n byte, method, path string, count int) (taken int) {
	b.t.Helper()
	c := b.dial(n)
	defer c.Close()
	in := bufio.NewReader(c)
	for range count {
		req, err := http.NewRequest(method, "http://host"+path, strings.NewReader(""))
		if err != nil {
			b.t.Fatal(err)
		}
		go req.Write(c)
		resp, err := http.ReadResponse(in, req)
		if err != nil {
			b.t.Fatal(err)
		}
		said, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			b.t.Fatal(err)
		}
		if resp.StatusCode != http.StatusTooManyRequests {
			taken++
		} else if r := inference.ParseRefusal(resp.StatusCode, said); r.Code != inference.CodeBusy || r.WaitMs < 1 {
			b.t.Errorf("refused with %+v", r)
		}
	}
	return taken
}

// TestAsideRate: a peer makes calls that cost nothing only so fast, on however few streams,
// and others do not feel it.
func TestAsideRate(t *testing.T) {
	proof := "/v1/proof/" + mesh.HashOf([]byte("a receipt")).String()
	for _, tt := range []struct {
		method, path   string
		burst, another int // taken at once, and one second later
	}{
		{http.MethodGet, "/v1/ping", sideBurst, sideRate},
		{http.MethodPost, "/v1/cancel", sideBurst, sideRate},
		{http.MethodPost, "/v1/voucher", sideBurst, sideRate},
		{http.MethodGet, proof, sideBurst / proofCost, sideRate / proofCost},
	} {
		t.Run(tt.path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &engine{slots: 1}, Config{Till: new(reservingTill)})
				defer b.close()
				if n := b.calls(2, tt.method, tt.path, sideBurst+50); n != tt.burst {
					t.Errorf("%d were taken at once, want %d", n, tt.burst)
				}
				if n := b.calls(3, tt.method, tt.path, 10); n != 10 {
					t.Errorf("of another peer's ten %d were taken", n)
				}
				if n := b.calls(1, tt.method, tt.path, sideBurst+50); n != sideBurst+50 {
					t.Errorf("of the node's own %d were taken", n)
				}
				time.Sleep(time.Second)
				if n := b.calls(2, tt.method, tt.path, sideBurst+50); n != tt.another {
					t.Errorf("%d were taken a second later, want %d", n, tt.another)
				}
			})
		})
	}
}

// TestRatesForget bounds how many peers are remembered: those that were quiet go first.
func TestRatesForget(t *testing.T) {
	b := newBench(t, &engine{slots: 1}, Config{})
	defer b.close()
	busy := mesh.Address{7}
	for i := range maxRates {
		b.host.rates[mesh.Address{byte(i), byte(i >> 8)}] = rate.NewLimiter(sideRate, sideBurst)
	}
	b.host.rates[busy].SetLimit(0)
	b.host.rates[busy].AllowN(time.Now(), sideBurst)
	b.host.rateOf(mesh.Address{31: 1})
	if len(b.host.rates) != 2 || b.host.rateOf(busy).Allow() {
		t.Errorf("%d are remembered", len(b.host.rates))
	}
	for i := range maxRates {
		l := rate.NewLimiter(0, sideBurst)
		l.AllowN(time.Now(), sideBurst)
		b.host.rates[mesh.Address{byte(i), byte(i >> 8)}] = l
	}
	if b.host.rateOf(mesh.Address{31: 2}); len(b.host.rates) > maxRates {
		t.Errorf("%d are remembered", len(b.host.rates))
	}
}

// poorTill takes nobody, and counts how often it is asked.
type poorTill struct {
	reservingTill
	asked []mesh.Amount
}

func (p *poorTill) Affords(_ *inference.Request, least mesh.Amount) error {
	p.asked = append(p.asked, least)
	return &inference.Refusal{Code: inference.CodeUnpaid, Message: "nothing is left"}
}

// countingEngine counts the questions that it tokenized.
type countingEngine struct {
	engine
	encoded int
}

func (e *countingEngine) Encode(q *inferencepb.Question) ([]int32, error) {
	e.encoded++
	return e.engine.Encode(q)
}

// TestUnpaidIsCheap: who cannot pay at all is told so before its question is tokenized.
func TestUnpaidIsCheap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, till := &countingEngine{engine: engine{slots: 1}}, new(poorTill)
		b := newBench(t, e, Config{Till: till})
		defer b.close()
		for _, escrow := range [][]byte{nil, make([]byte, 32)} {
			_, signed := request(t, 2, "hello", 5, func(r *inferencepb.Request) { r.Escrow = escrow })
			if r := b.post(2, "/v1/infer", callBody(t, signed, 1, 2)).refusal(t); r.Code != inference.CodeUnpaid {
				t.Errorf("refused with %+v", r)
			}
		}
		if e.encoded != 0 || len(till.most) != 0 {
			t.Errorf("%d questions were tokenized, %d reserved", e.encoded, len(till.most))
		}
		const least = 2*(1+2) + 3 // a token of prompt, the prefix, and a token of the answer
		if len(till.asked) != 2 || till.asked[0] != least || till.asked[1] != least {
			t.Errorf("asked for %v, want %d", till.asked, least)
		}
		_, signed := request(t, 1, "hello", 5, nil) // to pay oneself moves nothing
		if n, _, _, _ := b.post(1, "/v1/infer", callBody(t, signed)).rest(t); n != 5 || len(till.asked) != 2 {
			t.Errorf("the node's own call: %d tokens, asked for %v", n, till.asked)
		}
	})
}
