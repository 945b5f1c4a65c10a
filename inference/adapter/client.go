package adapter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/gonka-mesh/mesh/inference"
	"github.com/gonka-mesh/mesh/internal/plainly"
)

// maxReply bounds an answer that is read whole: prompt log-probabilities of a long
// context are the largest.
const maxReply = 64 << 20

// client speaks JSON over HTTP with one server.
type client struct {
	base string
	key  string
	http *http.Client
	log  *slog.Logger
}

func newClient(cfg *Config) (*client, error) {
	base, err := baseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.Slots < 0 || cfg.Context < 0 || cfg.Stall < 0 || cfg.Poll < 0 {
		return nil, errors.New("engine: a negative setting")
	}
	if cfg.Stall == 0 {
		cfg.Stall = defaultStall
	}
	if cfg.Poll == 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.HTTP == nil {
		// Redirects would carry the key elsewhere.
		cfg.HTTP = &http.Client{
			Transport:     &http.Transport{MaxIdleConns: 256, MaxIdleConnsPerHost: 256, IdleConnTimeout: time.Minute},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &client{base: base, key: cfg.Key, http: cfg.HTTP, log: cfg.Log}, nil
}

// statusError is an answer other than 200.
type statusError struct {
	path    string
	code    int
	message string
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s: HTTP %d %s", e.path, e.code, http.StatusText(e.code))
	if e.code == http.StatusUnauthorized || e.code == http.StatusForbidden {
		text += " (the server wants an API key)"
	}
	if e.message != "" {
		text += ": " + e.message
	}
	return text
}

// Is sorts the status into what callers branch on.
func (e *statusError) Is(target error) bool {
	switch e.code {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return target == inference.ErrBusy
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return target == inference.ErrInvalid
	}
	return false
}

// missing reports whether the server does not have the path.
func missing(err error) bool {
	var s *statusError
	return errors.As(err, &s) && (s.code == http.StatusNotFound || s.code == http.StatusMethodNotAllowed ||
		s.code == http.StatusNotImplemented)
}

// open sends a request and returns the body of a 200.
func (c *client) open(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	var r io.Reader
	if body != nil {
		b, err := encodeJSON(body)
		if err != nil {
			return nil, fmt.Errorf("%s: encode: %w", path, err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		// Servers close connections that were quiet for a moment, or after a number of
		// requests. A request that met this may be sent again; an empty list of values
		// says so to the transport and is not sent.
		req.Header["Idempotency-Key"] = []string{}
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, plainly.Said(err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10)) // half a message is better than none
		return nil, &statusError{path, resp.StatusCode, errorText(b)}
	}
	return resp.Body, nil
}

// read returns the body of an answer.
func (c *client) read(ctx context.Context, method, path string, body any) ([]byte, error) {
	r, err := c.open(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxReply+1))
	if err != nil {
		return nil, fmt.Errorf("%s: read: %w", path, err)
	}
	if len(b) > maxReply {
		return nil, fmt.Errorf("%s: an answer of more than %d bytes", path, maxReply)
	}
	return b, nil
}

// get asks for a JSON document, post sends one and reads another.
func (c *client) get(ctx context.Context, path string, out any) error {
	return c.ask(ctx, http.MethodGet, path, nil, out)
}

func (c *client) post(ctx context.Context, path string, body, out any) error {
	return c.ask(ctx, http.MethodPost, path, body, out)
}

func (c *client) ask(ctx context.Context, method, path string, body, out any) error {
	b, err := c.read(ctx, method, path, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s: the answer is not what was asked for: %w", path, err)
	}
	return nil
}

// encodeJSON leaves <, > and & as they are: chat templates see the bytes.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// errorText finds the message in the error documents of the servers:
// {"error":{"message":…}}, {"error":…}, {"message":…}, {"detail":…}.
func errorText(b []byte) string {
	var d struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
		Detail  json.RawMessage `json:"detail"`
	}
	text := string(b)
	if json.Unmarshal(b, &d) == nil {
		var inner struct {
			Message string `json:"message"`
		}
		var plain string
		switch {
		case json.Unmarshal(d.Error, &inner) == nil && inner.Message != "":
			text = inner.Message
		case json.Unmarshal(d.Error, &plain) == nil && plain != "":
			text = plain
		case d.Message != "":
			text = d.Message
		case len(d.Detail) > 0:
			text = string(d.Detail)
		}
	}
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "\uFFFD")), " ")
	if r := []rune(text); len(r) > 300 {
		text = string(r[:300]) + "…"
	}
	return text
}
