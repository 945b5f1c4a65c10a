// Package client lets a Go program take part in the mesh as a light peer: it asks
// hosts for answers, pays them from an escrow, and checks what they signed against the
// ledger, all without trusting any one of them. There is no server in between.
//
//	c, err := client.Open(ctx, client.Config{Home: dir, Bootstrap: []string{"/ip4/…/p2p/…"}})
//	answer, err := c.Chat(ctx, client.Chat{Messages: []client.Message{{Role: "user", Content: "What is Mesh?"}}}, nil)
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
)

// Config describes a client. The zero value of a field is its default.
type Config struct {
	// Home is the folder of the client's key, receipts and escrows. One client at a
	// time can use it, and a light `mesh up` can use the same. It is new or empty at first: a
	// folder with other things in it is refused.
	Home string
	// Network is main, dev, the path of a genesis file, or a genesis document itself;
	// default main.
	Network string
	// Bootstrap are multiaddresses of peers to join through; they end in /p2p/PEER.
	Bootstrap []string
	// Listen is ADDR:PORT for QUIC and TCP; default all addresses and a free port.
	Listen string
	// Passphrase opens the key at rest; default MESH_PASSPHRASE of the environment.
	Passphrase string
	// Trust is HEIGHT:HASH of a block of the ledger that is believed; default the genesis.
	Trust string
	// Quiet leaves the local network and its router alone: no mDNS, no port mapping.
	Quiet bool
	Log   *slog.Logger // default: nothing is logged
}

// Client is a light peer. Its methods are safe for concurrent use.
type Client struct {
	node   *node.Node
	cancel context.CancelFunc
	close  func() error
}

// closeTime is how long Close gives running answers.
const closeTime = 3 * time.Second

// drawTime is how long OpenEscrow waits for the client to see the escrow, which it does as
// it reads the ledger after the block.
const drawTime = 10 * time.Second

// Open joins the network and returns once this peer has met another that serves a
// model, or ctx ends.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Home == "" {
		return nil, errors.New("client: no home folder")
	}
	if cfg.Listen == "" {
		cfg.Listen = "0.0.0.0:0"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	n, err := node.New(node.Config{
		Home: cfg.Home, Network: cfg.Network, Listen: cfg.Listen, Bootstrap: cfg.Bootstrap, Passphrase: cfg.Passphrase, Trust: cfg.Trust,
		NoMDNS: cfg.Quiet, NoPortMap: cfg.Quiet, Light: true,
	}, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	// What runs in the background outlives the call.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &Client{node: n, cancel: cancel}
	c.close = sync.OnceValue(c.leave)
	if err := n.Join(running); err != nil {
		return nil, errors.Join(fmt.Errorf("client: %w", err), c.Close())
	}
	for n.HostsKnown() == 0 {
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("client: no host of the network was found: %w", ctx.Err()), c.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return c, nil
}

// Close leaves the network. It may be called again.
func (c *Client) Close() error { return c.close() }

func (c *Client) leave() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	defer c.cancel()
	return c.node.Leave(ctx)
}

// Address is the client's peer ID and account.
func (c *Client) Address() mesh.Address { return c.node.Address() }

// Model is a model that hosts of the network serve.
type Model struct {
	ID      mesh.ModelID
	Name    string
	Class   string // how far hosts agree: exact, or what the engine keeps
	Context int    // tokens
	Hosts   int
}

// Models lists the models that can be asked for.
func (c *Client) Models(ctx context.Context) ([]Model, error) {
	all, err := c.node.Models(ctx)
	if err != nil {
		return nil, fmt.Errorf("client: list models: %w", err)
	}
	var out []Model
	for _, m := range all {
		if m.Hosts > 0 {
			out = append(out, Model{m.Model, m.Name, m.Class, m.Context, m.Hosts})
		}
	}
	return out, nil
}

// Balance is what the client's account holds, as the ledger's validators signed it.
func (c *Client) Balance(ctx context.Context) (mesh.Amount, error) {
	w, err := c.node.Wallet(ctx, mesh.Address{})
	if err != nil {
		return 0, fmt.Errorf("client: %w", err)
	}
	return w.Balance, nil
}

// OpenEscrow sets money aside, which pays the answers from then on, and returns the
// escrow's ID once that is in a block. It pays the least fee; while many transactions wait
// more is asked for, which is an error, and OpenEscrowFee pays it.
func (c *Client) OpenEscrow(ctx context.Context, amount mesh.Amount) (mesh.Hash, error) {
	return c.OpenEscrowFee(ctx, amount, 0)
}

// OpenEscrowFee is OpenEscrow with a fee, where that is more than the least. More than a
// hundred times the least is refused.
func (c *Client) OpenEscrowFee(ctx context.Context, amount, fee mesh.Amount) (mesh.Hash, error) {
	action, err := protojson.Marshal(&ledgerpb.Tx{Action: &ledgerpb.Tx_OpenEscrow{OpenEscrow: &ledgerpb.OpenEscrow{Amount: uint64(amount)}}})
	if err != nil {
		return mesh.Hash{}, fmt.Errorf("client: open an escrow: %w", err)
	}
	done, err := c.node.Submit(ctx, api.Submit{Action: action, Fee: fee})
	if err != nil {
		return mesh.Hash{}, fmt.Errorf("client: open an escrow: %w", err)
	}
	if done.Escrow.IsZero() {
		return mesh.Hash{}, errors.New("client: open an escrow: the ledger did not")
	}
	// The next answer is to be paid; where it takes long, one of those after.
	for limit := time.Now().Add(drawTime); !c.node.Pays() && ctx.Err() == nil && time.Now().Before(limit); {
		time.Sleep(20 * time.Millisecond)
	}
	return done.Escrow, nil
}
