package state

import "sync"

// gate counts the calls that are under way, and lets Close wait for them. It is not a
// lock: a call may be made within a call while Close waits.
type gate struct {
	mu     sync.Mutex
	idle   *sync.Cond
	calls  int
	closed bool
}

func (g *gate) init() { g.idle = sync.NewCond(&g.mu) }

// enter reports whether the call may go on, which then ends with leave.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.calls++
	return true
}

func (g *gate) open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.closed
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.calls--; g.calls == 0 {
		g.idle.Broadcast()
	}
}

// shut lets no further call in; it reports whether this is the first time.
func (g *gate) shut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	first := !g.closed
	g.closed = true
	return first
}

func (g *gate) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.calls > 0 {
		g.idle.Wait()
	}
}
