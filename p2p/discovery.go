package p2p

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/gonka-mesh/mesh"
)

// Intervals of discovery.
const (
	sweepEvery  = 5 * time.Second        // expired adverts
	mendEvery   = 10 * time.Second       // topics with few peers
	walkEvery   = 10 * time.Minute       // the routing table
	findSteady  = time.Minute            // a followed key, by a node on its topic
	findLight   = 10 * time.Second       // a followed key, by a light peer
	findAgain   = 500 * time.Millisecond // the same, after it lost a peer
	findTimeout = 8 * time.Second
	helloWait   = 5 * time.Second
)

// blame counts points against a peer for a fault. It does not block.
type blame func(id peer.ID, fault string, points int)

// discovery finds who offers what: adverts by gossip and from peers that are
// asked, provider records in the DHT, and the local network by mDNS.
type discovery struct {
	host   host.Host
	cfg    *Config
	ok     func(peer.ID) bool // the peer's hello agreed
	log    *slog.Logger
	gossip *gossip
	dht    *dht.IpfsDHT
	table  *advertTable
	peers  *peersServer
	own    *announcer
	given  *provider
	news   *peerRates // authors unknown before, by who passes them on
	asks   *peerRates // DHT requests
	kicks  chan struct{}
	faults chan fault
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	// penalise receives the faults of peers; set once before start.
	penalise blame

	mu      sync.Mutex
	follows map[mesh.Hash]*follow // guarded by mu
	shards  map[string]*Topic     // joined advert topics; guarded by mu
	started bool                  // guarded by mu
	seeking bool                  // relays are short; guarded by mu
	mdns    *localFinder          // nil when off; guarded by mu
}

// follow is a key whose adverts are wanted.
type follow struct {
	refs   int
	next   time.Time
	rounds int
	busy   bool
}

type fault struct {
	peer   peer.ID
	reason string
	points int
}

// newDiscovery builds discovery on a host that need not listen yet.
func newDiscovery(h host.Host, cfg *Config, ok func(peer.ID) bool) (*discovery, error) {
	d := &discovery{
		host: h, cfg: cfg, ok: ok, log: cfg.Log,
		table:    newAdvertTable(cfg.Network),
		news:     newPeerRates(10, 512),
		asks:     newPeerRates(100, 1000),
		kicks:    make(chan struct{}, 1),
		faults:   make(chan fault, 64),
		penalise: func(peer.ID, string, int) {},
		follows:  make(map[mesh.Hash]*follow),
		shards:   make(map[string]*Topic),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.peers = newPeersServer(d)
	d.own = newAnnouncer()
	d.given = newProvider()
	var err error
	if d.gossip, err = newGossip(h, cfg, d.blame); err != nil {
		d.cancel()
		return nil, err
	}
	if d.dht, err = d.newDHT(); err != nil {
		d.gossip.close()
		d.cancel()
		return nil, fmt.Errorf("start DHT: %w", err)
	}
	h.SetStreamHandler(d.peers.protocol, d.peers.serve)
	return d, nil
}

// start begins to look for peers; it goes on until close.
func (d *discovery) start(context.Context) error {
	sub, err := d.host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerConnectednessChanged),
		new(event.EvtLocalAddressesUpdated), new(event.EvtLocalReachabilityChanged),
	}, eventbus.BufSize(256))
	if err != nil {
		return fmt.Errorf("subscribe to peer events: %w", err)
	}
	d.mu.Lock()
	d.started = true
	d.mu.Unlock()
	d.startMDNS()
	d.tasks.Go(func() { d.watchPeers(sub) })
	d.tasks.Go(d.blaming)
	d.tasks.Go(d.announce)
	d.tasks.Go(d.provide)
	d.tasks.Go(d.housekeep)
	return nil
}

// close says goodbye and ends everything.
func (d *discovery) close() {
	d.mu.Lock()
	started, finder := d.started, d.mdns
	d.started, d.mdns = false, nil
	d.mu.Unlock()
	if finder != nil {
		finder.close()
	}
	if started {
		d.goodbye()
	}
	d.cancel()
	d.host.RemoveStreamHandler(d.peers.protocol)
	d.tasks.Wait()
	if err := d.dht.Close(); err != nil {
		d.log.Debug("DHT not closed in order", "err", err)
	}
	d.gossip.close()
}

