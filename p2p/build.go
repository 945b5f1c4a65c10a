package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	bhost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/quic-go/quic-go"
	"go.uber.org/fx"
)

// build makes the libp2p host with no socket open.
func (h *Host) build() (host.Host, error) {
	key, err := crypto.UnmarshalEd25519PrivateKey(h.cfg.Key)
	if err != nil {
		return nil, err
	}
	conns, err := connmgr.NewConnManager(h.cfg.LowConns, h.cfg.HighConns, connmgr.WithGracePeriod(10*time.Second))
	if err != nil {
		return nil, err
	}
	limits, err := h.resources()
	if err != nil {
		return nil, err
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.UserAgent(h.cfg.Agent),
		libp2p.NoListenAddrs,
		libp2p.ConnectionGater(h.gate),
		libp2p.ConnectionManager(conns),
		libp2p.ResourceManager(limits),
		libp2p.BandwidthReporter(h.meter),
		libp2p.DisableMetrics(),
		libp2p.SwarmOpts(swarm.WithDialRanker(rankAddrs)),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.Transport(libp2pquic.NewTransport),
		libp2p.NATManager(func(n network.Network) bhost.NATManager {
			h.nat = &lateNAT{net: n, wanted: h.cfg.PortMap && h.cfg.ListenUDP == nil && !h.cfg.NoListen}
			return h.nat
		}),
	}
	if h.cfg.ListenUDP != nil {
		opts = append(opts, quicOver(h.cfg.ListenUDP), libp2p.DisableRelay(), libp2p.DisableIdentifyAddressDiscovery())
		return libp2p.New(opts...)
	}
	opts = append(opts, libp2p.Transport(tcp.NewTCPTransport), libp2p.EnableRelay(), libp2p.EnableHolePunching())
	if !h.cfg.NoListen {
		opts = append(opts, libp2p.EnableAutoNATv2(), libp2p.EnableNATService(),
			libp2p.EnableAutoRelayWithPeerSource(h.relayCandidates, autorelay.WithMinCandidates(1), autorelay.WithBootDelay(10*time.Second), autorelay.WithMinInterval(2*time.Second)))
	}
	switch h.cfg.reachability {
	case network.ReachabilityPublic:
		opts = append(opts, libp2p.ForceReachabilityPublic())
	case network.ReachabilityPrivate:
		opts = append(opts, libp2p.ForceReachabilityPrivate())
	}
	if !h.cfg.NoListen && h.cfg.Role != RoleLight {
		// The service starts only once peers confirmed that the node is publicly reachable.
		opts = append(opts, libp2p.EnableRelayService())
	}
	return libp2p.New(opts...)
}

// relayCandidates feeds the relay client with up to n peers. It may be called
// before New is done.
func (h *Host) relayCandidates(_ context.Context, n int) <-chan peer.AddrInfo {
	h.mu.Lock()
	disc := h.disc
	h.mu.Unlock()
	var found []peer.AddrInfo
	if disc != nil {
		found = disc.relays(n)
	}
	out := make(chan peer.AddrInfo, len(found))
	for _, p := range found {
		out <- p
	}
	close(out)
	return out
}

// quicOver makes QUIC use the sockets of listen instead of the system's.
func quicOver(listen func(string, *net.UDPAddr) (net.PacketConn, error)) libp2p.Option {
	src := &sourceIP{}
	return libp2p.QUICReuse(
		func(l fx.Lifecycle, reset quic.StatelessResetKey, token quic.TokenGeneratorKey, opts ...quicreuse.Option) (*quicreuse.ConnManager, error) {
			cm, err := quicreuse.NewConnManager(reset, token, opts...)
			if err == nil {
				l.Append(fx.StopHook(cm.Close))
			}
			return cm, err
		},
		quicreuse.OverrideSourceIPSelector(func() (quicreuse.SourceIPSelector, error) { return src, nil }),
		quicreuse.OverrideListenUDP(func(network string, a *net.UDPAddr) (net.PacketConn, error) {
			src.ip.Store(&a.IP)
			return listen(network, a)
		}))
}

// sourceIP answers with the address listened on last: a simulated node has one.
type sourceIP struct{ ip atomic.Pointer[net.IP] }

