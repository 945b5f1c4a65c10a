package blob

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"iter"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/merkle"
	"github.com/gonka-mesh/mesh/p2p"
)

// realHosts starts hosts on loopback.
func realHosts(t testing.TB, n int) []*p2p.Host {
	t.Helper()
	genesis := mesh.HashOf([]byte("blob test"))
	var hosts []*p2p.Host
	for i := range n {
		seed := mesh.HashOf([]byte{byte(i)})
		h, err := p2p.New(p2p.Config{Network: mesh.NewNetworkID("test", genesis), Genesis: genesis,
			Key: ed25519.NewKeyFromSeed(seed[:]), Listen: []string{"127.0.0.1:0"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		if err := h.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	return hosts
}

// The same over real hosts: two that serve, one of which lies, and one that fetches.
func TestFetchOverHosts(t *testing.T) {
	hosts := realHosts(t, 3)
	origin, root, data := testBlob(t, 9<<20, 1<<20)
	for i, h := range hosts[:2] {
		s := NewServer(ServerConfig{Store: origin, Penalise: h.Penalise})
		h.Handle(ProtocolManifest, p2p.Limits{}, s.ServeManifest)
		wrap := []wrapFunc{slow(20 * time.Millisecond), liar(0)}[i]
		h.Handle(ProtocolBlob, p2p.Limits{}, func(ctx context.Context, peer mesh.Address, conn net.Conn) {
			s.ServeRange(ctx, peer, wrap(nil, ProtocolBlob, conn))
		})
		if _, err := hosts[2].Connect(t.Context(), h.Addrs()[0]); err != nil {
			t.Fatal(err)
		}
	}
	f := NewFetcher(Config{Store: testStore(t, 1<<20), Dialer: hosts[2], Penalise: hosts[2].Penalise,
		Sources: func(context.Context, mesh.Hash) iter.Seq[mesh.Address] {
			return slices.Values([]mesh.Address{hosts[1].Address(), hosts[0].Address()})
		}})
	path, err := f.Fetch(t.Context(), root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, data)
	if hosts[2].Connected(hosts[1].Address()) {
		t.Error("the liar is still connected")
	}
	if !hosts[2].Connected(hosts[0].Address()) {
		t.Error("the honest host was parted with")
	}
}

// BenchmarkFetchOverHosts is BenchmarkFetch over the streams of real hosts, with one
// of the four killed half-way and one that lies: once as the hosts pick the transport,
// which on one machine is TCP, and once over QUIC. The hosts are connected before.
func BenchmarkFetchOverHosts(b *testing.B) {
	path, origin, root := benchBlob(b)
	for _, via := range []string{"picked", "quic"} {
		for _, faulty := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/faulty=%v", via, faulty), func(b *testing.B) {
				compare(b, path, func() time.Duration { return fetchOverHosts(b, origin, root, via, faulty) })
			})
		}
	}
}

func fetchOverHosts(b *testing.B, origin *Store, root mesh.Hash, via string, faulty bool) time.Duration {
	const liarAt, killedAt = 0, 1
	hosts := realHosts(b, 5)
	servers, fetcher := hosts[:4], hosts[4]
	var sources []mesh.Address
	for i, h := range servers {
		s := NewServer(ServerConfig{Store: origin, Penalise: h.Penalise})
		h.Handle(ProtocolManifest, p2p.Limits{PerPeer: 4, Total: 128, Rate: 5, Burst: 20}, s.ServeManifest)
		h.Handle(ProtocolBlob, p2p.Limits{PerPeer: 8, Total: 128, Rate: 20, Burst: 40}, func(ctx context.Context, peer mesh.Address, conn net.Conn) {
			if faulty && i == liarAt {
				conn = liar(0)(nil, ProtocolBlob, conn)
			}
			s.ServeRange(ctx, peer, conn)
		})
		where := h.Addrs()
		if via == "quic" {
			where = slices.DeleteFunc(where, func(a string) bool { return !strings.Contains(a, "/quic-v1") })
		}
		if _, err := fetcher.Connect(b.Context(), where[0]); err != nil {
			b.Fatal(err)
		}
		sources = append(sources, h.Address())
	}
	for _, p := range fetcher.Peers() {
		if want := map[string]string{"picked": "tcp", "quic": "quic"}[via]; p.Transport != want {
			b.Fatalf("connected over %s, want %s", p.Transport, want)
		}
	}
	store := testStore(b, merkle.ChunkSize)
	var half bool
	killed := make(chan struct{})
	f := NewFetcher(Config{Store: store, Dialer: fetcher, Penalise: fetcher.Penalise,
		Sources: func(context.Context, mesh.Hash) iter.Seq[mesh.Address] { return slices.Values(sources) }})
	start := time.Now()
	_, err := f.Fetch(b.Context(), root, Options{Progress: func(done, total uint64, _ int) {
		if faulty && !half && done > total/2 {
			half = true
			go func() { servers[killedAt].Close(); close(killed) }()
		}
	}})
	took := time.Since(start)
	if err != nil {
		b.Fatal(err)
	}
	if faulty {
		<-killed
		if fetcher.Connected(servers[liarAt].Address()) {
			b.Error("the liar is still connected")
		}
	}
	for _, h := range hosts {
		h.Close()
	}
	if err := store.Remove(root); err != nil {
		b.Error(err)
	}
	return took
}
