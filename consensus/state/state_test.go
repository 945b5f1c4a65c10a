package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
	"github.com/gonka-mesh/mesh/consensus/state/proof"
)

// model is the state as a map.
type model map[string]string

// naive computes the app hash from the definition.
func (m model) appHash() mesh.Hash {
	var leaves []write
	var sum lattice
	for k, v := range m {
		if !ledger.Proven([]byte(k)) {
			sum.add([]byte(k), []byte(v))
			continue
		}
		path := proof.Path([]byte(k))
		leaves = append(leaves, write{path: path, leaf: proof.Leaf(path, []byte(v))})
	}
	return proof.AppHash(naiveRoot(leaves, 0), sum.hash())
}

func naiveRoot(leaves []write, level int) mesh.Hash {
	switch len(leaves) {
	case 0:
		return mesh.Hash{}
	case 1:
		return leaves[0].leaf
	}
	var side [2][]write
	for _, l := range leaves {
		bit := l.path[level/8] >> (7 - level%8) & 1
		side[bit] = append(side[bit], l)
	}
	return proof.Inner(naiveRoot(side[0], level+1), naiveRoot(side[1], level+1))
}

func (m model) apply(changes []ledger.Change) model {
	next := maps.Clone(m)
	for _, c := range changes {
		if c.Value == nil {
			delete(next, string(c.Key))
		} else {
			next[string(c.Key)] = string(c.Value)
		}
	}
	return next
}

