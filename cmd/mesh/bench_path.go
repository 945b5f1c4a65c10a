package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh/node/api"
)

const benchPrompt = "What is Mesh?"

// hopBench compares the time to first token of two ways to the same host.
type hopBench struct {
	Rounds []hopRound `json:"rounds"`
	// Medians over the rounds, in milliseconds.
	AddedP50 float64 `json:"added_p50_ms"`
	AddedP99 float64 `json:"added_p99_ms"`
}

type hopRound struct {
	DirectP50 float64 `json:"direct_p50_ms"`
	DirectP99 float64 `json:"direct_p99_ms"`
	MeshP50   float64 `json:"mesh_p50_ms"`
	MeshP99   float64 `json:"mesh_p99_ms"`
}

// loadBench compares tokens per second of many streams on two ways.
type loadBench struct {
	Shape   string      `json:"shape"`
	Streams int         `json:"streams"`
	Rounds  []loadRound `json:"rounds"`
	Ratio   float64     `json:"ratio"` // mesh over direct, median of the rounds
}

type loadRound struct {
	Direct float64 `json:"direct_tok_s"` // mean of the turns before and after
	Mesh   float64 `json:"mesh_tok_s"`
}

// asked is one measured request.
type asked struct {
	first  time.Duration // to the first text
	tokens int
}

// benchClient keeps one connection per stream open.
func benchClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 1024
	t.Proxy = nil
	return &http.Client{Transport: t}
}

// timeAsk streams an answer and measures it.
func timeAsk(ctx context.Context, c *api.Client, prompt string, tokens int, ignoreEOS bool) (asked, error) {
	start := time.Now()
	resp, err := c.Do(ctx, http.MethodPost, "/v1/chat/completions", map[string]any{
		"model": "", "stream": true, "max_tokens": tokens, "ignore_eos": ignoreEOS, "temperature": 0,
		"stream_options": map[string]any{"include_usage": true},
		"messages":       []chatMessage{{"user", prompt}},
	})
	if err != nil {
		return asked{}, err
	}
	defer resp.Body.Close()
	var out asked
	done := false
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		switch {
		case !ok:
		case string(data) == "[DONE]":
			done = true
		case out.first == 0 && bytes.Contains(data, []byte(`"content":"`)) && !bytes.Contains(data, []byte(`"content":""`)):
			out.first = time.Since(start)
		case bytes.Contains(data, []byte(`"completion_tokens"`)):
			var usage struct {
				Usage struct {
					Tokens int `json:"completion_tokens"`
				} `json:"usage"`
			}
			if err := json.Unmarshal(data, &usage); err != nil {
				return out, fmt.Errorf("read usage: %w", err)
			}
			out.tokens = usage.Usage.Tokens
		}
	}
	if err := lines.Err(); err != nil {
		return out, err
	}
	if !done || out.first == 0 {
		return out, errors.New("the answer broke off")
	}
	return out, nil
}

// benchHop asks the built-in model by both ways, taking turns.
func benchHop(ctx context.Context, dir string, o benchOptions) (*hopBench, error) {
	fmt.Fprintln(o.notes, "hop …")
	p, err := startPair(ctx, dir, "", o.most())
	if err != nil {
		return nil, err
	}
	defer p.stop()
	direct, hop := p.paths()
	out := new(hopBench)
	var p50, p99 []float64
	for range o.rounds {
		var d, m []float64
		for i := range 2 * o.asks {
			// The order changes from turn to turn, so that neither way always follows.
			c, into := direct, &d
			if (i+i/2)%2 == 1 {
				c, into = hop, &m
			}
			a, err := timeAsk(ctx, c, benchPrompt, 2, false)
			if err != nil {
				return nil, err
			}
			*into = append(*into, ms(a.first))
		}
		r := hopRound{quantile(d, 0.5), quantile(d, 0.99), quantile(m, 0.5), quantile(m, 0.99)}
		out.Rounds = append(out.Rounds, r)
		p50, p99 = append(p50, r.MeshP50-r.DirectP50), append(p99, r.MeshP99-r.DirectP99)
	}
	out.AddedP50, out.AddedP99 = quantile(p50, 0.5), quantile(p99, 0.5)
	return out, nil
}

// benchLoad runs many streams by both ways, taking turns. A turn through the mesh is
// compared with the mean of the direct turns before and after it, which takes out how
// a machine's speed drifts.
func benchLoad(ctx context.Context, dir, file string, o benchOptions) (*loadBench, error) {
	fmt.Fprintf(o.notes, "load: %d streams, shape %s …\n", o.streams, o.shape)
	p, err := startPair(ctx, dir, file, o.most())
	if err != nil {
		return nil, err
	}
	defer p.stop()
	direct, hop := p.paths()
	for _, c := range []*api.Client{direct, hop} { // opens the connections, makes the caches
		if _, err := throughput(ctx, c, o.streams, 2); err != nil {
			return nil, err
		}
	}
	before, err := throughput(ctx, direct, o.streams, o.tokens)
	if err != nil {
		return nil, err
	}
	out := &loadBench{Shape: o.shape, Streams: o.streams}
	for range o.rounds {
		mesh, err := throughput(ctx, hop, o.streams, o.tokens)
		if err != nil {
			return nil, err
		}
		after, err := throughput(ctx, direct, o.streams, o.tokens)
		if err != nil {
			return nil, err
		}
		r := loadRound{Direct: (before + after) / 2, Mesh: mesh}
		out.Rounds = append(out.Rounds, r)
		fmt.Fprintf(o.notes, "load: direct %.1f, mesh %.1f tok/s\n", r.Direct, r.Mesh)
		before = after
	}
	out.Ratio = loadRatio(out.Rounds)
	return out, nil
}

// loadRatio is the median of the rounds' ratios.
func loadRatio(rounds []loadRound) float64 {
	var ratios []float64
	for _, r := range rounds {
		ratios = append(ratios, r.Mesh/r.Direct)
	}
	return quantile(ratios, 0.5)
}

// throughput returns the tokens per second of all streams together.
func throughput(ctx context.Context, c *api.Client, streams, tokens int) (float64, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	var failed error
	start := time.Now()
	for i := range streams {
		wg.Go(func() {
			// Prompts differ, so that nothing can be shared between them, and are short:
			// what the way costs is a matter of the answers.
			a, err := timeAsk(ctx, c, fmt.Sprintf("%d.", i), tokens, true)
			mu.Lock()
			defer mu.Unlock()
			total += a.tokens
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	return float64(total) / time.Since(start).Seconds(), failed
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// quantile returns the nearest-rank quantile.
func quantile(v []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[max(0, int(math.Ceil(q*float64(len(s))))-1)]
}
