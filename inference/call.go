package inference

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/inference/inferencepb"
)

// MaxCallBytes bounds the body of a POST on an infer stream.
const MaxCallBytes = MaxRequestBytes + 4<<20

// Call is a parsed InferCall: one choice of a request, from its first token or from
// where another host left off.
type Call struct {
	Request *Request
	Choice  uint32
	Prefix  []int32 // output tokens that exist already
	Before  Chain   // over the prefix
	From    *Receipt
	// From is the last receipt of the host that made the prefix; nil when there is
	// no prefix, or when only the payer vouches for it.
}

// EncodeCall returns the body of a POST.
func EncodeCall(request *inferencepb.Signed, choice uint32, prefix []int32, from *inferencepb.Signed) ([]byte, error) {
	c := &inferencepb.InferCall{Request: request, Choice: choice, PrefixReceipt: from, Prefix: make([]uint32, len(prefix))}
	for i, t := range prefix {
		c.Prefix[i] = uint32(t)
	}
	body, err := encode(c)
	if err != nil {
		return nil, fmt.Errorf("encode call: %w", err)
	}
	return body, nil
}

// ParseCall checks a POST's body: the request and its signature, the choice, and
// that the prefix and the receipt under it fit together. Failures are ErrInvalid.
func ParseCall(network mesh.NetworkID, body []byte) (*Call, error) {
	if len(body) > MaxCallBytes {
		return nil, fmt.Errorf("%w: call of %d bytes, at most %d", ErrInvalid, len(body), MaxCallBytes)
	}
	p := new(inferencepb.InferCall)
	if err := proto.Unmarshal(body, p); err != nil {
		return nil, fmt.Errorf("%w: call: %w", ErrInvalid, err)
	}
	r, err := ParseRequest(network, p.GetRequest())
	if err != nil {
		return nil, err
	}
	c := &Call{Request: r, Choice: p.GetChoice(), Before: NewChain(network, r.Hash, p.GetChoice())}
	if c.Choice >= r.Pb.GetChoices() {
		return nil, fmt.Errorf("%w: choice %d of %d", ErrInvalid, c.Choice, r.Pb.GetChoices())
	}
	if len(p.GetPrefix()) > int(r.Pb.GetMaxTokens()) {
		return nil, fmt.Errorf("%w: prefix of %d tokens, and at most %d are asked for", ErrInvalid, len(p.GetPrefix()), r.Pb.GetMaxTokens())
	}
	c.Prefix = make([]int32, len(p.GetPrefix()))
	for i, t := range p.GetPrefix() {
		if t > math.MaxInt32 {
			return nil, fmt.Errorf("%w: token %d of the prefix is out of range", ErrInvalid, i)
		}
		c.Prefix[i] = int32(t)
		c.Before.Add(int32(t))
	}
	if p.GetPrefixReceipt() == nil {
		return c, nil
	}
	if c.From, err = ParseReceipt(network, p.GetPrefixReceipt()); err != nil {
		return nil, fmt.Errorf("%w: prefix: %w", ErrInvalid, err)
	}
	if err := c.From.precedes(c); err != nil {
		return nil, fmt.Errorf("%w: prefix: %w", ErrInvalid, err)
	}
	return c, nil
}

func (r *Receipt) precedes(c *Call) error {
	switch {
	case r.Request != c.Request.Hash || r.Pb.GetChoice() != c.Choice:
		return errors.New("the receipt is of another answer")
	case r.Model != c.Request.Model:
		return errors.New("the receipt is of another model")
	case r.After != c.Before:
		return errors.New("the receipt does not end where the tokens do")
	}
	return nil
}

// OwnContext returns the context of the model itself, which is the same on any host.
// What this host holds may be less.
func OwnContext(c *inferencepb.Capability) int {
	return int(max(c.GetContext(), c.GetModelContext()))
}

// What stands around the text of a question at the most, in tokens. It is generous: a
// host that counts more is held to be a liar.
const (
	templateTokens  = 4096 // once: a system prompt of its own, how to call tools
	messageTokens   = 64   // around each message
	templateRewrite = 6    // per byte of JSON, which it writes anew: with spaces, and \ufdfa in full
	plainTokens     = 64   // around a prompt without a template: marks of begin and end
)

// MostPrompt bounds the prompt tokens of a question for who does not have the model's
// tokenizer: none gives more than a token for each byte of text in its normal form.
func MostPrompt(q *inferencepb.Question) int {
	n := plainTokens + mostTokens(q.GetPrompt()) + len(q.GetPromptTokens())
	if len(q.GetMessages()) > 0 {
		n += templateTokens + mostTokens(q.GetToolChoice()) + templateRewrite*(mostTokens(q.GetTemplateArgs())+mostTokens(q.GetTools()))
	}
	for _, m := range q.GetMessages() {
		n += messageTokens + mostTokens(m.GetContent()) + mostTokens(m.GetName()) + mostTokens(m.GetToolCallId()) +
			templateRewrite*mostTokens(m.GetToolCalls())
	}
	return n
}

// mostTokens is the bytes of a text in whichever normal form makes most of them: the form NFKC
// makes 33 of the 3 of U+FDFA.
func mostTokens(s string) int {
	n := len(s)
	if !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) {
		return n
	}
	for _, f := range []norm.Form{norm.NFC, norm.NFD, norm.NFKC, norm.NFKD} {
		n = max(n, len(f.String(s)))
	}
	return n + n/2 // small letters have up to 3 bytes where large ones have 2
}

// Fit returns how many output tokens a choice may have: what was asked for, or,
// where that is MaxTokens, as many as fit the context. It fails with TooLongError.
func Fit(prompt, maxTokens, context int) (int, error) {
	room := context - prompt
	if maxTokens == MaxTokens {
		maxTokens = max(1, min(room, maxTokens))
	}
	if maxTokens > room {
		return 0, &TooLongError{Prompt: prompt, MaxTokens: maxTokens, Context: context}
	}
	return maxTokens, nil
}
