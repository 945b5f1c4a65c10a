package p2p

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
)

const (
	bookFile    = "peers.json"
	bookVersion = 1
	bookPeers   = 1000    // most peers kept
	bookAddrs   = 8       // most addresses of one peer
	bookBytes   = 4 << 20 // largest file that is read
	bookEvery   = time.Minute
)

// book is the address book: peers whose hello agreed once, with what became of
// the dials since. It outlives the process in peers.json.
type book struct {
	path    string // "" keeps nothing on disk
	network mesh.NetworkID

	mu      sync.Mutex
	entries map[peer.ID]*entry // guarded by mu
	dirty   bool               // guarded by mu

	writing sync.Mutex // held while the file is written
}

// entry is one peer of the book.
type entry struct {
	addrs  []ma.Multiaddr
	role   string
	seen   time.Time // last time connected
	ok     int       // dials and calls that worked, 0..100
	failed int       // dials that failed since the last that worked
}

// bookDoc is the file. Unknown fields are ignored, so that fields can be added.
type bookDoc struct {
	Version int            `json:"version"`
	Network mesh.NetworkID `json:"network"`
	Peers   []bookPeer     `json:"peers"`
}

type bookPeer struct {
	Address mesh.Address `json:"address"`
	Addrs   []string     `json:"addrs"`
	Role    string       `json:"role,omitempty"`
	Seen    int64        `json:"seen"` // Unix seconds
	OK      int          `json:"ok"`
	Failed  int          `json:"failed,omitempty"`
}

// openBook reads the book of a home folder. A damaged file is set aside and
// reported, since a node can live without it; one of a newer version is refused.
func openBook(home string, network mesh.NetworkID, log *slog.Logger) (*book, error) {
	b := &book{network: network, entries: make(map[peer.ID]*entry)}
	if home == "" {
		return b, nil
	}
	b.path = filepath.Join(home, bookFile)
	info, err := os.Stat(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open address book: %w", err)
	}
	var raw []byte
	if info.Size() <= bookBytes {
		if raw, err = os.ReadFile(b.path); err != nil {
			return nil, fmt.Errorf("open address book: %w", err)
		}
	}
	doc, err := decodeBook(raw)
	if err == nil && doc.Version > bookVersion {
		return nil, fmt.Errorf("address book %s has version %d, this program reads up to %d: use a newer mesh, or move the file away", b.path, doc.Version, bookVersion)
	}
	if err != nil {
		aside := b.path + ".damaged"
		if rerr := os.Rename(b.path, aside); rerr != nil {
			return nil, fmt.Errorf("set damaged address book aside: %w", rerr)
		}
		log.Warn("address book damaged, starting with an empty one", "moved_to", aside, "err", err)
		return b, nil
	}
	if doc.Network == network {
		b.fill(doc)
	}
	return b, nil
}

func decodeBook(raw []byte) (*bookDoc, error) {
	doc := &bookDoc{}
	if err := json.Unmarshal(raw, doc); err != nil {
		return nil, fmt.Errorf("decode address book: %w", err)
	}
	if doc.Version < 1 {
		return nil, errors.New("decode address book: no version")
	}
	return doc, nil
}

// fill takes over what is usable of a document.
func (b *book) fill(doc *bookDoc) {
	for _, p := range doc.Peers {
		id, err := peerID(p.Address)
		if err != nil || p.Address.IsZero() || len(b.entries) >= bookPeers {
			continue
		}
		e := &entry{role: clip(p.Role, 16), seen: time.Unix(p.Seen, 0), ok: min(max(p.OK, 0), 100), failed: max(p.Failed, 0)}
		for _, s := range p.Addrs {
			if a, err := ma.NewMultiaddr(s); err == nil && len(e.addrs) < bookAddrs {
				e.addrs = append(e.addrs, a)
			}
		}
		if len(e.addrs) > 0 {
			b.entries[id] = e
		}
	}
}

