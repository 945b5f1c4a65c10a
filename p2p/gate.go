package p2p

import (
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/gonka-mesh/mesh"
)

// Penalties. A peer collects points, which leak away; at cutPoints it is
// disconnected and refused for firstBlock, twice as long each time.
const (
	cutPoints     = 100
	leakPerSecond = 1.0
	firstBlock    = 10 * time.Minute
	longestBlock  = 24 * time.Hour
	foreignFor    = 10 * time.Minute // a peer of another network is not dialled again before

	pointsBadFrame = 20  // bytes that are no message
	pointsSilent   = 10  // a stream that was opened and never used
	pointsBusy     = 1   // a question beyond the peer's limits
	pointsOver     = 0.2 // a stream beyond the peer's limits: honest callers come in bursts

	maxRecords = 4096
)

// gate refuses connections of blocked and foreign peers.
type gate struct {
	cut func(id peer.ID, until time.Time, reason string) // disconnects; set once before use

	mu      sync.Mutex
	records map[peer.ID]*record // guarded by mu
}

// record is what the gate holds against a peer.
type record struct {
	points float64
	at     time.Time // when points was computed
	blocks int       // times blocked
	until  time.Time // refused before
	reason string
}

func newGate() *gate {
	return &gate{records: make(map[peer.ID]*record), cut: func(peer.ID, time.Time, string) {}}
}

// penalise adds points and blocks the peer when they reach cutPoints.
func (g *gate) penalise(id peer.ID, reason string, points float64) {
	if points <= 0 {
		return
	}
	now := time.Now()
	g.mu.Lock()
	r := g.record(id, now)
	r.leak(now)
	r.points += points
	blocked := r.points >= cutPoints && !now.Before(r.until)
	var until time.Time
	if blocked {
		until = r.block(now, reason)
	}
	g.mu.Unlock()
	if blocked {
		g.cut(id, until, reason)
	}
}

// foreign refuses a peer of another network for a while.
func (g *gate) foreign(id peer.ID, reason string) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.record(id, now)
	r.until, r.reason = now.Add(foreignFor), reason
}

// record returns the peer's record; a new one may push out the mildest old one.
// mu is held.
func (g *gate) record(id peer.ID, now time.Time) *record {
	if r := g.records[id]; r != nil {
		return r
	}
	if len(g.records) >= maxRecords {
		g.evict(now)
	}
	r := &record{at: now}
	g.records[id] = r
	return r
}

// evict drops what no longer matters, and if nothing is like that the record
// whose block ends first.
func (g *gate) evict(now time.Time) {
	var first peer.ID
	var end time.Time
	for id, r := range g.records {
		r.leak(now)
		if r.points == 0 && now.After(r.until.Add(firstBlock)) {
			delete(g.records, id)
			continue
		}
		if first == "" || r.until.Before(end) {
			first, end = id, r.until
		}
	}
	if len(g.records) >= maxRecords {
		delete(g.records, first)
	}
}

func (r *record) leak(now time.Time) {
	r.points = max(0, r.points-leakPerSecond*now.Sub(r.at).Seconds())
	r.at = now
}

func (r *record) block(now time.Time, reason string) time.Time {
	d := firstBlock << min(r.blocks, 10)
	r.blocks++
	r.points = 0
	r.until, r.reason = now.Add(min(d, longestBlock)), reason
	return r.until
}

// refused says until when and why a peer is refused.
func (g *gate) refused(id peer.ID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.records[id]
	if r == nil || !time.Now().Before(r.until) {
		return nil
	}
	return fmt.Errorf("refused until %s: %s", r.until.UTC().Format(time.RFC3339), r.reason)
}

// score returns the points that a peer has now.
func (g *gate) score(id peer.ID) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.records[id]
	if r == nil {
		return 0
	}
	r.leak(time.Now())
	return int(r.points)
}

// InterceptPeerDial refuses to dial blocked and foreign peers.
func (g *gate) InterceptPeerDial(id peer.ID) bool { return g.refused(id) == nil }

// InterceptAddrDial allows every address.
func (g *gate) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

// InterceptAccept allows every address: blocks are by identity, floods from one
// address are the resource manager's.
func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured refuses blocked peers, and peers without an ed25519 identity.
func (g *gate) InterceptSecured(_ network.Direction, id peer.ID, _ network.ConnMultiaddrs) bool {
	_, err := addressOf(id)
	return err == nil && g.refused(id) == nil
}

// InterceptUpgraded allows what InterceptSecured did.
func (g *gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// Penalise adds points to a peer's score for a reason that fits a log line. At
// 100 points, which leak away at one per second, the peer is disconnected and
// refused for ten minutes, and for twice as long each further time. Malformed
// messages count 20 points by themselves, streams beyond a limit a fifth.
func (h *Host) Penalise(a mesh.Address, reason string, points int) {
	if id, err := peerID(a); err == nil {
		h.gate.penalise(id, reason, float64(points))
	}
}

// cut disconnects a blocked peer.
func (h *Host) cut(id peer.ID, until time.Time, reason string) {
	h.log.Warn("peer blocked", "peer", id.String(), "reason", reason, "until", until.UTC().Format(time.RFC3339))
	// Closing waits for the peer's streams, and the caller may be one of them.
	go h.host.Network().ClosePeer(id)
}
