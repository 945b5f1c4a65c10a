package openai

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/gonka-mesh/mesh/inference"
)

// Error types of the dialect.
const (
	typeInvalid = "invalid_request_error"
	typeRate    = "rate_limit_error"
	typeServer  = "server_error"
	typeQuota   = "insufficient_quota"
)

// apiError is an error as a client sees it.
type apiError struct {
	status  int
	retry   string // Retry-After in seconds, or empty
	Message string
	Type    string
	Param   string // the field at fault, or empty
	Code    string
}

func (e *apiError) Error() string { return e.Message }

// body is OpenAI's shape: param and code are null rather than empty.
func (e *apiError) body() any {
	type inner struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    *string `json:"code"`
	}
	in := inner{Message: e.Message, Type: e.Type}
	if e.Param != "" {
		in.Param = &e.Param
	}
	if e.Code != "" {
		in.Code = &e.Code
	}
	return struct {
		Error inner `json:"error"`
	}{in}
}

// invalid is a 400 that names the field at fault.
func invalid(param, code, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, Type: typeInvalid, Param: param, Code: code, Message: fmt.Sprintf(format, args...)}
}

func unknownModel(name string) *apiError {
	e := &apiError{status: http.StatusNotFound, Type: typeInvalid, Param: "model", Code: "model_not_found",
		Message: fmt.Sprintf("no host within reach serves the model %.200q; `mesh model ls`, or GET /v1/models, lists what is served", name)}
	if name == "" {
		e.Message = "the request names no model, and no host within reach serves this node's default"
	}
	return e
}

// answerError is an answer that ended in a way that no finish_reason stands for.
type answerError struct {
	reason inference.FinishReason
}

func (e *answerError) Error() string {
	switch e.reason {
	case inference.FinishNumeric:
		return "the model computed a value outside its numeric range, or could not go on within its constraint; on any host the answer would end here"
	case inference.FinishOpen:
		return "the answer broke off before its end"
	}
	return fmt.Sprintf("the answer was ended by its host or caller (%s)", e.reason)
}

// errorOf says what a client is told about an error of the backend. The field
// that holds the prompt is named by the caller.
func errorOf(err error, model, prompt string) *apiError {
	var (
		own     *apiError
		ended   *answerError
		tooLong *inference.TooLongError
		embed   *inference.EmbedError
	)
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &ended):
		return &apiError{status: http.StatusInternalServerError, Type: typeServer, Code: "answer_ended", Message: err.Error()}
	case errors.As(err, &tooLong):
		return invalid(prompt, "context_length_exceeded", "%v", tooLong)
	case errors.As(err, &embed) && embed.Width > 0:
		return invalid("dimensions", "invalid_value", "dimensions: %v", embed)
	case errors.As(err, &embed):
		return invalid("model", "embeddings_not_supported", "%v", embed)
	case errors.Is(err, inference.ErrUnknownModel):
		return unknownModel(model)
	case errors.Is(err, inference.ErrInvalid):
		return invalid("", "invalid_request", "%v", err)
	case errors.Is(err, inference.ErrBusy):
		return &apiError{status: http.StatusTooManyRequests, retry: retryAfter(err), Type: typeRate, Code: "busy", Message: err.Error()}
	case errors.Is(err, inference.ErrUnpaid): // no 429, which clients send again by themselves
		return &apiError{status: http.StatusPaymentRequired, Type: typeQuota, Code: "unpaid", Message: err.Error()}
	case errors.Is(err, inference.ErrTooDear):
		return &apiError{status: http.StatusPaymentRequired, Type: typeQuota, Code: "price_cap", Message: err.Error()}
	case errors.Is(err, inference.ErrNoHost):
		return &apiError{status: http.StatusServiceUnavailable, retry: "1", Type: typeServer, Code: "no_host", Message: err.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return &apiError{status: http.StatusGatewayTimeout, Type: typeServer, Code: "timeout", Message: err.Error()}
	case errors.Is(err, context.Canceled):
		// The caller left, or the node stops: then someone is there to read it.
		return &apiError{status: http.StatusServiceUnavailable, retry: "1", Type: typeServer, Code: "cancelled", Message: "the request was cancelled"}
	}
	return &apiError{status: http.StatusInternalServerError, Type: typeServer, Code: "internal", Message: err.Error()}
}

// retryAfter returns in how many seconds a host that is busy may have room.
func retryAfter(err error) string {
	var refusal *inference.Refusal
	if !errors.As(err, &refusal) {
		return "1"
	}
	return strconv.FormatInt(max(1, (refusal.WaitMs+999)/1000), 10)
}

// fail answers with an error and logs those that are the node's own fault.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error, model string) {
	e := errorOf(err, model, "")
	h.logFault(r, e)
	writeError(w, e)
}

func (h *handler) logFault(r *http.Request, e *apiError) {
	if e.status == http.StatusInternalServerError && r.Context().Err() == nil {
		h.Log.Error("request failed", "path", r.URL.Path, "error", e.Message)
	}
}

func writeError(w http.ResponseWriter, e *apiError) {
	if e.retry != "" {
		w.Header().Set("Retry-After", e.retry)
	}
	writeJSON(w, e.status, e.body())
}
