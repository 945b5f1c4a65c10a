package host

import (
	"context"
	"errors"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// maxPending bounds the tokens that wait for a slow reader. While there are as many,
// the engine computes no more of the answer.
const maxPending = 2 * inference.MaxFrameTokens

// leastLogProb stands for the logarithm of zero, which JSON cannot carry.
const leastLogProb = -9999

var (
	errStopped = errors.New("a stop string is complete")
)

// answer is one call that is being served. The engine's goroutine adds tokens, the
// handler's goroutine signs and writes them.
//
// How it ends, in the words of the receipt: cancelled takes the payer's signed
// Cancel, since it makes the payer owe the prompt once a token was there. A stream that
// breaks without one proves nothing about the payer, so the host signs aborted and
// forfeits the prompt fee; the tokens that it had signed before still count. Who breaks
// off too often is served no more for a while (patience.go).
type answer struct {
	h       *Host
	lane    *lane
	call    *inference.Call
	peer    mesh.Address
	prompt  []int32
	limit   int // of output tokens, the prefix included
	room    int // of output tokens that the memory holds; less than limit: it is broken off there
	started time.Time
	ticket  *ticket // nil when settled
	text    *inference.Text

	ctx       context.Context
	cancel    context.CancelCauseFunc
	unhook    func() bool
	cancelled atomic.Bool // by the payer's signature
	steps     atomic.Int64
	wake      chan struct{} // of one place: there is something to write
	space     chan struct{} // of one place: something was written
	began     bool          // it had a slot; compute's, as left is, which has returned before they are read
	left      bool          // the caller ended it, and not this host

	mu      sync.Mutex
	pending []step                 // guarded by mu
	tail    string                 // text that the end releases; guarded by mu
	vector  inference.Embedding    // instead of tokens; guarded by mu
	finish  inference.FinishReason // set last; guarded by mu

	paid func(receipt *inferencepb.Signed) // ends what is reserved of the payer's escrow; nil: nothing is

	// The handler's goroutine alone uses these.
	chain   inference.Chain
	receipt *inferencepb.Receipt
}

// step is a token with the text that it released.
type step struct {
	token inference.Token
	text  string
}

func newAnswer(h *Host, l *lane, call *inference.Call, peer mesh.Address, prompt []int32, limit, room int) *answer {
	pb := call.Request.Pb
	a := &answer{
		h: h, lane: l, call: call, peer: peer, prompt: prompt, limit: limit, room: room, started: time.Now(),
		text: inference.NewText(l.engine.Text(), pb.GetStop()),
		wake: make(chan struct{}, 1), space: make(chan struct{}, 1),
		chain: call.Before,
		receipt: &inferencepb.Receipt{
			Request: call.Request.Hash[:], Model: call.Request.Model[:], Choice: call.Choice,
			First: call.Before.Next, ChainBefore: call.Before.H[:], PromptTokens: uint32(len(prompt)),
			Fingerprint: l.info.Fingerprint, StartedMs: time.Now().UnixMilli(),
			Escrow: pb.GetEscrow(), Epoch: pb.GetEpoch(), Nonce: pb.GetNonce(),
		},
	}
	if call.From != nil {
		a.receipt.PrefixHost = call.From.Host[:]
	}
	return a
}

// settled reads the prefix and reports whether it has a stop string already. Whether
// it is complete otherwise is for the engine to say.
func (a *answer) settled() bool {
	for _, t := range a.call.Prefix {
		if _, stopped := a.text.Add(t); stopped {
			a.end(inference.FinishStop)
			return true
		}
	}
	return false
}

// compute waits for the slot and runs the engine.
func (a *answer) compute() {
	if err := a.h.await(a.ctx, a.lane, a.ticket); err != nil {
		a.end(a.broken())
		return
	}
	a.began = true
	if a.call.Request.Question.GetEmbed() {
		a.embed()
		return
	}
	from := time.Now()
	var first, last time.Time
	count := 0
	g := inference.Generation{
		Prompt: a.prompt, Prefix: a.call.Prefix, Sampling: a.call.Request.Question.GetSampling(),
		Tape: a.call.Request.Tape(a.call.Choice), MaxTokens: a.room,
		LogProbs: a.call.Request.Pb.GetLogprobs(), Top: int(a.call.Request.Pb.GetTopLogprobs()),
		IgnoreEOS: a.call.Request.Pb.GetIgnoreEos(), Constraint: a.call.Request.Question.GetConstraint(),
		Progress: func() { a.steps.Add(1) },
		Group:    a.call.Request.Payer, // and no Fee: a request's terms have a cap, which costs nothing to raise, and no bid
	}
	fin, err := a.lane.engine.Generate(a.ctx, g, func(t inference.Token) error {
		if pace := a.h.cfg.Pace; pace > 0 && count > 0 {
			select {
			case <-time.After(time.Until(last.Add(pace))):
			case <-a.ctx.Done():
			}
		}
		last = time.Now()
		if count++; count == 1 {
			first = last
		}
		return a.add(t)
	})
	a.h.free(a.lane, a.ticket, time.Since(from))
	if count > 0 {
		a.h.measured(a.lane, len(a.prompt)+len(a.call.Prefix), first.Sub(from), count-1, last.Sub(first))
	}
	switch {
	case errors.Is(err, errStopped):
	case err != nil && a.ctx.Err() == nil:
		a.h.cfg.Log.Error("the engine failed", "model", a.lane.info.Name, "error", err)
		a.end(inference.FinishAborted)
	case err != nil || a.ctx.Err() != nil && fin.Reason == inference.FinishCancelled:
		a.end(a.broken())
	case fin.Reason == inference.FinishAborted, fin.Reason == inference.FinishLength && a.room < a.limit:
		a.end(inference.FinishAborted)
	case fin.Reason == inference.FinishEOS || fin.Reason == inference.FinishLength || fin.Reason == inference.FinishNumeric:
		a.end(fin.Reason)
	default:
		a.h.cfg.Log.Error("the engine ended without a reason", "model", a.lane.info.Name, "finish", fin.Reason)
		a.end(inference.FinishAborted)
	}
}

// broken says how an answer ends whose context has.
func (a *answer) broken() inference.FinishReason {
	a.left = !errors.Is(context.Cause(a.ctx), errDraining)
	if a.cancelled.Load() {
		return inference.FinishCancelled
	}
	return inference.FinishAborted
}

// add takes a token from the engine. It waits for a slow reader, which the deadline of
// writing bounds.
func (a *answer) add(t inference.Token) error {
	text, stopped := a.text.Add(t.ID)
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.pending) >= maxPending {
		a.mu.Unlock()
		select {
		case <-a.space:
		case <-a.ctx.Done():
		}
		a.mu.Lock()
		if a.ctx.Err() != nil {
			return context.Cause(a.ctx)
		}
	}
	a.pending = append(a.pending, step{t, text})
	a.signal()
	if stopped {
		a.finish = inference.FinishStop
		return errStopped
	}
	return nil
}

