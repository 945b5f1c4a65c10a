package p2p

import (
	"context"
	"encoding/binary"
	"iter"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	dhtpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p-kbucket/peerdiversity"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/multiformats/go-multihash"

	"github.com/gonka-mesh/mesh"
)

// Times of provider records.
const (
	reprovideEvery = time.Hour
	provideValid   = 3 * time.Hour
	provideTimeout = 30 * time.Second
	provideAhead   = 10 * time.Second // before the record of the next epoch is made
	provideAtOnce  = 4
	tableWait      = 3 * time.Second
)

// capShards is the number of places in the DHT that hold the providers of a key,
// so that whoever sits around one of them cannot hide it.
const capShards = 2

// newDHT builds the DHT of this network alone. Hosts serve it unless they know
// that they cannot be reached; light peers only ask.
func (d *discovery) newDHT() (*dht.IpfsDHT, error) {
	mode := dht.ModeAutoServer
	switch {
	case d.cfg.Role == RoleLight || d.cfg.NoListen:
		mode = dht.ModeClient
	case loopbackOnly(d.cfg) || d.cfg.ListenUDP != nil:
		mode = dht.ModeServer
	}
	options := []dht.Option{
		dht.ProtocolPrefix(protocol.ID("/" + string(d.cfg.Network))),
		dht.Mode(mode),
		dht.DisableValues(),
		// Half of the usual breadth: every lookup connects to whom it asks, and with
		// 20 and 10 each node of 50 held 33 connections instead of 19, for no gain.
		dht.BucketSize(10),
		dht.Concurrency(4),
		// Refreshing every bucket connects a small network completely; walk does less.
		dht.DisableAutoRefresh(),
		dht.ProviderDatastore(newRecordStore()),
		dht.ProviderManagerOpts(records.ProvideValidity(provideValid), records.ProviderAddrTTL(provideValid)),
		dht.AddressFilter(usableAddrs),
		dht.OnRequestHook(d.countRequest),
	}
	if d.cfg.ListenUDP == nil {
		// A network in virtual time lies in one IP group.
		options = append(options, dht.RoutingTablePeerDiversityFilter(newDiversity(d.host)))
	}
	return dht.New(d.host, options...)
}

// countRequest cuts off peers that flood the DHT.
func (d *discovery) countRequest(_ context.Context, st network.Stream, _ *dhtpb.Message) {
	id := st.Conn().RemotePeer()
	if ok, flood := d.asks.take(id, 1, time.Now()); !ok {
		st.Reset()
		if flood {
			d.blame(id, "DHT flood", cutPoints)
		}
	}
}

// smallTable is the number of peers in the routing table under which their IP
// groups do not matter: a fleet in one data centre must still find itself.
const smallTable = 20

// diversity bounds the peers of one public IP group in the routing table: two in
// a bucket, three in all. The peers of a private network share their group with
// good reason.
type diversity struct {
	peerdiversity.PeerIPGroupFilter
	groups map[peer.ID]int // counted in the table; the caller of each method holds its lock
}

func newDiversity(h host.Host) *diversity {
	return &diversity{PeerIPGroupFilter: dht.NewRTPeerDiversityFilter(h, 2, 3), groups: make(map[peer.ID]int)}
}

// Allow admits private addresses, and public ones while the table is small,
// without looking at their group.
func (f *diversity) Allow(g peerdiversity.PeerGroupInfo) bool {
	public := false
	for _, a := range f.PeerAddresses(g.Id) {
		public = public || manet.IsPublicAddr(a)
	}
	return !public || len(f.groups) < smallTable || f.PeerIPGroupFilter.Allow(g)
}

// Increment counts a group of a peer in.
func (f *diversity) Increment(g peerdiversity.PeerGroupInfo) {
	f.groups[g.Id]++
	f.PeerIPGroupFilter.Increment(g)
}

