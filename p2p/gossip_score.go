package p2p

import (
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gonka-mesh/mesh"
)

// What one peer may send over all topics. A neighbour passes on the messages of
// many authors: 1000 that repeat an advert every 30 s are 33 per second.
const (
	inboundRate  = 250 // messages per second
	inboundBurst = 1500
)

// Scores under which a peer gets no gossip, no messages of ours, and is not
// heard at all.
const (
	scoreNoGossip  = -40
	scoreNoPublish = -80
	scoreGray      = -160
	scorePeriod    = 2 * time.Second
)

var (
	errFlood  = errors.New("message flood")
	errTopics = errors.New("too many topics")
)

// scoreParams weigh the behaviour of peers over all topics. Peers of one IP
// address beyond the sixteenth count against each other, except on loopback: a
// data centre behind one address is no Sybil attack, so this alone cuts nobody.
func scoreParams() *pubsub.PeerScoreParams {
	_, v4, _ := net.ParseCIDR("127.0.0.0/8")
	_, v6, _ := net.ParseCIDR("::1/128")
	return &pubsub.PeerScoreParams{
		Topics:                      make(map[string]*pubsub.TopicScoreParams),
		TopicScoreCap:               20,
		AppSpecificScore:            func(peer.ID) float64 { return 0 },
		AppSpecificWeight:           1,
		IPColocationFactorWeight:    -1,
		IPColocationFactorThreshold: 16,
		IPColocationFactorWhitelist: []*net.IPNet{v4, v6},
		BehaviourPenaltyWeight:      -10,
		BehaviourPenaltyThreshold:   6,
		BehaviourPenaltyDecay:       pubsub.ScoreParameterDecay(10 * time.Minute),
		DecayInterval:               pubsub.DefaultDecayInterval,
		DecayToZero:                 pubsub.DefaultDecayToZero,
		RetainScore:                 30 * time.Minute,
		SeenMsgTTL:                  2 * time.Minute,
	}
}

func scoreThresholds() *pubsub.PeerScoreThresholds {
	return &pubsub.PeerScoreThresholds{
		GossipThreshold: scoreNoGossip, PublishThreshold: scoreNoPublish, GraylistThreshold: scoreGray,
		AcceptPXThreshold: 20, OpportunisticGraftThreshold: 2,
	}
}

// topicScore weighs behaviour on one topic: a little for staying and for being
// first, 10 times the square of the rejected messages against, forgotten in an
// hour. Four rejected messages gray-list a peer.
func topicScore() *pubsub.TopicScoreParams {
	return &pubsub.TopicScoreParams{
		TopicWeight:                    1,
		TimeInMeshWeight:               0.01,
		TimeInMeshQuantum:              time.Second,
		TimeInMeshCap:                  300,
		FirstMessageDeliveriesWeight:   0.2,
		FirstMessageDeliveriesDecay:    pubsub.ScoreParameterDecay(10 * time.Minute),
		FirstMessageDeliveriesCap:      20,
		MeshMessageDeliveriesDecay:     pubsub.ScoreParameterDecay(time.Minute),
		MeshFailurePenaltyDecay:        pubsub.ScoreParameterDecay(time.Minute),
		InvalidMessageDeliveriesWeight: -10,
		InvalidMessageDeliveriesDecay:  pubsub.ScoreParameterDecay(time.Hour),
	}
}

// noteScores keeps the scores and reports the peers whose behaviour put them
// under the gray list.
func (g *gossip) noteScores(snapshots map[peer.ID]*pubsub.PeerScoreSnapshot) {
	params := scoreParams()
	scores := make(map[peer.ID]float64, len(snapshots))
	for id, s := range snapshots {
		scores[id] = s.Score
		if s.Score-params.IPColocationFactorWeight*s.IPColocationFactor <= scoreGray {
			g.blame(id, "gossip score fell under the gray list", cutPoints)
		}
	}
	g.mu.Lock()
	g.scores = scores
	g.mu.Unlock()
}

// score returns the gossip score of a peer; 0 is neutral.
func (g *gossip) score(id peer.ID) float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.scores[id]
}

// inspect drops what a peer sends beyond its rate before any signature is
// verified. It runs in the router's loop.
func (g *gossip) inspect(id peer.ID, rpc *pubsub.RPC) error {
	n := len(rpc.GetPublish()) + len(rpc.GetSubscriptions())
	if n == 0 {
		return nil
	}
	ok, flood := g.inbound.take(id, float64(n), time.Now())
	if flood {
		g.blame(id, "gossip flood", cutPoints)
	}
	if !ok {
		return errFlood
	}
	return nil
}

// topicsOfPeer bounds the topics that are remembered for one peer.
const topicsOfPeer = 64

// topicFilter admits topics of this network only, and so many per peer.
type topicFilter struct {
	prefix string

	mu   sync.Mutex
	seen map[peer.ID]map[string]bool // guarded by mu
}

func newTopicFilter(network mesh.NetworkID) *topicFilter {
	return &topicFilter{prefix: "/mesh/" + string(network) + "/", seen: make(map[peer.ID]map[string]bool)}
}

// CanSubscribe reports whether a topic is one of this network.
func (f *topicFilter) CanSubscribe(topic string) bool {
	return len(topic) <= 160 && strings.HasPrefix(topic, f.prefix) && strings.HasSuffix(topic, "/1")
}

// FilterIncomingSubscriptions keeps the topics of this network that the peer may
// still add.
func (f *topicFilter) FilterIncomingSubscriptions(id peer.ID, subs []*pb.RPC_SubOpts) ([]*pb.RPC_SubOpts, error) {
	if len(subs) > topicsOfPeer {
		return nil, errTopics
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*pb.RPC_SubOpts
	for _, s := range pubsub.FilterSubscriptions(subs, f.CanSubscribe) {
		topics := f.seen[id]
		switch {
		case !s.GetSubscribe():
			delete(topics, s.GetTopicid())
		case len(topics) >= topicsOfPeer && !topics[s.GetTopicid()]:
			continue
		default:
			if topics == nil {
				topics = make(map[string]bool)
				f.seen[id] = topics
			}
			topics[s.GetTopicid()] = true
		}
		out = append(out, s)
	}
	return out, nil
}

// forget drops what is remembered of a peer that has gone.
func (f *topicFilter) forget(id peer.ID) {
	f.mu.Lock()
	delete(f.seen, id)
	f.mu.Unlock()
}
