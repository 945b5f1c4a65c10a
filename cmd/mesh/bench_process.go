package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/kernel"
	"github.com/gonka-mesh/mesh/inference/model"
	"github.com/gonka-mesh/mesh/inference/model/builtin"
	"github.com/gonka-mesh/mesh/inference/native"
	"github.com/gonka-mesh/mesh/node"
	"github.com/gonka-mesh/mesh/node/api"
)

// startBench is the time from the start of a process to its first token, in
// milliseconds: of an engine alone, and of a node with its own API. The model file is in
// the system's cache. The first start packs the weights and keeps them, later ones
// find them.
type startBench struct {
	First     float64 `json:"first_ms"`
	Again     float64 `json:"again_ms"`
	NodeFirst float64 `json:"node_first_ms"`
	NodeAgain float64 `json:"node_again_ms"` // same home
}

// memoryBench is the memory of an engine's process after an answer, at a first start
// and at a later one; 0 where the system does not tell.
type memoryBench struct {
	RSS       int64   `json:"rss_bytes"`
	Peak      int64   `json:"peak_bytes"`
	File      int64   `json:"file_bytes"`
	KV        int64   `json:"kv_bytes"`
	Over      float64 `json:"over"` // rss / (file + kv) - 1
	AgainRSS  int64   `json:"again_rss_bytes"`
	AgainOver float64 `json:"again_over"`
}

// packedLimit is how long packed weights may take to be written.
const packedLimit = 30 * time.Second

// crowdBench compares one process with two at once, each with all threads.
type crowdBench struct {
	One   float64 `json:"one_tok_s"`
	Two   float64 `json:"two_tok_s"` // both together
	Ratio float64 `json:"ratio"`
}

// benchProcess is an engine in a process of its own.
type benchProcess struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	started time.Duration // to the first token
}

// benchReply is a line that such a process writes.
type benchReply struct {
	Seconds float64 `json:"seconds,omitempty"`
	RSS     int64   `json:"rss,omitempty"`
	Peak    int64   `json:"peak,omitempty"`
	KV      int64   `json:"kv,omitempty"`
}

// benchChildCommand is that process: it opens a model, answers one token, says so, and
// then follows the lines of its input: "decode N" and "memory", to the end of it.
func benchChildCommand() *cobra.Command {
	var path, packed string
	var threads int
	cmd := &cobra.Command{
		Use: "process", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := openModel(path)
			if err != nil {
				return err
			}
			defer f.Close()
			e, err := native.Open(native.Config{File: f, ID: mesh.ModelID{1}, Threads: threads, Packed: packed})
			if err != nil {
				return err
			}
			defer e.Close()
			return serveBench(cmd.Context(), newMeter(e), f.Config, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&path, "model", "", "model file (default: the built-in one)")
	cmd.Flags().StringVar(&packed, "packed", "", "file that packed weights are kept in")
	cmd.Flags().IntVar(&threads, "threads", 0, "threads")
	return cmd
}

func openModel(path string) (*model.File, error) {
	if path == "" {
		return builtin.Open()
	}
	return model.Open(path)
}

func serveBench(ctx context.Context, m *meter, c model.Config, in io.Reader, out io.Writer) error {
	if _, err := m.ask(ctx, 0, m.prompt(8), 1); err != nil {
		return err
	}
	reply := json.NewEncoder(out)
	if err := reply.Encode(benchReply{}); err != nil {
		return err
	}
	node.DropStartPages() // as a node does once it has started
	for lines := bufio.NewScanner(in); lines.Scan(); {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		n, _ := strconv.Atoi(rest)
		var r benchReply
		switch verb {
		case "decode":
			a, err := m.ask(ctx, 0, m.prompt(3), n+1)
			if err != nil {
				return err
			}
			r.Seconds = (a.whole - a.first).Seconds()
		case "memory":
			cache, err := kernel.NewCache(kernel.F16, c.KVHeads, c.HeadDim)
			if err != nil {
				return err
			}
			load := m.e.Load()
			r.KV = int64(load.PagesUsed+load.PagesCached) * int64(cache.PageBytes()) * int64(c.Layers)
			r.RSS, r.Peak = residentMemory()
		default:
			return fmt.Errorf("unknown command %q", verb)
		}
		if err := reply.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// residentMemory returns what the process has in memory and the most it had, in bytes;
// 0 where the system has no /proc.
func residentMemory() (now, peak int64) {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			now = kib << 10
		case "VmHWM":
			peak = kib << 10
		}
	}
	return now, peak
}

// process starts an engine and waits for its first token.
func (s *setting) process(packed string) (*benchProcess, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find my own file: %w", err)
	}
	p := &benchProcess{cmd: exec.Command(exe, "bench", "process", "--model", s.o.model, "--threads", strconv.Itoa(s.threads), "--packed", packed)}
	p.cmd.Env = append(os.Environ(), kernel.Variable+"="+s.kernels)
	p.cmd.Stderr = s.o.notes
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	start := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err = p.read(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.started = time.Since(start)
	return p, nil
}

func (p *benchProcess) read() (r benchReply, err error) {
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return r, fmt.Errorf("an engine of its own ended: %w", err)
	}
	return r, json.Unmarshal(line, &r)
}

func (p *benchProcess) ask(line string) (benchReply, error) {
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		return benchReply{}, err
	}
	return p.read()
}

// close lets the process end, by force if it takes too long.
func (p *benchProcess) close() error {
	p.in.Close()
	limit := time.AfterFunc(stopLimit, func() { _ = p.cmd.Process.Kill() })
	defer limit.Stop()
	return p.cmd.Wait()
}

