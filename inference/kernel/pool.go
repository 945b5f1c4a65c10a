package kernel

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Pool is a set of persistent workers that share the work of one operation at a time. The caller works too, so a pool
// of n threads has n-1 goroutines. Workers look for work for a few microseconds after an operation and then sleep: a
// pool at rest costs nothing, and a worker that the system does not run delays nobody, because work is taken in pieces.
// Sleeping workers are woken once the caller has worked alone for longer than waking costs: short operations of small
// models come and go without. A Pool may be used from several goroutines; they take turns.
type Pool struct {
	threads int
	mu      sync.Mutex // held during an operation; guards the task fields, task and alone

	// state is generation<<40 | pieces<<20 | next piece. A worker owns a piece once it has raised next by a
	// compare-and-swap, and only then reads the fields of the operation.
	state   atomic.Uint64
	left    atomic.Int64 // pieces not finished
	waiting atomic.Bool  // the caller sleeps on finished
	asleep  atomic.Int32 // workers that sleep on wake
	wake    chan struct{}

	finished chan struct{}
	stop     chan struct{}
	stopped  sync.WaitGroup
	closing  atomic.Bool

	task     task
	alone    time.Duration // that the caller worked on shared operations while workers slept, since they were woken
	items    int
	grain    int
	scratch  []workerScratch // one for each thread
	quantise quantiseTask
	matmul   matmulTask
	attend   attendTask
	norm     normTask
	silu     siluTask
	plain    funcTask
}

type task interface {
	// do works on items lo to hi-1 with the scratch of a worker. It must not wait for another piece.
	do(worker, lo, hi int)
}

type workerScratch struct {
	weights  []byte    // groups of rows, packed on the fly
	unpacked []byte    // some blocks of them
	out      []float32 // outputs of a group that is not full
	attend   *attendScratch
	_        [64]byte // workers write their own cache lines
}

const (
	pieceBits = 20
	pieceMask = 1<<pieceBits - 1
	// spins bounds the search for work before a worker sleeps: ten to twenty microseconds.
	spins = 10000
	// wakeCost is about what it takes until a sleeping worker helps. Who has waited that long for help has lost as
	// much as waking would have cost, so that at worst twice the least possible is lost.
	wakeCost = 50 * time.Microsecond
)

// NewPool starts a pool; threads <= 0 means one for each processor Go may use.
func NewPool(threads int) *Pool {
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	p := &Pool{
		threads:  threads,
		wake:     make(chan struct{}, threads),
		finished: make(chan struct{}, 1),
		stop:     make(chan struct{}),
		scratch:  make([]workerScratch, threads),
	}
	for w := 1; w < threads; w++ {
		p.stopped.Go(func() { p.work(w) })
	}
	return p
}

// Threads is the number of threads that share an operation.
func (p *Pool) Threads() int { return p.threads }

// Close ends the workers and waits for them. The pool must be idle.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing.CompareAndSwap(false, true) {
		close(p.stop)
	}
	p.stopped.Wait()
}

// Run calls f(lo, hi) for consecutive ranges that cover 0..n-1, at least grain items each, in parallel where that is
// worth it: f must not wait for another range.
func (p *Pool) Run(n, grain int, f func(lo, hi int)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plain.f = f
	p.run(&p.plain, n, grain, n)
	p.plain.f = nil
}

type funcTask struct{ f func(lo, hi int) }

func (t *funcTask) do(_, lo, hi int) { t.f(lo, hi) }

// run shares n items in pieces of at least grain items and, where that is fewer than a few pieces for each thread, which
// even out unequal speed, of at most most. The caller holds mu.
func (p *Pool) run(t task, n, grain, most int) {
	grain = max(1, grain, min(most, (n+8*p.threads-1)/(8*p.threads)))
	pieces := (n + grain - 1) / grain
	if p.threads == 1 || pieces <= 1 {
		if n > 0 {
			t.do(0, 0, n)
		}
		return
	}
	p.task, p.items, p.grain = t, n, grain
	p.left.Store(int64(pieces))
	generation := p.state.Load()>>(2*pieceBits) + 1
	p.state.Store(generation<<(2*pieceBits) | uint64(pieces)<<pieceBits)
	p.share()
	for i := 0; p.left.Load() != 0; i++ {
		if i < spins {
			continue
		}
		p.waiting.Store(true)
		if p.left.Load() != 0 || !p.waiting.CompareAndSwap(true, false) {
			<-p.finished
		}
		break
	}
	p.task = nil
}

// share works until all pieces are taken, and wakes sleeping workers when that was not worth it before.
func (p *Pool) share() {
	for p.asleep.Load() > 0 {
		if p.alone >= wakeCost {
			p.alone = 0
			p.rouse()
			break
		}
		start := time.Now()
		more := p.step(0)
		p.alone += time.Since(start)
		if !more {
			return
		}
	}
	for p.step(0) {
	}
}

// rouse wakes as many workers as there are pieces for.
func (p *Pool) rouse() {
	s := p.state.Load()
	for range min(int(p.asleep.Load()), int(s>>pieceBits&pieceMask)-int(s&pieceMask)) {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// step takes one piece and does it. It returns false if there was none.
func (p *Pool) step(worker int) bool {
	for {
		s := p.state.Load()
		next, pieces := int(s&pieceMask), int(s>>pieceBits&pieceMask)
		if next >= pieces {
			return false
		}
		if !p.state.CompareAndSwap(s, s+1) {
			continue
		}
		lo := next * p.grain
		p.task.do(worker, lo, min(lo+p.grain, p.items))
		if p.left.Add(-1) == 0 && p.waiting.CompareAndSwap(true, false) {
			p.finished <- struct{}{}
		}
		return true
	}
}

func (p *Pool) work(worker int) {
	for {
		for i := 0; i < spins; i++ {
			if p.step(worker) {
				i = 0
			}
		}
		if p.closing.Load() {
			return
		}
		p.asleep.Add(1)
		if p.step(worker) { // work that came before asleep was visible
			p.asleep.Add(-1)
			continue
		}
		select {
		case <-p.wake:
			p.asleep.Add(-1)
		case <-p.stop:
			return
		}
	}
}
