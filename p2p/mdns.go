package p2p

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/zeroconf/v2"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// localPeers bounds the connections that mDNS makes: on a large local network
	// the others are found over the first.
	localPeers = 32

	localDomain = "local"
	localPort   = 4001 // the record must have one; the addresses in the text count
	localPrefix = "dnsaddr="
	localAddrs  = 16 // of one announcement
)

// localFinder finds peers of this network on the local one by mDNS, in the form
// of the libp2p mDNS specification. The network ID is part of the service name,
// so that two networks never meet.
//
// It drives zeroconf itself: libp2p's own service stops looking on machines
// without IPv6, and knows no machine that has only a loopback interface.
type localFinder struct {
	d      *discovery
	addrs  []ma.Multiaddr // that are announced
	server *zeroconf.Server
	places chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

// startMDNS begins to announce and to look, where the configuration says so.
func (d *discovery) startMDNS() {
	if !d.cfg.MDNS || d.cfg.ListenUDP != nil {
		return
	}
	f, err := d.newLocalFinder()
	if err != nil {
		d.log.Warn("no peers by mDNS", "err", err)
		return
	}
	d.mu.Lock()
	d.mdns = f
	d.mu.Unlock()
}

// newLocalFinder announces this node, unless it only dials, and looks for others.
func (d *discovery) newLocalFinder() (*localFinder, error) {
	addrs, err := d.host.Network().InterfaceListenAddresses()
	if err != nil {
		return nil, fmt.Errorf("addresses for mDNS: %w", err)
	}
	ifaces, err := localInterfaces()
	if err != nil {
		return nil, fmt.Errorf("interfaces for mDNS: %w", err)
	}
	f := &localFinder{d: d, addrs: addrs, places: make(chan struct{}, 4)}
	service := "_mesh-" + string(d.cfg.Network) + "._udp"
	if ips, texts := announcement(d.host.ID(), addrs); len(texts) > 0 {
		name := strings.ToLower(rand.Text())
		f.server, err = zeroconf.RegisterProxy(name, service, localDomain, localPort, name, ips, texts, ifaces)
		if err != nil {
			return nil, fmt.Errorf("announce by mDNS: %w", err)
		}
	}
	f.ctx, f.cancel = context.WithCancel(d.ctx)
	for _, family := range []zeroconf.IPType{zeroconf.IPv4, zeroconf.IPv6} {
		entries, ended := make(chan *zeroconf.ServiceEntry, 64), make(chan struct{})
		f.tasks.Go(func() { f.read(entries, ended) })
		f.tasks.Go(func() {
			defer close(ended)
			err := zeroconf.Browse(f.ctx, service, localDomain, entries,
				zeroconf.SelectIfaces(ifaces), zeroconf.SelectIPTraffic(family))
			if err != nil {
				d.log.Debug("mDNS does not look", "IPv6", family == zeroconf.IPv6, "err", err)
			}
		})
	}
	return f, nil
}

// localInterfaces returns the interfaces that are up and carry multicast, and
// where there is none the loopback interface, which carries it unasked on Linux.
func localInterfaces() ([]net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	having := func(flags net.Flags) []net.Interface {
		return slices.DeleteFunc(slices.Clone(all), func(i net.Interface) bool { return i.Flags&flags != flags })
	}
	if wide := having(net.FlagUp | net.FlagMulticast); len(wide) > 0 {
		return wide, nil
	}
	return having(net.FlagUp | net.FlagLoopback), nil
}

// announcement returns one IP of each family, which the records need, and the
// addresses as text.
func announcement(id peer.ID, addrs []ma.Multiaddr) (ips, texts []string) {
	var v4, v6 string
	for _, a := range addrs {
		ip, err := manet.ToIP(a)
		if err != nil || isRelayed(a) || len(texts) == localAddrs {
			continue
		}
		if ip.To4() != nil {
			v4 = ip.String()
		} else {
			v6 = ip.String()
		}
		texts = append(texts, localPrefix+a.String()+"/p2p/"+id.String())
	}
	return slices.DeleteFunc([]string{v4, v6}, func(s string) bool { return s == "" }), texts
}

// restartMDNS announces anew when the interfaces have changed.
func (d *discovery) restartMDNS() {
	d.mu.Lock()
	old, started := d.mdns, d.started
	d.mu.Unlock()
	if !started || !d.cfg.MDNS {
		return
	}
	addrs, err := d.host.Network().InterfaceListenAddresses()
	if err != nil || (old != nil && sameAddrs(addrs, old.addrs)) {
		return
	}
	d.mu.Lock()
	d.mdns = nil
	d.mu.Unlock()
	if old != nil {
		old.close()
	}
	d.startMDNS()
}

func sameAddrs(a, b []ma.Multiaddr) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x ma.Multiaddr) bool { return !ma.Contains(b, x) })
}

func (f *localFinder) close() {
	f.cancel()
	if f.server != nil {
		f.server.Shutdown()
	}
	f.tasks.Wait()
}

// read follows up announcements until the search has ended.
func (f *localFinder) read(entries <-chan *zeroconf.ServiceEntry, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case e, ok := <-entries:
			if !ok {
				return
			}
			f.heard(e.Text)
		}
	}
}

// heard meets the peer of an announcement as soon as there is a place for it.
func (f *localFinder) heard(texts []string) {
	info, ok := announced(texts)
	if !ok || info.ID == f.d.host.ID() {
		return
	}
	select {
	case f.places <- struct{}{}:
	case <-f.ctx.Done():
		return
	}
	f.tasks.Go(func() {
		defer func() { <-f.places }()
		f.meet(info)
	})
}

// announced reads the peer that an announcement is about.
func announced(texts []string) (peer.AddrInfo, bool) {
	var addrs []ma.Multiaddr
	for _, s := range texts {
		s, ok := strings.CutPrefix(s, localPrefix)
		if !ok || len(s) > maxAddrLen || len(addrs) == localAddrs {
			continue
		}
		if a, err := ma.NewMultiaddr(s); err == nil {
			addrs = append(addrs, a)
		}
	}
	infos, err := peer.AddrInfosFromP2pAddrs(addrs...)
	if err != nil || len(infos) != 1 || len(infos[0].Addrs) == 0 {
		return peer.AddrInfo{}, false
	}
	return infos[0], true
}

// meet connects to a peer of the local network; the hello decides whether it
// stays.
func (f *localFinder) meet(info peer.AddrInfo) {
	if f.d.ok(info.ID) || len(f.d.host.Network().Peers()) >= localPeers {
		return
	}
	ctx, cancel := context.WithTimeout(f.ctx, findTimeout)
	defer cancel()
	if err := f.d.host.Connect(ctx, info); err != nil && f.ctx.Err() == nil {
		f.d.log.Debug("local peer not reached", "peer", info.ID.String(), "err", err)
	}
}
