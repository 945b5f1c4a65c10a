package openai

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gonka-mesh/mesh/inference"
)

// bodyTimeout is how long a client may take to send its request.
const bodyTimeout = 30 * time.Second

// promptsAtOnce is how many prompts of one completion request are asked together.
const promptsAtOnce = 8

// completions serves both kinds of requests; decode tells them apart.
func (h *handler) completions(decode func([]byte) (*call, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := readBody(w, r)
		if err != nil {
			h.fail(w, r, err, "")
			return
		}
		c, err := decode(body)
		if err != nil {
			h.fail(w, r, err, "")
			return
		}
		a := newAnswer(c, w)
		err = h.ask(r.Context(), a)
		a.extend() // net/http lifts it with the end of this response
		if err != nil {
			e := errorOf(err, c.model, c.prompt)
			h.logFault(r, e)
			a.fail(e)
			return
		}
		a.finish()
	}
}

// readBody reads to the end. From there on net/http lifts the deadline and watches
// for a client that leaves.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // not every writer has deadlines
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &apiError{status: http.StatusRequestEntityTooLarge, Type: typeInvalid, Code: "request_too_large",
			Message: fmt.Sprintf("the body is over %d bytes", tooLarge.Limit)}
	case err != nil:
		return nil, invalid("", "invalid_body", "read the body: %v", err)
	}
	return body, nil
}

// ask puts the call's asks to the backend and waits for their ends.
func (h *handler) ask(ctx context.Context, a *answer) error {
	one := func(ctx context.Context, i int) error {
		return h.Backend.Ask(ctx, a.call.asks[i], func(ev inference.Event) error { return a.event(i, ev) })
	}
	var err error
	if len(a.call.asks) == 1 {
		err = one(ctx, 0) // on this goroutine, which the server guards against panics
	} else {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(promptsAtOnce)
		for i := range a.call.asks {
			group.Go(func() error { return one(ctx, i) })
		}
		err = group.Wait()
	}
	if err != nil {
		return err
	}
	return a.complete()
}

// send writes a piece to the stream.
func (a *answer) send(c *choice, p piece) error {
	a.out.Reset()
	for _, choice := range a.chunks(c, p) {
		head := a.head
		head.Choices = []any{choice}
		if a.call.usage {
			head.Usage = null
		}
		if err := writeFrame(&a.out, head); err != nil {
			return err
		}
	}
	return a.write(a.out.Bytes())
}

// writeFrame appends one frame of server-sent events.
func writeFrame(out *bytes.Buffer, v any) error {
	out.WriteString("data: ")
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode a chunk: %w", err)
	}
	out.WriteByte('\n') // the encoder wrote the first one
	return nil
}

// extend gives the client its time to accept the next bytes.
func (a *answer) extend() {
	_ = a.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has deadlines
}

// write sends bytes of a stream and sees to it that they leave now.
func (a *answer) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	a.extend()
	if _, err := a.w.Write(b); err != nil {
		return fmt.Errorf("write to the client: %w", err)
	}
	if err := a.control.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("write to the client: %w", err)
	}
	return nil
}

// finish ends an answer that is complete.
func (a *answer) finish() {
	total, _ := json.Marshal(a.usage()) // numbers only
	if !a.call.stream {
		for _, c := range a.choices {
			a.head.Choices = append(a.head.Choices, a.whole(c))
		}
		a.head.Usage = total
		writeJSON(a.w, http.StatusOK, a.head)
		return
	}
	var out bytes.Buffer
	if a.call.usage {
		head := a.head
		head.Choices, head.Usage = []any{}, total
		_ = writeFrame(&out, head) // plain data
	}
	out.WriteString("data: [DONE]\n\n")
	_ = a.write(out.Bytes()) // a client that left needs no end
}

// fail ends an answer with an error: as a frame if the stream began, else as the
// whole response.
func (a *answer) fail(e *apiError) {
	if !a.call.stream || !a.began {
		writeError(a.w, e)
		return
	}
	var out bytes.Buffer
	_ = writeFrame(&out, e.body()) // plain data
	_ = a.write(out.Bytes())       // a client that left needs no error
}