// randomChanges writes and deletes among a few keys of four tables.
func randomChanges(r *rand.Rand, keys int) []ledger.Change {
	picked := map[string][]byte{}
	for range r.IntN(40) {
		key := fmt.Sprintf("%c%d", "ABab"[r.IntN(4)], r.IntN(keys))
		var value []byte
		if r.IntN(3) > 0 {
			value = make([]byte, 1+r.IntN(80))
			for i := range value {
				value[i] = byte(r.Uint32())
			}
			if !ledger.Proven([]byte(key)) && r.IntN(5) == 0 {
				value = []byte{}
			}
		}
		picked[key] = value
	}
	var out []ledger.Change
	for _, k := range slices.Sorted(maps.Keys(picked)) {
		out = append(out, ledger.Change{Key: []byte(k), Value: picked[k]})
	}
	return out
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func mustOpen(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = quiet()
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustCommit(t testing.TB, s *Store, height mesh.Height, changes []ledger.Change) mesh.Hash {
	t.Helper()
	hash, err := s.Stage(height, changes)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	return hash
}

// contents reads all of a reader.
func contents(r ledger.Reader) model {
	m := model{}
	r.Iterate(nil, func(k, v []byte) bool {
		m[string(k)] = string(v)
		return true
	})
	return m
}

func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// TestAgainstModel applies random blocks, some staged twice, some after a restart, and
// compares entries, app hash and proofs of every height with a map.
func TestAgainstModel(t *testing.T) {
	r := seeded(t)
	fs := vfs.NewMem()
	open := func() *Store { return mustOpen(t, Config{Dir: "/ledger", fs: fs, Keep: 70}) }
	s := open()
	defer func() { s.Close() }()
	if s.AppHash() != (model{}).appHash() {
		t.Fatal("an empty store has not the hash of nothing")
	}
	past := map[mesh.Height]model{}
	now := model{}
	const blocks = 200
	for h := mesh.Height(1); h <= blocks; h++ {
		if r.IntN(4) == 0 {
			if _, err := s.Stage(h, randomChanges(r, 60)); err != nil { // a proposal that loses
				t.Fatal(err)
			}
		}
		if r.IntN(10) == 0 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open()
		}
		changes := randomChanges(r, 60)
		view := s.View()
		before := now
		now = now.apply(changes)
		past[h] = now
		got := mustCommit(t, s, h, changes)
		if want := now.appHash(); got != want || s.AppHash() != want || s.Height() != h {
			t.Fatalf("height %d: app hash %s, want %s", h, got.Short(), want.Short())
		}
		if !maps.Equal(contents(s), now) {
			t.Fatalf("height %d: the store differs from the model", h)
		}
		if !maps.Equal(contents(view), before) || view.AppHash() != before.appHash() || view.Height() != h-1 {
			t.Fatalf("height %d: a view moved", h)
		}
		if err := view.Close(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			checkProof(t, s, past, h, mesh.Height(1+r.Uint64N(uint64(h))), r)
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}

// checkProof proves a random key at a height, if that is kept.
func checkProof(t *testing.T, s *Store, past map[mesh.Height]model, now, h mesh.Height, r *rand.Rand) {
	t.Helper()
	key := fmt.Appendf(nil, "%c%d", "AB"[r.IntN(2)], r.IntN(60))
	p, err := s.Prove(key, h)
	if err != nil {
		if now-h <= 70 {
			t.Fatalf("height %d at %d: %v", h, now, err)
		}
		return
	}
	if now-h > 70+bucketOf {
		t.Fatalf("height %d is still kept at %d", h, now)
	}
	decoded, err := proof.Unmarshal(p.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	value, present, err := proof.Verify(past[h].appHash(), decoded)
	if err != nil {
		t.Fatalf("height %d at %d, key %s: %v", h, now, key, err)
	}
	want, has := past[h][string(key)]
	if present != has || string(value) != want {
		t.Fatalf("height %d at %d, key %s: proven %x %v, want %x %v", h, now, key, value, present, want, has)
	}
}

// TestSameHashByAnyRoute feeds one history to stores that restart at different blocks,
// and the last state alone to another: the app hash is of the entries only.
func TestSameHashByAnyRoute(t *testing.T) {
	r := seeded(t)
	var blocks [][]ledger.Change
	for range 40 {
		blocks = append(blocks, randomChanges(r, 300))
	}
	now := model{}
	var want []mesh.Hash
	for _, b := range blocks {
		now = now.apply(b)
		want = append(want, now.appHash())
	}
	for _, every := range []int{1, 3, 7, 100} {
		fs := vfs.NewMem()
		s := mustOpen(t, Config{Dir: "/ledger", fs: fs})
		for i, b := range blocks {
			if i%every == every-1 {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = mustOpen(t, Config{Dir: "/ledger", fs: fs})
			}
			if got := mustCommit(t, s, mesh.Height(i+1), b); got != want[i] {
				t.Fatalf("restarts every %d blocks: another hash at %d", every, i+1)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var all []ledger.Change
	for _, k := range slices.Sorted(maps.Keys(now)) {
		all = append(all, ledger.Change{Key: []byte(k), Value: []byte(now[k])})
	}
	s := mustOpen(t, Config{Memory: true})
	defer s.Close()
	if mustCommit(t, s, 1, all) != want[len(want)-1] {
		t.Fatal("the last state has another hash when it comes at once")
	}
}

func account(i int) []byte {
	key := make([]byte, 33)
	key[0] = 'A'
	binary.BigEndian.PutUint64(key[1:], uint64(i)*0x9E3779B97F4A7C15)
	binary.BigEndian.PutUint64(key[9:], uint64(i)*0xD1B54A32D192ED03)
	return key
}

func randomAccounts(r *rand.Rand, accounts, writes int) []ledger.Change {
	picked := map[int]bool{}
	for range writes {
		picked[r.IntN(accounts)] = true
	}
	changes := make([]ledger.Change, 0, writes)
	for i := range picked {
		value := make([]byte, 60)
		for j := range value {
			value[j] = byte(r.Uint32())
		}
		changes = append(changes, ledger.Change{Key: account(i), Value: value})
	}
	slices.SortFunc(changes, func(a, b ledger.Change) int { return bytes.Compare(a.Key, b.Key) })
	return changes
}

// BenchmarkBlock is one block on disk: writes are proven accounts drawn at random.
func BenchmarkBlock(b *testing.B) {
	for _, c := range []struct{ accounts, writes int }{{10_000, 3000}, {100_000, 2000}, {1_000_000, 3000}} {
		b.Run(fmt.Sprintf("accounts=%d/writes=%d", c.accounts, c.writes), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			s := mustOpen(b, Config{Dir: b.TempDir()})
			defer s.Close()
			h := mesh.Height(1)
			for i := 0; i < c.accounts; i, h = i+10_000, h+1 {
				var changes []ledger.Change
				for j := i; j < min(i+10_000, c.accounts); j++ {
					changes = append(changes, ledger.Change{Key: account(j), Value: make([]byte, 60)})
				}
				slices.SortFunc(changes, func(a, b ledger.Change) int { return bytes.Compare(a.Key, b.Key) })
				mustCommit(b, s, h, changes)
			}
			blocks := make([][]ledger.Change, 16)
			for i := range blocks {
				blocks[i] = randomAccounts(r, c.accounts, c.writes)
			}
			var stage, commit, worst time.Duration
			cpu := cpuTime(b)
			n := 0
			for b.Loop() {
				start := time.Now()
				// The same accounts come again with other values.
				block := blocks[n%len(blocks)]
				for i := range block {
					block[i].Value[0]++
				}
				if _, err := s.Stage(h, block); err != nil {
					b.Fatal(err)
				}
				mid := time.Now()
				if err := s.Commit(); err != nil {
					b.Fatal(err)
				}
				end := time.Now()
				stage += mid.Sub(start)
				commit += end.Sub(mid)
				worst = max(worst, end.Sub(start))
				h++
				n++
			}
			b.ReportMetric(stage.Seconds()*1000/float64(n), "stage-ms")
			b.ReportMetric(commit.Seconds()*1000/float64(n), "commit-ms")
			b.ReportMetric(worst.Seconds()*1000, "worst-ms")
			b.ReportMetric((cpuTime(b)-cpu).Seconds()*1000/float64(n), "cpu-ms")
			m := s.db.Metrics()
			b.ReportMetric(float64(m.DiskSpaceUsage())/(1<<20), "disk-MB")
		})
	}
}

// cpuTime is what the process has used, background work of the database included.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestReadersBesideBlocks reads, views and proves while blocks are committed: whoever
// reads twice in a view sees one block.
func TestReadersBesideBlocks(t *testing.T) {
	s := mustOpen(t, Config{Memory: true, SnapshotEvery: 5})
	block := func(h mesh.Height) []ledger.Change {
		v := fmt.Appendf(nil, "%d", h)
		return []ledger.Change{{Key: []byte("A1"), Value: v}, {Key: []byte("A2"), Value: v}, {Key: []byte("b"), Value: v}}
	}
	mustCommit(t, s, 1, block(1))
	const blocks = 60
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for s.Height() < blocks {
				v := s.View()
				a, b := string(v.Get([]byte("A1"))), string(v.Get([]byte("b")))
				if want := fmt.Sprint(v.Height()); a != want || b != want || v.Err() != nil {
					t.Errorf("view of %s has %s and %s (%v)", want, a, b, v.Err())
				}
				p, err := s.Prove([]byte("A2"), v.Height())
				if err != nil {
					t.Error(err)
				}
				if value, present, err := proof.Verify(v.AppHash(), p); err != nil || !present || string(value) != a {
					t.Errorf("proof at %d: %q %v %v", v.Height(), value, present, err)
				}
				if err := v.Close(); err != nil {
					t.Error(err)
				}
				before := s.Height()
				if n, err := strconv.Atoi(string(s.Get([]byte("A1")))); err != nil || mesh.Height(n) < before {
					t.Errorf("height %d, entry %d: %v", before, n, err)
				}
			}
		})
	}
	for h := mesh.Height(2); h <= blocks; h++ {
		mustCommit(t, s, h, block(h))
	}
	readers.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCloseBesideView closes the store while a view is open: the database closes after
// it, without an error, and the view says what became of it.
func TestCloseBesideView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, Config{Memory: true})
		mustCommit(t, s, 1, []ledger.Change{{Key: []byte("A1"), Value: []byte("1")}})
		v := s.View()
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		synctest.Wait()
		select {
		case err := <-closed:
			t.Fatalf("the store closed under a view: %v", err)
		default:
		}
		if got := v.Get([]byte("A1")); got != nil || !errors.Is(v.Err(), ErrClosed) {
			t.Errorf("a view of a store that closes reads %q, %v", got, v.Err())
		}
		for range 2 {
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := <-closed; err != nil {
			t.Errorf("close: %v", err)
		}
	})
}
