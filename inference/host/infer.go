package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

const (
	headerTimeout = 5 * time.Second
	bodyTimeout   = 30 * time.Second // for all of it
	pieceTimeout  = 5 * time.Second  // for callPiece of it
	callPiece     = 64 << 10         // bytes of a call that are read at a time
	pointsBadCall = 10               // an honest router never sends one
)

type (
	callerKey struct{}
	wireKey   struct{}
)

// wire counts what began on a connection and what became a request, so that bytes
// which are no HTTP, and headers that never end, are held against the peer.
type wire struct {
	begun, calls atomic.Int32
}

// wireState follows the connections of the server.
func (h *Host) wireState(c net.Conn, state http.ConnState) {
	v, ok := h.wires.Load(c)
	if !ok {
		return
	}
	s := v.(*wire)
	switch state {
	case http.StateActive:
		s.begun.Add(1)
	case http.StateClosed:
		h.wires.Delete(c)
		if a, ok := h.caller(c); ok && a != h.self && s.begun.Load() > s.calls.Load() {
			h.cfg.Penalise(a, "infer: bytes that are no request", pointsBadCall)
		}
	}
}

// newServer returns the HTTP server of infer streams.
func (h *Host) newServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/infer", h.handleInfer)
	mux.HandleFunc("POST /v1/cancel", h.aside(1, h.handleCancel))
	mux.HandleFunc("POST /v1/voucher", h.aside(1, h.handleVoucher))
	mux.HandleFunc("GET /v1/proof/{receipt}", h.aside(proofCost, h.handleProof))
	mux.HandleFunc("GET /v1/ping", h.aside(1, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	return &http.Server{
		Handler:           h.guard(mux),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(h.cfg.Log.Handler(), slog.LevelDebug),
		ConnState:         h.wireState,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			s := new(wire)
			h.wires.Store(c, s)
			ctx = context.WithValue(ctx, wireKey{}, s)
			if a, ok := h.caller(c); ok {
				return context.WithValue(ctx, callerKey{}, a)
			}
			return ctx
		},
	}
}

// Serve answers infer streams until Shutdown, and then returns nil.
func (h *Host) Serve(ln net.Listener) error {
	if err := h.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve infer streams: %w", err)
	}
	return nil
}

// guard sets the deadlines of a request: a connection is pooled, so those of the one
// before still stand.
func (h *Host) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s, ok := r.Context().Value(wireKey{}).(*wire); ok {
			s.calls.Add(1)
		}
		rc := http.NewResponseController(w)
		rc.SetReadDeadline(time.Now().Add(bodyTimeout))
		rc.SetWriteDeadline(time.Now().Add(bodyTimeout + h.cfg.WriteTimeout))
		next.ServeHTTP(w, r)
	})
}

func refuse(w http.ResponseWriter, err error) {
	r := inference.Refuse(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(r.Status())
	json.NewEncoder(w).Encode(r) // the reader may be gone: nobody is left to tell
}

func callerOf(r *http.Request) (mesh.Address, error) {
	a, ok := r.Context().Value(callerKey{}).(mesh.Address)
	if !ok {
		return a, &inference.Refusal{Code: inference.CodeForbidden, Message: "the caller is not known"}
	}
	return a, nil
}

func (h *Host) handleInfer(w http.ResponseWriter, r *http.Request) {
	peer, err := callerOf(r)
	if err != nil {
		refuse(w, err)
		return
	}
	size := r.ContentLength
	if size < 0 || size > inference.MaxCallBytes {
		h.cfg.Penalise(peer, "infer: a call of a length that none has", pointsBadCall)
		refuse(w, fmt.Errorf("%w: a call states its length, at most %d bytes", inference.ErrInvalid, inference.MaxCallBytes))
		return
	}
	if err := h.enter(peer, 0); err != nil {
		h.meter.refused(err)
		refuse(w, err)
		return
	}
	held := int64(0)
	defer func() { h.leave(peer, held) }()
	body, err := h.readCall(w, r, peer, &held)
	if err != nil {
		h.meter.refused(err)
		refuse(w, err)
		return
	}
	a, err := h.open(r, peer, body)
	if err != nil {
		h.meter.refused(err)
		refuse(w, err)
		return
	}
	defer h.close(a)
	a.serve(w)
}

// readCall reads the body of a call. Memory is taken as the bytes come: who only
// states a length holds nothing that others want.
func (h *Host) readCall(w http.ResponseWriter, r *http.Request, peer mesh.Address, held *int64) ([]byte, error) {
	var body []byte
	rc, end := http.NewResponseController(w), time.Now().Add(bodyTimeout)
	for left := r.ContentLength; left > 0; left = r.ContentLength - int64(len(body)) {
		n := min(left, callPiece)
		if err := h.hold(peer, n); err != nil {
			return nil, err
		}
		*held += n
		next := time.Now().Add(pieceTimeout)
		if next.After(end) {
			next = end
		}
		rc.SetReadDeadline(next)
		body = slices.Grow(body, int(n))
		if _, err := io.ReadFull(r.Body, body[len(body):len(body)+int(n)]); err != nil {
			// A stream that broke may be an honest caller's; one that ends early or stalls is not.
			var late net.Error // a stream of p2p does not say os.ErrDeadlineExceeded
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &late) && late.Timeout() {
				h.cfg.Penalise(peer, "infer: half a call", pointsBadCall)
			}
			return nil, fmt.Errorf("%w: read the call: %w", inference.ErrInvalid, err)
		}
		body = body[:len(body)+int(n)]
	}
	return body, nil
}

