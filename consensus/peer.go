package consensus

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cometbft/cometbft/libs/service"
	cp2p "github.com/cometbft/cometbft/p2p"
	"github.com/cosmos/gogoproto/proto"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p"
)

// Bounds of what one peer may cost.
const (
	sendTime   = 10 * time.Second // that Send waits for room, as in CometBFT
	openTime   = 10 * time.Second // to open a stream
	writeTime  = time.Minute      // in which a peer has to take what is written
	queueBytes = 32 << 20         // that wait on one channel
	queueOwn   = 128 << 10        // of them, those that all peers' budget does not count
	queueLeast = 128              // messages that may wait on one channel
	// outgoingMemory bounds what waits for all peers together: peers that ask for much and
	// read nothing get no more of it then, while votes and transactions still go out.
	outgoingMemory = 256 << 20

	receiveRate  = 20 << 20 // bytes per second of one peer, averaged
	receiveBurst = 64 << 20
	messageRate  = 8000 // per second of one peer, averaged
	messageBurst = 16000
)

// meshPeer is a full node that is connected, from when it became a peer until it is
// taken away: one that comes back is another meshPeer.
type meshPeer struct {
	service.BaseService
	sw      *meshSwitch
	addr    mesh.Address
	id      cp2p.ID
	since   time.Time
	ready   chan struct{} // closed when the reactors know it
	leaving atomic.Bool
	ctx     context.Context // ends when it is taken away
	cancel  context.CancelFunc
	bytes   *rate.Limiter
	count   *rate.Limiter
	memory  *budget          // its share of what all have for large messages on the way in
	out     map[byte]*outbox // by channel, fixed
	values  sync.Map         // of reactors

	mu    sync.Mutex
	in    map[byte]net.Conn // streams that it opened; guarded by mu
	conns []net.Conn        // streams to reset at the end; guarded by mu
	lent  int64             // of the budget of all peers; guarded by mu
}

var _ cp2p.Peer = (*meshPeer)(nil)

// outbox is what waits to be sent on one channel. A goroutine of its own sends it,
// from the first message on.
type outbox struct {
	queue chan queued
	room  *semaphore.Weighted // bytes
	size  atomic.Int64        // bytes that wait
	once  sync.Once
}

// queued is a message that waits to be sent.
type queued struct {
	b    []byte
	lent bool // it is of the budget of all peers
}

func newMeshPeer(s *meshSwitch, a mesh.Address) *meshPeer {
	p := &meshPeer{sw: s, addr: a, id: idOf(a), since: time.Now(), ready: make(chan struct{}),
		bytes: rate.NewLimiter(receiveRate, receiveBurst), count: rate.NewLimiter(messageRate, messageBurst), memory: s.budget.share(peerMemory),
		out: make(map[byte]*outbox, len(s.channels)), in: make(map[byte]net.Conn)}
	p.ctx, p.cancel = context.WithCancel(s.ctx)
	for id, ch := range s.channels {
		p.out[id] = &outbox{queue: make(chan queued, max(ch.SendQueueCapacity, queueLeast)), room: semaphore.NewWeighted(queueBytes)}
	}
	p.BaseService = *service.NewBaseService(nil, "MeshPeer", p)
	return p
}

// end breaks off the peer's streams.
func (p *meshPeer) end() {
	p.cancel()
	p.mu.Lock()
	conns := p.conns
	p.conns = nil
	p.sw.outgoing.give(p.lent)
	p.lent = 0
	p.mu.Unlock()
	for _, c := range conns {
		p2p.Reset(c, p2p.CodeRefused)
	}
}

// hold notes a stream to be reset at the end, and reports whether that is still to come.
func (p *meshPeer) hold(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return false
	}
	p.conns = append(p.conns, c)
	return true
}

// attach notes a stream that the peer opened; false when it has one of that channel.
func (p *meshPeer) attach(id byte, c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || p.in[id] != nil {
		return false
	}
	p.in[id] = c
	p.conns = append(p.conns, c)
	return true
}

// Send queues a message and waits for room if need be.
func (p *meshPeer) Send(e cp2p.Envelope) bool { return p.send(e, sendTime) }

// TrySend queues a message if there is room.
func (p *meshPeer) TrySend(e cp2p.Envelope) bool { return p.send(e, 0) }

