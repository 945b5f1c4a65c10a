package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/native"
)

type benchMachine struct {
	OS         string `json:"os"`
	Arch       string `json:"arch"`
	Processors int    `json:"processors"`
	Kernels    string `json:"kernels"`
}

// engineBench is what the engine does with one model, one set of kernels and a number
// of threads. Speeds are tokens a second, medians of the rounds; a ratio is the median
// of the ratios within rounds. What was not measured is left out.
type engineBench struct {
	Model      string  `json:"model"`
	Weights    string  `json:"weights,omitempty"` // formats
	Bytes      int64   `json:"bytes"`
	Kernels    string  `json:"kernels"`
	Threads    int     `json:"threads"`
	Rounds     int     `json:"rounds"`
	LoadMS     float64 `json:"load_ms,omitempty"` // opening in this process
	Roof       float64 `json:"roof_gb_s,omitempty"`
	TokenBytes int64   `json:"token_bytes,omitempty"` // of weights that a token reads
	Decode     float64 `json:"decode_tok_s,omitempty"`
	OfRoof     float64 `json:"decode_of_roof,omitempty"`
	Prefill    float64 `json:"prefill_tok_s,omitempty"`
	Score      float64 `json:"score_tok_s,omitempty"`
	Many       float64 `json:"many_tok_s,omitempty"` // the last of batches
	Streams    int     `json:"streams,omitempty"`

	Batches  []batchBench   `json:"batches,omitempty"`
	Newcomer *newcomerBench `json:"newcomer,omitempty"`
	Check    *checkBench    `json:"check,omitempty"`
	Prefix   *prefixBench   `json:"prefix,omitempty"`
	Start    *startBench    `json:"start,omitempty"`
	Memory   *memoryBench   `json:"memory,omitempty"`
	Crowd    *crowdBench    `json:"crowd,omitempty"`

	Samples map[string][]float64 `json:"samples,omitempty"` // the rounds, by names of their own
}

// batchBench is answers at once: all their tokens together, and that over one answer.
type batchBench struct {
	Requests int     `json:"requests"`
	Speed    float64 `json:"tok_s"`
	Ratio    float64 `json:"ratio"`
}

// newcomerBench is the time to the first token of a prompt beside answers in the
// making, those of the same payer or each of another one, over that of an idle engine.
type newcomerBench struct {
	Others     int     `json:"others"`
	Prompt     int     `json:"prompt_tokens"`
	Idle       float64 `json:"idle_ms"`
	Same       float64 `json:"same_payer_ms"`
	SameRatio  float64 `json:"same_payer_ratio"`
	Other      float64 `json:"other_payers_ms"`
	OtherRatio float64 `json:"other_payers_ratio"`
}

// checkBench is an answer computed again by who checks it, over generating it alone.
type checkBench struct {
	Tokens   int     `json:"tokens"`
	Generate float64 `json:"generate_ms"`
	Check    float64 `json:"check_ms"`
	Share    float64 `json:"share"`
}

// prefixBench is the time to the first token of two prompts that begin alike.
type prefixBench struct {
	Prompt int     `json:"prompt_tokens"`
	Common int     `json:"common_tokens"`
	Kept   int     `json:"kept_tokens"` // that the second found
	First  float64 `json:"first_ms"`
	Second float64 `json:"second_ms"`
	Less   float64 `json:"less"` // 1 - second / first
}

func newBenchDocument() *benchDocument {
	return &benchDocument{Version: mesh.Version, Machine: benchMachine{
		OS: runtime.GOOS, Arch: runtime.GOARCH, Processors: runtime.NumCPU(), Kernels: kernel.Backend(),
	}}
}

// setting is what one row of figures is measured with.
type setting struct {
	o       benchOptions
	kernels string
	threads int
}

// benchEngines measures each set of kernels with each number of threads.
func benchEngines(ctx context.Context, dir string, o benchOptions) ([]engineBench, error) {
	if len(o.kernels) == 0 {
		o.kernels = []string{kernel.Backend()}
	}
	if len(o.threads) == 0 {
		o.threads = []int{1, runtime.GOMAXPROCS(0)}
	}
	for i, n := range o.threads {
		if n == 0 {
			o.threads[i] = runtime.GOMAXPROCS(0)
		}
	}
	o.threads = slices.Compact(o.threads)
	var limit *roof
	if o.has("roof", "decode") {
		var err error
		if limit, err = newRoof(); err != nil {
			return nil, err
		}
		defer limit.close()
	}
	var all []engineBench
	for _, set := range o.kernels {
		if err := kernel.Use(set); err != nil {
			return nil, err
		}
		for _, threads := range o.threads {
			fmt.Fprintf(o.notes, "engine: %s kernels, %d threads …\n", set, threads)
			one, err := (&setting{o, set, threads}).measure(ctx, dir, limit)
			if err != nil {
				return nil, err
			}
			all = append(all, one)
		}
	}
	return all, nil
}

