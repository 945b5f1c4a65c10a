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
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh/inference/kernel"
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

// defaultShape is measured where nothing else is said: as large as what people serve on
// processors.
const defaultShape = "0.5b"

// engineParts are what "engine" stands for.
var engineParts = []string{"roof", "decode", "prefill", "batch", "score", "prefix", "start", "memory", "crowd"}

type benchOptions struct {
	rounds, asks, streams, tokens int
	threads                       []int
	kernels                       []string
	shape, format, model          string
	given                         bool // model is not made here
	parts                         []string
	notes                         io.Writer
}

// has reports whether one of the parts is wanted.
func (o *benchOptions) has(parts ...string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return slices.Contains(o.parts, p) })
}

// most is the largest number of threads that was asked for; 0: all processors.
func (o *benchOptions) most() int { return slices.Max(append([]int{0}, o.threads...)) }

func benchCommand(g *globals) *cobra.Command {
	o := benchOptions{}
	cmd := &cobra.Command{
		Use: "bench", Short: "This machine's engine and network path: tokens/s, overhead of the mesh hop", Args: noArgs,
		Long: `Measures this machine in processes of its own, beside a node that may be running:

  engine   all of the following, for the model of --model, or of random weights in a --shape
    roof     what the memory gives; decode is set against it
    decode   tokens/s of one answer
    prefill  tokens/s of a prompt
    batch    tokens/s of up to 16 answers at once; a newcomer's first token beside 15 others
    score    tokens/s with all logits; checking an answer against generating it
    prefix   first token of a prompt whose beginning is kept
    start    from the start of a process to the first token
    memory   of the process beside its file, keys and values
    crowd    two processes that each use all processors
  hop      time to first token through the mesh against the host's own API, in turns
  load     tokens/s of many streams through the mesh against the host's own API, in turns

Times of a busy machine mean little; ratios within one run mean something.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.notes = cmd.ErrOrStderr()
			if err := o.check(); err != nil {
				return usageError{err}
			}
			if o.shape == defaultShape && o.model == "" && o.has("engine") {
				fmt.Fprintln(o.notes, "this takes many minutes; `mesh bench --shape none --rounds 1` takes about one")
			}
			doc, err := bench(cmd.Context(), o)
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
	f.IntVar(&o.rounds, "rounds", 5, "rounds; the median counts")
	f.IntVar(&o.asks, "asks", 100, "requests a round and path of hop")
	f.IntVar(&o.streams, "streams", 32, "streams at once of load")
	f.IntVar(&o.tokens, "tokens", 16, "tokens an answer of load")
	f.IntSliceVar(&o.threads, "threads", nil, "threads of the engine, each measured; hop and load take the most (default 1 and all processors)")
	f.StringSliceVar(&o.kernels, "kernels", nil, "instruction sets of the engine, each measured: avx512, avx2, portable (default: the best)")
	f.StringVar(&o.shape, "shape", defaultShape, "random weights of this shape for engine and load; none: the built-in model for engine, no load")
	f.StringVar(&o.format, "format", "Q8_0", "format of random weights")
	f.StringVar(&o.model, "model", "", "model file, in place of a shape")
	cmd.AddCommand(benchChildCommand())
	return cmd
}

// check completes the options, or says what is wrong with them.
func (o *benchOptions) check() error {
	known := append([]string{"engine", "hop", "load"}, engineParts...)
	for _, p := range o.parts {
		if !slices.Contains(known, p) {
			return fmt.Errorf("--part %q: want %s", p, strings.Join(known, ", "))
		}
	}
	if o.has("engine") {
		o.parts = append(o.parts, engineParts...)
	}
	if o.rounds < 1 || o.asks < 1 || o.streams < 1 || o.tokens < 1 {
		return errors.New("rounds, asks, streams and tokens are 1 or more")
	}
	if slices.ContainsFunc(o.threads, func(n int) bool { return n < 0 }) {
		return errors.New("--threads: a negative number")
	}
	for _, set := range o.kernels {
		if !slices.Contains(kernel.Backends(), set) {
			return fmt.Errorf("--kernels %q: this machine has %s", set, strings.Join(kernel.Backends(), ", "))
		}
	}
	o.given = o.model != ""
	o.format = strings.ToUpper(o.format)
	return nil
}

func bench(ctx context.Context, o benchOptions) (*benchDocument, error) {
	dir, err := os.MkdirTemp("", "mesh-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a temporary folder: %w", err)
	}
	defer os.RemoveAll(dir)
	doc := newBenchDocument()
	engine := o.has(engineParts...)
	if o.model == "" && o.shape != "none" && (engine && !o.only("roof") || o.has("load")) {
		if o.model, err = synthesize(o, filepath.Join(dir, o.shape+".gguf")); err != nil {
			return nil, err
		}
	}
	if engine {
		if doc.Engine, err = benchEngines(ctx, dir, o); err != nil {
			return nil, fmt.Errorf("measure the engine: %w", err)
		}
	}
	if o.has("hop") {
		if doc.Hop, err = benchHop(ctx, filepath.Join(dir, "hop"), o); err != nil {
			return nil, fmt.Errorf("measure the hop: %w", err)
		}
	}
	if o.model != "" && o.has("load") {
		if doc.Load, err = benchLoad(ctx, filepath.Join(dir, "load"), o.model, o); err != nil {
			return nil, fmt.Errorf("measure the load: %w", err)
		}
	}
	return doc, nil
}

// only reports whether nothing but this part of the engine is wanted.
func (o *benchOptions) only(part string) bool {
	return !slices.ContainsFunc(engineParts, func(p string) bool { return p != part && o.has(p) })
}

// synthesize writes the synthetic model of a shape. It refuses a format that does not
// fit the shape: those matrices would be Q8_0, and the figures not what they say.
func synthesize(o benchOptions, path string) (string, error) {
	shape, err := model.ShapeOf(o.shape)
	if err != nil {
		return "", usageError{err}
	}
	format, err := model.FormatOf(o.format)
	if err != nil {
		return "", usageError{err}
	}
	fmt.Fprintf(o.notes, "making random weights of shape %s, %v …\n", o.shape, format)
	out, err := os.Create(path)
	if err != nil {
		return "", fmt.Errorf("make random weights: %w", err)
	}
	if err := errors.Join(model.Synthesize(out, shape, format, 1), out.Close()); err != nil {
		return "", fmt.Errorf("make random weights: %w", err)
	}
	file, err := model.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	for _, t := range file.Tensors {
		if len(t.Shape) > 1 && t.Format == model.Q8_0 && format != model.Q8_0 {
			return "", usageError{fmt.Errorf("shape %s does not fit %v: rows of %d are not whole blocks; try --shape 0.6b", o.shape, format, t.In())}
		}
	}
	return path, nil
}

// pair is a host and a light node, each in a process of its own.
type pair struct {
	host, light *child
}

// nodeArgs are the arguments of a node on a network of its own, whose genesis it writes.
func nodeArgs(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	genesis, err := node.NewDevGenesis(time.Now(), node.DevNetwork{})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "genesis.json")
	if err := os.WriteFile(path, genesis, 0o600); err != nil {
		return nil, err
	}
	return []string{"--network", path, "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--no-mdns", "--no-portmap"}, nil
}

// startPair starts the two on a network of their own.
func startPair(ctx context.Context, dir, file string, threads int) (*pair, error) {
	args, err := nodeArgs(dir)
	if err != nil {
		return nil, err
	}
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
	if err := askUntil(ctx, direct, 4); err != nil {
		return err
	}
	return askUntil(ctx, hop, 4)
}

// askUntil asks for a few tokens until there is an answer.
func askUntil(ctx context.Context, c *api.Client, tokens int) error {
	limit := time.Now().Add(startLimit)
	for {
		_, err := timeAsk(ctx, c, benchPrompt, tokens, false)
		if err == nil {
			return nil
		}
		if time.Now().After(limit) || ctx.Err() != nil {
			return fmt.Errorf("no answer from %s: %w", c.Base, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