func (p *meshPeer) send(e cp2p.Envelope, wait time.Duration) bool {
	if p.ctx.Err() != nil {
		return false
	}
	b, err := encode(e.Message)
	if err != nil {
		p.sw.Logger.Error("encode message", "channel", e.ChannelID, "err", err)
		return false
	}
	return p.enqueue(e.ChannelID, b, wait)
}

// encode gives a message as it travels. Some are wrapped in an outer one.
func encode(m proto.Message) ([]byte, error) {
	if w, ok := m.(cp2p.Wrapper); ok {
		m = w.Wrap()
	}
	return proto.Marshal(m)
}

func (p *meshPeer) enqueue(id byte, b []byte, wait time.Duration) bool {
	o := p.out[id]
	if o == nil {
		return false
	}
	if size := int64(min(len(b), queueBytes)); !o.room.TryAcquire(size) {
		if wait == 0 {
			return false
		}
		ctx, cancel := context.WithTimeout(p.ctx, wait)
		err := o.room.Acquire(ctx, size)
		cancel()
		if err != nil {
			return false
		}
	}
	q := queued{b: b}
	if o.size.Add(int64(len(b))) > queueOwn {
		if q.lent = p.borrow(int64(len(b))); !q.lent {
			p.sent(o, q)
			return false
		}
	}
	select {
	case o.queue <- q:
	default:
		if wait == 0 || !p.push(o, q, wait) {
			p.sent(o, q)
			return false
		}
	}
	o.once.Do(func() { go p.write(id, o) })
	return true
}

// borrow takes from the budget of all peers, what is not sent until the end is given back
// then.
func (p *meshPeer) borrow(n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || !p.sw.outgoing.take(n) {
		return false
	}
	p.lent += n
	return true
}

// sent gives back what a message took that does not wait any more.
func (p *meshPeer) sent(o *outbox, q queued) {
	n := int64(len(q.b))
	o.room.Release(min(n, queueBytes))
	o.size.Add(-n)
	if !q.lent {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lent >= n { // else the end gave it back
		p.lent -= n
		p.sw.outgoing.give(n)
	}
}

func (p *meshPeer) push(o *outbox, q queued, wait time.Duration) bool {
	late := time.NewTimer(wait)
	defer late.Stop()
	select {
	case o.queue <- q:
		return true
	case <-late.C:
	case <-p.ctx.Done():
	}
	return false
}

// write opens the stream of a channel and sends what is queued, until the peer leaves.
func (p *meshPeer) write(id byte, o *outbox) {
	if !p.sw.net.Connected(p.addr) {
		p.sw.drop(p, errors.New("disconnected"), dropLater)
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, openTime)
	c, err := p.sw.net.Dial(ctx, p.addr, protocolName)
	cancel()
	if err != nil {
		p.sw.drop(p, fmt.Errorf("open channel %#x: %w", id, err), dropRarely)
		return
	}
	if !p.hold(c) {
		p2p.Reset(c, p2p.CodeRefused)
		return
	}
	if err := p.writeStream(id, o, c); err != nil && p.ctx.Err() == nil {
		p.sw.drop(p, fmt.Errorf("send on channel %#x: %w", id, err), dropLater)
	}
}

func (p *meshPeer) writeStream(id byte, o *outbox, c net.Conn) error {
	go p.listen(id, c)
	w := bufio.NewWriterSize(deadlined{c}, 32<<10)
	w.WriteByte(id) // reported by Flush, like all that is written
	for {
		select {
		case <-p.ctx.Done():
			return nil
		case q := <-o.queue:
			if err := p.writeQueued(w, o, q); err != nil {
				return err
			}
		}
	}
}

// listen notices that the peer broke a stream off: what was sent on it last may be lost,
// and nothing else may be due for long, so that both would wait for each other.
func (p *meshPeer) listen(id byte, c net.Conn) {
	_, err := c.Read(make([]byte, 1))
	if p.ctx.Err() != nil {
		return
	}
	if err == nil {
		err = errors.New("it wrote on a stream that nothing comes back on")
	}
	p.sw.drop(p, fmt.Errorf("the peer ended channel %#x: %w", id, err), dropLater)
}

// writeQueued writes a message and those that wait behind it.
func (p *meshPeer) writeQueued(w *bufio.Writer, o *outbox, q queued) error {
	for {
		var size [binary.MaxVarintLen64]byte
		w.Write(size[:binary.PutUvarint(size[:], uint64(len(q.b)))])
		_, err := w.Write(q.b)
		p.sent(o, q)
		if err != nil {
			return err
		}
		select {
		case q = <-o.queue:
		default:
			return w.Flush()
		}
	}
}

// deadlined gives each write a time to end in.
type deadlined struct{ net.Conn }

func (d deadlined) Write(b []byte) (int, error) {
	if err := d.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return 0, err
	}
	return d.Conn.Write(b)
}

