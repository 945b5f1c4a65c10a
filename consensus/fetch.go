package consensus

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	cp2p "github.com/cometbft/cometbft/p2p"
	ssproto "github.com/cometbft/cometbft/proto/tendermint/statesync"
	"github.com/cometbft/cometbft/statesync"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/state"
)

// Bounds of a fetch.
const (
	offersOfPeer  = 3                // that are kept: a node keeps two, and has three for a moment
	offerBehind   = 10_000           // blocks; peers do not have those after an older snapshot for long
	chunkWindow   = 8                // chunks that are asked for at once
	chunksOfPeer  = 2                // of them, from one peer
	chunkPatience = 20 * time.Second // default, until another peer is asked for a chunk too
	chunkRound    = time.Second      // between two looks at what is late

	pointsFalseSnapshot = 100 // whole, as its sender said, and not the ledger's
	pointsFalseChunk    = 20
)

// Ends of an attempt with one snapshot.
var (
	errFalse   = errors.New("the snapshot is not the ledger's")
	errRefused = errors.New("the snapshot cannot be used here")
	errNobody  = errors.New("no peer has the rest of the snapshot")
	errEnd     = errors.New("no snapshot can be taken")
)

// fetch gets a snapshot from peers, of which any may lie. What peers offer counts only
// where its height is verified; of those the one that most peers have is taken first. A
// chunk counts only from a peer that was asked for it. Who offered a snapshot that turned
// out false, or sent a false chunk, is not asked again.
type fetch struct {
	c    *Chain
	p    *parts
	most uint32 // chunks

	mu     sync.Mutex
	offers map[mesh.Hash]*offer // guarded by mu, as is all below
	past   map[mesh.Hash]bool   // offers that were tried or refused
	liars  map[cp2p.ID]bool
	late   map[cp2p.ID]int // how often each did not answer in time
	load   *download       // in progress
	last   time.Time       // when a chunk was taken in
	large  uint32          // chunks of a snapshot that was larger than what may be fetched

	news chan struct{} // something arrived
}

// offer is a snapshot that peers say they have.
type offer struct {
	*abci.Snapshot
	id    mesh.Hash
	peers map[cp2p.ID]cp2p.Peer // that still have it
	from  map[cp2p.ID]bool      // that said so
}

// download is an offer whose chunks are fetched.
type download struct {
	*offer
	next  uint32 // to be taken in
	got   map[uint32]piece
	asked map[uint32]*question
}

type piece struct {
	from  cp2p.ID
	bytes []byte
}

// question is a chunk that was asked for: from whom, last from whom, until when.
type question struct {
	peers map[cp2p.ID]bool
	last  cp2p.ID // "" after it answered or left
	until time.Time
}

func newFetch(c *Chain, p *parts) *fetch {
	most := orDefault(c.cfg.StateSync.MaxBytes, 64<<30) / state.MaxChunk
	return &fetch{c: c, p: p, most: uint32(min(max(most, 1), state.MaxChunks)),
		offers: make(map[mesh.Hash]*offer), past: make(map[mesh.Hash]bool), liars: make(map[cp2p.ID]bool), late: make(map[cp2p.ID]int),
		last: time.Now(), news: make(chan struct{}, 1)}
}

