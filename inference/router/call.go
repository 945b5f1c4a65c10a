package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh/inference"
)

// Why a host is given up.
const (
	whyConnect = "connect"
	whyRefused = "refused"
	whyReset   = "reset"
	whySilent  = "silent"
	whyLate    = "late"
	whyLied    = "lied"
	whyAborted = "aborted"
	whyFull    = "full"     // its memory holds no more of the answer
	whyDear    = "dear"     // it charges more than its advert says
	whyCap     = "cap"      // what is left of the request's price cap does not pay for the rest there
	whyCrowded = "crowded"  // this node has as many answers there as it may
	whyDiffers = "disagree" // it counts the prompt otherwise than another host
)

const (
	cancelWait   = time.Second // for the final receipt of a cancelled answer
	crowdedWait  = 500 * time.Millisecond
	drainWait    = time.Second // for the end of a complete answer's stream
	uploadSpeed  = 256 << 10   // bytes per second that a call may take to be sent
	maxPaceTimes = 4           // of a stream's own pace, before a token is late
)

// arrival is what the reader of a stream saw.
type arrival struct {
	frame *inference.Frame // nil for the response's header
	err   error            // the stream's end
}

// call is one choice on one host: a segment. A goroutine reads the stream; the
// choice's goroutine owns all the rest.
type call struct {
	c        *choice
	host     ranked
	cancel   context.CancelFunc // of the stream
	arrivals chan arrival
	sent     chan struct{} // closed once the call is written

	first   inference.Chain    // before the segment's first token
	receipt *inference.Receipt // the last verified; nil at first
	tokens  int

	cancelled bool // this node has signed a Cancel

	size      int // bytes of the call
	started   time.Time
	isSent    bool
	opened    bool // the host accepted
	lastByte  time.Time
	advanced  time.Time // progress before the first token
	progress  inference.Progress
	lastToken time.Time
	pace      inference.Average // seconds per token
	patience  time.Duration     // granted once per silence, for being late oneself
}

// call streams the rest of the choice from one host. It returns nil when the answer
// is complete, and *lost when another host has to go on.
func (c *choice) call(ctx context.Context, host ranked) error {
	r := c.q.r
	body, err := inference.EncodeCall(c.q.signed, c.index, c.tokens, c.from.GetSigned())
	if err != nil {
		return err
	}
	if !r.enter(host.peer) {
		busy := &inference.Refusal{Code: inference.CodeBusy, WaitMs: crowdedWait.Milliseconds(), Message: fmt.Sprintf(
			"%d answers for this node run there, as many as may at a time", maxCalls)}
		return &lost{why: whyCrowded, err: busy, refusal: busy}
	}
	streamCtx, cancel := context.WithCancel(r.ctx)
	k := &call{
		c: c, host: host, cancel: cancel, arrivals: make(chan arrival), sent: make(chan struct{}),
		first: c.chain, size: len(body), started: time.Now(),
	}
	r.hosts.started(k.key())
	if !r.background(func() {
		defer r.leave(host.peer)
		k.read(streamCtx, body)
	}) {
		r.leave(host.peer)
	}
	err = k.watch(ctx)
	var l *lost
	switch {
	case err == nil:
		c.ended(k, false)
		time.AfterFunc(drainWait, cancel) // the reader ends sooner, and keeps the stream pooled
	case errors.As(err, &l):
		cancel()
		c.ended(k, l.why != whyLied)
	default:
		r.abandon(k)
	}
	return err
}

func (k *call) key() hostKey { return hostKey{k.host.peer, k.c.q.model} }

// ended takes a segment into the choice's account and keeps its receipt. broken: the
// host was lost in the middle, and what came before is as good as any.
func (c *choice) ended(k *call, broken bool) {
	if k.receipt == nil {
		return
	}
	if k.pace.Known {
		c.q.r.hosts.paced(k.key(), time.Duration(k.pace.V*float64(time.Second)))
	}
	c.usage = c.account(k)
	if k.tokens > 0 {
		c.from = k.receipt
	}
	c.keeping.Go(func() { c.q.keep(k.receipt, broken) })
}

