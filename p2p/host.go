// Package p2p is one libp2p host: identity, hello, streams, limits, penalties,
// an address book, NAT traversal, discovery and gossip. It carries bytes and
// knows no business message. Other packages see mesh.Address and net.Conn only;
// libp2p is named nowhere else.
//
// Every connection opens with a hello (hello.go); a stream of a mesh protocol
// passes only between peers whose hello agreed. A mesh protocol "infer" of
// network NET has the ID /mesh/NET/infer/1.
package p2p

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gonka-mesh/mesh"
)

// Roles that a hello may announce.
const (
	RoleHost      = "host"
	RoleLight     = "light"
	RoleValidator = "validator"
)

// Config describes a host. The zero value of a field is its default.
type Config struct {
	Network mesh.NetworkID
	Genesis mesh.Hash
	Key     ed25519.PrivateKey // identity of the node
	Role    string             // RoleHost when empty
	Agent   string             // "mesh/VERSION" when empty

	Home      string   // folder of the address book; "" keeps none on disk
	Listen    []string // "IP:PORT" each; port 0 draws one; TCP and QUIC share the number. Default 0.0.0.0:0
	NoListen  bool     // dial only
	Bootstrap []string // multiaddresses that end in /p2p/ID
	MDNS      bool     // find peers on the local network
	PortMap   bool     // ask the router for a port (UPnP, NAT-PMP)

	MinPeers  int // below this many peers the host keeps dialling; default 8
	LowConns  int // connections that trimming leaves; default 96
	HighConns int // connections that start trimming; default 192
	// SubnetConns is how many connections one IPv4 address or IPv6 /56 may hold,
	// default 64. SubnetRate and SubnetBurst bound how often it may connect,
	// default 2 per second and 64. Loopback is exempt from all three.
	SubnetConns int
	SubnetRate  float64
	SubnetBurst int

	Epoch   func() mesh.Epoch // current epoch, for keys of provider records; epoch 0 when nil
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil registers nothing

	// ListenUDP replaces the operating system's sockets, for networks in virtual
	// time (package p2psim). The host then speaks QUIC only, and leaves out what
	// would reach the real network: port mapping, mDNS, AutoNAT.
	ListenUDP func(network string, laddr *net.UDPAddr) (net.PacketConn, error)

	reachability network.Reachability // forced, for tests of relays
}

// Host is a node's presence on the network.
type Host struct {
	cfg     Config
	log     *slog.Logger
	id      mesh.Address
	listen  []ma.Multiaddr
	host    host.Host
	disc    *discovery // set by New under mu
	hellos  *hellos
	gate    *gate
	book    *book
	reach   *reach
	meter   *meter
	nat     *lateNAT
	seeds   []peer.AddrInfo
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	tasks   sync.WaitGroup
	wake    chan struct{} // tells the joining loop that the number of peers changed
	started time.Time

	mu      sync.Mutex
	lanes   map[string]*lane // by short protocol name; guarded by mu
	streams map[peer.ID]int  // open ones, of both directions; guarded by mu
	watches map[int]func()   // of WatchPeers; guarded by mu
	watched int              // number of WatchPeers calls; guarded by mu
	closed  bool             // guarded by mu
}

