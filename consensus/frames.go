package consensus

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// Bounds of messages on the way in.
const (
	messageLimit  = 5 << 20          // bytes of the largest: a chunk of 4 MiB, or a block, of at most 2 MiB
	messageMemory = 256 << 20        // bytes of all that are being read, beyond frameKeep each
	peerMemory    = 8 << 20          // of them, those of one peer: a chunk and a list of snapshots at once
	frameTime     = 20 * time.Second // in which a message has to arrive once it began,
	frameSpeed    = 64 << 10         // and one second more for so many bytes
	frameKeep     = 128 << 10        // buffer that a stream keeps
	frameStep     = 256 << 10        // by which a larger buffer grows, as the bytes come
)

// badMessage is a fault of the peer, other than a stream that broke off.
type badMessage struct{ err error }

func (b *badMessage) Error() string { return b.err.Error() }
func (b *badMessage) Unwrap() error { return b.err }

// ownFault is a message that this node failed over, whoever is to blame.
type ownFault struct{ err error }

func (o *ownFault) Error() string { return o.err.Error() }
func (o *ownFault) Unwrap() error { return o.err }

// errStalled is a message that began and did not arrive.
var errStalled = errors.New("message did not arrive in time")

// budget bounds the memory of large messages.
type budget struct {
	free atomic.Int64
	of   *budget // that this is a share of; nil for none
}

func newBudget(n int64) *budget {
	b := &budget{}
	b.free.Store(n)
	return b
}

// share is a budget of one of those who use this one together.
func (b *budget) share(n int64) *budget {
	s := newBudget(n)
	s.of = b
	return s
}

func (b *budget) give(n int64) {
	b.free.Add(n)
	if b.of != nil {
		b.of.give(n)
	}
}

func (b *budget) take(n int64) bool {
	if b.free.Add(-n) < 0 || b.of != nil && !b.of.take(n) {
		b.free.Add(n)
		return false
	}
	return true
}

// frames reads messages preceded by their length. Memory follows the bytes that came,
// never the length that was claimed.
type frames struct {
	c      net.Conn
	r      *bufio.Reader
	limit  int
	budget *budget
	buf    []byte
	taken  int64         // from the budget
	time   time.Duration // frameTime
}

func newFrames(c net.Conn, limit int, b *budget) *frames {
	return &frames{c: c, r: bufio.NewReaderSize(c, 32<<10), limit: limit, budget: b, time: frameTime}
}

// next returns the next message, which holds until done.
func (f *frames) next() ([]byte, error) {
	if f.r.Buffered() == 0 {
		// Between messages a peer may be silent for as long as it likes.
		if err := f.c.SetReadDeadline(time.Time{}); err != nil {
			return nil, err
		}
		if _, err := f.r.Peek(1); err != nil {
			return nil, err
		}
	}
	if !f.arrived() {
		if err := f.c.SetReadDeadline(time.Now().Add(f.time)); err != nil {
			return nil, err
		}
	}
	size, err := f.length()
	if err != nil {
		return nil, stalled(err)
	}
	if size > uint64(f.limit) {
		return nil, &badMessage{fmt.Errorf("message of %d bytes, at most %d", size, f.limit)}
	}
	if f.r.Buffered() < int(size) {
		late := f.time + time.Duration(size/frameSpeed)*time.Second
		if err := f.c.SetReadDeadline(time.Now().Add(late)); err != nil {
			return nil, err
		}
	}
	b, err := f.read(int(size))
	return b, stalled(err)
}

// arrived reports whether the length of the next message is in the buffer.
func (f *frames) arrived() bool {
	b, _ := f.r.Peek(min(f.r.Buffered(), binary.MaxVarintLen64))
	_, n := binary.Uvarint(b)
	return n != 0
}

// length reads the length of a message.
func (f *frames) length() (uint64, error) {
	for i := 1; ; i++ {
		b, err := f.r.Peek(i)
		if err != nil {
			return 0, err
		}
		switch size, n := binary.Uvarint(b); {
		case n > 1 && b[n-1] == 0:
			return 0, &badMessage{errors.New("length is not minimal")}
		case n > 0:
			f.r.Discard(n)
			return size, nil
		case n < 0 || i == binary.MaxVarintLen64:
			return 0, &badMessage{errors.New("length of more than 64 bits")}
		}
	}
}

func (f *frames) read(size int) ([]byte, error) {
	if size <= frameKeep {
		if cap(f.buf) < size {
			f.buf = make([]byte, size, min(frameKeep, max(4<<10, 2*size)))
		}
		f.buf = f.buf[:size]
		_, err := io.ReadFull(f.r, f.buf)
		return f.buf, err
	}
	b := make([]byte, 0, frameStep)
	for len(b) < size {
		step := min(frameStep, size-len(b))
		if !f.budget.take(int64(step)) {
			return nil, errors.New("too many large messages at once")
		}
		f.taken += int64(step)
		at := len(b)
		b = append(b, make([]byte, step)...)
		if _, err := io.ReadFull(f.r, b[at:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// done gives back what the last message took, also one that did not arrive whole.
func (f *frames) done() {
	if f.taken > 0 {
		f.budget.give(f.taken)
		f.taken = 0
	}
}

func stalled(err error) error {
	var late net.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &late) && late.Timeout():
		return &badMessage{errStalled}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return err
}
