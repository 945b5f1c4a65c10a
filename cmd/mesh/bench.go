package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
)

// benchDocument is what `mesh bench --json` writes.
type benchDocument struct {
	Version string        `json:"version"`
	Machine benchMachine  `json:"machine"`
	Engine  []engineBench `json:"engine,omitempty"`
	Hop     *hopBench     `json:"hop,omitempty"`
	Load    *loadBench    `json:"load,omitempty"`
}

type benchOptions struct {
	rounds, asks, streams, tokens, threads int
	shape                                  string
	parts                                  []string
	notes                                  io.Writer
}

func benchCommand(g *globals) *cobra.Command {
	o := benchOptions{}
	cmd := &cobra.Command{
		Use: "bench", Short: "This machine's engine and network path: tokens/s, overhead of the mesh hop", Args: noArgs,
		Long: `Measures this machine in processes of its own, beside a node that may be running:

  engine  tokens/s of the engine alone, for prompts, one answer, and many at once
  hop     time to first token through the mesh against the host's own API, in turns
  load    tokens/s of many streams through the mesh against the host's own API, in turns

Times of a busy machine mean little; ratios within one run mean something.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.notes = cmd.ErrOrStderr()
			for _, p := range o.parts {
				if !slices.Contains([]string{"engine", "hop", "load"}, p) {
					return usageError{fmt.Errorf("--part %q: want engine, hop or load", p)}
				}
			}
			if o.rounds < 1 || o.asks < 1 || o.streams < 1 || o.tokens < 1 {
				return usageError{errors.New("rounds, asks, streams and tokens are 1 or more")}
			}
			doc, err := bench(cmd.Context(), g.home, o)
			if err != nil {
				return err
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), doc)
			}
			return printBench(cmd.OutOrStdout(), doc)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.parts, "part", []string{"engine", "hop", "load"}, "what to measure")
	f.IntVar(&o.rounds, "rounds", 5, "rounds of hop and load; the median counts")
	f.IntVar(&o.asks, "asks", 100, "requests a round and path of hop")
	f.IntVar(&o.streams, "streams", 32, "streams at once of load")
	f.IntVar(&o.tokens, "tokens", 32, "tokens an answer of load")
	f.IntVar(&o.threads, "threads", 0, "threads of the engine (default: all processors)")
	f.StringVar(&o.shape, "shape", "0.5b", "synthetic model of load and engine: 0.5b, mid, or none")
	return cmd
}

func bench(ctx context.Context, home string, o benchOptions) (*benchDocument, error) {
	dir, err := os.MkdirTemp("", "mesh-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a temporary home: %w", err)
	}
	defer os.RemoveAll(dir)
	doc := newBenchDocument()
	file := ""
	if o.shape != "none" && (slices.Contains(o.parts, "load") || slices.Contains(o.parts, "engine")) {
		if file, err = synthesize(o, filepath.Join(dir, o.shape+".gguf")); err != nil {
			return nil, err
		}
	}
	if slices.Contains(o.parts, "engine") {
		fmt.Fprintln(o.notes, "engine …")
		if doc.Engine, err = benchEngines(ctx, file, o); err != nil {
			return nil, fmt.Errorf("measure the engine: %w", err)
		}
	}
	if slices.Contains(o.parts, "hop") {
		if doc.Hop, err = benchHop(ctx, filepath.Join(dir, "hop"), o); err != nil {
			return nil, fmt.Errorf("measure the hop: %w", err)
		}
	}
	if file != "" && slices.Contains(o.parts, "load") {
		if doc.Load, err = benchLoad(ctx, filepath.Join(dir, "load"), file, o); err != nil {
			return nil, fmt.Errorf("measure the load: %w", err)
		}
	}
	return doc, nil
}

// synthesize writes the synthetic model of a shape, Q8_0.
func synthesize(o benchOptions, path string) (string, error) {
	shape, err := model.ShapeOf(o.shape)
	if err != nil {
		return "", usageError{err}
	}
	fmt.Fprintf(o.notes, "making a synthetic model of shape %s …\n", o.shape)
	f, err := os.Create(path)
	if err != nil {
		return "", fmt.Errorf("make synthetic model: %w", err)
	}
	if err := errors.Join(model.Synthesize(f, shape, model.Q8_0, 1), f.Close()); err != nil {
		return "", fmt.Errorf("make synthetic model: %w", err)
	}
	return path, nil
}

// pair is a host and a light node, each in a process of its own.
type pair struct {
	host, light *child
}

// startPair starts the two on a network of their own.
func startPair(ctx context.Context, dir, file string, threads int) (*pair, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	genesis, err := node.NewDevGenesis(time.Now())
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "genesis.json")
	if err := os.WriteFile(path, genesis, 0o600); err != nil {
		return nil, err
	}
	args := []string{"--network", path, "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--no-mdns", "--no-portmap"}
	hostArgs := append(slices.Clone(args), "--threads", strconv.Itoa(threads))
	if file != "" {
		hostArgs = append(hostArgs, "--model", file)
	}
	p := new(pair)
	if p.host, err = startChild(ctx, filepath.Join(dir, "host"), hostArgs...); err != nil {
		return nil, fmt.Errorf("start host: %w", err)
	}
	lightArgs := append(slices.Clone(args), "--light")
	for _, a := range p.host.Ready.Addrs {
		lightArgs = append(lightArgs, "--bootstrap", a)
	}
	if p.light, err = startChild(ctx, filepath.Join(dir, "light"), lightArgs...); err != nil {
		p.stop()
		return nil, fmt.Errorf("start light node: %w", err)
	}
	if err := p.warm(ctx); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

func (p *pair) stop() { stopAll([]*child{p.light, p.host}) }

// paths returns clients of the direct way and of the way through the mesh.
func (p *pair) paths() (direct, hop *api.Client) {
	return &api.Client{Base: p.host.Ready.API, HTTP: benchClient()}, &api.Client{Base: p.light.Ready.API, HTTP: benchClient()}
}

// warm asks both ways until both answer.
func (p *pair) warm(ctx context.Context) error {
	direct, hop := p.paths()
	limit := time.Now().Add(startLimit)
	for _, c := range []*api.Client{direct, hop} {
		for {
			_, err := timeAsk(ctx, c, benchPrompt, 4, false)
			if err == nil {
				break
			}
			if time.Now().After(limit) || ctx.Err() != nil {
				return fmt.Errorf("no answer from %s: %w", c.Base, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}
