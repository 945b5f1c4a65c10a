package p2p

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

// Times of adverts. Listeners admit a little more than publishers send.
const (
	advertBeat    = 30 * time.Second
	advertTTL     = 3 * advertBeat
	advertEvery   = 5 * time.Second // between changes, after a burst
	advertBurst   = 3
	hearEvery     = 4 * time.Second
	hearBurst     = 6
	goodbyeLinger = 50 * time.Millisecond // for the queues of the router to drain
	meshPeers     = 4                     // a topic with fewer peers is mended
	mendTimeout   = 10 * time.Second
)

// announcer holds what this node says about itself.
type announcer struct {
	kicks chan struct{}

	mu       sync.Mutex
	services []Service // in order of keys; guarded by mu
	relay    bool      // guarded by mu
	seq      uint64    // of the last advert; guarded by mu
	lonely   []*Topic  // where the last advert met no peer; guarded by mu
	spoken   []string  // shards that have heard of the services; guarded by mu
}

func newAnnouncer() *announcer { return &announcer{kicks: make(chan struct{}, 1)} }

// SetAdvert replaces what this node offers. Listeners hear of it at once, or
// within five seconds after several changes in a row; no services is a goodbye.
// The keys of the services are provided in the DHT too.
func (h *Host) SetAdvert(services []Service) error { return h.disc.setAdvert(services) }

// Adverts returns the valid adverts with a key, this node's own among them, by
// address; the zero key is all.
func (h *Host) Adverts(key mesh.Hash) []Advert { return h.disc.table.list(key, time.Now()) }

// AdvertOf returns the valid advert of a peer.
func (h *Host) AdvertOf(a mesh.Address) (Advert, bool) { return h.disc.table.of(a, time.Now()) }

func (d *discovery) setAdvert(services []Service) error {
	sorted, err := sortServices(services)
	if err != nil {
		return err
	}
	o := d.own
	o.mu.Lock()
	old := o.services
	o.services = sorted
	o.mu.Unlock()
	if _, err := d.sign(); err != nil {
		o.mu.Lock()
		o.services = old
		o.mu.Unlock()
		return fmt.Errorf("advertise: %w", err)
	}
	d.syncShards()
	o.changed()
	d.given.changed()
	return nil
}

// changed makes announce publish soon.
func (o *announcer) changed() {
	select {
	case o.kicks <- struct{}{}:
	default:
	}
}

func (o *announcer) setRelay(on bool) {
	o.mu.Lock()
	differs := o.relay != on
	o.relay = on
	o.mu.Unlock()
	if differs {
		o.changed()
	}
}

// offered returns the keys that this node advertises.
func (o *announcer) offered() []mesh.Hash {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []mesh.Hash
	for _, s := range o.services {
		out = append(out, s.Key)
	}
	return out
}

// sign makes the advert of this moment and puts it into the table. The sequence
// is the clock in milliseconds, so that it grows over restarts.
func (d *discovery) sign() (*p2ppb.SignedAdvert, error) {
	self, err := addressOf(d.host.ID())
	if err != nil {
		return nil, err
	}
	now, o := time.Now(), d.own
	a := Advert{Peer: self, Addrs: d.ownAddrs(), Epoch: d.cfg.Epoch(), Issued: now}
	o.mu.Lock()
	o.seq = max(o.seq+1, uint64(now.UnixMilli()))
	a.Seq, a.Services, a.Relay = o.seq, o.services, o.relay
	o.mu.Unlock()
	s, err := signAdvert(d.cfg.Network, d.cfg.Key, a, advertTTL)
	if err != nil {
		return nil, err
	}
	err = d.table.admit(s, source{via: d.host.ID(), own: true}, now)
	if err != nil && !errors.Is(err, errStale) { // stale: another call was faster
		return nil, err
	}
	return s, nil
}

// ownAddrs returns the addresses to advertise.
func (d *discovery) ownAddrs() []string {
	var out []string
	for _, a := range usableAddrs(d.host.Addrs()) {
		if s := a.String(); len(s) <= maxAddrLen && len(out) < maxAdvertAddrs {
			out = append(out, s)
		}
	}
	return out
}

// announce publishes changes as fast as the rate allows, and a heartbeat.
func (d *discovery) announce() {
	rate := newPeerRates(1/advertEvery.Seconds(), advertBurst)
	beat := time.NewTimer(advertBeat)
	defer beat.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-d.own.kicks:
		case <-beat.C:
		}
		if ok, _ := rate.take("", 1, time.Now()); !ok {
			pause := time.NewTimer(advertEvery)
			select {
			case <-d.ctx.Done():
				pause.Stop()
				return
			case <-pause.C:
			}
		}
		if err := d.publish(d.ctx); err != nil && d.ctx.Err() == nil {
			d.log.Warn("advert not published", "err", err)
		}
		beat.Reset(advertBeat - rand.N(advertBeat/6))
	}
}

