package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/internal/atomicfile"
	"github.com/gonka-mesh/mesh/internal/keyfile"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
)

// devCredit is what a host of a network on one machine lets its client have before it
// opened an escrow, in ngonka: enough for every question of the first seconds.
const devCredit = "10000000000"

// devEscrow is what the client then sets aside.
const devEscrow = 1000 * mesh.GNK

// devLight is the home of the light node, in the folder of the network.
const devLight = "light"

// devNet is a network on this machine: a process per host, and a light node in
// this process, through which every question crosses the mesh.
type devNet struct {
	home    string
	threads int
	pace    time.Duration
	block   time.Duration          // from a block to the next
	epoch   int64                  // blocks
	set     func(flag string) bool // nil: block and epoch are what they should be anyway
	models  []string
	notes   io.Writer
	asJSON  bool
	stdout  io.Writer

	hosts    []*child    // by index; set once by startHosts
	stopping atomic.Bool // hosts that end now were meant to
}

func devCommand(g *globals) *cobra.Command {
	var n int
	var once string
	d := &devNet{}
	cmd := &cobra.Command{
		Use: "dev", Short: "A whole network on this machine: one process per host, and a light node with the API", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n < 1 || n > 64 {
				return usageError{fmt.Errorf("--hosts %d: from 1 to 64", n)}
			}
			if d.block < 100*time.Millisecond || d.block > time.Minute {
				return usageError{fmt.Errorf("--block %s: from 100ms to 1m", d.block)}
			}
			if d.epoch < 10 || d.epoch > 1<<20 {
				return usageError{fmt.Errorf("--epoch %d: from 10 blocks to %d", d.epoch, 1<<20)}
			}
			d.set = cmd.Flags().Changed
			if d.pace < 0 || d.pace > node.MaxPace {
				return usageError{fmt.Errorf("--pace %s: from 0 to %s", d.pace, node.MaxPace)}
			}
			if cmd.Flags().Changed("once") && once == "" {
				return usageError{errors.New("--once wants a prompt")}
			}
			d.notes, d.stdout, d.asJSON = cmd.ErrOrStderr(), cmd.OutOrStdout(), g.json
			return d.run(cmd.Context(), g, n, once)
		},
	}
	f := cmd.Flags()
	f.IntVar(&n, "hosts", 4, "number of hosts")
	f.IntVar(&d.threads, "threads", 1, "threads of each host's engine")
	f.StringArrayVar(&d.models, "model", nil, "NAME or FILE of a model that every host serves (repeatable; default: the built-in one)")
	f.DurationVar(&d.block, "block", time.Second, "time from a block of the ledger to the next")
	f.Int64Var(&d.epoch, "epoch", 60, "blocks of an epoch")
	f.DurationVar(&d.pace, "pace", 0, "least time between two tokens of an answer, so that a person can kill who speaks, like 100ms (at most 1s)")
	f.StringVar(&once, "once", "", "ask this, show answer and receipt, and exit")
	return cmd
}

func (d *devNet) run(ctx context.Context, g *globals, hosts int, once string) error {
	// Here the home folder holds a whole network, so that of a node is no default.
	d.home = g.home
	if d.home == "" {
		dir, err := os.MkdirTemp("", "mesh-dev-")
		if err != nil {
			return fmt.Errorf("make a temporary home: %w", err)
		}
		d.home = dir
		defer os.RemoveAll(dir)
	}
	if node.IsHome(d.home) {
		return fmt.Errorf("%s is the home of a node, and mesh dev makes a folder with a whole network of its own; name another one with --home, or none", d.home)
	}
	api, key := g.api, g.apiKey
	if api == "" {
		api = os.Getenv("MESH_API")
	}
	api = strings.TrimPrefix(api, "http://")
	if key == "" {
		key = os.Getenv("MESH_API_KEY")
	}
	if api == "" && once != "" {
		api = "127.0.0.1:0" // it is gone again at once, and nobody else needs to find it
	}
	if err := d.genesis(hosts); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer d.shutdown()
	defer cancel()
	if err := d.startHosts(ctx, hosts); err != nil {
		return err
	}
	return d.light(ctx, cancel, api, key, once)
}

// genesis makes the hosts' keys and the network's genesis, or keeps those of an earlier
// run: hosts that come later join as strangers do.
func (d *devNet) genesis(n int) error {
	if err := os.MkdirAll(d.home, 0o700); err != nil {
		return fmt.Errorf("make home: %w", err)
	}
	path := d.genesisPath()
	if _, err := os.Stat(path); err == nil {
		return d.keepGenesis()
	}
	var hosts []node.DevHost
	for i := range n {
		home := d.hostHome(i)
		account, err := keyfile.LoadOrCreate(filepath.Join(home, "node.key"), passphrase())
		if err != nil {
			return err
		}
		key, err := consensus.LoadKey(home, passphrase())
		if err != nil {
			return err
		}
		hosts = append(hosts, node.DevHost{Address: mesh.AddressOf(account.Public().(ed25519.PublicKey)), Key: key})
	}
	client, err := keyfile.LoadOrCreate(filepath.Join(d.home, devLight, "node.key"), passphrase())
	if err != nil {
		return err
	}
	b, err := node.NewDevGenesis(time.Now(), node.DevNetwork{
		Hosts: hosts, Client: mesh.AddressOf(client.Public().(ed25519.PublicKey)), EpochBlocks: d.epoch, Block: d.block})
	if err != nil {
		return err
	}
	if err := atomicfile.Write(path, b, 0o600); err != nil {
		return fmt.Errorf("write genesis: %w", err)
	}
	return nil
}

