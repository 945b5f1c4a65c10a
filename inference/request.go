package inference

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// Domains of what this package signs and hashes.
const (
	domainRequest mesh.Domain = "mesh/request/1"
	domainReceipt mesh.Domain = "mesh/receipt/1"
	domainVoucher mesh.Domain = "mesh/voucher/1"
	domainTask    mesh.Domain = "mesh/task/1"
	domainCancel  mesh.Domain = "mesh/cancel/1"
	domainChain   mesh.Domain = "mesh/chain/1"
	domainTape    mesh.Domain = "mk1/tape"
)

// Bounds of a request. A host may have lower ones of its own.
const (
	MaxRequestBytes = 1 << 20
	MaxMessages     = 4096
	MaxChoices      = 16
	MaxTokens       = 1 << 20
	MaxStops        = 16
	MaxStopBytes    = 256
	MaxTopLogProbs  = 20
	MaxLogitBias    = 1024
	MaxTemplateArgs = 1024     // bytes of JSON
	MaxConstraint   = 64 << 10 // bytes of a schema or grammar
	MinTemperature  = 1e-3     // below it, and above 0, logits would leave float32
)

// Request is a parsed, valid request. Body holds the bytes that were signed.
type Request struct {
	Hash     mesh.Hash
	Body     []byte
	Pb       *inferencepb.Request
	Question *inferencepb.Question
	Model    mesh.ModelID
	Payer    mesh.Address
}

// NewRequest encodes, signs and parses a request. It fills in network, question
// and payer; key is the payer's.
func NewRequest(network mesh.NetworkID, key ed25519.PrivateKey, q *inferencepb.Question, r *inferencepb.Request) (*Request, *inferencepb.Signed, error) {
	question, err := encode(q)
	if err != nil {
		return nil, nil, fmt.Errorf("encode question: %w", err)
	}
	payer := mesh.AddressOf(key.Public().(ed25519.PublicKey))
	r.Network, r.Question, r.Payer = string(network), question, payer[:]
	body, err := encode(r)
	if err != nil {
		return nil, nil, fmt.Errorf("encode request: %w", err)
	}
	signed := &inferencepb.Signed{Body: body, Signature: domainRequest.Sign(key, network, body)}
	req, err := parseRequest(network, body)
	return req, signed, err
}

// ParseRequest checks bounds, encoding and the payer's signature.
func ParseRequest(network mesh.NetworkID, s *inferencepb.Signed) (*Request, error) {
	req, err := parseRequest(network, s.GetBody())
	if err != nil {
		return nil, err
	}
	if !domainRequest.Verify(req.Payer, network, req.Body, s.GetSignature()) {
		return nil, fmt.Errorf("%w: the signature is not the payer's", ErrInvalid)
	}
	return req, nil
}

