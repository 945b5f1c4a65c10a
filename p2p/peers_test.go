package p2p

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/network"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

// TestFalseAnswers: a peer that answers with what it should not have passed on is
// cut off after a few answers, and nothing of it is taken in.
func TestFalseAnswers(t *testing.T) {
	forged := resigned(t, 40, func(m *p2ppb.Advert) {
		m.IssuedMs = time.Date(2000, 1, 1, 0, 0, 10, 0, time.UTC).UnixMilli() // a bubble's clock starts in 2000
	})
	forged.Signature[0] ^= 1
	many := &p2ppb.PeersAnswer{}
	for i := range findAdverts + 1 {
		many.Adverts = append(many.Adverts, &p2ppb.SignedAdvert{Body: []byte{byte(i)}})
	}
	message := func(m proto.Message) []byte {
		var b bytes.Buffer
		if err := WriteMessage(&b, m); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	cases := map[string][]byte{
		"forged":      message(&p2ppb.PeersAnswer{Adverts: []*p2ppb.SignedAdvert{forged}}),
		"empty":       message(&p2ppb.PeersAnswer{Adverts: []*p2ppb.SignedAdvert{{}}}),
		"too many":    message(many),
		"too long":    {0xff, 0xff, 0xff, 0xff, 0x0f},
		"no protobuf": {3, 0xff, 0xff, 0xff},
		"truncated":   {100, 1},
		"nothing":     {},
	}
	for name, answer := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sim := p2psim.New(p2psim.Config{})
				hosts := village(t, sim, 2, nil)
				defer func() { settle(sim, hosts...) }()
				victim, villain := hosts[0], hosts[1]
				time.Sleep(3 * time.Second)
				villain.host.SetStreamHandler(villain.disc.peers.protocol, func(st network.Stream) {
					st.Write(answer)
					st.Close()
				})
				id, err := peerID(villain.Address())
				if err != nil {
					t.Fatal(err)
				}
				for range 8 {
					if err := victim.disc.ask(t.Context(), id, testModel, findAdverts); err == nil {
						t.Error("no error")
					}
					time.Sleep(100 * time.Millisecond)
				}
				if n := len(victim.Adverts(mesh.Hash{})); n != 0 {
					t.Errorf("%d adverts taken in", n)
				}
				if cut := !victim.Connected(villain.Address()); cut != (name != "nothing") {
					t.Errorf("cut off: %v", cut)
				}
			})
		})
	}
}

// TestFalseQuestions: garbage and too many questions are refused, and whoever
// sends garbage is cut off.
func TestFalseQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{})
		hosts := village(t, sim, 3, nil)
		defer func() { settle(sim, hosts...) }()
		time.Sleep(time.Minute) // the questions of the greeting are forgotten
		server, eager, villain := hosts[0], hosts[1], hosts[2]
		id, err := peerID(server.Address())
		if err != nil {
			t.Fatal(err)
		}
		answered := 0
		for range 3 * peersBurst {
			if eager.disc.ask(t.Context(), id, mesh.Hash{}, 1) == nil {
				answered++
			}
		}
		if answered < peersBurst || answered > 2*peersBurst {
			t.Errorf("%d of %d questions answered, burst %d", answered, 3*peersBurst, peersBurst)
		}
		rng := rand.New(rand.NewPCG(5, 5))
		for range 12 {
			st, err := villain.host.NewStream(t.Context(), id, villain.disc.peers.protocol)
			if err != nil {
				break
			}
			junk := make([]byte, 200)
			for i := range junk {
				junk[i] = byte(rng.Uint32()) | 0x80
			}
			st.Write(junk)
			st.CloseWrite()
			st.Read(make([]byte, 1))
		}
		time.Sleep(time.Second)
		if server.Connected(villain.Address()) {
			t.Error("who sends garbage is still connected")
		}
		if !server.Connected(eager.Address()) {
			t.Error("an eager peer was cut off")
		}
	})
}

