package host

import (
	"fmt"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// TestReplayLeavesNothing: a call that is refused as a replay is forgotten. Its context
// was hung on the host's, whose children nothing but the package context can count.
func TestReplayLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &engine{slots: 2, pace: time.Second}, Config{})
		defer b.close()
		_, signed := request(t, 2, "hello", 100, nil)
		first := b.post(2, "/v1/infer", callBody(t, signed))
		defer first.conn.Close()
		synctest.Wait()
		children := func() int { return reflect.ValueOf(b.host.ctx).Elem().FieldByName("children").Len() }
		before := children()
		for range 5 {
			if r := b.post(2, "/v1/infer", callBody(t, signed)).refusal(t); r.Code != inference.CodeReplay {
				t.Fatal(r)
			}
		}
		synctest.Wait()
		if after := children(); before != 1 || after != before {
			t.Errorf("%d hang on the host's context, and %d after five replays", before, after)
		}
	})
}

// reservingTill notes what was reserved, and takes all.
type reservingTill struct {
	mu   sync.Mutex
	most []mesh.Amount         // guarded by mu
	got  []*inferencepb.Signed // guarded by mu
}

func (r *reservingTill) Admit(_ *inference.Request, most mesh.Amount) (func(*inferencepb.Signed), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.most = append(r.most, most)
	return func(s *inferencepb.Signed) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got = append(r.got, s)
	}, nil
}
func (r *reservingTill) Affords(*inference.Request, mesh.Amount) error { return nil }
func (r *reservingTill) Pays(mesh.Address, mesh.Hash, mesh.Epoch, mesh.Amount) error {
	return nil
}
func (r *reservingTill) Voucher(*inferencepb.Signed) error { return nil }
func (r *reservingTill) Proof(mesh.Hash) ([]byte, error)   { return nil, nil }

// TestPrefixPrice: tokens that were handed over cost as much as those of the prompt.
func TestPrefixPrice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		till := new(reservingTill)
		b := newBench(t, &engine{slots: 2, pace: time.Millisecond}, Config{Till: till})
		defer b.close()
		prefix := make([]int32, 90)
		for i := range prefix {
			prefix[i] = 'a' + int32(i%26)
		}
		const want = 2*(1+90) + 3*10
		_, signed := request(t, 2, "x", 100, func(r *inferencepb.Request) { r.PriceCap = 2 + 3*100 + 2*90 })
		b.post(2, "/v1/infer", callBody(t, signed, prefix...)).rest(t)
		synctest.Wait()
		if got := b.kept.all(); len(got) != 1 || got[0].Pb.GetPrice() != want || len(till.most) != 1 || till.most[0] != want {
			t.Errorf("reserved %v, receipts %v, want %d", till.most, got, want)
		}
		_, signed = request(t, 2, "x", 100, func(r *inferencepb.Request) { r.PriceCap = 2 + 3*100 + 2*90 - 1 })
		if r := b.post(2, "/v1/infer", callBody(t, signed, prefix...)).refusal(t); r.Code != inference.CodeTooDear {
			t.Errorf("over the cap: %v", r)
		}
	})
}

// cancel sends the payer's signed Cancel.
func (b *bench) cancel(n byte, req *inference.Request) {
	b.t.Helper()
	order, err := inference.SignCancel(network, testKey(n), req.Hash, 0)
	if err != nil {
		b.t.Error(err)
		return
	}
	body, err := proto.Marshal(order)
	if err != nil {
		b.t.Error(err)
		return
	}
	b.post(n, "/v1/cancel", body).conn.Close()
}

// TestCancelBeforeToken: who cancels before a token came, in the queue or while the
// prompt is read, owes nothing.
func TestCancelBeforeToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		till := new(reservingTill)
		b := newBench(t, &engine{slots: 1, pace: time.Second}, Config{Till: till})
		defer b.close()
		reqs, streams := make([]*inference.Request, 2), make([]*stream, 2)
		for i := range reqs {
			var signed *inferencepb.Signed
			reqs[i], signed = request(t, 2, fmt.Sprint("question ", i), 30, nil)
			streams[i] = b.post(2, "/v1/infer", callBody(t, signed))
		}
		time.Sleep(100 * time.Millisecond)
		for _, i := range []int{1, 0} { // the one that waits, the one that is computed
			go b.cancel(2, reqs[i])
			tokens, _, finish, _ := streams[i].rest(t)
			synctest.Wait()
			if n := len(till.got); tokens != 0 || finish != inference.FinishCancelled || n == 0 || till.got[n-1] != nil {
				t.Errorf("answer %d: %d tokens, %s, owed %v", i, tokens, finish, till.got)
			}
		}
		if got := b.kept.all(); len(got) > 0 {
			t.Errorf("kept %v", got)
		}
	})
}