// publish signs and gossips the advert on the topics of its services, and once
// more on those of services that it had before.
func (d *discovery) publish(ctx context.Context) error {
	o := d.own
	o.mu.Lock()
	shards := shardsOf(o.services)
	all := slices.Compact(slices.Sorted(slices.Values(append(o.spoken, shards...))))
	idle := len(o.services) == 0 && !o.relay && len(all) == 0
	o.mu.Unlock()
	if idle {
		return nil
	}
	s, err := d.sign()
	if err != nil {
		return fmt.Errorf("sign advert: %w", err)
	}
	data, err := proto.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode advert: %w", err)
	}
	var (
		lonely []*Topic
		failed error
	)
	for _, name := range all {
		t := d.shard(name)
		if t == nil {
			continue
		}
		if t.Peers() == 0 {
			lonely = append(lonely, t)
		}
		failed = errors.Join(failed, t.Publish(ctx, data))
	}
	o.mu.Lock()
	o.spoken, o.lonely = shards, lonely
	o.mu.Unlock()
	d.syncShards()
	return failed
}

// retryLonely publishes again once a topic that nobody was on has peers.
func (o *announcer) retryLonely() {
	o.mu.Lock()
	found := slices.ContainsFunc(o.lonely, func(t *Topic) bool { return t.Peers() > 0 })
	if found {
		o.lonely = nil
	}
	o.mu.Unlock()
	if found {
		o.changed()
	}
}

// goodbye withdraws the advert.
func (d *discovery) goodbye() {
	o := d.own
	o.mu.Lock()
	said := len(o.spoken) > 0
	o.services, o.relay = nil, false
	o.mu.Unlock()
	if !said {
		return
	}
	ctx, cancel := context.WithTimeout(d.ctx, time.Second)
	defer cancel()
	if err := d.publish(ctx); err != nil {
		d.log.Debug("goodbye not published", "err", err)
		return
	}
	time.Sleep(goodbyeLinger)
}

func (d *discovery) shard(name string) *Topic {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shards[name]
}

// syncShards joins the topics of the keys that are followed or offered, and
// leaves the others.
func (d *discovery) syncShards() {
	d.own.mu.Lock()
	wanted := append(shardsOf(d.own.services), d.own.spoken...)
	d.own.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	for key := range d.follows {
		switch {
		case d.cfg.Role == RoleLight:
		case key.IsZero():
			for i := range advertShards {
				wanted = append(wanted, advertShard(mesh.Hash{byte(i)}))
			}
		default:
			wanted = append(wanted, advertShard(key))
		}
	}
	for name, t := range d.shards {
		if !slices.Contains(wanted, name) {
			delete(d.shards, name)
			if err := t.Close(); err != nil && d.ctx.Err() == nil {
				d.log.Warn("advert topic not left", "topic", name, "err", err)
			}
		}
	}
	for _, name := range wanted {
		if d.shards[name] != nil {
			continue
		}
		t, err := d.gossip.join(name, TopicOptions{Rate: 1 / hearEvery.Seconds(), Burst: hearBurst,
			MaxSize: maxAdvertSize + 256}, d.hear)
		if err != nil {
			if d.ctx.Err() == nil {
				d.log.Warn("advert topic not joined", "topic", name, "err", err)
			}
			continue
		}
		d.shards[name] = t
	}
}

// hear judges an advert that came by gossip and takes it in.
func (d *discovery) hear(via peer.ID, from mesh.Address, data []byte) Verdict {
	var s p2ppb.SignedAdvert
	if err := proto.Unmarshal(data, &s); err != nil {
		return Reject
	}
	now := time.Now()
	if _, known := d.table.of(from, now); !known {
		if ok, _ := d.news.take(via, 1, now); !ok {
			return Ignore
		}
	}
	switch err := d.table.admit(&s, source{via: via, author: from}, now); {
	case err == nil:
		return Accept
	case errors.Is(err, errStale):
		return Ignore
	default:
		return Reject
	}
}

// mendTopics connects to peers known to be on a topic that has few.
func (d *discovery) mendTopics() {
	d.mu.Lock()
	var poor []string
	for name, t := range d.shards {
		if t.Peers() < meshPeers {
			poor = append(poor, name)
		}
	}
	d.mu.Unlock()
	if len(poor) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(d.ctx, mendTimeout)
	defer cancel()
	adverts := d.table.list(mesh.Hash{}, time.Now())
	rand.Shuffle(len(adverts), func(i, j int) { adverts[i], adverts[j] = adverts[j], adverts[i] })
	var dials sync.WaitGroup
	defer dials.Wait()
	tries := 0
	for _, a := range adverts {
		id, err := peerID(a.Peer)
		if err != nil || id == d.host.ID() || d.ok(id) || tries == meshPeers {
			continue
		}
		if !slices.ContainsFunc(shardsOf(a.Services), func(s string) bool { return slices.Contains(poor, s) }) {
			continue
		}
		tries++
		dials.Go(func() {
			d.host.Connect(ctx, peer.AddrInfo{ID: id, Addrs: parseAddrs(a.Addrs)})
		})
	}
}
