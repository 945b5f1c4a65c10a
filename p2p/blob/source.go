package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync/atomic"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/p2p"
	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

// maxFailures is how often in a row a source may fail, without a chunk between,
// before it is given up.
const maxFailures = 3

// slowest is how many times Stall one answer may take: a source that sends, but
// hardly, counts as stalled.
const slowest = 24

const forever = time.Duration(math.MaxInt64 / 2)

var (
	errAbsent  = errors.New("it does not have the blob")
	errBusy    = errors.New("it is busy")
	errLiar    = errors.New("it sent wrong bytes")
	errRefused = errors.New("it refused the request")
)

// source is one peer that a download fetches from.
type source struct {
	*download
	peer mesh.Address
	id   int // in the plan
	got  int // chunks received
	halt atomic.Pointer[context.CancelFunc]
}

// stop ends the session of a source that a writer found lying.
func (s *source) stop() {
	if halt := s.halt.Load(); halt != nil {
		(*halt)()
	}
}

// work runs sessions with the peer until it has nothing more to give.
func (s *source) work() {
	var err error
	defer func() { s.retire(s.peer, err) }()
	pause := s.cfg.Stall / 5
	for fails := 0; fails < maxFailures; {
		before := s.got
		err = s.session()
		if s.release() {
			err = errLiar
			return
		}
		if err == nil {
			continue
		}
		if s.ctx.Err() != nil || errors.Is(err, errAbsent) || errors.Is(err, errRefused) {
			return
		}
		if s.got > before {
			fails, pause = 0, s.cfg.Stall/5
		}
		fails++
		select {
		case <-time.After(pause):
			pause *= 2
		case <-s.ctx.Done():
			return
		}
	}
}

// release gives all chunks of the source back. It reports whether the peer was
// found to be a liar.
func (s *source) release() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan != nil {
		s.plan.drop(s.id)
	}
	s.broadcast()
	return s.banned[s.peer]
}

// session fetches chunks over one stream until there is nothing to ask for, which
// is no error, or the stream breaks. It opens the stream only when it has
// something to ask: a peer may hold an idle one against us.
func (s *source) session() error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.halt.Store(&cancel)
	if err := s.learnManifest(ctx); err != nil {
		return err
	}
	first, _, err := s.next(ctx, forever)
	if err != nil {
		return err
	}
	conn, err := s.dial(ctx, ProtocolBlob)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s.count(1)
	defer s.count(-1)
	if err := s.ask(conn, first); err != nil {
		return err
	}
	in := &patient{conn: conn, stall: s.cfg.Stall}
	for asked := []int{first}; ; asked = asked[1:] {
		if asked, err = s.askAhead(ctx, conn, asked); err != nil || len(asked) == 0 {
			return err
		}
		data, err := s.receive(ctx, in, asked[0])
		if err != nil {
			return err
		}
		s.got++
		select {
		case s.jobs <- job{s, asked[0], data}:
		case <-ctx.Done():
			s.free <- data[:cap(data)]
			return ctx.Err()
		}
	}
}

// askAhead keeps depth requests under way. With none it waits a little for
// something to ask.
func (s *source) askAhead(ctx context.Context, conn net.Conn, asked []int) ([]int, error) {
	for len(asked) < depth {
		var wait time.Duration
		if len(asked) == 0 {
			wait = s.cfg.Stall / 2
		}
		chunk, ok, err := s.next(ctx, wait)
		if err != nil || !ok {
			return asked, err
		}
		if err := s.ask(conn, chunk); err != nil {
			return asked, err
		}
		asked = append(asked, chunk)
	}
	return asked, nil
}

func (s *source) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending += n
	s.broadcast()
}

func (s *source) dial(ctx context.Context, protocol string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*s.cfg.Stall)
	defer cancel()
	return s.cfg.Dialer.Dial(ctx, s.peer, protocol)
}

