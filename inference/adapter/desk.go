package adapter

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gonka-mesh/mesh/inference"
)

var (
	errClosed  = errors.New("the engine is closed")
	errStalled = errors.New("the server gave no sign of life")
)

// desk is what the engines of all servers have in common: places for requests,
// their ends, and what is known about load and health.
type desk struct {
	info   inference.ModelInfo
	stall  time.Duration
	places chan struct{} // one element for each request being decoded
	watch  *watch
	ctx    context.Context // done when the engine is closed
	close  context.CancelFunc
	jobs   sync.WaitGroup // entered with mu held
	queued atomic.Int32

	mu     sync.Mutex
	closed bool // guarded by mu
}

func newDesk(cfg Config, info inference.ModelInfo) *desk {
	d := &desk{info: info, stall: cfg.Stall, places: make(chan struct{}, info.Slots)}
	d.ctx, d.close = context.WithCancel(context.Background())
	return d
}

func (d *desk) start(log *slog.Logger, every time.Duration, load func(context.Context) (inference.Load, error)) {
	d.watch = newWatch(d.ctx, log, every, load)
}

// Info describes the model.
func (d *desk) Info() inference.ModelInfo { return d.info }

// Healthy returns why the server cannot answer now, or nil.
func (d *desk) Healthy() error { return d.watch.healthy() }

// Load reports how busy the server is, with the requests of others: what it said
// last, or what was sent to it, if that is more.
func (d *desk) Load() inference.Load {
	l := d.watch.last()
	l.Active = max(l.Active, len(d.places))
	l.Queued = max(l.Queued, int(d.queued.Load()))
	return l
}

// Close ends the running answers with finish reason aborted. The server goes on.
func (d *desk) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.close()
	d.jobs.Wait()
	d.watch.wait()
	return nil
}

func (d *desk) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.jobs.Add(1)
	}
	return !d.closed
}

// run calls work with a place of its own. Its context ends with the caller's, with
// the engine, and when alive is not called for the stall time.
func (d *desk) run(ctx context.Context, work func(ctx context.Context, alive func()) (inference.FinishReason, error)) (inference.Finish, error) {
	if reason := d.place(ctx); reason != inference.FinishOpen {
		return inference.Finish{Reason: reason}, nil
	}
	defer func() { <-d.places }()
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(d.ctx, func() { cancel(errClosed) })()
	timer := time.AfterFunc(d.stall, func() { cancel(errStalled) })
	defer timer.Stop()
	reason, err := work(inner, func() { timer.Reset(d.stall) })
	return conclude(ctx, inner, reason, err)
}

// place waits for one of the places.
func (d *desk) place(ctx context.Context) inference.FinishReason {
	if ctx.Err() != nil {
		return inference.FinishCancelled
	}
	d.queued.Add(1)
	defer d.queued.Add(-1)
	select {
	case d.places <- struct{}{}:
		return inference.FinishOpen
	case <-ctx.Done():
		return inference.FinishCancelled
	case <-d.ctx.Done():
		return inference.FinishAborted
	}
}

// emitError wraps what emit returned, so that it is handed on as it is.
type emitError struct{ err error }

func (e *emitError) Error() string { return e.err.Error() }

// conclude sorts out why an answer ended.
func conclude(ctx, inner context.Context, reason inference.FinishReason, err error) (inference.Finish, error) {
	var emitted *emitError
	switch {
	case errors.As(err, &emitted):
		return inference.Finish{Reason: inference.FinishCancelled}, emitted.err
	case err == nil:
		return inference.Finish{Reason: reason}, nil
	case ctx.Err() != nil:
		return inference.Finish{Reason: inference.FinishCancelled}, nil
	case errors.Is(context.Cause(inner), errClosed):
		return inference.Finish{Reason: inference.FinishAborted}, nil
	case inner.Err() != nil:
		return inference.Finish{}, context.Cause(inner)
	}
	return inference.Finish{}, err
}

// retry asks a server that is full again after a moment, while no token came.
func retry(ctx context.Context, generate func() (reason inference.FinishReason, untouched bool, err error)) (inference.FinishReason, error) {
	for try := 1; ; try++ {
		reason, untouched, err := generate()
		if !errors.Is(err, inference.ErrBusy) || try == busyTries || !untouched {
			return reason, err
		}
		select {
		case <-ctx.Done():
			return inference.FinishOpen, ctx.Err()
		case <-time.After(busyWait << (try - 1)):
		}
	}
}
