package native

import (
	"cmp"
	"runtime"
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

	// idleCheck is how often an engine without requests looks for what to forget.
	idleCheck = time.Minute
)

// piece is what a step computes of one sequence.
type piece struct {
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
	active   []*sequence
	groups   []*group // with something to compute in this step
	pieces   []piece
	wanted   int                  // logits of this step
	samplers chan *kernel.Sampler // one for each thread
	cost     cost
	steps    int
	turns    int       // sequences that entered the batch
	places   int       // pieces of all steps
	checked  time.Time // when it was last looked for what to forget
	company  time.Time // when several groups were last served
	moved    bool      // a sequence left the batch for want of memory
	conclude func(lo, hi int)
}

func newScheduler(e *Engine, g *graph, m *memory) *scheduler {
	s := &scheduler{e: e, graph: g, memory: m, samplers: make(chan *kernel.Sampler, g.pool.Threads())}
	for range cap(s.samplers) {
		s.samplers <- new(kernel.Sampler)
	}
	s.conclude = func(lo, hi int) {
		for i := lo; i < hi; i++ {
			s.concludePiece(&s.pieces[i])
		}
	}
	return s
}

// run computes steps until the engine is closed.
func (s *scheduler) run() {
	defer close(s.e.done)
	idle := time.NewTimer(idleCheck)
	defer idle.Stop()
	for s.admit() {
		if s.step() {
			// Who takes the tokens would otherwise wait for a processor until the next step is over.
			runtime.Gosched()
			continue
		}
		// There is nothing to compute before somebody asks, reads or leaves.
		if len(s.active) == 0 {
			s.e.mu.Lock()
			s.memory.rest()
			s.e.mu.Unlock()
		}
		idle.Reset(idleCheck)
		select {
		case <-s.e.wake:
		case <-idle.C:
		}
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
	now := e.clock()
	s.memory.now = now
	if now.Sub(s.checked) > idleCheck {
		s.checked = now
		s.memory.expire()
	}
	for i := len(s.active) - 1; i >= 0; i-- {
		if q := s.active[i]; q.cancelled.Load() {
			s.remove(q)
		}
	}
	if s.memory.owed > 0 { // whose readers do not read would hold it up
		for i := len(s.active) - 1; i >= 0; i-- {
			if q := s.active[i]; q.out.full() {
				s.putBack(q)
			}
		}
	}
	for s.memory.owed == 0 {
		i := next(e.queue, now)
		if i < 0 || !s.enter(e.queue[i]) {
			break
		}
		e.queue = slices.Delete(e.queue, i, i+1)
	}
	e.pages = s.memory.load()
	return true
}

// enter takes a sequence of the queue into the batch. It reports false when it has to
// wait: nobody behind it in its turn overtakes it. Called with e.mu held.
func (s *scheduler) enter(q *sequence) bool {
	for {
		if len(s.active) >= s.e.slots && !s.makeRoom(q, func(g *group) int { return g.active }, 1) {
			return false
		}
		store, computed, err := s.memory.take(q.g.Group, q.tokens)
		if err != nil {
			q.out.end(inference.FinishAborted, err)
			return true
		}
		if store == nil {
			if s.makeRoom(q, s.memory.usedBy, pagesFor(len(q.tokens))) {
				continue
			}
			return false
		}
		q.store, q.computed = store, computed
		q.commit()
		s.turns++
		s.active = append(s.active, q)
		q.group.active++
		q.group.turn = s.turns
		s.e.active = len(s.active)
		return true
	}
}

// makeRoom takes a sequence out of the batch for q: one whose reader does not read, or
// else one of the group that has most, if that has still as much as q's group then.
// It is computed to its end later, with equal bits, from what is kept of it.
func (s *scheduler) makeRoom(q *sequence, has func(*group) int, need int) bool {
	var v *sequence
	for _, a := range s.active {
		switch {
		case v == nil, a.out.full() && !v.out.full():
			v = a
		case v.out.full() && !a.out.full():
		case a.group == v.group && yields(a, v), has(a.group) > has(v.group):
			v = a
		}
	}
	if v == nil || !v.out.full() && (v.group == q.group || has(v.group) < has(q.group)+2*need) {
		return false
	}
	s.putBack(v)
	return true
}

// putBack moves a sequence from the batch into the queue. Called with e.mu held.
func (s *scheduler) putBack(q *sequence) {
	s.remove(q)
	q.computed = 0
	if !q.cancelled.Load() { // else leave has looked into the queue already
		s.e.queue = append(s.e.queue, q)
	}
	s.moved = true
}

// remove takes a sequence out of the batch and frees its memory. Called with e.mu held.
func (s *scheduler) remove(q *sequence) {
	i := slices.Index(s.active, q)
	s.active = slices.Delete(s.active, i, i+1)
	s.memory.give(q.store)
	q.store = nil
	q.group.active--
	s.e.active, s.e.pages = len(s.active), s.memory.load()
	select {
	case s.e.freed <- struct{}{}:
	default:
	}
}

// step computes one step of the batch: one token of each answer in the making, and
// a chunk of the prompts, as far as their groups' parts go. It reports false when
// there is nothing to do.
func (s *scheduler) step() bool {
	if len(s.active) == 0 {
		return false // and does not wait for checks that compute
	}
	s.e.compute.Lock()
	defer s.e.compute.Unlock()
	s.moved = false
	start := s.e.clock()
	s.plan(start)
	if len(s.pieces) == 0 {
		return s.moved
	}
	s.graph.step()
	s.graph.pool.Run(len(s.pieces), 1, s.conclude)
	s.cost.observe(len(s.graph.inputs), s.e.clock().Sub(start))
	for i := range s.pieces {
		s.deliver(&s.pieces[i])
		s.pieces[i] = piece{}
	}
	return true
}

// plan chooses the inputs of a step.
func (s *scheduler) plan(now time.Time) {
	s.graph.inputs, s.pieces, s.wanted = s.graph.inputs[:0], s.pieces[:0], 0
	s.steps++
	room := s.survey()
	if len(s.groups) == 0 {
		return
	}
	s.portion(now)
	for _, g := range s.groups {
		room -= s.serve(g, room)
	}
}

// survey finds what could be computed, by group, and returns how many prompt tokens
// the step may take.
func (s *scheduler) survey() (room int) {
	clear(s.groups)
	s.groups = s.groups[:0]
	decoding := 0
	for _, q := range s.active {
		if q.out.full() {
			continue
		}
		g := q.group
		if g.step != s.steps {
			g.begin(s.steps)
			s.groups = append(s.groups, g)
		}
		g.fee = min(g.fee, q.g.Fee)
		if len(q.tokens)-q.computed == 1 {
			g.decoding = append(g.decoding, q)
			decoding++
		} else {
			g.prompts = append(g.prompts, q)
		}
	}
	room = s.chunk(decoding)
	for _, g := range s.groups {
		g.want = len(g.decoding)
		for _, q := range g.prompts {
			g.want += min(len(q.tokens)-q.computed, room)
		}
	}
	return room
}

// chunk is the number of prompt tokens of the next step. They may take as long as the
// answers in it do, so that neither holds up the other to more than twice its time.
func (s *scheduler) chunk(decoding int) int {
	switch {
	case s.e.chunk > 0:
		return s.e.chunk
	case s.cost.each == 0:
		return minChunk
	case decoding == 0:
		return min(max(int(freeStep/s.cost.each), minChunk), maxChunk)
	}
	return min(max(int(busyStep/s.cost.each), decoding+int(s.cost.base()), minChunk), maxChunk)
}

// portion gives each group its part of the step.
func (s *scheduler) portion(now time.Time) {
	if len(s.groups) > 1 {
		low := s.groups[0].fee
		for _, g := range s.groups {
			low = min(low, g.fee)
		}
		for _, g := range s.groups {
			g.weight = weightOf(g.fee, low)
		}
		s.company = now
		divide(s.groups, s.cost.base())
		return
	}
	g := s.groups[0]
	g.get = g.want
	if now.Sub(s.company) < companyFor {
		// Four times what a single token takes: enough for the weights to be well used.
		g.get = min(g.want, int(4+3*s.cost.base()))
	}
}

// serve adds a group's part to the step and returns how many prompt tokens that has.
func (s *scheduler) serve(g *group, room int) (prompt int) {
	left := g.get
	// A part that is too small for both is given to answers and prompts by turns.
	g.flip = !g.flip && len(g.prompts) > 0 && len(g.decoding) >= left
	if g.flip {
		prompt = s.servePrompts(g, min(left, room))
		left -= prompt
	}
	// Those that had to wait come first.
	slices.SortFunc(g.decoding, func(a, b *sequence) int { return cmp.Compare(a.place, b.place) })
	for _, q := range g.decoding {
		if left > 0 && s.add(q, 1) {
			left--
		}
	}
	if !g.flip {
		prompt = s.servePrompts(g, min(left, room))
	}
	return prompt
}

// servePrompts adds prompt tokens of a group, the oldest request's first.
func (s *scheduler) servePrompts(g *group, room int) (taken int) {
	slices.SortFunc(g.prompts, func(a, b *sequence) int { return cmp.Compare(a.number, b.number) })
	for _, q := range g.prompts {
		if taken >= room {
			break
		}
		if q.store == nil {
			continue // it had to leave for another
		}
		q.computed = s.memory.advance(q.store, q.tokens, q.computed)
		q.commit()
		if n := min(len(q.tokens)-q.computed, room-taken); s.add(q, n) {
			taken += n
		}
	}
	return taken
}

// add puts the next n inputs of a sequence into the step, if there is memory.
func (s *scheduler) add(q *sequence, n int) bool {
	if q.store == nil || !s.reserve(q, q.computed+n) {
		return false
	}
	g := s.graph
	p := piece{s: q, first: len(g.inputs), n: n, logits: -1}
	for pos := q.computed; pos < q.computed+n; pos++ {
		last := pos == len(q.tokens)-1
		if last {
			p.logits = s.wanted
			s.wanted++
		}
		g.inputs = append(g.inputs, input{token: q.tokens[pos], position: pos, cache: q.store.layers, logits: last})
	}
	s.pieces = append(s.pieces, p)
	s.places++
	q.turn, q.place = s.steps, s.places
	return true
}

// reserve makes room for a sequence. When memory is short, those that yield first
// leave the batch and are computed again later; it reports false when q itself had
// to, or when all others are part of the step already.
func (s *scheduler) reserve(q *sequence, positions int) bool {
	for !s.memory.grow(q.store, positions) {
		v := q
		for _, a := range s.active {
			if a.turn != s.steps && yields(a, v) {
				v = a
			}
		}
		s.e.mu.Lock()
		s.putBack(v)
		s.e.mu.Unlock()
		if v == q {
			return false
		}
	}
	return true
}

// concludePiece commits to the hidden states of a piece and draws its token. Pieces
// are concluded in parallel.
func (s *scheduler) concludePiece(p *piece) {
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
	if err := q.draw(&p.token, sampler, logits); err != nil {
		p.finish = inference.FinishNumeric // it fails on any host alike
		return
	}
	p.token.Hidden, p.token.Positions = q.leaves.Root(), int(q.leaves.Len())
}

// draw chooses a token.
func (q *sequence) draw(t *inference.Token, sampler *kernel.Sampler, logits []float32) (err error) {
	if q.matcher != nil {
		if q.sampling.Allowed, err = q.matcher.Mask(); err != nil {
			return err
		}
	}
	t.ID, err = sampler.Sample(logits, &q.sampling, q.tally.counts, (*[32]byte)(&q.g.Tape), uint32(q.outputs()))
	if err == nil && q.matcher != nil {
		err = q.matcher.Accept(t.ID)
	}
	if err != nil {
		return err
	}
	return q.logProbs(t, sampler, logits)
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

// deliver hands over what came of a piece and lets a finished sequence go.
func (s *scheduler) deliver(p *piece) {
	q := p.s
	if p.finish == inference.FinishOpen {
		for i := range p.n {
			pos := q.computed - p.n + i
			s.memory.publish(q.store, pos, q.tokens[pos], s.graph.leaves[p.first+i])
		}
	}
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
	s.e.mu.Lock()
	s.remove(q)
	s.e.mu.Unlock()
}
