package p2p

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/gonka-mesh/mesh"
)

const (
	joinParallel = 8 // dials at a time
	joinTimeout  = 8 * time.Second
	joinEvery    = time.Second // while too few peers are connected
	firstBackoff = 2 * time.Second
	lastBackoff  = 5 * time.Minute
	backAgain    = 300 * time.Millisecond // at most, before a peer that announced itself anew is dialled
	lonelyWait   = 15 * time.Second       // longest backoff of a node without any peer
)

// backoff is how long a peer is left alone after failed dials, and after it closed a
// connection.
type backoff struct {
	next  time.Time
	delay time.Duration
	up    bool      // the last dial worked, and the peer has not been missed since
	lost  time.Time // when it was missed; zero once it was heard of again
}

// dialEnd is the outcome of a dial.
type dialEnd struct {
	id peer.ID
	ok bool
}

// join keeps the node connected to MinPeers peers, until Close. Bootstrap peers
// and the best of the address book are dialled in parallel; each that fails
// waits twice as long for its next turn, with jitter. One that ends the connection
// waits as after a first failure: it may be full and has just made room for others,
// and if it restarts, not all its peers should come in the same instant.
func (h *Host) join() {
	var (
		waits  = make(map[peer.ID]*backoff)
		flying = make(map[peer.ID]bool)
		ends   = make(chan dialEnd, joinParallel)
	)
	for {
		h.missed(waits)
		wait := time.Minute
		if h.hellos.count() < h.cfg.MinPeers {
			now, turn := h.candidates(waits, flying)
			for _, info := range now {
				flying[info.ID] = true
				h.tasks.Go(func() { ends <- dialEnd{info.ID, h.tryPeer(info)} })
			}
			wait = min(joinEvery+rand.N(joinEvery/2), turn)
		}
		timer := time.NewTimer(wait)
		select {
		case <-h.ctx.Done():
			timer.Stop()
			return
		case end := <-ends:
			delete(flying, end.id)
			if end.ok {
				waits[end.id] = &backoff{delay: firstBackoff / 2, up: true}
			}
		case <-h.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// missed makes peers wait that were dialled and are connected no more. A node that
// has others comes back later than one that has none: those with nobody go first. Those whose
// turn came and went are forgotten: a node that has peers enough dials nobody, for days.
func (h *Host) missed(waits map[peer.ID]*backoff) {
	now, lonely := time.Now(), h.hellos.count() == 0
	for id, w := range waits {
		if !w.up && now.Sub(w.next) > lastBackoff {
			delete(waits, id) // it was not dialled again for so long that its failures are stale
			continue
		}
		if !w.up || h.hellos.passed(id) {
			continue
		}
		w.up, w.lost = false, now
		if !lonely {
			w.delay *= 2
		}
		w.later(now, lonelyWait)
	}
}

// candidates returns the peers whose turn it is to be dialled, so many that
// joinParallel are in flight, and how long it is until the turn of the next.
func (h *Host) candidates(waits map[peer.ID]*backoff, flying map[peer.ID]bool) (out []peer.AddrInfo, turn time.Duration) {
	now := time.Now()
	turn = time.Minute
	longest := lastBackoff
	if h.hellos.count() == 0 {
		longest = lonelyWait
	}
	for _, info := range append(slices.Clone(h.seeds), h.book.best(64)...) {
		if len(out)+len(flying) >= joinParallel {
			break
		}
		if info.ID == h.host.ID() || flying[info.ID] || h.hellos.passed(info.ID) || h.gate.refused(info.ID) != nil {
			continue
		}
		w := waits[info.ID]
		if w != nil && !w.lost.IsZero() && h.heardSince(info.ID, w.lost) {
			// It has started anew and says where it is.
			w.lost, w.next = time.Time{}, now.Add(rand.N(backAgain))
		}
		if w != nil && now.Before(w.next) && w.next.Sub(now) <= longest {
			turn = min(turn, w.next.Sub(now))
			continue
		}
		waits[info.ID] = waits[info.ID].later(now, longest) // also keeps it from coming twice
		out = append(out, info)
	}
	return out, turn
}

// heardSince reports whether a peer announced itself after a time.
func (h *Host) heardSince(id peer.ID, t time.Time) bool {
	a, err := addressOf(id)
	return err == nil && h.disc.table.heardSince(a, t)
}

// tryPeer dials a peer and reports whether that worked.
func (h *Host) tryPeer(info peer.AddrInfo) bool {
	ctx, cancel := context.WithTimeout(h.ctx, joinTimeout)
	defer cancel()
	// The swarm keeps a backoff of its own per address, which would count twice.
	if s, ok := h.host.Network().(interface{ Backoff() *swarm.DialBackoff }); ok {
		s.Backoff().Clear(info.ID)
	}
	err := h.connect(ctx, info)
	if err == nil {
		return true
	}
	if h.ctx.Err() == nil {
		h.book.fail(info.ID)
		h.log.Debug("dial failed", "peer", info.ID.String(), "err", err)
	}
	return false
}

// later returns the backoff after one more attempt: twice the last, within the
// longest, give or take half.
func (b *backoff) later(now time.Time, longest time.Duration) *backoff {
	if b == nil {
		b = &backoff{delay: firstBackoff / 2}
	}
	b.delay = min(2*b.delay, longest*2/3)
	b.next = now.Add(b.delay/2 + rand.N(b.delay))
	return b
}

// poke tells the joining loop, and whoever else watches the peers, to look again.
func (h *Host) poke() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, fn := range h.watches {
		fn()
	}
}

// knownAddrs returns the addresses of a peer that need no question to others.
func (h *Host) knownAddrs(id peer.ID) []ma.Multiaddr {
	addrs := append(h.host.Peerstore().Addrs(id), h.book.addrs(id)...)
	for _, s := range h.seeds {
		if s.ID == id {
			addrs = append(addrs, s.Addrs...)
		}
	}
	return ma.Unique(addrs)
}

// noteGood puts a peer into the address book with the addresses at which it can
// be dialled: the one that this node dialled, and those that it says it has.
func (h *Host) noteGood(c network.Conn) {
	id := c.RemotePeer()
	said, ok := h.hellos.get(id)
	if !ok {
		return
	}
	var addrs []ma.Multiaddr
	if c.Stat().Direction == network.DirOutbound && !isRelayed(c.RemoteMultiaddr()) {
		addrs = append(addrs, c.RemoteMultiaddr())
	}
	h.book.good(id, said.role, h.bookable(append(addrs, h.host.Peerstore().Addrs(id)...)))
}

// bookable orders addresses for the book: without loopback addresses, unless the
// peer has no others.
func (h *Host) bookable(addrs []ma.Multiaddr) []ma.Multiaddr {
	addrs = widestFirst(ma.Unique(addrs))
	wide := ma.FilterAddrs(addrs, func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) })
	if len(wide) > 0 {
		return wide
	}
	return addrs
}

// noteKnown writes all connected peers into the address book, and behind them those
// that only adverts name: whoever was online for a moment has met few itself.
func (h *Host) noteKnown() {
	for _, c := range h.host.Network().Conns() {
		h.noteGood(c)
	}
	for _, a := range h.Adverts(mesh.Hash{}) {
		id, err := peerID(a.Peer)
		if err == nil && id != h.host.ID() {
			h.book.heard(id, h.bookable(parseAddrs(a.Addrs)))
		}
	}
}

// keepBook refreshes and saves the address book, until Close.
func (h *Host) keepBook() {
	first := time.NewTimer(3 * time.Second) // a node that dies young still knows whom it met
	defer first.Stop()
	tick := time.NewTicker(bookEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-first.C:
		case <-tick.C:
		}
		h.noteKnown()
		if err := h.book.save(); err != nil {
			h.log.Warn("address book not saved", "err", err)
		}
	}
}
