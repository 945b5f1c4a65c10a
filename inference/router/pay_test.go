package router

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// testPurse acknowledges all.
type testPurse struct {
	escrow mesh.Hash
	epoch  atomic.Uint64                             // after 7
	likely func(hosts []mesh.Address) []mesh.Address // nil: it cannot tell
	mu     sync.Mutex
	said   map[mesh.Address]inference.Voucher // guarded by mu
	taken  map[mesh.Address]mesh.Amount       // guarded by mu
}

func (p *testPurse) Escrow() ([]byte, mesh.Epoch) {
	if p.escrow.IsZero() {
		return nil, 7
	}
	return p.escrow[:], mesh.Epoch(7 + p.epoch.Load())
}

func (p *testPurse) Likely(_ mesh.Hash, _ mesh.Epoch, hosts []mesh.Address) []mesh.Address {
	if p.likely == nil {
		return nil
	}
	return p.likely(hosts)
}

func (p *testPurse) Acknowledge(r *inference.Receipt) (*inference.SignedVoucher, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.said[r.Host]
	v.Escrow, v.Host, v.Epoch = p.escrow, r.Host, mesh.Epoch(r.Pb.GetEpoch())
	v.Amount += mesh.Amount(r.Pb.GetPrice())
	if r.Whole() {
		v.Receipts++
	}
	p.said[r.Host] = v
	return p.sign(v)
}

func (p *testPurse) sign(v inference.Voucher) (*inference.SignedVoucher, error) {
	signed, err := inference.SignVoucher(network, testKey(1000), &v)
	return &inference.SignedVoucher{Voucher: v, Signed: signed}, err
}

func (p *testPurse) Recount(refused *inference.SignedVoucher, receipts uint64) (*inference.SignedVoucher, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.said[refused.Host]
	v.Receipts = receipts
	p.said[refused.Host] = v
	return p.sign(v)
}

func (p *testPurse) Taken(v *inference.SignedVoucher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken == nil {
		p.taken = make(map[mesh.Address]mesh.Amount)
	}
	p.taken[v.Host] = max(p.taken[v.Host], v.Amount)
}

// testTill takes all, and counts.
type testTill struct {
	mu                      sync.Mutex
	reserved, served, acked mesh.Amount // guarded by mu
	admitted                int         // guarded by mu
	whole, acks             uint64      // guarded by mu
	away                    int         // vouchers that are not taken first; guarded by mu
	there                   *uint64     // receipts that it has by its own account; guarded by mu
	poor                    func() bool // the escrow has nothing for this host; nil: it has
	old                     bool        // it is of a version that offers to anyone
	offers, refused         int         // guarded by mu
}

// refuses is what a host without a lane says.
func (t *testTill) refuses() error {
	if t.poor == nil || !t.poor() {
		return nil
	}
	return &inference.Refusal{Code: inference.CodeUnpaid, Message: "the escrow has nothing for this host"}
}

func (t *testTill) Admit(_ *inference.Request, most mesh.Amount) (func(*inferencepb.Signed), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.refuses(); err != nil {
		t.refused++
		return nil, err
	}
	t.reserved += most
	t.admitted++
	return func(s *inferencepb.Signed) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.reserved -= most
		if s == nil {
			return
		}
		if r, err := inference.ParseReceipt(network, s); err == nil {
			t.served += mesh.Amount(r.Pb.GetPrice())
			if r.Whole() {
				t.whole++
			}
		}
	}, nil
}

// Affords is what a call is asked before its question is looked at.
func (t *testTill) Affords(*inference.Request, mesh.Amount) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.refuses()
	if err != nil {
		t.refused++
	}
	return err
}

func (t *testTill) Pays(mesh.Address, mesh.Hash, mesh.Epoch, mesh.Amount) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.offers++
	if t.old {
		return nil
	}
	return t.refuses()
}

