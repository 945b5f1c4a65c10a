package consensus

import (
	"context"
	"log/slog"
	"sync"

	abci "github.com/cometbft/cometbft/abci/types"
	cp2p "github.com/cometbft/cometbft/p2p"
	ssproto "github.com/cometbft/cometbft/proto/tendermint/statesync"
	"github.com/cometbft/cometbft/proxy"
	"github.com/cometbft/cometbft/statesync"

	"github.com/gonka-mesh/mesh/consensus/state"
)

// snapshotReactor serves the application's snapshots to nodes that join, and hands what
// they say to the fetch of one here. Channels and messages are those of CometBFT's state
// sync. Its own reactor is not used: it takes chunks from peers that were not asked, goes
// on with those that lied, ends for good over one false message, and cannot be stopped.
type snapshotReactor struct {
	cp2p.BaseReactor
	ctx context.Context // of the chain; ends with it
	app proxy.AppConnSnapshot
	log *slog.Logger

	mu    sync.Mutex
	fetch *fetch // in progress; guarded by mu
}

const (
	// snapshotBytes and chunkBytes bound messages; beside its chunk one has some numbers.
	snapshotBytes = 4_000_000
	chunkBytes    = state.MaxChunk + 1<<10
	// snapshotsShown is how many are offered to one peer.
	snapshotsShown = 10
)

func newSnapshotReactor(ctx context.Context, app proxy.AppConnSnapshot, log *slog.Logger) *snapshotReactor {
	r := &snapshotReactor{ctx: ctx, app: app, log: log}
	r.BaseReactor = *cp2p.NewBaseReactor("StateSync", r)
	return r
}

// GetChannels implements cp2p.Reactor.
func (r *snapshotReactor) GetChannels() []*cp2p.ChannelDescriptor {
	return []*cp2p.ChannelDescriptor{
		{ID: statesync.SnapshotChannel, Priority: 5, SendQueueCapacity: 10, RecvMessageCapacity: snapshotBytes, MessageType: &ssproto.Message{}},
		{ID: statesync.ChunkChannel, Priority: 3, SendQueueCapacity: 10, RecvMessageCapacity: chunkBytes, MessageType: &ssproto.Message{}},
	}
}

// begin makes a fetch the one that hears of what peers say; nil ends that.
func (r *snapshotReactor) begin(f *fetch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fetch = f
}

func (r *snapshotReactor) fetching() *fetch {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fetch
}

// AddPeer asks a peer that comes for its snapshots.
func (r *snapshotReactor) AddPeer(peer cp2p.Peer) {
	if r.fetching() != nil {
		peer.TrySend(cp2p.Envelope{ChannelID: statesync.SnapshotChannel, Message: &ssproto.SnapshotsRequest{}})
	}
}

// RemovePeer forgets what a peer offered and what it was asked for.
func (r *snapshotReactor) RemovePeer(peer cp2p.Peer, _ any) {
	if f := r.fetching(); f != nil {
		f.gone(peer.ID())
	}
}

// Receive implements cp2p.Reactor. A message on the other channel, or one that nobody
// waits for, is let fall.
func (r *snapshotReactor) Receive(e cp2p.Envelope) {
	f := r.fetching()
	switch m := e.Message.(type) {
	case *ssproto.SnapshotsRequest:
		r.show(e.Src)
	case *ssproto.ChunkRequest:
		r.give(e.Src, m)
	case *ssproto.SnapshotsResponse:
		if f != nil {
			f.offered(e.Src, &abci.Snapshot{Height: m.Height, Format: m.Format, Chunks: m.Chunks, Hash: m.Hash, Metadata: m.Metadata})
		}
	case *ssproto.ChunkResponse:
		if f != nil {
			f.arrived(e.Src, m)
		}
	}
}

// show offers a peer what the application has.
func (r *snapshotReactor) show(to cp2p.Peer) {
	res, err := r.app.ListSnapshots(r.ctx, &abci.RequestListSnapshots{})
	if err != nil {
		r.log.Warn("ledger: snapshots cannot be listed", "err", err)
		return
	}
	ranked := append([]*abci.Snapshot(nil), res.Snapshots...)
	sortSnapshots(ranked)
	for _, s := range ranked[:min(len(ranked), snapshotsShown)] {
		to.Send(cp2p.Envelope{ChannelID: statesync.SnapshotChannel, Message: &ssproto.SnapshotsResponse{
			Height: s.Height, Format: s.Format, Chunks: s.Chunks, Hash: s.Hash, Metadata: s.Metadata}})
	}
}

// give sends a peer a chunk, or says that it is not here.
func (r *snapshotReactor) give(to cp2p.Peer, m *ssproto.ChunkRequest) {
	res, err := r.app.LoadSnapshotChunk(r.ctx, &abci.RequestLoadSnapshotChunk{Height: m.Height, Format: m.Format, Chunk: m.Index})
	if err != nil {
		r.log.Warn("ledger: a chunk of a snapshot cannot be read", "height", m.Height, "chunk", m.Index, "err", err)
		return
	}
	to.Send(cp2p.Envelope{ChannelID: statesync.ChunkChannel, Message: &ssproto.ChunkResponse{
		Height: m.Height, Format: m.Format, Index: m.Index, Chunk: res.Chunk, Missing: res.Chunk == nil}})
}