func FuzzPeersAnswer(f *testing.F) {
	var b bytes.Buffer
	answer := &p2ppb.PeersAnswer{Adverts: []*p2ppb.SignedAdvert{signed(f, 1, testAdvert(1, 1)), signed(f, 2, testAdvert(2, 1))}}
	if err := WriteMessage(&b, answer); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0})
	f.Add([]byte{2, 0x0a, 0x00})
	f.Add(bytes.Repeat([]byte{0xff}, 12))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &discovery{table: newAdvertTable(testNetwork)}
		var answer p2ppb.PeersAnswer
		if ReadMessage(bytes.NewReader(data), answerLimit, &answer) != nil {
			return
		}
		if err := d.takeIn("peer", &answer, findAdverts); err != nil && len(answer.Adverts) == 0 {
			t.Errorf("empty answer: %v", err)
		}
		if n := len(d.table.entries); n > len(answer.Adverts) {
			t.Errorf("%d entries of %d adverts", n, len(answer.Adverts))
		}
	})
}

func FuzzPeersAsk(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{2, 0x0a, 0x00})
	f.Add(append([]byte{34, 0x0a, 32}, testModel[:]...))
	f.Fuzz(func(t *testing.T, data []byte) {
		var ask p2ppb.PeersAsk
		if ReadMessage(bytes.NewReader(data), askLimit, &ask) != nil {
			return
		}
		key, err := askedKey(&ask)
		if err == nil && len(ask.Key) != 0 && !bytes.Equal(key[:], ask.Key) {
			t.Errorf("key %x became %s", ask.Key, key)
		}
	})
}

func FuzzAnnouncement(f *testing.F) {
	f.Add("dnsaddr=/ip4/192.0.2.1/tcp/4700/p2p/" + testAddress(1).String())
	f.Add("dnsaddr=/ip4/192.0.2.1/tcp/4700\ndnsaddr=/p2p/" + testAddress(1).String())
	f.Add("dnsaddr=")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		info, ok := announced(strings.Split(text, "\n"))
		if ok && (info.ID == "" || len(info.Addrs) == 0 || len(info.Addrs) > localAddrs) {
			t.Errorf("accepted %v", info)
		}
	})
}

// TestRecordStore holds the store of provider records to its bounds.
func TestRecordStore(t *testing.T) {
	s, ctx := newRecordStore(), context.Background()
	put := func(key, peer string) {
		if err := s.Put(ctx, ds.NewKey("/providers/"+key+"/"+peer), []byte(peer)); err != nil {
			t.Fatal(err)
		}
	}
	count := func(prefix string) int {
		res, err := s.Query(ctx, query.Query{Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		all, err := res.Rest()
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	put("A", "p1")
	put("A", "p2")
	put("B", "p1")
	put("A", "p1")
	for prefix, want := range map[string]int{"/providers/A": 2, "/providers/B": 1, "/providers/C": 0, "/providers/": 3} {
		if n := count(prefix); n != want {
			t.Errorf("%d records under %s, want %d", n, prefix, want)
		}
	}
	if v, err := s.Get(ctx, ds.NewKey("/providers/A/p2")); err != nil || string(v) != "p2" {
		t.Errorf("got %q, %v", v, err)
	}
	if err := s.Delete(ctx, ds.NewKey("/providers/A/p2")); err != nil {
		t.Fatal(err)
	}
	if ok, _ := s.Has(ctx, ds.NewKey("/providers/A/p2")); ok || count("/providers/A") != 1 {
		t.Error("deleted record is there")
	}
	name := func(i int) string { return string([]rune{'x', rune(0x4e00 + i%5000), rune(0x4e00 + i/5000)}) }
	for i := range 2 * storedRecordsPerPeer {
		put(name(i), "greedy")
	}
	if n := len(s.byPeer["greedy"]); n != storedRecordsPerPeer {
		t.Errorf("%d records of one peer, bound %d", n, storedRecordsPerPeer)
	}
	for i := range storedRecords + 5000 {
		put(name(i), name(i%100))
	}
	if n := len(s.records); n != storedRecords || count("/providers/") != n {
		t.Errorf("%d records, bound %d", n, storedRecords)
	}
	if ok, _ := s.Has(ctx, ds.NewKey("/providers/B/p1")); !ok {
		t.Error("the record of a modest peer was displaced")
	}
}