func (s *setting) note(part string) { fmt.Fprintf(s.o.notes, "engine: %s …\n", part) }

// processes measures what needs processes of their own.
func (s *setting) processes(ctx context.Context, dir string, m *meter, out *engineBench) error {
	if s.o.has("start") {
		s.note("start")
		if err := s.start(ctx, dir, m, out); err != nil {
			return fmt.Errorf("start: %w", err)
		}
	}
	if s.o.has("memory") {
		s.note("memory")
		if err := s.memory(ctx, dir, out); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	if s.o.has("crowd") && 2*s.threads > runtime.NumCPU() {
		s.note("crowd")
		if err := s.crowd(ctx, m, out); err != nil {
			return fmt.Errorf("two processes: %w", err)
		}
	}
	return nil
}

func (s *setting) start(ctx context.Context, dir string, m *meter, out *engineBench) error {
	packed := s.packed(dir)
	defer os.Remove(packed)
	for i := range s.o.rounds + 1 {
		p, err := s.process(packed)
		if err != nil {
			return err
		}
		m.saw("start", ms(p.started))
		if i == 0 && s.o.model != "" {
			err = waitForFile(ctx, packed)
		}
		if err := errors.Join(err, p.close()); err != nil {
			return err
		}
	}
	home, err := os.MkdirTemp(dir, "start-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	args, err := nodeArgs(home)
	if err != nil {
		return err
	}
	for i := range s.o.rounds + 1 {
		took, err := s.startNode(ctx, filepath.Join(home, "host"), args, i == 0)
		if err != nil {
			return err
		}
		m.saw("start node", ms(took))
	}
	again := func(name string) float64 { return quantile(m.seen[name][1:], 0.5) }
	out.Start = &startBench{
		First: m.seen["start"][0], Again: again("start"), NodeFirst: m.seen["start node"][0], NodeAgain: again("start node"),
	}
	return nil
}

// packed names a file for packed weights of this setting.
func (s *setting) packed(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%d.pack", s.kernels, s.threads))
}

// waitForFile waits until a file is there that pattern matches.
func waitForFile(ctx context.Context, pattern string) error {
	for limit := time.Now().Add(packedLimit); ; time.Sleep(50 * time.Millisecond) {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) > 0 {
			return err
		}
		if time.Now().After(limit) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("no packed weights after %s", packedLimit), ctx.Err())
		}
	}
}

// startNode returns the time from the start of `mesh up` to its first token.
func (s *setting) startNode(ctx context.Context, home string, args []string, first bool) (time.Duration, error) {
	args = append(slices.Clone(args), "--threads", strconv.Itoa(s.threads))
	if s.o.model != "" {
		args = append(args, "--model", s.o.model)
	}
	start := time.Now()
	c, err := startChild(ctx, home, args...)
	if err != nil {
		return 0, err
	}
	defer c.stop()
	err = askUntil(ctx, &api.Client{Base: c.Ready.API, HTTP: benchClient()}, 1)
	took := time.Since(start)
	if err == nil && first && s.o.model != "" {
		err = waitForFile(ctx, filepath.Join(home, "*", "*.pack"))
	}
	return took, err
}

func (s *setting) memory(ctx context.Context, dir string, out *engineBench) error {
	packed := s.packed(dir)
	defer os.Remove(packed)
	measure := func(first bool) (r benchReply, err error) {
		p, err := s.process(packed)
		if err != nil {
			return r, err
		}
		if _, err = p.ask("decode " + strconv.Itoa(decodeTokens)); err == nil {
			r, err = p.ask("memory")
		}
		if err == nil && first && s.o.model != "" {
			err = waitForFile(ctx, packed)
		}
		return r, errors.Join(err, p.close())
	}
	first, err := measure(true)
	if err != nil {
		return err
	}
	again, err := measure(false)
	if err != nil {
		return err
	}
	over := func(r benchReply) float64 { return float64(r.RSS)/float64(out.Bytes+r.KV) - 1 }
	out.Memory = &memoryBench{
		RSS: first.RSS, Peak: first.Peak, File: out.Bytes, KV: first.KV, Over: over(first), AgainRSS: again.RSS, AgainOver: over(again),
	}
	return nil
}

// crowd lets one process decode, then two at once, in turns.
func (s *setting) crowd(ctx context.Context, m *meter, out *engineBench) error {
	var two [2]*benchProcess
	for i := range two {
		p, err := s.process("")
		if err != nil {
			return err
		}
		defer p.close()
		two[i] = p
	}
	decode := "decode " + strconv.Itoa(2*decodeTokens)
	for range s.o.rounds {
		alone, err := two[0].ask(decode)
		if err != nil {
			return err
		}
		var replies [2]benchReply
		var errs [2]error
		first := make(chan struct{})
		go func() {
			replies[0], errs[0] = two[0].ask(decode)
			close(first)
		}()
		replies[1], errs[1] = two[1].ask(decode)
		<-first
		if err := errors.Join(errs[0], errs[1], ctx.Err()); err != nil {
			return err
		}
		one, both := 2*decodeTokens/alone.Seconds, 4*decodeTokens/max(replies[0].Seconds, replies[1].Seconds)
		m.saw("one", one)
		m.saw("two", both)
		m.saw("crowd", both/one)
	}
	out.Crowd = &crowdBench{One: m.median("one"), Two: m.median("two"), Ratio: m.median("crowd")}
	return nil
}