// read passes the messages of a stream to their reactor.
func (p *meshPeer) read(c net.Conn, ch *channel) error {
	in := newFrames(c, min(ch.RecvMessageCapacity, messageLimit), p.memory)
	defer in.done()
	for {
		b, err := in.next()
		if err != nil {
			return err
		}
		if err := p.pace(len(b)); err != nil {
			return err
		}
		if err := p.deliver(ch, b); err != nil {
			return err
		}
		in.done()
	}
}

// pace holds back a peer that sends more than its share.
func (p *meshPeer) pace(n int) error {
	if err := p.count.Wait(p.ctx); err != nil {
		return err
	}
	return p.bytes.WaitN(p.ctx, n)
}

// deliver decodes a message and hands it to its reactor. That code panics over a message is
// no reason to end the process. To decode one needs the message alone, so that a panic there
// is its sender's fault; a reactor's may be this node's, like a disk that is broken.
func (p *meshPeer) deliver(ch *channel, b []byte) (err error) {
	handed := false
	defer func() {
		switch r := recover(); {
		case r == nil:
		case handed:
			err = &ownFault{fmt.Errorf("panic: %v", r)}
		default:
			err = &badMessage{fmt.Errorf("panic: %v", r)}
		}
	}()
	if f, ok := ch.reactor.(cp2p.MsgBytesFilter); ok {
		if err := f.FilterMsgBytes(ch.ID, p, b); err != nil {
			return &badMessage{err}
		}
	}
	m := proto.Clone(ch.MessageType)
	if err := proto.Unmarshal(b, m); err != nil {
		return &badMessage{err}
	}
	if u, ok := m.(cp2p.Unwrapper); ok {
		if m, err = u.Unwrap(); err != nil {
			return &badMessage{err}
		}
	}
	if p.ctx.Err() != nil {
		return p.ctx.Err()
	}
	handed = true
	ch.reactor.Receive(cp2p.Envelope{ChannelID: ch.ID, Src: p, Message: m})
	return nil
}

// OnStop breaks off the peer's streams.
func (p *meshPeer) OnStop() { p.end() }

func (p *meshPeer) ID() cp2p.ID             { return p.id }
func (p *meshPeer) Set(key string, v any)   { p.values.Store(key, v) }
func (p *meshPeer) IsOutbound() bool        { return true }
func (p *meshPeer) IsPersistent() bool      { return true }
func (p *meshPeer) FlushStop()              { p.CloseConn() }
func (p *meshPeer) SetRemovalFailed()       {}
func (p *meshPeer) GetRemovalFailed() bool  { return false }
func (p *meshPeer) String() string          { return "MeshPeer{" + string(p.id) + "}" }
func (p *meshPeer) NodeInfo() cp2p.NodeInfo { return cp2p.DefaultNodeInfo{DefaultNodeID: p.id} }

// Get returns what a reactor set, nil when it set nothing.
func (p *meshPeer) Get(key string) any {
	v, _ := p.values.Load(key)
	return v
}

// CloseConn takes the peer away. The connection stays: it carries more than the ledger.
func (p *meshPeer) CloseConn() error {
	p.sw.drop(p, errors.New("closed by a reactor"), dropLater)
	return nil
}

// The rest tells of a socket of its own, which this peer has not.
func (p *meshPeer) RemoteIP() net.IP              { return net.IPv4zero }
func (p *meshPeer) RemoteAddr() net.Addr          { return &net.TCPAddr{IP: net.IPv4zero} }
func (p *meshPeer) SocketAddr() *cp2p.NetAddress  { return &cp2p.NetAddress{ID: p.id, IP: net.IPv4zero} }
func (p *meshPeer) Status() cp2p.ConnectionStatus { return cp2p.ConnectionStatus{} }
