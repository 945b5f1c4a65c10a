package p2p

import (
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
)

// resources returns the accounting of connections, streams and buffer memory
// beneath all protocols. The numbers are the same on every machine; those of a
// mesh protocol come from its Limits and are counted exactly in its lane.
func (h *Host) resources() (network.ResourceManager, error) {
	conns := rcmgr.LimitVal(stormFactor * h.cfg.HighConns)
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: 2 * conns, ConnsInbound: conns, ConnsOutbound: conns, FD: 2 * conns,
			Streams: 16384, StreamsInbound: 8192, StreamsOutbound: 8192, Memory: 1 << 30,
		},
		// Not yet authenticated, or streams whose protocol is not yet known.
		Transient: rcmgr.ResourceLimits{
			Conns: 256, ConnsInbound: 128, ConnsOutbound: 128, FD: 256,
			Streams: 5120, StreamsInbound: 4096, StreamsOutbound: 1024, Memory: 128 << 20,
		},
		// One peer's share of the above is small, or it alone could fill it.
		PeerDefault: rcmgr.ResourceLimits{
			Conns: 16, ConnsInbound: 8, ConnsOutbound: 8, FD: 16,
			Streams: 1280, StreamsInbound: 256, StreamsOutbound: 1024, Memory: 192 << 20,
		},
		ProtocolDefault: rcmgr.ResourceLimits{
			Streams: 8192, StreamsInbound: 4096, StreamsOutbound: 4096, Memory: 512 << 20,
		},
		// Protocols of libp2p itself (DHT, gossip, identify, ping) live within this.
		ProtocolPeerDefault: rcmgr.ResourceLimits{
			Streams: 1152, StreamsInbound: 128, StreamsOutbound: 1024, Memory: 128 << 20,
		},
		ServiceDefault: rcmgr.ResourceLimits{
			Streams: 2048, StreamsInbound: 1024, StreamsOutbound: 1024, Memory: 128 << 20,
		},
		ServicePeerDefault: rcmgr.ResourceLimits{
			Streams: 96, StreamsInbound: 32, StreamsOutbound: 64, Memory: 16 << 20,
		},
		Conn:   rcmgr.ResourceLimits{Conns: 1, ConnsInbound: 1, ConnsOutbound: 1, FD: 1, Memory: 128 << 20},
		Stream: rcmgr.ResourceLimits{Streams: 1, StreamsInbound: 1, StreamsOutbound: 1, Memory: 48 << 20},
	}.Build(rcmgr.InfiniteLimits)
	n, perSec, burst := h.cfg.SubnetConns, h.cfg.SubnetRate, h.cfg.SubnetBurst
	subnets := &rate.Limiter{
		NetworkPrefixLimits: []rate.PrefixLimit{
			{Prefix: netip.MustParsePrefix("127.0.0.0/8")},
			{Prefix: netip.MustParsePrefix("::1/128")},
		},
		SubnetRateLimiter: rate.SubnetLimiter{
			IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: rate.Limit{RPS: perSec, Burst: burst}}},
			IPv6SubnetLimits: []rate.SubnetLimit{
				{PrefixLength: 56, Limit: rate.Limit{RPS: perSec, Burst: burst}},
				{PrefixLength: 48, Limit: rate.Limit{RPS: 4 * perSec, Burst: 4 * burst}},
			},
			GracePeriod: time.Minute,
		},
	}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
		rcmgr.WithMetrics(newStreamWatch(h.gate)),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: n}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: n}, {PrefixLength: 48, ConnCount: 4 * n}}),
		rcmgr.WithConnRateLimiters(subnets))
}

// What one peer may open, of all protocols. Those of the mesh have rates of their
// own, which together stay below; this one is for the streams of libp2p's protocols
// and for those that never name any.
const (
	streamRate  = 500 // per second
	streamBurst = 2000
)

// streamWatch counts the streams that peers open, and those that they are refused.
// It runs in the resource manager: what is counted here was not negotiated yet.
type streamWatch struct {
	gate  *gate
	rates *peerRates
}

func newStreamWatch(g *gate) *streamWatch {
	return &streamWatch{gate: g, rates: newPeerRates(streamRate, streamBurst)}
}

// AllowStream counts a stream against the rate of its peer.
func (w *streamWatch) AllowStream(id peer.ID, dir network.Direction) {
	if dir != network.DirInbound {
		return
	}
	if ok, _ := w.rates.take(id, 1, time.Now()); !ok {
		w.gate.penalise(id, "stream flood", pointsBusy)
	}
}

// BlockStream counts a stream beyond what its peer, or everybody, may have open.
func (w *streamWatch) BlockStream(id peer.ID, dir network.Direction) {
	if dir == network.DirInbound {
		w.gate.penalise(id, "too many streams", pointsOver)
	}
}

// The rest completes rcmgr.MetricsReporter.
var _ rcmgr.MetricsReporter = (*streamWatch)(nil)

func (*streamWatch) AllowConn(network.Direction, bool)      {}
func (*streamWatch) BlockConn(network.Direction, bool)      {}
func (*streamWatch) AllowPeer(peer.ID)                      {}
func (*streamWatch) BlockPeer(peer.ID)                      {}
func (*streamWatch) AllowProtocol(protocol.ID)              {}
func (*streamWatch) BlockProtocol(protocol.ID)              {}
func (*streamWatch) BlockProtocolPeer(protocol.ID, peer.ID) {}
func (*streamWatch) AllowService(string)                    {}
func (*streamWatch) BlockService(string)                    {}
func (*streamWatch) BlockServicePeer(string, peer.ID)       {}
func (*streamWatch) AllowMemory(int)                        {}
func (*streamWatch) BlockMemory(int)                        {}
