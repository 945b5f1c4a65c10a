package blob

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"iter"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

// testNet is a Dialer over loopback TCP, with TLS or without.
type testNet struct {
	tls bool

	mu        sync.Mutex
	peers     map[mesh.Address]*testPeer
	penalties map[mesh.Address]int
}

// testPeer is a real Server; wrap turns its end of a stream into that of a
// faulty peer.
type testPeer struct {
	addr   mesh.Address
	server *Server
	wrap   func(p *testPeer, protocol string, conn net.Conn) net.Conn
	ln     net.Listener
	where  string // host:port
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	taps  []*tap
	dials int
}

// tap records what a peer is sent on one blob stream.
type tap struct {
	net.Conn
	mu   sync.Mutex
	seen bytes.Buffer
}

func (t *tap) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen.Write(b[:n])
	return n, err
}

// asked returns the chunks that the peer was asked for, in order.
func (p *testPeer) asked() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []int
	for _, t := range p.taps {
		t.mu.Lock()
		r := bytes.NewReader(bytes.Clone(t.seen.Bytes()))
		t.mu.Unlock()
		for {
			var ask p2ppb.RangeAsk
			if p2p.ReadMessage(r, maxAsk, &ask) != nil {
				break
			}
			out = append(out, int(ask.First))
		}
	}
	return out
}

func newNet(t testing.TB, secure bool) *testNet {
	n := &testNet{tls: secure, peers: make(map[mesh.Address]*testPeer), penalties: make(map[mesh.Address]int)}
	t.Cleanup(func() {
		for _, p := range n.peers {
			p.kill()
		}
	})
	return n
}

type wrapFunc = func(p *testPeer, protocol string, conn net.Conn) net.Conn

func (n *testNet) add(t testing.TB, store *Store, wrap wrapFunc) *testPeer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if n.tls {
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{testCertificate(t)}})
	}
	p := &testPeer{server: NewServer(ServerConfig{Store: store}), wrap: wrap, ln: ln, where: ln.Addr().String()}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	n.mu.Lock()
	p.addr[0], p.addr[1] = 1, byte(len(n.peers)+1)
	n.peers[p.addr] = p
	n.mu.Unlock()
	p.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(conn) })
		}
	})
	return p
}

func (p *testPeer) serve(conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(p.ctx, func() { conn.Close() })()
	var which [1]byte
	if _, err := io.ReadFull(conn, which[:]); err != nil {
		return
	}
	protocol := ProtocolBlob
	if which[0] == 'm' {
		protocol = ProtocolManifest
	} else {
		tapped := &tap{Conn: conn}
		p.mu.Lock()
		p.taps = append(p.taps, tapped)
		p.dials++
		p.mu.Unlock()
		conn = tapped
	}
	if p.wrap != nil {
		conn = p.wrap(p, protocol, conn)
	}
	if protocol == ProtocolManifest {
		p.server.ServeManifest(p.ctx, mesh.Address{}, conn)
	} else {
		p.server.ServeRange(p.ctx, mesh.Address{}, conn)
	}
}

// kill ends a peer as a crash would.
func (p *testPeer) kill() {
	p.cancel()
	p.ln.Close()
	p.wg.Wait()
}

func (n *testNet) Dial(ctx context.Context, peer mesh.Address, protocol string) (net.Conn, error) {
	n.mu.Lock()
	p := n.peers[peer]
	n.mu.Unlock()
	if p == nil {
		return nil, errors.New("no such peer")
	}
	var conn net.Conn
	var err error
	if n.tls {
		conn, err = (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(ctx, "tcp", p.where)
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", p.where)
	}
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte(protocol[:1])); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (n *testNet) penalise(peer mesh.Address, _ string, points int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.penalties[peer] += points
}

func (n *testNet) points(peer mesh.Address) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.penalties[peer]
}

// fetcher returns a fetcher that knows exactly these peers.
func (n *testNet) fetcher(store *Store, peers ...*testPeer) *Fetcher {
	return NewFetcher(Config{Store: store, Dialer: n, Penalise: n.penalise, Stall: 400 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler), Sources: sourcesOf(peers...)})
}

func sourcesOf(peers ...*testPeer) func(context.Context, mesh.Hash) iter.Seq[mesh.Address] {
	return func(context.Context, mesh.Hash) iter.Seq[mesh.Address] {
		return func(yield func(mesh.Address) bool) {
			for _, p := range peers {
				if !yield(p.addr) {
					return
				}
			}
		}
	}
}

// onWrite is a stream whose writes of chunk bytes go through a function. The
// function gets the number of bytes written before.
type onWrite struct {
	net.Conn
	sent int
	do   func(conn net.Conn, sent int, b []byte) (int, error)
}

func (w *onWrite) Write(b []byte) (int, error) {
	if len(b) < 1000 { // an answer's header
		return w.Conn.Write(b)
	}
	n, err := w.do(w.Conn, w.sent, b)
	w.sent += n
	return n, err
}

func onBlob(do func(conn net.Conn, sent int, b []byte) (int, error)) wrapFunc {
	return func(_ *testPeer, protocol string, conn net.Conn) net.Conn {
		if protocol != ProtocolBlob {
			return conn
		}
		return &onWrite{Conn: conn, do: do}
	}
}

// liar flips a bit in every chunk after the first good bytes.
func liar(good int) wrapFunc {
	return onBlob(func(conn net.Conn, sent int, b []byte) (int, error) {
		if sent >= good {
			b[len(b)/2] ^= 1
		}
		return conn.Write(b)
	})
}

// slow takes this long for each piece.
func slow(pause time.Duration) wrapFunc {
	return onBlob(func(conn net.Conn, _ int, b []byte) (int, error) {
		time.Sleep(pause)
		return conn.Write(b)
	})
}

func testStore(t testing.TB, chunkSize uint32) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.chunkSize = chunkSize
	return s
}

// seeded returns size reproducible bytes.
func seeded(size int) []byte {
	data := make([]byte, size)
	mathrand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

// testBlob writes a file of size bytes and adds it to a new store.
func testBlob(t testing.TB, size int, chunkSize uint32) (*Store, mesh.Hash, []byte) {
	t.Helper()
	data := seeded(size)
	path := filepath.Join(t.TempDir(), "model.gguf")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	s := testStore(t, chunkSize)
	root, err := s.Add(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s, root, data
}

func wantFile(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s differs from the original", path)
	}
}

func testCertificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
