package adapter

import (
	"bufio"
	"bytes"
	"context"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh/inference"
)

// unhealthyAfter is how many questions in a row a server may leave open.
const unhealthyAfter = 3

// watch asks a server about its load again and again, since hosts want to know it
// without waiting.
type watch struct {
	done chan struct{}

	mu     sync.Mutex
	load   inference.Load // guarded by mu
	failed int            // questions in a row; guarded by mu
	err    error          // of the last; guarded by mu
}

func newWatch(ctx context.Context, log *slog.Logger, every time.Duration, ask func(context.Context) (inference.Load, error)) *watch {
	w := &watch{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			w.ask(ctx, log, ask)
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
	}()
	return w
}

func (w *watch) ask(ctx context.Context, log *slog.Logger, ask func(context.Context) (inference.Load, error)) {
	c, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	load, err := ask(c)
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	before := w.failed
	w.err = err
	if err == nil {
		w.load, w.failed = load, 0
	} else {
		w.load, w.failed = inference.Load{}, w.failed+1
	}
	w.mu.Unlock()
	switch {
	case err != nil && before+1 == unhealthyAfter:
		log.Warn("the inference server does not answer", "err", err)
	case err == nil && before >= unhealthyAfter:
		log.Info("the inference server answers again")
	}
}

func (w *watch) last() inference.Load {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.load
}

func (w *watch) healthy() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed < unhealthyAfter {
		return nil
	}
	return w.err
}

func (w *watch) wait() { <-w.done }

// metrics adds up the values of samples in Prometheus' text format by their names.
// Samples of counters and gauges that are wanted are few; others are passed over.
func metrics(text []byte, want ...string) map[string]float64 {
	sums := make(map[string]float64)
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(make([]byte, 0, 4<<10), 1<<20)
	for s.Scan() {
		line := s.Text()
		for _, name := range want {
			rest, ok := strings.CutPrefix(line, name)
			if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
				continue
			}
			if i := strings.LastIndexByte(rest, '}'); i >= 0 {
				rest = rest[i+1:]
			}
			fields := strings.Fields(rest)
			if len(fields) == 0 {
				continue
			}
			v, err := strconv.ParseFloat(fields[0], 64)
			if err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
				sums[name] += v
			}
		}
	}
	return sums
}

// count turns a metric into a number of requests.
func count(v float64) int { return int(min(max(v, 0), 1<<20)) }