// end sets the finish. An answer that others may continue keeps its text held back.
func (a *answer) end(reason inference.FinishReason) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch reason {
	case inference.FinishEOS, inference.FinishLength, inference.FinishNumeric:
		a.tail = a.text.End()
	}
	a.finish = reason
	a.signal()
}

func (a *answer) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// serve writes the answer's frames until its last one, and keeps the receipt.
func (a *answer) serve(w http.ResponseWriter) {
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // the server reads on, to notice a broken stream
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	// The header leaves with the first frame or heartbeat: one write here, and one wake-up of the caller, less.
	out := writer{w: w, rc: rc, timeout: a.h.cfg.WriteTimeout}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if a.ticket != nil {
			a.compute()
		}
	}()
	last := a.writeFrames(&out)
	<-done
	a.judge()
	// Off the stream, so that it can carry the next call meanwhile.
	a.h.tasks.Go(func() { a.keep(last) })
}

// writeFrames returns the signed final receipt. A reader that is gone or too slow
// ends the answer; the receipt is made nevertheless.
func (a *answer) writeFrames(out *writer) *inferencepb.Signed {
	beat := time.NewTicker(a.h.cfg.Heartbeat)
	defer beat.Stop()
	for {
		quiet := false
		select {
		case <-a.wake:
		case <-beat.C:
			quiet = true
		}
		f, signed := a.take()
		if f == nil {
			if !quiet {
				continue
			}
			f = &inference.Frame{Progress: &inference.Progress{Steps: int(a.steps.Load())}}
			if a.ticket != nil {
				f.Progress.Queue = a.h.place(a.lane, a.ticket)
			}
		}
		if err := out.frame(f); err != nil {
			a.cancel(errGone)
		}
		if f.Finish != inference.FinishOpen {
			return signed
		}
		beat.Reset(a.h.cfg.Heartbeat)
	}
}