func (s *setting) measure(ctx context.Context, dir string, limit *roof) (engineBench, error) {
	out := engineBench{Model: s.name(), Kernels: s.kernels, Threads: s.threads, Rounds: s.o.rounds}
	m := newMeter(nil)
	m.roof = limit
	if s.o.only("roof") {
		for range s.o.rounds {
			bytes, err := limit.measure(s.threads)
			if err != nil {
				return out, err
			}
			m.saw("roof", bytes/1e9)
		}
		out.figures(m)
		return out, nil
	}
	f, err := openModel(s.o.model)
	if err != nil {
		return out, err
	}
	defer f.Close()
	out.Bytes, out.TokenBytes = f.Size(), tokenBytes(f)
	if s.o.has("decode", "prefill", "batch", "score", "prefix") {
		begin := time.Now()
		if m.e, err = native.Open(native.Config{File: f, Threads: s.threads}); err != nil {
			return out, err
		}
		out.LoadMS, out.Weights = ms(time.Since(begin)), m.e.Info().Fingerprint.Weights
		err = s.rounds(ctx, m, out.TokenBytes)
		m.e.Close()
		if err != nil {
			return out, err
		}
	}
	if err := s.processes(ctx, dir, m, &out); err != nil {
		return out, err
	}
	out.figures(m)
	return out, nil
}

// name is the model's, as people named it.
func (s *setting) name() string {
	switch {
	case s.o.shape == "none" && s.o.model == "":
		return "built-in"
	case s.o.given:
		return s.o.model
	}
	return s.o.shape
}

func newMeter(e *native.Engine) *meter {
	return &meter{e: e, random: rand.New(rand.NewPCG(1, 1)), seen: make(map[string][]float64)}
}

// rounds measures the parts one after the other, again and again: what a machine does
// beside hits all of them alike.
func (s *setting) rounds(ctx context.Context, m *meter, tokenBytes int64) error {
	if err := m.warm(ctx); err != nil {
		return err
	}
	parts := []struct {
		name string
		run  func(context.Context) error
	}{
		{"decode", func(ctx context.Context) error { return m.decode(ctx, s.threads, tokenBytes) }},
		{"prefill", m.prefill}, {"batch", m.batch}, {"score", m.score}, {"prefix", m.prefix},
	}
	for round := range s.o.rounds {
		for _, p := range parts {
			if !s.o.has(p.name) {
				continue
			}
			fmt.Fprintf(s.o.notes, "engine: round %d of %d, %s …\n", round+1, s.o.rounds, p.name)
			if err := p.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	return nil
}

// figures sets the medians of what was measured.
func (b *engineBench) figures(m *meter) {
	b.Samples = m.seen
	b.Roof, b.Decode, b.OfRoof = m.median("roof"), m.median("decode"), m.median("of roof")
	b.Prefill, b.Score = m.median("prefill"), m.median("score")
	if m.median("idle") > 0 {
		for n := 1; n <= mostAtOnce; n *= 2 {
			one := batchBench{n, m.median(fmt.Sprint("batch ", n)), m.median(fmt.Sprint("batch ratio ", n))}
			b.Batches = append(b.Batches, one)
			b.Many, b.Streams = one.Speed, n
		}
		b.Newcomer = &newcomerBench{
			Others: mostAtOnce - 1, Prompt: prefillTokens, Idle: m.median("idle"),
			Same: m.median("newcomer"), SameRatio: m.median("newcomer ratio"),
			Other: m.median("newcomer payer"), OtherRatio: m.median("newcomer payer ratio"),
		}
	}
	if m.median("check") > 0 {
		b.Check = &checkBench{answerTokens, m.median("generate"), m.median("check"), m.median("check share")}
	}
	if m.median("fresh") > 0 {
		b.Prefix = &prefixBench{
			m.common() + ownTokens, m.common(), int(m.median("kept tokens")), m.median("fresh"), m.median("kept"), m.median("less"),
		}
	}
}

// printBench writes the engine's figures as a table with a column for each setting.
func printBench(w io.Writer, doc *benchDocument) error {
	m := doc.Machine
	fmt.Fprintf(w, "mesh %s on %s/%s, %d processors\n", doc.Version, m.OS, m.Arch, m.Processors)
	if len(doc.Engine) > 0 {
		b := doc.Engine[0]
		if b.Bytes > 0 {
			fmt.Fprintf(w, "\n%s, %s, %s; medians of %s\n", b.Model, b.Weights, size(b.Bytes), plural(b.Rounds, "round"))
		}
		head := []string{""}
		for _, b := range doc.Engine {
			head = append(head, fmt.Sprintf("%s × %d", b.Kernels, b.Threads))
		}
		if err := table(w, head, benchRows(doc.Engine)); err != nil {
			return err
		}
	}
	if h := doc.Hop; h != nil {
		fmt.Fprintf(w, "\nhop   time to first token, median of %s: p50 %+.2f ms, p99 %+.2f ms over the host's own API\n", plural(len(h.Rounds), "round"), h.AddedP50, h.AddedP99)
	}
	if l := doc.Load; l != nil {
		fmt.Fprintf(w, "load  %d streams, %s: %.1f %% of the tokens/s of the host's own API, median of %s\n", l.Streams, l.Shape, 100*l.Ratio, plural(len(l.Rounds), "round"))
	}
	return nil
}
