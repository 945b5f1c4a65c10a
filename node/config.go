package node

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/gonka-mesh/mesh"
)

// Config describes a node. The zero value of a field is its default. It is filled
// from defaults, then config.yaml in the home folder, then the environment, then
// flags; the yaml names are those of the flags.
type Config struct {
	Home      string   `yaml:"-"`
	Network   string   `yaml:"network"`   // main, dev, or a genesis file
	Listen    string   `yaml:"listen"`    // ADDR:PORT for QUIC and TCP; empty: port 9798, or a free one
	API       string   `yaml:"api"`       // ADDR:PORT of the HTTP API
	APIKey    string   `yaml:"api-key"`   // required when the API is not on loopback
	Bootstrap []string `yaml:"bootstrap"` // multiaddresses that end in /p2p/PEER
	Owner     string   `yaml:"owner"`     // address that rewards go to; empty: the node itself
	Models    []string `yaml:"model"`     // file, name or hash; empty: the built-in model and those added before
	Engines   []string `yaml:"engine"`    // URLs of inference servers whose models are served, or auto
	Light     bool     `yaml:"light"`     // no serving

	Trust       string   `yaml:"trust"`        // HEIGHT:HASH of a block that is trusted; empty: the genesis
	CometListen string   `yaml:"comet-listen"` // IP:PORT of CometBFT's own transport; empty: blocks go over the mesh
	CometPeers  []string `yaml:"comet-peers"`  // ID@IP:PORT of others on that transport
	Passphrase  string   `yaml:"-"`            // of the keys at rest, from MESH_PASSPHRASE

	EngineKey     string `yaml:"engine-key"`    // API key of those servers; better in MESH_ENGINE_KEY
	EngineKV      string `yaml:"engine-kv"`     // how they store keys and values, where they do not say
	Deterministic bool   `yaml:"deterministic"` // they run in their deterministic mode, where they do not say

	Threads      int    `yaml:"threads"`       // of the engine; 0: all processors
	Slots        int    `yaml:"slots"`         // requests decoded at once; 0: 32
	Queue        int    `yaml:"queue"`         // requests that may wait; 0: 64
	KV           string `yaml:"kv"`            // stored type of the KV cache: f16 or f32
	MemoryMB     int64  `yaml:"memory"`        // limit of the KV caches of all models in MiB; 0: a quarter of the machine
	PricePrompt  uint64 `yaml:"price-prompt"`  // ngonka per prompt token
	PriceOutput  uint64 `yaml:"price-output"`  // ngonka per output token
	PriceCap     uint64 `yaml:"price-cap"`     // ngonka that a token of this node's own answers may cost; 0: 5 times the median of what hosts of the model advertise
	Credit       uint64 `yaml:"credit"`        // ngonka that a payer without an escrow may have for nothing in an epoch
	NoMDNS       bool   `yaml:"no-mdns"`       // do not look for peers on the local network
	NoPortMap    bool   `yaml:"no-portmap"`    // do not ask the router for a port
	InterTokenMS int    `yaml:"inter-token"`   // a host silent for so many ms counts as dead; 0: 2000
	ReceiptsMB   int64  `yaml:"receipts"`      // space for receipts in MiB; 0: 256
	PackedMB     int64  `yaml:"packed-cache"`  // packed weights kept of each model in MiB; 0: as many as it has, -1: none
	DrainSeconds int    `yaml:"drain-seconds"` // at shutdown, time for running answers; 0: 10

	Pace time.Duration `yaml:"pace"` // at least, between two tokens of an answer, for people who watch

	snapshotEvery int64 // of tests: blocks between two snapshots of the ledger; 0: 500
}

// MaxPace is less than the silence after which a host counts as dead.
const MaxPace = time.Second

// DefaultAPI is where the API listens when nothing else is said.
const DefaultAPI = "127.0.0.1:9797"

// defaultPort is the port of the mesh itself.
const defaultPort = "9798"

// ReadConfig merges config.yaml of a home folder, if there is one, into c.
func ReadConfig(path string, c *Config) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open configuration: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	return nil
}

// complete fills in defaults and checks what can be checked without the network.
func (c *Config) complete() error {
	if c.Home == "" {
		return errors.New("no home folder")
	}
	if c.Network == "" {
		c.Network = "main"
	}
	if c.API == "" {
		c.API = DefaultAPI
	}
	host, _, err := net.SplitHostPort(c.API)
	if err != nil {
		return fmt.Errorf("--api %q: want ADDR:PORT", c.API)
	}
	if c.APIKey == "" && !loopback(host) {
		return fmt.Errorf("--api %s is reachable by others: give a key with --api-key or MESH_API_KEY, or use %s", c.API, DefaultAPI)
	}
	if c.Listen != "" {
		if _, err := netip.ParseAddrPort(c.Listen); err != nil {
			return fmt.Errorf("--listen %q: want ADDR:PORT, like 0.0.0.0:9798", c.Listen)
		}
	}
	if c.Owner != "" {
		if _, err := mesh.ParseAddress(c.Owner); err != nil {
			return fmt.Errorf("--owner: %w", err)
		}
	}
	if c.Light && len(c.Models) > 0 {
		return errors.New("--light serves nothing, so --model does not go with it")
	}
	if c.Light && len(c.Engines) > 0 {
		return errors.New("--light serves nothing, so --engine does not go with it")
	}
	c.Passphrase = cmp.Or(c.Passphrase, os.Getenv("MESH_PASSPHRASE"))
	if c.Pace < 0 || c.Pace > MaxPace {
		return fmt.Errorf("--pace %s: from 0 to %s", c.Pace, MaxPace)
	}
	c.EngineKey = cmp.Or(c.EngineKey, os.Getenv("MESH_ENGINE_KEY"))
	switch c.KV {
	case "":
		c.KV = "f16"
	case "f16", "f32":
	default:
		return fmt.Errorf("kv %q: want f16 or f32", c.KV)
	}
	setDefault(&c.Threads, runtime.GOMAXPROCS(0))
	setDefault(&c.Slots, 32)
	setDefault(&c.Queue, 64)
	setDefault(&c.InterTokenMS, 2000)
	setDefault(&c.ReceiptsMB, 256)
	setDefault(&c.DrainSeconds, 10)
	if c.Threads < 1 || c.Slots < 1 || c.Queue < 0 || c.InterTokenMS < 1 || c.MemoryMB < 0 || c.DrainSeconds < 0 {
		return errors.New("threads, slots, queue, inter-token, memory and drain-seconds may not be negative")
	}
	return nil
}

// memory returns the limit of keys and values of all models in bytes.
func (c *Config) memory() int64 {
	if c.MemoryMB > 0 {
		return c.MemoryMB << 20
	}
	if total := totalMemory(); total > 0 {
		return total / 4
	}
	return 1 << 30
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
