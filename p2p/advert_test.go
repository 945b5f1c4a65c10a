package p2p

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

var (
	testNetwork = mesh.NewNetworkID("test", testGenesis)
	testNow     = time.UnixMilli(1_800_000_000_000)
)

func testAddress(n int) mesh.Address {
	return mesh.AddressOf(testKey(n).Public().(ed25519.PublicKey))
}

// testAdvert is a valid advert of node n.
func testAdvert(n int, seq uint64) Advert {
	return Advert{Peer: testAddress(n), Addrs: []string{"/ip4/192.0.2.1/tcp/4700"}, Seq: seq, Issued: testNow,
		Services: []Service{{Key: testModel, Payload: []byte("payload")}}}
}

func signed(t testing.TB, n int, a Advert) *p2ppb.SignedAdvert {
	t.Helper()
	s, err := signAdvert(testNetwork, testKey(n), a, advertTTL)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// resigned is a signed advert whose fields were changed before signing.
func resigned(t testing.TB, n int, change func(*p2ppb.Advert)) *p2ppb.SignedAdvert {
	t.Helper()
	var m p2ppb.Advert
	if err := proto.Unmarshal(signed(t, n, testAdvert(n, 1)).Body, &m); err != nil {
		t.Fatal(err)
	}
	change(&m)
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&m)
	if err != nil {
		t.Fatal(err)
	}
	return &p2ppb.SignedAdvert{Body: body, Signature: advertDomain.Sign(testKey(n), testNetwork, body)}
}

func TestAdvertTable(t *testing.T) {
	via := peer.ID("neighbour")
	good := signed(t, 1, testAdvert(1, 5))
	foreign, err := signAdvert("other00000000", testKey(1), testAdvert(1, 6), advertTTL)
	if err != nil {
		t.Fatal(err)
	}
	twin := testAdvert(1, 5)
	twin.Relay = true
	services := func(n int) func(*p2ppb.Advert) {
		return func(m *p2ppb.Advert) {
			m.Services = nil
			for i := range n {
				key := mesh.Hash{byte(i >> 8), byte(i)}
				m.Services = append(m.Services, &p2ppb.Service{Key: key[:]})
			}
		}
	}
	cases := []struct {
		name  string
		s     *p2ppb.SignedAdvert
		from  source
		at    time.Duration // after testNow
		stale bool
		want  string // in the error; "" for none
	}{
		{name: "valid", s: signed(t, 2, testAdvert(2, 1)), from: source{via: via}},
		{name: "author", s: signed(t, 2, testAdvert(2, 1)), from: source{author: testAddress(2)}},
		{name: "other author", s: signed(t, 2, testAdvert(2, 1)), from: source{author: testAddress(1)}, want: "sent by"},
		{name: "known already", s: good},
		{name: "newer", s: signed(t, 1, testAdvert(1, 6))},
		{name: "older", s: signed(t, 1, testAdvert(1, 4)), stale: true, want: "stale"},
		{name: "two of one sequence", s: signed(t, 1, twin), stale: true, want: "stale"},
		{name: "wrong signer", s: signed(t, 3, testAdvert(2, 1)), want: "wrong signature"},
		{name: "other network", s: foreign, want: "of network"},
		{name: "expired", s: signed(t, 2, testAdvert(2, 1)), at: advertTTL, stale: true, want: "expired"},
		{name: "dated ahead", s: signed(t, 2, testAdvert(2, 1)), at: -2 * advertSkew, stale: true, want: "ahead"},
		{name: "lives for ever", s: resigned(t, 2, func(m *p2ppb.Advert) { m.TtlS = 1 << 31 }), want: "limit"},
		{name: "lives not", s: resigned(t, 2, func(m *p2ppb.Advert) { m.TtlS = 0 }), want: "limit"},
		{name: "absurd date", s: resigned(t, 2, func(m *p2ppb.Advert) { m.IssuedMs = 1 << 62 }), want: "issued at"},
		{name: "most services", s: resigned(t, 2, services(maxServices))},
		{name: "too many services", s: resigned(t, 2, services(maxServices+1)), want: "limits"},
		{name: "thousands of services", s: resigned(t, 2, services(3000)), want: "limit"},
		{name: "services out of order", s: resigned(t, 2, func(m *p2ppb.Advert) {
			m.Services = append(m.Services, m.Services[0])
		}), want: "order"},
		{name: "short key", s: resigned(t, 2, func(m *p2ppb.Advert) { m.Services[0].Key = []byte{1} }), want: "service key"},
		{name: "large payload", s: resigned(t, 2, func(m *p2ppb.Advert) {
			m.Services[0].Payload = make([]byte, maxPayload+1)
		}), want: "payload"},
		{name: "too many addresses", s: resigned(t, 2, func(m *p2ppb.Advert) {
			for range maxAdvertAddrs {
				m.Addrs = append(m.Addrs, m.Addrs[0])
			}
		}), want: "limits"},
		{name: "no address", s: resigned(t, 2, func(m *p2ppb.Advert) { m.Addrs = []string{"rm -rf"} }), want: "address"},
		{name: "long address", s: resigned(t, 2, func(m *p2ppb.Advert) {
			m.Addrs = []string{"/dns4/" + strings.Repeat("a", maxAddrLen) + "/tcp/1"}
		}), want: "bytes"},
		{name: "unknown peer form", s: resigned(t, 2, func(m *p2ppb.Advert) { m.Peer = m.Peer[1:] }), want: "peer of"},
		{name: "not canonical", s: &p2ppb.SignedAdvert{Body: append([]byte{0x10, 0x00}, good.Body...)}, want: "canonical"},
		{name: "no protobuf", s: &p2ppb.SignedAdvert{Body: []byte{0xff}}, want: "decode"},
		{name: "empty", s: &p2ppb.SignedAdvert{}, want: "of network"},
		{name: "oversized", s: &p2ppb.SignedAdvert{Body: make([]byte, maxAdvertSize+1)}, want: "limit"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			table := newAdvertTable(testNetwork)
			if err := table.admit(good, source{via: via}, testNow); err != nil {
				t.Fatal(err)
			}
			err := table.admit(c.s, c.from, testNow.Add(c.at))
			if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if errors.Is(err, errStale) != c.stale {
				t.Errorf("stale: %v, want %v", errors.Is(err, errStale), c.stale)
			}
		})
	}
}

