package host

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// TestPatience: who breaks off answers again and again is told to come back later, as
// far as it does not pay for as much.
func TestPatience(t *testing.T) {
	for _, tt := range []struct {
		name    string
		paid    int // answers to the end first, of a prompt of 100 tokens
		broken  int // then, of as many
		how     string
		refused bool
	}{
		{"eight", 0, 8, "break", false},
		{"nine", 0, 9, "break", true},
		{"nine in the queue", 0, 9, "waiting", false},
		{"nine cancelled before a token", 0, 9, "cancel", true},
		{"nine of a good payer", 36, 9, "break", false},
		{"ten of a good payer", 36, 10, "break", true},
		{"nine that the engine failed", 0, 9, "fail", false},
		{"nine for nothing", 0, 9, "free", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &engine{slots: 1, pace: time.Second}
				b := newBench(t, e, Config{Till: new(reservingTill)})
				defer b.close()
				if tt.how == "free" {
					b.host.Remove(modelID)
					if err := b.host.Add(e, Prices{}); err != nil {
						t.Fatal(err)
					}
				}
				n, asked := 0, 2
				post := func(peer byte) (*inference.Request, *stream) {
					n++
					req, signed := request(t, peer, strings.Repeat("x", 97)+fmt.Sprintf("%03d", n), asked, nil)
					return req, b.post(peer, "/v1/infer", callBody(t, signed))
				}
				for range tt.paid {
					_, s := post(2)
					s.rest(t)
				}
				if tt.how == "fail" {
					e.fail, asked = errors.New("no memory"), 9
				}
				if tt.how == "waiting" { // one of two runs at once beyond the slot
					_, first := post(3)
					defer first.conn.Close()
					_, second := post(2)
					defer second.conn.Close()
				}
				for range tt.broken {
					req, s := post(2)
					switch tt.how {
					case "cancel":
						time.Sleep(100 * time.Millisecond)
						go b.cancel(2, req)
						s.rest(t)
					case "fail":
						if _, _, finish, _ := s.rest(t); finish != inference.FinishAborted {
							t.Errorf("the engine ended with %s", finish)
						}
					default:
						time.Sleep(100 * time.Millisecond)
						s.conn.Close()
					}
					synctest.Wait()
				}
				_, s := post(2)
				defer s.conn.Close()
				if refused := s.resp.StatusCode != 200; refused != tt.refused {
					t.Errorf("the next call got %d", s.resp.StatusCode)
				}
				if !tt.refused {
					return
				}
				if r := s.refusal(t); r.Code != inference.CodeBusy || r.WaitMs < 1000 {
					t.Errorf("refused with %+v", r)
				}
				if _, s := post(4); s.resp.StatusCode != 200 {
					t.Errorf("another peer got %d", s.resp.StatusCode)
				} else {
					s.rest(t)
				}
				time.Sleep(forgivenIn)
				if _, s := post(2); s.resp.StatusCode != 200 {
					t.Errorf("ten minutes later it got %d", s.resp.StatusCode)
				} else {
					s.rest(t)
				}
			})
		})
	}
}

// TestPatienceForgets bounds how many payers are remembered: those who broke off nothing
// go first.
func TestPatienceForgets(t *testing.T) {
	b := newBench(t, &engine{slots: 1}, Config{})
	defer b.close()
	now := time.Now()
	for i := range maxPatience {
		p := &patience{paid: 1}
		if i == 7 {
			p = &patience{broken: 9, lost: 9, forgiven: now}
		}
		b.host.patience[mesh.Address{byte(i), byte(i >> 8)}] = p
	}
	b.host.forget(now)
	if len(b.host.patience) != 1 || b.host.patient(mesh.Address{7}) == nil {
		t.Errorf("%d are remembered", len(b.host.patience))
	}
	for i := range maxPatience {
		b.host.patience[mesh.Address{byte(i), byte(i >> 8)}] = &patience{broken: 9, lost: 9, forgiven: now}
	}
	if b.host.forget(now); len(b.host.patience) != maxPatience-1 {
		t.Errorf("%d are remembered", len(b.host.patience))
	}
}
