package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	cmtlog "github.com/cometbft/cometbft/libs/log"
	"github.com/cometbft/cometbft/libs/service"
	cp2p "github.com/cometbft/cometbft/p2p"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p"
)

// meshSwitch runs CometBFT's reactors over the mesh's host. It is a p2p.Switcher of
// CometBFT with the semantics of that one's own transport: messages of one channel
// arrive in order, Send waits for room in a queue, TrySend does not, and a peer that
// failed in any way is taken away whole and comes back with a fresh state, so that no
// reactor believes a peer to have what was lost on the way.
//
// Each side opens one stream of the protocol "comet" per channel that it sends on. Who
// is a peer follows from the host: every connected full node whose hello agreed.
type meshSwitch struct {
	service.BaseService
	net      *p2p.Host
	log      *slog.Logger
	info     cp2p.NodeInfo
	reactors []namedReactor
	channels map[byte]*channel
	set      *cp2p.PeerSet
	budget   *budget // of what comes in
	outgoing *budget // of what waits to be sent, beyond queueOwn a channel

	ctx     context.Context
	cancel  context.CancelFunc
	ln      net.Listener
	changed chan struct{} // the host's peers may have changed
	unwatch func()
	tasks   sync.WaitGroup

	mu    sync.Mutex
	peers map[mesh.Address]*meshPeer // those that are leaving included; guarded by mu
	later map[mesh.Address]*penance  // guarded by mu
}

type namedReactor struct {
	name string
	cp2p.Reactor
}

// channel is one kind of messages of a reactor.
type channel struct {
	cp2p.ChannelDescriptor
	reactor cp2p.Reactor
}

// penance is for how long a peer that failed stays away.
type penance struct {
	times  int
	until  time.Time // before which this node does not make it a peer by itself
	open   time.Time // before which its streams wait
	refuse bool      // they are refused instead: the fault was seen here
}

const (
	protocolName = "comet"
	firstPenance = time.Second
	lastPenance  = time.Minute     // of one that was at fault or serves no ledger
	lastPause    = 4 * time.Second // of one whose streams broke off
	goodAfter    = 5 * time.Minute // of running well a peer's failures are forgotten
	lookEvery    = time.Second     // at the peers, without news of them

	pointsBadMessage = 20
	pointsNotFull    = 10 // a stream of a light node
)

var _ cp2p.Switcher = (*meshSwitch)(nil)

func newMeshSwitch(host *p2p.Host, reactors []namedReactor, log *slog.Logger, clog cmtlog.Logger) (*meshSwitch, error) {
	s := &meshSwitch{
		net: host, log: log, reactors: reactors,
		channels: make(map[byte]*channel), set: cp2p.NewPeerSet(), budget: newBudget(messageMemory), outgoing: newBudget(outgoingMemory),
		changed: make(chan struct{}, 1),
		peers:   make(map[mesh.Address]*meshPeer), later: make(map[mesh.Address]*penance),
		info: cp2p.DefaultNodeInfo{DefaultNodeID: idOf(host.Address())},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.BaseService = *service.NewBaseService(clog, "MeshSwitch", s)
	for _, r := range reactors {
		for _, d := range r.GetChannels() {
			if s.channels[d.ID] != nil {
				return nil, fmt.Errorf("channel %#x has two reactors", d.ID)
			}
			s.channels[d.ID] = &channel{ChannelDescriptor: d.FillDefaults(), reactor: r.Reactor}
		}
		r.SetSwitch(s)
	}
	return s, nil
}

// idOf is a mesh address as the ID that reactors know a peer by.
func idOf(a mesh.Address) cp2p.ID { return cp2p.ID(a.String()) }

// OnStart starts the reactors and lets peers in.
func (s *meshSwitch) OnStart() error {
	ln, err := s.net.Listen(protocolName, p2p.Limits{
		PerPeer: 2 * len(s.channels), IdlePerPeer: 2 * len(s.channels), Total: 4096, Idle: 24 * time.Hour,
	})
	if err != nil {
		return err
	}
	for i, r := range s.reactors {
		if err := r.Start(); err != nil {
			for _, started := range s.reactors[:i] {
				started.Stop()
			}
			ln.Close()
			return fmt.Errorf("start reactor %s: %w", r.name, err)
		}
	}
	s.ln = ln
	s.unwatch = s.net.WatchPeers(s.look)
	s.tasks.Go(s.accept)
	s.tasks.Go(s.follow)
	return nil
}

// OnStop takes all peers away and stops the reactors. The host stays as it is.
func (s *meshSwitch) OnStop() {
	s.cancel()
	s.unwatch()
	s.ln.Close()
	s.mu.Lock()
	var peers []*meshPeer
	for _, p := range s.peers {
		peers = append(peers, p)
	}
	s.mu.Unlock()
	for _, p := range peers {
		if p.leaving.CompareAndSwap(false, true) {
			p.end()
			s.remove(p, errors.New("the node stops"))
		}
	}
	for _, r := range s.reactors {
		if err := r.Stop(); err != nil {
			s.Logger.Debug("stop reactor", "reactor", r.name, "err", err)
		}
	}
	// A reader may hang in a reactor that no longer takes messages.
	done := make(chan struct{})
	go func() { s.tasks.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
	}
}

func (s *meshSwitch) look() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// follow keeps the peers what the host's full nodes are.
func (s *meshSwitch) follow() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		s.reconcile()
		select {
		case <-s.ctx.Done():
			return
		case <-s.changed:
		case <-tick.C:
		}
	}
}