// Decrement counts a group of a peer out.
func (f *diversity) Decrement(g peerdiversity.PeerGroupInfo) {
	if f.groups[g.Id]--; f.groups[g.Id] <= 0 {
		delete(f.groups, g.Id)
	}
	f.PeerIPGroupFilter.Decrement(g)
}

// PeerAddresses returns the addresses of a peer that have an IP.
func (f *diversity) PeerAddresses(id peer.ID) []ma.Multiaddr {
	return ma.FilterAddrs(f.PeerIPGroupFilter.PeerAddresses(id), func(a ma.Multiaddr) bool {
		_, err := manet.ToIP(a)
		return err == nil
	})
}

// walk looks for this node's neighbours, which fills the routing table.
func (d *discovery) walk() {
	ctx, cancel := context.WithTimeout(d.ctx, provideTimeout)
	defer cancel()
	if _, err := d.dht.GetClosestPeers(ctx, string(d.host.ID())); err != nil {
		d.log.Debug("DHT walk failed", "err", err)
	}
}

// waitTable waits until the routing table has a peer: it fills only some time
// after a connection. It reports whether it has.
func (d *discovery) waitTable(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, tableWait)
	defer cancel()
	return poll(ctx, func() bool { return d.dht.RoutingTable().Size() > 0 })
}

// capKey is where the DHT holds the providers of a key in one epoch:
// SHA-256("cap" | network | key | epoch | shard), numbers in 8 bytes big-endian.
// It moves with the epoch, so that nobody can settle around it for long.
func capKey(network mesh.NetworkID, key mesh.Hash, epoch mesh.Epoch, shard int) cid.Cid {
	var numbers [16]byte
	binary.BigEndian.PutUint64(numbers[:8], uint64(epoch))
	binary.BigEndian.PutUint64(numbers[8:], uint64(shard))
	sum := mesh.HashOf([]byte("cap"), []byte(network), key[:], numbers[:])
	hash, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil { // cannot be: a known code and the right length
		return cid.Undef
	}
	return cid.NewCidV1(cid.Raw, hash)
}

// Providers yields peers that claim in the DHT to provide a key, up to most,
// until the search or ctx ends. The claims are not verified.
func (h *Host) Providers(ctx context.Context, key mesh.Hash, most int) iter.Seq[mesh.Address] {
	return func(yield func(mesh.Address) bool) {
		for info := range h.disc.providers(ctx, key, most) {
			if a, err := addressOf(info.ID); err == nil && !yield(a) {
				return
			}
		}
	}
}

// providers asks for the records of this epoch and the one before, in all
// shards at a time.
func (d *discovery) providers(ctx context.Context, key mesh.Hash, most int) iter.Seq[peer.AddrInfo] {
	return func(yield func(peer.AddrInfo) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		if !d.waitTable(ctx) {
			return
		}
		var (
			found    = make(chan peer.AddrInfo)
			searches sync.WaitGroup
		)
		epoch := d.cfg.Epoch()
		for e := epoch - min(epoch, 1); e <= epoch; e++ {
			for shard := range capShards {
				searches.Go(func() {
					for info := range d.dht.FindProvidersAsync(ctx, capKey(d.cfg.Network, key, e, shard), most) {
						select {
						case found <- info:
						case <-ctx.Done():
						}
					}
				})
			}
		}
		go func() {
			searches.Wait()
			close(found)
		}()
		defer func() {
			cancel()
			for range found {
			}
		}()
		seen := map[peer.ID]bool{d.host.ID(): true}
		for info := range found {
			if seen[info.ID] {
				continue
			}
			seen[info.ID] = true
			if !yield(info) || len(seen) > most {
				return
			}
		}
	}
}

// provider keeps this node's provider records alive.
type provider struct {
	kicks chan struct{}

	mu   sync.Mutex
	keys map[mesh.Hash]bool // given by Provide; guarded by mu
}

func newProvider() *provider {
	return &provider{kicks: make(chan struct{}, 1), keys: make(map[mesh.Hash]bool)}
}

