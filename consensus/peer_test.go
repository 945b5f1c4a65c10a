package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/cometbft/cometbft/libs/service"
	cp2p "github.com/cometbft/cometbft/p2p"
	bcproto "github.com/cometbft/cometbft/proto/tendermint/blocksync"
	ssproto "github.com/cometbft/cometbft/proto/tendermint/statesync"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/state"
	"github.com/gonka-mesh/mesh/p2p"
)

// TestOutgoingMemory: peers that read nothing have together no more waiting than the
// budget and what is each channel's own; another peer's votes still go, and what a peer
// took comes back when it is sent or the peer is gone.
func TestOutgoingMemory(t *testing.T) {
	const budget = 4 << 20
	s := &meshSwitch{channels: map[byte]*channel{
		1: {ChannelDescriptor: cp2p.ChannelDescriptor{ID: 1}.FillDefaults()},
		2: {ChannelDescriptor: cp2p.ChannelDescriptor{ID: 2}.FillDefaults()},
	}, outgoing: newBudget(budget), ctx: t.Context()}
	peer := func(n byte) *meshPeer {
		p := newMeshPeer(s, mesh.Address{n})
		for _, o := range p.out {
			o.once.Do(func() {}) // nobody writes
		}
		return p
	}
	greedy, other := peer(1), peer(2)
	block := make([]byte, 1<<20)
	for i := range budget / len(block) {
		if !greedy.enqueue(1, block, 0) {
			t.Fatalf("message %d: there is room", i)
		}
	}
	for _, p := range []*meshPeer{greedy, other} {
		if p.enqueue(2, block, 0) {
			t.Error("more waits than there is memory for")
		}
		for range 4 {
			if !p.enqueue(2, make([]byte, queueOwn/4), 0) {
				t.Error("small messages do not go while others hold the budget")
			}
		}
		if p.enqueue(2, make([]byte, queueOwn/4), 0) {
			t.Error("small messages have no bound")
		}
	}
	o := greedy.out[1]
	greedy.sent(o, <-o.queue)
	if !other.enqueue(1, block, 0) {
		t.Error("what was sent is still counted")
	}
	if other.enqueue(1, block, 0) {
		t.Error("what was sent is given back twice")
	}
	greedy.end()
	greedy.sent(o, <-o.queue) // its writer was in the middle of it
	if greedy.enqueue(1, block, 0) {
		t.Error("a peer that is gone is sent to")
	}
	other.end()
	if free := s.outgoing.free.Load(); free != budget {
		t.Errorf("%d of %d are free when all are gone", free, budget)
	}
}

// TestMessageShare: a peer that begins large messages and ends none holds no more than its
// share, and what it held is free again when it goes.
func TestMessageShare(t *testing.T) {
	const memory = 12 << 20
	s := &meshSwitch{budget: newBudget(memory), ctx: t.Context()}
	ch := &channel{reactor: newSnapshotReactor(t.Context(), nil, nil)} // which lets chunks fall
	ch.ChannelDescriptor = *ch.reactor.GetChannels()[1]
	read := func(p *meshPeer) (net.Conn, <-chan error) {
		client, server := net.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- p.read(server, ch)
			server.Close()
		}()
		return client, done
	}
	b, err := encode(&ssproto.ChunkResponse{Height: 1 << 40, Format: 1, Index: 1 << 16, Chunk: make([]byte, state.MaxChunk)})
	if err != nil {
		t.Fatal(err)
	}
	message := append(binary.AppendUvarint(nil, uint64(len(b))), b...)
	greedy, honest := newMeshPeer(s, mesh.Address{1}), newMeshPeer(s, mesh.Address{2})
	var streams []net.Conn
	var ends []<-chan error
	for range 6 {
		c, done := read(greedy)
		c.Write(message[:3<<20]) // an error: it has too much already
		streams, ends = append(streams, c), append(ends, done)
	}
	if took := memory - s.budget.free.Load(); took > peerMemory {
		t.Errorf("one peer has %d bytes of %d", took, memory)
	}
	c, done := read(honest)
	c.Write(message)
	c.Close()
	if err := <-done; !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("beside it a chunk is not read: %v", err)
	}
	for i, c := range streams {
		c.Close()
		<-ends[i]
	}
	if free := s.budget.free.Load(); free != memory {
		t.Errorf("%d of %d bytes are free when all are gone", free, memory)
	}
}

// TestMessageLimits: what an honest node sends at most has room, and memory is not kept for
// more.
func TestMessageLimits(t *testing.T) {
	if maxBlock+maxBlock/4 > messageLimit || chunkBytes > messageLimit || messageLimit > state.MaxChunk*5/4 {
		t.Errorf("a message has at most %d bytes, a block %d, a chunk's %d", messageLimit, maxBlock, chunkBytes)
	}
	if chunkBytes+snapshotBytes > peerMemory || messageMemory < 32*peerMemory {
		t.Errorf("a peer has %d bytes of %d", peerMemory, messageMemory)
	}
}

// leavers is a reactor that notes why peers are taken away.
type leavers struct {
	cp2p.BaseReactor
	why chan any
}

func (l *leavers) RemovePeer(_ cp2p.Peer, reason any) { l.why <- reason }

// TestWritesOnOurStream: the reason names what the peer did.
func TestWritesOnOurStream(t *testing.T) {
	l := &leavers{why: make(chan any, 1)}
	s := &meshSwitch{ctx: t.Context(), outgoing: newBudget(0), set: cp2p.NewPeerSet(), later: make(map[mesh.Address]*penance), changed: make(chan struct{}, 1),
		reactors: []namedReactor{{"TEST", l}}}
	s.BaseService = *service.NewBaseService(nil, "MeshSwitch", s)
	p := newMeshPeer(s, mesh.Address{1})
	close(p.ready)
	client, server := net.Pipe()
	defer client.Close()
	go p.listen(0x20, server)
	client.Write([]byte{1})
	if why := fmt.Sprint(<-l.why); !strings.Contains(why, "wrote on a stream") {
		t.Error(why)
	}
}

// TestOwnFault: where a reactor fails over a message because this node's disk is broken, who
// sent it is taken away and loses nothing else.
func TestOwnFault(t *testing.T) {
	gone := new(atomic.Bool)
	n := newToyNet(t, 1, 0, func(_ int, cfg *Config) {
		open := cfg.Open
		cfg.Open = func(name string) (dbm.DB, error) {
			db, err := open(name)
			return failingDB{DB: db, unread: "H:1", gone: gone}, err
		}
	})
	n.start()
	node := n.nodes[0]
	n.reach(3, node)
	gone.Store(true)
	h := n.visitor(20, p2p.Config{})
	if _, err := h.Connect(t.Context(), node.host.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the visitor is a peer", func() bool { return node.has(h.Address()) })
	c, err := h.Dial(t.Context(), node.host.Address(), protocolName)
	if err != nil {
		t.Fatal(err)
	}
	ask, err := encode(&bcproto.BlockRequest{Height: 1})
	if err != nil {
		t.Fatal(err)
	}
	c.Write(append(binary.AppendUvarint([]byte{0x40}, uint64(len(ask))), ask...))
	cut(t, c, "the stream")
	eventually(t, "the visitor is taken away", func() bool { return !node.has(h.Address()) })
	if info, ok := node.host.Peer(h.Address()); !ok || info.Score != 0 {
		t.Errorf("it is connected: %v, with score %v", ok, info.Score)
	}
}
