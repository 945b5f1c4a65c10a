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
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/plainly"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p"
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
	SnapshotMB  int64    `yaml:"snapshot-mb"`  // largest snapshot of the ledger that is fetched, in MiB; 0: 65536
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
	InterTokenMS int    `yaml:"inter-token"`   // a host without a token for so many ms counts as dead; 0: 2000; without any sign of life, 800
	ReceiptsMB   int64  `yaml:"receipts"`      // space for receipts in MiB; 0: 256
	PackedMB     int64  `yaml:"packed-cache"`  // packed weights kept of each model in MiB; 0: as many as it has, -1: none
	DrainSeconds int    `yaml:"drain-seconds"` // at shutdown, time for running answers; 0: 10

	Pace time.Duration `yaml:"pace"` // at least, between two tokens of an answer, for people who watch

	snapshotEvery int64         // of tests: blocks between two snapshots of the ledger; 0: 500
	syncPatience  time.Duration // of tests; 0: syncPatience
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
		return fmt.Errorf("configuration %s: %w", path, plainly.YAML(err))
	}
	return nil
}

// ConfigError is a setting that cannot be meant, whatever is there.
type ConfigError struct{ err error }

func (e *ConfigError) Error() string { return e.err.Error() }
func (e *ConfigError) Unwrap() error { return e.err }

// complete fills in defaults and checks what can be told from the settings alone; its
// errors are ConfigErrors.
func (c *Config) complete() error {
	if err := c.check(); err != nil {
		return &ConfigError{err}
	}
	setDefault(&c.Threads, runtime.GOMAXPROCS(0))
	setDefault(&c.Slots, 32)
	setDefault(&c.Queue, 64)
	setDefault(&c.InterTokenMS, 2000)
	setDefault(&c.ReceiptsMB, 256)
	setDefault(&c.DrainSeconds, 10)
	setDefault(&c.Network, "main")
	setDefault(&c.API, DefaultAPI)
	setDefault(&c.KV, "f16")
	c.Passphrase = cmp.Or(c.Passphrase, os.Getenv("MESH_PASSPHRASE"))
	c.EngineKey = cmp.Or(c.EngineKey, os.Getenv("MESH_ENGINE_KEY"))
	return nil
}

func (c *Config) check() error {
	if c.Home == "" {
		return errors.New("no home folder")
	}
	host, _, err := net.SplitHostPort(cmp.Or(c.API, DefaultAPI))
	if err != nil {
		return fmt.Errorf("--api %q: want ADDR:PORT", c.API)
	}
	if c.APIKey == "" && !api.Loopback(host) {
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
	for _, address := range c.Bootstrap {
		if err := p2p.CheckSeed(address); err != nil {
			return fmt.Errorf("--bootstrap: %w", err)
		}
	}
	if _, _, err := c.checkpoint(); err != nil {
		return err
	}
	if c.Pace < 0 || c.Pace > MaxPace {
		return fmt.Errorf("--pace %s: from 0 to %s", c.Pace, MaxPace)
	}
	switch c.KV {
	case "", "f16", "f32":
	default:
		return fmt.Errorf("--kv %q: want f16 or f32", c.KV)
	}
	for _, v := range []struct {
		name  string
		value int64
	}{
		{"threads", int64(c.Threads)}, {"slots", int64(c.Slots)}, {"queue", int64(c.Queue)}, {"inter-token", int64(c.InterTokenMS)},
		{"memory", c.MemoryMB}, {"snapshot-mb", int64(c.SnapshotMB)}, {"drain-seconds", int64(c.DrainSeconds)},
	} {
		if v.value < 0 {
			return fmt.Errorf("--%s %d: may not be negative", v.name, v.value)
		}
	}
	return nil
}

// checkpoint returns the block of Trust; zero: none is named.
func (c *Config) checkpoint() (mesh.Height, mesh.Hash, error) {
	if c.Trust == "" {
		return 0, mesh.Hash{}, nil
	}
	height, hash, ok := strings.Cut(c.Trust, ":")
	h, err := strconv.ParseUint(height, 10, 63)
	if !ok || err != nil || h == 0 {
		return 0, mesh.Hash{}, fmt.Errorf("--trust %q: want HEIGHT:HASH", c.Trust)
	}
	id, err := mesh.ParseHash(strings.ToLower(hash))
	if err != nil {
		return 0, mesh.Hash{}, fmt.Errorf("--trust: %w", err)
	}
	return mesh.Height(h), id, nil
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
