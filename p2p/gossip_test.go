package p2p

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
	"github.com/gonka-mesh/mesh/p2p/p2psim"
)

func accept(mesh.Address, []byte) Verdict { return Accept }

// TestGossipFlood: one member of a small network sends what it should not, much
// too fast. The others cut it off within ten seconds, and their own messages all
// arrive.
func TestGossipFlood(t *testing.T) {
	forged := func(i int) []byte {
		s := &p2ppb.SignedAdvert{Body: []byte{byte(i), byte(i >> 8)}, Signature: make([]byte, 64)}
		data, err := proto.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	cases := []struct {
		name, topic string
		perSecond   int
		data        func(i int) []byte
	}{
		{"valid messages", "task", 200, func(i int) []byte { return []byte{byte(i), byte(i >> 8)} }},
		{"forged adverts", advertShard(testModel), 50, forged},
		{"more than can be verified", "task", 5000, func(i int) []byte { return make([]byte, 200) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { flood(t, c.topic, c.perSecond, c.data) })
		})
	}
}

func flood(t *testing.T, name string, perSecond int, data func(int) []byte) {
	sim := p2psim.New(p2psim.Config{})
	hosts := village(t, sim, 6, nil)
	defer func() { settle(sim, hosts...) }()
	villain, honest := hosts[5], hosts[:5]
	var heard atomic.Int64
	var topics []*Topic
	for _, h := range honest {
		h.Follow(testModel)
		topic, err := h.Join("task", func(from mesh.Address, _ []byte) Verdict {
			if from != villain.Address() {
				heard.Add(1)
			}
			return Accept
		}, TopicOptions{})
		if err != nil {
			t.Fatal(err)
		}
		topics = append(topics, topic)
		if _, err := villain.Connect(t.Context(), simAddr(h, len(topics)-1)); err != nil {
			t.Fatal(err)
		}
	}
	weapon, err := villain.Join(name, accept, TopicOptions{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	begin := time.Now()
	alone := func() bool {
		for _, h := range honest {
			if h.Connected(villain.Address()) {
				return false
			}
		}
		return true
	}
	sent := 0
	for tick := 0; !alone() && time.Since(begin) < 15*time.Second; tick++ {
		for range perSecond / 50 {
			weapon.topic.Publish(t.Context(), data(tick))
		}
		if tick%50 == 0 {
			sent++
			if err := topics[0].Publish(t.Context(), []byte("honest")); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Second / 50)
	}
	took := time.Since(begin)
	t.Logf("all had cut the flooder off %v after it began", took)
	if took > 10*time.Second {
		t.Errorf("flooder cut off after %v, want 10 s", took)
	}
	time.Sleep(time.Second)
	if want := int64(sent * (len(honest) - 1)); heard.Load() != want {
		t.Errorf("%d of %d honest messages arrived", heard.Load(), want)
	}
	for i, h := range honest {
		for _, o := range honest[i+1:] {
			id, _ := peerID(o.Address())
			if s := h.disc.gossip.score(id); s < 0 {
				t.Errorf("honest peer has gossip score %v", s)
			}
		}
	}
}

func TestTopicOptions(t *testing.T) {
	a, b := startPair(t)
	heard := make(chan string, 2)
	only := func(from mesh.Address, data []byte) Verdict {
		heard <- from.String() + " " + string(data)
		return Accept
	}
	ta, err := a.Join("train/0a", only, TopicOptions{MaxSize: 100})
	if err != nil {
		t.Fatal(err)
	}
	tb, err := b.Join("train/0a", only, TopicOptions{MaxSize: 100})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Join("train/0a", only, TopicOptions{}); err == nil {
		t.Error("joined twice")
	}
	eventually(t, "the topic has a peer", func() bool { return ta.Peers() == 1 })
	if err := ta.Publish(t.Context(), make([]byte, 101)); err == nil {
		t.Error("published more than the limit")
	}
	if err := ta.Publish(t.Context(), []byte("even")); err != nil {
		t.Fatal(err)
	}
	if m := <-heard; m != a.Address().String()+" even" {
		t.Errorf("received %q", m)
	}
	if err := tb.Close(); err != nil {
		t.Fatal(err)
	}
	if tb, err = b.Join("train/0a", only, TopicOptions{}); err != nil {
		t.Fatalf("join again: %v", err)
	}
	if err := tb.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPublishRate holds that a node cannot publish so much that others count it against
// the node: what is beyond the rate fails and is not sent.
func TestPublishRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2psim.New(p2psim.Config{})
		hosts := village(t, sim, 2, nil)
		defer func() { settle(sim, hosts...) }()
		author, other := hosts[0], hosts[1]
		o := TopicOptions{Rate: 2, Burst: 10}
		var heard atomic.Int64
		if _, err := other.Join("task", func(mesh.Address, []byte) Verdict { heard.Add(1); return Accept }, o); err != nil {
			t.Fatal(err)
		}
		topic, err := author.Join("task", accept, o)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		publish := func(n int) (sent int) {
			for i := range n {
				switch err := topic.Publish(t.Context(), []byte{byte(i), byte(i >> 8), byte(heard.Load())}); {
				case err == nil:
					sent++
				case !errors.Is(err, ErrRate):
					t.Error(err)
				}
			}
			return sent
		}
		if n := publish(200); n != 10 {
			t.Errorf("%d were published at once, want 10", n)
		}
		time.Sleep(2 * scorePeriod) // what was refused costs nothing later
		if n := publish(200); n != 8 {
			t.Errorf("%d were published 4 s later, want 8", n)
		}
		time.Sleep(2 * scorePeriod)
		if heard.Load() != 18 {
			t.Errorf("%d were heard, want 18", heard.Load())
		}
		id, err := peerID(author.Address())
		if err != nil {
			t.Fatal(err)
		}
		if s := other.disc.gossip.score(id); s < 0 || !other.Connected(author.Address()) {
			t.Errorf("the author's score is %v", s)
		}
	})
}

func TestTopicFilter(t *testing.T) {
	f := newTopicFilter(testNetwork)
	for topic, want := range map[string]bool{
		topicID(testNetwork, "task"):             true,
		topicID(testNetwork, "advert/07"):        true,
		topicID("other00000000", "task"):         false,
		"/mesh/" + string(testNetwork) + "/task": false,
		"task":                                   false,
		"":                                       false,
	} {
		if got := f.CanSubscribe(topic); got != want {
			t.Errorf("%q: %v, want %v", topic, got, want)
		}
	}
}

func TestPeerRates(t *testing.T) {
	r := newPeerRates(2, 4)
	at := testNow
	count := func(n int) (passed int, flooded bool) {
		for range n {
			ok, flood := r.take("a", 1, at)
			if ok {
				passed++
			}
			flooded = flooded || flood
		}
		return passed, flooded
	}
	if n, flooded := count(10); n != 4 || flooded {
		t.Errorf("burst: %d passed, flood %v", n, flooded)
	}
	if _, flooded := count(10); !flooded {
		t.Error("20 at once with a burst of 4 are no flood")
	}
	at = at.Add(3 * time.Second)
	if n, _ := count(1); n != 0 {
		t.Error("a flooder got through after 3 s")
	}
	at = at.Add(time.Minute)
	if n, _ := count(10); n != 4 {
		t.Errorf("after a rest %d passed, want 4", n)
	}
	for i := range 3 * trackedPeers {
		r.take(peer.ID(rune(i+1000)), 1, at)
	}
	if n := len(r.buckets); n > trackedPeers {
		t.Errorf("%d peers remembered, bound %d", n, trackedPeers)
	}
}