// keepGenesis checks that what was asked for is what the network of an earlier run has.
func (d *devNet) keepGenesis() error {
	old, err := node.LoadGenesis(d.genesisPath())
	if err != nil {
		return err
	}
	block, epoch := time.Duration(old.BlockMS)*time.Millisecond, int64(0)
	if old.Ledger != nil {
		epoch = int64(old.Ledger.Params["epoch_blocks"])
	}
	if d.set == nil {
		return nil
	}
	if d.set("block") && d.block != block {
		return usageError{fmt.Errorf("--block %s: the network in %s has %s from a block to the next, for good; leave it out, or name another --home", d.block, d.home, block)}
	}
	if d.set("epoch") && d.epoch != epoch {
		return usageError{fmt.Errorf("--epoch %d: the network in %s began with epochs of %d blocks; leave it out, or name another --home", d.epoch, d.home, epoch)}
	}
	return nil
}

func (d *devNet) hostHome(i int) string { return filepath.Join(d.home, "host-"+strconv.Itoa(i)) }

func (d *devNet) genesisPath() string { return filepath.Join(d.home, "genesis.json") }

// startHosts starts the first host, and the others, which join through it, at once.
func (d *devNet) startHosts(ctx context.Context, n int) error {
	d.hosts = make([]*child, n)
	if err := d.startHost(ctx, 0, nil); err != nil {
		return err
	}
	errs := make(chan error, n)
	for i := 1; i < n; i++ {
		go func() { errs <- d.startHost(ctx, i, d.hosts[0].Ready.Addrs) }()
	}
	var err error
	for i := 1; i < n; i++ {
		err = errors.Join(err, <-errs)
	}
	return err
}

func (d *devNet) startHost(ctx context.Context, i int, bootstrap []string) error {
	args := []string{"--network", d.genesisPath(), "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0",
		"--no-mdns", "--no-portmap", "--threads", strconv.Itoa(d.threads), "--pace", d.pace.String(),
		"--price-prompt", "100", "--price-output", "1000", "--credit", devCredit}
	for _, b := range bootstrap {
		args = append(args, "--bootstrap", b)
	}
	for _, m := range d.models {
		args = append(args, "--model", m)
	}
	c, err := startChild(ctx, d.hostHome(i), args...)
	if err != nil {
		return fmt.Errorf("start host %d: %w", i, err)
	}
	d.hosts[i] = c
	go d.watch(i, c)
	return nil
}

// watch says when a host ends that should not have.
func (d *devNet) watch(i int, c *child) {
	<-c.ended
	if d.stopping.Load() {
		return
	}
	if d.asJSON {
		_ = json.NewEncoder(d.stdout).Encode(map[string]any{"event": "host-ended", "index": i, "peer": c.Ready.Peer, "pid": c.PID})
		return
	}
	fmt.Fprintf(d.notes, "host %d (%s) has ended: %v\n", i, c.Ready.Peer.Short(), c.err)
}

