package native

import (
	"sync"

	"github.com/gonka-mesh/mesh/inference"
)

// maxWaiting is how many tokens of an answer wait for its reader. While there are as
// many, no more are computed.
const maxWaiting = 64

// outbox hands the tokens of one answer from the scheduler to the goroutine that
// called Generate. The scheduler never waits for it.
type outbox struct {
	mu     sync.Mutex
	tokens []inference.Token      // guarded by mu; not taken yet
	worked bool                   // guarded by mu; a step without a token since the last take
	finish inference.FinishReason // guarded by mu
	err    error                  // guarded by mu

	ready chan struct{} // holds one element when there is something to take
}

func newOutbox() *outbox {
	return &outbox{ready: make(chan struct{}, 1)}
}

func (o *outbox) signal() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// put adds a token and, where it ends the answer, the finish reason.
func (o *outbox) put(t inference.Token, finish inference.FinishReason) {
	o.mu.Lock()
	o.tokens = append(o.tokens, t)
	o.finish = finish
	o.mu.Unlock()
	o.signal()
}

// work notes that a step was done for the answer and gave no token.
func (o *outbox) work() {
	o.mu.Lock()
	o.worked = true
	o.mu.Unlock()
	o.signal()
}

// end closes the answer without another token.
func (o *outbox) end(finish inference.FinishReason, err error) {
	o.mu.Lock()
	o.finish, o.err = finish, err
	o.mu.Unlock()
	o.signal()
}

// full reports whether the reader has to take something before more is computed.
func (o *outbox) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.tokens) >= maxWaiting
}

// take returns everything that came since the last call. spare is the slice of an
// earlier call; it is filled again.
func (o *outbox) take(spare []inference.Token) (tokens []inference.Token, worked bool, finish inference.FinishReason, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	tokens, worked, finish, err = o.tokens, o.worked, o.finish, o.err
	clear(spare)
	o.tokens, o.worked = spare[:0], false
	return tokens, worked, finish, err
}
