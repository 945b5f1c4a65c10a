package p2p

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// trackedPeers bounds the peers that one set of rates remembers.
const trackedPeers = 4096

// peerRates is a token bucket per peer. A bucket goes on falling while its peer
// goes on sending, down to minus four bursts: a flood gets nothing through.
type peerRates struct {
	rate  float64 // tokens per second
	burst float64

	mu      sync.Mutex
	buckets map[peer.ID]bucket // guarded by mu
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newPeerRates(rate, burst float64) *peerRates {
	return &peerRates{rate: rate, burst: burst, buckets: make(map[peer.ID]bucket)}
}

// take spends n tokens of a peer. ok says that it had them; flood says that it
// has sent three bursts more than it may.
func (r *peerRates) take(id peer.ID, n float64, now time.Time) (ok, flood bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, known := r.buckets[id]
	if !known {
		r.makeRoom(now)
		b = bucket{tokens: r.burst, at: now}
	}
	b.tokens = r.filled(b, now) - n
	b.at = now
	ok, flood = b.tokens >= 0, b.tokens <= -3*r.burst
	b.tokens = max(b.tokens, -4*r.burst)
	r.buckets[id] = b
	return ok, flood
}

// spend takes a token of a peer where there is one, and nothing otherwise.
func (r *peerRates) spend(id peer.ID, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, known := r.buckets[id]
	if !known {
		r.makeRoom(now)
		b = bucket{tokens: r.burst, at: now}
	}
	tokens := r.filled(b, now) - 1
	if tokens < 0 {
		return false
	}
	r.buckets[id] = bucket{tokens, now}
	return true
}

func (r *peerRates) filled(b bucket, now time.Time) float64 {
	return min(r.burst, b.tokens+now.Sub(b.at).Seconds()*r.rate)
}

// makeRoom forgets the peers whose buckets are full, and an eighth of the others
// when that was not enough. The caller holds mu.
func (r *peerRates) makeRoom(now time.Time) {
	if len(r.buckets) < trackedPeers {
		return
	}
	for id, b := range r.buckets {
		if r.filled(b, now) >= r.burst {
			delete(r.buckets, id)
		}
	}
	for id := range r.buckets {
		if len(r.buckets) <= trackedPeers*7/8 {
			break
		}
		delete(r.buckets, id)
	}
}

func (r *peerRates) forget(id peer.ID) {
	r.mu.Lock()
	delete(r.buckets, id)
	r.mu.Unlock()
}