// open admits a call.
func (h *Host) open(r *http.Request, peer mesh.Address, body []byte) (*answer, error) {
	call, err := inference.ParseCall(h.cfg.Network, body)
	if err != nil {
		h.cfg.Penalise(peer, "infer: "+err.Error(), pointsBadCall)
		return nil, err
	}
	if call.Request.Payer != peer {
		return nil, &inference.Refusal{Code: inference.CodeForbidden, Message: "only the payer may send its request"}
	}
	return h.admit(r.Context(), call, peer)
}

// admit decides whether a call is served, and gives it a slot or a place in the
// queue.
func (h *Host) admit(ctx context.Context, call *inference.Call, peer mesh.Address) (*answer, error) {
	h.mu.Lock()
	l := h.lanes[call.Request.Model]
	h.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("%w: %s is not served here", inference.ErrUnknownModel, call.Request.Model.Short())
	}
	if err := h.answerable(ctx, l, call, peer); err != nil {
		return nil, err
	}
	prompt, err := h.encode(ctx, l, peer, call.Request.Question)
	if err != nil {
		return nil, err
	}
	pb := call.Request.Pb
	limit, err := inference.Fit(len(prompt), int(pb.GetMaxTokens()), inference.OwnContext(l.capability))
	if err != nil {
		return nil, err
	}
	if len(call.Prefix) > limit {
		return nil, fmt.Errorf("%w: the prefix is longer than an answer may be", inference.ErrInvalid)
	}
	room, err := l.room(len(prompt), len(call.Prefix), int(pb.GetMaxTokens()), limit)
	if err != nil {
		return nil, err
	}
	if err := affordable(l.capability, pb, len(prompt), len(call.Prefix), limit); err != nil {
		return nil, err
	}
	a := newAnswer(h, l, call, peer, prompt, limit, room)
	if a.paid, err = h.charge(l, call, len(prompt), room); err != nil {
		return nil, err
	}
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	a.unhook = context.AfterFunc(h.ctx, func() { a.cancel(errDraining) })
	if err := h.register(a); err != nil {
		a.unhook() // or the host holds on to it until it stops
		a.cancel(err)
		a.pay(nil)
		return nil, err
	}
	if a.settled() {
		return a, nil
	}
	if a.ticket, err = h.queue(l, peer); err != nil {
		h.close(a)
		a.pay(nil)
		return nil, err
	}
	return a, nil
}

// answerable refuses a call that this host or its engine cannot answer, or will not.
func (h *Host) answerable(ctx context.Context, l *lane, call *inference.Call, peer mesh.Address) error {
	if h.charges(l) {
		if err := h.patient(peer); err != nil {
			return err
		}
		if err := h.solvent(l, call); err != nil {
			return err
		}
	}
	for i, t := range call.Prefix {
		if int(t) >= l.info.Vocab {
			return fmt.Errorf("%w: token %d of the prefix is not in the vocabulary", inference.ErrInvalid, i)
		}
	}
	if err := h.constrain(ctx, l, peer, call.Request.Question.GetConstraint()); err != nil {
		return err
	}
	if call.Request.Question.GetEmbed() && l.capability.GetEmbed() == 0 {
		return fmt.Errorf("%w: the engine of this host makes no embeddings", inference.ErrInvalid)
	}
	if err := healthOf(l.engine); err != nil {
		h.cfg.Log.Warn("the engine cannot answer", "model", l.info.Name, "error", err)
		return fmt.Errorf("%w: the engine of this host cannot answer now", inference.ErrBusy)
	}
	return nil
}

// room returns how many tokens of an answer the memory here holds, or refuses. Where
// a number was asked for, all of it has to fit. Where not, few answers come near the
// model's context: one that does is broken off, for a host with more memory.
func (l *lane) room(prompt, prefix, asked, limit int) (int, error) {
	room := min(limit, l.info.Context-prompt)
	if room == limit || asked == inference.MaxTokens && prefix < room {
		return room, nil
	}
	return 0, &inference.Refusal{Code: inference.CodeTooSmall, Message: fmt.Sprintf(
		"this host's memory holds %d tokens of the model's context of %d; the prompt has %d and up to %d were asked for",
		l.info.Context, inference.OwnContext(l.capability), prompt, limit)}
}

type runKey struct {
	request mesh.Hash
	choice  uint32
	first   uint32
}

func (a *answer) key() runKey {
	return runKey{a.call.Request.Hash, a.call.Choice, a.call.Before.Next}
}

// register notes a running answer. The same choice from the same prefix runs once.
func (h *Host) register(a *answer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running[a.key()] != nil {
		return &inference.Refusal{Code: inference.CodeReplay, Message: "this choice of this request runs here already"}
	}
	h.running[a.key()] = a
	return nil
}

// close forgets an answer.
func (h *Host) close(a *answer) {
	a.unhook()
	a.cancel(nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.running, a.key())
}
