package consensus

import (
	"bytes"
	"log/slog"
	"math"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	cp2p "github.com/cometbft/cometbft/p2p"
	ssproto "github.com/cometbft/cometbft/proto/tendermint/statesync"

	"github.com/gonka-mesh/mesh/consensus/state"
)

// silentPeer is a peer that notes what it is sent.
type silentPeer struct {
	cp2p.Peer
	id   cp2p.ID
	sent []*ssproto.ChunkRequest
}

func (p *silentPeer) ID() cp2p.ID { return p.id }
func (p *silentPeer) TrySend(e cp2p.Envelope) bool {
	p.sent = append(p.sent, e.Message.(*ssproto.ChunkRequest))
	return true
}

// TestFetchAsks: what was not asked for is let fall, offers of one peer are few, and another
// peer is asked where one is late.
func TestFetchAsks(t *testing.T) {
	f := newFetch(&Chain{cfg: Config{StateSync: &StateSync{}}}, nil)
	a, b := &silentPeer{id: "a"}, &silentPeer{id: "b"}
	var chunks [][]byte
	for i := range 40 {
		chunks = append(chunks, []byte{byte(i)})
	}
	for i := range uint64(20) {
		f.offered(a, forge(100+i, chunks...))
	}
	if len(f.offers) != offersOfPeer {
		t.Errorf("%d offers of one peer are kept", len(f.offers))
	}
	f.offered(b, forge(100, chunks...))
	ranked := f.ranked(1000)
	if len(ranked) != offersOfPeer || ranked[0].Height != 100 || ranked[1].Height != 102 {
		t.Fatalf("%d offers, the first of height %d", len(ranked), ranked[0].Height)
	}
	if len(f.ranked(101)) != 0 || len(f.ranked(103)) != 2 || len(f.ranked(102+offerBehind)) != 0 {
		t.Error("offers too new to be verified or too old to go on from are taken")
	}
	d := &download{offer: ranked[0], got: make(map[uint32]piece), asked: make(map[uint32]*question)}
	f.load = d
	now := time.Now()
	send := func(at time.Time) {
		f.mu.Lock()
		sends := f.due(d, at)
		f.mu.Unlock()
		for _, s := range sends {
			s()
		}
	}
	send(now)
	if len(a.sent) != chunksOfPeer || len(b.sent) != chunksOfPeer {
		t.Fatalf("%d chunks are asked of one peer, %d of the other", len(a.sent), len(b.sent))
	}
	answer := func(p *silentPeer, index uint32, chunk []byte) {
		f.arrived(p, &ssproto.ChunkResponse{Height: 100, Format: state.SnapshotFormat, Index: index, Chunk: chunk})
	}
	mine, other := a.sent[0].Index, b.sent[0].Index
	answer(b, mine, []byte("not asked"))
	answer(a, 39, []byte("not asked"))
	answer(&silentPeer{id: "c"}, mine, []byte("not asked"))
	f.arrived(a, &ssproto.ChunkResponse{Height: 101, Format: state.SnapshotFormat, Index: mine, Chunk: []byte("another snapshot")})
	answer(a, mine, make([]byte, state.MaxChunk+1))
	if len(d.got) != 0 {
		t.Fatalf("chunks that nobody asked for are taken: %v", d.got)
	}
	send(now.Add(chunkPatience / 2)) // a is free for one more
	if len(a.sent) != chunksOfPeer+1 || len(b.sent) != chunksOfPeer {
		t.Errorf("after one answer %d and %d chunks were asked for", len(a.sent), len(b.sent))
	}
	answer(b, other, []byte("good"))
	if p := d.got[other]; p.from != "b" {
		t.Errorf("a chunk that was asked for is not taken: %+v", p)
	}
	before := len(b.sent)
	send(now.Add(2 * chunkPatience)) // all others are late; those of b's go to it again or to a
	if len(b.sent) == before || f.late["a"] == 0 {
		t.Errorf("nobody else is asked for what is late")
	}
	// A late answer counts still; one of a liar does not, and what came from it goes.
	answer(a, mine, []byte("late"))
	if !bytes.Equal(d.got[mine].bytes, []byte("late")) {
		t.Error("a late answer is not taken")
	}
	f.caught("a", "test", 1)
	if _, ok := d.got[mine]; ok || len(d.peers) != 1 {
		t.Error("what a liar sent is kept")
	}
	f.offered(a, forge(200, chunks...))
	if len(f.ranked(1000)) != 1 {
		t.Error("offers of a liar are listened to")
	}
	f.gone("b")
	if len(d.peers) != 0 {
		t.Error("a peer that left is still asked")
	}
}

// FuzzOffer: no offer, whatever it has, breaks the choice, and a hostile application's hash
// is not needed to refuse what contradicts itself.
func FuzzOffer(f *testing.F) {
	s := forge(7, []byte{1}, []byte{2})
	f.Add(s.Height, s.Format, s.Chunks, s.Hash, s.Metadata)
	f.Add(uint64(math.MaxUint64), s.Format, s.Chunks, s.Hash, s.Metadata) // the header after the next has a number that is small again
	f.Add(uint64(1)<<63, uint32(1), uint32(1)<<31, []byte{1}, []byte(nil))
	store, err := state.Open(state.Config{Memory: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	app := NewApp(AppConfig{Network: "test0", Store: store, Log: slog.New(slog.DiscardHandler)})
	f.Fuzz(func(t *testing.T, height uint64, format, chunks uint32, hash, metadata []byte) {
		s := &abci.Snapshot{Height: height, Format: format, Chunks: chunks, Hash: hash, Metadata: metadata}
		fetch := newFetch(&Chain{cfg: Config{StateSync: &StateSync{}}}, nil)
		fetch.offered(&silentPeer{id: "a"}, s)
		for _, o := range fetch.ranked(1000) {
			if o.Height > 998 || o.Chunks > fetch.most {
				t.Fatalf("offer %v is taken", o.Snapshot)
			}
		}
		res, err := app.OfferSnapshot(t.Context(), &abci.RequestOfferSnapshot{Snapshot: s, AppHash: make([]byte, 32)})
		if err != nil {
			t.Fatal(err)
		}
		if res.Result == abci.ResponseOfferSnapshot_ACCEPT && len(metadata) != 8+32*int(chunks) {
			t.Fatalf("a snapshot of %d chunks with %d bytes of metadata is taken", chunks, len(metadata))
		}
	})
}
