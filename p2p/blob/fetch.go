package blob

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
)

// Dialer opens a stream to a peer for a protocol, by its short name.
type Dialer interface {
	Dial(ctx context.Context, peer mesh.Address, protocol string) (net.Conn, error)
}

// Config configures a Fetcher. Zero fields are defaults.
type Config struct {
	Store  *Store
	Dialer Dialer
	// Sources yields peers that may have a blob, until it knows no more or ctx ends.
	// It is called again while the download runs, and may repeat itself.
	Sources func(ctx context.Context, root mesh.Hash) iter.Seq[mesh.Address]
	// Penalise, when set, is told of a peer that sent what no honest peer sends.
	Penalise   func(peer mesh.Address, reason string, points int)
	MaxSources int           // peers to fetch one blob from at once; default 8
	Stall      time.Duration // a source without a byte for so long gives its chunks back; default 5 s
	Log        *slog.Logger
}

// Fetcher downloads blobs into a store.
type Fetcher struct {
	cfg Config

	mu     sync.Mutex
	active map[mesh.Hash]*download // guarded by mu
}

// Options are those of one Fetch.
type Options struct {
	// Progress, when set, is called now and then, by the goroutine that called
	// Fetch, with the bytes verified so far (those of an earlier attempt too), the
	// size, 0 as long as it is unknown, and the number of peers that send.
	Progress func(done, total uint64, sources int)
}

// NewFetcher returns a fetcher.
func NewFetcher(cfg Config) *Fetcher {
	cfg.MaxSources = orDefault(cfg.MaxSources, 8)
	cfg.Stall = orDefault(cfg.Stall, 5*time.Second)
	if cfg.Penalise == nil {
		cfg.Penalise = func(mesh.Address, string, int) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Fetcher{cfg: cfg, active: make(map[mesh.Hash]*download)}
}

// Fetch returns the path of the blob, which it downloads if the store does not
// have it. Several calls for one root share a download, which ends with the last
// of them. What was verified stays on disk: the next Fetch goes on from there.
func (f *Fetcher) Fetch(ctx context.Context, root mesh.Hash, opts Options) (string, error) {
	for {
		if path, err := f.cfg.Store.Path(root); err == nil {
			return path, nil
		}
		d, joined := f.join(root)
		if !joined {
			// The last caller has just left it; it is being wound up.
			select {
			case <-d.ended:
				continue
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
		return f.follow(ctx, d, opts)
	}
}

// join finds or starts the download of a root. It reports false for one that was
// cancelled and has not ended yet.
func (f *Fetcher) join(root mesh.Hash) (*download, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.active[root]; d != nil {
		if d.ctx.Err() != nil {
			return d, false
		}
		d.callers++
		return d, true
	}
	d := newDownload(f.cfg, root)
	d.callers = 1
	f.active[root] = d
	go func() {
		d.path, d.err = d.run()
		f.mu.Lock()
		delete(f.active, root)
		f.mu.Unlock()
		close(d.ended)
	}()
	return d, true
}

// follow waits for a download and reports its progress.
func (f *Fetcher) follow(ctx context.Context, d *download, opts Options) (string, error) {
	for {
		done, total, sources, changed := d.progress()
		if opts.Progress != nil {
			opts.Progress(done, total, sources)
		}
		select {
		case <-changed:
			continue
		case <-d.ended:
		case <-ctx.Done():
			f.mu.Lock()
			if d.callers--; d.callers == 0 {
				d.cancel(context.Canceled)
			}
			last := d.callers == 0
			f.mu.Unlock()
			if last {
				<-d.ended // nothing runs on after the last caller has its answer
			}
			return "", fmt.Errorf("fetch blob %s: %w", d.root.Short(), ctx.Err())
		}
		if d.err != nil {
			return "", fmt.Errorf("fetch blob %s: %w", d.root.Short(), d.err)
		}
		if opts.Progress != nil {
			opts.Progress(total, total, sources)
		}
		return d.path, nil
	}
}

// errComplete ends the context of a download that has all chunks.
var errComplete = errors.New("complete")
