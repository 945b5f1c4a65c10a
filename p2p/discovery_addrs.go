package p2p

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/gonka-mesh/mesh"
)

// addrs returns addresses of a peer: from its advert, or from the DHT.
func (d *discovery) addrs(ctx context.Context, id peer.ID) ([]ma.Multiaddr, error) {
	a, err := addressOf(id)
	if err != nil {
		return nil, err
	}
	if ad, ok := d.table.of(a, time.Now()); ok && len(ad.Addrs) > 0 {
		return parseAddrs(ad.Addrs), nil
	}
	if !d.waitTable(ctx) {
		return nil, errors.New("find peer: no DHT peers yet")
	}
	info, err := d.dht.FindPeer(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("find peer in the DHT: %w", err)
	}
	return usableAddrs(info.Addrs), nil
}

// relays returns up to n connected peers that relay. Where there are fewer, the
// next call may know more: peers are asked meanwhile, as one that became a relay
// later tells only who asks.
func (d *discovery) relays(n int) []peer.AddrInfo {
	var out []peer.AddrInfo
	for _, id := range d.connected(1 << 10) {
		a, err := addressOf(id)
		if err != nil {
			continue
		}
		if ad, ok := d.table.of(a, time.Now()); ok && ad.Relay && len(out) < n {
			out = append(out, peer.AddrInfo{ID: id, Addrs: parseAddrs(ad.Addrs)})
		}
	}
	if len(out) < n {
		d.mu.Lock()
		d.seeking = true
		d.mu.Unlock()
	}
	return out
}

// seekRelays asks some peers for their own adverts when relays were short.
func (d *discovery) seekRelays() {
	d.mu.Lock()
	seeking := d.seeking
	d.seeking = false
	d.mu.Unlock()
	if !seeking {
		return
	}
	for _, id := range d.connected(16) {
		d.tasks.Go(func() {
			if err := d.ask(d.ctx, id, mesh.Hash{}, 1); err != nil {
				d.log.Debug("peer not asked whether it relays", "peer", id.String(), "err", err)
			}
		})
	}
}

func parseAddrs(in []string) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, s := range in {
		if a, err := ma.NewMultiaddr(s); err == nil {
			out = append(out, a)
		}
	}
	return usableAddrs(out)
}

// usableAddrs leaves out loopback addresses of a peer that has others: they are
// for its own machine.
func usableAddrs(in []ma.Multiaddr) []ma.Multiaddr {
	wide := ma.FilterAddrs(in, func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) })
	if len(wide) > 0 {
		return wide
	}
	return in
}

// loopbackOnly reports whether the host listens on this machine only.
func loopbackOnly(cfg *Config) bool {
	addrs, err := listenAddrs(cfg)
	if err != nil || len(addrs) == 0 {
		return false
	}
	for _, a := range addrs {
		if !manet.IsIPLoopback(a) {
			return false
		}
	}
	return true
}