func parseRequest(network mesh.NetworkID, body []byte) (*Request, error) {
	if len(body) > MaxRequestBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrInvalid, len(body), MaxRequestBytes)
	}
	r, q := new(inferencepb.Request), new(inferencepb.Question)
	if err := decode(body, r); err != nil {
		return nil, fmt.Errorf("%w: request: %w", ErrInvalid, err)
	}
	if err := decode(r.GetQuestion(), q); err != nil {
		return nil, fmt.Errorf("%w: question: %w", ErrInvalid, err)
	}
	if r.GetNetwork() != string(network) {
		return nil, fmt.Errorf("%w: it is for network %.50q", ErrInvalid, r.GetNetwork())
	}
	model, err := mesh.HashFromBytes(q.GetModel())
	if err != nil {
		return nil, fmt.Errorf("%w: model: %w", ErrInvalid, err)
	}
	if len(r.GetPayer()) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: payer of %d bytes", ErrInvalid, len(r.GetPayer()))
	}
	if err := checkQuestion(q); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := checkLimits(r, q.GetEmbed()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := checkEmbed(q, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if q.GetConstraint() != nil && r.GetIgnoreEos() {
		return nil, fmt.Errorf("%w: an answer with a constraint cannot go on after its end", ErrInvalid)
	}
	return &Request{
		Hash: domainRequest.Hash(network, body), Body: body, Pb: r, Question: q,
		Model: model, Payer: mesh.AddressOf(r.GetPayer()),
	}, nil
}

func checkLimits(r *inferencepb.Request, embed bool) error {
	switch {
	case r.GetChoices() < 1 || r.GetChoices() > MaxChoices:
		return fmt.Errorf("n is %d, from 1 to %d are allowed", r.GetChoices(), MaxChoices)
	case r.GetMaxTokens() < 1 && !embed || r.GetMaxTokens() > MaxTokens:
		return fmt.Errorf("max tokens is %d, from 1 to %d are allowed", r.GetMaxTokens(), MaxTokens)
	case r.GetTopLogprobs() > MaxTopLogProbs:
		return fmt.Errorf("top logprobs is %d, at most %d are allowed", r.GetTopLogprobs(), MaxTopLogProbs)
	case len(r.GetStop()) > MaxStops:
		return fmt.Errorf("%d stop strings, at most %d are allowed", len(r.GetStop()), MaxStops)
	case len(r.GetNonce()) != 16:
		return fmt.Errorf("nonce of %d bytes, want 16", len(r.GetNonce()))
	case len(r.GetEscrow()) != 0 && len(r.GetEscrow()) != 32:
		return fmt.Errorf("escrow of %d bytes, want 32", len(r.GetEscrow()))
	}
	for _, s := range r.GetStop() {
		if s == "" || len(s) > MaxStopBytes {
			return fmt.Errorf("a stop string has %d bytes, from 1 to %d are allowed", len(s), MaxStopBytes)
		}
	}
	return nil
}

func checkQuestion(q *inferencepb.Question) error {
	kinds := 0
	for _, set := range []bool{len(q.GetMessages()) > 0, q.GetPrompt() != "", len(q.GetPromptTokens()) > 0} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return fmt.Errorf("want exactly one of messages, a prompt and prompt tokens")
	}
	if len(q.GetMessages()) > MaxMessages {
		return fmt.Errorf("%d messages, at most %d are allowed", len(q.GetMessages()), MaxMessages)
	}
	for i, m := range q.GetMessages() {
		switch m.GetRole() {
		case "system", "user", "assistant", "tool":
		default:
			return fmt.Errorf("message %d has the role %.20q; system, user, assistant and tool are allowed", i, m.GetRole())
		}
		if m.GetToolCalls() != "" && !json.Valid([]byte(m.GetToolCalls())) {
			return fmt.Errorf("tool calls of message %d are not JSON", i)
		}
	}
	for name, text := range map[string]string{"tools": q.GetTools(), "tool choice": q.GetToolChoice()} {
		if text != "" && !json.Valid([]byte(text)) {
			return fmt.Errorf("%s is not JSON", name)
		}
	}
	if err := checkTemplateArgs(q.GetTemplateArgs()); err != nil {
		return err
	}
	if err := checkConstraint(q.GetConstraint()); err != nil {
		return err
	}
	return checkSampling(q.GetSampling())
}

// checkConstraint looks at the size alone: what the text means is for engines to say.
func checkConstraint(c *inferencepb.Constraint) error {
	switch {
	case c == nil:
		return nil
	case c.GetKind() == "" || len(c.GetKind()) > 32:
		return fmt.Errorf("constraint of kind %.40q", c.GetKind())
	case len(c.GetText()) > MaxConstraint:
		return fmt.Errorf("constraint of %d bytes, at most %d are allowed", len(c.GetText()), MaxConstraint)
	}
	return nil
}

// checkTemplateArgs wants one spelling for one meaning: keys ascending, no spaces.
func checkTemplateArgs(args string) error {
	if args == "" {
		return nil
	}
	if len(args) > MaxTemplateArgs {
		return fmt.Errorf("template arguments of %d bytes, at most %d are allowed", len(args), MaxTemplateArgs)
	}
	var list map[string]json.RawMessage
	if err := json.Unmarshal([]byte(args), &list); err != nil || len(list) == 0 {
		return errors.New("template arguments are no JSON object with entries")
	}
	for name, v := range list {
		if v[0] == '{' || v[0] == '[' {
			return fmt.Errorf("template argument %.40q is no text, number, true, false or null", name)
		}
	}
	if again, err := json.Marshal(list); err != nil || string(again) != args {
		return errors.New("template arguments are not in canonical form: keys ascending, each once, no spaces")
	}
	return nil
}

