package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
	"github.com/gonka-mesh/mesh/p2p"
)

// parentEnv makes a node end when its standard input closes, so that the hosts of
// `mesh dev` never outlive it, even when it is killed.
const parentEnv = "MESH_STOP_ON_STDIN_EOF"

func upCommand(g *globals) *cobra.Command {
	var cfg node.Config
	level := ""
	cmd := &cobra.Command{
		Use: "up", Short: "Join and serve; runs in the foreground until SIGINT or SIGTERM", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.complete(); err != nil {
				return err
			}
			merged, err := mergeConfig(cmd.Flags(), g, cfg)
			if err != nil {
				return usageError{err}
			}
			log, err := newLog(cmd.ErrOrStderr(), level)
			if err != nil {
				return usageError{err}
			}
			ctx := cmd.Context()
			if os.Getenv(parentEnv) != "" {
				ctx = untilEOF(ctx, cmd.InOrStdin())
			}
			return up(ctx, merged, log, g.json, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Network, "network", "main", "main, dev, or a genesis FILE")
	f.StringVar(&cfg.Listen, "listen", "", "ADDR:PORT for QUIC and TCP (default 0.0.0.0:9798, or a free port)")
	f.StringArrayVar(&cfg.Bootstrap, "bootstrap", nil, "MULTIADDR of a node to join through (repeatable)")
	f.StringVar(&cfg.Owner, "owner", "", "ADDRESS that rewards go to")
	f.StringArrayVar(&cfg.Models, "model", nil, "NAME, FILE or HASH of a model to serve (repeatable; default: the built-in one)")
	f.StringArrayVar(&cfg.Engines, "engine", nil, "URL of a vLLM, SGLang, llama-server or Ollama whose models to serve, or auto (repeatable)")
	f.StringVar(&cfg.EngineKey, "engine-key", "", "API key of that server (or MESH_ENGINE_KEY)")
	f.StringVar(&cfg.EngineKV, "engine-kv", "", "how that server stores keys and values, where it does not say: fp16, fp8, …")
	f.BoolVar(&cfg.Deterministic, "deterministic", false, "that server runs in its deterministic mode, where it does not say")
	f.BoolVar(&cfg.Light, "light", false, "no serving: a client of the mesh")
	f.IntVar(&cfg.Threads, "threads", 0, "threads of the engine (default: all processors)")
	f.IntVar(&cfg.Slots, "slots", 0, "requests decoded at once (default 32)")
	f.IntVar(&cfg.Queue, "queue", 0, "requests that may wait for a slot (default 64)")
	f.StringVar(&cfg.KV, "kv", "", "stored type of the KV cache: f16 or f32 (default f16)")
	f.Int64Var(&cfg.MemoryMB, "memory", 0, "limit of the KV caches of all models in MiB (default: a quarter of the machine)")
	f.Uint64Var(&cfg.PricePrompt, "price-prompt", 0, "price of a prompt token in ngonka")
	f.Uint64Var(&cfg.PriceOutput, "price-output", 0, "price of an output token in ngonka")
	f.Uint64Var(&cfg.PriceCap, "price-cap", 0, "ngonka a token of this node's own answers may cost (default 5 times the median of the adverts)")
	f.Uint64Var(&cfg.Credit, "credit", 0, "ngonka a payer without an escrow may have for nothing in an epoch")
	f.StringVar(&cfg.Trust, "trust", "", "HEIGHT:HASH of a ledger block to trust, where the genesis is too old to")
	f.BoolVar(&cfg.NoMDNS, "no-mdns", false, "do not look for peers on the local network")
	f.BoolVar(&cfg.NoPortMap, "no-portmap", false, "do not ask the router for a port")
	f.IntVar(&cfg.InterTokenMS, "inter-token", 0, "a host without a token for so many ms counts as dead (default 2000; without any sign of life, 800)")
	f.Int64Var(&cfg.ReceiptsMB, "receipts", 0, "space for receipts in MiB (default 256)")
	f.Int64Var(&cfg.PackedMB, "packed-cache", 0, "MiB of packed weights to keep of each model for the next start (default as many as it has, -1 none)")
	f.Int64Var(&cfg.SnapshotMB, "snapshot-mb", 0, "MiB of the largest snapshot of the ledger to fetch (default 65536)")
	f.IntVar(&cfg.DrainSeconds, "drain-seconds", 0, "time for running answers at shutdown (default 10)")
	f.DurationVar(&cfg.Pace, "pace", 0, "least time between two tokens of an answer, for people who watch, like 100ms (at most 1s)")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// mergeConfig lays flags over the environment over config.yaml over defaults.
func mergeConfig(flags *pflag.FlagSet, g *globals, typed node.Config) (node.Config, error) {
	var cfg node.Config
	if err := node.ReadConfig(node.ConfigPath(g.home), &cfg); err != nil {
		return cfg, err
	}
	cfg.Home = g.home
	if g.api != "" {
		cfg.API = strings.TrimPrefix(g.api, "http://")
	}
	if g.apiKey != "" {
		cfg.APIKey = g.apiKey
	}
	for name, set := range map[string]func(){
		"network":       func() { cfg.Network = typed.Network },
		"listen":        func() { cfg.Listen = typed.Listen },
		"bootstrap":     func() { cfg.Bootstrap = typed.Bootstrap },
		"owner":         func() { cfg.Owner = typed.Owner },
		"model":         func() { cfg.Models = typed.Models },
		"engine":        func() { cfg.Engines = typed.Engines },
		"engine-key":    func() { cfg.EngineKey = typed.EngineKey },
		"engine-kv":     func() { cfg.EngineKV = typed.EngineKV },
		"deterministic": func() { cfg.Deterministic = typed.Deterministic },
		"light":         func() { cfg.Light = typed.Light },
		"threads":       func() { cfg.Threads = typed.Threads },
		"slots":         func() { cfg.Slots = typed.Slots },
		"queue":         func() { cfg.Queue = typed.Queue },
		"kv":            func() { cfg.KV = typed.KV },
		"memory":        func() { cfg.MemoryMB = typed.MemoryMB },
		"price-prompt":  func() { cfg.PricePrompt = typed.PricePrompt },
		"price-output":  func() { cfg.PriceOutput = typed.PriceOutput },
		"price-cap":     func() { cfg.PriceCap = typed.PriceCap },
		"credit":        func() { cfg.Credit = typed.Credit },
		"trust":         func() { cfg.Trust = typed.Trust },
		"no-mdns":       func() { cfg.NoMDNS = typed.NoMDNS },
		"no-portmap":    func() { cfg.NoPortMap = typed.NoPortMap },
		"inter-token":   func() { cfg.InterTokenMS = typed.InterTokenMS },
		"receipts":      func() { cfg.ReceiptsMB = typed.ReceiptsMB },
		"packed-cache":  func() { cfg.PackedMB = typed.PackedMB },
		"snapshot-mb":   func() { cfg.SnapshotMB = typed.SnapshotMB },
		"drain-seconds": func() { cfg.DrainSeconds = typed.DrainSeconds },
		"pace":          func() { cfg.Pace = typed.Pace },
	} {
		if flags.Changed(name) {
			set()
		}
	}
	return cfg, nil
}

func up(ctx context.Context, cfg node.Config, log *slog.Logger, asJSON bool, stdout io.Writer) error {
	// What libraries say of themselves, net/http of a peer that answers unasked for one.
	stdlog.SetOutput(slog.NewLogLogger(log.Handler(), slog.LevelDebug).Writer())
	stdlog.SetFlags(0)
	p2p.LogLibrary(log.Handler())
	n, err := node.New(cfg, log)
	var wrong *node.ConfigError
	if errors.As(err, &wrong) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	return n.Run(ctx, func(r api.Ready) {
		if asJSON {
			_ = json.NewEncoder(stdout).Encode(r)
			return
		}
		printReady(stdout, r, n.Status())
	})
}

func printReady(w io.Writer, r api.Ready, s api.Status) {
	fmt.Fprintf(w, "mesh is up: %s %s on %s\n", s.Role, r.Peer, s.Network)
	for _, e := range s.Engines {
		fmt.Fprintf(w, "serving     %s (%s class)\n", e.Name, e.Class)
	}
	if len(s.Engines) > 0 {
		fmt.Fprintf(w, "memory      %d MiB for the keys and values of all models\n", s.KVLimitBytes>>20)
	}
	if a := p2p.Furthest(s.Addrs); a != "" {
		fmt.Fprintf(w, "address     %s\n", a)
	}
	fmt.Fprintf(w, "API         %s/v1 (OpenAI dialect)\n", r.API)
	fmt.Fprintf(w, "try         mesh chat \"What is Mesh?\"%s\n", apiFlag(r.API))
	fmt.Fprintf(w, "stop        Ctrl-C\n")
}

// apiFlag returns the flag that commands need to find a node at an unusual address.
func apiFlag(base string) string {
	if base == "http://"+node.DefaultAPI && os.Getenv("MESH_HOME") == "" { // where that is set, commands look there
		return ""
	}
	return " --api " + base
}

func newLog(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

// untilEOF returns a context that ends when r does.
func untilEOF(ctx context.Context, r io.Reader) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, r)
		cancel()
	}()
	return ctx
}
