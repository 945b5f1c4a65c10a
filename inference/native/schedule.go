package native

import (
	"slices"
	"time"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/inference/kernel"
)

// The prompt tokens of a step are as many as take about this long to compute, so
// that answers in the making wait little for newcomers. How many they are changes
// no bit of any answer.
const (
	busyStep = 60 * time.Millisecond  // while answers are being decoded
	freeStep = 250 * time.Millisecond // otherwise

	minChunk, maxChunk = 8, 256
)

// part is what a step computes of one sequence.
type part struct {
	s      *sequence
	first  int // index of its first input
	n      int
	logits int // index of its logits; -1: none are wanted

	// Set by conclude.
	token  inference.Token
	finish inference.FinishReason // numeric, or open
}

// scheduler puts the steps of all requests together. One goroutine runs it.
type scheduler struct {
	e        *Engine
	graph    *graph // guarded by e.compute
	memory   *memory
	active   []*sequence // oldest first
	parts    []part
	samplers chan *kernel.Sampler // one for each thread
	perInput time.Duration        // time to compute one more input in a step
	conclude func(lo, hi int)
}

func newScheduler(e *Engine, g *graph, m *memory) *scheduler {
	s := &scheduler{e: e, graph: g, memory: m, samplers: make(chan *kernel.Sampler, g.pool.Threads())}
	for range cap(s.samplers) {
		s.samplers <- new(kernel.Sampler)
	}
	s.conclude = func(lo, hi int) {
		for i := lo; i < hi; i++ {
			s.concludePart(&s.parts[i])
		}
	}
	return s
}

// run computes steps until the engine is closed.
func (s *scheduler) run() {
	defer close(s.e.done)
	for s.admit() {
		if len(s.active) == 0 {
			s.memory.rest()
			<-s.e.wake
			continue
		}
		s.e.compute.Lock()
		s.step()
		s.e.compute.Unlock()
	}
}

// admit drops cancelled sequences and fills the batch from the queue. It reports
// false, with every sequence ended, when the engine is closed.
func (s *scheduler) admit() bool {
	e := s.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		for _, q := range append(s.active, e.queue...) {
			q.out.end(inference.FinishAborted, nil)
		}
		s.active, e.queue, e.active = nil, nil, 0
		return false
	}
	s.active = slices.DeleteFunc(s.active, func(q *sequence) bool {
		gone := q.cancelled.Load()
		if gone {
			s.memory.give(q.store)
		}
		return gone
	})
	for len(e.queue) > 0 && len(s.active) < e.slots {
		q := e.queue[0]
		var err error
		// First come, first served: a short one does not overtake a long one.
		if q.store, err = s.memory.take(len(q.tokens)); err == nil && q.store == nil {
			break
		}
		e.queue = slices.Delete(e.queue, 0, 1)
		if err != nil {
			q.out.end(inference.FinishAborted, err)
			continue
		}
		s.active = append(s.active, q)
	}
	e.active = len(s.active)
	return true
}

// step computes one step of the batch: one token of each answer in the making, and
// a chunk of the prompts.
func (s *scheduler) step() {
	s.plan()
	if len(s.parts) == 0 {
		return
	}
	start := time.Now()
	s.graph.step()
	s.measure(len(s.graph.inputs), time.Since(start))
	s.graph.pool.Run(len(s.parts), 1, s.conclude)
	for i := range s.parts {
		s.deliver(&s.parts[i])
		s.parts[i] = part{}
	}
}

// plan chooses the inputs of a step.
func (s *scheduler) plan() {
	g := s.graph
	g.inputs, s.parts = g.inputs[:0], s.parts[:0]
	room, wanted := s.chunk(), 0
	for i := 0; i < len(s.active); i++ {
		q := s.active[i]
		n := len(q.tokens) - q.computed
		if n > 1 {
			n = min(n, room)
			room -= n
		}
		if n == 0 || !s.reserve(q, q.computed+n) {
			continue
		}
		p := part{s: q, first: len(g.inputs), n: n, logits: -1}
		for pos := q.computed; pos < q.computed+n; pos++ {
			last := pos == len(q.tokens)-1
			if last {
				p.logits = wanted
				wanted++
			}
			g.inputs = append(g.inputs, input{token: q.tokens[pos], position: pos, cache: q.store.layers, logits: last})
		}
		s.parts = append(s.parts, p)
	}
}

