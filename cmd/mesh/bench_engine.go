package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/inference/native"
)

type benchMachine struct {
	OS         string `json:"os"`
	Arch       string `json:"arch"`
	Processors int    `json:"processors"`
	Kernels    string `json:"kernels"`
}

// engineBench is the speed of the engine alone with one model.
type engineBench struct {
	Model   string  `json:"model"`
	Bytes   int64   `json:"bytes"`
	LoadMS  float64 `json:"load_ms"`
	Prefill float64 `json:"prefill_tok_s"`
	Decode  float64 `json:"decode_tok_s"`
	Many    float64 `json:"many_tok_s"` // all streams together
	Streams int     `json:"streams"`
}

func newBenchDocument() *benchDocument {
	return &benchDocument{Version: mesh.Version, Machine: benchMachine{
		OS: runtime.GOOS, Arch: runtime.GOARCH, Processors: runtime.NumCPU(), Kernels: kernel.Backend(),
	}}
}

// benchEngines measures the built-in model, and a model file if there is one.
func benchEngines(ctx context.Context, file string, o benchOptions) ([]engineBench, error) {
	f, err := builtin.Open()
	if err != nil {
		return nil, err
	}
	first, err := benchEngine(ctx, builtin.Name, f, o)
	if err != nil || file == "" {
		return []engineBench{first}, err
	}
	if f, err = model.Open(file); err != nil {
		return nil, err
	}
	defer f.Close()
	second, err := benchEngine(ctx, o.shape, f, o)
	return []engineBench{first, second}, err
}

func benchEngine(ctx context.Context, name string, f *model.File, o benchOptions) (engineBench, error) {
	out := engineBench{Model: name, Bytes: f.Size(), Streams: o.streams}
	start := time.Now()
	e, err := native.Open(native.Config{File: f, Name: name, Threads: o.threads})
	if err != nil {
		return out, err
	}
	defer e.Close()
	out.LoadMS = ms(time.Since(start))
	const prompt, tokens = 256, 64
	if _, err := generate(ctx, e, 8, 4, 1); err != nil { // warm up
		return out, err
	}
	took, err := generate(ctx, e, prompt, 1, 1)
	if err != nil {
		return out, err
	}
	out.Prefill = prompt / took.Seconds()
	if took, err = generate(ctx, e, 8, tokens, 1); err != nil {
		return out, err
	}
	out.Decode = tokens / took.Seconds()
	if took, err = generate(ctx, e, 8, o.tokens, o.streams); err != nil {
		return out, err
	}
	out.Many = float64(o.tokens*o.streams) / took.Seconds()
	return out, nil
}

// generate runs streams answers at once and returns the time until the last ended.
func generate(ctx context.Context, e *native.Engine, prompt, tokens, streams int) (time.Duration, error) {
	var wg sync.WaitGroup
	errs := make([]error, streams)
	start := time.Now()
	for i := range streams {
		g := inference.Generation{Sampling: &inferencepb.Sampling{}, MaxTokens: tokens, IgnoreEOS: true}
		for j := range prompt {
			g.Prompt = append(g.Prompt, int32((i*31+j*7)%200)+32)
		}
		wg.Go(func() {
			n := 0
			finish, err := e.Generate(ctx, g, func(inference.Token) error { n++; return nil })
			if err == nil && n != tokens {
				err = fmt.Errorf("%d of %d tokens, then %q", n, tokens, finish.Reason)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	took := time.Since(start)
	for _, err := range errs {
		if err != nil {
			return took, err
		}
	}
	return took, nil
}

func printBench(w io.Writer, doc *benchDocument) error {
	m := doc.Machine
	fmt.Fprintf(w, "mesh %s on %s/%s, %d processors, %s kernels\n", doc.Version, m.OS, m.Arch, m.Processors, m.Kernels)
	if len(doc.Engine) > 0 {
		var rows [][]string
		for _, e := range doc.Engine {
			rows = append(rows, []string{e.Model, size(e.Bytes), fmt.Sprintf("%.0f ms", e.LoadMS), fmt.Sprintf("%.0f", e.Prefill),
				fmt.Sprintf("%.1f", e.Decode), fmt.Sprintf("%.1f", e.Many)})
		}
		fmt.Fprintln(w)
		if err := table(w, []string{"MODEL", "SIZE", "LOAD", "PROMPT tok/s", "ONE tok/s", fmt.Sprintf("%d AT ONCE tok/s", doc.Engine[0].Streams)}, rows); err != nil {
			return err
		}
	}
	if h := doc.Hop; h != nil {
		fmt.Fprintf(w, "\nhop   time to first token, median of %d rounds: p50 %+.2f ms, p99 %+.2f ms over the host's own API\n", len(h.Rounds), h.AddedP50, h.AddedP99)
	}
	if l := doc.Load; l != nil {
		fmt.Fprintf(w, "load  %d streams, shape %s: %.1f %% of the tokens/s of the host's own API, median of %d rounds\n", l.Streams, l.Shape, 100*l.Ratio, len(l.Rounds))
	}
	return nil
}
