package native

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference"
)

// bench drives an engine's scheduler step by step, in a time of its own in which a
// step takes base and one more unit for each input.
type bench struct {
	t    *testing.T
	e    *Engine
	s    *scheduler
	now  time.Time
	base time.Duration
}

const unit = time.Millisecond

func newBench(t *testing.T, cfg Config, base time.Duration) *bench {
	t.Helper()
	if cfg.File == nil {
		cfg.File = small(t)
	}
	e, s, err := open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, e: e, s: s, now: time.Unix(1e9, 0), base: base}
	e.clock = func() time.Time { return b.now }
	t.Cleanup(func() {
		e.mu.Lock()
		e.closed = true
		e.mu.Unlock()
		s.run() // ends at once
		e.Close()
	})
	return b
}

// ask submits a request of a group.
func (b *bench) ask(group byte, g inference.Generation) *sequence {
	b.t.Helper()
	g.Group = mesh.Address{group}
	q, err := b.e.newSequence(g)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.e.submit(q); err != nil {
		b.t.Fatal(err)
	}
	return q
}

// step computes one step and returns how long it took.
func (b *bench) step() time.Duration {
	b.t.Helper()
	b.s.cost = cost{one: b.base + unit, each: unit}
	b.s.admit()
	if !b.s.step() {
		b.t.Fatal("there is nothing to compute")
	}
	d := b.base + time.Duration(len(b.s.graph.inputs))*unit
	b.now = b.now.Add(d)
	return d
}

// read takes what an answer has.
func (q *sequence) read() ([]inference.Token, bool) {
	tokens, _, finish, _ := q.out.take(nil)
	return tokens, finish != inference.FinishOpen
}

// finish computes steps, all others being read, until q's answer is complete, and
// returns when that was.
func (b *bench) finish(q *sequence, others ...*sequence) time.Duration {
	b.t.Helper()
	begin := b.now
	for range 10000 {
		b.step()
		for _, o := range others {
			o.read()
		}
		if _, end := q.read(); end {
			b.e.leave(q)
			return b.now.Sub(begin)
		}
	}
	b.t.Fatal("the answer does not end")
	return 0
}

// plain is a request that is reproducible and long enough to end with its length.
func plain(seed uint64, prompt, tokens int) inference.Generation {
	g := generation(seed, prompt, tokens)
	g.Sampling, g.LogProbs, g.Top = nil, false, 0
	return g
}

// TestLightPayer holds that a payer with one request after the other is slowed down
// to little more than half by another who fills the batch, whatever with, on machines
// where a step's inputs cost most and where the weights do; and that the other is
// served as well.
func TestLightPayer(t *testing.T) {
	for _, base := range []time.Duration{unit / 4, 8 * unit} {
		for _, test := range []struct {
			name           string
			prompt, tokens int
		}{{"answers", 4, 400}, {"prompts", 480, 8}} {
			t.Run(test.name+" "+base.String(), func(t *testing.T) {
				b := newBench(t, Config{Slots: 32}, base)
				alone := b.finish(b.ask(1, plain(1, 12, 10)))
				var heavy []*sequence
				for i := range 64 {
					heavy = append(heavy, b.ask(2, plain(uint64(100+i), test.prompt, test.tokens)))
				}
				for range 10 {
					b.step()
				}
				served, begin, light := 0, b.now, time.Duration(0)
				for i := range 12 {
					q := b.ask(1, plain(uint64(i+2), 12, 10))
					took := b.finish(q, heavy...)
					light += took
					// The first one waits for the end of a whole step.
					if limit := 5 * alone / 2; i > 0 && took > limit {
						t.Errorf("request %d took %s, alone %s", i, took, alone)
					}
					// The light payer thinks, the heavy one is computed meanwhile.
					for think := b.now.Add(alone); b.now.Before(think); {
						b.step()
						for _, o := range heavy {
							o.read()
						}
					}
				}
				for _, q := range heavy {
					served += q.computed
				}
				took := b.now.Sub(begin)
				t.Logf("alone %s, beside the heavy payer %s on average, who had %d tokens computed in %s", alone, light/12, served, took)
				if served < int(took/(unit+base)/3) {
					t.Error("the heavy payer was not served")
				}
			})
		}
	}
}

// TestTurns holds that all payers get equal parts, and that within a payer's part its
// requests take turns.
func TestTurns(t *testing.T) {
	b := newBench(t, Config{Slots: 32}, unit)
	var all []*sequence
	count := make(map[byte]int)
	for i := range 30 {
		group := byte(min(i, 3)) // three with one request, one with 27
		all = append(all, b.ask(group, plain(uint64(i), 3, 450)))
	}
	least, most := math.MaxInt, 0
	run := func(steps int) {
		for range steps {
			b.step()
			for _, q := range all {
				q.read()
			}
		}
	}
	run(100) // until all prompts are computed
	before := make([]int, len(all))
	for i, q := range all {
		before[i] = q.outputs()
	}
	run(300)
	for i, q := range all {
		n := q.outputs() - before[i]
		count[byte(min(i, 3))] += n
		if i >= 3 {
			least, most = min(least, n), max(most, n)
		}
	}
	t.Logf("tokens by payer: %v; of one request of the heavy one %d to %d", count, least, most)
	for g := range byte(3) {
		if count[g] < count[3]/4 {
			t.Errorf("a payer with one request got %d tokens, the one with 27 got %d", count[g], count[3])
		}
	}
	if most-least > 2 {
		t.Errorf("requests of one payer got %d to %d tokens", least, most)
	}
}