// next takes a chunk from the plan. When there is none it waits for one.
func (s *source) next(ctx context.Context, wait time.Duration) (chunk int, ok bool, err error) {
	until := time.Now().Add(wait)
	for {
		now := time.Now()
		s.mu.Lock()
		chunk, again, ok := s.plan.take(s.id, now)
		changed := s.changed
		s.mu.Unlock()
		if err := ctx.Err(); err != nil || ok || !now.Before(until) {
			return chunk, ok, err
		}
		rest := until.Sub(now)
		if again > 0 {
			rest = min(rest, again)
		}
		timer := time.NewTimer(rest)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (s *source) ask(conn net.Conn, chunk int) error {
	if err := conn.SetWriteDeadline(time.Now().Add(s.cfg.Stall)); err != nil {
		return err
	}
	return p2p.WriteMessage(conn, &p2ppb.RangeAsk{Root: s.root[:], First: uint32(chunk), Count: 1})
}

// receive reads the answer to one request into a buffer of the download.
func (s *source) receive(ctx context.Context, in *patient, chunk int) ([]byte, error) {
	var buf []byte
	select {
	case buf = <-s.free:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if buf == nil {
		buf = make([]byte, s.m.ChunkSize)
	}
	data := buf[:s.m.chunkLen(chunk)]
	if err := s.receiveInto(data, in); err != nil {
		s.free <- buf
		return nil, err
	}
	return data, nil
}

func (s *source) receiveInto(data []byte, in *patient) error {
	in.until = time.Now().Add(slowest * s.cfg.Stall)
	var answer p2ppb.RangeAnswer
	if err := p2p.ReadMessage(in, maxAsk, &answer); err != nil {
		return s.judge(in, fmt.Errorf("read range answer: %w", err))
	}
	if err := statusError(answer.GetStatus()); err != nil {
		return err
	}
	if answer.GetSize() != uint64(len(data)) {
		s.ban(s.peer, fmt.Sprintf("%d bytes for a chunk of %d", answer.GetSize(), len(data)), pointsMalformed)
		return errLiar
	}
	if _, err := io.ReadFull(in, data); err != nil {
		return fmt.Errorf("read chunk: %w", err)
	}
	return nil
}

// learnManifest asks the peer for the manifest unless another source brought it.
func (s *source) learnManifest(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case s.asking <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.asking }()
	select {
	case <-s.ready:
		return nil
	default:
	}
	conn, err := s.dial(ctx, ProtocolManifest)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetWriteDeadline(time.Now().Add(s.cfg.Stall)); err != nil {
		return err
	}
	if err := p2p.WriteMessage(conn, &p2ppb.ManifestAsk{Root: s.root[:]}); err != nil {
		return err
	}
	in := &patient{conn: conn, stall: s.cfg.Stall, until: time.Now().Add(slowest * s.cfg.Stall)}
	var answer p2ppb.ManifestAnswer
	if err := p2p.ReadMessage(in, maxManifest, &answer); err != nil {
		return s.judge(in, fmt.Errorf("read manifest answer: %w", err))
	}
	if err := statusError(answer.GetStatus()); err != nil {
		return err
	}
	m, err := manifestOf(answer.GetManifest(), s.root)
	if err != nil {
		s.ban(s.peer, err.Error(), pointsLie)
		return errLiar
	}
	s.begin(m)
	return ctx.Err()
}

// judge tells a peer that sent nonsense from one whose stream broke.
func (s *source) judge(in *patient, err error) error {
	if errors.Is(err, p2p.ErrMessage) && in.err == nil {
		s.ban(s.peer, err.Error(), pointsMalformed)
		return errLiar
	}
	return err
}

func statusError(status p2ppb.Status) error {
	switch status {
	case p2ppb.Status_OK:
		return nil
	case p2ppb.Status_NOT_FOUND:
		return errAbsent
	case p2ppb.Status_BUSY:
		return errBusy
	}
	return errRefused
}

// patient reads from a stream as long as bytes keep coming: each read has stall,
// all of them together have until.
type patient struct {
	conn  net.Conn
	stall time.Duration
	until time.Time
	err   error // of the stream
}

func (p *patient) Read(b []byte) (int, error) {
	deadline := time.Now().Add(p.stall)
	if deadline.After(p.until) {
		deadline = p.until
	}
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		p.err = err
		return 0, err
	}
	n, err := p.conn.Read(b)
	if err != nil {
		p.err = err
	}
	return n, err
}
