// Package node assembles the parts into a running node, in plain code: it is the
// only package that knows them all. New builds in the order of dependence and
// touches no network; Run starts, waits, and stops in reverse.
package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/gpu"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/inference/native"
	"github.com/gonka-mesh/mesh/inference/openai"
	"github.com/gonka-mesh/mesh/inference/receipts"
	"github.com/gonka-mesh/mesh/inference/router"
	"github.com/gonka-mesh/mesh/internal/plainly"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/blob"
)

// Node is one participant of a network.
type Node struct {
	cfg      Config
	log      *slog.Logger
	home     *Home
	genesis  *Genesis
	key      ed25519.PrivateKey
	token    string
	metrics  *prometheus.Registry
	models   *catalogue
	receipts *receipts.Store
	tally    *tally
	gpus     *gpuWatch
	core     *Core
	blobs    *blob.Server
	fetcher  *blob.Fetcher
	started  time.Time // set by Run
	chain    *chain    // nil on a network without a ledger
	purse    *purse
	till     *till         // nil where nothing is served, or there is no ledger
	signing  chan struct{} // of one place: a transaction of this account is made, until it is in a block
	closing  sync.Once
	apiURL   string // set by Run
}

// ConfigPath returns where a home folder keeps its configuration.
func ConfigPath(home string) string { return filepath.Join(home, "config.yaml") }

// New opens the home folder and builds the node. Run, or Close, has to follow.
func New(cfg Config, log *slog.Logger) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: log, signing: make(chan struct{}, 1)}
	if err := n.build(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Node) build() (err error) {
	if n.genesis, err = LoadGenesis(n.cfg.Network); err != nil {
		return err
	}
	if n.home, err = OpenHome(n.cfg.Home); err != nil {
		return err
	}
	if err = n.home.keepGenesis(n.genesis); err != nil {
		return err
	}
	if n.key, err = n.home.key(n.cfg.Passphrase); err != nil {
		return err
	}
	n.home.missReceipts(n.log)
	if n.token, err = n.home.NewToken(); err != nil {
		return err
	}
	if n.models, err = openCatalogue(n.home, n.cfg.memory(), n.log); err != nil {
		return err
	}
	network := n.genesis.Network()
	if n.receipts, err = receipts.Open(receipts.Config{Network: network, Path: n.home.Path(receiptsFile), MaxBytes: n.cfg.ReceiptsMB << 20}); err != nil {
		return err
	}
	n.metrics = prometheus.NewRegistry()
	n.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	n.gpus = &gpuWatch{log: n.log}
	n.metrics.MustRegister(n.gpus)
	self := mesh.AddressOf(n.key.Public().(ed25519.PublicKey))
	n.tally = &tally{store: n.receipts, self: self}
	if n.purse, err = openPurse(network, n.key, n.receipts, n.home.Path(escrowsFile)); err != nil {
		return err
	}
	routing, hosting, err := n.payments(self)
	if err != nil {
		return err
	}
	n.core, err = NewCore(CoreConfig{
		P2P: n.p2pConfig(), Till: hosting, Receipts: n.receipts, Signed: n.tally, Fallback: builtin.ID(), Name: builtin.Name, Text: builtinText, Count: builtinCount, Queue: n.cfg.Queue, Pace: n.cfg.Pace,
		Router: routing,
	})
	if err != nil {
		return err
	}
	if n.chain, err = n.buildLedger(); err != nil {
		return err
	}
	n.blobs = blob.NewServer(blob.ServerConfig{Store: n.models.blobs, Penalise: n.core.Net.Penalise, Log: n.log})
	n.fetcher = blob.NewFetcher(blob.Config{
		Store: n.models.blobs, Dialer: n.core.Net, Sources: n.sources, Penalise: n.core.Net.Penalise, Log: n.log,
	})
	return nil
}

// payments opens the till, and says how router and host pay and are paid: on a network
// without a ledger, not at all.
func (n *Node) payments(self mesh.Address) (routing router.Config, hosting Till, err error) {
	routing.InterToken, routing.TokenCap = time.Duration(n.cfg.InterTokenMS)*time.Millisecond, mesh.Amount(n.cfg.PriceCap)
	if n.genesis.Ledger == nil {
		return routing, nil, nil
	}
	routing.Purse = n.purse
	n.metrics.MustRegister(n.purse.signed)
	if n.cfg.Light {
		return routing, nil, nil
	}
	if n.till, err = openTill(n.tillConfig(self)); err != nil {
		return routing, nil, err
	}
	return routing, n.till, n.till.meter.register(n.metrics)
}

