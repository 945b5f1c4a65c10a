package state

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger"
)

func damage(t *testing.T, path string, r interface{ IntN(int) int }) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 {
		return
	}
	for i := range 1 + len(b)/64 {
		b[(i*64+r.IntN(64))%len(b)] ^= 0x55
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func chunksOf(t *testing.T, s *Store, snap Snapshot) [][]byte {
	t.Helper()
	var out [][]byte
	for i := range snap.Chunks {
		b, err := s.LoadChunk(snap.Height, snap.Format, i)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// restored takes a snapshot of s into an empty store and returns the contents.
func restored(t *testing.T, s *Store, snap Snapshot, want mesh.Hash) model {
	t.Helper()
	to := mustOpen(t, Config{Memory: true})
	defer to.Close()
	r, err := to.Restore(snap.Height, snap.Metadata, want)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range chunksOf(t, s, snap) {
		done, err := r.Apply(uint32(i), c)
		if err != nil || done != (i == int(snap.Chunks)-1) {
			t.Fatal(i, done, err)
		}
	}
	if to.Height() != snap.Height || to.AppHash() != want {
		t.Fatalf("restored height %d with hash %s", to.Height(), to.AppHash().Short())
	}
	return contents(to)
}

// big fills a store with more than two chunks.
func big(t *testing.T, s *Store) model {
	m := model{}
	for h := mesh.Height(1); h <= 3; h++ {
		var changes []ledger.Change
		for i := range 40 {
			key := fmt.Appendf(nil, "%c%d/%02d", "Ab"[i/20], h, i)
			changes = append(changes, ledger.Change{Key: key, Value: bytes.Repeat([]byte{byte(i + 1)}, 100_000)})
		}
		mustCommit(t, s, h, changes)
		m = m.apply(changes)
	}
	return m
}

func TestSnapshotRestore(t *testing.T) {
	s := mustOpen(t, Config{Memory: true, SnapshotKeep: 2})
	defer s.Close()
	m := big(t, s)
	if err := s.TakeSnapshot(); err != nil {
		t.Fatal(err)
	}
	list, err := s.Snapshots()
	if err != nil || len(list) != 1 || list[0].Chunks < 3 || list[0].Height != 3 {
		t.Fatal(list, err)
	}
	snap := list[0]
	chunks := chunksOf(t, s, snap)
	if got := restored(t, s, snap, s.AppHash()); !maps.Equal(got, m) {
		t.Fatal("the restored state differs")
	}

	fs := vfs.NewMem()
	to := mustOpen(t, Config{Dir: "/ledger", fs: fs})
	begin := func(hash mesh.Hash) *Restore {
		t.Helper()
		r, err := to.Restore(3, snap.Metadata, hash)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	// A bad chunk is named, and may come again; one out of turn is refused.
	r := begin(s.AppHash())
	bad := bytes.Clone(chunks[0])
	bad[100] ^= 1
	if _, err := r.Apply(0, bad); !errors.Is(err, ErrChunk) {
		t.Fatalf("a bad chunk: %v", err)
	}
	if _, err := r.Apply(1, chunks[1]); err == nil || errors.Is(err, ErrChunk) {
		t.Fatalf("a chunk out of turn: %v", err)
	}
	if _, err := to.Stage(1, nil); err == nil {
		t.Fatal("a block was staged during a restore")
	}
	for i, c := range chunks[:2] {
		if _, err := r.Apply(uint32(i), c); err != nil {
			t.Fatal(err)
		}
	}
	// The process dies here.
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	to = mustOpen(t, Config{Dir: "/ledger", fs: fs})
	if to.Height() != 0 || len(contents(to)) != 0 {
		t.Fatal("half a restore was left")
	}
	// Another app hash than the trusted one.
	r = begin(mesh.Hash{1})
	for i, c := range chunks {
		done, err := r.Apply(uint32(i), c)
		if done || (err != nil) != (i == len(chunks)-1) {
			t.Fatal(i, done, err)
		}
	}
	if to.Height() != 0 || len(contents(to)) != 0 || to.AppHash() != (model{}).appHash() {
		t.Fatal("a state with the wrong hash was left")
	}
	// A second restore ends the first; an aborted one leaves nothing.
	first := begin(s.AppHash())
	second := begin(s.AppHash())
	if _, err := first.Apply(0, chunks[0]); err == nil {
		t.Fatal("a restore that was replaced goes on")
	}
	if _, err := second.Apply(0, chunks[0]); err != nil {
		t.Fatal(err)
	}
	if err := second.Abort(); err != nil {
		t.Fatal(err)
	}
	if len(contents(to)) != 0 {
		t.Fatal("an aborted restore left something")
	}
	r = begin(s.AppHash())
	for i, c := range chunks {
		if _, err := r.Apply(uint32(i), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	to = mustOpen(t, Config{Dir: "/ledger", fs: fs})
	defer to.Close()
	if !maps.Equal(contents(to), m) || to.Height() != 3 {
		t.Fatal("the restored state is gone after a restart")
	}
	next := []ledger.Change{{Key: []byte("A4"), Value: []byte("x")}}
	if mustCommit(t, to, 4, next) != mustCommit(t, s, 4, next) {
		t.Fatal("the block after a restore has another hash")
	}
	if _, err := to.Restore(3, snap.Metadata, s.AppHash()); err == nil {
		t.Fatal("a restore over a state began")
	}
}

// TestSnapshotsInTheBackground are made while blocks go on, every fourth block, and
// the last two stay.
func TestSnapshotsInTheBackground(t *testing.T) {
	r := seeded(t)
	fs := vfs.NewMem()
	s := mustOpen(t, Config{Dir: "/ledger", fs: fs, SnapshotEvery: 4})
	states := []model{{}}
	for h := 1; h <= 20; h++ {
		changes := randomChanges(r, 300)
		states = append(states, states[h-1].apply(changes))
		mustCommit(t, s, mesh.Height(h), changes)
		if h%4 == 0 { // let it end, so that the next one is not left out
			waitIdle(s)
		}
	}
	list, err := s.Snapshots()
	if err != nil {
		t.Fatal(err)
	}
	var heights []mesh.Height
	for _, snap := range list {
		heights = append(heights, snap.Height)
		if got := restored(t, s, snap, states[snap.Height].appHash()); !maps.Equal(got, states[snap.Height]) {
			t.Fatalf("the snapshot of height %d differs", snap.Height)
		}
	}
	if !slices.Equal(heights, []mesh.Height{20, 16}) {
		t.Fatalf("snapshots of heights %v", heights)
	}
	if _, err := s.LoadChunk(12, SnapshotFormat, 0); err == nil {
		t.Fatal("a chunk of a dropped snapshot is served")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// waitIdle waits until no call is under way.
func waitIdle(s *Store) { s.calls.wait() }

func FuzzChunk(f *testing.F) {
	chunk := appendEntry(appendEntry([]byte{SnapshotFormat}, []byte("A1"), []byte("x")), []byte("b"), nil)
	f.Add(chunk, []byte{})
	f.Add(chunk, []byte("A1"))
	f.Add([]byte{1, 0x81, 0, 'a', 0}, []byte{})
	f.Fuzz(func(t *testing.T, b, last []byte) {
		entries, err := decodeChunk(b, last)
		if err != nil {
			return
		}
		again := []byte{SnapshotFormat}
		for _, e := range entries {
			if bytes.Compare(e.Key, last) <= 0 {
				t.Fatal("not sorted")
			}
			again, last = appendEntry(again, e.Key, e.Value), e.Key
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x encodes as %x", b, again)
		}
	})
}

func FuzzMetadata(f *testing.F) {
	f.Add(newSnapshot(7, []mesh.Hash{{1}, {2}}).Metadata)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, chunks, err := decodeMetadata(b)
		if err == nil && !bytes.Equal(newSnapshot(h, chunks).Metadata, b) {
			t.Fatalf("%x encodes as something else", b)
		}
	})
}

func FuzzPage(f *testing.F) {
	f.Add((&page{3: {kind: leaf, hash: mesh.Hash{1}, key: []byte("A")}, 9: {kind: inner}}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePage(b)
		if err == nil && !bytes.Equal(p.encode(), b) {
			t.Fatalf("%x encodes as something else", b)
		}
	})
}
