package blob

import (
	"context"
	"crypto/ed25519"
	"iter"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p"
)

// The same over real hosts: two that serve, one of which lies, and one that fetches.
func TestFetchOverHosts(t *testing.T) {
	genesis := mesh.HashOf([]byte("blob test"))
	var hosts []*p2p.Host
	for i := range 3 {
		seed := mesh.HashOf([]byte{byte(i)})
		h, err := p2p.New(p2p.Config{Network: mesh.NewNetworkID("test", genesis), Genesis: genesis,
			Key: ed25519.NewKeyFromSeed(seed[:]), Listen: []string{"127.0.0.1:0"}})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if err := h.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
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
