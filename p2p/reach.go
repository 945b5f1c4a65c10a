package p2p

import (
	"fmt"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// States of Reachability.
const (
	ReachPublic  = "public"  // peers outside reached the node
	ReachPrivate = "private" // they cannot, or nobody outside was asked
	ReachRelayed = "relayed" // they can through a relay, and by hole punching
	ReachUnknown = "unknown" // not known yet
)

// Reachability says whether peers elsewhere can dial this node, and why.
type Reachability struct {
	State    string
	Reason   string   // in plain words
	External []string // addresses that peers outside reached, or relays' circuits
	PortMap  string   // "off", "no router answered", "router answered, no port given", "mapped to ADDR"
}

// reach collects what libp2p finds out about reachability.
type reach struct {
	h   *Host
	sub event.Subscription

	mu        sync.Mutex
	overall   network.Reachability               // guarded by mu
	addrs     event.EvtHostReachableAddrsChanged // guarded by mu
	relays    []ma.Multiaddr                     // circuits through which this node is reached; guarded by mu
	symmetric bool                               // the NAT gives each peer another port; guarded by mu
}

func newReach(h *Host) *reach { return &reach{h: h} }

func (r *reach) start() error {
	sub, err := r.h.host.EventBus().Subscribe([]any{
		new(event.EvtLocalReachabilityChanged), new(event.EvtHostReachableAddrsChanged),
		new(event.EvtAutoRelayAddrsUpdated), new(event.EvtNATDeviceTypeChanged),
	})
	if err != nil {
		return err
	}
	r.sub = sub
	r.h.tasks.Go(func() {
		for e := range sub.Out() {
			r.note(e)
		}
	})
	return nil
}

func (r *reach) close() {
	if r.sub != nil {
		r.sub.Close()
	}
}

func (r *reach) note(e any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e := e.(type) {
	case event.EvtLocalReachabilityChanged:
		r.overall = e.Reachability
	case event.EvtHostReachableAddrsChanged:
		r.addrs = e
	case event.EvtAutoRelayAddrsUpdated:
		r.relays = e.RelayAddrs
	case event.EvtNATDeviceTypeChanged:
		r.symmetric = e.NatDeviceType == network.NATDeviceTypeEndpointDependent
	}
}

// Reachability says whether peers elsewhere can dial this node, and why.
func (h *Host) Reachability() Reachability {
	h.reach.mu.Lock()
	defer h.reach.mu.Unlock()
	out := h.reach.judge(h.host.Addrs(), h.hellos.count())
	out.PortMap = h.portMap()
	return out
}

// judge puts the findings into words. mu is held.
func (r *reach) judge(own []ma.Multiaddr, peers int) Reachability {
	if r.h.cfg.NoListen {
		return Reachability{State: ReachPrivate, Reason: "this node only dials and accepts no connections"}
	}
	public := ma.FilterAddrs(own, func(a ma.Multiaddr) bool { return manet.IsPublicAddr(a) && !isRelayed(a) })
	switch {
	case len(r.addrs.Reachable) > 0:
		return Reachability{State: ReachPublic, External: texts(r.addrs.Reachable),
			Reason: "peers outside dialled " + strings.Join(texts(r.addrs.Reachable), " and ") + " and got through"}
	case len(r.relays) > 0:
		return Reachability{State: ReachRelayed, External: texts(r.relays),
			Reason: "peers outside cannot dial this node; they meet it through a relay and then connect directly where the routers allow it" + r.nat()}
	case r.overall == network.ReachabilityPublic:
		return Reachability{State: ReachPublic, External: texts(public), Reason: "peers outside dialled this node and got through"}
	case len(r.addrs.Unreachable) > 0 || r.overall == network.ReachabilityPrivate:
		return Reachability{State: ReachPrivate, Reason: "peers outside tried to dial this node and failed: a router or firewall is in between; forward the port, or allow port mapping" + r.nat()}
	case peers == 0:
		return Reachability{State: ReachUnknown, Reason: "no peer is connected that could try to dial back"}
	case len(public) == 0:
		return Reachability{State: ReachPrivate, Reason: "no public address is known: peers on this machine and local network reach this node, others do not" + r.nat()}
	default:
		return Reachability{State: ReachUnknown, External: texts(public), Reason: fmt.Sprintf("a public address is known, but none of %d peers has tried to dial it yet", peers)}
	}
}

func (r *reach) nat() string {
	if r.symmetric {
		return "; the router gives each peer another port, so direct connections through it are unlikely"
	}
	return ""
}

// portMap puts the state of the port mapping into words.
func (h *Host) portMap() string {
	switch {
	case !h.nat.wanted:
		return "off"
	case !h.nat.HasDiscoveredNAT():
		return "no router answered"
	}
	for _, a := range h.host.Network().ListenAddresses() {
		if m := h.nat.GetMapping(a); m != nil {
			return "mapped to " + m.String()
		}
	}
	return "router answered, no port given"
}

func texts(addrs []ma.Multiaddr) []string {
	out := make([]string, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// Furthest returns which of a node's addresses to give to others: the one that reaches furthest, by QUIC where it can be.
func Furthest(addrs []string) string {
	best, rank := "", -1
	for _, text := range addrs {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			continue
		}
		r := 0
		switch {
		case manet.IsPublicAddr(a):
			r = 4
		case !manet.IsIPLoopback(a):
			r = 2
		}
		if strings.Contains(text, "/quic-v1") {
			r++
		}
		if r > rank {
			best, rank = text, r
		}
	}
	return best
}