func (n *Node) tillConfig(self mesh.Address) tillConfig {
	return tillConfig{
		network: n.genesis.Network(), self: self, store: n.receipts, credit: mesh.Amount(n.cfg.Credit),
		block: time.Duration(n.genesis.BlockMS) * time.Millisecond, log: n.log, epoch: n.epoch, read: n.read, act: n.act,
	}
}

func (n *Node) p2pConfig() p2p.Config {
	role := p2p.RoleHost
	if n.cfg.Light {
		role = p2p.RoleLight
	}
	return p2p.Config{
		Network: n.genesis.Network(), Genesis: n.genesis.Hash(), Key: n.key, Role: role,
		Home: n.home.Dir, Listen: n.listenAddrs(), Bootstrap: n.cfg.Bootstrap,
		MDNS: !n.cfg.NoMDNS, PortMap: !n.cfg.NoPortMap,
		Epoch: n.epoch,
		Log:   n.log, Metrics: n.metrics,
	}
}

// listenAddrs returns what was asked for, or the usual port where it is free.
func (n *Node) listenAddrs() []string {
	if n.cfg.Listen != "" {
		return []string{n.cfg.Listen}
	}
	port := defaultPort
	if checkPort(":"+defaultPort).State != "ok" {
		n.log.Warn("the usual port is taken, a free one is used", "port", defaultPort)
		port = "0"
	}
	return []string{"0.0.0.0:" + port}
}

// builtinText returns a detokenizer of the built-in model, which every node has.
func builtinText() inference.Detokenizer {
	f, err := builtin.Open()
	if err != nil {
		return nil
	}
	t, err := f.Tokenizer()
	if err != nil {
		return nil
	}
	return t.NewDetokenizer()
}

var builtinEncoder = sync.OnceValues(func() (*native.Encoder, error) {
	f, err := builtin.Open()
	if err != nil {
		return nil, err
	}
	return native.NewEncoder(f, builtin.Name)
})

// builtinCount counts the prompt tokens of a question to the built-in model.
func builtinCount(q *inferencepb.Question) int {
	e, err := builtinEncoder()
	if err != nil {
		return 0
	}
	return countWith(e, q)
}

// Token is the secret that control calls need.
func (n *Node) Token() string { return n.token }

// settleTime is how long after its start a node gives back what only that needed.
const settleTime = 2 * time.Second

// Run starts the node and blocks until ctx is done; then it stops in order. ready
// is called once the API answers and the network is being joined.
func (n *Node) Run(ctx context.Context, ready func(api.Ready)) error {
	defer n.Close()
	n.started = time.Now()
	listener, err := net.Listen("tcp", n.cfg.API)
	if err != nil {
		return fmt.Errorf("open the API at %s: %w; another node may run here: see `mesh status`, or choose another --api", n.cfg.API, plainly.Said(err))
	}
	n.apiURL = "http://" + listener.Addr().String()
	var started atomic.Bool // until then the API says what it waits for: models may take minutes
	server := n.server(n.handler(&started))
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	if err := errors.Join(n.home.leaveAPI(n.apiURL), n.start(ctx)); err != nil {
		server.Close()
		return err
	}
	started.Store(true)
	n.log.Info("ready", "peer", n.core.Net.Address().String(), "network", string(n.genesis.Network()), "api", n.apiURL)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ready(api.Ready{Event: "ready", Peer: n.core.Net.Address(), API: n.apiURL, Addrs: n.core.Net.Addrs(), Home: n.home.Dir})
	}()
	settled := time.AfterFunc(settleTime, func() {
		debug.FreeOSMemory()
		DropStartPages()
	})
	defer settled.Stop()
	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
		err = fmt.Errorf("serve the API: %w", err)
	}
	n.stop(server)
	<-done
	return err
}

// Join starts the node without an API, for programs that embed it: they call its
// methods. ctx ends what it does in the background; Leave has to follow.
func (n *Node) Join(ctx context.Context) error {
	n.started = time.Now()
	return n.start(ctx)
}

// Leave ends a node that joined: it gives running answers until ctx ends, says goodbye,
// and closes everything.
func (n *Node) Leave(ctx context.Context) error { return errors.Join(n.core.Stop(ctx), n.Close()) }