// TestAdvertSignature: a changed signature is a fault, not staleness, while the
// advert is fresh and unknown.
func TestAdvertSignature(t *testing.T) {
	s := signed(t, 1, testAdvert(1, 1))
	for i := range s.Signature {
		bad := proto.CloneOf(s)
		bad.Signature[i] ^= 0x40
		table := newAdvertTable(testNetwork)
		if err := table.admit(bad, source{}, testNow); err == nil || errors.Is(err, errStale) {
			t.Fatalf("signature byte %d changed: %v", i, err)
		}
	}
}

func TestAdvertLifetime(t *testing.T) {
	table := newAdvertTable(testNetwork)
	first := signed(t, 1, testAdvert(1, 1))
	mustAdmit := func(s *p2ppb.SignedAdvert, at time.Time) {
		t.Helper()
		if err := table.admit(s, source{}, at); err != nil {
			t.Fatal(err)
		}
	}
	mustAdmit(first, testNow)
	if got := table.list(testModel, testNow); len(got) != 1 || got[0].Peer != testAddress(1) || string(got[0].Services[0].Payload) != "payload" {
		t.Fatalf("listed %v", got)
	}
	if got := table.list(mesh.Hash{1}, testNow); len(got) != 0 {
		t.Errorf("listed under another key: %v", got)
	}
	bye := testAdvert(1, 2)
	bye.Services = nil
	mustAdmit(signed(t, 1, bye), testNow)
	if got := table.list(mesh.Hash{}, testNow); len(got) != 0 {
		t.Errorf("listed after the goodbye: %v", got)
	}
	if err := table.admit(first, source{}, testNow); !errors.Is(err, errStale) {
		t.Errorf("replay after the goodbye: %v", err)
	}
	back := testAdvert(1, 3)
	back.Issued = testNow.Add(time.Minute)
	mustAdmit(signed(t, 1, back), back.Issued)
	end := back.Issued.Add(advertTTL)
	if got := table.list(testModel, end.Add(-time.Second)); len(got) != 1 {
		t.Errorf("listed before the end: %v", got)
	}
	if got := table.list(testModel, end); len(got) != 0 {
		t.Errorf("listed after the end: %v", got)
	}
	table.sweep(end)
	if len(table.entries) != 0 || table.bytes != 0 || len(table.via) != 0 {
		t.Errorf("after the sweep: %d entries, %d bytes, %d sources", len(table.entries), table.bytes, len(table.via))
	}
}