// good notes that a peer is connected. No addresses leaves those it has.
func (b *book) good(id peer.ID, role string, addrs []ma.Multiaddr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[id]
	if e == nil {
		if len(addrs) == 0 {
			return
		}
		e = &entry{}
		b.entries[id] = e
	}
	if len(addrs) > 0 {
		e.addrs = slices.Clone(addrs[:min(len(addrs), bookAddrs)])
	}
	e.role, e.seen, e.failed = role, time.Now(), 0
	e.ok = min(e.ok+1, 100)
	b.dirty = true
	if len(b.entries) > bookPeers {
		b.evict(id)
	}
}

// heard notes a peer that was never connected, while there is room: such entries
// rank behind all others, and never push one out.
func (b *book) heard(id peer.ID, addrs []ma.Multiaddr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.entries[id] != nil || len(addrs) == 0 || len(b.entries) >= bookPeers/2 {
		return
	}
	b.entries[id] = &entry{addrs: slices.Clone(addrs[:min(len(addrs), bookAddrs)]), seen: time.Unix(0, 0)}
	b.dirty = true
}

// failed notes that a dial failed; a peer that failed for long is forgotten.
func (b *book) fail(id peer.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[id]
	if e == nil {
		return
	}
	e.failed++
	b.dirty = true
	if e.failed >= 20 && time.Since(e.seen) > 14*24*time.Hour {
		delete(b.entries, id)
	}
}

// evict drops the worst entry, but not the newest. mu is held.
func (b *book) evict(keep peer.ID) {
	var worst peer.ID
	for id, e := range b.entries {
		if id != keep && (worst == "" || better(b.entries[worst], e)) {
			worst = id
		}
	}
	delete(b.entries, worst)
}

// better orders entries by fewest failures, latest sight, most successes.
func better(a, c *entry) bool {
	return cmp.Or(cmp.Compare(a.failed, c.failed), c.seen.Compare(a.seen), cmp.Compare(c.ok, a.ok)) < 0
}

// best returns up to n peers, the most promising first.
func (b *book) best(n int) []peer.AddrInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	ids := make([]peer.ID, 0, len(b.entries))
	for id := range b.entries {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y peer.ID) int {
		switch {
		case better(b.entries[x], b.entries[y]):
			return -1
		case better(b.entries[y], b.entries[x]):
			return 1
		}
		return cmp.Compare(x, y)
	})
	var out []peer.AddrInfo
	for _, id := range ids[:min(n, len(ids))] {
		out = append(out, peer.AddrInfo{ID: id, Addrs: slices.Clone(b.entries[id].addrs)})
	}
	return out
}

// addrs returns the addresses noted for a peer.
func (b *book) addrs(id peer.ID) []ma.Multiaddr {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[id]; e != nil {
		return slices.Clone(e.addrs)
	}
	return nil
}

// save writes the file if anything changed since the last time.
func (b *book) save() error {
	if b.path == "" {
		return nil
	}
	b.writing.Lock()
	defer b.writing.Unlock()
	doc, dirty := b.doc()
	if !dirty {
		return nil
	}
	raw, err := json.MarshalIndent(doc, "", " ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(b.path), 0o700)
	}
	if err == nil {
		err = atomicfile.Write(b.path, append(raw, '\n'), 0o600)
	}
	if err != nil {
		b.mu.Lock()
		b.dirty = true
		b.mu.Unlock()
		return fmt.Errorf("write address book %s: %w", b.path, err)
	}
	return nil
}

func (b *book) doc() (*bookDoc, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.dirty {
		return nil, false
	}
	b.dirty = false
	doc := &bookDoc{Version: bookVersion, Network: b.network}
	for id, e := range b.entries {
		a, err := addressOf(id)
		if err != nil {
			continue
		}
		p := bookPeer{Address: a, Role: e.role, Seen: e.seen.Unix(), OK: e.ok, Failed: e.failed}
		for _, m := range e.addrs {
			p.Addrs = append(p.Addrs, m.String())
		}
		doc.Peers = append(doc.Peers, p)
	}
	slices.SortFunc(doc.Peers, func(x, y bookPeer) int { return slices.Compare(x.Address[:], y.Address[:]) })
	return doc, true
}
