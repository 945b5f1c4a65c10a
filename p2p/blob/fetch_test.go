package blob

import (
	"context"
	"errors"
	"iter"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

const testChunk = 64 << 10

// dies sends so many bytes, then the whole peer is gone.
func dies(after int) wrapFunc {
	return func(p *testPeer, protocol string, conn net.Conn) net.Conn {
		return onBlob(func(conn net.Conn, sent int, b []byte) (int, error) {
			if sent < after {
				return conn.Write(b)
			}
			conn.Write(b[:len(b)/2])
			p.ln.Close()
			p.cancel()
			return 0, net.ErrClosed
		})(p, protocol, conn)
	}
}

// stalls sends so many bytes per stream and then nothing, without closing it.
func stalls(after int) wrapFunc {
	return func(p *testPeer, protocol string, conn net.Conn) net.Conn {
		return onBlob(func(conn net.Conn, sent int, b []byte) (int, error) {
			if sent < after {
				return conn.Write(b)
			}
			<-p.ctx.Done()
			return 0, net.ErrClosed
		})(p, protocol, conn)
	}
}

// falseManifest answers with the manifest of another blob.
func falseManifest(_ *testPeer, protocol string, conn net.Conn) net.Conn {
	if protocol == ProtocolManifest {
		p2p.WriteMessage(conn, &p2ppb.ManifestAnswer{Manifest: &p2ppb.Manifest{
			Size: 1, ChunkSize: testChunk, Chunks: make([]byte, 32)}})
	}
	return conn
}

func garbage(_ *testPeer, protocol string, conn net.Conn) net.Conn {
	conn.Write(slices.Repeat([]byte{0xff}, 100))
	return conn
}

// absent has an empty store.
func absent(p *testPeer, _ string, conn net.Conn) net.Conn {
	p.server.cfg.Store.Remove(p.server.cfg.Store.List()[0].Root)
	return conn
}

func TestFetch(t *testing.T) {
	const size = 3<<20 + 12345
	tests := []struct {
		name  string
		peers []wrapFunc
		liars []int // peers that must have been penalised, and no others
		maybe int   // one more than the peer that may have been

	}{
		{name: "one source", peers: []wrapFunc{nil}},
		{name: "four sources", peers: []wrapFunc{nil, nil, nil, nil}},
		{name: "a liar from the start", peers: []wrapFunc{liar(0), slow(5 * time.Millisecond)}, liars: []int{0}},
		{name: "a liar after some good chunks", peers: []wrapFunc{slow(5 * time.Millisecond), liar(6 * testChunk)}, liars: []int{1}},
		{name: "only one of four is honest", peers: []wrapFunc{liar(0), liar(testChunk), slow(5 * time.Millisecond), liar(2 * testChunk)}, liars: []int{0, 1, 3}},
		{name: "one dies half-way", peers: []wrapFunc{dies(size / 4), slow(time.Millisecond)}},
		{name: "one stalls", peers: []wrapFunc{stalls(testChunk), slow(time.Millisecond)}},
		{name: "one stalls at once", peers: []wrapFunc{stalls(0), nil}},
		{name: "a false manifest", peers: []wrapFunc{falseManifest, nil}, maybe: 1},
		{name: "garbage", peers: []wrapFunc{garbage, slow(5 * time.Millisecond)}, liars: []int{0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			origin, root, data := testBlob(t, size, testChunk)
			n := newNet(t, false)
			var peers []*testPeer
			for _, wrap := range tt.peers {
				peers = append(peers, n.add(t, origin, wrap))
			}
			store := testStore(t, testChunk)
			var last uint64
			path, err := n.fetcher(store, peers...).Fetch(t.Context(), root, Options{Progress: func(done, total uint64, sources int) {
				if done < last || done > size || total != 0 && total != size {
					t.Errorf("progress %d of %d after %d", done, total, last)
				}
				last = done
			}})
			if err != nil {
				t.Fatal(err)
			}
			wantFile(t, path, data)
			if last != size {
				t.Errorf("progress ended at %d of %d", last, size)
			}
			for i, p := range peers {
				if got := n.points(p.addr) > 0; got != slices.Contains(tt.liars, i) && i != tt.maybe-1 {
					t.Errorf("peer %d penalised: %v", i, got)
				}
			}
			if err := store.Verify(t.Context(), root, nil); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(store.path(root, journalFile)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the journal is still there: %v", err)
			}
		})
	}
}

// A liar is asked for nothing more once one of its chunks was found wrong, and
// no byte of it reaches the disk.
func TestLiarIsNotAskedAgain(t *testing.T) {
	origin, root, _ := testBlob(t, 4<<20, testChunk)
	n := newNet(t, false)
	bad, good := n.add(t, origin, liar(0)), n.add(t, origin, slow(5*time.Millisecond))
	if _, err := n.fetcher(testStore(t, testChunk), bad, good, bad).Fetch(t.Context(), root, Options{}); err != nil {
		t.Fatal(err)
	}
	// It may be asked ahead while its first chunks are being hashed.
	if got := len(bad.asked()); got > 16 {
		t.Errorf("the liar was asked for %d of 64 chunks", got)
	}
	if bad.dials != 1 || n.points(bad.addr) != pointsLie {
		t.Errorf("%d streams to the liar, %d points", bad.dials, n.points(bad.addr))
	}
}

func TestFetchFalseManifestOnly(t *testing.T) {
	origin, root, _ := testBlob(t, 1<<20, testChunk)
	n := newNet(t, false)
	p := n.add(t, origin, falseManifest)
	store := testStore(t, testChunk)
	_, err := n.fetcher(store, p).Fetch(t.Context(), root, Options{})
	if err == nil || n.points(p.addr) != pointsLie || len(p.asked()) != 0 {
		t.Errorf("err %v, %d points, asked %v", err, n.points(p.addr), p.asked())
	}
	if len(store.List()) != 0 {
		t.Errorf("stored %v", store.List())
	}
}

func TestFetchNoSource(t *testing.T) {
	origin, root, _ := testBlob(t, 1<<20, testChunk)
	n := newNet(t, false)
	gone := n.add(t, origin, nil)
	gone.kill()
	tests := []struct {
		name  string
		peers []*testPeer
		want  string
	}{
		{"nobody", nil, "no source: blob not found"},
		{"unreachable", []*testPeer{gone}, "refused"},
		{"without the blob", []*testPeer{n.add(t, origin, absent)}, "does not have"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := n.fetcher(testStore(t, testChunk), tt.peers...).Fetch(t.Context(), root, Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// A download goes on from what an earlier one verified, except for what was
// damaged on disk in the meantime.
func TestResume(t *testing.T) {
	const chunks = 64
	origin, root, data := testBlob(t, chunks*testChunk, testChunk)
	n := newNet(t, false)
	first := n.add(t, origin, slow(time.Millisecond))
	store := testStore(t, testChunk)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := n.fetcher(store, first).Fetch(ctx, root, Options{Progress: func(done, total uint64, _ int) {
		if done >= 20*testChunk {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want that of the context", err)
	}
	journal, err := os.Open(store.path(root, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := readJournal(journal, chunks)
	journal.Close()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(store.path(root, partFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	const damaged = 7
	if _, err := f.WriteAt([]byte("damage"), damaged*testChunk+100); err != nil {
		t.Fatal(err)
	}
	f.Close()

	// As after a restart: another Store on the same folder.
	reopened, err := Open(store.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	second := n.add(t, origin, nil)
	path, err := n.fetcher(reopened, second).Fetch(t.Context(), root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, data)
	asked := second.asked()
	slices.Sort(asked)
	var want []int
	for i, have := range claimed {
		if !have || i == damaged {
			want = append(want, i)
		}
	}
	if !claimed[damaged] || len(want) > chunks-19 || !slices.Equal(asked, want) {
		t.Errorf("asked for %v, want %v", asked, want)
	}
}

// A source that is found while the download runs is used.
func TestNewSourceWhileRunning(t *testing.T) {
	origin, root, data := testBlob(t, 2<<20, testChunk)
	n := newNet(t, false)
	a, b := n.add(t, origin, slow(5*time.Millisecond)), n.add(t, origin, nil)
	found := make(chan mesh.Address, 2)
	found <- a.addr
	f := n.fetcher(testStore(t, testChunk))
	f.cfg.Sources = func(ctx context.Context, _ mesh.Hash) iter.Seq[mesh.Address] {
		return func(yield func(mesh.Address) bool) {
			for {
				select {
				case peer := <-found:
					if !yield(peer) {
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}
	}
	var once sync.Once
	path, err := f.Fetch(t.Context(), root, Options{Progress: func(done, _ uint64, _ int) {
		if done > 0 {
			once.Do(func() { found <- b.addr })
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, data)
	if len(b.asked()) == 0 {
		t.Error("the new source was not asked")
	}
}

func TestFetchShared(t *testing.T) {
	origin, root, _ := testBlob(t, 2<<20, testChunk)
	n := newNet(t, false)
	p := n.add(t, origin, slow(time.Millisecond))
	f := n.fetcher(testStore(t, testChunk), p)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			ctx := ctx
			if i > 0 {
				ctx = t.Context()
			}
			_, err := f.Fetch(ctx, root, Options{Progress: func(done, _ uint64, _ int) {
				if i == 0 && done > 0 {
					cancel() // one caller leaves; the others must not notice
				}
			}})
			if i > 0 && err != nil || i == 0 && !errors.Is(err, context.Canceled) {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if got := len(p.asked()); got != 32 {
		t.Errorf("%d chunks asked for, want 32", got)
	}
	if len(f.active) != 0 {
		t.Error("a download is left over")
	}
}

func TestDiskFull(t *testing.T) {
	origin, root, data := testBlob(t, 2<<20, testChunk)
	n := newNet(t, false)
	p := n.add(t, origin, nil)
	store := testStore(t, testChunk)
	f := n.fetcher(store, p)

	store.free = func(string) (uint64, error) { return 1 << 20, nil }
	if _, err := f.Fetch(t.Context(), root, Options{}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "2 MiB are needed") {
		t.Errorf("error before the start: %v", err)
	}
	if got := len(p.asked()); got != 0 {
		t.Errorf("%d chunks were asked for without space", got)
	}

	store.free = diskFree
	// The disk has room for 16 chunks. The journal has its block: were it refused too, it
	// would depend on the number of writers how many of the chunks it names.
	var written atomic.Int64
	store.writeAt = func(f *os.File, b []byte, off int64) (int, error) {
		if len(b) > 1 && written.Add(int64(len(b))) > 1<<20 {
			return 0, syscall.ENOSPC
		}
		return f.WriteAt(b, off)
	}
	if _, err := f.Fetch(t.Context(), root, Options{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error in the middle: %v", err)
	}

	store.writeAt = (*os.File).WriteAt
	before := len(p.asked())
	path, err := f.Fetch(t.Context(), root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, data)
	if again := len(p.asked()) - before; again > 32-16+depth { // the first stream may still be reading requests
		t.Errorf("%d of 32 chunks were fetched again after the disk was full", again)
	}
}