// chunk is the number of prompt tokens of the next step.
func (s *scheduler) chunk() int {
	if s.e.chunk > 0 {
		return s.e.chunk
	}
	if s.perInput == 0 {
		return minChunk
	}
	target := freeStep
	if slices.ContainsFunc(s.active, func(q *sequence) bool { return len(q.tokens)-q.computed == 1 }) {
		target = busyStep
	}
	return min(max(int(target/s.perInput), minChunk), maxChunk)
}

func (s *scheduler) measure(inputs int, d time.Duration) {
	if inputs < minChunk {
		return // mostly the time to read the weights once
	}
	each := d / time.Duration(inputs)
	if s.perInput == 0 {
		s.perInput = each
	}
	s.perInput += (each - s.perInput) / 8
}

// reserve makes room for a sequence. When memory is short the youngest sequences
// leave the batch and are computed again later, with equal bits; it reports false
// when q itself had to.
func (s *scheduler) reserve(q *sequence, positions int) bool {
	for !s.memory.grow(q.store, positions) {
		last := len(s.active) - 1
		youngest := s.active[last]
		s.active = s.active[:last]
		s.memory.give(youngest.store)
		youngest.store, youngest.computed = nil, 0
		s.e.mu.Lock()
		if !youngest.cancelled.Load() { // else leave has looked into the queue already
			s.e.queue = slices.Insert(s.e.queue, 0, youngest)
		}
		s.e.active = len(s.active)
		s.e.mu.Unlock()
		if youngest == q {
			return false
		}
	}
	return true
}

// concludePart commits to the hidden states of a part and draws its token. Parts
// are concluded in parallel.
func (s *scheduler) concludePart(p *part) {
	q, g := p.s, s.graph
	for i := p.first; i < p.first+p.n; i++ {
		if g.bad[i] {
			p.finish = inference.FinishNumeric
			return
		}
	}
	// Positions that are computed again are committed to already.
	for pos := max(q.computed, int(q.leaves.Len())); pos < q.computed+p.n; pos++ {
		q.leaves.Append(g.leaves[p.first+pos-q.computed])
	}
	q.computed += p.n
	if p.logits < 0 {
		return
	}
	vocab := g.net.Vocab
	logits := g.logits[p.logits*vocab : (p.logits+1)*vocab]
	sampler := <-s.samplers
	defer func() { s.samplers <- sampler }()
	id, err := sampler.Sample(logits, &q.sampling, q.tally.counts, (*[32]byte)(&q.g.Tape), uint32(q.outputs()))
	if err == nil {
		p.token.ID = id
		err = q.logProbs(&p.token, sampler, logits)
	}
	if err != nil {
		p.finish = inference.FinishNumeric // Sample and LogProbs fail for no other reason
		return
	}
	p.token.Hidden, p.token.Positions = q.leaves.Root(), int(q.leaves.Len())
}

func (q *sequence) logProbs(t *inference.Token, sampler *kernel.Sampler, logits []float32) error {
	if !q.g.LogProbs && q.g.Top == 0 {
		return nil
	}
	top, value, err := sampler.LogProbs(nil, logits, q.g.Top, t.ID)
	if err != nil {
		return err
	}
	t.LogProb = value
	for _, p := range top {
		t.Top = append(t.Top, inference.TopLogProb{ID: p.Token, LogProb: p.Value})
	}
	return nil
}

// deliver hands over what came of a part and lets a finished sequence go.
func (s *scheduler) deliver(p *part) {
	q := p.s
	switch {
	case p.finish != inference.FinishOpen:
		q.out.end(p.finish, nil)
	case p.logits < 0:
		q.out.work()
		return
	default:
		q.tokens = append(q.tokens, p.token.ID)
		q.tally.add(p.token.ID, true)
		p.finish = q.finished(s.e.isEnd(p.token.ID))
		q.out.put(p.token, p.finish)
	}
	if p.finish == inference.FinishOpen {
		return
	}
	s.memory.give(q.store)
	q.store = nil
	s.e.mu.Lock()
	s.active = slices.DeleteFunc(s.active, func(a *sequence) bool { return a == q })
	s.e.active = len(s.active)
	s.e.mu.Unlock()
}