func checkSampling(s *inferencepb.Sampling) error {
	for _, f := range []struct {
		name     string
		v        float32
		min, max float32
	}{
		{"temperature", s.GetTemperature(), 0, 2},
		{"top_p", s.GetTopP(), 0, 1},
		{"min_p", s.GetMinP(), 0, 1},
		{"frequency_penalty", s.GetFrequencyPenalty(), -2, 2},
		{"presence_penalty", s.GetPresencePenalty(), -2, 2},
		{"repetition_penalty", s.GetRepetitionPenalty(), 0, 10},
	} {
		// Not "v < min || v > max": a NaN has to fail.
		if !(f.v >= f.min && f.v <= f.max) {
			return fmt.Errorf("%s is %g, from %g to %g are allowed", f.name, f.v, f.min, f.max)
		}
	}
	if t := s.GetTemperature(); t > 0 && t < MinTemperature {
		return fmt.Errorf("temperature is %g, 0 or from %g are allowed", t, MinTemperature)
	}
	if len(s.GetLogitBias()) > MaxLogitBias {
		return fmt.Errorf("%d entries of logit bias, at most %d are allowed", len(s.GetLogitBias()), MaxLogitBias)
	}
	for i, b := range s.GetLogitBias() {
		if !(math.Abs(float64(b.GetBias())) <= 100) {
			return fmt.Errorf("logit bias of token %d is %g, from -100 to 100 are allowed", b.GetToken(), b.GetBias())
		}
		if i > 0 && s.GetLogitBias()[i-1].GetToken() >= b.GetToken() {
			return fmt.Errorf("logit bias is not ascending by token")
		}
	}
	return nil
}

// SortLogitBias brings the entries into the order that a valid request has.
func SortLogitBias(b []*inferencepb.LogitBias) {
	slices.SortFunc(b, func(x, y *inferencepb.LogitBias) int { return int(int64(x.Token) - int64(y.Token)) })
}

// TapeKey returns the key of the random numbers of one choice: a function of the
// question (model, prompt, sampling, seed) and nothing that host or router choose.
func TapeKey(network mesh.NetworkID, question []byte, choice uint32) mesh.Hash {
	return domainTape.Hash(network, append(binary.BigEndian.AppendUint32(nil, choice), question...))
}

// Tape returns the tape key of one choice of the request.
func (r *Request) Tape(choice uint32) mesh.Hash {
	return TapeKey(mesh.NetworkID(r.Pb.GetNetwork()), r.Pb.GetQuestion(), choice)
}

// SignCancel returns the payer's order to end one choice.
func SignCancel(network mesh.NetworkID, key ed25519.PrivateKey, request mesh.Hash, choice uint32) (*inferencepb.Signed, error) {
	body, err := encode(&inferencepb.Cancel{Request: request[:], Choice: choice})
	if err != nil {
		return nil, fmt.Errorf("encode cancel: %w", err)
	}
	return &inferencepb.Signed{Body: body, Signature: domainCancel.Sign(key, network, body)}, nil
}

// ParseCancel returns which choice a cancel ends; the caller knows the payer by
// the request and passes it to verify.
func ParseCancel(s *inferencepb.Signed) (request mesh.Hash, choice uint32, verify func(mesh.NetworkID, mesh.Address) bool, err error) {
	c := new(inferencepb.Cancel)
	if err := decode(s.GetBody(), c); err != nil {
		return request, 0, nil, fmt.Errorf("cancel: %w", err)
	}
	if request, err = mesh.HashFromBytes(c.GetRequest()); err != nil {
		return request, 0, nil, fmt.Errorf("cancel: %w", err)
	}
	return request, c.GetChoice(), func(network mesh.NetworkID, payer mesh.Address) bool {
		return domainCancel.Verify(payer, network, s.GetBody(), s.GetSignature())
	}, nil
}

// encode writes fields in ascending order and leaves out defaults.
func encode(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// decode refuses bytes that do not encode back to themselves, so that one message
// has one hash. Unknown fields with higher numbers, from newer software, are kept.
func decode(b []byte, m proto.Message) error {
	if err := proto.Unmarshal(b, m); err != nil {
		return err
	}
	again, err := encode(m)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, again) {
		return fmt.Errorf("not in canonical encoding")
	}
	return nil
}
