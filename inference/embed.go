package inference

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// MaxWidth bounds the vector that is made of a text.
const MaxWidth = 1 << 17

// vectorIndex stands in a chain where a token's index would; no token has it.
const vectorIndex = math.MaxUint32

// Embedding is what an Embedder makes of a text.
type Embedding struct {
	Vector []float32 // [width], of length 1
	// Hidden and Positions are as of a Token, over the text; exact class only.
	Hidden    mesh.Hash
	Positions int
}

// EncodeVector returns a vector as a frame carries it: little-endian float32.
func EncodeVector(v []float32) []byte {
	out := make([]byte, 0, 4*len(v))
	for _, x := range v {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(x))
	}
	return out
}

// DecodeVector reads a vector: 1 to MaxWidth numbers, none of them infinite or NaN.
func DecodeVector(b []byte) ([]float32, error) {
	if len(b) == 0 || len(b)%4 != 0 || len(b) > 4*MaxWidth {
		return nil, fmt.Errorf("vector of %d bytes, want 4 for each of 1 to %d numbers", len(b), MaxWidth)
	}
	v := make([]float32, len(b)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
		if x := float64(v[i]); math.IsNaN(x) || math.IsInf(x, 0) {
			return nil, fmt.Errorf("vector: number %d is not finite", i)
		}
	}
	return v, nil
}

// Bind ends the chain of an answer that is a vector:
// h = SHA-256(h ‖ be32(0xffffffff) ‖ SHA-256(vector as EncodeVector writes it)).
func (c *Chain) Bind(vector []byte) {
	sum := sha256.Sum256(vector)
	var b [2*sha256.Size + 4]byte
	copy(b[:], c.H[:])
	binary.BigEndian.PutUint32(b[sha256.Size:], vectorIndex)
	copy(b[sha256.Size+4:], sum[:])
	c.H = sha256.Sum256(b[:])
}

// checkEmbed refuses what has no meaning for a vector, so that one meaning has one
// spelling: who asks again for the vector of a text asks the same question.
func checkEmbed(q *inferencepb.Question, r *inferencepb.Request) error {
	switch {
	case !q.GetEmbed():
		return nil
	case len(q.GetMessages()) > 0:
		return errors.New("a vector is made of a prompt or of prompt tokens, not of messages")
	case q.GetTools() != "" || q.GetToolChoice() != "" || q.GetTemplateArgs() != "" || q.GetConstraint() != nil || q.GetSampling() != nil || q.GetSeed() != 0:
		return errors.New("a question for a vector has neither tools, a constraint, sampling nor a seed")
	case r.GetChoices() != 1 || r.GetMaxTokens() != 0 || len(r.GetStop()) > 0 || r.GetLogprobs() || r.GetTopLogprobs() > 0 || r.GetIgnoreEos():
		return errors.New("a request for a vector has one choice, no tokens of output, and nothing that is about them")
	}
	return nil
}

// EmbedError says that a model gives no vector, or none of the width asked for.
type EmbedError struct {
	Width, Asked int // Width is the model's; 0: no host in reach makes vectors
}

func (e *EmbedError) Error() string {
	if e.Width == 0 {
		return "no host in reach makes embeddings with this model"
	}
	return fmt.Sprintf("this model's embeddings have %d dimensions; %d were asked for", e.Width, e.Asked)
}

// Is makes an EmbedError an invalid request.
func (e *EmbedError) Is(target error) bool { return target == ErrInvalid }