func (t *testTill) Voucher(s *inferencepb.Signed) error {
	v, err := inference.ParseVoucher(network, addressOf(1000), s)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.away--; t.away >= 0 {
		return errors.New("away")
	}
	if t.there != nil && v.Receipts > *t.there {
		return &inference.Refusal{Code: inference.CodeInvalid, Receipts: t.there, Message: "there are fewer"}
	}
	t.acked, t.acks = max(t.acked, v.Amount), max(t.acks, v.Receipts)
	return nil
}

func (t *testTill) Proof(mesh.Hash) ([]byte, error) { return nil, errors.New("none") }

// payWorld is a world whose hosts want money.
func payWorld(t *testing.T, n int, mk func(i int) *engine) (*world, *testPurse, []*testTill) {
	purse := &testPurse{escrow: mesh.HashOf([]byte("escrow")), said: make(map[mesh.Address]inference.Voucher)}
	var tills []*testTill
	w := newWorld(t, n, mk, func(h *hostConfig, r *Config) {
		if h != nil {
			tills = append(tills, new(testTill))
			h.Till = tills[len(tills)-1]
		}
		if r != nil {
			r.Purse = purse
		}
	})
	return w, purse, tills
}

// funds is what the router's requests draw on now.
func (w *world) funds() funds {
	escrow, epoch := w.router.draws()
	return funds{string(escrow), uint64(epoch)}
}

// sum checks that nothing is reserved, and returns what was served and acknowledged.
func sum(t *testing.T, tills []*testTill) (served, acked mesh.Amount) {
	t.Helper()
	for i, till := range tills {
		till.mu.Lock()
		if till.reserved != 0 {
			t.Errorf("host %d: %d are still reserved", i, till.reserved)
		}
		if till.served != till.acked {
			t.Errorf("host %d: %d served, %d acknowledged", i, till.served, till.acked)
		}
		if till.whole != till.acks && till.there == nil {
			t.Errorf("host %d: %d whole answers, %d acknowledged", i, till.whole, till.acks)
		}
		served += till.served
		acked += till.acked
		till.mu.Unlock()
	}
	return served, acked
}

// TestPay: what an answer costs is acknowledged, for each choice.
func TestPay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, purse, tills := payWorld(t, 2, func(int) *engine { return &engine{pace: time.Millisecond} })
		defer w.close()
		tills[0].away, tills[1].away = 3, 3 // a voucher is sent again
		a := ask(50)
		a.Choices = 3
		if _, err := w.collect(t.Context(), a, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if served, _ := sum(t, tills); served != 3*(13*2+50*3) {
			t.Errorf("%d served", served)
		}
		receipts := uint64(0)
		for _, v := range purse.said {
			receipts += v.Receipts
		}
		if receipts != 3 {
			t.Errorf("%d receipts are acknowledged, want 3", receipts)
		}
	})
}

// TestPayBoth: a host that was given up in the middle is paid for what it said, and
// without its prompt; the next one for prompt, prefix and the rest.
func TestPayBoth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hung atomic.Bool
		w, purse, tills := payWorld(t, 2, func(int) *engine {
			return &engine{pace: 10 * time.Millisecond, at: func(ctx context.Context, pos int) error {
				if pos == 20 && hung.CompareAndSwap(false, true) {
					<-ctx.Done()
				}
				return nil
			}}
		})
		defer w.close()
		got, err := w.collect(t.Context(), ask(60), nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		want := mesh.Amount(13*2 + 20*2 + 60*3)
		if served, _ := sum(t, tills); served != want || got[0].usage.Price != want {
			t.Errorf("%d served, %d by the usage, want %d", served, got[0].usage.Price, want)
		}
		if first, second := purse.said[got[0].hosts[0]], purse.said[got[0].hosts[1]]; first.Amount != 60 || first.Receipts != 0 || second.Receipts != 1 {
			t.Errorf("acknowledged: %+v, %+v", first, second)
		}
	})
}

