package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
)

const (
	// maxSpare bounds how many peers wait for a place among the sources.
	maxSpare = 256
	// depth is how many chunks a source is asked for ahead, so that it never waits
	// for the next request.
	depth = 2
	// searchEvery is how long after a search for sources the next one starts.
	searchEvery = 30 * time.Second
)

// Points of a penalty.
const (
	pointsLie       = 100 // a chunk or manifest that does not hash to its name
	pointsMalformed = 20
)

// download is one blob on its way. One goroutine per source receives, a few
// writers verify and write; the plan under mu holds them together.
type download struct {
	cfg    Config
	root   mesh.Hash
	ctx    context.Context
	cancel context.CancelCauseFunc // the cause is the outcome, errComplete the good one
	wg     sync.WaitGroup

	asking chan struct{} // a place for each source that asks for the manifest
	ready  chan struct{} // closed once manifest, part and plan are there
	hungry chan struct{} // asks find for another search
	jobs   chan job      // received chunks on their way to a writer
	free   chan []byte   // places for buffers; nil is one not yet allocated

	callers int           // guarded by Fetcher.mu
	ended   chan struct{} // closed when path and err are final
	path    string
	err     error

	mu      sync.Mutex
	m       *Manifest                  // written once, before ready; guarded by mu until then
	part    *part                      // as m
	plan    *plan                      // guarded by mu
	done    uint64                     // bytes verified; guarded by mu
	changed chan struct{}              // closed and replaced at every change; guarded by mu
	working map[mesh.Address]bool      // sources; guarded by mu
	sending int                        // sources with an open stream; guarded by mu
	retired map[mesh.Address]time.Time // when a source left; guarded by mu
	banned  map[mesh.Address]bool      // liars; guarded by mu
	spare   []mesh.Address             // peers without a place; guarded by mu
	nextID  int                        // guarded by mu
	lastErr error                      // why a source left last; guarded by mu
}

// job is a chunk as a source sent it.
type job struct {
	from  *source
	chunk int
	data  []byte
}

func newDownload(cfg Config, root mesh.Hash) *download {
	ctx, cancel := context.WithCancelCause(context.Background())
	// A buffer in the hands of each source and each writer, and two between them.
	buffers := cfg.MaxSources + writers() + 2
	d := &download{
		cfg: cfg, root: root, ctx: ctx, cancel: cancel,
		asking: make(chan struct{}, 2), ready: make(chan struct{}), hungry: make(chan struct{}, 1),
		jobs: make(chan job, buffers), free: make(chan []byte, buffers),
		ended: make(chan struct{}), changed: make(chan struct{}),
		working: make(map[mesh.Address]bool), retired: make(map[mesh.Address]time.Time),
		banned: make(map[mesh.Address]bool),
	}
	for range buffers {
		d.free <- nil
	}
	return d
}

func writers() int { return max(2, min(4, runtime.GOMAXPROCS(0))) }

// run downloads the blob and returns its path.
func (d *download) run() (string, error) {
	defer d.cancel(context.Canceled)
	if err := d.cfg.Store.claim(d.root); err != nil {
		return "", err
	}
	defer d.cfg.Store.release(d.root)
	if m, err := d.cfg.Store.Manifest(d.root); err == nil {
		d.begin(m)
	}
	d.wg.Go(d.find)
	<-d.ctx.Done()
	d.wg.Wait()
	if d.part == nil {
		return "", context.Cause(d.ctx)
	}
	defer d.part.close()
	if err := context.Cause(d.ctx); !errors.Is(err, errComplete) {
		return "", err
	}
	return d.part.finish()
}

// find takes in sources, and looks for more from time to time, at once when there
// is none left. A search that leaves the download without any ends it.
func (d *download) find() {
	for {
		for peer := range d.cfg.Sources(d.ctx, d.root) {
			d.offer(peer)
			if d.ctx.Err() != nil {
				break
			}
		}
		d.mu.Lock()
		if d.starved() {
			d.cancel(d.starvation())
		}
		d.mu.Unlock()
		select {
		case <-d.hungry:
		case <-time.After(searchEvery):
		case <-d.ctx.Done():
			return
		}
	}
}

// starved reports whether nobody can go on with the download. Chunks that are
// still being checked on disk may turn out to be all that is missing. The caller
// holds mu.
func (d *download) starved() bool {
	return len(d.working) == 0 && (d.plan == nil || d.plan.checking == 0)
}

// starvation says how a download ends that nobody can go on with. The caller
// holds mu.
func (d *download) starvation() error {
	why := d.lastErr
	if why == nil {
		why = ErrNotFound
	}
	if d.plan == nil {
		return fmt.Errorf("no source: %w", why)
	}
	n := len(d.m.Chunks)
	return fmt.Errorf("no source left with %d of %d chunks done: %w", n-d.plan.left, n, why)
}