// blame hands a fault to the loop that acts on it. A peer that makes faults
// faster than they are handled has enough of them in the queue.
func (d *discovery) blame(id peer.ID, reason string, points int) {
	select {
	case d.faults <- fault{id, reason, points}:
	default:
	}
}

func (d *discovery) blaming() {
	for {
		select {
		case <-d.ctx.Done():
			return
		case f := <-d.faults:
			d.penalise(f.peer, f.reason, f.points)
		}
	}
}

// watchPeers greets peers that come and forgets those that go.
func (d *discovery) watchPeers(sub event.Subscription) {
	defer sub.Close()
	for {
		var e any
		select {
		case <-d.ctx.Done():
			return
		case e = <-sub.Out():
		}
		switch e := e.(type) {
		case event.EvtPeerIdentificationCompleted:
			d.tasks.Go(func() { d.greet(e.Peer) })
		case event.EvtPeerConnectednessChanged:
			if e.Connectedness == network.NotConnected {
				d.gossip.filter.forget(e.Peer)
				d.gossip.inbound.forget(e.Peer)
			}
		case event.EvtLocalAddressesUpdated:
			d.own.changed()
			d.restartMDNS()
		case event.EvtLocalReachabilityChanged:
			relays := e.Reachability == network.ReachabilityPublic && d.cfg.Role != RoleLight && !d.cfg.NoListen
			d.own.setRelay(relays)
		}
	}
}

// greet asks a new peer for the adverts that it knows.
func (d *discovery) greet(id peer.ID) {
	ctx, cancel := context.WithTimeout(d.ctx, findTimeout)
	defer cancel()
	if !d.waitHello(ctx, id) {
		return
	}
	if known, err := d.host.Peerstore().SupportsProtocols(id, d.peers.protocol); err != nil || len(known) == 0 {
		return
	}
	keys := d.followed(4)
	if len(keys) == 0 || d.cfg.Role != RoleLight {
		keys = append(keys, mesh.Hash{})
	}
	for _, key := range keys {
		if err := d.ask(ctx, id, key, greetAdverts); err != nil {
			d.log.Debug("peer not asked for adverts", "peer", id.String(), "err", err)
			return
		}
	}
}

// waitHello reports whether the peer's hello agrees within helloWait.
func (d *discovery) waitHello(ctx context.Context, id peer.ID) bool {
	ctx, cancel := context.WithTimeout(ctx, helloWait)
	defer cancel()
	return poll(ctx, func() bool { return d.ok(id) })
}

// poll waits until cond holds; false when ctx ends first.
func poll(ctx context.Context, cond func() bool) bool {
	if cond() {
		return true
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return cond()
		case <-tick.C:
			if cond() {
				return true
			}
		}
	}
}

// housekeep runs what is due from time to time.
func (d *discovery) housekeep() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	begin := time.Now()
	sweep, mend, walk := begin.Add(sweepEvery), begin.Add(2*time.Second), begin
	for {
		d.lookAround()
		select {
		case <-d.ctx.Done():
			return
		case <-d.kicks:
			continue
		case <-tick.C:
		}
		now := time.Now()
		if now.After(sweep) {
			d.table.sweep(now)
			sweep = now.Add(sweepEvery)
		}
		if now.After(mend) {
			d.tasks.Go(d.mendTopics)
			mend = now.Add(mendEvery)
		}
		if now.After(walk) && d.dht.RoutingTable().Size() > 0 {
			d.tasks.Go(d.walk)
			walk = now.Add(walkEvery)
		}
		d.own.retryLonely()
		d.seekRelays()
	}
}

// kick makes housekeep look at the follows at once.
func (d *discovery) kick() {
	select {
	case d.kicks <- struct{}{}:
	default:
	}
}