// Provide announces in the DHT that this node has what the key names, and keeps
// doing so until Unprovide.
func (h *Host) Provide(key mesh.Hash) { h.disc.given.set(key, true) }

// Unprovide ends Provide. Records that are out expire within three hours.
func (h *Host) Unprovide(key mesh.Hash) { h.disc.given.set(key, false) }

func (p *provider) set(key mesh.Hash, on bool) {
	p.mu.Lock()
	if on {
		p.keys[key] = true
	} else {
		delete(p.keys, key)
	}
	p.mu.Unlock()
	p.changed()
}

func (p *provider) changed() {
	select {
	case p.kicks <- struct{}{}:
	default:
	}
}

// placement is one record to keep: a key in an epoch and a shard.
type placement struct {
	key   mesh.Hash
	epoch mesh.Epoch
	shard int
}

// placed is the state of a record.
type placed struct {
	due   time.Time
	peers int // in the routing table when it was made
	fails int
	busy  bool
}

// provide makes the records that are due, until close. Those of the next epoch
// come a little later than those of the current one.
func (d *discovery) provide() {
	var (
		mu     sync.Mutex
		state  = make(map[placement]*placed)
		places = make(chan struct{}, provideAtOnce)
		tick   = time.NewTicker(time.Second)
	)
	defer tick.Stop()
	for {
		mu.Lock()
		for _, at := range d.due(state, time.Now()) {
			d.tasks.Go(func() {
				select {
				case places <- struct{}{}:
				case <-d.ctx.Done():
					return
				}
				defer func() { <-places }()
				peers, err := d.place(at)
				mu.Lock()
				defer mu.Unlock()
				if p := state[at]; p != nil {
					p.done(peers, err, time.Now())
				}
			})
		}
		mu.Unlock()
		select {
		case <-d.ctx.Done():
			return
		case <-d.given.kicks:
		case <-tick.C:
		}
	}
}

// due brings the state in line with what is wanted now and returns the records
// to make, which it marks as busy.
func (d *discovery) due(state map[placement]*placed, now time.Time) []placement {
	keys := make(map[mesh.Hash]bool)
	for _, k := range d.own.offered() {
		keys[k] = true
	}
	d.given.mu.Lock()
	for k := range d.given.keys {
		keys[k] = true
	}
	d.given.mu.Unlock()
	epoch, size := d.cfg.Epoch(), d.dht.RoutingTable().Size()
	for at, p := range state {
		if !p.busy && (!keys[at.key] || at.epoch < epoch || at.epoch > epoch+1) {
			delete(state, at)
		}
	}
	var out []placement
	for key := range keys {
		for ahead := range mesh.Epoch(2) {
			for shard := range capShards {
				at := placement{key, epoch + ahead, shard}
				p := state[at]
				if p == nil {
					p = &placed{due: now.Add(time.Duration(ahead) * provideAhead)}
					state[at] = p
				}
				grown := p.peers > 0 && size >= 2*p.peers && now.After(p.due.Add(5*time.Second-reprovideEvery))
				if size > 0 && !p.busy && (grown || !now.Before(p.due)) {
					p.busy = true
					out = append(out, at)
				}
			}
		}
	}
	return out
}

// done notes the outcome of an attempt. A failure is tried again after 1, 2, 4 …
// seconds, up to a minute.
func (p *placed) done(peers int, err error, now time.Time) {
	p.busy = false
	if err != nil {
		p.due = now.Add(min(time.Minute, time.Second<<min(p.fails, 6)))
		p.fails++
		return
	}
	p.fails, p.peers, p.due = 0, peers, now.Add(reprovideEvery)
}

// place puts one record into the DHT and returns the size that the routing table
// had.
func (d *discovery) place(at placement) (int, error) {
	ctx, cancel := context.WithTimeout(d.ctx, provideTimeout)
	defer cancel()
	peers := d.dht.RoutingTable().Size()
	return peers, d.dht.Provide(ctx, capKey(d.cfg.Network, at.key, at.epoch, at.shard), true)
}
