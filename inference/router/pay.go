package router

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

const (
	payTries = 7
	payWait  = 5 * time.Second  // for one try
	payPause = 30 * time.Second // at most, between two: a host that starts anew is back by then
)

// pay sends the host a voucher for its receipt. One that does not arrive is made good
// by the next, which is for everything so far, or sent again by whoever has the purse.
func (r *Router) pay(receipt *inference.Receipt) {
	v, err := r.cfg.Purse.Acknowledge(receipt)
	if err != nil {
		r.cfg.Log.Error("an answer was not acknowledged", "host", receipt.Host.Short(), "error", err)
		return
	}
	if v == nil {
		return
	}
	newest := r.owing.begin(v)
	defer r.owing.end(v)
	pause := 100 * time.Millisecond
	for try := range payTries {
		if err = r.Deliver(r.ctx, v); err == nil || r.ctx.Err() != nil {
			return
		}
		if try+1 == payTries {
			break
		}
		select {
		case <-time.After(pause):
			pause = min(5*pause, payPause)
		case <-r.closing: // nobody waits for a host that is away
			return
		}
		if !newest() {
			return
		}
	}
	r.cfg.Log.Warn("a host did not take its voucher", "host", receipt.Host.Short(), "error", err)
}

// Deliver sends a voucher to its host, once. A host that lost receipts in a crash gets it
// anew for those that are left: the money is the same.
func (r *Router) Deliver(ctx context.Context, v *inference.SignedVoucher) error {
	err := r.sendVoucher(ctx, v)
	var refusal *inference.Refusal
	if errors.As(err, &refusal) && refusal.Receipts != nil && *refusal.Receipts < v.Receipts {
		if v, err = r.cfg.Purse.Recount(v, *refusal.Receipts); err != nil {
			return err
		}
		err = r.sendVoucher(ctx, v)
	}
	if err == nil {
		r.cfg.Purse.Taken(v)
	}
	return err
}

// owing is what vouchers on their way say, so that of those for a host that is away only
// the last is tried again.
type owing struct {
	mu   sync.Mutex
	most map[owingKey]*owed // guarded by mu, as is what it has
}

type owingKey struct {
	escrow mesh.Hash
	host   mesh.Address
	epoch  mesh.Epoch
}

type owed struct {
	amount mesh.Amount
	count  int // vouchers on their way
}

func keyOfVoucher(v *inference.SignedVoucher) owingKey { return owingKey{v.Escrow, v.Host, v.Epoch} }

// begin notes a voucher. newest says whether there is none for more.
func (o *owing) begin(v *inference.SignedVoucher) (newest func() bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.most == nil {
		o.most = make(map[owingKey]*owed)
	}
	k := keyOfVoucher(v)
	at := o.most[k]
	if at == nil {
		at = new(owed)
		o.most[k] = at
	}
	at.count++
	at.amount = max(at.amount, v.Amount)
	return func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return at.amount <= v.Amount
	}
}

func (o *owing) end(v *inference.SignedVoucher) {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := keyOfVoucher(v)
	if at := o.most[k]; at != nil {
		if at.count--; at.count == 0 {
			delete(o.most, k)
		}
	}
}

func (r *Router) sendVoucher(ctx context.Context, v *inference.SignedVoucher) error {
	ctx, cancel := context.WithTimeout(ctx, payWait)
	defer cancel()
	body, err := proto.Marshal(v.Signed)
	if err != nil {
		return err
	}
	req, err := newCall(ctx, http.MethodPost, v.Host, "/v1/voucher", body)
	if err != nil {
		return err
	}
	resp, err := r.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, inference.MaxRefusalBytes+1))
	if resp.StatusCode/100 != 2 {
		return inference.ParseRefusal(resp.StatusCode, said)
	}
	return nil
}