// askForMore starts a search when nobody is left. The caller holds mu.
func (d *download) askForMore() {
	if d.starved() {
		select {
		case d.hungry <- struct{}{}:
		default:
		}
	}
}

// offer makes a peer a source, now or when there is a place. One that left a
// moment ago is not taken back at once, however often it is named.
func (d *download) offer(peer mesh.Address) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.banned[peer] || d.working[peer] || slices.Contains(d.spare, peer) {
		return
	}
	if left, ok := d.retired[peer]; ok && time.Since(left) < d.cfg.Stall {
		return
	}
	if len(d.working) < d.cfg.MaxSources {
		d.start(peer)
	} else if len(d.spare) < maxSpare {
		d.spare = append(d.spare, peer)
	}
}

// start sets a source to work. The caller holds mu.
func (d *download) start(peer mesh.Address) {
	if d.ctx.Err() != nil {
		return
	}
	d.working[peer] = true
	d.nextID++
	s := &source{download: d, peer: peer, id: d.nextID}
	d.wg.Go(s.work)
}

// retire lets a source go and gives its place to another.
func (d *download) retire(peer mesh.Address, why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.working, peer)
	d.retired[peer] = time.Now()
	if why != nil {
		d.lastErr = fmt.Errorf("peer %s: %w", peer.Short(), why)
	}
	if len(d.spare) > 0 {
		next := d.spare[0]
		d.spare = d.spare[1:]
		d.start(next)
	}
	d.askForMore()
	d.broadcast()
}

// broadcast wakes all who wait for a change. The caller holds mu.
func (d *download) broadcast() {
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *download) progress() (done, total uint64, sources int, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m != nil {
		total = d.m.Size
	}
	return d.done, total, d.sending, d.changed
}

// begin opens the part for a checked manifest and starts the writers. Only the
// first call counts.
func (d *download) begin(m *Manifest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m != nil || d.ctx.Err() != nil {
		return
	}
	part, claimed, err := d.cfg.Store.openPart(d.root, m)
	if err != nil {
		d.cancel(err)
		return
	}
	d.m, d.part, d.plan = m, part, newPlan(len(m.Chunks), claimed)
	for range writers() {
		d.wg.Go(d.write)
	}
	if d.plan.checking > 0 {
		d.recheck(claimed)
	}
	close(d.ready)
	d.broadcast()
}

// recheck hashes the chunks that an earlier attempt wrote, while sources bring
// the others.
func (d *download) recheck(claimed []bool) {
	todo := make(chan int, len(claimed))
	for i, have := range claimed {
		if have {
			todo <- i
		}
	}
	close(todo)
	for range writers() {
		d.wg.Go(func() {
			for i := range todo {
				if d.ctx.Err() != nil {
					return
				}
				// An unreadable chunk is fetched again, like one that is wrong.
				if ok, _ := d.part.check(i); ok {
					d.settle(i, true)
				} else {
					d.mu.Lock()
					d.plan.giveBack(i)
					d.askForMore()
					d.broadcast()
					d.mu.Unlock()
				}
			}
		})
	}
}

// write verifies received chunks and stores the good ones.
func (d *download) write() {
	for {
		select {
		case <-d.ctx.Done():
			return
		case j := <-d.jobs:
			d.keep(j)
			d.free <- j.data[:cap(j.data)]
		}
	}
}

// keep stores a chunk if it is what it should be; if not, its source is a liar.
func (d *download) keep(j job) {
	if sha256.Sum256(j.data) != d.m.Chunks[j.chunk] {
		d.ban(j.from.peer, fmt.Sprintf("bad chunk %d of blob %s", j.chunk, d.root), pointsLie)
		j.from.stop()
		return
	}
	d.mu.Lock()
	late := d.plan.done[j.chunk] // another source was faster
	d.mu.Unlock()
	if late {
		return
	}
	if err := d.part.write(j.chunk, j.data); err != nil {
		d.cancel(err)
		return
	}
	d.settle(j.chunk, false)
}

// settle counts a chunk that is verified and on disk, checked if it was there
// before this download.
func (d *download) settle(chunk int, checked bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if checked {
		d.plan.confirm(chunk)
	}
	if checked || d.plan.settle(chunk, time.Now()) {
		d.done += uint64(d.m.chunkLen(chunk))
	}
	if d.plan.left == 0 {
		d.cancel(errComplete)
	}
	d.askForMore()
	d.broadcast()
}

// ban parts with a liar for good.
func (d *download) ban(peer mesh.Address, reason string, points int) {
	d.mu.Lock()
	known := d.banned[peer]
	d.banned[peer] = true
	d.mu.Unlock()
	if !known {
		d.cfg.Log.Warn("peer dropped as a source", "peer", peer, "reason", reason)
		d.cfg.Penalise(peer, reason, points)
	}
}