// run asks peers for snapshots and takes one in, until that succeeds or for too long
// nothing came that can be used.
func (f *fetch) run(ctx context.Context) (*synced, error) {
	cfg := f.c.cfg.StateSync
	for {
		why := errors.New("none was offered")
		f.ask()
		f.c.doing.say("asking peers for a snapshot of the ledger")
		if err := pause(ctx, orDefault(cfg.Discovery, 5*time.Second)); err != nil {
			return nil, err
		}
		f.mu.Lock()
		if f.large > 0 {
			why = fmt.Errorf("one of %d MiB was offered, more than this node is to fetch", uint64(f.large)*state.MaxChunk>>20)
		}
		f.mu.Unlock()
		head, err := cfg.Trusted.Head(ctx)
		if err != nil {
			why = err
		}
		for _, o := range f.ranked(head.Height) {
			s, err := f.take(ctx, o)
			switch {
			case err == nil:
				return s, nil
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case errors.Is(err, errEnd):
				return nil, err
			}
			f.c.log.Warn("ledger: a snapshot was not taken", "height", o.Height, "err", err)
			why = err
		}
		if time.Since(f.progress()) > orDefault(cfg.Patience, 2*time.Minute) {
			return nil, fmt.Errorf("%w: %w", ErrNoSnapshot, why)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fetch) progress() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// ask begins a round: peers say anew what they have.
func (f *fetch) ask() {
	f.mu.Lock()
	clear(f.offers)
	f.mu.Unlock()
	f.p.snaps.Switch.BroadcastAsync(cp2p.Envelope{ChannelID: statesync.SnapshotChannel, Message: &ssproto.SnapshotsRequest{}})
}

// offered notes what a peer says it has.
func (f *fetch) offered(peer cp2p.Peer, s *abci.Snapshot) {
	if s.Chunks > f.most {
		f.mu.Lock()
		f.large = s.Chunks
		f.mu.Unlock()
		return
	}
	if s.Height == 0 || s.Height > math.MaxInt64-2 || s.Chunks == 0 || len(s.Hash) != len(mesh.Hash{}) || len(s.Metadata) > 64+len(mesh.Hash{})*int(f.most) {
		return
	}
	id := mesh.HashOf(binary.BigEndian.AppendUint64(nil, s.Height), binary.BigEndian.AppendUint32(nil, s.Format), binary.BigEndian.AppendUint32(nil, s.Chunks), s.Hash, s.Metadata)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.liars[peer.ID()] || f.past[id] {
		return
	}
	n := 0
	for _, o := range f.offers {
		if o.from[peer.ID()] {
			n++
		}
	}
	if n >= offersOfPeer {
		return
	}
	o := f.offers[id]
	if o == nil {
		o = &offer{Snapshot: s, id: id, peers: make(map[cp2p.ID]cp2p.Peer), from: make(map[cp2p.ID]bool)}
		f.offers[id] = o
	}
	o.peers[peer.ID()], o.from[peer.ID()] = peer, true
}

// ranked lists the offers whose height can be verified, in the order of trying.
func (f *fetch) ranked(head mesh.Height) []*offer {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*offer
	for _, o := range f.offers {
		if o.Height+2 <= uint64(head) && o.Height+offerBehind > uint64(head) && len(o.peers) > 0 {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *offer) int {
		return cmp.Or(cmp.Compare(len(b.peers), len(a.peers)), cmp.Compare(b.Height, a.Height), slices.Compare(a.id[:], b.id[:]))
	})
	return out
}

// sortSnapshots puts the newest first.
func sortSnapshots(all []*abci.Snapshot) {
	slices.SortFunc(all, func(a, b *abci.Snapshot) int {
		return cmp.Or(cmp.Compare(b.Height, a.Height), cmp.Compare(b.Format, a.Format))
	})
}

// take fetches one snapshot and has the application take it in.
func (f *fetch) take(ctx context.Context, o *offer) (*synced, error) {
	s, err := f.c.verified(ctx, f.c.cfg.StateSync.Trusted, o.Height)
	if err != nil {
		return nil, err // its peers may be right: it is offered again
	}
	if err := f.room(o); err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.past[o.id] = true
	f.load = &download{offer: o, got: make(map[uint32]piece), asked: make(map[uint32]*question)}
	f.mu.Unlock()
	err = f.into(ctx, s)
	f.mu.Lock()
	f.load = nil
	if errors.Is(err, errNobody) {
		delete(f.past, o.id) // peers may have it again
	}
	f.mu.Unlock()
	if errors.Is(err, errFalse) {
		for id := range o.from {
			f.caught(id, "a false snapshot of the ledger", pointsFalseSnapshot)
		}
	}
	return s, err
}

// room refuses a snapshot that the disk cannot have beside what a node needs.
func (f *fetch) room(o *offer) error {
	if f.c.cfg.DiskFloor < 0 {
		return nil
	}
	free, err := f.c.cfg.free(f.c.cfg.Home)
	if err != nil {
		return err
	}
	// All chunks but the last are nearly full; tree and logs take as much again.
	if need := 2*uint64(o.Chunks-1)*state.MaxChunk + uint64(f.c.cfg.DiskFloor); free < need {
		return fmt.Errorf("%w: it needs %d MiB on disk, %d MiB are free", errRefused, need>>20, free>>20)
	}
	return nil
}

// into hands the snapshot that is fetched to the application.
func (f *fetch) into(ctx context.Context, s *synced) error {
	d := f.load
	app := f.p.app.Snapshot()
	res, err := app.OfferSnapshot(ctx, &abci.RequestOfferSnapshot{Snapshot: d.Snapshot, AppHash: s.appHash})
	if err != nil {
		return fmt.Errorf("%w: %w", errEnd, err)
	}
	if err := answerOf(res.Result); err != nil {
		return err
	}
	begun := time.Now()
	for d.next < d.Chunks {
		f.c.doing.say(fmt.Sprintf("fetching a snapshot of block %d: %d of %d parts", d.Height, d.next, d.Chunks))
		p, err := f.piece(ctx, d, begun)
		if err != nil {
			return err
		}
		res, err := app.ApplySnapshotChunk(ctx, &abci.RequestApplySnapshotChunk{Index: d.next, Chunk: p.bytes, Sender: string(p.from)})
		if err != nil {
			return fmt.Errorf("%w: %w", errEnd, err)
		}
		for _, sender := range res.RejectSenders {
			f.caught(cp2p.ID(sender), "a false part of a snapshot", pointsFalseChunk)
		}
		switch res.Result {
		case abci.ResponseApplySnapshotChunk_ACCEPT:
			f.mu.Lock()
			delete(d.got, d.next)
			delete(d.asked, d.next)
			d.next++
			f.last = time.Now()
			begun = f.last
			f.mu.Unlock()
		case abci.ResponseApplySnapshotChunk_RETRY:
			f.mu.Lock()
			delete(d.got, d.next)
			delete(d.asked, d.next)
			f.mu.Unlock()
		case abci.ResponseApplySnapshotChunk_REJECT_SNAPSHOT:
			return errFalse
		default:
			return fmt.Errorf("%w: the application answers part %d with %s", errEnd, d.next, res.Result)
		}
	}
	return f.c.taken(ctx, f.p, s)
}

// piece waits for the chunk that is next, and asks for those that follow.
func (f *fetch) piece(ctx context.Context, d *download, since time.Time) (piece, error) {
	tick := time.NewTicker(chunkRound)
	defer tick.Stop()
	for {
		f.mu.Lock()
		p, ok := d.got[d.next]
		sends := f.due(d, time.Now())
		left := len(d.peers)
		f.mu.Unlock()
		for _, send := range sends {
			send()
		}
		switch {
		case ok:
			return p, nil
		case left == 0, time.Since(since) > orDefault(f.c.cfg.StateSync.Patience, 2*time.Minute):
			return piece{}, errNobody
		}
		select {
		case <-f.news:
		case <-tick.C:
		case <-ctx.Done():
			return piece{}, ctx.Err()
		}
	}
}

// due returns questions that are to be sent: chunks of the window that nobody was asked
// for, or that are late. mu is held; they are sent without it.
func (f *fetch) due(d *download, now time.Time) (sends []func()) {
	for i := d.next; i < min(d.next+chunkWindow, d.Chunks); i++ {
		q := d.asked[i]
		if _, ok := d.got[i]; ok || q != nil && q.last != "" && now.Before(q.until) {
			continue
		}
		if q == nil {
			q = &question{peers: make(map[cp2p.ID]bool)}
			d.asked[i] = q
		}
		if q.last != "" {
			f.late[q.last]++
			q.last = ""
		}
		peer := f.pick(d, q)
		if peer == nil {
			continue
		}
		q.peers[peer.ID()], q.last, q.until = true, peer.ID(), now.Add(orDefault(f.c.cfg.StateSync.chunkPatience, chunkPatience))
		ask := &ssproto.ChunkRequest{Height: d.Height, Format: d.Format, Index: i}
		sends = append(sends, func() {
			if !peer.TrySend(cp2p.Envelope{ChannelID: statesync.ChunkChannel, Message: ask}) {
				f.lost(d, ask.Index, peer.ID())
			}
		})
	}
	return sends
}

// pick chooses whom to ask for a chunk: a peer that was seldom late, and rather one that
// was not asked for this chunk before. mu is held.
func (f *fetch) pick(d *download, q *question) cp2p.Peer {
	busy := make(map[cp2p.ID]int)
	for _, o := range d.asked {
		if o.last != "" {
			busy[o.last]++
		}
	}
	var best cp2p.Peer
	var rank [2]int
	n := 0
	for id, peer := range d.peers {
		if busy[id] >= chunksOfPeer {
			continue
		}
		r := [2]int{f.late[id], 0}
		if q.peers[id] {
			r[1] = 1
		}
		switch order := slices.Compare(r[:], rank[:]); {
		case best == nil || order < 0:
			best, rank, n = peer, r, 1
		case order == 0:
			if n++; rand.IntN(n) == 0 {
				best = peer
			}
		}
	}
	return best
}

// lost makes a question open again whose peer cannot take it now.
func (f *fetch) lost(d *download, index uint32, peer cp2p.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if q := d.asked[index]; q != nil && q.last == peer {
		q.last = ""
		f.late[peer]++
	}
}

// arrived takes a chunk from a peer that was asked for it.
func (f *fetch) arrived(peer cp2p.Peer, m *ssproto.ChunkResponse) {
	id := peer.ID()
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.load
	if d == nil || f.liars[id] || m.Height != d.Height || m.Format != d.Format {
		return
	}
	q := d.asked[m.Index]
	if q == nil || !q.peers[id] {
		return
	}
	if q.last == id {
		q.last = ""
	}
	switch _, ok := d.got[m.Index]; {
	case m.Missing || len(m.Chunk) == 0: // it has dropped the snapshot
		delete(d.peers, id)
	case !ok && len(m.Chunk) <= state.MaxChunk:
		d.got[m.Index] = piece{id, m.Chunk}
	}
	f.wake()
}

// gone forgets a peer that left.
func (f *fetch) gone(id cp2p.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leave(id)
	f.wake()
}

// leave takes a peer out of everything. mu is held.
func (f *fetch) leave(id cp2p.ID) {
	for _, o := range f.offers {
		delete(o.peers, id)
	}
	if f.load == nil {
		return
	}
	delete(f.load.peers, id)
	for _, q := range f.load.asked {
		if q.last == id {
			q.last = ""
		}
	}
}

// caught leaves a peer out that lied, with all that came from it.
func (f *fetch) caught(id cp2p.ID, reason string, points int) {
	f.mu.Lock()
	known := f.liars[id]
	f.liars[id] = true
	f.leave(id)
	if f.load != nil {
		for i, p := range f.load.got {
			if p.from == id {
				delete(f.load.got, i)
			}
		}
	}
	f.mu.Unlock()
	if address, err := mesh.ParseAddress(string(id)); err == nil && f.c.cfg.Net != nil && !known {
		f.c.log.Warn("ledger: a peer is left out", "peer", address.Short(), "reason", reason)
		f.c.cfg.Net.Penalise(address, "comet: "+reason, points)
	}
}

// wake has the next look at what arrived taken now. mu is held.
func (f *fetch) wake() {
	select {
	case f.news <- struct{}{}:
	default:
	}
}