// TestPayCancelled: who leaves pays for what was said until then.
func TestPayCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, tills := payWorld(t, 1, func(int) *engine { return &engine{pace: 10 * time.Millisecond} })
		defer w.close()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := w.collect(ctx, ask(500), nil); err == nil {
			t.Fatal("it was not cancelled")
		}
		time.Sleep(time.Minute)
		if served, _ := sum(t, tills); served <= 13*2 || served >= 13*2+500*3 {
			t.Errorf("%d served", served)
		}
	})
}

// TestPayAndClose: who asks and ends at once has paid, if the host is there.
func TestPayAndClose(t *testing.T) {
	for _, c := range []struct {
		name string
		away int // vouchers that are not taken first
		wait time.Duration
		paid bool
	}{
		{"the host is there", 0, time.Second, true},
		{"the host is away", 1000, 100 * time.Millisecond, false}, // the voucher goes out at the next start
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, purse, tills := payWorld(t, 1, func(int) *engine { return &engine{pace: time.Millisecond} })
				defer w.close()
				tills[0].away = c.away
				if _, err := w.collect(t.Context(), ask(50), nil); err != nil {
					t.Fatal(err)
				}
				from := time.Now()
				if err := w.router.Close(); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(from); took > c.wait {
					t.Errorf("Close took %s", took)
				}
				tills[0].mu.Lock()
				defer tills[0].mu.Unlock()
				if want := mesh.Amount(13*2 + 50*3); (tills[0].acked == want) != c.paid || (purse.taken[w.order[0].addr] == want) != c.paid {
					t.Errorf("%d acknowledged, %d known to be taken", tills[0].acked, purse.taken[w.order[0].addr])
				}
			})
		})
	}
}

// TestCancelAndClose: the answer that the end of a program cancels is paid for too.
func TestCancelAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, tills := payWorld(t, 1, func(int) *engine { return &engine{pace: 10 * time.Millisecond} })
		defer w.close()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := w.collect(ctx, ask(500), nil); err == nil {
			t.Fatal("it was not cancelled")
		}
		if err := w.router.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if served, _ := sum(t, tills); served <= 13*2 {
			t.Errorf("%d served", served)
		}
	})
}

// TestRecount: a host that lost receipts gets the voucher anew, for those that it has.
func TestRecount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, purse, tills := payWorld(t, 1, func(int) *engine { return &engine{pace: time.Millisecond} })
		defer w.close()
		for i := range 3 {
			if i == 2 {
				there := uint64(1)
				tills[0].mu.Lock()
				tills[0].there = &there
				tills[0].mu.Unlock()
			}
			if _, err := w.collect(t.Context(), ask(50), nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if served, _ := sum(t, tills); served != 3*(13*2+50*3) {
			t.Errorf("%d served", served)
		}
		purse.mu.Lock()
		defer purse.mu.Unlock()
		if v := purse.said[w.order[0].addr]; v.Receipts != 1 {
			t.Errorf("said at last: %+v", v)
		}
	})
}

// TestPoor: a request that draws on no escrow bothers a few hosts, none of which is held
// to have failed, and says what is missing.
func TestPoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0, nil)
		defer w.close()
		for i := range 6 {
			p := w.addRefusing(60+i, &inference.Refusal{Code: inference.CodeUnpaid, Message: "open an escrow"})
			w.dir.hosts = append(w.dir.hosts, Candidate{Peer: p.addr})
		}
		_, err := w.collect(t.Context(), ask(10), nil)
		if !errors.Is(err, inference.ErrUnpaid) || !strings.Contains(err.Error(), "3 were asked") || !strings.Contains(err.Error(), "open an escrow") {
			t.Errorf("%v", err)
		}
		w.router.hosts.mu.Lock()
		defer w.router.hosts.mu.Unlock()
		for k, r := range w.router.hosts.book {
			if r.failures > 0 {
				t.Errorf("%s is held to have failed", k.peer.Short())
			}
		}
		if len(w.liars) > 0 || w.announced > 0 {
			t.Errorf("%d tasks, penalised %v", w.announced, w.liars)
		}
	})
}
