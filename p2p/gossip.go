package p2p

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gonka-mesh/mesh"
)

// MaxGossip is the largest message on a topic, in bytes.
const MaxGossip = 64 << 10

// ErrRate says that a message was not published, as it is one more than other members
// of the topic take from this node.
var ErrRate = errors.New("more messages than the topic allows of one author")

// Verdict is what a validator says about a message.
type Verdict int

// Accept passes a message on; Ignore drops it; Reject drops it and counts
// against every peer that passed it on.
const (
	Accept Verdict = iota
	Ignore
	Reject
)

// Validator takes in a message of another peer, once, and judges whether it is passed
// on. It is called from several goroutines and must not block.
type Validator func(from mesh.Address, data []byte) Verdict

// TopicOptions tune a topic. The zero value of a field is its default.
type TopicOptions struct {
	Rate        float64 // messages per second of one author; default 1
	Burst       int     // default 10
	MaxSize     int     // bytes; default and limit MaxGossip
	PublishOnly bool    // take no part in passing messages on; always so for light peers
}

// Topic is a joined gossip topic.
type Topic struct {
	gossip  *gossip
	name    string
	options TopicOptions
	check   checker
	rates   *peerRates
	topic   *pubsub.Topic
	relay   pubsub.RelayCancelFunc // nil when publish-only
	score   bool
}

// checker judges a message that via passed on.
type checker func(via peer.ID, from mesh.Address, data []byte) Verdict

// Join enters a topic by its short name, such as "task".
func (h *Host) Join(topic string, v Validator, o TopicOptions) (*Topic, error) {
	return h.disc.gossip.join(topic, o, func(_ peer.ID, from mesh.Address, data []byte) Verdict {
		return v(from, data)
	})
}

// gossip is the pubsub router of a host.
type gossip struct {
	host    host.Host
	network mesh.NetworkID
	light   bool
	ps      *pubsub.PubSub
	filter  *topicFilter
	inbound *peerRates // messages of all topics, by the peer that sends them
	cancel  context.CancelFunc
	blame   blame

	mu     sync.Mutex
	scores map[peer.ID]float64 // guarded by mu
}

// newGossip starts the router. tell hears of peers whose score fell under the
// gray list, and of floods.
func newGossip(h host.Host, cfg *Config, tell blame) (*gossip, error) {
	g := &gossip{
		host: h, network: cfg.Network, light: cfg.Role == RoleLight, blame: tell,
		filter:  newTopicFilter(cfg.Network),
		inbound: newPeerRates(inboundRate, inboundBurst),
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	options := []pubsub.Option{
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithMaxMessageSize(MaxGossip + 4<<10), // the envelope comes on top
		pubsub.WithSubscriptionFilter(g.filter),
		pubsub.WithSeenMessagesTTL(2 * time.Minute),
		pubsub.WithValidateThrottle(1024),
		// An author's own message goes to every subscriber that it knows, so that it
		// spreads before the mesh of a fresh topic has formed.
		pubsub.WithFloodPublish(true),
		pubsub.WithAppSpecificRpcInspector(g.inspect),
		pubsub.WithPeerScore(scoreParams(), scoreThresholds()),
		pubsub.WithPeerScoreInspect(pubsub.ExtendedPeerScoreInspectFn(g.noteScores), scorePeriod),
	}
	if !loopbackOnly(cfg) {
		// The gater counts by IP address, which all peers of one machine share.
		options = append(options, pubsub.WithPeerGater(pubsub.DefaultPeerGaterParams()))
	}
	var err error
	if g.ps, err = pubsub.NewGossipSub(ctx, h, options...); err != nil {
		cancel()
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	return g, nil
}

func (g *gossip) close() { g.cancel() }

// topicID returns the full name of a topic.
func topicID(network mesh.NetworkID, name string) string {
	return "/mesh/" + string(network) + "/" + name + "/1"
}

// join enters a topic.
func (g *gossip) join(name string, o TopicOptions, check checker) (*Topic, error) {
	if o.MaxSize <= 0 || o.MaxSize > MaxGossip {
		o.MaxSize = MaxGossip
	}
	if o.Rate <= 0 {
		o.Rate = 1
	}
	if o.Burst <= 0 {
		o.Burst = 10
	}
	o.PublishOnly = o.PublishOnly || g.light
	t := &Topic{gossip: g, name: topicID(g.network, name), options: o, check: check,
		rates: newPeerRates(o.Rate, float64(o.Burst))}
	if err := t.open(); err != nil {
		t.Close()
		return nil, fmt.Errorf("join topic %s: %w", name, err)
	}
	return t, nil
}

func (t *Topic) open() error {
	var (
		ps   = t.gossip.ps
		opts []pubsub.TopicOpt
		err  error
	)
	if t.options.PublishOnly {
		opts = append(opts, pubsub.FanoutOnly())
	}
	if t.topic, err = ps.Join(t.name, opts...); err != nil {
		return err
	}
	if err := ps.RegisterTopicValidator(t.name, t.validate); err != nil {
		return err
	}
	t.score = true
	if err := t.topic.SetScoreParams(topicScore()); err != nil {
		return err
	}
	if !t.options.PublishOnly {
		t.relay, err = t.topic.Relay()
	}
	return err
}

// validate judges a message of the topic: size, rate of its author, then the
// topic's own rule.
func (t *Topic) validate(_ context.Context, via peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	if via == t.gossip.host.ID() {
		return pubsub.ValidationAccept
	}
	author := m.GetFrom()
	from, err := addressOf(author)
	if err != nil || len(m.GetData()) > t.options.MaxSize {
		return pubsub.ValidationReject
	}
	if ok, flood := t.rates.take(author, 1, time.Now()); flood && via == author {
		// Who sends its own messages this fast is no victim of bad timing.
		return pubsub.ValidationReject
	} else if !ok {
		return pubsub.ValidationIgnore
	}
	switch t.check(via, from, m.GetData()) {
	case Accept:
		return pubsub.ValidationAccept
	case Ignore:
		return pubsub.ValidationIgnore
	default:
		return pubsub.ValidationReject
	}
}

// Publish signs a message and sends it to the topic. Beyond the rate of one author it
// fails with ErrRate, and nothing is sent: the others would count it against this node.
func (t *Topic) Publish(ctx context.Context, data []byte) error {
	if len(data) > t.options.MaxSize {
		return fmt.Errorf("publish on %s: %d bytes, limit %d", t.name, len(data), t.options.MaxSize)
	}
	if !t.rates.spend(t.gossip.host.ID(), time.Now()) {
		return fmt.Errorf("publish on %s: %w: %d at once, and %g a second", t.name, ErrRate, t.options.Burst, t.options.Rate)
	}
	if err := t.topic.Publish(ctx, data); err != nil {
		return fmt.Errorf("publish on %s: %w", t.name, err)
	}
	return nil
}

// Peers returns how many connected peers take part in the topic.
func (t *Topic) Peers() int { return len(t.topic.ListPeers()) }

// Close leaves the topic.
func (t *Topic) Close() error {
	if t.topic == nil {
		return nil
	}
	if t.relay != nil {
		t.relay()
	}
	if t.score {
		if err := t.gossip.ps.UnregisterTopicValidator(t.name); err != nil {
			return fmt.Errorf("leave topic %s: %w", t.name, err)
		}
	}
	if err := t.topic.Close(); err != nil {
		return fmt.Errorf("leave topic %s: %w", t.name, err)
	}
	return nil
}
