package p2p

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
)

// ErrMessage marks bytes of a peer that are no proper message: too large,
// a length that is not minimal, truncated, or not protobuf.
var ErrMessage = errors.New("malformed message")

// ReadMessage reads one message preceded by its length as an unsigned varint.
// It refuses more than limit bytes before it allocates. A clean end of the stream
// before the first byte is io.EOF; a fault of the bytes wraps ErrMessage; a
// fault of the stream, such as a deadline, does not.
//
// A fault of the bytes on a Conn counts against the peer.
func ReadMessage(r io.Reader, limit int, m proto.Message) error {
	err := readMessage(r, limit, m)
	if c, ok := r.(*Conn); ok && errors.Is(err, ErrMessage) {
		c.badFrame(err)
	}
	return err
}

func readMessage(r io.Reader, limit int, m proto.Message) error {
	size, err := readLength(r)
	if err != nil {
		return err
	}
	if size > uint64(limit) {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrMessage, size, limit)
	}
	buf := make([]byte, size)
	if _, err := io.ReadFull(r, buf); err != nil {
		return truncated(err)
	}
	if err := proto.Unmarshal(buf, m); err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return nil
}

// readLength reads a minimal unsigned varint byte by byte, so that nothing after
// it is consumed.
func readLength(r io.Reader) (uint64, error) {
	var (
		b    [1]byte
		size uint64
	)
	for i := range binary.MaxVarintLen64 {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			if i == 0 {
				return 0, err
			}
			return 0, truncated(err)
		}
		if i == binary.MaxVarintLen64-1 && b[0] > 1 {
			break
		}
		size |= uint64(b[0]&0x7f) << (7 * i)
		if b[0] < 0x80 {
			if b[0] == 0 && i > 0 {
				return 0, fmt.Errorf("%w: length is not minimal", ErrMessage)
			}
			return size, nil
		}
	}
	return 0, fmt.Errorf("%w: length of more than 64 bits", ErrMessage)
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: truncated", ErrMessage)
	}
	return err
}

// WriteMessage writes one message preceded by its length, in a single Write.
func WriteMessage(w io.Writer, m proto.Message) error {
	buf := make([]byte, 0, binary.MaxVarintLen64+proto.Size(m))
	buf = binary.AppendUvarint(buf, uint64(proto.Size(m)))
	buf, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(buf, m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	_, err = w.Write(buf)
	return err
}