func (s *sourceIP) PreferredSourceIPForDestination(*net.UDPAddr) (net.IP, error) {
	if ip := s.ip.Load(); ip != nil {
		return *ip, nil
	}
	return nil, errors.New("no address listened on yet")
}

// lateNAT is a port mapper that does nothing before start, so that building a
// host touches no network.
type lateNAT struct {
	net    network.Network
	wanted bool

	mu    sync.Mutex
	inner bhost.NATManager // nil before start; guarded by mu
}

func (n *lateNAT) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.wanted {
		n.inner = bhost.NewNATManager(n.net)
	}
}

func (n *lateNAT) get() bhost.NATManager {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.inner
}

// GetMapping returns the external address of a local one, nil when there is none.
func (n *lateNAT) GetMapping(a ma.Multiaddr) ma.Multiaddr {
	if m := n.get(); m != nil {
		return m.GetMapping(a)
	}
	return nil
}

// HasDiscoveredNAT reports whether a router answered.
func (n *lateNAT) HasDiscoveredNAT() bool {
	m := n.get()
	return m != nil && m.HasDiscoveredNAT()
}

// Close withdraws the mappings.
func (n *lateNAT) Close() error {
	if m := n.get(); m != nil {
		return m.Close()
	}
	return nil
}

var _ io.Closer = (*lateNAT)(nil)

// listenAddrs parses cfg.Listen into IP multiaddresses with a TCP port.
func listenAddrs(cfg *Config) ([]ma.Multiaddr, error) {
	if cfg.NoListen {
		return nil, nil
	}
	var out []ma.Multiaddr
	for _, s := range cfg.Listen {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return nil, fmt.Errorf("p2p: listen address %q: want IP:PORT, like 0.0.0.0:4700", s)
		}
		a, err := manet.FromNetAddr(net.TCPAddrFromAddrPort(ap))
		if err != nil {
			return nil, fmt.Errorf("p2p: listen address %q: %w", s, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// openPorts listens on each address with TCP and QUIC on one port number.
func (h *Host) openPorts() error {
	for _, a := range h.listen {
		if err := h.openPort(a); err != nil {
			na, _ := manet.ToNetAddr(a)
			return fmt.Errorf("listen on %s: %w", na, err)
		}
	}
	return nil
}

// openPort draws a port when the number is 0. The system gives a port that is
// free for TCP; where QUIC cannot have the same one, another is drawn.
func (h *Host) openPort(a ma.Multiaddr) error {
	swarm := h.host.Network().(interface {
		network.Network
		ListenClose(...ma.Multiaddr)
	})
	text, _ := a.ValueForProtocol(ma.P_TCP)
	wish, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	if h.cfg.ListenUDP != nil {
		return swarm.Listen(withPort(a, wish, true))
	}
	const draws = 32
	for range draws {
		before := swarm.ListenAddresses()
		if err := swarm.Listen(withPort(a, wish, false)); err != nil {
			return fmt.Errorf("TCP: %w", err)
		}
		opened := newAddr(before, swarm.ListenAddresses())
		if opened == nil {
			return errors.New("TCP: no address opened")
		}
		text, err := opened.ValueForProtocol(ma.P_TCP)
		if err != nil {
			return fmt.Errorf("TCP: %w", err)
		}
		port, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		if err = swarm.Listen(withPort(a, port, true)); err == nil {
			return nil
		}
		swarm.ListenClose(opened)
		if wish != 0 {
			return fmt.Errorf("QUIC: %w", err)
		}
	}
	return fmt.Errorf("no port is free for both TCP and UDP after %d draws", draws)
}

func newAddr(before, after []ma.Multiaddr) ma.Multiaddr {
	for _, a := range after {
		if !ma.Contains(before, a) {
			return a
		}
	}
	return nil
}

// withPort returns the IP of a with this port, as TCP or QUIC address.
func withPort(a ma.Multiaddr, port int, quic bool) ma.Multiaddr {
	ip, _ := ma.SplitFirst(a)
	tail := "/tcp/" + strconv.Itoa(port)
	if quic {
		tail = "/udp/" + strconv.Itoa(port) + "/quic-v1"
	}
	return ip.Encapsulate(ma.StringCast(tail))
}
