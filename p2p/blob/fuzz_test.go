package blob

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/merkle"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

// byteConn is a stream on which a peer sent these bytes and then closed.
type byteConn struct {
	io.Reader
	out bytes.Buffer
}

func (c *byteConn) Write(b []byte) (int, error)    { return c.out.Write(b) }
func (*byteConn) Close() error                     { return nil }
func (*byteConn) LocalAddr() net.Addr              { return nil }
func (*byteConn) RemoteAddr() net.Addr             { return nil }
func (*byteConn) SetDeadline(time.Time) error      { return nil }
func (*byteConn) SetReadDeadline(time.Time) error  { return nil }
func (*byteConn) SetWriteDeadline(time.Time) error { return nil }

func encoded(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func framed(t testing.TB, messages ...proto.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, m := range messages {
		if err := p2p.WriteMessage(&b, m); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// What decodes has the root it was asked for, a chunk for each digest, and
// survives the way through a message again. To get past the root the fuzzer is
// told the one that its bytes would have.
func FuzzManifest(f *testing.F) {
	good := &p2ppb.Manifest{Size: testChunk + 1, ChunkSize: testChunk, Chunks: make([]byte, 64), Name: "a"}
	f.Add(encoded(f, good))
	for _, change := range []func(*p2ppb.Manifest){
		func(m *p2ppb.Manifest) { m.Size = 0 },
		func(m *p2ppb.Manifest) { m.Size = 1 << 63 },
		func(m *p2ppb.Manifest) { m.ChunkSize = 0 },
		func(m *p2ppb.Manifest) { m.ChunkSize = 1<<16 + 1 },
		func(m *p2ppb.Manifest) { m.ChunkSize, m.Size = 1<<31, 1<<40 },
		func(m *p2ppb.Manifest) { m.Chunks = m.Chunks[1:] },
		func(m *p2ppb.Manifest) { m.Name = "../../x" },
	} {
		bad := proto.CloneOf(good)
		change(bad)
		f.Add(encoded(f, bad))
	}
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decodeManifest(b, mesh.Hash{1}); err == nil {
			t.Fatal("accepted for a root that it does not have")
		}
		var pb p2ppb.Manifest
		if proto.Unmarshal(b, &pb) != nil {
			return
		}
		var digests []mesh.Hash
		for d := range slices.Chunk(pb.Chunks, 32) {
			digests = append(digests, mesh.Hash(append(d, make([]byte, 32-len(d))...)))
		}
		root := merkle.ChunkRoot(pb.Size, pb.ChunkSize, digests)
		m, err := decodeManifest(b, root)
		if err != nil {
			return
		}
		var size uint64
		for i := range m.Chunks {
			if n := m.chunkLen(i); n <= 0 || n > int(m.ChunkSize) {
				t.Fatalf("chunk %d has %d bytes", i, n)
			}
			size += uint64(m.chunkLen(i))
		}
		if size != m.Size || m.Root() != root {
			t.Fatalf("chunks of %d bytes in %+v", size, m)
		}
		again, err := decodeManifest(encoded(t, m.message()), root)
		if err != nil || again.Name != m.Name || !slices.Equal(again.Chunks, m.Chunks) {
			t.Fatalf("%+v became %+v: %v", m, again, err)
		}
	})
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte{}, uint16(3))
	f.Add([]byte{1, 0, 1, 2, 255}, uint16(4))
	f.Fuzz(func(t *testing.T, b []byte, n uint16) {
		claimed, err := readJournal(bytes.NewReader(b), int(n))
		if err != nil || len(claimed) != int(n) {
			t.Fatalf("%d of %d chunks: %v", len(claimed), n, err)
		}
		for i, have := range claimed {
			if have != (i < len(b) && b[i] == 1) {
				t.Fatalf("chunk %d: %v", i, have)
			}
		}
	})
}