// take returns the next frame of tokens and its signed receipt, or nil when there is
// nothing to say.
func (a *answer) take() (*inference.Frame, *inferencepb.Signed) {
	a.mu.Lock()
	n := min(len(a.pending), inference.MaxFrameTokens)
	steps := a.pending[:n:n]
	a.pending = a.pending[n:]
	finish, tail := inference.FinishOpen, ""
	var embedding inference.Embedding
	select {
	case a.space <- struct{}{}:
	default:
	}
	if len(a.pending) == 0 {
		a.pending = nil
		finish, tail = a.finish, a.tail
		embedding = a.vector
	} else {
		a.signal()
	}
	a.mu.Unlock()
	if n == 0 && finish == inference.FinishOpen {
		return nil, nil
	}
	f := &inference.Frame{Finish: finish}
	for _, s := range steps {
		f.Tokens = append(f.Tokens, a.frameToken(s.token))
		f.Text += s.text
		a.chain.Add(s.token.ID)
		a.computed(s.token.Hidden, s.token.Positions)
	}
	if embedding.Vector != nil {
		f.Vector = inference.EncodeVector(embedding.Vector)
		a.chain.Bind(f.Vector)
		a.computed(embedding.Hidden, embedding.Positions)
		a.receipt.FirstTokenMs = time.Now().UnixMilli()
	}
	f.Text += tail
	signed, err := a.sign(finish)
	if err == nil {
		err = f.SetReceipt(signed)
	}
	if err != nil {
		// Only a message that protobuf cannot encode gets here: the model's own name
		// or fingerprint is no UTF-8. Without a receipt there is no frame.
		a.h.cfg.Log.Error("no receipt could be signed", "model", a.lane.info.Name, "error", err)
		a.cancel(err)
		return &inference.Frame{Finish: inference.FinishAborted}, nil
	}
	return f, signed
}

// computed brings the receipt up to date about the positions.
func (a *answer) computed(hidden mesh.Hash, positions int) {
	a.receipt.HiddenRoot, a.receipt.Positions = nil, 0
	if !hidden.IsZero() {
		a.receipt.HiddenRoot, a.receipt.Positions = hidden[:], uint32(positions)
	}
}

func (a *answer) frameToken(t inference.Token) inference.FrameToken {
	f := inference.FrameToken{ID: t.ID}
	if !a.call.Request.Pb.GetLogprobs() {
		return f
	}
	f.Bytes, f.LogProb = a.lane.bytes(t.ID), finite(t.LogProb)
	for _, alt := range t.Top {
		f.Top = append(f.Top, inference.FrameToken{ID: alt.ID, Bytes: a.lane.bytes(alt.ID), LogProb: finite(alt.LogProb)})
	}
	return f
}

// finite keeps a log-probability within what JSON carries.
func finite(v float32) float32 {
	if !(v >= leastLogProb) || math.IsInf(float64(v), 1) {
		return leastLogProb
	}
	return v
}

// bytes returns the bytes of one token. An engine that knows them says so; else they
// are the text of that token alone.
func (l *lane) bytes(token int32) []byte {
	if e, ok := l.engine.(interface{ TokenBytes(int32) []byte }); ok {
		return e.TokenBytes(token)
	}
	d := l.engine.Text()
	return []byte(d.Add(token) + d.Flush())
}

// sign brings the running receipt up to date and signs it.
func (a *answer) sign(finish inference.FinishReason) (*inferencepb.Signed, error) {
	r, now := a.receipt, time.Now().UnixMilli()
	r.End, r.ChainAfter, r.Finish = a.chain.Next, a.chain.H[:], string(finish)
	r.OutputTokens = r.End - r.First
	if r.FirstTokenMs == 0 && r.OutputTokens > 0 {
		r.FirstTokenMs = now
	}
	if finish != inference.FinishOpen {
		r.EndedMs = now
	}
	price, err := inference.Price(a.lane.capability, len(a.prompt), len(a.call.Prefix), int(r.OutputTokens), finish)
	if err != nil {
		return nil, err
	}
	r.Price = uint64(price)
	return inference.SignReceipt(a.h.cfg.Network, a.h.cfg.Key, r)
}

// keep stores the final receipt, unless it says nothing.
func (a *answer) keep(signed *inferencepb.Signed) {
	finish := inference.FinishReason(a.receipt.GetFinish())
	a.h.meter.ended(finish, int(a.receipt.GetOutputTokens()))
	if broken := finish == inference.FinishAborted || finish == inference.FinishCancelled; broken && a.receipt.GetOutputTokens() == 0 {
		signed = nil // it says nothing
	}
	defer a.pay(signed)
	if signed == nil || a.h.cfg.Receipts == nil {
		return
	}
	if err := a.h.cfg.Receipts.Put(a.call.Request.Hash, signed); errors.Is(err, inference.ErrHeld) {
		a.h.cfg.Log.Warn("a receipt waits in memory", "request", a.call.Request.Hash, "error", err)
	} else if err != nil {
		a.h.cfg.Log.Error("a receipt was not kept", "request", a.call.Request.Hash, "error", err)
	}
}

// writer writes frames under a deadline. After a failure it is silent.
type writer struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
	buf     []byte
	err     error
}

func (w *writer) frame(f *inference.Frame) error {
	if w.err != nil {
		return w.err
	}
	if w.buf, w.err = inference.AppendFrame(w.buf[:0], f); w.err != nil {
		return w.err
	}
	w.rc.SetWriteDeadline(time.Now().Add(w.timeout))
	if _, w.err = w.w.Write(w.buf); w.err != nil {
		return w.err
	}
	return w.flush()
}

func (w *writer) flush() error {
	if w.err == nil {
		w.err = w.rc.Flush()
	}
	return w.err
}
