package consensus

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cometbft/cometbft/mempool"
)

// BenchmarkTransports measures transactions of 250 bytes per second with four
// validators, over the mesh's streams and over CometBFT's own transport, in turns so
// that a machine that does much else treats both alike.
func BenchmarkTransports(b *testing.B) {
	for range b.N {
		rates := make(map[string]float64)
		for range 2 {
			for _, transport := range []string{TransportMesh, TransportComet} {
				rates[transport] += loadRate(b, transport, 10*time.Second) / 2
			}
		}
		b.ReportMetric(rates[TransportMesh], "mesh-tx/s")
		b.ReportMetric(rates[TransportComet], "comet-tx/s")
		b.ReportMetric(rates[TransportMesh]/rates[TransportComet], "mesh/comet")
	}
}

// loadRate keeps the mempools of four validators filled and returns the transactions
// per second that came into blocks.
func loadRate(b *testing.B, transport string, d time.Duration) float64 {
	n := newToyNet(b, 4, 0, func(i int, cfg *Config) { cfg.Commit = time.Second })
	if transport == TransportComet {
		n.useComet()
	}
	n.start()
	n.reach(2, n.nodes...)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, node := range n.nodes {
		wg.Go(func() {
			p, err := node.running()
			if err != nil {
				return
			}
			for k := uint64(0); ; k++ {
				select {
				case <-done:
					return
				default:
				}
				tx := make([]byte, 250)
				binary.BigEndian.PutUint64(tx, k)
				tx[8] = byte(node.i)
				if err := p.pool.CheckTx(tx, nil, mempool.TxInfo{}); err != nil || p.pool.Size() > 4000 {
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	time.Sleep(3 * time.Second)
	from, begin := n.nodes[0].app.count(), time.Now()
	time.Sleep(d)
	count, took := n.nodes[0].app.count()-from, time.Since(begin)
	close(done)
	wg.Wait()
	for _, node := range n.nodes {
		node.Stop()
		if node.host != nil {
			node.host.Close()
		}
	}
	return float64(count) / took.Seconds()
}

// useComet gives the nodes ports of CometBFT's own transport.
func (n *toyNet) useComet() {
	var addrs, ids []string
	for _, node := range n.nodes {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			n.t.Fatal(err)
		}
		defer ln.Close() // all are held until all are drawn
		addrs = append(addrs, ln.Addr().String())
		ids = append(ids, CometID(toyKey(node.i)))
	}
	tune := n.tune
	n.tune = func(i int, cfg *Config) {
		if tune != nil {
			tune(i, cfg)
		}
		cfg.Transport = TransportComet
		cfg.Comet = &Comet{Listen: addrs[i], Key: toyKey(i)}
		for k := range addrs {
			if k != i {
				cfg.Comet.Peers = append(cfg.Comet.Peers, fmt.Sprintf("%s@%s", ids[k], addrs[k]))
			}
		}
	}
}
