package p2p

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

// Bounds of the table of adverts.
const (
	tableAdverts = 8192
	tableBytes   = 16 << 20
)

// advertTable holds the latest advert of each peer: verified, not expired, and
// bounded in number and bytes. A goodbye stays, unlisted, until it expires, so
// that a replay cannot bring the peer back.
type advertTable struct {
	network  mesh.NetworkID
	maxCount int
	maxBytes int

	mu      sync.Mutex
	entries map[mesh.Address]*advertEntry // guarded by mu
	bytes   int                           // sum of entry sizes; guarded by mu
	via     map[peer.ID]int               // entries by who passed them on; guarded by mu
}

type advertEntry struct {
	advert Advert
	signed *p2ppb.SignedAdvert
	size   int
	via    peer.ID
	own    bool // never evicted
	heard  time.Time
}

func newAdvertTable(network mesh.NetworkID) *advertTable {
	return &advertTable{
		network: network, maxCount: tableAdverts, maxBytes: tableBytes,
		entries: make(map[mesh.Address]*advertEntry),
		via:     make(map[peer.ID]int),
	}
}

// source is where an advert came from.
type source struct {
	via    peer.ID      // who passed it on
	author mesh.Address // who must have made it; zero for anyone
	own    bool
}

// admit verifies an advert and takes it in, unless the table has it already. An
// error that is not errStale is a fault of whoever passed it on.
func (t *advertTable) admit(s *p2ppb.SignedAdvert, from source, now time.Time) error {
	a, err := parseAdvert(t.network, s.Body)
	if err != nil {
		return err
	}
	if !from.author.IsZero() && a.Peer != from.author {
		return fmt.Errorf("advert of %s sent by %s", a.Peer, from.author)
	}
	if known, err := t.compare(a, s.Body, now); known || err != nil {
		return err
	}
	if err := a.checkTime(now); err != nil {
		return err
	}
	if !advertDomain.Verify(a.Peer, t.network, s.Body, s.Signature) {
		return errors.New("advert: wrong signature")
	}
	t.insert(&advertEntry{advert: a, via: from.via, own: from.own, heard: now,
		signed: &p2ppb.SignedAdvert{Body: s.Body, Signature: s.Signature},
		// The decoded form holds the bytes a second time, and slices around them.
		size: 2*len(s.Body) + 512})
	return nil
}

// compare reports whether the table has just this advert; a newer one in the
// table makes it stale.
func (t *advertTable) compare(a Advert, body []byte, now time.Time) (known bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[a.Peer]
	if e == nil || !e.advert.Expires.After(now) {
		return false, nil
	}
	if a.Seq == e.advert.Seq && bytes.Equal(body, e.signed.Body) {
		return true, nil
	}
	if a.Seq <= e.advert.Seq {
		return false, errStale
	}
	return false, nil
}

// insert takes an entry in unless a newer one came first, and makes room.
func (t *advertTable) insert(e *advertEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.entries[e.advert.Peer]
	if old != nil && old.advert.Seq >= e.advert.Seq && old.advert.Expires.After(e.heard) {
		return
	}
	if old != nil {
		t.drop(old)
	}
	t.entries[e.advert.Peer] = e
	t.via[e.via]++
	t.bytes += e.size
	for (len(t.entries) > t.maxCount || t.bytes > t.maxBytes) && t.evict() {
	}
}

// evict drops the oldest entry of the peer that passed on most, so that one
// that floods the table displaces only what came from itself. The caller holds mu.
func (t *advertTable) evict() bool {
	var (
		worst peer.ID
		most  int
	)
	for id, n := range t.via {
		if n > most {
			worst, most = id, n
		}
	}
	var oldest *advertEntry
	for _, e := range t.entries {
		if e.via == worst && !e.own && (oldest == nil || e.heard.Before(oldest.heard)) {
			oldest = e
		}
	}
	if oldest == nil {
		return false
	}
	t.drop(oldest)
	return true
}

// drop removes an entry. The caller holds mu.
func (t *advertTable) drop(e *advertEntry) {
	delete(t.entries, e.advert.Peer)
	t.bytes -= e.size
	if t.via[e.via]--; t.via[e.via] <= 0 {
		delete(t.via, e.via)
	}
}

// sweep removes what has expired.
func (t *advertTable) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		if !e.advert.Expires.After(now) {
			t.drop(e)
		}
	}
}

// heardSince reports whether a new advert of a peer came after a time.
func (t *advertTable) heardSince(a mesh.Address, since time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[a]
	return e != nil && e.heard.After(since)
}

// list returns the adverts with a key, or all for the zero key, by address.
func (t *advertTable) list(key mesh.Hash, now time.Time) []Advert {
	t.mu.Lock()
	var out []Advert
	for _, e := range t.entries {
		if e.advert.Expires.After(now) && e.advert.offers(key) {
			out = append(out, e.advert)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(out, byPeer)
	return out
}

func (t *advertTable) of(a mesh.Address, now time.Time) (Advert, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[a]
	if e == nil || !e.advert.Expires.After(now) || e.advert.gone() {
		return Advert{}, false
	}
	return e.advert, true
}

// signed returns up to count signed adverts with a key, together at most size
// bytes: the own one first, then any, in no order.
func (t *advertTable) signed(key mesh.Hash, count, size int, now time.Time) []*p2ppb.SignedAdvert {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*p2ppb.SignedAdvert
	take := func(e *advertEntry) {
		n := proto.Size(e.signed) + 8
		if len(out) < count && n <= size && e.advert.Expires.After(now) && e.advert.offers(key) {
			out = append(out, e.signed)
			size -= n
		}
	}
	for _, own := range []bool{true, false} {
		for _, e := range t.entries {
			if e.own == own {
				take(e)
			}
		}
	}
	return out
}