func (s *meshSwitch) reconcile() {
	now := time.Now()
	here := make(map[mesh.Address]bool)
	for _, info := range s.net.Peers() {
		if !isFull(info) {
			continue
		}
		here[info.Address] = true
		s.mu.Lock()
		known := s.peers[info.Address] != nil
		sorry := s.later[info.Address]
		s.mu.Unlock()
		if !known && (sorry == nil || !now.Before(sorry.until)) {
			s.add(info.Address)
		}
	}
	s.mu.Lock()
	var gone []*meshPeer
	for a, p := range s.peers {
		if !here[a] {
			gone = append(gone, p)
		}
	}
	for a, sorry := range s.later {
		if s.peers[a] == nil && now.Sub(sorry.until) > goodAfter {
			delete(s.later, a)
		}
	}
	s.mu.Unlock()
	for _, p := range gone {
		s.drop(p, errors.New("disconnected"), dropQuietly)
	}
}

func isFull(info p2p.PeerInfo) bool {
	return info.Role == p2p.RoleHost || info.Role == p2p.RoleValidator
}

// add makes a peer of a full node; nil when it is one that is leaving, or the switch stops.
func (s *meshSwitch) add(a mesh.Address) *meshPeer {
	s.mu.Lock()
	if p := s.peers[a]; p != nil || s.ctx.Err() != nil {
		s.mu.Unlock()
		if p == nil {
			return nil
		}
		<-p.ready
		if p.ctx.Err() != nil {
			return nil
		}
		return p
	}
	p := newMeshPeer(s, a)
	s.peers[a] = p
	s.mu.Unlock()
	defer close(p.ready)
	for _, r := range s.reactors {
		r.InitPeer(p)
	}
	p.Start() // cannot fail: the peer is new
	s.set.Add(p)
	for _, r := range s.reactors {
		r.AddPeer(p)
	}
	s.Logger.Debug("peer added", "peer", p.ID())
	return p
}

// What becomes of a peer that is taken away.
type dropMode int

const (
	dropQuietly dropMode = iota // it may come back at once
	dropLater                   // after a pause
	dropRarely                  // after a long pause in the end, unless it comes itself
	dropRefuse                  // and until then its streams are refused
)

// drop takes a peer away. The caller may be one of its own goroutines, or a reactor
// that holds a lock.
func (s *meshSwitch) drop(p *meshPeer, reason error, mode dropMode) {
	if !p.leaving.CompareAndSwap(false, true) {
		return
	}
	p.end()
	if mode != dropQuietly {
		s.punish(p, mode)
	}
	go s.remove(p, reason)
}