// read sends the call and passes on what comes, until the answer's last frame.
func (k *call) read(ctx context.Context, body []byte) {
	defer k.cancel()
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) {
			select {
			case <-k.sent: // a second attempt on another pooled stream
			default:
				close(k.sent)
			}
		},
	})
	req, err := newCall(traced, http.MethodPost, k.host.peer, "/v1/infer", body)
	if err != nil {
		k.pass(ctx, arrival{err: err})
		return
	}
	resp, err := k.c.q.r.transport.RoundTrip(req)
	if err != nil {
		k.pass(ctx, arrival{err: err})
		return
	}
	defer resp.Body.Close()
	defer drain(resp.Body)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, inference.MaxRefusalBytes+1))
		k.pass(ctx, arrival{err: inference.ParseRefusal(resp.StatusCode, text)})
		return
	}
	if !k.pass(ctx, arrival{}) {
		return
	}
	frames := inference.NewFrameReader(resp.Body)
	for {
		f, err := frames.Next()
		if !k.pass(ctx, arrival{frame: f, err: err}) || err != nil || f.Finish != inference.FinishOpen {
			return
		}
	}
}

func (k *call) pass(ctx context.Context, a arrival) bool {
	select {
	case k.arrivals <- a:
		return true
	case <-ctx.Done():
		return false
	}
}

// watch takes in what comes until the answer is complete, the host is lost, ctx ends
// or the client fails.
func (k *call) watch(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	renew := time.NewTicker(offerUsable / 2)
	defer renew.Stop()
	sent := k.sent
	for {
		at, l := k.deadline()
		at = at.Add(k.patience)
		timer.Reset(time.Until(at))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sent:
			sent, k.isSent = nil, true
			k.lastByte, k.advanced = time.Now(), time.Now()
		case a := <-k.arrivals:
			if done, err := k.take(a); done || err != nil {
				return err
			}
		case <-renew.C:
			k.renew()
		case <-timer.C:
			// A timer that is late tells that this machine is: what the host said may
			// be here, unread.
			if late := time.Since(at); late > 5*time.Millisecond && k.patience == 0 {
				k.patience = min(4*late, k.c.q.r.cfg.Silence)
				continue
			}
			return l
		}
	}
}

// renew keeps offers of other hosts at hand, so that an answer that loses its host
// late need not ask for them first.
func (k *call) renew() {
	r, tried, need := k.c.q.r, maps.Clone(k.c.tried), k.c.need()
	tried[k.host.peer] = true
	r.background(func() {
		if _, err := k.c.q.pick(r.ctx, tried, need, time.Now()); err != nil {
			r.cfg.Log.Debug("no host in reserve", "error", err)
		}
	})
}

// deadline returns until when the host has to say something, and what it is if not.
func (k *call) deadline() (time.Time, *lost) {
	cfg := &k.c.q.r.cfg
	if !k.isSent {
		limit := cfg.Connect + time.Duration(k.size/uploadSpeed)*time.Second
		return k.started.Add(limit), &lost{why: whyConnect, err: fmt.Errorf("the call was not sent within %s", limit)}
	}
	at, l := k.lastByte.Add(cfg.Silence), &lost{why: whySilent, err: fmt.Errorf("nothing came for %s", cfg.Silence)}
	sooner := func(t time.Time, format string, args ...any) {
		if t.Before(at) {
			at, l = t, &lost{why: whyLate, err: fmt.Errorf(format, args...)}
		}
	}
	if k.tokens == 0 {
		limit := cfg.FirstToken
		if k.first.Next > 0 {
			limit = 2 * cfg.InterToken
		}
		sooner(k.advanced.Add(limit), "no progress for %s before the first token", limit)
		sooner(k.started.Add(cfg.Prefill), "no token for %s", cfg.Prefill)
		return at, l
	}
	limit := max(cfg.InterToken, min(time.Duration(maxPaceTimes*k.pace.V*float64(time.Second)), 10*cfg.InterToken))
	sooner(k.lastToken.Add(limit), "no token for %s", limit)
	return at, l
}

// take handles one arrival.
func (k *call) take(a arrival) (done bool, err error) {
	now := time.Now()
	k.lastByte, k.patience = now, 0
	if a.err != nil {
		return false, k.broke(a.err)
	}
	k.isSent = true
	if a.frame == nil {
		k.opened, k.advanced = true, now
		return false, nil
	}
	f := a.frame
	if f.Heartbeat() {
		if f.Progress != nil && *f.Progress != k.progress {
			k.progress, k.advanced = *f.Progress, now
		}
		return false, nil
	}
	receipt, chain, err := k.verify(f)
	var l *lost
	switch {
	case errors.As(err, &l):
		return false, l
	case err != nil:
		return false, &lost{why: whyLied, err: err}
	}
	return k.c.advance(k, f, receipt, chain)
}

