package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

const (
	payTries = 7
	payWait  = 5 * time.Second  // for one try
	payPause = 30 * time.Second // at most, between two: a host that starts anew is back by then
)

// pay sends the host a voucher for its receipt. One that does not arrive is made good
// by the next, which is for everything so far.
func (r *Router) pay(receipt *inference.Receipt) {
	voucher, err := r.cfg.Purse.Acknowledge(receipt)
	if err != nil {
		r.cfg.Log.Error("an answer was not acknowledged", "host", receipt.Host.Short(), "error", err)
		return
	}
	if voucher == nil {
		return
	}
	said := new(inferencepb.Voucher)
	body, err := proto.Marshal(voucher)
	if err = errors.Join(err, proto.Unmarshal(voucher.GetBody(), said)); err != nil {
		r.cfg.Log.Error("an answer was not acknowledged", "host", receipt.Host.Short(), "error", err)
		return
	}
	newest := r.owing.begin(said)
	defer r.owing.end(said)
	pause := 100 * time.Millisecond
	for try := range payTries {
		if err = r.sendVoucher(receipt, body); err == nil || r.ctx.Err() != nil {
			return
		}
		if try+1 == payTries {
			break
		}
		select {
		case <-time.After(pause):
			pause = min(5*pause, payPause)
		case <-r.ctx.Done():
			return
		}
		if !newest() {
			return
		}
	}
	r.cfg.Log.Warn("a host did not take its voucher", "host", receipt.Host.Short(), "error", err)
}

// owing is what vouchers on their way say, so that of those for a host that is away only
// the last is tried again.
type owing struct {
	mu   sync.Mutex
	most map[owingKey]*owed // guarded by mu, as is what it has
}

type owingKey struct {
	escrow, host string
	epoch        uint64
}

type owed struct {
	amount uint64
	count  int // vouchers on their way
}

func keyOfVoucher(v *inferencepb.Voucher) owingKey {
	return owingKey{string(v.GetEscrow()), string(v.GetHost()), v.GetEpoch()}
}

// begin notes a voucher. newest says whether there is none for more.
func (o *owing) begin(v *inferencepb.Voucher) (newest func() bool) {
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
	at.amount = max(at.amount, v.GetAmount())
	return func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return at.amount <= v.GetAmount()
	}
}

func (o *owing) end(v *inferencepb.Voucher) {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := keyOfVoucher(v)
	if at := o.most[k]; at != nil {
		if at.count--; at.count == 0 {
			delete(o.most, k)
		}
	}
}

func (r *Router) sendVoucher(receipt *inference.Receipt, body []byte) error {
	ctx, cancel := context.WithTimeout(r.ctx, payWait)
	defer cancel()
	req, err := newCall(ctx, receipt.Host, "/v1/voucher", body)
	if err != nil {
		return err
	}
	resp, err := r.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("it answered %s: %.200q", resp.Status, said)
	}
	return nil
}
