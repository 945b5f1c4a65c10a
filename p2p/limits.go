package p2p

import (
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
)

// resources returns the accounting of connections, streams and buffer memory
// beneath all protocols. The numbers are the same on every machine; those of a
// mesh protocol come from its Limits and are counted exactly in its lane.
func (h *Host) resources() (network.ResourceManager, error) {
	conns := rcmgr.LimitVal(2 * h.cfg.HighConns)
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: 2 * conns, ConnsInbound: conns, ConnsOutbound: conns, FD: 2 * conns,
			Streams: 16384, StreamsInbound: 8192, StreamsOutbound: 8192, Memory: 1 << 30,
		},
		// Not yet authenticated, or streams whose protocol is not yet known.
		Transient: rcmgr.ResourceLimits{
			Conns: 256, ConnsInbound: 128, ConnsOutbound: 128, FD: 256,
			Streams: 1024, StreamsInbound: 512, StreamsOutbound: 512, Memory: 128 << 20,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: 16, ConnsInbound: 8, ConnsOutbound: 8, FD: 16,
			Streams: 1536, StreamsInbound: 512, StreamsOutbound: 1024, Memory: 192 << 20,
		},
		ProtocolDefault: rcmgr.ResourceLimits{
			Streams: 8192, StreamsInbound: 4096, StreamsOutbound: 4096, Memory: 512 << 20,
		},
		// Protocols of libp2p itself (DHT, gossip, identify, ping) live within this.
		ProtocolPeerDefault: rcmgr.ResourceLimits{
			Streams: 1280, StreamsInbound: 256, StreamsOutbound: 1024, Memory: 128 << 20,
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
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: n}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: n}, {PrefixLength: 48, ConnCount: 4 * n}}),
		rcmgr.WithConnRateLimiters(subnets))
}
