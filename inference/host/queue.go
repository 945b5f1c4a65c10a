package host

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// lane is one served model: its slots, and who waits for them. All below capability
// is guarded by Host.mu.
type lane struct {
	engine     inference.Engine
	info       inference.ModelInfo
	slots      int
	capability *inferencepb.Capability

	active  int
	load    map[mesh.Address]int // calls that run, per peer
	turns   map[mesh.Address]int // when a peer last got a slot, since the lane was idle
	turn    int
	waiting []*ticket         // in order of arrival
	prefill inference.Average // seconds per prompt token
	token   inference.Average // seconds between two tokens of an answer
	whole   inference.Average // seconds that a slot is taken
}

// ticket is a call that waits for a slot.
type ticket struct {
	peer    mesh.Address
	ready   chan struct{} // closed with the slot taken, or refused
	refused bool          // written before ready is closed
}

// enter counts a call of a peer and the bytes of its request in, or refuses it.
func (h *Host) enter(peer mesh.Address, size int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return &inference.Refusal{Code: inference.CodeDraining, Message: "this host is stopping"}
	}
	u := h.peers[peer]
	if u == nil {
		u = &usage{preparing: make(chan struct{}, 1)}
	}
	switch {
	case u.calls >= h.cfg.PerPeer:
		return &inference.Refusal{Code: inference.CodeBusy, WaitMs: 1000,
			Message: fmt.Sprintf("this peer has %d calls here already", u.calls)}
	case h.held+size > h.cfg.Memory || u.held+size > h.cfg.Memory/2:
		return &inference.Refusal{Code: inference.CodeBusy, WaitMs: 1000, Message: "no memory for another request now"}
	}
	u.calls++
	u.held += size
	h.held += size
	h.peers[peer] = u
	return nil
}

// hold counts more bytes of a call that was counted in.
func (h *Host) hold(peer mesh.Address, n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	u := h.peers[peer]
	if h.held+n > h.cfg.Memory || u.held+n > h.cfg.Memory/2 {
		return &inference.Refusal{Code: inference.CodeBusy, WaitMs: 1000, Message: "no memory for another request now"}
	}
	u.held += n
	h.held += n
	return nil
}

// leave takes back what enter counted.
func (h *Host) leave(peer mesh.Address, size int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	u := h.peers[peer]
	u.calls--
	u.held -= size
	h.held -= size
	if u.calls == 0 {
		delete(h.peers, peer)
	}
	h.checkIdle()
}

// queue takes a slot, or a place in the queue, or refuses when that is full. One
// peer may take half of the queue.
func (h *Host) queue(l *lane, peer mesh.Address) (*ticket, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return nil, &inference.Refusal{Code: inference.CodeDraining, Message: "this host is stopping"}
	}
	t := &ticket{peer: peer, ready: make(chan struct{})}
	if l.open(peer) {
		l.take(t)
		return t, nil
	}
	own := 0
	for _, w := range l.waiting {
		if w.peer == peer {
			own++
		}
	}
	if len(l.waiting) >= h.cfg.Queue || own >= max(1, h.cfg.Queue/2) {
		return nil, &inference.Refusal{Code: inference.CodeBusy, WaitMs: max(1, l.wait().Milliseconds()),
			Message: fmt.Sprintf("%d requests run and %d wait", l.active, len(l.waiting))}
	}
	l.waiting = append(l.waiting, t)
	return t, nil
}

// open reports whether a call of a peer gets a slot at once. One that has none yet may
// have one beyond the number, up to half as many again: it does not wait for others to
// end, and the engine, which shares its steps among payers, makes room.
func (l *lane) open(peer mesh.Address) bool {
	if l.active < l.slots && len(l.waiting) == 0 {
		return true
	}
	return l.spare(peer) && !slices.ContainsFunc(l.waiting, func(w *ticket) bool { return l.load[w.peer] == 0 })
}

// spare reports whether a peer may have a slot beyond the number.
func (l *lane) spare(peer mesh.Address) bool {
	return l.load[peer] == 0 && l.active < l.slots+l.slots/2
}

// take gives a ticket its slot.
func (l *lane) take(t *ticket) {
	l.active++
	l.load[t.peer]++
	l.turn++
	l.turns[t.peer] = l.turn
	close(t.ready)
}

// next returns the index of the ticket to serve: the oldest of the peer that has least
// running and, among those, got a slot longest ago.
func (l *lane) next() int {
	best := 0
	for i, t := range l.waiting {
		b := l.waiting[best].peer
		if cmp.Or(cmp.Compare(l.load[t.peer], l.load[b]), cmp.Compare(l.turns[t.peer], l.turns[b])) < 0 {
			best = i
		}
	}
	return best
}

// await blocks until the ticket has its slot.
func (h *Host) await(ctx context.Context, l *lane, t *ticket) error {
	select {
	case <-t.ready:
	case <-ctx.Done():
		h.mu.Lock()
		defer h.mu.Unlock()
		if i := slices.Index(l.waiting, t); i >= 0 {
			l.waiting = slices.Delete(l.waiting, i, i+1)
			return context.Cause(ctx)
		}
		// The slot came at the same moment.
		if !t.refused {
			h.giveBack(l, t)
		}
		return context.Cause(ctx)
	}
	if t.refused {
		return errDraining
	}
	return nil
}

// free ends the use of a slot and serves the next ticket.
func (h *Host) free(l *lane, t *ticket, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.whole.Add(took.Seconds())
	h.giveBack(l, t)
}

func (h *Host) giveBack(l *lane, t *ticket) {
	l.active--
	if l.load[t.peer]--; l.load[t.peer] == 0 {
		delete(l.load, t.peer)
	}
	for len(l.waiting) > 0 {
		i := l.next()
		w := l.waiting[i]
		if l.active >= l.slots && !l.spare(w.peer) {
			break
		}
		l.waiting = slices.Delete(l.waiting, i, i+1)
		l.take(w)
	}
	if l.active == 0 {
		clear(l.turns)
	}
}

// place returns how many tickets came before t; 0 when it has its slot.
func (h *Host) place(l *lane, t *ticket) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Index(l.waiting, t) + 1
}

// wait estimates when a new call would get a slot.
func (l *lane) wait() time.Duration {
	ahead := l.active + len(l.waiting) - l.slots + 1
	if ahead <= 0 {
		return 0
	}
	return time.Duration(float64(ahead) / float64(l.slots) * l.whole.V * float64(time.Second))
}

// measured notes the speed of an ended answer: tokens computed before the first new
// one and how long that took, and new tokens after the first and how long those took.
func (h *Host) measured(l *lane, before int, first time.Duration, after int, rest time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if before > 0 && first > 0 {
		l.prefill.Add(first.Seconds() / float64(before))
	}
	if after > 0 && rest > 0 {
		l.token.Add(rest.Seconds() / float64(after))
	}
}
