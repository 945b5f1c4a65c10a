// Package p2psim is a network of simulated links for hosts of package p2p, made
// for virtual time: a test in a testing/synctest bubble runs whole nodes, with
// QUIC and TLS, through minutes in milliseconds.
//
// Give a host Config.ListenUDP = net.Listen and Config.Listen = net.Addr(i).
// Latency, loss and black holes are set per pair of nodes and may change while
// packets fly; bandwidth is set for all nodes at the start. Everything must be
// made and closed inside the bubble. Two runs of one seed lose the same share of
// packets, but not the same packets: the order of goroutines differs, and times
// by some microseconds. Assert with tolerances.
package p2psim

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/marcopolo/simnet"
)

// Port is the port number of every node.
const Port = 4700

// Config describes a network. The zero value of a field is its default.
type Config struct {
	Seed      uint64        // of the lost packets
	Latency   time.Duration // one way, between nodes without a path of their own; default 20 ms
	Spread    time.Duration // of the latency: each pair draws 0 to this on top, by the seed
	Bandwidth int           // bits per second of each node, up and down each; default 100 Mbit/s
}

// Path is what lies between two nodes.
type Path struct {
	Latency time.Duration // one way; 0 is the network's default
	Loss    float64       // share of packets that vanish, 0..1
	Drop    bool          // a black hole: all packets vanish
}

// Net is a simulated network.
type Net struct {
	cfg Config
	sim *simnet.Simnet

	mu    sync.Mutex
	rng   *rand.Rand                 // guarded by mu
	paths map[[2]netip.Addr]Path     // by ordered pair; guarded by mu
	cut   map[netip.Addr]bool        // nodes in a black hole; guarded by mu
	ends  map[string]*simnet.SimConn // open sockets by address; guarded by mu
}

// New starts an empty network.
func New(cfg Config) *Net {
	if cfg.Latency == 0 {
		cfg.Latency = 20 * time.Millisecond
	}
	if cfg.Bandwidth == 0 {
		cfg.Bandwidth = 100_000_000
	}
	n := &Net{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0)),
		paths: make(map[[2]netip.Addr]Path), cut: make(map[netip.Addr]bool), ends: make(map[string]*simnet.SimConn)}
	n.sim = &simnet.Simnet{
		LatencyFunc: func(p *simnet.Packet) time.Duration { return n.latency(ip(p.From), ip(p.To)) },
		Logger:      slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	n.sim.Start()
	return n
}

// Close ends the network; packets in flight are lost. Close the hosts first.
func (n *Net) Close() { n.sim.Close() }

// IP returns the public address of node i, i below 2^24.
func IP(i int) netip.Addr { return netip.AddrFrom4([4]byte{50, byte(i >> 16), byte(i >> 8), byte(i)}) }

// Addr returns what node i listens on, for p2p.Config.Listen.
func Addr(i int) string { return netip.AddrPortFrom(IP(i), Port).String() }

// Multiaddr returns where node i can be dialled, for p2p.Config.Bootstrap.
func Multiaddr(i int, peer fmt.Stringer) string {
	return fmt.Sprintf("/ip4/%s/udp/%d/quic-v1/p2p/%s", IP(i), Port, peer)
}

// Listen opens a socket, for p2p.Config.ListenUDP. A node that comes back takes
// over the address of its predecessor.
func (n *Net) Listen(_ string, a *net.UDPAddr) (net.PacketConn, error) {
	if a == nil || a.IP.IsUnspecified() || a.Port == 0 {
		return nil, fmt.Errorf("listen on %v: a simulated node needs its own address and port", a)
	}
	own := &net.UDPAddr{IP: a.IP.To4(), Port: a.Port}
	link := simnet.LinkSettings{BitsPerSecond: n.cfg.Bandwidth}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.ends[own.String()]; old != nil {
		old.Close()
	}
	c := n.sim.NewEndpoint(own, simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link})
	n.ends[own.String()] = c
	return &socket{SimConn: c, net: n, ip: ip(own)}, nil
}

// SetPath sets what lies between two nodes, in both directions.
func (n *Net) SetPath(a, b int, p Path) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paths[[2]netip.Addr{IP(a), IP(b)}] = p
	n.paths[[2]netip.Addr{IP(b), IP(a)}] = p
}

// Cut puts a node into a black hole: nothing reaches it, nothing leaves it, and
// nobody is told. Closing a host after Cut is like killing its process.
func (n *Net) Cut(i int) { n.setCut(i, true) }

// Heal ends Cut.
func (n *Net) Heal(i int) { n.setCut(i, false) }

func (n *Net) setCut(i int, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[IP(i)] = cut
}

func (n *Net) latency(from, to netip.Addr) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.paths[[2]netip.Addr{from, to}]; p.Latency > 0 {
		return p.Latency
	}
	return n.cfg.Latency + n.spread(from, to)
}

// spread returns what the latency of a pair has above the least, the same both ways.
func (n *Net) spread(a, b netip.Addr) time.Duration {
	if n.cfg.Spread <= 0 || !a.Is4() || !b.Is4() {
		return 0
	}
	x, y := a.As4(), b.As4()
	i, j := binary.BigEndian.Uint32(x[:]), binary.BigEndian.Uint32(y[:])
	drawn := rand.NewPCG(n.cfg.Seed, uint64(min(i, j))<<32|uint64(max(i, j))).Uint64()
	return time.Duration(drawn % uint64(n.cfg.Spread+1))
}

// lost draws whether a packet vanishes.
func (n *Net) lost(from, to netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut[from] || n.cut[to] {
		return true
	}
	p := n.paths[[2]netip.Addr{from, to}]
	return p.Drop || p.Loss > 0 && n.rng.Float64() < p.Loss
}

// socket loses packets on their way out.
type socket struct {
	*simnet.SimConn
	net *Net
	ip  netip.Addr
}

// WriteTo is part of net.PacketConn.
func (s *socket) WriteTo(b []byte, to net.Addr) (int, error) {
	if s.net.lost(s.ip, ip(to)) {
		return len(b), nil
	}
	// The network looks addresses up by their four bytes.
	if u, ok := to.(*net.UDPAddr); ok && len(u.IP) != net.IPv4len {
		to = &net.UDPAddr{IP: u.IP.To4(), Port: u.Port}
	}
	return s.SimConn.WriteTo(b, to)
}

func ip(a net.Addr) netip.Addr {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
