package p2p

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/prometheus/client_golang/prometheus"
)

// meter counts bytes, and answers Prometheus with a few series of fixed labels.
// libp2p's own metrics are off: they cost memory that a light peer does not have.
type meter struct {
	h       *Host
	in, out atomic.Int64 // bytes of all streams

	peers, conns, streams, bytes *prometheus.Desc
}

func newMeter(h *Host) *meter {
	return &meter{h: h,
		peers:   prometheus.NewDesc("mesh_p2p_peers", "Connected peers whose hello agreed.", nil, nil),
		conns:   prometheus.NewDesc("mesh_p2p_connections", "Open connections.", []string{"direction", "transport"}, nil),
		streams: prometheus.NewDesc("mesh_p2p_streams", "Open streams.", []string{"direction", "protocol"}, nil),
		bytes:   prometheus.NewDesc("mesh_p2p_bytes_total", "Bytes moved on all streams.", []string{"direction"}, nil),
	}
}

func (m *meter) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	return r.Register(m)
}

func (m *meter) unregister(r prometheus.Registerer) {
	if r != nil {
		r.Unregister(m)
	}
}

// Describe is part of prometheus.Collector.
func (m *meter) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.peers, m.conns, m.streams, m.bytes} {
		ch <- d
	}
}

// Collect is part of prometheus.Collector.
func (m *meter) Collect(ch chan<- prometheus.Metric) {
	conns, streams := map[[2]string]int{}, map[[2]string]int{}
	for _, c := range m.h.host.Network().Conns() {
		conns[[2]string{direction(c.Stat().Direction), transportOf(c.RemoteMultiaddr())}]++
		for _, s := range c.GetStreams() {
			streams[[2]string{direction(s.Stat().Direction), m.label(s.Protocol())}]++
		}
	}
	ch <- prometheus.MustNewConstMetric(m.peers, prometheus.GaugeValue, float64(m.h.hellos.count()))
	for k, n := range conns {
		ch <- prometheus.MustNewConstMetric(m.conns, prometheus.GaugeValue, float64(n), k[0], k[1])
	}
	for k, n := range streams {
		ch <- prometheus.MustNewConstMetric(m.streams, prometheus.GaugeValue, float64(n), k[0], k[1])
	}
	ch <- prometheus.MustNewConstMetric(m.bytes, prometheus.CounterValue, float64(m.in.Load()), "in")
	ch <- prometheus.MustNewConstMetric(m.bytes, prometheus.CounterValue, float64(m.out.Load()), "out")
}

func direction(d network.Direction) string {
	if d == network.DirInbound {
		return "in"
	}
	return "out"
}

// label names a protocol; the names come from this program, not from peers.
func (m *meter) label(id protocol.ID) string {
	s := string(id)
	if name, ok := strings.CutPrefix(s, "/mesh/"+string(m.h.cfg.Network)+"/"); ok {
		return strings.TrimSuffix(name, "/1")
	}
	switch {
	case strings.HasPrefix(s, "/meshsub/"):
		return "gossip"
	case strings.Contains(s, "/kad/"):
		return "dht"
	}
	return "libp2p"
}

// The rest is metrics.Reporter, of which libp2p calls the two below.
var _ metrics.Reporter = (*meter)(nil)

func (m *meter) LogSentMessage(n int64) { m.out.Add(n) }
func (m *meter) LogRecvMessage(n int64) { m.in.Add(n) }

func (m *meter) LogSentMessageStream(int64, protocol.ID, peer.ID)      {}
func (m *meter) LogRecvMessageStream(int64, protocol.ID, peer.ID)      {}
func (m *meter) GetBandwidthForPeer(peer.ID) metrics.Stats             { return metrics.Stats{} }
func (m *meter) GetBandwidthForProtocol(protocol.ID) metrics.Stats     { return metrics.Stats{} }
func (m *meter) GetBandwidthByPeer() map[peer.ID]metrics.Stats         { return nil }
func (m *meter) GetBandwidthByProtocol() map[protocol.ID]metrics.Stats { return nil }
func (m *meter) Reset()                                                {}
func (m *meter) TrimIdle(time.Time)                                    {}
func (m *meter) GetBandwidthTotals() metrics.Stats {
	return metrics.Stats{TotalIn: m.in.Load(), TotalOut: m.out.Load()}
}
