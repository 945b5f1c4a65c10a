package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/merkle"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

// Short names of the protocols, as a Dialer takes them.
const (
	ProtocolBlob     = "blob"
	ProtocolManifest = "manifest"
)

const (
	maxAsk    = 256      // bytes of an encoded request
	maxAnswer = 16 << 20 // bytes that one range request may ask for
)

// errBadRequest marks what only a faulty or hostile peer sends.
var errBadRequest = errors.New("bad request")

// ServerConfig configures a Server. Zero fields are defaults.
type ServerConfig struct {
	Store   *Store
	PerPeer int           // streams at once for one peer; default 8; give p2p a higher limit, which penalises
	Total   int           // streams at once; default 128
	Idle    time.Duration // how long to wait for the next request; default 30 s
	Write   time.Duration // how long a reader may take for 256 KiB; default 8 s
	// Penalise, when set, is told of a peer that asks what no honest peer asks.
	Penalise func(peer mesh.Address, reason string, points int)
	Log      *slog.Logger
}

// Server answers the protocols "manifest" and "blob" from a store. A stream holds
// one 256 KiB buffer, so its limits bound the memory too; how fast the peer reads
// bounds the bandwidth.
type Server struct {
	cfg ServerConfig

	mu      sync.Mutex
	streams map[mesh.Address]int // guarded by mu
	total   int                  // guarded by mu
}

// NewServer returns a server. Wire ServeManifest and ServeRange to the two protocols.
func NewServer(cfg ServerConfig) *Server {
	cfg.PerPeer = orDefault(cfg.PerPeer, 8)
	cfg.Total = orDefault(cfg.Total, 128)
	cfg.Idle = orDefault(cfg.Idle, 30*time.Second)
	cfg.Write = orDefault(cfg.Write, 8*time.Second)
	if cfg.Penalise == nil {
		cfg.Penalise = func(mesh.Address, string, int) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, streams: make(map[mesh.Address]int)}
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

func (s *Server) enter(peer mesh.Address) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= s.cfg.Total || s.streams[peer] >= s.cfg.PerPeer {
		return false
	}
	s.total++
	s.streams[peer]++
	return true
}

func (s *Server) leave(peer mesh.Address) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.streams[peer]--; s.streams[peer] == 0 {
		delete(s.streams, peer)
	}
}

// ServeManifest answers one request of the protocol "manifest". After a failure
// it resets the stream; otherwise the caller closes it.
func (s *Server) ServeManifest(ctx context.Context, peer mesh.Address, conn net.Conn) {
	s.end(peer, conn, ProtocolManifest, s.manifest(ctx, peer, conn))
}

// ServeRange answers requests of the protocol "blob" until the peer ends the
// stream. Requests may be pipelined; they are answered in order. After a failure
// it resets the stream; otherwise the caller closes it.
func (s *Server) ServeRange(ctx context.Context, peer mesh.Address, conn net.Conn) {
	s.end(peer, conn, ProtocolBlob, s.ranges(ctx, peer, conn))
}

func (s *Server) end(peer mesh.Address, conn net.Conn, protocol string, err error) {
	code := p2p.CodeInternal
	switch {
	case err == nil:
		return
	case errors.Is(err, errBadRequest):
		code = p2p.CodeViolation
		s.cfg.Penalise(peer, err.Error(), pointsMalformed)
	case errors.Is(err, p2p.ErrMessage): // p2p counts it
		code = p2p.CodeViolation
	}
	s.cfg.Log.Debug("stream broken off", "protocol", protocol, "peer", peer, "err", err)
	p2p.Reset(conn, code)
}

func (s *Server) manifest(ctx context.Context, peer mesh.Address, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	// The answer is at most 8 MiB; its time allows for 32 pieces of 256 KiB.
	if err := conn.SetDeadline(time.Now().Add(32 * s.cfg.Write)); err != nil {
		return err
	}
	if !s.enter(peer) {
		return p2p.WriteMessage(conn, &p2ppb.ManifestAnswer{Status: p2ppb.Status_BUSY})
	}
	defer s.leave(peer)
	if err := conn.SetReadDeadline(time.Now().Add(s.cfg.Write)); err != nil {
		return err
	}
	var ask p2ppb.ManifestAsk
	if err := p2p.ReadMessage(conn, maxAsk, &ask); err != nil {
		return fmt.Errorf("read manifest request: %w", err)
	}
	root, err := mesh.HashFromBytes(ask.GetRoot())
	if err != nil {
		return fmt.Errorf("manifest request: %w: %w", errBadRequest, err)
	}
	var m *Manifest
	if _, err = s.cfg.Store.Path(root); err == nil {
		m, err = s.cfg.Store.Manifest(root)
	}
	if err != nil {
		s.noteAbsent(root, err)
		return p2p.WriteMessage(conn, &p2ppb.ManifestAnswer{Status: p2ppb.Status_NOT_FOUND})
	}
	return p2p.WriteMessage(conn, &p2ppb.ManifestAnswer{Manifest: m.message()})
}

