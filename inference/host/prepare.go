package host

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

const (
	// aloneWait is how long a call waits for its turn to be prepared. It is less than a
	// router waits for a sign of life.
	aloneWait = 500 * time.Millisecond
	// largeQuestion is the size in bytes from which a question is tokenized alone: about
	// 10 ms of a processor.
	largeQuestion = 32 << 10
)

// alone runs what may take a processor for long before the call has a slot: for one call
// at a time, and a peer with many waits for itself first.
func (h *Host) alone(ctx context.Context, peer mesh.Address, f func() error) error {
	h.mu.Lock()
	own := h.peers[peer].preparing
	h.mu.Unlock()
	limit := time.NewTimer(aloneWait)
	defer limit.Stop()
	for _, place := range []chan struct{}{own, h.preparing} {
		select {
		case place <- struct{}{}:
			defer func() { <-place }()
		case <-limit.C:
			return &inference.Refusal{Code: inference.CodeBusy, WaitMs: aloneWait.Milliseconds(), Message: "this host is busy with other large questions"}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return f()
}

// encode returns the prompt of a call.
func (h *Host) encode(ctx context.Context, l *lane, peer mesh.Address, q *inferencepb.Question) (prompt []int32, err error) {
	encode := func() (err error) {
		prompt, err = l.engine.Encode(q)
		return err
	}
	if proto.Size(q) < largeQuestion {
		err = encode()
	} else {
		err = h.alone(ctx, peer, encode)
	}
	if err == nil && len(prompt) == 0 {
		err = fmt.Errorf("%w: the prompt has no tokens", inference.ErrInvalid)
	}
	return prompt, err
}

// constrain refuses a constraint that the engine cannot follow.
func (h *Host) constrain(ctx context.Context, l *lane, peer mesh.Address, c *inferencepb.Constraint) error {
	if c == nil {
		return nil
	}
	e, ok := l.engine.(inference.Constrainer)
	if !ok {
		return fmt.Errorf("%w: the engine of this host cannot hold answers to a constraint", inference.ErrInvalid)
	}
	return h.alone(ctx, peer, func() error { return e.Constrain(c) })
}
