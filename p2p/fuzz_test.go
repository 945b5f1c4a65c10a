package p2p

import (
	"testing"

	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
)

// FuzzSeed reads a bootstrap address.
func FuzzSeed(f *testing.F) {
	f.Add("/ip4/192.0.2.1/tcp/4700/p2p/12D3KooWGSSqSZ5NwVzvb2gDWSTLUgNXXBYfKFhqcWVbnxBPdWDT")
	f.Add("/dns4/example.org/udp/4700/quic-v1/p2p/12D3KooWGSSqSZ5NwVzvb2gDWSTLUgNXXBYfKFhqcWVbnxBPdWDT")
	f.Add("/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
	f.Fuzz(func(t *testing.T, s string) {
		info, err := parseSeed(s)
		if err != nil {
			return
		}
		if _, err := addressOf(info.ID); err != nil {
			t.Errorf("%q passes without an identity that can be verified", s)
		}
		parseAddrs([]string{s})
		if _, err := parseSeeds([]string{s, s}, [32]byte{}); err != nil {
			t.Errorf("%q is a seed alone and none in a list: %v", s, err)
		}
	})
}

// FuzzSubscriptions hears of topics from a peer.
func FuzzSubscriptions(f *testing.F) {
	f.Add("/mesh/test12345678/task/1", true, uint8(100))
	f.Add("/mesh/other12345678/task/1", true, uint8(3))
	f.Fuzz(func(t *testing.T, topic string, on bool, n uint8) {
		filter := newTopicFilter("test12345678")
		var subs []*pb.RPC_SubOpts
		for i := range n {
			name := topic[:min(len(topic), int(i))] + topic
			subs = append(subs, &pb.RPC_SubOpts{Topicid: &name, Subscribe: &on}, &pb.RPC_SubOpts{})
		}
		for range 3 {
			kept, _ := filter.FilterIncomingSubscriptions(peer.ID("x"), subs)
			for _, s := range kept {
				if !filter.CanSubscribe(s.GetTopicid()) {
					t.Errorf("topic %q passes", s.GetTopicid())
				}
			}
		}
		if got := len(filter.seen[peer.ID("x")]); got > topicsOfPeer {
			t.Errorf("%d topics of one peer", got)
		}
	})
}
