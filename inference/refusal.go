package inference

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// MaxRefusalBytes bounds the JSON of a refusal.
const MaxRefusalBytes = 16 << 10

// Codes of a refusal.
const (
	CodeUnknownModel = "unknown_model" // this host does not serve it; 404
	CodeInvalid      = "invalid"       // the request is at fault; 400
	CodeTooLong      = "too_long"      // it does not fit the context; 400
	CodeTooSmall     = "too_small"     // it fits the context, but not this host's memory; 507
	CodeTooDear      = "too_dear"      // it may cost more than its price cap; 402
	CodeUnpaid       = "unpaid"        // no escrow pays for it here; 402
	CodeForbidden    = "forbidden"     // the caller is not the payer; 403
	CodeReplay       = "replay"        // this choice runs already; 409
	CodeBusy         = "busy"          // the queue is full; 429
	CodeInternal     = "internal"      // the host's fault; 500
	CodeDraining     = "draining"      // the host is about to stop; 503
)

// Refusal is why a host does not take a call: the JSON body of an answer whose
// status is not 200.
type Refusal struct {
	Code      string `json:"code"`
	Message   string `json:"message"`
	WaitMs    int64  `json:"wait_ms,omitempty"`    // busy: when to come back
	Prompt    int    `json:"prompt,omitempty"`     // too_long, in tokens
	MaxTokens int    `json:"max_tokens,omitempty"` // too_long
	Context   int    `json:"context,omitempty"`    // too_long

	Receipts *uint64 `json:"receipts,omitempty"` // invalid, of a voucher that acknowledges more: how many there are, those that run included
}

var refusalStatus = map[string]int{
	CodeUnknownModel: 404, CodeInvalid: 400, CodeTooLong: 400, CodeTooSmall: 507, CodeTooDear: 402, CodeUnpaid: 402, CodeForbidden: 403,
	CodeReplay: 409, CodeBusy: 429, CodeInternal: 500, CodeDraining: 503,
}

// Refuse returns the refusal that tells of an error.
func Refuse(err error) *Refusal {
	var r *Refusal
	var long *TooLongError
	switch {
	case errors.As(err, &r):
		return r
	case errors.As(err, &long):
		return &Refusal{Code: CodeTooLong, Message: long.Error(), Prompt: long.Prompt, MaxTokens: long.MaxTokens, Context: long.Context}
	case errors.Is(err, ErrUnknownModel):
		return &Refusal{Code: CodeUnknownModel, Message: err.Error()}
	case errors.Is(err, ErrInvalid):
		return &Refusal{Code: CodeInvalid, Message: err.Error()}
	case errors.Is(err, ErrBusy):
		return &Refusal{Code: CodeBusy, Message: err.Error()}
	}
	return &Refusal{Code: CodeInternal, Message: err.Error()}
}

// ParseRefusal reads the body of an answer with that status. One that is no refusal
// counts as the host's own fault.
func ParseRefusal(status int, body []byte) *Refusal {
	r := new(Refusal)
	if len(body) > MaxRefusalBytes || json.Unmarshal(body, r) != nil || refusalStatus[r.Code] != status || status == 0 {
		return &Refusal{Code: CodeInternal, Message: fmt.Sprintf("status %d without a refusal", status)}
	}
	if r.Code == CodeTooLong && (r.Prompt < 0 || r.MaxTokens < 0 || r.Context < 0 || r.MaxTokens <= r.Context-r.Prompt) {
		return &Refusal{Code: CodeInternal, Message: "a refusal as too long whose numbers fit"}
	}
	r.WaitMs = min(max(r.WaitMs, 0), time.Hour.Milliseconds())
	return r
}

// Status returns the HTTP status.
func (r *Refusal) Status() int {
	if s, ok := refusalStatus[r.Code]; ok {
		return s
	}
	return 500
}

func (r *Refusal) Error() string { return r.Message }

// Unwrap returns the sentinel or TooLongError that the code stands for, or nil.
func (r *Refusal) Unwrap() error {
	switch r.Code {
	case CodeUnknownModel:
		return ErrUnknownModel
	case CodeTooLong:
		return &TooLongError{Prompt: r.Prompt, MaxTokens: r.MaxTokens, Context: r.Context}
	case CodeInvalid:
		return ErrInvalid
	case CodeBusy:
		return ErrBusy
	case CodeUnpaid:
		return ErrUnpaid
	case CodeTooDear:
		return ErrTooDear
	}
	return nil
}