// Ask answers a question with hosts of the mesh; see router.Router.
func (n *Node) Ask(ctx context.Context, ask inference.Ask, emit func(inference.Event) error) error {
	return n.core.Router.Ask(ctx, ask, emit)
}

// Address is the node's peer ID and account.
func (n *Node) Address() mesh.Address { return n.core.Net.Address() }

// start loads models and joins the network.
func (n *Node) start(ctx context.Context) error {
	if !n.cfg.Light {
		if err := n.loadModels(ctx); err != nil {
			return err
		}
		go gpu.Watch(ctx, 0, n.gpus.see)
	}
	if err := n.models.sweep(); err != nil {
		return err
	}
	n.core.Net.Handle("manifest", manifestLimits, n.blobs.ServeManifest)
	n.core.Net.Handle("blob", blobLimits, n.blobs.ServeRange)
	if err := n.core.Start(ctx); err != nil {
		if n.cfg.Listen != "" && ctx.Err() == nil {
			err = fmt.Errorf("join the network at --listen %s: %w; without --listen a free port is taken", n.cfg.Listen, plainly.Said(err))
		}
		return err
	}
	for _, root := range n.models.offered() {
		n.core.Net.Provide(root)
	}
	if n.chain != nil {
		n.chain.start(ctx)
	}
	return nil
}

// epoch is the ledger's, as far as it is known, else that of the clock.
func (n *Node) epoch() mesh.Epoch {
	if n.genesis.Ledger != nil {
		return n.purse.now()
	}
	return n.genesis.Epoch(time.Now())
}

// Bounds of the streams that carry files.
var (
	manifestLimits = p2p.Limits{PerPeer: 4, Total: 128, MaxMessage: 64 << 10, Rate: 5, Burst: 20}
	blobLimits     = p2p.Limits{PerPeer: 8, Total: 128, MaxMessage: 64 << 10, Rate: 20, Burst: 40}
)

// idleAPI is how long the API keeps a connection on which nothing is asked: strangers may
// hold some where it is public.
const idleAPI = 2 * time.Minute

func (n *Node) server(handler http.Handler) *http.Server {
	return &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleAPI,
		ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug)}
}

// handler is everything that the API answers.
func (n *Node) handler(started *atomic.Bool) http.Handler {
	guard := api.Guard{Key: n.cfg.APIKey, Token: n.token, Loopback: loopbackAddr(n.cfg.API)}
	mux := http.NewServeMux()
	mux.Handle("/v1/", openai.New(openai.Config{Backend: n.core.Router, Identity: n.identity, Log: n.log}))
	mux.Handle("/mesh/v1/", api.Handler(n, n, n, guard))
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.metrics, promhttp.HandlerOpts{}))
	mux.Handle("/", api.Nothing)
	return guard.Wrap(api.Starting(started, mux))
}

func (n *Node) identity() openai.Identity {
	return openai.Identity{Peer: n.core.Net.Address(), Network: n.genesis.Network(), Version: mesh.Version}
}

func loopbackAddr(addr string) bool {
	h, _, err := net.SplitHostPort(addr)
	return err == nil && api.Loopback(h)
}

// stop ends serving: no new work, time for running answers, then goodbye.
func (n *Node) stop(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n.cfg.DrainSeconds)*time.Second)
	defer cancel()
	if err := n.core.Stop(ctx); err != nil {
		n.log.Warn("say goodbye", "err", err)
	}
	if err := server.Shutdown(ctx); err != nil {
		server.Close()
	}
}

// Close releases everything that New opened. It may be called again.
func (n *Node) Close() (err error) {
	n.closing.Do(func() { err = n.close() })
	return err
}

func (n *Node) close() error {
	var errs []error
	if n.chain != nil {
		errs = append(errs, n.chain.close())
	}
	if n.core != nil {
		errs = append(errs, n.core.Close())
	}
	if n.models != nil {
		n.models.close()
	}
	if n.receipts != nil {
		if n.purse != nil {
			errs = append(errs, n.purse.flush())
		}
		err := n.receipts.Close()
		if err != nil {
			n.log.Error("close the receipts", "err", err) // who runs a node does not see what Close returns
		}
		errs = append(errs, err)
	}
	if n.home != nil {
		errs = append(errs, n.home.leaveAPI(""), n.home.Close())
	}
	return errors.Join(errs...)
}