// New builds a host. It opens no socket; Start does.
func New(cfg Config) (*Host, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	h := &Host{
		cfg:   cfg,
		log:   cfg.Log,
		id:    mesh.AddressOf(cfg.Key.Public().(ed25519.PublicKey)),
		wake:  make(chan struct{}, 1),
		lanes: make(map[string]*lane), streams: make(map[peer.ID]int), watches: make(map[int]func()),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	var err error
	if h.listen, err = listenAddrs(&cfg); err != nil {
		return nil, err
	}
	if h.seeds, err = parseSeeds(cfg.Bootstrap, h.id); err != nil {
		return nil, err
	}
	h.gate = newGate()
	h.meter = newMeter(h)
	if h.book, err = openBook(cfg.Home, cfg.Network, cfg.Log); err != nil {
		return nil, err
	}
	if h.host, err = h.build(); err != nil {
		return nil, fmt.Errorf("build p2p host: %w", err)
	}
	h.gate.cut = h.cut
	h.hellos = newHellos(h)
	h.reach = newReach(h)
	disc, err := newDiscovery(h.host, &h.cfg, h.hellos.passed)
	if err != nil {
		h.host.Close()
		return nil, fmt.Errorf("build discovery: %w", err)
	}
	disc.penalise = func(id peer.ID, fault string, points int) { h.gate.penalise(id, fault, float64(points)) }
	h.mu.Lock()
	h.disc = disc
	h.mu.Unlock()
	return h, nil
}

// complete fills in defaults and checks the configuration.
func (c *Config) complete() error {
	if len(c.Key) != ed25519.PrivateKeySize {
		return errors.New("p2p: no node key")
	}
	if err := c.Network.Validate(); err != nil {
		return fmt.Errorf("p2p: %w", err)
	}
	switch c.Role {
	case "":
		c.Role = RoleHost
	case RoleHost, RoleLight, RoleValidator:
	default:
		return fmt.Errorf("p2p: role %q: want host, light or validator", c.Role)
	}
	if c.Agent == "" {
		c.Agent = "mesh/" + mesh.Version
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Epoch == nil {
		c.Epoch = func() mesh.Epoch { return 0 }
	}
	c.MinPeers = orDefault(c.MinPeers, 8)
	c.LowConns = orDefault(c.LowConns, 96)
	c.HighConns = orDefault(c.HighConns, 192)
	c.SubnetConns = orDefault(c.SubnetConns, 64)
	c.SubnetRate = orDefault(c.SubnetRate, 2)
	c.SubnetBurst = orDefault(c.SubnetBurst, 64)
	if len(c.Listen) == 0 && !c.NoListen {
		c.Listen = []string{"0.0.0.0:0"}
	}
	return nil
}

func orDefault[T int | float64](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// Start opens the sockets, joins the network and returns; the joining goes on in
// the background until Close.
func (h *Host) Start(ctx context.Context) error {
	h.started = time.Now()
	if err := h.meter.register(h.cfg.Metrics); err != nil {
		return fmt.Errorf("register p2p metrics: %w", err)
	}
	h.hellos.start()
	if err := h.openPorts(); err != nil {
		return err
	}
	h.nat.start()
	if err := h.reach.start(); err != nil {
		return fmt.Errorf("watch reachability: %w", err)
	}
	if err := h.disc.start(ctx); err != nil {
		return fmt.Errorf("start discovery: %w", err)
	}
	h.tasks.Go(h.join)
	h.tasks.Go(h.keepBook)
	return nil
}

// Close ends all connections and writes the address book.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	lanes := make([]*lane, 0, len(h.lanes))
	for _, l := range h.lanes {
		lanes = append(lanes, l)
	}
	h.mu.Unlock()
	h.noteKnown()
	h.cancel()
	for _, l := range lanes {
		l.stop()
	}
	h.disc.close()
	h.reach.close()
	err := h.host.Close()
	h.tasks.Wait()
	h.meter.unregister(h.cfg.Metrics)
	if bookErr := h.book.save(); bookErr != nil {
		err = errors.Join(err, bookErr)
	}
	return err
}

// Address returns the node's address.
func (h *Host) Address() mesh.Address { return h.id }

// Addrs returns where the host can be dialled, as multiaddresses ending in
// /p2p/ID: TCP first, and public before local ones.
func (h *Host) Addrs() []string {
	var out []string
	for _, a := range widestFirst(h.host.Addrs()) {
		out = append(out, a.String()+"/p2p/"+h.host.ID().String())
	}
	return out
}

// PeerInfo describes a connected peer.
type PeerInfo struct {
	Address   mesh.Address
	Role      string
	Agent     string
	Addrs     []string // of its connections
	Outbound  bool     // we dialled it
	Transport string   // "tcp", "quic" or "relay"
	Latency   time.Duration
	Since     time.Time
	Score     int // points of penalty that it has now; 0 is clean
}

// Peers returns the connected peers whose hello agreed, the oldest first.
func (h *Host) Peers() []PeerInfo {
	var out []PeerInfo
	for _, id := range h.host.Network().Peers() {
		if info, ok := h.peerInfo(id); ok {
			out = append(out, info)
		}
	}
	slices.SortFunc(out, func(a, b PeerInfo) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return slices.Compare(a.Address[:], b.Address[:])
	})
	return out
}

func (h *Host) peerInfo(id peer.ID) (PeerInfo, bool) {
	said, ok := h.hellos.get(id)
	addr, err := addressOf(id)
	if !ok || err != nil {
		return PeerInfo{}, false
	}
	info := PeerInfo{Address: addr, Role: said.role, Agent: said.agent,
		Latency: h.host.Peerstore().LatencyEWMA(id), Score: h.gate.score(id)}
	for _, c := range h.host.Network().ConnsToPeer(id) {
		if info.Since.IsZero() || c.Stat().Opened.Before(info.Since) {
			info.Since = c.Stat().Opened
		}
		if info.Transport == "" || info.Transport == "relay" {
			info.Transport = transportOf(c.RemoteMultiaddr())
			info.Outbound = c.Stat().Direction == network.DirOutbound
		}
		info.Addrs = append(info.Addrs, c.RemoteMultiaddr().String())
	}
	return info, len(info.Addrs) > 0
}

// Peer describes one connected peer whose hello agreed.
func (h *Host) Peer(a mesh.Address) (PeerInfo, bool) {
	id, err := peerID(a)
	if err != nil {
		return PeerInfo{}, false
	}
	return h.peerInfo(id)
}

// WatchPeers calls fn after a peer's hello agreed or a connection ended, until stop
// is called. fn may be called from several goroutines and must not block: it marks
// that Peers is worth another look.
func (h *Host) WatchPeers(fn func()) (stop func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watched++
	n := h.watched
	h.watches[n] = fn
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watches, n)
	}
}

// Connected reports whether the peer is connected and its hello agreed.
func (h *Host) Connected(a mesh.Address) bool {
	id, err := peerID(a)
	return err == nil && h.hellos.passed(id)
}

// Connect dials a multiaddress that ends in /p2p/ID and returns the peer's
// address once its hello agreed.
func (h *Host) Connect(ctx context.Context, addr string) (mesh.Address, error) {
	info, err := parseSeed(addr)
	if err != nil {
		return mesh.Address{}, err
	}
	a, err := addressOf(info.ID)
	if err != nil {
		return mesh.Address{}, err
	}
	if info.ID == h.host.ID() {
		return a, fmt.Errorf("connect to %s: that is this node", a)
	}
	if err := h.connect(ctx, info); err != nil {
		return a, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return a, nil
}