// TestNewcomer holds that the first token of one more request of the same payer, while
// 15 others are decoded, takes at most twice its time alone.
func TestNewcomer(t *testing.T) {
	for _, base := range []time.Duration{unit / 4, 8 * unit} {
		for _, same := range []bool{true, false} {
			if !same && base < unit {
				continue // each payer's part is a sixteenth of a machine that is busy
			}
			b := newBench(t, Config{Slots: 32}, base)
			first := func(q *sequence, others ...*sequence) time.Duration {
				begin := b.now
				for {
					b.step()
					for _, o := range others {
						o.read()
					}
					if tokens, _ := q.read(); len(tokens) > 0 {
						b.e.leave(q)
						return b.now.Sub(begin)
					}
				}
			}
			alone := first(b.ask(0, plain(1, 128, 2)))
			var others []*sequence
			for i := range 15 {
				group := byte(0)
				if !same {
					group = byte(i + 1)
				}
				others = append(others, b.ask(group, plain(uint64(i+10), 5, 450)))
			}
			for range 20 {
				b.step()
				for _, o := range others {
					o.read()
				}
			}
			beside := first(b.ask(0, plain(2, 128, 2)), others...)
			t.Logf("base %s, one payer %v: alone %s, beside 15 others %s", base, same, alone, beside)
			if beside > 2*alone {
				t.Errorf("base %s: first token after %s beside others, %s alone", base, beside, alone)
			}
		}
	}
}

// TestNext holds the order of the queue: payers in turn, then fee, then age, and that
// waiting makes up for any fee.
func TestNext(t *testing.T) {
	now := time.Unix(1e9, 0)
	idle, busy := &group{}, &group{active: 3}
	q := func(number int, g *group, fee mesh.Amount, waited time.Duration) *sequence {
		s := &sequence{number: number, group: g, since: now.Add(-waited), out: newOutbox()}
		s.g.Fee = fee
		return s
	}
	stalled := q(9, idle, 1000, 0)
	stalled.out.tokens = make([]inference.Token, maxWaiting)
	for _, test := range []struct {
		name  string
		queue []*sequence
		want  int
	}{
		{"empty", nil, -1},
		{"oldest", []*sequence{q(2, idle, 0, 0), q(1, idle, 0, 0)}, 1},
		{"fee", []*sequence{q(1, idle, 5, 0), q(2, idle, 9, 0)}, 1},
		{"age against a fee", []*sequence{q(1, idle, 0, 16*aging), q(2, idle, 1000, 0)}, 0},
		{"payers in turn", []*sequence{q(1, busy, 0, time.Hour), q(2, idle, 0, 0)}, 1},
		{"a fee does not buy all turns", []*sequence{q(1, busy, math.MaxUint64, 0), q(2, idle, 0, 0)}, 1},
		{"reader does not read", []*sequence{stalled, q(1, idle, 0, 0)}, 1},
		{"nobody reads", []*sequence{stalled}, -1},
	} {
		if got := next(test.queue, now); got != test.want {
			t.Errorf("%s: place %d is next, want %d", test.name, got, test.want)
		}
	}
}

// TestFee holds that a payer who bids more has a larger part, and not all of it.
func TestFee(t *testing.T) {
	for _, test := range []struct {
		fee, low mesh.Amount
		want     int
	}{{0, 0, 1}, {1, 0, 2}, {100, 100, 1}, {199, 100, 1}, {201, 100, 2}, {1 << 40, 5, maxWeight}, {math.MaxUint64, 0, maxWeight}, {math.MaxUint64, math.MaxUint64, 1}} {
		if got := weightOf(test.fee, test.low); got != test.want {
			t.Errorf("a fee of %d where %d is the lowest has the weight %d, want %d", test.fee, test.low, got, test.want)
		}
	}
	b := newBench(t, Config{Slots: 32}, unit)
	var all []*sequence
	for i := range 20 {
		g := plain(uint64(i), 3, 450)
		g.Fee = mesh.Amount(i % 2 * 1000)
		all = append(all, b.ask(byte(i%2), g))
	}
	var count [2]int // some part goes to prompts
	for range 40 {
		b.step()
		for _, q := range all {
			q.read()
		}
	}
	for i, q := range all {
		count[i%2] += q.outputs()
	}
	if count[0]*3 > count[1] || count[0]*9 < count[1] {
		t.Errorf("%d tokens without a fee, %d with one, want a quarter or somewhat less", count[0], count[1])
	}
}

// TestStalled holds that an answer that nobody reads is computed no further than its
// bound, and that its slot goes to who waits.
func TestStalled(t *testing.T) {
	b := newBench(t, Config{Slots: 2}, unit)
	slow := b.ask(1, plain(1, 4, 300))
	other := b.ask(2, plain(2, 4, 300))
	for range 200 {
		b.step()
		other.read()
	}
	if n := slow.outputs(); n != maxWaiting {
		t.Errorf("%d tokens are computed for a reader that does not read, want %d", n, maxWaiting)
	}
	third := b.ask(3, plain(3, 4, 20))
	b.finish(third, other)
	if slow.store != nil || !slices.Contains(b.e.queue, slow) {
		t.Error("it holds a slot")
	}
	slow.read()
	b.finish(slow, other)
}

// TestSlotTurns holds that a payer who waits gets a slot from one who has all of them.
func TestSlotTurns(t *testing.T) {
	b := newBench(t, Config{Slots: 8}, unit)
	var heavy []*sequence
	for i := range 40 {
		heavy = append(heavy, b.ask(2, plain(uint64(i), 10, 400)))
	}
	for range 5 {
		b.step()
	}
	light := b.ask(1, plain(99, 10, 5))
	b.step()
	if light.store == nil {
		t.Error("it waits for a slot")
	}
	b.finish(light, heavy...)
	if n := len(b.s.active); n < 7 {
		t.Errorf("%d slots are taken", n)
	}
}
