package blob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

// serveRange runs the server on one end of a pipe, as p2p would, and returns the
// other end and a channel that is closed when the server is done.
func serveRange(ctx context.Context, s *Server) (net.Conn, <-chan struct{}) {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		s.ServeRange(ctx, mesh.Address{9}, theirs)
	}()
	return ours, done
}

func TestRangeOf(t *testing.T) {
	const size, chunk = 5*maxChunkSize + 10, maxChunkSize
	tests := []struct {
		first, count uint32
		off, n       uint64
		ok           bool
	}{
		{0, 1, 0, chunk, true},
		{0, 4, 0, 4 * chunk, true},
		{5, 1, 5 * chunk, 10, true},
		{4, 2, 4 * chunk, chunk + 10, true},
		{0, 5, 0, 0, false}, // above 16 MiB
		{0, 0, 0, 0, false},
		{6, 1, 0, 0, false},
		{5, 2, 0, 0, false},
		{1 << 31, 1 << 31, 0, 0, false},
		{^uint32(0), ^uint32(0), 0, 0, false},
	}
	for _, tt := range tests {
		off, n, err := rangeOf(&p2ppb.RangeAsk{First: tt.first, Count: tt.count}, size, chunk)
		if (err == nil) != tt.ok || off != tt.off || n != tt.n {
			t.Errorf("chunks %d+%d: %d bytes at %d, %v", tt.first, tt.count, n, off, err)
		}
	}
}

func TestServeRange(t *testing.T) {
	store, root, data := testBlob(t, 3*testChunk+5, testChunk)
	var penalties int
	s := NewServer(ServerConfig{Store: store, Penalise: func(mesh.Address, string, int) { penalties++ }})
	conn, done := serveRange(t.Context(), s)
	tests := []struct {
		ask    *p2ppb.RangeAsk
		status p2ppb.Status
		want   []byte
	}{
		{&p2ppb.RangeAsk{Root: root[:], First: 1, Count: 1}, p2ppb.Status_OK, data[testChunk : 2*testChunk]},
		{&p2ppb.RangeAsk{Root: make([]byte, 32), Count: 1}, p2ppb.Status_NOT_FOUND, nil},
		{&p2ppb.RangeAsk{Root: root[:], First: 2, Count: 2}, p2ppb.Status_OK, data[2*testChunk:]},
	}
	for i, tt := range tests {
		if err := p2p.WriteMessage(conn, tt.ask); err != nil {
			t.Fatal(err)
		}
		var answer p2ppb.RangeAnswer
		if err := p2p.ReadMessage(conn, maxAsk, &answer); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, answer.Size)
		if _, err := io.ReadFull(conn, got); err != nil {
			t.Fatal(err)
		}
		if answer.Status != tt.status || !bytes.Equal(got, tt.want) {
			t.Errorf("request %d: status %v, %d bytes", i, answer.Status, len(got))
		}
	}
	if err := p2p.WriteMessage(conn, &p2ppb.RangeAsk{Root: root[:], First: 4, Count: 1}); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("a request outside the blob got %d bytes", n)
	}
	<-done
	if penalties != 1 || s.total != 0 || len(s.streams) != 0 {
		t.Errorf("%d penalties, %d streams", penalties, s.total)
	}
}

func TestServerEndsStreams(t *testing.T) {
	store, root, _ := testBlob(t, 16*testChunk, testChunk)
	ask := &p2ppb.RangeAsk{Root: root[:], Count: 16}
	tests := []struct {
		name  string
		do    func(t *testing.T, conn net.Conn, cancel func())
		after time.Duration
	}{
		{"reader that stops", func(t *testing.T, conn net.Conn, _ func()) {
			if err := p2p.WriteMessage(conn, ask); err != nil {
				t.Fatal(err)
			}
			io.ReadFull(conn, make([]byte, 100))
		}, 8 * time.Second},
		{"silent peer", func(*testing.T, net.Conn, func()) {}, 30 * time.Second},
		{"half a request", func(_ *testing.T, conn net.Conn, _ func()) { conn.Write([]byte{20, 1}) }, 30 * time.Second},
		{"end of the program", func(t *testing.T, conn net.Conn, cancel func()) {
			if err := p2p.WriteMessage(conn, ask); err != nil {
				t.Fatal(err)
			}
			io.ReadFull(conn, make([]byte, 100))
			cancel()
		}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				s := NewServer(ServerConfig{Store: store})
				start := time.Now()
				conn, done := serveRange(ctx, s)
				defer conn.Close()
				tt.do(t, conn, cancel)
				<-done
				if took := time.Since(start); took != tt.after {
					t.Errorf("the stream ended after %s, want %s", took, tt.after)
				}
				if s.total != 0 {
					t.Errorf("%d streams left", s.total)
				}
			})
		})
	}
}

func TestServerLimits(t *testing.T) {
	store, root, _ := testBlob(t, testChunk, testChunk)
	s := NewServer(ServerConfig{Store: store, PerPeer: 2, Total: 3})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var dones []<-chan struct{}
	for range 2 {
		conn, done := serveRange(ctx, s)
		defer conn.Close()
		dones = append(dones, done)
		// Once it has answered, the stream counts.
		if err := p2p.WriteMessage(conn, &p2ppb.RangeAsk{Root: make([]byte, 32), Count: 1}); err != nil {
			t.Fatal(err)
		}
		if err := p2p.ReadMessage(conn, maxAsk, new(p2ppb.RangeAnswer)); err != nil {
			t.Fatal(err)
		}
	}
	conn, done := serveRange(ctx, s)
	var answer p2ppb.RangeAnswer
	if err := p2p.ReadMessage(conn, maxAsk, &answer); err != nil || answer.Status != p2ppb.Status_BUSY {
		t.Errorf("third stream: %v, %v", answer.Status, err)
	}
	<-done
	if !s.enter(mesh.Address{1}) || s.enter(mesh.Address{2}) {
		t.Error("the total is not held")
	}
	ours, theirs := net.Pipe()
	go func() {
		s.ServeManifest(ctx, mesh.Address{9}, theirs)
		theirs.Close()
	}()
	var manifest p2ppb.ManifestAnswer
	if err := p2p.ReadMessage(ours, maxManifest, &manifest); err != nil || manifest.Status != p2ppb.Status_BUSY {
		t.Errorf("manifest: %v, %v, root %s", manifest.Status, err, root.Short())
	}
	cancel()
	for _, done := range dones {
		<-done
	}
}

// A file that changes while it is sent breaks the stream; its new bytes do not go
// out under the old name.
func TestFileChangesWhileSent(t *testing.T) {
	store, root, data := testBlob(t, 16*testChunk, testChunk)
	path, err := store.Path(root)
	if err != nil {
		t.Fatal(err)
	}
	conn, done := serveRange(t.Context(), NewServer(ServerConfig{Store: store}))
	if err := p2p.WriteMessage(conn, &p2ppb.RangeAsk{Root: root[:], Count: 16}); err != nil {
		t.Fatal(err)
	}
	if err := p2p.ReadMessage(conn, maxAsk, new(p2ppb.RangeAnswer)); err != nil {
		t.Fatal(err)
	}
	// The server is in the middle of its first piece now.
	if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path, make([]byte, len(data)), 0o644),
		os.Chtimes(path, time.Time{}, time.Now().Add(time.Minute))); err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(conn)
	<-done
	if len(got) != bufferSize-10 || !bytes.Equal(got, data[10:bufferSize]) {
		t.Errorf("%d bytes were sent, want the %d of the piece under way", len(got), bufferSize-10)
	}
}
