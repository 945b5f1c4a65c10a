package native

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/model"
)

// benchmarkModel opens the built-in model, or a synthetic one from a file, as a
// host does.
func benchmarkModel(b *testing.B, name string) *model.File {
	b.Helper()
	if name == "builtin" {
		return builtinFile(b)
	}
	path := filepath.Join(b.TempDir(), name+".gguf")
	out, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	if err := model.Synthesize(out, shape(b, name), model.Q8_0, 1); err != nil {
		b.Fatal(err)
	}
	if err := out.Close(); err != nil {
		b.Fatal(err)
	}
	f, err := model.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return f
}

func BenchmarkEngine(b *testing.B) {
	for _, name := range []string{"builtin", "0.5b"} {
		b.Run(name, func(b *testing.B) {
			f := benchmarkModel(b, name)
			for _, threads := range []int{1, 2} {
				b.Run("threads="+strconv.Itoa(threads), func(b *testing.B) { benchmark(b, f, threads) })
			}
		})
	}
}

func benchmark(b *testing.B, f *model.File, threads int) {
	begin := time.Now()
	e := start(b, Config{File: f, Threads: threads})
	ready := time.Since(begin)
	run := func(b *testing.B, streams, prompt, tokens int) (perSecond, perCPU float64) {
		begin, cpu := time.Now(), cpuTime()
		var all sync.WaitGroup
		for s := range streams {
			g := inference.Generation{Prompt: make([]int32, prompt), MaxTokens: tokens, IgnoreEOS: true}
			for i := range g.Prompt {
				g.Prompt[i] = int32((i*7 + s) % 1000)
			}
			all.Go(func() { mustAsk(b, e, g) })
		}
		all.Wait()
		n := float64(streams * (prompt + tokens - 1))
		return n / time.Since(begin).Seconds(), n / (cpuTime() - cpu).Seconds()
	}
	run(b, 1, 16, 16) // grow buffers
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
		}
		b.ReportMetric(float64(ready.Microseconds())/1000, "ms-to-ready")
		b.ReportMetric(float64(rss())/(1<<20), "MB-rss")
		b.ReportMetric(0, "ns/op")
	})
	for _, c := range []struct {
		name                    string
		streams, prompt, tokens int
	}{{"decode", 1, 1, 64}, {"prefill", 1, 128, 1}, {"batch8", 8, 1, 64}, {"batch32", 32, 1, 64}} {
		b.Run(c.name, func(b *testing.B) {
			best, bestCPU := 0.0, 0.0
			for b.Loop() {
				wall, cpu := run(b, c.streams, c.prompt, c.tokens)
				best, bestCPU = max(best, wall), max(bestCPU, cpu)
			}
			b.ReportMetric(best, "tokens/s")
			b.ReportMetric(bestCPU, "tokens/cpu-s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkHosts runs several engines of one thread on one machine, as "mesh dev"
// does.
func BenchmarkHosts(b *testing.B) {
	const hosts, tokens = 4, 200
	var engines []*Engine
	for range hosts {
		engines = append(engines, start(b, Config{File: builtinFile(b), Threads: 1}))
	}
	best := 0.0
	for b.Loop() {
		begin := time.Now()
		var all sync.WaitGroup
		for _, e := range engines {
			all.Go(func() {
				mustAsk(b, e, inference.Generation{Prompt: []int32{1}, MaxTokens: tokens, IgnoreEOS: true})
			})
		}
		all.Wait()
		best = max(best, hosts*tokens/time.Since(begin).Seconds())
	}
	b.ReportMetric(best, "tokens/s")
	b.ReportMetric(0, "ns/op")
}

// cpuTime is the processor time that the process has taken.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rss is the resident memory of the process in bytes, 0 where it is not known.
func rss() int {
	runtime.GC()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.Atoi(fields[1])
	return pages * os.Getpagesize()
}