// TestAdvertTableBounded: a peer that passes on endless identities fills the
// table, and displaces only its own.
func TestAdvertTableBounded(t *testing.T) {
	table := newAdvertTable(testNetwork)
	table.maxCount = 50
	if err := table.admit(signed(t, 0, testAdvert(0, 1)), source{via: "self", own: true}, testNow); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 10; i++ {
		if err := table.admit(signed(t, i, testAdvert(i, 1)), source{via: "honest"}, testNow); err != nil {
			t.Fatal(err)
		}
	}
	for i := 100; i < 300; i++ {
		if err := table.admit(signed(t, i, testAdvert(i, 1)), source{via: "flooder"}, testNow.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(table.entries); n != 50 {
		t.Errorf("%d entries, want 50", n)
	}
	for i := range 11 {
		if _, ok := table.of(testAddress(i), testNow); !ok {
			t.Errorf("advert %d was displaced", i)
		}
	}
	table.maxBytes = table.bytes / 2
	if err := table.admit(signed(t, 300, testAdvert(300, 1)), source{via: "flooder"}, testNow); err != nil {
		t.Fatal(err)
	}
	if table.bytes > table.maxBytes {
		t.Errorf("%d bytes, bound %d", table.bytes, table.maxBytes)
	}
	sum := 0
	for _, e := range table.entries {
		sum += e.size
	}
	if sum != table.bytes {
		t.Errorf("%d bytes counted, %d there", table.bytes, sum)
	}
}

func TestAnswerBounded(t *testing.T) {
	table := newAdvertTable(testNetwork)
	for i := range 60 {
		a := testAdvert(i, 1)
		a.Services[0].Payload = make([]byte, maxPayload)
		if err := table.admit(signed(t, i, a), source{own: i == 7}, testNow); err != nil {
			t.Fatal(err)
		}
	}
	all := table.signed(testModel, 100, 20<<10, testNow)
	if size := proto.Size(&p2ppb.PeersAnswer{Adverts: all}); size > 20<<10 || len(all) < 8 {
		t.Errorf("%d adverts in %d bytes, bound %d", len(all), size, 20<<10)
	}
	a, err := parseAdvert(testNetwork, all[0].Body)
	if err != nil || a.Peer != testAddress(7) {
		t.Errorf("first is %v (%v), want the own one", a.Peer, err)
	}
	if n := len(table.signed(mesh.Hash{}, 5, 1<<20, testNow)); n != 5 {
		t.Errorf("%d adverts, asked for 5", n)
	}
	if n := len(table.signed(mesh.Hash{9}, 5, 1<<20, testNow)); n != 0 {
		t.Errorf("%d adverts of an unknown key", n)
	}
}

func FuzzAdvert(f *testing.F) {
	good := signed(f, 1, testAdvert(1, 1))
	f.Add(good.Body, good.Signature)
	f.Add(resigned(f, 1, func(m *p2ppb.Advert) { m.Services = nil }).Body, []byte{})
	f.Add([]byte{}, []byte{})
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, make([]byte, 64))
	f.Fuzz(func(t *testing.T, body, sig []byte) {
		table := newAdvertTable(testNetwork)
		err := table.admit(&p2ppb.SignedAdvert{Body: body, Signature: sig}, source{}, testNow)
		if err == nil != (len(table.entries) == 1) {
			t.Fatalf("error %v, %d entries", err, len(table.entries))
		}
		if err == nil {
			a := table.list(mesh.Hash{}, testNow)
			if len(a) > 0 && !advertDomain.Verify(a[0].Peer, testNetwork, body, sig) {
				t.Fatal("admitted without a valid signature")
			}
		}
	})
}