// lost makes a light peer ask anew soon: who it lost may come back under another
// address, which its other peers hear before it does.
func (d *discovery) lost() {
	if d.cfg.Role != RoleLight {
		return
	}
	soon := time.Now().Add(findAgain)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.follows {
		f.rounds = 0
		if f.next.After(soon) {
			f.next = soon
		}
	}
	time.AfterFunc(findAgain, d.kick)
}

// Follow keeps the adverts of a key up to date: a full node joins its topic, a
// light peer asks its peers every ten seconds, and when it has lost one. The zero key is all keys. It is
// undone by as many Unfollow.
func (h *Host) Follow(key mesh.Hash) { h.disc.follow(key) }

// Unfollow ends one Follow.
func (h *Host) Unfollow(key mesh.Hash) { h.disc.unfollow(key) }

func (d *discovery) follow(key mesh.Hash) {
	d.mu.Lock()
	f := d.follows[key]
	if f == nil {
		f = &follow{}
		d.follows[key] = f
	}
	f.refs++
	d.mu.Unlock()
	d.syncShards()
	d.kick()
}

func (d *discovery) unfollow(key mesh.Hash) {
	d.mu.Lock()
	if f := d.follows[key]; f != nil {
		if f.refs--; f.refs <= 0 {
			delete(d.follows, key)
		}
	}
	d.mu.Unlock()
	d.syncShards()
}

// followed returns up to n of the followed keys.
func (d *discovery) followed(n int) []mesh.Hash {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []mesh.Hash
	for k := range d.follows {
		if len(out) == n {
			break
		}
		out = append(out, k)
	}
	return out
}

// lookAround starts a search for each followed key that is due: at once, then
// after 1, 2, 4 … seconds up to the steady interval.
func (d *discovery) lookAround() {
	now := time.Now()
	steady := findSteady
	if d.cfg.Role == RoleLight {
		steady = findLight
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, f := range d.follows {
		if f.busy || now.Before(f.next) {
			continue
		}
		f.busy = true
		f.next = now.Add(min(steady, time.Second<<min(f.rounds, 10)))
		f.rounds++
		d.tasks.Go(func() {
			ctx, cancel := context.WithTimeout(d.ctx, findTimeout)
			defer cancel()
			d.find(ctx, key)
			d.mu.Lock()
			f.busy = false
			d.mu.Unlock()
		})
	}
}

// Find asks around for a key once, over connected peers and the DHT, and returns
// the adverts known when that is done or ctx ends.
func (h *Host) Find(ctx context.Context, key mesh.Hash) []Advert {
	h.disc.find(ctx, key)
	return h.Adverts(key)
}

// find asks connected peers and, for a certain key, the providers in the DHT.
// One provider that answers knows the others, as they share a topic.
func (d *discovery) find(ctx context.Context, key mesh.Hash) {
	var asks sync.WaitGroup
	defer asks.Wait()
	for _, id := range d.connected(8) {
		asks.Go(func() { d.ask(ctx, id, key, findAdverts) })
	}
	if key.IsZero() {
		return
	}
	places := make(chan struct{}, 8)
	for info := range d.providers(ctx, key, 64) {
		a, err := addressOf(info.ID)
		if err != nil || d.lists(a, key) {
			continue
		}
		asks.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			if d.lists(a, key) || d.host.Connect(ctx, info) != nil || !d.waitHello(ctx, info.ID) {
				return
			}
			d.ask(ctx, info.ID, key, findAdverts)
		})
	}
}

// lists reports whether the table has the peer's advert with the key.
func (d *discovery) lists(a mesh.Address, key mesh.Hash) bool {
	ad, ok := d.table.of(a, time.Now())
	return ok && ad.offers(key)
}

// connected returns up to n connected peers whose hello agreed, drawn by chance.
func (d *discovery) connected(n int) []peer.ID {
	var out []peer.ID
	all := d.host.Network().Peers()
	for _, i := range rand.Perm(len(all)) {
		if len(out) < n && d.ok(all[i]) {
			out = append(out, all[i])
		}
	}
	return out
}
