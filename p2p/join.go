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
	lonelyWait   = 15 * time.Second // longest backoff of a node without any peer
)

// backoff is how long a peer is left alone after failed dials.
type backoff struct {
	next  time.Time
	delay time.Duration
}

// dialEnd is the outcome of a dial.
type dialEnd struct {
	id peer.ID
	ok bool
}

// join keeps the node connected to MinPeers peers, until Close. Bootstrap peers
// and the best of the address book are dialled in parallel; each that fails
// waits twice as long for its next turn, with jitter.
func (h *Host) join() {
	var (
		waits  = make(map[peer.ID]*backoff)
		flying = make(map[peer.ID]bool)
		ends   = make(chan dialEnd, joinParallel)
	)
	for {
		short := h.hellos.count() < h.cfg.MinPeers
		if short {
			for _, info := range h.candidates(waits, flying) {
				flying[info.ID] = true
				h.tasks.Go(func() { ends <- dialEnd{info.ID, h.tryPeer(info)} })
			}
		}
		wait := time.Minute
		if short {
			wait = joinEvery + rand.N(joinEvery/2)
		}
		timer := time.NewTimer(wait)
		select {
		case <-h.ctx.Done():
			timer.Stop()
			return
		case end := <-ends:
			delete(flying, end.id)
			if end.ok {
				delete(waits, end.id)
			}
		case <-h.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// candidates returns the peers whose turn it is to be dialled, so many that
// joinParallel are in flight.
func (h *Host) candidates(waits map[peer.ID]*backoff, flying map[peer.ID]bool) []peer.AddrInfo {
	now := time.Now()
	longest := lastBackoff
	if h.hellos.count() == 0 {
		longest = lonelyWait
	}
	var out []peer.AddrInfo
	for _, info := range append(slices.Clone(h.seeds), h.book.best(64)...) {
		if len(out)+len(flying) >= joinParallel {
			break
		}
		if w := waits[info.ID]; w != nil && now.Before(w.next) && w.next.Sub(now) <= longest {
			continue
		}
		if info.ID == h.host.ID() || flying[info.ID] || h.hellos.passed(info.ID) || h.gate.refused(info.ID) != nil {
			continue
		}
		waits[info.ID] = waits[info.ID].later(now, longest) // also keeps it from coming twice
		out = append(out, info)
	}
	return out
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

// poke tells the joining loop to look again.
func (h *Host) poke() {
	select {
	case h.wake <- struct{}{}:
	default:
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
