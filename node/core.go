package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/host"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/router"
	"github.com/gonka-mesh/mesh/p2p"
)

// Receipts keeps what was signed; see host.Receipts.
type Receipts = host.Receipts

// Till takes payment; see host.Till.
type Till = host.Till

// CoreConfig is what a Core is made of.
type CoreConfig struct {
	P2P      p2p.Config
	Receipts Receipts                     // of answers that this node got; nil keeps none
	Signed   Receipts                     // of answers that it gave; nil keeps none
	Fallback mesh.ModelID                 // what an empty model name means where nothing is served
	Name     string                       // its name
	Text     func() inference.Detokenizer // of the fallback; nil believes its hosts
	// Count returns the prompt tokens of a question to the fallback, 0 where it cannot
	// tell; nil believes its hosts, as far as the bytes of the question allow.
	Count  func(*inferencepb.Question) int
	Queue  int // see Config, as is
	Pace   time.Duration
	Router router.Config
	Till   Till // nil takes nothing
}

// Core is the part of a node that meets others: network, directory, host and
// router. It has no home folder and no API. A light node's host serves no model;
// it takes the offers for the node's own tasks.
type Core struct {
	Net    *p2p.Host
	Host   *host.Host
	Router *router.Router

	network mesh.NetworkID
	light   bool
	dir     *directory

	fallbackText  func() inference.Detokenizer
	fallbackCount func(*inferencepb.Question) int
	tasks         *p2p.Topic // set by Start

	mu     sync.Mutex
	models []servedModel // guarded by mu
}

// servedModel is a model that this node serves, and its file if peers may fetch it.
type servedModel struct {
	engine inference.Engine
	info   inference.ModelInfo
	root   mesh.Hash
}

// NewCore builds the parts. It touches no network.
func NewCore(cfg CoreConfig) (*Core, error) {
	c := &Core{network: cfg.P2P.Network, light: cfg.P2P.Role == p2p.RoleLight, fallbackText: cfg.Text, fallbackCount: cfg.Count}
	var err error
	if c.Net, err = p2p.New(cfg.P2P); err != nil {
		return nil, err
	}
	if err := c.build(cfg); err != nil {
		return nil, errors.Join(err, c.Net.Close())
	}
	return c, nil
}

func (c *Core) build(cfg CoreConfig) (err error) {
	c.dir = &directory{net: c.Net, own: c.own, fallback: cfg.Fallback, fallbackName: cfg.Name}
	c.Host, err = host.New(host.Config{
		Network: cfg.P2P.Network, Key: cfg.P2P.Key, RemotePeer: p2p.RemotePeer, Receipts: cfg.Signed, Dialer: c.Net,
		TakeOffer: func(from mesh.Address, o *inferencepb.Offer) bool { return c.Router.TakeOffer(from, o) },
		Penalise:  c.Net.Penalise, Queue: cfg.Queue, Pace: cfg.Pace, Till: cfg.Till, Log: cfg.P2P.Log, Metrics: cfg.P2P.Metrics,
	})
	if err != nil {
		return err
	}
	r := cfg.Router
	r.Network, r.Key, r.Dialer, r.Local, r.Directory = cfg.P2P.Network, cfg.P2P.Key, c.Net, c.Host, c.dir
	r.Publish, r.Addrs, r.Receipts, r.Epoch, r.Penalise, r.Text = c.announce, c.Net.Addrs, cfg.Receipts, cfg.P2P.Epoch, c.Net.Penalise, c.textOf
	r.Connected, r.Count = c.Net.Connected, c.countOf
	r.Log, r.Metrics = cfg.P2P.Log, cfg.P2P.Metrics
	c.Router, err = router.New(r)
	return err
}

// Bounds of the streams. An infer stream carries one call at a time and is kept for
// the next, so a busy router holds as many as it has answers in the making.
var (
	inferLimits = p2p.Limits{PerPeer: 256, Total: 1024, MaxMessage: 64 << 10, Rate: 200, Burst: 400} // the host counts the bytes of calls itself; more streams than a busy router has answers, so that a cancel finds one
	offerLimits = p2p.Limits{PerPeer: 8, Total: 512, MaxMessage: 8 << 10, Rate: 50, Burst: 200}
)

// Start joins the network.
func (c *Core) Start(ctx context.Context) (err error) {
	c.Net.Handle("offer", offerLimits, c.Host.ServeOffer)
	if !c.light {
		infer, err := c.Net.Listen("infer", inferLimits)
		if err != nil {
			return err
		}
		go func() { _ = c.Host.Serve(infer) }()
	}
	if err := c.Net.Start(ctx); err != nil {
		return err
	}
	if !c.dir.fallback.IsZero() {
		c.dir.follow(c.dir.fallback)
	}
	if c.light {
		c.Net.Follow(mesh.Hash{})
	}
	c.tasks, err = c.Net.Join("task", c.judgeTask, p2p.TopicOptions{
		Rate: 2, Burst: 10, MaxSize: inference.MaxTaskBytes + 256, PublishOnly: c.light,
	})
	if err != nil {
		return err
	}
	return c.advertise()
}