func (s *meshSwitch) remove(p *meshPeer, reason error) {
	<-p.ready
	p.Stop()
	for _, r := range s.reactors {
		r.RemovePeer(p, reason)
	}
	s.set.Remove(p)
	s.mu.Lock()
	delete(s.peers, p.addr)
	s.mu.Unlock()
	s.Logger.Debug("peer removed", "peer", p.ID(), "reason", reason)
	s.look()
}

func (s *meshSwitch) punish(p *meshPeer, mode dropMode) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	sorry := s.later[p.addr]
	if sorry == nil || now.Sub(p.since) > goodAfter {
		sorry = &penance{}
		s.later[p.addr] = sorry
	}
	pause := firstPenance << min(sorry.times, 10)
	sorry.times++
	sorry.refuse = mode == dropRefuse
	sorry.open = now.Add(min(pause, lastPause))
	sorry.until = sorry.open
	if mode != dropLater {
		sorry.until = now.Add(min(pause, lastPenance))
	}
}

// penitent waits until the streams of a peer are welcome again, and reports false when
// they are refused until then.
func (s *meshSwitch) penitent(a mesh.Address) bool {
	now := time.Now()
	s.mu.Lock()
	sorry := s.later[a]
	var wait time.Duration
	refuse := false
	if sorry != nil {
		wait, refuse = sorry.open.Sub(now), sorry.refuse && now.Before(sorry.until)
	}
	s.mu.Unlock()
	if refuse || wait <= 0 {
		return !refuse
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// accept takes in the streams that peers open.
func (s *meshSwitch) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.tasks.Go(func() { s.receive(c) })
	}
}

// receive serves one stream of a peer: a byte that names the channel, then messages.
func (s *meshSwitch) receive(c net.Conn) {
	a, _ := p2p.RemotePeer(c)
	info, ok := s.net.Peer(a)
	if !ok || !isFull(info) {
		if ok {
			s.net.Penalise(a, "comet: not a full node", pointsNotFull)
		}
		p2p.Reset(c, p2p.CodeRefused)
		return
	}
	var id [1]byte
	c.SetReadDeadline(time.Now().Add(frameTime))
	if _, err := c.Read(id[:]); err != nil {
		p2p.Reset(c, p2p.CodeIdle)
		return
	}
	ch := s.channels[id[0]]
	if ch == nil {
		s.net.Penalise(a, fmt.Sprintf("comet: no channel %#x", id[0]), pointsBadMessage)
		p2p.Reset(c, p2p.CodeViolation)
		return
	}
	if !s.penitent(a) {
		p2p.Reset(c, p2p.CodeBusy)
		return
	}
	p := s.add(a)
	if p == nil || !p.attach(ch.ID, c) {
		// Either the peer leaves, or it started over before this node noticed: what is
		// known of it is void.
		if p != nil {
			s.drop(p, errors.New("the peer started over"), dropRefuse)
		}
		p2p.Reset(c, p2p.CodeBusy)
		return
	}
	err := p.read(c, ch)
	s.lost(p, ch, err)
	p2p.Reset(c, p2p.CodeRefused)
}

// lost takes a peer away whose stream ended, and holds against it what was its fault.
func (s *meshSwitch) lost(p *meshPeer, ch *channel, err error) {
	var bad *badMessage
	if errors.As(err, &bad) {
		s.blame(p, fmt.Errorf("channel %#x: %w", ch.ID, err))
		return
	}
	var own *ownFault
	if errors.As(err, &own) {
		s.log.Warn("ledger: this node failed over a message; who sent it is left alone for a while", "peer", p.addr.String(), "channel", fmt.Sprintf("%#x", ch.ID), "err", clipText(err.Error()))
		s.drop(p, err, dropRefuse)
		return
	}
	if p.ctx.Err() == nil {
		s.drop(p, fmt.Errorf("stream of channel %#x: %w", ch.ID, err), dropLater)
	}
}

// blame takes a peer away for a message that it cannot have meant well.
func (s *meshSwitch) blame(p *meshPeer, err error) {
	s.log.Warn("ledger peer dropped for a bad message", "peer", p.addr.String(), "err", err)
	s.net.Penalise(p.addr, "comet: "+clipText(err.Error()), pointsBadMessage)
	s.drop(p, err, dropRefuse)
}

