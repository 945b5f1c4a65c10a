package inference

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// Bounds of a frame.
const (
	MaxFrameBytes  = 1 << 20 // of JSON
	MaxFrameTokens = 64
)

// Frame is one step of an answer on an infer stream: the JSON of an SSE data line.
// A frame with tokens or a finish carries the host's signed running receipt over
// its whole segment; a frame with neither is a heartbeat.
type Frame struct {
	Tokens   []FrameToken `json:"tokens,omitempty"`
	Text     string       `json:"text,omitempty"`     // released by these tokens, see Text
	Vector   []byte       `json:"vector,omitempty"`   // instead of tokens, in the last frame; see EncodeVector
	Receipt  []byte       `json:"receipt,omitempty"`  // an encoded inferencepb.Signed
	Finish   FinishReason `json:"finish,omitempty"`   // in the last frame
	Progress *Progress    `json:"progress,omitempty"` // in heartbeats
}

// FrameToken is a token as its host computed it. Top has no alternatives of its own.
type FrameToken struct {
	ID      int32        `json:"id"`
	Bytes   []byte       `json:"bytes,omitempty"`
	LogProb float32      `json:"logprob,omitempty"`
	Top     []FrameToken `json:"top,omitempty"`
}

// Progress lets a waiting router see that work goes on: its values change as long
// as it does.
type Progress struct {
	Queue int `json:"queue,omitempty"` // requests that go first
	Steps int `json:"steps,omitempty"` // of work on this request
}

// Heartbeat reports whether the frame says nothing of the answer.
func (f *Frame) Heartbeat() bool { return len(f.Tokens) == 0 && f.Finish == FinishOpen }

// SetReceipt encodes a signed receipt into the frame.
func (f *Frame) SetReceipt(s *inferencepb.Signed) error {
	b, err := encode(s)
	if err != nil {
		return fmt.Errorf("encode signed receipt: %w", err)
	}
	f.Receipt = b
	return nil
}

// Signed returns the frame's receipt, unverified.
func (f *Frame) Signed() (*inferencepb.Signed, error) {
	s := new(inferencepb.Signed)
	if err := proto.Unmarshal(f.Receipt, s); err != nil {
		return nil, fmt.Errorf("frame: signed receipt: %w", err)
	}
	return s, nil
}

// AppendFrame appends the frame as an SSE event.
func AppendFrame(b []byte, f *Frame) ([]byte, error) {
	doc, err := json.Marshal(f)
	if err != nil {
		return b, fmt.Errorf("encode frame: %w", err)
	}
	b = append(b, "data: "...)
	b = append(b, doc...)
	return append(b, "\n\n"...), nil
}

// DecodeFrame reads the JSON of one frame and checks its bounds.
func DecodeFrame(doc []byte) (*Frame, error) {
	if len(doc) > MaxFrameBytes {
		return nil, fmt.Errorf("frame of %d bytes, at most %d", len(doc), MaxFrameBytes)
	}
	f := new(Frame)
	if err := json.Unmarshal(doc, f); err != nil {
		return nil, fmt.Errorf("frame: %w", err)
	}
	switch {
	case len(f.Tokens) > MaxFrameTokens:
		return nil, fmt.Errorf("frame of %d tokens, at most %d", len(f.Tokens), MaxFrameTokens)
	case !f.Finish.Valid():
		return nil, fmt.Errorf("frame: finish %.20q", f.Finish)
	case len(f.Receipt) > MaxReceiptBytes+128:
		return nil, fmt.Errorf("frame: receipt of %d bytes", len(f.Receipt))
	case !f.Heartbeat() && len(f.Receipt) == 0:
		return nil, errors.New("frame: tokens without a receipt")
	case f.Heartbeat() && f.Text != "":
		return nil, errors.New("frame: text without tokens")
	case f.Vector != nil && (len(f.Tokens) > 0 || f.Text != "" || f.Finish != FinishEOS):
		return nil, errors.New("frame: a vector that is not all of the answer")
	}
	if f.Vector != nil {
		if _, err := DecodeVector(f.Vector); err != nil {
			return nil, fmt.Errorf("frame: %w", err)
		}
	}
	for _, t := range f.Tokens {
		if t.ID < 0 || len(t.Top) > MaxTopLogProbs {
			return nil, fmt.Errorf("frame: token %d with %d alternatives", t.ID, len(t.Top))
		}
		for _, a := range t.Top {
			if a.ID < 0 || len(a.Top) > 0 {
				return nil, fmt.Errorf("frame: alternative %d of token %d", a.ID, t.ID)
			}
		}
	}
	return f, nil
}

// FrameReader reads the frames of an SSE body.
type FrameReader struct {
	r    *bufio.Reader
	line []byte
}

// NewFrameReader returns a reader over an answer's body.
func NewFrameReader(r io.Reader) *FrameReader {
	return &FrameReader{r: bufio.NewReaderSize(r, 4096)}
}

// Next returns the next frame. Comments and fields other than data are skipped.
// The end of the body is io.EOF, or io.ErrUnexpectedEOF inside a line.
func (r *FrameReader) Next() (*Frame, error) {
	for {
		if err := r.readLine(); err != nil {
			return nil, err
		}
		if doc, ok := bytes.CutPrefix(r.line, []byte("data:")); ok {
			return DecodeFrame(bytes.TrimSpace(doc))
		}
	}
}

func (r *FrameReader) readLine() error {
	r.line = r.line[:0]
	for {
		part, err := r.r.ReadSlice('\n')
		if len(r.line)+len(part) > MaxFrameBytes+len("data: \r\n") {
			return fmt.Errorf("frame: a line of more than %d bytes", MaxFrameBytes)
		}
		r.line = append(r.line, part...)
		switch {
		case err == nil:
			r.line = bytes.TrimRight(r.line, "\r\n")
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(r.line) > 0:
			return io.ErrUnexpectedEOF
		default:
			return err
		}
	}
}