// light runs the light node, waits until it knows every host, and then asks the
// one question, or stays.
func (d *devNet) light(ctx context.Context, cancel context.CancelFunc, address, key, once string) error {
	log := slog.New(slog.NewTextHandler(d.notes, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var bootstrap []string
	for _, h := range d.hosts {
		bootstrap = append(bootstrap, h.Ready.Addrs...)
	}
	n, err := node.New(node.Config{
		Home: filepath.Join(d.home, devLight), Network: d.genesisPath(), Listen: "127.0.0.1:0", API: address, APIKey: key,
		Bootstrap: bootstrap, Light: true, NoMDNS: true, NoPortMap: true,
	}, log)
	if err != nil {
		return err
	}
	var asked error
	err = n.Run(ctx, func(r api.Ready) {
		r.Home, r.Hosts = d.home, d.describe()
		if err := d.known(ctx, n); err != nil {
			asked = err
			cancel()
			return
		}
		if once == "" {
			d.fund(ctx, n, &api.Client{Base: r.API, Key: key, Token: n.Token()})
		}
		if ctx.Err() != nil {
			return
		}
		if d.asJSON {
			_ = json.NewEncoder(d.stdout).Encode(r)
		}
		switch {
		case once != "":
			asked = d.once(ctx, &api.Client{Base: r.API, Key: key}, once)
			cancel()
		case !d.asJSON:
			d.print(r)
		}
	})
	if asked != nil {
		return asked
	}
	return err
}

// fund sets money of the client aside for its answers, and waits until requests draw on
// it and every host has the block that says so: else the first answers would be free.
// Where that takes long, as with blocks of a minute, it goes on beside.
func (d *devNet) fund(ctx context.Context, n *node.Node, c *api.Client) {
	if g, err := node.LoadGenesis(d.genesisPath()); err != nil || g.Ledger == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		height, ok := d.openEscrow(ctx, c)
		for ok && !(n.Pays() && d.reached(ctx, height)) && pause(ctx, 20*time.Millisecond) {
		}
	}()
	select {
	case <-done:
	case <-time.After(startLimit):
		fmt.Fprintf(d.notes, "after %s the escrow of the light node is not open, or a host has not heard of it: answers are free until then\n", startLimit)
	}
}

// openEscrow opens the escrow that the light node draws on, once there is a ledger, and
// returns a height at which it is open.
func (d *devNet) openEscrow(ctx context.Context, c *api.Client) (mesh.Height, bool) {
	for {
		w, err := c.Wallet(ctx, mesh.Address{})
		if err == nil && slices.ContainsFunc(w.Escrows, func(e api.Escrow) bool { return e.Closing == 0 && e.Amount > 0 }) {
			return w.Height, true // of an earlier run
		}
		if err == nil {
			done, err := submitTx(ctx, c, signer{}, &ledgerpb.Tx{Action: &ledgerpb.Tx_OpenEscrow{OpenEscrow: &ledgerpb.OpenEscrow{Amount: uint64(devEscrow)}}})
			if err == nil {
				return done.Height, true
			}
		}
		if !pause(ctx, 200*time.Millisecond) {
			return 0, false
		}
	}
}

// reached reports whether every host that has not ended has a block.
func (d *devNet) reached(ctx context.Context, height mesh.Height) bool {
	for _, h := range d.hosts {
		select {
		case <-h.ended:
			continue
		default:
		}
		s, err := (&api.Client{Base: h.Ready.API}).Status(ctx)
		if err != nil || s.Ledger == nil || s.Ledger.Height < height {
			return false
		}
	}
	return true
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// known waits until the light node has heard of every host.
func (d *devNet) known(ctx context.Context, n *node.Node) error {
	limit := time.Now().Add(startLimit)
	for {
		found := n.HostsKnown()
		if found >= len(d.hosts) {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("only %d of %d hosts were found in %s; see %s/host-*/mesh.log", found, len(d.hosts), startLimit, d.home)
		}
		if !pause(ctx, 10*time.Millisecond) {
			return ctx.Err()
		}
	}
}

func (d *devNet) once(ctx context.Context, c *api.Client, prompt string) error {
	out := d.stdout
	if d.asJSON {
		out = nil
	}
	zero := 0.0
	a, err := ask(ctx, c, chatRequest{Messages: []chatMessage{{"user", prompt}}, Temperature: &zero}, out)
	if err != nil {
		return err
	}
	if a.Proof, err = c.Receipt(ctx, a.Receipt); err != nil {
		return err
	}
	if d.asJSON {
		return writeJSON(d.stdout, a)
	}
	for _, r := range a.Proof {
		fmt.Fprintln(d.stdout)
		if err := printReceipt(d.stdout, r); err != nil {
			return err
		}
	}
	return nil
}

func (d *devNet) describe() []api.DevHost {
	var out []api.DevHost
	for i, c := range d.hosts {
		out = append(out, api.DevHost{Index: i, PID: c.PID, Peer: c.Ready.Peer, API: c.Ready.API, Addrs: c.Ready.Addrs, Home: c.Ready.Home})
	}
	return out
}

func (d *devNet) print(r api.Ready) {
	fmt.Fprintf(d.stdout, "a network of %s on this machine, in %s\n\n", plural(len(r.Hosts), "host"), d.home)
	var rows [][]string
	for _, h := range r.Hosts {
		rows = append(rows, []string{strconv.Itoa(h.Index), h.Peer.Short(), strconv.Itoa(h.PID), h.API})
	}
	_ = table(d.stdout, []string{"HOST", "PEER", "PID", "API"}, rows)
	fmt.Fprintf(d.stdout, "\nAPI   %s/v1 (a light node: every answer crosses the mesh)\n", r.API)
	fmt.Fprintf(d.stdout, "try   mesh chat \"What is Mesh?\"%s\n", apiFlag(r.API))
	fmt.Fprintf(d.stdout, "try   mesh wallet show --home %s\n", d.home)
	fmt.Fprintf(d.stdout, "try   kill -9 a host's PID while it speaks: the answer goes on\n")
	fmt.Fprintf(d.stdout, "stop  Ctrl-C\n")
}

// shutdown stops every host and waits.
func (d *devNet) shutdown() {
	d.stopping.Store(true)
	stopAll(d.hosts)
}