// broke says what the end of a stream means.
func (k *call) broke(err error) *lost {
	var refusal *inference.Refusal
	switch {
	case errors.As(err, &refusal):
		return &lost{why: whyRefused, err: err, refusal: refusal}
	case !k.opened:
		return &lost{why: whyConnect, err: err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &lost{why: whyReset, err: errors.New("the stream ended before the answer")}
	}
	return &lost{why: whyReset, err: err}
}

// timing measures the stream.
func (k *call) timing(now time.Time, tokens int) {
	if tokens == 0 {
		return
	}
	r, c := k.c.q.r, k.c
	if k.tokens == 0 {
		r.hosts.spoke(k.key(), now.Sub(k.started))
		if k.first.Next == 0 {
			r.meter.ttft.Observe(now.Sub(c.q.started).Seconds())
		}
	} else {
		k.pace.Add(now.Sub(k.lastToken).Seconds() / float64(tokens))
	}
	if k.tokens == 0 && k.first.Next > 0 {
		r.meter.gaps.Observe(now.Sub(c.lastToken).Seconds())
	}
	k.tokens += tokens
	k.lastToken, c.lastToken = now, now
	r.meter.tokens.Add(float64(tokens))
}

// abandon ends a call whose client is gone: the host gets the payer's signed Cancel
// and a moment to send its final receipt.
func (r *Router) abandon(k *call) {
	if !k.isSent {
		k.cancel()
		return
	}
	r.pays(func() {
		defer k.cancel()
		var lie error
		if k.receipt == nil || k.receipt.Finish == inference.FinishOpen {
			k.cancelled = true
			r.background(func() { r.sendCancel(k) })
			if lie = k.lastReceipt(); lie != nil {
				r.caught(k.key(), lie)
			}
		}
		if k.receipt != nil {
			k.c.q.keep(k.receipt, lie == nil)
		}
	})
}

// caught notes and tells that a host lied.
func (r *Router) caught(k hostKey, lie error) {
	r.hosts.failed(k, true)
	r.cfg.Penalise(k.peer, "infer: "+lie.Error(), pointsLiar)
}

// lastReceipt reads on until the answer's final receipt, or not for long, and returns
// the lie that it was told, if any. Nobody gets to see the tokens.
func (k *call) lastReceipt() (lie error) {
	limit := time.NewTimer(cancelWait)
	defer limit.Stop()
	for {
		select {
		case a := <-k.arrivals:
			if a.err != nil {
				return nil
			}
			if a.frame == nil || a.frame.Heartbeat() {
				continue
			}
			receipt, chain, err := k.verify(a.frame)
			var l *lost
			switch {
			case errors.As(err, &l):
				return nil
			case err != nil:
				return err
			}
			k.receipt, k.c.chain = receipt, chain
			if receipt.Finish != inference.FinishOpen {
				return nil
			}
		case <-limit.C:
			return nil
		case <-k.c.q.r.ctx.Done():
			return nil
		}
	}
}

// sendCancel posts the payer's order to end the choice.
func (r *Router) sendCancel(k *call) {
	ctx, cancel := context.WithTimeout(r.ctx, cancelWait)
	defer cancel()
	signed, err := inference.SignCancel(r.cfg.Network, r.cfg.Key, k.c.q.req.Hash, k.c.index)
	if err != nil {
		r.cfg.Log.Error("a cancel was not signed", "error", err)
		return
	}
	body, err := proto.Marshal(signed)
	if err != nil {
		r.cfg.Log.Error("a cancel was not encoded", "error", err)
		return
	}
	req, err := newCall(ctx, http.MethodPost, k.host.peer, "/v1/cancel", body)
	if err != nil {
		return
	}
	resp, err := r.transport.RoundTrip(req)
	if err != nil {
		r.cfg.Log.Debug("a cancel did not arrive", "host", k.host.peer, "error", err)
		return
	}
	defer resp.Body.Close()
	drain(resp.Body)
}