// Serve offers a model from now on. The caller closes the engine, after Remove or
// Close. root names its file, for peers that want it; zero where there is none.
func (c *Core) Serve(e inference.Engine, prices host.Prices, root mesh.Hash) error {
	if err := c.Host.Add(e, prices); err != nil {
		return err
	}
	c.mu.Lock()
	c.models = append(c.models, servedModel{e, e.Info(), root})
	c.mu.Unlock()
	return c.advertise()
}

// Remove serves a model no more.
func (c *Core) Remove(id mesh.ModelID) error {
	c.Host.Remove(id)
	c.mu.Lock()
	c.models = slices.DeleteFunc(c.models, func(m servedModel) bool { return m.info.ID == id })
	c.mu.Unlock()
	c.Net.Unprovide(id)
	return c.advertise()
}

// own lists the models that are served here.
func (c *Core) own() []inference.ModelInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []inference.ModelInfo
	for _, m := range c.models {
		out = append(out, m.info)
	}
	return out
}

func (c *Core) model(id mesh.ModelID) (servedModel, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.models {
		if m.info.ID == id {
			return m, true
		}
	}
	return servedModel{}, false
}

// textOf returns a detokenizer of a model that this node has: of one that it serves,
// and of the built-in one. The text of others is believed.
func (c *Core) textOf(id mesh.ModelID) inference.Detokenizer {
	if m, ok := c.model(id); ok {
		return m.engine.Text()
	}
	if id == c.dir.fallback && c.fallbackText != nil {
		return c.fallbackText()
	}
	return nil
}

// countOf counts the prompt tokens of a question to a model that is served here, or to
// the built-in one; 0 for others.
func (c *Core) countOf(id mesh.ModelID, q *inferencepb.Question) int {
	if m, ok := c.model(id); ok {
		return countWith(m.engine, q)
	}
	if id == c.dir.fallback && c.fallbackCount != nil {
		return c.fallbackCount(q)
	}
	return 0
}

func countWith(e interface {
	Encode(*inferencepb.Question) ([]int32, error)
}, q *inferencepb.Question) int {
	prompt, err := e.Encode(q)
	if err != nil {
		return 0
	}
	return len(prompt)
}

// advertise tells the network what this node serves, once it has joined.
func (c *Core) advertise() error {
	if c.tasks == nil {
		return nil
	}
	var services []p2p.Service
	for _, capability := range c.Host.Capabilities() {
		id, err := mesh.HashFromBytes(capability.GetModel())
		if err != nil {
			return fmt.Errorf("advertise: %w", err)
		}
		if m, ok := c.model(id); ok && !m.root.IsZero() {
			capability = proto.Clone(capability).(*inferencepb.Capability)
			capability.Root, capability.Size = m.root[:], uint64(m.info.Bytes)
		}
		payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(capability)
		if err != nil {
			return fmt.Errorf("advertise: %w", err)
		}
		services = append(services, p2p.Service{Key: id, Payload: payload})
		c.Net.Provide(id)
	}
	return c.Net.SetAdvert(services)
}

// announce gossips a task.
func (c *Core) announce(ctx context.Context, task *inferencepb.Signed) error {
	if len(c.Net.Peers()) == 0 {
		return errors.New("nobody is connected")
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(task)
	if err != nil {
		return fmt.Errorf("encode task: %w", err)
	}
	return c.tasks.Publish(ctx, b)
}

// judgeTask checks a task before it is passed on, and answers it if it can.
func (c *Core) judgeTask(from mesh.Address, data []byte) p2p.Verdict {
	signed := new(inferencepb.Signed)
	if err := proto.Unmarshal(data, signed); err != nil {
		return p2p.Reject
	}
	task, err := inference.ParseTask(c.network, signed)
	if err != nil || task.Payer != from {
		return p2p.Reject
	}
	if task.Pb.GetDeadlineMs() < time.Now().UnixMilli() {
		return p2p.Ignore
	}
	if !c.light {
		c.Host.OnTask(task)
	}
	return p2p.Accept
}

// Stop takes no new work, gives running answers until ctx ends, and says goodbye.
func (c *Core) Stop(ctx context.Context) error {
	err := c.Net.SetAdvert(nil)
	c.Host.Shutdown(ctx)
	return err
}

// Close ends everything at once.
func (c *Core) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c.Host.Shutdown(ctx)
	return errors.Join(c.Router.Close(), c.Net.Close())
}