func clipText(s string) string { return s[:min(len(s), 200)] }

// StopPeerForError takes a peer away that a reactor found fault with. Its connection
// stays: it may carry inference, and the host judges peers by its own points.
func (s *meshSwitch) StopPeerForError(peer cp2p.Peer, reason any) {
	p, ok := peer.(*meshPeer)
	if !ok {
		return
	}
	if bad, ok := reason.(*badMessage); ok {
		s.blame(p, bad)
		return
	}
	s.log.Info("ledger peer dropped", "peer", p.addr.String(), "reason", clipText(fmt.Sprint(reason)))
	s.drop(p, fmt.Errorf("%v", reason), dropRefuse)
}

// StopPeerGracefully takes a peer away for a while.
func (s *meshSwitch) StopPeerGracefully(peer cp2p.Peer) {
	if p, ok := peer.(*meshPeer); ok {
		s.drop(p, errors.New("no longer needed"), dropLater)
	}
}

// BroadcastAsync sends a message to all peers and waits for none.
func (s *meshSwitch) BroadcastAsync(e cp2p.Envelope) {
	b, err := encode(e.Message)
	if err != nil {
		s.Logger.Error("encode message", "err", err)
		return
	}
	s.set.ForEach(func(p cp2p.Peer) {
		if p, ok := p.(*meshPeer); ok && !p.enqueue(e.ChannelID, b, 0) {
			go p.enqueue(e.ChannelID, b, sendTime)
		}
	})
}

// TryBroadcast sends a message to those peers that have room for it.
func (s *meshSwitch) TryBroadcast(e cp2p.Envelope) {
	b, err := encode(e.Message)
	if err != nil {
		s.Logger.Error("encode message", "err", err)
		return
	}
	s.set.ForEach(func(p cp2p.Peer) {
		if p, ok := p.(*meshPeer); ok {
			p.enqueue(e.ChannelID, b, 0)
		}
	})
}

// Reactor returns a reactor by name: blocksync finds the others so.
func (s *meshSwitch) Reactor(name string) (cp2p.Reactor, bool) {
	for _, r := range s.reactors {
		if r.name == name {
			return r.Reactor, true
		}
	}
	return nil, false
}

// NumPeers counts the peers; none is dialled here.
func (s *meshSwitch) NumPeers() (outbound, inbound, dialing int) { return s.set.Size(), 0, 0 }

func (s *meshSwitch) Peers() cp2p.IPeerSet    { return s.set }
func (s *meshSwitch) NodeInfo() cp2p.NodeInfo { return s.info }
func (s *meshSwitch) Log() cmtlog.Logger      { return s.Logger }

// The rest is for transports that dial: here the mesh's host does.
var errHostDials = errors.New("the mesh's host chooses the peers")

func (s *meshSwitch) MaxNumOutboundPeers() int                           { return 0 }
func (s *meshSwitch) AddPersistentPeers([]string) error                  { return errHostDials }
func (s *meshSwitch) AddPrivatePeerIDs([]string) error                   { return errHostDials }
func (s *meshSwitch) AddUnconditionalPeerIDs([]string) error             { return errHostDials }
func (s *meshSwitch) DialPeerWithAddress(*cp2p.NetAddress) error         { return errHostDials }
func (s *meshSwitch) DialPeersAsync([]string) error                      { return errHostDials }
func (s *meshSwitch) IsDialingOrExistingAddress(a *cp2p.NetAddress) bool { return s.set.Has(a.ID) }
func (s *meshSwitch) IsPeerPersistent(*cp2p.NetAddress) bool             { return true }
func (s *meshSwitch) IsPeerUnconditional(cp2p.ID) bool                   { return false }
func (s *meshSwitch) MarkPeerAsGood(cp2p.Peer)                           {}
func (s *meshSwitch) AddReactor(string, cp2p.Reactor) cp2p.Reactor       { return nil }
func (s *meshSwitch) RemoveReactor(string, cp2p.Reactor)                 {}