func FuzzEntry(f *testing.F) {
	for _, e := range []entry{
		{Name: "a", Size: 1, ChunkSize: testChunk},
		{Path: "/x", Size: MaxSize, ChunkSize: maxChunkSize, MTime: -1, Inode: 1 << 63, Added: time.Unix(1, 2).UTC()},
	} {
		b, err := encodeEntry(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"size":1,"chunk_size":65536,"path":"relative"}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEntry(b)
		if err != nil {
			return
		}
		if e.Size == 0 || e.ChunkSize == 0 {
			t.Fatalf("accepted %+v", e)
		}
		again, err := encodeEntry(e)
		if err != nil {
			t.Skip("a time that JSON cannot hold")
		}
		if back, err := decodeEntry(again); err != nil || back.Size != e.Size || back.MTime != e.MTime || back.Inode != e.Inode {
			t.Fatalf("%+v became %+v: %v", e, back, err)
		}
	})
}

// A server sends only bytes of its blob, whatever it is asked.
func FuzzRangeAsk(f *testing.F) {
	store, root, data := testBlob(f, 2*minChunkSize+1, minChunkSize)
	whole := &p2ppb.RangeAsk{Root: root[:], Count: 3}
	f.Add(framed(f, whole))
	f.Add(framed(f, &p2ppb.RangeAsk{Root: root[:], First: 2, Count: 1}, &p2ppb.RangeAsk{Root: root[:], First: 1, Count: 1}))
	f.Add(framed(f, &p2ppb.RangeAsk{Root: root[:], First: 1 << 31, Count: 1 << 31}))
	f.Add(framed(f, &p2ppb.RangeAsk{Root: root[1:], Count: 1}))
	f.Add(framed(f, &p2ppb.ManifestAsk{Root: root[:]}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewServer(ServerConfig{Store: store})
		conn := &byteConn{Reader: bytes.NewReader(b)}
		s.ServeRange(t.Context(), mesh.Address{}, conn)
		for conn.out.Len() > 0 {
			var answer p2ppb.RangeAnswer
			if err := p2p.ReadMessage(&conn.out, maxAsk, &answer); err != nil {
				t.Fatal(err)
			}
			if sent := conn.out.Next(int(answer.Size)); !bytes.Contains(data, sent) {
				t.Fatalf("%d bytes that are not of the blob", len(sent))
			}
		}
		s.ServeManifest(t.Context(), mesh.Address{}, &byteConn{Reader: bytes.NewReader(b)})
		if s.total != 0 {
			t.Fatal("a stream is left over")
		}
	})
}

// fixedDialer answers every stream of a protocol with the same bytes.
type fixedDialer map[string][]byte

func (d fixedDialer) Dial(_ context.Context, _ mesh.Address, protocol string) (net.Conn, error) {
	return &byteConn{Reader: bytes.NewReader(d[protocol])}, nil
}

// Whatever a peer answers, a fetch ends with the right bytes or an error.
func FuzzAnswers(f *testing.F) {
	origin, root, data := testBlob(f, minChunkSize+1, minChunkSize)
	m, err := origin.Manifest(root)
	if err != nil {
		f.Fatal(err)
	}
	manifest := framed(f, &p2ppb.ManifestAnswer{Manifest: m.message()})
	chunks := slices.Concat(framed(f, &p2ppb.RangeAnswer{Size: minChunkSize}), data[:minChunkSize],
		framed(f, &p2ppb.RangeAnswer{Size: 1}), data[minChunkSize:])
	f.Add(manifest, chunks)
	f.Add(manifest[:20], chunks)
	f.Add(manifest, chunks[:100])
	f.Add(manifest, append(framed(f, &p2ppb.RangeAnswer{Size: 1 << 62}), chunks...))
	f.Add(manifest, framed(f, &p2ppb.RangeAnswer{Status: p2ppb.Status_INVALID}))
	f.Add(framed(f, &p2ppb.ManifestAnswer{Status: p2ppb.Status_BUSY}), chunks)
	f.Add(framed(f, &p2ppb.ManifestAnswer{}), chunks)
	store := testStore(f, minChunkSize)
	f.Fuzz(func(t *testing.T, manifest, chunks []byte) {
		defer store.Remove(root)
		peer := &testPeer{addr: mesh.Address{1}}
		path, err := NewFetcher(Config{Store: store, Stall: time.Millisecond, Sources: sourcesOf(peer),
			Dialer: fixedDialer{ProtocolManifest: manifest, ProtocolBlob: chunks}}).Fetch(t.Context(), root, Options{})
		if err == nil {
			wantFile(t, path, data)
		} else if len(store.List()) != 0 {
			t.Fatalf("%v, but the blob is there", err)
		}
	})
}