// noteAbsent logs a blob that the store should have.
func (s *Server) noteAbsent(root mesh.Hash, err error) {
	if !errors.Is(err, ErrNotFound) {
		s.cfg.Log.Debug("blob not served", "root", root, "err", err)
	}
}

func (s *Server) ranges(ctx context.Context, peer mesh.Address, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if !s.enter(peer) {
		return s.refuse(ctx, conn, p2ppb.Status_BUSY)
	}
	defer s.leave(peer)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(s.cfg.Idle)); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		var ask p2ppb.RangeAsk
		err := p2p.ReadMessage(conn, maxAsk, &ask)
		var timeout net.Error
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &timeout) && timeout.Timeout() && ctx.Err() == nil:
			return nil // idle
		case err != nil:
			return fmt.Errorf("read range request: %w", err)
		}
		if err := s.answer(ctx, conn, &ask); err != nil {
			return err
		}
	}
}

func (s *Server) refuse(ctx context.Context, conn net.Conn, status p2ppb.Status) error {
	if err := s.arm(ctx, conn); err != nil {
		return err
	}
	return p2p.WriteMessage(conn, &p2ppb.RangeAnswer{Status: status})
}

// arm gives the next write its time. The context is looked at after the deadline
// is set, or a cancellation just before would be overruled.
func (s *Server) arm(ctx context.Context, conn net.Conn) error {
	if err := conn.SetWriteDeadline(time.Now().Add(s.cfg.Write)); err != nil {
		return err
	}
	return ctx.Err()
}

// answer sends one range. A range that does not lie in the blob ends the stream.
func (s *Server) answer(ctx context.Context, conn net.Conn, ask *p2ppb.RangeAsk) error {
	root, err := mesh.HashFromBytes(ask.GetRoot())
	if err != nil {
		return fmt.Errorf("range request: %w: %w", errBadRequest, err)
	}
	f, e, err := s.cfg.Store.open(root)
	if err != nil {
		s.noteAbsent(root, err)
		return s.refuse(ctx, conn, p2ppb.Status_NOT_FOUND)
	}
	defer f.Close()
	off, n, err := rangeOf(ask, e.Size, e.ChunkSize)
	if err != nil {
		return fmt.Errorf("range request: %w: %w", errBadRequest, err)
	}
	if err := s.arm(ctx, conn); err != nil {
		return err
	}
	if err := p2p.WriteMessage(conn, &p2ppb.RangeAnswer{Size: n}); err != nil {
		return fmt.Errorf("send range: %w", err)
	}
	return s.send(ctx, conn, f, &e, off, n)
}

// rangeOf returns offset and length in bytes of the chunks that are asked for.
func rangeOf(ask *p2ppb.RangeAsk, size uint64, chunkSize uint32) (off, n uint64, err error) {
	first, count, chunks := uint64(ask.GetFirst()), uint64(ask.GetCount()), merkle.Chunks(size, chunkSize)
	if count == 0 || first >= chunks || count > chunks-first {
		return 0, 0, fmt.Errorf("chunks %d to %d of %d", first, first+count, chunks)
	}
	off = first * uint64(chunkSize)
	n = min(count*uint64(chunkSize), size-off)
	if n > maxAnswer {
		return 0, 0, fmt.Errorf("%d bytes at once: the limit is %d", n, maxAnswer)
	}
	return off, n, nil
}

// send copies n bytes of f from off. Each piece is checked to have been read
// from the file that was hashed before it leaves, so that a file which changes in
// mid-answer breaks the stream and does not make this peer a liar.
func (s *Server) send(ctx context.Context, conn net.Conn, f *os.File, e *entry, off, n uint64) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for n > 0 {
		b := (*buf)[:min(n, bufferSize)]
		if _, err := readFullAt(f, b, int64(off)); err != nil {
			return fmt.Errorf("read blob: %w", err)
		}
		info, err := f.Stat()
		if err == nil && !e.same(info) {
			err = errChanged
		}
		if err != nil {
			return fmt.Errorf("read blob: %w", err)
		}
		if err := s.arm(ctx, conn); err != nil {
			return err
		}
		if _, err := conn.Write(b); err != nil {
			return fmt.Errorf("send range: %w", err)
		}
		off, n = off+uint64(len(b)), n-uint64(len(b))
	}
	return nil
}
